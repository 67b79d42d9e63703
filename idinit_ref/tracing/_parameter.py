"""Internal: all uses of one parameter, and its node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import prod
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from ..core.layout import merge_axes
from ..roles.graph import Node, Use
from ._stored import Rows, Stored
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
    added: list[dict[str, tuple[str, ...]]] = field(default_factory=list)  # see `pieces_in`
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
    is_flat = bool(seen.makes) or any(_is_matrix(op.sizes, given) for op, _ in seen.ways)
    if given.is_vector and is_flat:
        options = {**options, "flat": True}  # matrices that lie in a vector
    if use == "other" and seen.met:
        note = f"it is not known what {seen.met} does with it"
    if seen.done:
        note = f"{seen.done} before its use as a weight: a role is the result's"
    if seen.makes:
        note = f"it makes the kernel of {seen.makes}: a role is the kernel's"
    if use == "embedding" or (len(given.shape) < 2 and "flat" not in options):
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
    if "adds_to" in options and use == "other" and seen.added:
        options = {**options, "added": tuple(seen.added)}
    if "scales" in options and seen.offsets != {0.0}:
        offset, *more = seen.offsets
        scales = () if more else options["scales"]
        options = {**options, "scales": scales, "offset": offset}
    if use == "bias" and len(seen.stopped) > 1:
        options = {**options, "stopped": "in part"}
    if seen.steps and "" not in seen.steps:
        options = {**options, "steps": min(seen.steps)}
    return Node(given.name, "parameter", (), shape, use=use, options=options, note=note)


def _is_matrix(sizes: Sequence[int], given: Parameter) -> bool:
    """Whether a weight of some sizes has rows and columns, and no more entries than a parameter."""
    return sum(size > 1 for size in sizes) > 1 and prod(sizes) <= prod(given.shape)


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
    groups = {_groups(op, way) for op, way in seen if isinstance(way, Stored)}
    if groups != {options.get("groups", 1)}:
        if len(groups) > 1 or 0 in groups:
            return given.shape, {}, f"its rows are kernels with other groups in {seen[0][0].name}"
        options["groups"] = groups.pop()
    shape, layout = merge_axes(how.shape, how.letters)
    letters, parts, _ = _parts(seen)
    sizes = {stop - start for start, stop in parts.values()}
    if parts and letters != "O":
        options["parts"] = letters
    packs = (op.is_packed(sizes) or (isinstance(way, Stored) and way.cut) for op, way in seen)
    is_loose = any(op.is_loose for op, _ in seen)
    if "O" in letters and parts and all(packs) and not is_loose:
        outs = shape[layout.index("O")]
        starts = {start % outs for rows in parts.values() for start in rows}
        blocks = tuple(b - a for a, b in pairwise(sorted({0, *starts, outs})))
        options |= {"blocks": blocks} if len(blocks) > 1 else {}
    if (shape, layout) != (given.shape, how.letters):
        options["parted"] = how.shape, how.letters
    return shape, options, ""


def _groups(operation: Operation, way: Stored) -> int:
    """Return the groups of all rows, if an operation has groups of some; 0 if they do not fit."""
    groups = int(operation.options.get("groups", 1))
    if groups == 1 or way.cut is None:
        return groups
    outs = next(n for n, letter in zip(way.shape, way.letters, strict=True) if letter == "O")
    start, stop = way.cut
    fits = not outs % (stop - start) and not start % (stop - start)
    return groups * outs // (stop - start) if fits else 0


class _Parts(NamedTuple):
    """The parts of a weight that are used separately.

    `letters` are those of their axes: batch axes along which operations read parts of a stack, and
    one axis that the parts of a result cut. `rows` are counted along all of these, the last axis
    fastest, by the node that holds the result. `reads` are the numbers of rows of results that hold
    only some, and of parts that are cut again.
    """

    letters: str = "O"
    rows: Mapping[str, Rows] = MappingProxyType({})
    reads: Mapping[str, int] = MappingProxyType({})


def _parts(seen: Iterable[tuple[Operation, Stored | str]]) -> _Parts:
    """Return the parts of a weight.

    None unless all of its operations read such parts, two at least, that are apart.
    """
    ways = [(op, way) for op, way in seen if isinstance(way, Stored)]
    if len({(way.shape, way.letters) for _, way in ways}) != 1:
        return _Parts()
    shape, letters = merge_axes(ways[0][1].shape, ways[0][1].letters)
    sizes = dict(zip(letters, shape, strict=True))
    found = [op.parts(way) for op, way in ways]
    cuts = {letter for letter, own in found if own}
    rest = {letter: size for letter, size in sizes.items() if letter not in cuts}
    along = _along([way.member for _, way in ways], rest, bool(cuts))
    count = prod(sizes[c] for c in cuts)
    parts: dict[str, Rows] = {}
    for (op, way), (_, own) in zip(ways, found, strict=True):
        if not own and cuts and cuts <= way.member.keys():  # it reads these matrices alone
            own = {op.name: way.member[min(cuts)]}
        first, last = 0, 0
        for letter in along:
            start, stop = way.member[letter]
            first, last = first * sizes[letter] + start, last * sizes[letter] + stop - 1
        whole = {op.name: (0, count * (last + 1 - first))} if along else {}
        if len(cuts) > 1 or not (own or whole):
            return _Parts()
        at = first * count
        parts |= {node: (at + start, at + stop) for node, (start, stop) in (own or whole).items()}
    every = sorted({*parts.values()})
    inner = {stop - start for _, own in found for start, stop in own.values()}
    if cuts == {"O"} and any(op.is_narrow(inner) for op, _ in ways):
        return _Parts()
    if len(every) < 2 or any(a[1] > b[0] for a, b in pairwise(every)):
        return _Parts()
    reads = {op.name: _rows_in(way, c) for op, way in ways for c in cuts}
    for op, way in ways:
        reads |= {node: stop - start for node, (start, stop) in op.cut_again(way).items()}
    count *= prod(sizes[c] for c in along)
    reads = {name: n for name, n in reads.items() if n < count}
    return _Parts("".join([*along, *cuts]), parts, reads)


def _rows_in(way: Stored, letter: str) -> int:
    """Return how many rows along an axis an operation reads."""
    first, *rest = (n for n, c in zip(way.shape, way.letters, strict=True) if c == letter)
    start, stop = (way.cut if letter == "O" else way.member.get(letter)) or (0, first)
    return (stop - start) * prod(rest)


def _along(
    members: Sequence[Mapping[str, Rows]], sizes: Mapping[str, int], has_cuts: bool
) -> list[str]:
    """Return the letters of batch axes along which operations read parts of a stack.

    None if these do not lie one behind another, as every second matrix. An axis of which some read
    several matrices comes last: then these are so.
    """
    found = [c for c in sizes if len({own.get(c) for own in members}) > 1]
    if any(c not in own for c in found for own in members):
        return []
    wide = [c for c in found if any(own[c][1] - own[c][0] > 1 for own in members)]
    if len(wide) > 1 or (wide and has_cuts):
        return []
    return [*(c for c in found if c not in wide), *wide]


def with_rows(nodes: Sequence[Node], seen: Mapping[str, Seen]) -> list[Node]:
    """Return nodes that say which rows of which weights give them, if they are parts of results."""
    more: dict[str, dict[str, Any]] = {}
    for name, about in seen.items():
        found = _parts(about.ways)
        for node, own in found.rows.items():
            more.setdefault(node, {}).setdefault("rows", {})[name] = own
        for node, count in found.reads.items():
            more.setdefault(node, {}).setdefault("reads", {})[name] = count
    return [
        replace(node, options={**node.options, **more[node.name]}) if node.name in more else node
        for node in nodes
    ]
