"""What becomes of every parameter of a model, said in full: a table, and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from ..core.plan import Plan
from ..core.text import columns, some
from ..errors import printable
from .names import Kind
from .notes import Note

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["Entry", "Report"]

_STYLES = {"transit": "green", "zero": "bold yellow", "bias": "cyan", "keep": "dim"}


@dataclass(frozen=True)
class Entry:
    """One parameter of a model, and what becomes of it.

    Parameters
    ----------
    name : str
        Its name in the model.
    shape : tuple of int
        As it is stored; what `decide` alone returns has the graph's, that of the matrix.
    role : {"transit", "zero", "bias", "keep"}
        IDI, IDIZ, zeros, or left as it is; "zero" with no plan is the scale of a normalisation.
    why : str
        The reason.
    plan : Plan, optional
        Of a weight in role "transit" or "zero".
    axes : str
        Where a weight has several axes of inputs, or of outputs: a letter for each stored axis.
        Those of one letter count as one axis of the plan, in row-major order, so that the plan has
        the shape of the matrix; "" where it has the stored shape.
    parted : tuple of int, optional
        The sizes of these axes where a stored axis holds several of them: a reshape of it gives
        the stored shape.
    value : float
        What every entry becomes where there is neither a plan nor "keep".
    """

    name: str
    shape: tuple[int, ...]
    role: Kind
    why: str
    plan: Plan | None = None
    axes: str = ""
    parted: tuple[int, ...] | None = None
    value: float = 0.0

    def stored(
        self, shape: Sequence[int], letters: str, parted: Sequence[int] | None = None
    ) -> Entry:
        """Return the entry of a parameter that is stored in this shape.

        Parameters
        ----------
        shape : sequence of int
            The stored shape.
        letters : str
            A letter for each axis, as `idinit_ref.core.layout.merge_axes` joins them for the plan;
            "" if they are not known.
        parted : sequence of int, optional
            The sizes of these axes, if not those of the stored ones.

        Returns
        -------
        Entry

        Examples
        --------
        >>> key = Entry("key.kernel", (8, 8), "transit", "", Plan((8, 8), layout="IO"))
        >>> key = key.stored((8, 2, 4), "IOO")
        >>> key.shape, key.axes, key.plan.shape
        ((8, 2, 4), 'IOO', (8, 8))
        """
        shape, parts = tuple(shape), tuple(shape if parted is None else parted)
        if self.plan is None or (parts == shape and len(set(letters)) == len(letters)):
            return replace(self, shape=shape, axes="", parted=None)
        named = dict(zip(dict.fromkeys(letters), self.plan.layout, strict=True))  # by an override
        axes = "".join(named[letter] for letter in letters)
        return replace(self, shape=shape, axes=axes, parted=None if parts == shape else parts)

    def to_dict(self) -> dict[str, Any]:
        """Return all but the name in numbers, strings and lists, for JSON.

        ``axes``, ``parted`` and ``value`` are there only if they say something.

        >>> Entry("b", (2,), "bias", "bias").to_dict()
        {'shape': [2], 'role': 'bias', 'why': 'bias', 'plan': None}
        """
        found: dict[str, Any] = {"shape": list(self.shape), "role": self.role, "why": self.why}
        if self.axes:
            found["axes"] = self.axes
        if self.parted is not None:
            found["parted"] = list(self.parted)
        if self.value:
            found["value"] = self.value
        if self.plan is None:
            return found | {"plan": None}
        plan = {k: list(v) if isinstance(v, tuple) else v for k, v in self.plan.options().items()}
        del plan["role"]
        return found | {"plan": plan}


@dataclass(frozen=True)
class Report:
    """What becomes of every parameter of a model; nothing is skipped in silence.

    Parameters
    ----------
    entries : tuple of Entry
        One for each parameter, in the model's order.
    warnings : tuple of Note
        What to know before training: each has a kind, the names that it is about, and a sentence.

    Examples
    --------
    >>> entry = Entry("proj.weight", (2, 4), "zero", "last of its branch")
    >>> print(Report((entry,), (Note("tie", ("proj.weight",), "two branches of one length"),)))
    warning: two branches of one length (proj.weight)
    name         shape   role  why
    proj.weight  (2, 4)  zero  last of its branch
    1 parameter: 0 transit, 1 zero, 0 bias, 0 keep
    """

    entries: tuple[Entry, ...]
    warnings: tuple[Note, ...] = ()

    @property
    def plans(self) -> dict[str, Plan]:
        """The plan of every weight, by name.

        Examples
        --------
        >>> proj = Entry("proj.weight", (2, 4), "zero", "", Plan((2, 4), "zero"))
        >>> Report((proj, Entry("proj.bias", (2,), "bias", "bias"))).plans["proj.weight"].role
        'zero'
        """
        return {entry.name: entry.plan for entry in self.entries if entry.plan is not None}

    @property
    def roles(self) -> dict[str, Kind]:
        """The role of every parameter, by name.

        Examples
        --------
        >>> Report((Entry("proj.bias", (2,), "bias", "bias"),)).roles
        {'proj.bias': 'bias'}
        """
        return {entry.name: entry.role for entry in self.entries}

    @property
    def summary(self) -> str:
        """One line: how many parameters have which role.

        Examples
        --------
        >>> Report((Entry("proj.bias", (2,), "bias", "bias"),)).summary
        '1 parameter: 0 transit, 0 zero, 1 bias, 0 keep'
        """
        roles = list(self.roles.values())
        counts = ", ".join(f"{roles.count(role)} {role}" for role in get_args(Kind))
        return f"{len(roles)} parameter{'s' * (len(roles) != 1)}: {counts}"

    def _rows(self) -> list[tuple[str, str, str, str]]:
        return [(entry.name, str(entry.shape), entry.role, entry.why) for entry in self.entries]

    def _warned(self) -> list[str]:
        names = [f" ({some(note.names)})" if note.names else "" for note in self.warnings]
        return [printable(note.text + of) for note, of in zip(self.warnings, names, strict=True)]

    def __str__(self) -> str:
        rows = [("name", "shape", "role", "why"), *self._rows()]
        warned = [f"warning: {text}" for text in self._warned()]
        return "\n".join([*warned, columns(rows), self.summary])

    def __rich__(self) -> Group:
        """Return the warnings and the table in colour, for ``rich.print(report)``."""
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, caption=self.summary, caption_justify="left")
        for head in ("name", "shape", "role", "why"):
            table.add_column(head, overflow="fold")
        for name, shape, role, why in self._rows():
            table.add_row(Text(name), Text(shape), Text(role, _STYLES[role]), Text(why))
        warned = [Text(f"warning: {text}", "yellow") for text in self._warned()]
        return Group(*warned, table)

    def to_dict(self) -> dict[str, Any]:
        """Return the report in numbers, strings, lists and dicts, for JSON.

        It is a manifest for ``idinit export``, too.

        Returns
        -------
        dict
            ``"tensors"``: of every parameter, by name, its shape, role, reason, and the layout of
            its plan with what options are not the default, or None. ``"warnings"``: of each its
            kind, names and text.

        Examples
        --------
        >>> Report((Entry("b", (2,), "bias", "bias"),)).to_dict()["tensors"]
        {'b': {'shape': [2], 'role': 'bias', 'why': 'bias', 'plan': None}}
        """
        warned = [note._asdict() | {"names": list(note.names)} for note in self.warnings]
        tensors = {entry.name: entry.to_dict() for entry in self.entries}
        return {"warnings": warned, "tensors": tensors}
