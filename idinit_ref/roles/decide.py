"""Decides every parameter of a whole model from its graph (spec section 6).

This module uses no framework: an adapter traces a model, calls `decide`, and writes the values of
the `Report`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Unpack, cast, get_args

from ..core.layout import DEFAULT_LAYOUTS, SPATIAL
from ..core.options import choice
from ..core.plan import Plan
from ..core.weights import either
from ..errors import GraphError, OptionError, OptionTypeError, message, prefixed
from .graph import Graph, Node
from .names import Kind
from .notes import Note
from .options import ModelOptions, Override, settled
from .report import Entry, Report
from .search import Found, explain_roles
from .unread import unread
from .values import Held, Values
from .warnings import copies, faint, kept, magnified, norm_ends, overwritten

__all__ = ["decide"]

_STORED = ("layout", "groups", "transposed", "stride", "blocks", "tap")
_CHOSEN = ("role", "gain", "eps", "wide", "form", "taps", "loosen", "loosen_at", "seed")
_REASONS = 2  # the most reasons that are given for a weight with many uses
_Given = list[tuple[str, Mapping[str, Any]]]
"""The overrides of a parameter: each with its pattern."""


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
    given = _chosen(graph.parameters, general["overrides"] or {})
    values = Values(graph, held)
    graph = _unbiased(graph, values) if general["biases"] != "keep" else graph
    inferred = explain_roles(graph)
    zero = [name for name, found in inferred.items() if found.role == "zero"]
    ends, silent = norm_ends(graph, zero), frozenset(filter(values.is_silent, zero))
    model = _Model(graph, inferred, general, values, _scaled(graph, ends, general), silent)
    entries = [model.entry(name, given[name]) for name in graph.parameters]
    free = {name for name in given if not any("wide" in own for _, own in given[name])}
    free = free if general["wide"] is None else set()
    lost = unread(graph, _plans(entries), free)
    folds = {name for note in lost if free.issuperset(note.names) for name in note.names}
    entries = [_fold(each) if each.name in folds else each for each in entries]
    chosen = {name for name, own in given.items() if any("role" in each for _, each in own)}
    return Report(tuple(entries), tuple(model.warnings(entries, chosen, ends, lost)))


def _plans(entries: Collection[Entry]) -> dict[str, Plan]:
    return {entry.name: entry.plan for entry in entries if entry.plan is not None}


def _is_whole(entry: Entry) -> bool:
    return entry.plan is None or isinstance(entry.plan.role, str)


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
    of: dict[str, list[str]] = {}
    for name in graph.parameters:
        for norm in graph.by_name[name].options.get("scales", ()):
            of.setdefault(norm, []).append(name)
    weights = [weight for weight, norms in ends.items() if any(norm in of for norm in norms)]
    names = [name for weight in weights for norm in ends[weight] for name in of.get(norm, ())]
    offsets = {name: graph.by_name[name].options.get("offset", 0.0) for name in names}
    return _Scales({name: general["eps"] - by for name, by in offsets.items()}, weights)


_OWN = {"transit": ("eps", "form"), "zero": ("gain", "wide", "loosen", "loosen_at", "seed")}


def _check_own(role: str, own: Mapping[str, Any]) -> None:
    """Raise if an override names one weight and gives it an option of the other role."""
    for key in _OWN[role]:
        if key in own:
            should = f"its role is {role}, which has no {key}"
            cure = f"leave it out, or also give the role: {{'role': ..., {key!r}: {own[key]!r}}}"
            if "role" in own:
                cure = "leave it out, or choose the other role"
            raise OptionError(message(key, own[key], should, cure))


class _Model(NamedTuple):
    """All data on which the role of a parameter depends."""

    graph: Graph
    inferred: Found
    options: Mapping[str, Any]
    values: Values
    scales: _Scales
    silent: Collection[str]

    def entry(self, name: str, given: _Given) -> Entry:
        """Return the entry of a parameter."""
        node = self.graph.by_name[name]
        role, why = self._role(node)
        value = self.scales.values.get(name) if role == "zero" else None
        is_vector = sum(size != 1 for size in node.shape or ()) < 2
        if role == "zero" and is_vector and self._is_magnitude(node):
            value = self.options["eps"]
        names = ("gain", "eps", "form", "taps")
        options: dict[str, Any] = {key: self.options[key] for key in names}
        options["wide"] = self.options["wide"] or "truncate"
        used = []
        for pattern, own in given:
            if "role" in own:
                why = f"override {pattern!r} (it would be {role}: {why})"
                role, value = own["role"], None
            else:
                used.append(f"; options of override {pattern!r}")
            options |= own
        plan = None
        if role in ("transit", "zero") and value is None:
            why += "".join(used)
            options.pop("role", None)
            with prefixed(f"parameter {name!r}"):
                parts = self._parts(name, role, given)
                _check_own(role, {} if parts else dict(given).get(name, {}))
                plan = _plan(node, role, options, parts)
        return Entry(name, tuple(node.shape or ()), role, why, plan, value=value or 0.0)

    def _parts(self, name: str, role: Kind, given: _Given) -> dict[str, Any]:
        """Return the roles and sizes of the blocks of a weight, if these differ in their roles."""
        found = self.inferred.get(name)
        is_chosen = any("role" in own or "blocks" in own for _, own in given)
        if found is None or role != "zero" or not found.roles or is_chosen:
            return {}
        return {"role": found.roles, "blocks": found.blocks}

    def warnings(
        self,
        entries: Collection[Entry],
        chosen: Collection[str],
        ends: Collection[str],
        lost: Collection[Note],
    ) -> Iterator[Note]:
        """Yield the warnings, given the user's choices and the weights before norms.

        `lost` are the notes on concatenations that are not read whole.
        """
        roles = {entry.name: entry.role for entry in entries}
        heads = [name for name, found in self.inferred.items() if found.head]
        said = {*chosen, *heads} if self.options["head"] == "keep" else chosen
        notes = self.inferred.notes
        normed = [*ends, *(n for note in notes if note.kind == "norm" for n in note.names)]
        zero = [name for name in dict.fromkeys(normed) if roles[name] == "zero"]
        last = {name for name, found in self.inferred.items() if found.role == "zero"}
        yield from kept(self.graph, entries, said, self.options["strict"], last)
        yield from (note for note in notes if note.kind != "norm")
        yield from magnified(zero, self.options["eps"])
        whole = {entry.name for entry in entries if entry.role == "zero" and _is_whole(entry)}
        yield from faint(self.graph, whole - set(chosen))
        yield from lost
        yield from copies(self.graph, _plans(entries))
        yield from overwritten(entries, chosen, self.values)

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
        more = len(inferred.why) - _REASONS
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


def _chosen(names: tuple[str, ...], overrides: Mapping[str, Override]) -> dict[str, _Given]:
    """Return the overrides of every parameter; raise if one is not valid or matches nothing."""
    if not isinstance(overrides, Mapping):
        raise OptionTypeError(
            message("overrides", overrides, "it should be a dict by name patterns", "e.g. {'*': …}")
        )
    chosen: dict[str, _Given] = {name: [] for name in names}
    for pattern, given in overrides.items():
        label = f"overrides[{pattern!r}]"
        key: object = pattern
        if not isinstance(key, str):
            should = "its keys should be names or patterns of names"
            raise OptionTypeError(message("overrides", key, should, "write them as strings"))
        options = {"role": given} if isinstance(given, str) else given
        if not isinstance(options, Mapping):
            raise OptionTypeError(
                message(label, given, "it should be a role or a dict of options", "e.g. 'keep'")
            )
        for key in options:
            choice(label, key, (*_CHOSEN, *_STORED))
        if "role" in options:
            choice(label, options["role"], get_args(Kind))
        fit = [name for name in names if name == pattern or fnmatchcase(name, pattern)]
        if not fit:
            near = get_close_matches(pattern, names, 3, 0.0)
            raise OptionError(
                message(
                    "overrides",
                    pattern,
                    f"it fits no parameter; the nearest are {', '.join(near)}",
                    "name a parameter, or write a pattern with * for any letters",
                )
            )
        for name in fit:
            chosen[name].append((pattern, options))
    return chosen


def _plan(node: Node, role: Kind, options: Mapping[str, Any], parts: Mapping[str, Any]) -> Plan:
    stored = {key: value for key, value in node.options.items() if key in _STORED}
    if node.use == "embedding" and not stored:
        stored = {"layout": "IO"}  # a row for each input
    shape = tuple(node.shape or ())
    letters = options.get("layout") or stored.get("layout") or DEFAULT_LAYOUTS.get(len(shape), "")
    if not any(c in SPATIAL for c in letters):  # a matrix has no taps
        stored = {key: value for key, value in stored.items() if key not in ("tap", "stride")}
        options = {key: value for key, value in options.items() if key != "taps"}
    tap = options.get("tap")
    chosen = {"role": role, **stored, **options, **parts}
    plan = either(shape, **cast("Any", chosen))
    return plan if tap is None else replace(plan, tap=tap)  # a corner order refuses one
