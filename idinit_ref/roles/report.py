"""The report on a model: the role and value of every parameter."""

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
    """One parameter of a model, with its role and value.

    Parameters
    ----------
    name : str
        Its name in the model.
    shape : tuple of int
        The stored shape; in a result of `decide` alone, the shape of the matrix in the graph.
    role : {"transit", "zero", "bias", "keep"}
        IDI, IDIZ, zeros, or kept. "zero" without a plan is the scale of a normalisation.
    why : str
        The reason.
    plan : Plan, optional
        The plan of a weight in role "transit" or "zero".
    axes : str
        If a weight has several axes of inputs, or of outputs: a letter for each stored axis. Axes
        of one letter count as one axis of the plan, in row-major order; the plan has the shape of
        the matrix. "" if the plan has the stored shape.
    parted : tuple of int, optional
        The sizes of these axes, if a stored axis holds several of them; a reshape gives the stored
        shape.
    value : float
        The value of every entry, without a plan and unless it is kept.
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
            A letter for each axis, as for `idinit_ref.core.layout.merge_axes`; "" if unknown.
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
        """Return the entry without its name as numbers, strings and lists, for JSON.

        ``axes``, ``parted`` and ``value`` are left out if they are empty.

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
        if isinstance(self.plan.role, str):  # else "role" is a list, one for each block
            del plan["role"]
        return found | {"plan": plan}


@dataclass(frozen=True)
class Report:
    """The role and value of every parameter of a model, with warnings.

    Parameters
    ----------
    entries : tuple of Entry
        One for each parameter, in the model's order.
    warnings : tuple of Note
        Facts to know before training: each has a kind, the names concerned, and a sentence.

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
        """One line with the number of parameters in each role.

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
        """Return the report as numbers, strings, lists and dicts, for JSON.

        It is also a manifest for ``idinit export``.

        Returns
        -------
        dict
            ``"tensors"``: for every parameter, by name, its shape, role and reason, and its plan's
            layout and other options that are not defaults, or None. ``"warnings"``: the kind, names
            and text of each.

        Examples
        --------
        >>> Report((Entry("b", (2,), "bias", "bias"),)).to_dict()["tensors"]
        {'b': {'shape': [2], 'role': 'bias', 'why': 'bias', 'plan': None}}
        """
        warned = [note._asdict() | {"names": list(note.names)} for note in self.warnings]
        tensors = {entry.name: entry.to_dict() for entry in self.entries}
        return {"warnings": warned, "tensors": tensors}
