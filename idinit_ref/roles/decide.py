"""Decides every parameter of a whole model from its graph (spec section 6).

This module uses no framework: an adapter traces a model, calls `decide`, and writes the values of
the `Report`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Unpack, cast

from ..core.plan import Plan
from ..errors import GraphError, IDInitError, message, prefixed
from .blocks import Known, listed, loud, plan_of, rejoined
from .graph import Graph, Node, without_unread
from .names import Kind
from .notes import Note
from .options import ModelOptions, settled
from .overrides import Given, check_own, chosen, spread, stated
from .packed import Unpacked, unpacked
from .report import Entry, Report
from .search import explain_parts
from .unread import unread
from .values import Held, Values
from .warnings import copies, faint, kept, magnified, norm_ends, overwritten

__all__ = ["decide"]

_REASONS = 2  # the most reasons that are given for a weight with many uses


def decide(graph: Graph, held: Held | None = None, **options: Unpack[ModelOptions]) -> Report:
    """Decide the role and value of every parameter of a traced model (spec section 6).

    Parameters
    ----------
    graph : Graph
        The model's graph, from an adapter's `trace`.
    held : Held, optional
        The model's present values, to keep biases and zeros that are set on purpose. Without it
        only the graph decides.
    **options : ModelOptions
        As :class:`idinit_ref.roles.ModelOptions` lists them.

    Returns
    -------
    Report
        Every parameter, with its plan if it is a weight, and warnings.

    Raises
    ------
    GraphError
        If the model has no parameters, or `strict` is set and a used matrix would be kept.
    OptionError, OptionTypeError, ShapeError, LayoutError
        If an option is unknown or does not fit, or an override matches no parameter.

    Examples
    --------
    >>> from idinit_ref import Node
    >>> graph = Graph([
    ...     Node("x", "input", shape=(2, 4)),
    ...     Node("w", "parameter", shape=(4, 4), use="weight"),
    ...     Node("b", "parameter", shape=(4,), use="bias"),
    ...     Node("h", "weight", ("x",), (2, 4), weights=("w",)),
    ...     Node("y", "add", ("x", "h"), (2, 4)),
    ... ], ["y"])
    >>> print(decide(graph))
    name  shape   role  why
    w     (4, 4)  zero  last of the branch h, which y adds to x
    b     (4,)    bias  bias
    2 parameters: 0 transit, 1 zero, 1 bias, 0 keep
    >>> decide(graph, overrides={"w": "keep"}).roles
    {'w': 'keep', 'b': 'bias'}
    """
    general = settled(options)
    if not graph.parameters:
        raise GraphError(
            message("parameters", (), "the model should have some", "pass the whole model")
        )
    graph = without_unread(graph)
    given = chosen(graph.parameters, general["overrides"] or {})
    values = Values(graph, held)
    whole = _unbiased(graph, values) if general["biases"] != "keep" else graph
    parts = unpacked(whole)
    apart = stated(given, parts)
    parts = unpacked(whole, apart) if apart else parts
    return _Model(whole, parts, general, Known.of(values, held, parts)).report(given)


def _plans(entries: Collection[Entry]) -> dict[str, Plan]:
    return {entry.name: entry.plan for entry in entries if entry.plan is not None}


def _fold(entry: Entry) -> Entry:
    """Return the entry of a weight that reads all parts of a concatenation, by fold_mean."""
    assert entry.plan is not None
    why = f"{entry.why}; wide='fold_mean', as it reads a concatenation"
    return replace(entry, plan=replace(entry.plan, wide="fold_mean"), why=why)


def _unbiased(graph: Graph, values: Values) -> Graph:
    """Return a graph in which sums with biases vanish, also biases unknown to the tracer."""
    found = [name for name in graph.parameters if values.is_bias(name) and not values.meant(name)]
    sums = {at for name in found for at in graph.by_name[name].options["adds_to"]}
    if not sums:
        return graph
    nodes = [replace(n, vanishes="all") if n.name in sums else n for n in graph.nodes]
    return Graph(nodes, graph.outputs)


class _Scales(NamedTuple):
    """With norms="zero": the scales of norms that end branches, and the weights before them."""

    values: Mapping[str, float]
    weights: Collection[str]


def _scaled(
    graph: Graph, ends: Mapping[str, tuple[str, ...]], general: Mapping[str, Any]
) -> _Scales:
    """Return the changes of norms="zero".

    The tracer records which nodes a scale multiplies (``options["scales"]``), and the number added
    to it (``options["offset"]``: 1 if it is used as 1 + w).
    """
    if general["norms"] == "keep":
        return _Scales({}, ())
    ended = {norm for norms in ends.values() for norm in norms}
    of: dict[str, list[str]] = {}
    for name in graph.parameters:
        scaled = graph.by_name[name].options.get("scales", ())
        for norm in scaled if ended.issuperset(scaled) else ():  # others would vanish in vain
            of.setdefault(norm, []).append(name)
    weights = [weight for weight, norms in ends.items() if any(norm in of for norm in norms)]
    names = [name for weight in weights for norm in ends[weight] for name in of.get(norm, ())]
    offsets = {name: graph.by_name[name].options.get("offset", 0.0) for name in names}
    return _Scales({name: general["eps"] - by for name, by in offsets.items()}, weights)


class _Model:
    """All data on which roles depend. In its graph, packed parameters are in their blocks."""

    def __init__(
        self, whole: Graph, parts: Unpacked, options: Mapping[str, Any], values: Known
    ) -> None:
        self.whole, self.parts, self.options, self.values = whole, parts, options, values
        self.origins = parts.origins
        is_kept = options["biases"] == "keep" or not parts.blocks
        self.graph = parts.graph if is_kept else _unbiased(parts.graph, values.parts)
        self.inferred = explain_parts(self.graph)
        zero = [name for name, found in self.inferred.items() if found.role == "zero"]
        self.ends = norm_ends(self.graph, zero)
        self.scales = _scaled(self.graph, self.ends, options)
        self.silent = frozenset(name for name in zero if values.is_silent(name))

    def report(self, given: Mapping[str, Given]) -> Report:
        """Return the report, given the overrides of every parameter."""
        own = spread(given, self.parts)
        entries = [self.entry(name, own[name]) for name in self.graph.parameters]
        free = {name for name in own if not any("wide" in each for _, each in own[name])}
        free = free if self.options["wide"] is None else set()
        lost = unread(self.graph, _plans(entries), free)
        folds = {name for note in lost if free.issuperset(note.names) for name in note.names}
        entries = [_fold(each) if each.name in folds else each for each in entries]
        found = {entry.name: entry for entry in entries}
        joined = [self._joined(name, found, given[name]) for name in self.whole.parameters]
        said = {name for name, each in own.items() if any("role" in one for _, one in each)}
        return Report(tuple(joined), tuple(self.warnings(joined, entries, said, lost)))

    def entry(self, name: str, given: Given) -> Entry:
        """Return the entry of a parameter, or of a block."""
        node = self.graph.by_name[name]
        role, why = self._role(node)
        value = self.scales.values.get(name) if role == "zero" else None
        is_vector = sum(size != 1 for size in node.shape or ()) < 2
        if role == "zero" and is_vector and self._is_magnitude(node):
            value = self.options["eps"]
        names = ("gain", "eps", "form", "taps")
        options: dict[str, Any] = {key: self.options[key] for key in names}
        options["wide"] = self.options["wide"] or "truncate"
        used, roles = [], [role]
        for pattern, own in given:
            if "role" in own:
                why = f"override {pattern!r} (it would be {role}: {why})"
                roles, value = list(listed(own["role"])), None
            else:
                used.append(f"; options of override {pattern!r}")
            options |= own
        role, plan = ("zero" if "zero" in roles else roles[0]), None
        if role in ("transit", "zero") and value is None:
            why += "".join(used)
            options["role"] = roles if len(roles) > 1 else role
            of = self.origins.get(name, name)
            with prefixed(f"parameter {of!r}"):
                if len(roles) == 1:
                    check_own(role, dict(given).get(name, {}))
                try:
                    plan = plan_of(node, options)
                except IDInitError:
                    plan_of(self.whole.by_name[of], options)  # with the shape that the user knows
                    raise
        return Entry(name, tuple(node.shape or ()), role, why, plan, value=value or 0.0)

    def _joined(self, name: str, found: Mapping[str, Entry], given: Given) -> Entry:
        """Return the entry of a parameter, from those of its blocks."""
        rows = self.parts.blocks.get(name)
        if rows is None:
            return found[name]
        blocks = {own: None if part is None else found[part] for own, part in rows.items()}
        return rejoined(self.whole.by_name[name], blocks, given)

    def warnings(
        self,
        joined: Collection[Entry],
        entries: Collection[Entry],
        said: Collection[str],
        lost: Collection[Note],
    ) -> Iterator[Note]:
        """Yield the warnings, given the entries, those in blocks, and what the user gave a role.

        `lost` are the notes on concatenations that are not read whole.
        """
        of = self.origins
        roles = {entry.name: entry.role for entry in entries}
        heads = [name for name, found in self.inferred.items() if found.head]
        kept_by = {*said, *heads} if self.options["head"] == "keep" else said
        notes = self.inferred.notes
        normed = [*self.ends, *(n for note in notes if note.kind == "norm" for n in note.names)]
        zero = [name for name in dict.fromkeys(normed) if roles[name] == "zero"]
        last = {of.get(name, name) for name in self.inferred if self.inferred[name].role == "zero"}
        kept_by = {of.get(name, name) for name in kept_by}
        yield from kept(self.whole, joined, kept_by, self.options["strict"], last)
        found = [
            *(note for note in notes if note.kind != "norm"),
            *magnified(zero, self.options["eps"], self.options["norms"]),
            *faint(self.graph, {name for name in roles if roles[name] == "zero"} - {*said}),
            *lost,
            *copies(self.graph, _plans(entries)),
            *overwritten(entries, said, self.values.parts),
            *loud(self.parts, {entry.name: entry for entry in entries}, self.values.parts),
        ]
        yield from self.parts.named(found)

    def _role(self, node: Node) -> tuple[Kind, str]:
        """Return the role of a parameter without overrides, and the reason."""
        inferred = self.inferred.get(node.name)
        if inferred and self._is_magnitude(node) and node.name not in self.silent:
            return "zero", f"a weight that is computed vanishes with it: {inferred.why[0]}"
        if node.note:
            return "keep", node.note
        if node.use == "embedding":
            tied = ", and the head that is tied to it" if inferred else ""
            return cast("Kind", self.options["embeddings"]), f"embedding{tied}"
        if node.use == "bias" or (inferred is None and self.values.is_bias(node.name)):
            return self._bias(node)
        if node.name in self.scales.values:
            return "zero", "scale of the norm that ends a branch: norms='zero'"
        if inferred is None:
            return "keep", "neither weight nor bias: IDInit does not define it"
        if node.shape is not None and len(node.shape) < 2:
            return "keep", "a vector, which is no matrix of a layer"
        more = len(inferred.why) + inferred.more - _REASONS
        why = "; ".join(inferred.why[:_REASONS]) + (f"; and {more} more" if more > 0 else "")
        if node.name in self.scales.weights:
            return "transit", f"a norm behind it is scaled by eps instead (it would be zero: {why})"
        if node.name in self.silent:
            return "transit", f"a scale behind it is 0 already (it would be zero: {why})"
        if inferred.head and inferred.role == "transit":
            return self.options["head"], "the head" + (f"; {why}" if why else "")
        return inferred.role, why or "weight; no residual branch ends with it"

    def _is_magnitude(self, node: Node) -> bool:
        """Whether a computed weight that should be zero vanishes with this parameter alone."""
        is_zero = node.name in self.inferred and self.inferred[node.name].role == "zero"
        return is_zero and node.note == node.options.get("magnitude")

    def _bias(self, node: Node) -> tuple[Kind, str]:
        if self.options["biases"] == "keep":
            return "keep", "bias; biases='keep'"
        meant = self.values.meant(node.name) if self.options["biases"] == "auto" else ""
        return ("keep", f"bias; kept, as {meant}") if meant else ("bias", "bias")
