"""Internal: a packed parameter's entry and plan, from those of its blocks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ..core.layout import DEFAULT_LAYOUTS, SPATIAL
from ..core.plan import Plan
from ..core.text import some
from ..core.weights import either
from ..errors import prefixed
from .graph import Node
from .names import Kind
from .notes import Note
from .overrides import STORED, Given, check_own
from .packed import HeldParts, Rows, Unpacked, letters_of, spans_of
from .report import Entry
from .values import Held, Values

__all__ = ["Known", "listed", "loud", "plan_of", "rejoined"]

_OF_ROLE = {
    "transit": ("gain", "wide", "taps", "loosen", "loosen_at", "seed"),
    "zero": ("eps", "form", "taps"),
}
_MOST = 4  # the most reasons that are given for a parameter's parts


class Known(NamedTuple):
    """Conclusions from a model's values: of its parameters, and of their blocks."""

    whole: Values
    parts: Values
    names: Collection[str]

    @classmethod
    def of(cls, values: Values, held: Held | None, parts: Unpacked) -> Known:
        """Return them for a graph that is unpacked."""
        if not parts.blocks:
            return cls(values, values, ())
        own = None if held is None else HeldParts(held, parts)
        return cls(values, Values(parts.graph, own), parts.origins)

    def is_bias(self, name: str) -> bool:
        """Whether a parameter or block is a bias, as `Values.is_bias` has it."""
        return self._by(name).is_bias(name)

    def is_silent(self, name: str) -> bool:
        """Whether a weight or block is silent, as `Values.is_silent` has it."""
        return self._by(name).is_silent(name)

    def meant(self, name: str) -> str:
        """Return why a bias or block should not be set to 0, as `Values.meant` has it."""
        return self._by(name).meant(name)

    def _by(self, name: str) -> Values:
        return self.parts if name in self.names else self.whole


def listed(role: Kind | Sequence[Kind]) -> Sequence[Kind]:
    """Return the roles of blocks, or the one role."""
    return [role] if isinstance(role, str) else role


def plan_of(node: Node, options: Mapping[str, Any]) -> Plan:
    """Return the plan of a weight, from how it is stored and from what is chosen.

    >>> plan_of(Node("w", "parameter", shape=(2, 2), options={"layout": "IO"}), {"role": "zero"})
    Plan(shape=(2, 2), role='zero', gain=1.0, eps=1e-06, wide='truncate', form='pair', layout='IO',
         groups=1, transposed=False, stride=None, blocks=None, taps='outward', tap=None,
         loosen=0.0, loosen_at='all', seed=0)
    """
    stored = {key: value for key, value in node.options.items() if key in STORED}
    if node.use == "embedding" and not stored:
        stored = {"layout": "IO"}  # a row for each input
    shape = tuple(node.shape or ())
    letters = options.get("layout") or stored.get("layout") or DEFAULT_LAYOUTS.get(len(shape), "")
    if not any(c in SPATIAL for c in letters):  # a matrix has no taps
        stored = {key: value for key, value in stored.items() if key not in ("tap", "stride")}
        options = {key: value for key, value in options.items() if key != "taps"}
    tap = options.get("tap")
    plan = either(shape, **{**stored, **options})
    return plan if tap is None else replace(plan, tap=tap)  # a corner order refuses one


