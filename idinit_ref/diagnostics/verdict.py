"""Internal: what fails in a run, and the audit that says so."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import replace
from math import inf
from types import MappingProxyType
from typing import NamedTuple

from ..core.text import some
from ..errors import GraphError, OptionError, message
from ..roles.adds import Adds
from ..roles.flow import Flow
from ..roles.graph import without_unread
from .audit import LARGE, RANGE, Audit, Branch, Dead, Health, Layer
from .facts import TensorFacts
from .signals import Record, Signals

OUTPUT = "the output"
"""The name under which an output that does not depend on the input fails."""

_NOTHING: Mapping[str, int] = MappingProxyType({})


def check_inputs(floating: Mapping[str, TensorFacts], integers: bool = False) -> None:
    """Raise an OptionError for inputs that can show nothing: only zeros, infinities or NaN."""
    for name, fact in floating.items():
        is_mask = fact.masked and (integers or len(floating) > 1)  # beside an input with signals
        if not fact.finite and not is_mask:
            raise OptionError(
                message("inputs", f"{name} with infinities or NaN", "it should be finite", _REAL)
            )
    if floating and not integers and not any(fact.peak for fact in floating.values()):
        should = "a working model, too, may turn zeros into zeros"
        raise OptionError(message("inputs", "zeros only", should, _REAL))


_REAL = "pass a few real, different samples"


def check_outputs(count: int, given: object) -> None:
    """Raise a GraphError if no output is a floating array with entries."""
    if not count:
        should = "the model should return a floating array with entries"
        cure = (
            "pass some samples, not an empty batch; if the model rounds its output, audit the part "
            "before, such as its logits"
        )
        raise GraphError(message("output", given, should, cure))


class Fault(NamedTuple):
    """One thing that fails in a run."""

    name: str  # OUTPUT, the node that ends a branch, or a parameter
    text: str  # a sentence, or, of a parameter, the reason
    is_parameter: bool = False


class Verdict:
    """The faults of a run, and its audit, once it is known which of them end by themselves.

    >>> from ..roles.graph import Graph, Node
    >>> graph = Graph([Node("x", "input", shape=(2, 3)),
    ...                Node("w", "parameter", shape=(3, 3), use="weight"),
    ...                Node("fc", "weight", ("x",), (2, 3), weights=("w",))], ["fc"])
    >>> some, none = TensorFacts(1.0, 1.0, 1.0, 2.0**-23), TensorFacts(0.0, 0.0, 0.0, 2.0**-23)
    >>> audit = Verdict(Record(2, {"x": some}, graph, {"x": some, "fc": none}, [none],
    ...                        {"w": some}, {"w": some}, {"x": none}, {"w": ("fc",)})).audit()
    >>> audit.healthy[0]
    'the output does not depend on the input: it is 0, and its gradient to the input is exactly 0; the signal dies at fc'
    """  # noqa: E501 - a sentence of the result

    def __init__(self, record: Record) -> None:
        flow = Signals(record)
        seen = [(node, record.facts[node.name]) for node in record.graph.nodes
                if node.name in record.facts]  # fmt: skip
        layers = tuple(
            Layer(node.name, fact.second, fact.units, fact.copies, fact.silent, fact.is_constant)
            for node, fact in seen
            if node.kind == "weight"
        )
        unused = tuple(name for name in record.gradients if not flow.reaches(name))
        self.record, self.flow = record, flow
        self.found = Audit(
            Health(),
            limits=(*record.limits, *_limits(record)),
            output_varies=_varies(record),
            input_gradient=_largest(record.input_gradients.values()),
            layers=layers,
            branches=tuple(_branches(record)),
            dead=tuple(flow.dead()),
            unused=unused,
            not_finite=tuple(_not_finite(record)),
        )
        self.faults = tuple(_faults(record, flow, self.found))

    def tell(self, dead: Mapping[str, Dead]) -> None:
        """Say something else of some parameters without a gradient, which are no faults."""
        found = tuple(dead.get(one.name, one) for one in self.found.dead)
        self.found = replace(self.found, dead=found)

    def is_alive(self, name: str) -> bool:
        """Whether what failed under a name in an earlier run does not fail in this one.

        A branch is then not 0 and depends on the input, and a parameter has a gradient.
        """
        if self.found.not_finite:
            return False
        if name == OUTPUT:
            return not any(fault.name == OUTPUT for fault in self.faults)
        block = self.record.blocks.get(name)
        fact = self.record.gradients.get(name) or self.record.facts.get(name)
        fact = fact if block is None else block.gradient
        is_still = self.flow.states.get(name) in ("dies", "after")  # the bias alone has moved
        return fact is not None and fact.peak > 0 and not is_still

    def audit(
        self,
        woken: Mapping[str, int] = _NOTHING,
        steps: int = 0,
        limit: str = "",
        hidden: Iterable[Dead] = (),
    ) -> Audit:
        """Return the audit.

        `woken` tells after how many of the `steps` each fault ended; `limit` is one more limit.
        `hidden` are parameters that were to wake, but what stops them was hidden in this run.
        """
        found, lasting = self.found, [one for one in self.faults if one.name not in woken]
        never = {one.name: one for one in hidden}
        lasting += [Fault(one.name, one.why, True) for one in never.values()]
        dead = [never.get(d.name, d._replace(wakes=d.wakes or d.name in woken)) for d in found.dead]
        ended = [
            f"ends after {step} step{'s' * (step > 1)} of training: {text}"
            for step in sorted(set(woken.values()))
            for text in _sentences(f for f in self.faults if woken.get(f.name) == step)
        ]
        shown = replace(found, dead=tuple(d for d in found.dead if d.name not in never))
        new = {
            "healthy": Health(_sentences(lasting)),
            "remarks": (*ended, *_remarks(self.record, self.flow, shown)),
            "limits": (*found.limits, *([limit] if limit else [])),
            "dead": tuple(dead),
            "steps": steps,
            "woken": tuple(woken),
        }
        return Audit(**{**vars(found), **new})

    def hidden(self, names: Container[str]) -> list[Dead]:
        """Return the parameters among some that fail in this run."""
        faults = {fault.name for fault in self.faults} - {OUTPUT}
        return [one for one in self.found.dead if one.name in names and one.name in faults]


# Failures -----------------------------------------------------------------------------------


def _not_finite(record: Record) -> list[str]:
    """Return the nodes, outputs, parameters and gradients that are not finite by a fault.

    An infinity that later nodes make finite again is no fault: -inf under a softmax. Neither is
    -inf beside finite entries of the output. But a gradient that is not finite may come from there.
    """
    faults, infinite = [], []
    readers: dict[str, list[str]] = {}
    spoilt = set[str]()  # nodes with a fault, and unmeasured ones before them
    ends = set(record.graph.outputs)
    for node in reversed(record.graph.nodes):
        fact, name = record.facts.get(node.name), node.name
        leads = not spoilt.isdisjoint(readers.get(name, ()))
        if fact is not None:
            is_output = name in ends and not fact.masked
            leads = fact.has_nan or (not fact.finite and (is_output or leads))
            infinite += [name] * (not fact.finite)
            faults += [name] * leads
        spoilt.update([name] * leads)
        for before in node.inputs:
            readers.setdefault(before, []).append(name)
    found = faults[::-1]
    if not all(fact.finite or fact.masked for fact in record.outputs):
        found.append(OUTPUT)
    found += [name for name, fact in record.values.items() if not fact.finite]
    gradients = (*record.gradients.items(), *record.input_gradients.items())
    bad = [f"the gradient of {name}" for name, fact in gradients if not fact.finite]
    return [*(found or infinite[::-1] if bad else found), *bad]


def _largest(facts: Iterable[TensorFacts]) -> float | None:
    """Return the largest entry of some tensors, or None without tensors."""
    return max((fact.peak if fact.finite or fact.has_nan else inf for fact in facts), default=None)


def _varies(record: Record) -> bool | None:
    """Whether the output differs between samples; None if the samples are equal."""
    samples = any(fact.spread for fact in record.inputs.values())
    seen = [fact for fact in record.outputs if fact.spread is not None]
    return any(not fact.is_constant for fact in seen) if seen and samples else None


def _faults(record: Record, flow: Signals, audit: Audit) -> Iterator[Fault]:
    if audit.not_finite:
        yield Fault("", f"not finite: {some(audit.not_finite)}")
        return  # zeros and constants mean nothing then
    signs = []
    if audit.output_varies is False:
        is_zero = not any(fact.peak for fact in record.outputs)
        signs.append("is 0" if is_zero else f"is the same for all {record.batch} samples")
    if audit.input_gradient == 0:
        signs.append("its gradient to the input is exactly 0")
    if signs:
        ends = flow.roots(record.graph.outputs)
        where = f"; the signal dies at {some(ends)}" if ends else ""
        signs[0] = f"it {signs[0]}" if signs[0].startswith("is") else signs[0]
        text = f"the output does not depend on the input: {', and '.join(signs)}{where}"
        yield Fault(OUTPUT, text)
    for add, branch, skip, rms, skip_rms in audit.branches:
        if not rms and skip_rms and not flow.wakes(branch):
            yield Fault(branch, f"the branch {branch}, which {add} adds to {skip}, is exactly 0")
    for parameter in audit.dead:
        name = parameter.name
        if not parameter.wakes and not flow.is_shift(name) and not flow.may_learn(name):
            yield Fault(parameter.name, parameter.why, True)


def _sentences(faults: Iterable[Fault]) -> Iterator[str]:
    """Yield what fails, with one sentence for all parameters that share a reason."""
    groups: dict[str, list[str]] = {}
    for name, text, is_parameter in faults:
        if is_parameter:
            groups.setdefault(text, []).append(name)
        else:
            yield text
    for why, names in groups.items():
        many = f"{len(names)} parameters have" if len(names) > 1 else "1 parameter has"
        yield f"{many} a gradient of exactly 0 ({some(names)}): {why}"


# Remarks ------------------------------------------------------------------------------------


def _remarks(record: Record, flow: Signals, audit: Audit) -> Iterator[str]:
    if audit.not_finite:
        return
    over = [name for name, fact in record.facts.items() if not fact.finite and not fact.masked]
    if over:
        yield f"infinite, and finite again behind: {some(over)}"
    if any(fact.masked for fact in record.outputs):
        yield "the output holds -inf beside finite entries, as under a mask"
    large = sorted((b for b in audit.branches if b.ratio > LARGE), key=lambda b: -b.ratio)
    if large:
        yield (
            f"{len(large)} of {len(audit.branches)} branches are not small beside their skips "
            f"(above {LARGE:g}); the largest is {large[0].branch} at {large[0].add}, "
            f"{large[0].ratio:.2g} of it"
        )
    copied = [f"{x.name} ({x.copies} of {x.units})" for x in audit.layers if x.copies]
    if copied:
        yield f"units are copies of others in {some(copied)}"
    ends = {b.branch for b in audit.branches}  # small by design
    rest = [layer.second_moment for layer in audit.layers if layer.name not in ends]
    moments = [moment for moment in rest if moment]
    if moments and not 1 / RANGE <= moments[-1] / moments[0] <= RANGE:
        yield (
            f"the second moment goes from {moments[0]:.2g} to {moments[-1]:.2g} between the "
            "first and the last weight operation"
        )
    shifts = {dead.name: dead.why for dead in audit.dead if flow.is_shift(dead.name)}
    cancelled = [name for name, why in shifts.items() if why.startswith("cancels")]
    if cancelled:
        yield f"cancels: the gradient of {some(cancelled)}, a bias whose weight has one"
    stopped = [name for name in shifts if name not in cancelled]
    if stopped:
        yield f"biases without a gradient, whose weights have one: {some(stopped)}"
    still = [b.branch for b in audit.branches if not b.rms and b.skip_rms and flow.wakes(b.branch)]
    if still:
        yield f"branches that are exactly 0 until the first step: {some(still)}"
    asleep = [dead for dead in audit.dead if dead.wakes and dead.name not in shifts]
    if asleep:
        readers = list(dict.fromkeys(dead.behind for dead in asleep))
        yield (
            f"no gradient at the first step for {some([dead.name for dead in asleep])}: "
            f"{some(readers)} is 0, does not read them, or their gradient cancels there, until it "
            "moves"
        )
    part = [dead for dead in audit.dead if not dead.wakes and flow.may_learn(dead.name)]
    if part:
        more = len({dead.why for dead in part}) - 1
        alike = f" ({more} more alike)" if more else ""
        names = some([dead.name for dead in part])
        text = f"no gradient from these inputs for blocks of packed weights, {names}"
        yield f"{text}: {part[0].why}{alike}"
    if audit.unused:
        yield f"the output does not use {some(audit.unused)}"


def _limits(record: Record) -> Iterator[str]:
    if record.batch < 2:
        yield "one sample: whether the output differs between samples is unknown"
    elif not any(fact.spread for fact in record.inputs.values()):
        yield "all samples are equal: whether the output differs between samples is unknown"
    if not record.gradients:
        yield "no parameter is trained: whether gradients would reach them is unknown"
    if not record.input_gradients:
        yield (
            "all inputs are integers, which have no gradient: dependence on them is judged by the "
            "samples and by the gradients of the embeddings"
        )
    missing = [
        node.name
        for node in record.graph.nodes
        if node.kind == "weight" and node.name not in record.facts
    ]
    if missing:
        yield f"weight operations inside a loop or a layer were not measured: {some(missing)}"


# Residual adds ------------------------------------------------------------------------------


def _branches(record: Record) -> Iterator[Branch]:
    """Yield the branches of the residual adds, by the rule of roles."""
    flow = Flow(without_unread(record.graph))
    for residual in Adds(flow).branches:
        add, skip, branch = (flow.nodes[at].name for at in residual[:3])
        facts = [record.facts.get(name) for name in (branch, skip)]
        sizes = [fact.rms for fact in facts if fact is not None and fact.finite]
        if not residual.how and len(sizes) == 2:
            yield Branch(add, branch, skip, *sizes)
