"""A variable of a model, and what a tracer has seen of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from idinit_ref import Node
from idinit_ref.graph import Use
from idinit_ref.layout import SPATIAL, merge_axes

from ._layers import Weight
from ._values import Shape
from ._window import Sizes


@dataclass
class Parameter:
    """A variable of the model, and what is known of it."""

    name: str
    variable: Any
    shape: Shape
    note: str
    state: bool  # made untrainable: a parameter only if it is used as a weight
    known: Weight | None  # as its layer knows it
    is_bias: bool = False  # as its layer says
    uses: set[Use] = field(default_factory=set)
    looked: set[str] = field(default_factory=set)  # lookups of it
    chosen: set[str] = field(default_factory=set)  # those of them that chose a matrix of a stack
    batched: set[int] = field(default_factory=set)  # axes that a later weight has as batch axes
    sizes: Sizes | None = None  # in space, of the input of the convolution that it is a kernel of
    sums: bool = False  # added to what is made of parameters alone
    facts: dict[tuple[Any, ...], str] = field(default_factory=dict)  # how stored: by which use
    cuts: set[tuple[int, int]] = field(default_factory=set)  # of its outputs
    lost: str = ""  # the operation that it reaches with its axes lost
    done: str = ""  # and what lost them

    @property
    def letters(self) -> str:
        """A letter for each stored axis, or "" where they are not known."""
        old = next((key[0] for key in self.facts), "")
        new = "".join("B" if at in self.batched else c for at, c in enumerate(old))
        # Experts: stacked before the inputs. Heads, after them, are outputs of one matrix.
        return new if new[:1] == "B" and {"I", "O"} <= set(new) else old

    def node(self) -> Node:
        """Write down what has been seen."""
        order: tuple[Use, ...] = ("embedding", "weight", "other", "bias")
        uses = set(self.uses)
        if self.looked - self.chosen:
            uses.add("embedding")
        if self.sums and not uses - {"bias"}:
            uses.add("bias" if "bias" in uses else "other")
        use = next((use for use in order if use in uses), None)
        shape, options, note = self.shape, {}, self.note
        if use is None:
            note = note or "not used by the computation of these example inputs"
        elif "weight" in self.uses and len(shape) > 1:
            if len(self.facts) > 1:
                ways = [f"{at} ({key[0]} {dict(key[1:]) or ''})" for key, at in self.facts.items()]
                note = note or f"used in several ways: {', '.join(ways)}"
            elif self.lost or not self.facts:
                by = f", by {self.done}" if self.done else ""
                note = note or f"only a part of what {self.lost} computes its weight from{by}"
            else:
                key = next(iter(self.facts))
                shape, layout = merge_axes(shape, self.letters)
                options = {"layout": layout, **dict(key[1:]), **self._blocks(shape, layout)}
        return Node(
            self.name, "parameter", (), shape, use=use or "other", options=options, note=note
        )

    def _blocks(self, shape: Shape, layout: str) -> dict[str, Any]:
        """Return the cuts of the outputs, if they make them up; of a convolution two halves."""
        outputs = shape[layout.index("O")]
        if self.known is not None and self.known.parts > 1:
            return {"blocks": (outputs // self.known.parts,) * self.known.parts}
        cuts = sorted(self.cuts)
        sizes = tuple(stop - start for start, stop in cuts)
        starts = [0, *(stop for _, stop in cuts)]
        is_kernel = any(c in SPATIAL for c in layout)
        if len(cuts) < 2 or starts != [*(start for start, _ in cuts), outputs]:
            return {}
        return {"blocks": sizes} if not is_kernel or sizes == (outputs // 2,) * 2 else {}