def rejoined(node: Node, blocks: Mapping[Rows, Entry | None], given: Given) -> Entry:
    """Return the entry of a packed parameter, from those of its blocks.

    A block that nothing uses is as all others, or transit beside others. A bias is kept if any of
    its blocks is. A head that should be kept is transit if other blocks are not kept.
    """
    found = {rows: entry for rows, entry in blocks.items() if entry is not None}
    name, shape, first = node.name, tuple(node.shape or ()), next(iter(found.values()))
    plans = {rows: entry.plan for rows, entry in found.items() if entry.plan is not None}
    if not plans:
        kept = {rows: entry for rows, entry in found.items() if entry.role == "keep"}
        entry = next(iter(kept.values()), first)
        why = _why(kept or found, "outputs" if 0 < len(kept) < len(found) else "")
        return replace(entry, name=name, shape=shape, why=why)
    used: dict[Rows, Kind] = {
        rows: entry.role if rows in plans else "transit" for rows, entry in found.items()
    }
    is_one = len({*used.values()}) == 1
    of = [options for _, options in given]
    chosen = {key: own[key] for own in of for key in STORED if key in own}
    for plan in sorted(plans.values(), key=lambda plan: plan.wide != "truncate"):
        assert isinstance(plan.role, str)
        chosen |= {key: getattr(plan, key) for key in _OF_ROLE[plan.role]}
    first = found[next(iter(plans))]
    ends = found
    if is_one:
        chosen["role"] = first.role
    else:
        chosen |= _in_parts(node, {rows: used.get(rows, "transit") for rows in blocks})
        ends = {rows: entry for rows, entry in found.items() if entry.role != "transit"}
    with prefixed(f"parameter {name!r}"):
        if is_one:
            check_own(first.role, dict(given).get(name, {}))
        plan = plan_of(node, chosen)
    role: Kind = "zero" if "zero" in used.values() else "transit"
    letters = letters_of(node)
    what = "outputs" if letters == "O" else "rows" if "O" in letters else "matrices"
    for rows, entry in found.items():
        if entry.role == "keep":
            ends = {**ends, rows: replace(entry, why=f"{entry.why}, which cannot be kept alone")}
    return Entry(name, shape, role, _why(ends, "" if is_one else what), plan)


def _in_parts(node: Node, roles: Mapping[Rows, Kind]) -> dict[str, Any]:
    """Return the options of a weight's plan that give each of its parts a role."""
    layout, shape = str(node.options["layout"]), node.shape or ()
    letters = "".join(c for c in layout if c not in "OI" + SPATIAL) + "O"
    sizes = [shape[layout.index(letter)] for letter in letters]
    table, cuts = np.zeros(sizes, bool), {0, sizes[-1]}
    for rows, role in roles.items():
        spans = {letters.index(layout[axis]): span for axis, span in spans_of(node, rows).items()}
        every = [spans.get(at, range(size)) for at, size in enumerate(sizes)]
        table[np.ix_(*every)] = role == "zero"
        cuts |= {every[-1].start, every[-1].stop}
    each = table[..., sorted(cuts)[:-1]].reshape(-1)
    blocks = [stop - start for start, stop in pairwise(sorted(cuts))]
    return {
        "role": ["zero" if is_zero else "transit" for is_zero in each],
        "blocks": blocks if len(blocks) > 1 else None,
    }


def _why(found: Mapping[Rows, Entry], parts: str) -> str:
    """Return the reasons of some parts of a parameter, which are called so; "" for all of it."""
    reasons: dict[str, list[str]] = {}
    for (start, stop), entry in found.items():
        last = stop - 1
        rows = f"{start} to {last}" if last > start else f"{start}"
        reasons.setdefault(entry.why, []).append(rows)
    more = len(reasons) - _MOST
    texts = [
        f"{parts} {some(rows)} alone: {why}" if parts else why
        for why, rows in [*reasons.items()][:_MOST]
    ]
    return "; ".join([*texts, f"and {more} more"] if more > 0 else texts)


def loud(parts: Unpacked, entries: Mapping[str, Entry], values: Values) -> Iterator[Note]:
    """Yield a note on biases that are kept for some outputs, and so for those of a zero block."""
    for name, weight in parts.biases.items():
        blocks = parts.blocks[weight]
        own = {part: entries[part] for part in parts.blocks[name].values() if part is not None}
        if all(entry.role != "keep" for entry in own.values()):
            continue
        for rows, part in parts.blocks[name].items():
            block = blocks.get(rows)
            if part is None or block is None or entries[block].role != "zero":
                continue
            if own[part].role == "bias" and not values.holds_zeros(part):
                text = (
                    f"{name} is kept for some of its outputs, and so for outputs {rows[0]} to "
                    f"{rows[1] - 1}, which end a branch: it does not start small; set these to 0, "
                    "or override the bias with 'bias'"
                )
                yield Note("bias", (name,), text)
