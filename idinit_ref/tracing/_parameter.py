"""Internal: all uses of one parameter, and its node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from typing import Any, Literal

from ..core.layout import merge_axes
from ..roles.graph import Node, Use
from ._stored import Stored
from ._values import Operation

__all__ = ["Parameter", "Seen", "node_of", "with_rows"]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a model: its name, its shape, and the name of its dtype.

    `note` is the framework's reason to keep it, or "". `is_bias` means that its layer calls it a
    bias. `span` is the least and the largest entry of a state, which is constant in evaluation.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    note: str = ""
    is_bias: bool = False
    span: tuple[float, float] | None = None

    @property
    def is_vector(self) -> bool:
        """Whether at most one of its axes is longer than 1."""
        return sum(size > 1 for size in self.shape) < 2

    @property
    def is_floating(self) -> bool:
        """Whether it holds real or complex numbers."""
        return "float" in self.dtype or "complex" in self.dtype

    @property
    def is_integer(self) -> bool:
        """Whether it holds integers, as quantised weights do."""
        return "int" in self.dtype


@dataclass
class Seen:
    """The observed uses of a parameter."""

    uses: set[Use | Literal["sum"]] = field(default_factory=set)
    ways: list[tuple[Operation, Stored | str]] = field(default_factory=list)
    done: str = ""  # how it was changed before its use as a weight
    scales: str = ""  # the quantised weight that it belongs to
    met: str = ""  # an unknown operation that reads it
    makes: str = ""  # it only makes the kernel of this product of signals
    magnitude: bool = False  # every weight made with it vanishes with it, to first order
    frozen: str = ""  # the reason why no gradient reaches it
    steps: set[str] = field(default_factory=set)  # for each use: what rounds it before, or ""
    stopped: set[bool] = field(default_factory=set)  # for each use: whether gradients are stopped
    sums: list[str | None] = field(default_factory=list)  # for each use: the node that adds it
    scaled: list[str | None] = field(default_factory=list)  # for each use: the node that it scales
    offsets: set[float] = field(default_factory=set)  # the number added to it first, for each use


def node_of(given: Parameter, seen: Seen) -> Node:
    """Return the node of a parameter.

    >>> node_of(Parameter("b", (3,)), Seen({"bias"})).use
    'bias'
    """
    uses = seen.uses
    use: Use = "other"
    if "embedding" in uses:
        use = "embedding"
    elif "weight" in uses:
        use = "weight"
    elif uses - {"sum"} == {"bias"}:  # a state that starts at a constant is summed
        use = "bias"
    shape, options, note = _storage(given, seen.ways)
    if use == "other" and seen.met:
        note = f"it is not known what {seen.met} does with it"
    if seen.done:
        note = f"{seen.done} before its use as a weight: a role is the result's"
    if seen.makes:
        note = f"it makes the kernel of {seen.makes}: a role is the kernel's"
    if use == "embedding" or len(given.shape) < 2:
        note = ""
    if (seen.magnitude or seen.makes) and not seen.scales:
        options = {**options, "magnitude": note}
    if seen.scales:
        note = f"a part of the quantised weight {seen.scales}"
    note = seen.frozen or note
    if not given.is_floating:
        note = f"{given.dtype}: not a floating parameter"
    if not uses:
        note = "not used by the computation of these example inputs"
    note = given.note or note
    for key, nodes in (("adds_to", seen.sums), ("scales", seen.scaled)):
        if nodes and None not in nodes:
            options = {**options, key: tuple(dict.fromkeys(nodes))}
    if "scales" in options and seen.offsets != {0.0}:
        offset, *more = seen.offsets
        scales = () if more else options["scales"]
        options = {**options, "scales": scales, "offset": offset}
    if use == "bias" and len(seen.stopped) > 1:
        options = {**options, "stopped": "in part"}
    if seen.steps and "" not in seen.steps:
        options = {**options, "steps": min(seen.steps)}
    return Node(given.name, "parameter", (), shape, use=use, options=options, note=note)


def _storage(
    given: Parameter, seen: Sequence[tuple[Operation, Stored | str]]
) -> tuple[tuple[int, ...], dict[str, Any], str]:
    """Return the shape of the matrix, its storage options, and the reason why it has none."""
    if len({(how.shape, how.letters) for _, how in seen if isinstance(how, Stored)}) > 1:
        seen = [(of, how if isinstance(how, str) else how.solid or how) for of, how in seen]
    ways: dict[str, tuple[Operation, Stored, dict[str, Any]]] = {}
    for operation, how in seen:
        if isinstance(how, Stored):
            _, layout = merge_axes(how.shape, how.letters)
            options = {
                "layout": layout,
                **operation.options,
                **operation.identity(how),
            }
            fixed = {k: v for k, v in options.items() if k != "tap" or not operation.sized}
            key = repr((how.shape, how.letters, fixed))
            ways.setdefault(key, (operation, how, options))
    if len(ways) > 1:
        (a, _, x), (b, _, y), *_ = ways.values()
        note = f"used in two ways that need different plans: by {a.name} {x}, by {b.name} {y}"
        return given.shape, {}, note
    if not ways:
        note = f"{seen[0][1]} {seen[0][0].name}" if seen else ""
        return given.shape, {}, note
    narrow = [op.name for op, way in seen if isinstance(way, Stored) and way.narrow]
    if len(set(narrow)) > 1:  # it may be one matrix or two
        return given.shape, {}, f"only a part of its inputs goes into {narrow[0]}"
    _, how, options = next(iter(ways.values()))
    shape, layout = merge_axes(how.shape, how.letters)
    parts = _parts(seen)
    sizes = {stop - start for start, stop in parts.values()}
    if parts and all(op.is_packed(sizes) for op, _ in seen):
        ends = sorted({0, shape[layout.index("O")], *chain.from_iterable(parts.values())})
        options["blocks"] = tuple(b - a for a, b in pairwise(ends))
    if (shape, layout) != (given.shape, how.letters):
        options["parted"] = how.shape, how.letters
    return shape, options, ""


def _parts(seen: Iterable[tuple[Operation, Stored | str]]) -> dict[str, tuple[int, int]]:
    """Return the rows of a weight that each part of its results holds, by node.

    None unless all of its operations are cut into such parts, two at least, that are apart.
    """
    parts = [op.parts(way) for op, way in seen if isinstance(way, Stored)]
    rows = sorted({rows for own in parts for rows in own.values()})
    if not all(parts) or len(rows) < 2 or any(a[1] > b[0] for a, b in pairwise(rows)):
        return {}
    return {node: rows for own in parts for node, rows in own.items()}


def with_rows(nodes: Sequence[Node], seen: Mapping[str, Seen]) -> list[Node]:
    """Return nodes that say which rows of which weights give them, if they are parts of results."""
    rows: dict[str, dict[str, tuple[int, int]]] = {}
    for name, about in seen.items():
        for node, own in _parts(about.ways).items():
            rows.setdefault(node, {})[name] = own
    return [
        replace(node, options={**node.options, "rows": rows[node.name]})
        if node.name in rows
        else node
        for node in nodes
    ]
