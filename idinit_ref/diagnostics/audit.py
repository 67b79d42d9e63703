"""Does an initialised model work: what one forward and one backward pass on real inputs show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.text import columns

if TYPE_CHECKING:
    from rich.console import Group

LARGE = 0.1
"""A branch whose rms is above this share of its skip's is no small one: IDInit's are near eps."""

RANGE = 1e4
"""By how much the second moment may change from the first weight operation to the last, up or
down, before an audit remarks on it."""


class Layer(NamedTuple):
    """One weight operation, in the order of computation.

    Parameters
    ----------
    name : str
        Its node in the graph of `trace`.
    second_moment : float
        The mean of squares of its result.
    units : int
        Of its result: its channels, or the entries of the last axis.
    copies : int
        Units that are an exact copy of an earlier one at all positions that were compared.
    silent : int
        Units that are one number there.
    is_constant : bool
        Whether all of the result is the same for every sample, or zero.

    Examples
    --------
    >>> Layer("up", 1.0, 8, 4).copies
    4
    """

    name: str
    second_moment: float
    units: int = 0
    copies: int = 0
    silent: int = 0
    is_constant: bool = False


class Branch(NamedTuple):
    """A residual branch beside its skip.

    Parameters
    ----------
    add : str
        The node that adds them.
    branch, skip : str
        The nodes that are added; the branch is the one behind more weights.
    rms, skip_rms : float
        Their root mean squares.

    Examples
    --------
    >>> Branch("add", "down", "x", 1e-6, 0.5).ratio
    2e-06
    """

    add: str
    branch: str
    skip: str
    rms: float
    skip_rms: float

    @property
    def ratio(self) -> float:
        """The size of the branch beside the skip.

        Examples
        --------
        >>> Branch("add", "down", "x", 0.0, 0.0).ratio
        0.0
        """
        if self.rms == 0:
            return 0.0
        return self.rms / self.skip_rms if self.skip_rms else float("inf")


class Dead(NamedTuple):
    """A parameter whose gradient is exactly 0.

    Parameters
    ----------
    name : str
        Of the parameter.
    behind : str
        What lies between it and the output: the node where the signal dies, or the first weight
        operation behind it that has a gradient.
    why : str
        The same as a sentence.
    wakes : bool
        Whether that weight operation has a gradient: after one step it is another one, and may let
        gradients through. So it is where a weight that is truncated reads another part, or where
        the terms of a gradient cancel.

    Examples
    --------
    >>> Dead("up.weight", "relu", "relu is 0").behind
    'relu'
    """

    name: str
    behind: str
    why: str
    wakes: bool = False


class Health(tuple[str, ...]):
    """What failed, in sentences; true if nothing did.

    Parameters
    ----------
    iterable : iterable of str
        The sentences.

    Examples
    --------
    >>> bool(Health()), bool(Health(["the output is not finite"]))
    (True, False)
    """

    __slots__ = ()

    def __bool__(self) -> bool:
        return not len(self)


@dataclass(frozen=True)
class Audit:
    """What one forward and one backward pass have shown; ``str()`` says it.

    Parameters
    ----------
    healthy : Health
        True if nothing failed, else the tuple of what did: something is not finite, the output
        does not depend on the input, a branch is exactly zero, or a parameter that is used has a
        gradient of exactly 0 and does not wake.
    remarks : tuple of str
        What is no failure, but worth a look: branches that are not small, units that are copies,
        a second moment that runs away, parameters that are not used, or get a gradient later.
    limits : tuple of str
        What these inputs, or this framework, could not show.
    output_varies : bool, optional
        Whether the output differs between samples; None if that could not be seen.
    input_gradient : float, optional
        The largest entry of the output's gradient to the input; None where all inputs are integers.
    layers : tuple of Layer
        Every weight operation that was seen, the first one first.
    branches : tuple of Branch
        Every residual add that was seen.
    dead : tuple of Dead
        The parameters whose gradient is exactly 0, of those that are used and trained.
    unused : tuple of str
        The parameters on which the output does not depend by any way.
    not_finite : tuple of str
        The nodes, outputs and gradients that hold an infinity or a NaN, the first one first.

    Examples
    --------
    >>> print(Audit(Health(), layers=(Layer("fc", 1.0, 4),), output_varies=True))
    healthy: the output depends on the input, and gradients reach all that it is made of
    weight operation  second moment  units  copies  constant
    fc                            1      4       0         0
    """

    healthy: Health
    remarks: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    output_varies: bool | None = None
    input_gradient: float | None = None
    layers: tuple[Layer, ...] = ()
    branches: tuple[Branch, ...] = ()
    dead: tuple[Dead, ...] = ()
    unused: tuple[str, ...] = ()
    not_finite: tuple[str, ...] = ()

    @property
    def second_moments(self) -> dict[str, float]:
        """The second moment of every weight operation's result, from the first to the last.

        Examples
        --------
        >>> Audit(Health(), layers=(Layer("fc", 1.0, 4),)).second_moments
        {'fc': 1.0}
        """
        return {layer.name: layer.second_moment for layer in self.layers}

    @property
    def ratios(self) -> dict[str, float]:
        """The size of every branch beside its skip, by the node that ends the branch.

        Examples
        --------
        >>> Audit(Health(), branches=(Branch("add", "down", "x", 1e-6, 0.5),)).ratios
        {'down': 2e-06}
        """
        return {one.branch: one.ratio for one in self.branches}

    def _verdict(self) -> str:
        if self.healthy:
            said = "the output depends on the input, and gradients reach all that it is made of"
            return f"healthy: {said}"
        return f"not healthy: {len(self.healthy)} failure{'s' * (len(self.healthy) != 1)}"

    def _sentences(self) -> Iterator[tuple[str, str]]:
        """Yield the kind of a sentence, and the sentence."""
        yield from (("failure", text) for text in self.healthy)
        yield from (("remark", text) for text in self.remarks)
        yield from (("limit", text) for text in self.limits)

    def _tables(self) -> Iterator[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
        """Yield the heads and the rows of the tables."""
        layers: list[tuple[str, ...]] = [
            (one.name, f"{one.second_moment:.4g}", *map(str, (one.units, one.copies, one.silent)))
            for one in self.layers
        ]
        if layers:
            yield ("weight operation", "second moment", "units", "copies", "constant"), layers
        branches: list[tuple[str, ...]] = [
            (one.add, f"{one.rms:.4g}", f"{one.skip_rms:.4g}", f"{one.ratio:.2g}")
            for one in self.branches
        ]
        if branches:
            yield ("residual add", "branch", "skip", "branch / skip"), branches

    def __str__(self) -> str:
        lines = [f"  {kind}: {text}" for kind, text in self._sentences()]
        tables = (columns([head, *rows], numbers=True) for head, rows in self._tables())
        return "\n".join([self._verdict(), *lines, *tables])

    def __rich__(self) -> Group:
        """Return the same in colour, for ``rich.print(audit)``."""
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        styles = {"failure": "bold red", "remark": "yellow", "limit": "dim"}
        parts: list[Any] = [Text(self._verdict(), "green" if self.healthy else "bold red")]
        parts += [Text(f"  {kind}: {text}", styles[kind]) for kind, text in self._sentences()]
        for head, rows in self._tables():
            grid = Table(box=box.SIMPLE_HEAD)
            for at, title in enumerate(head):
                grid.add_column(title, justify="right" if at else "left", overflow="fold")
            for row in rows:
                grid.add_row(*map(Text, row))
            parts.append(grid)
        return Group(*parts)

    def to_dict(self) -> dict[str, Any]:
        """Return the audit in numbers, strings and lists, for JSON (which has no NaN: as text).

        Returns
        -------
        dict of str
            By the names of the parameters above; `healthy` is a bool, and `failures` a list.

        Examples
        --------
        >>> told = Audit(Health(["the output is not finite"])).to_dict()
        >>> told["healthy"], told["failures"]
        (False, ['the output is not finite'])
        """
        out = {key: _plain(value) for key, value in asdict(self).items() if key != "healthy"}
        return {"healthy": bool(self.healthy), "failures": list(self.healthy), **out}

    def plot(self, path: str | Path) -> None:
        """Draw the second moment through depth, and the branches beside their skips.

        Parameters
        ----------
        path : str or Path
            Where the picture is written; its ending says the form, such as .svg or .png.

        Raises
        ------
        ImportError
            If matplotlib is not installed: the extra ``plot``.
        OptionError
            If the audit has seen no weight operation.

        Examples
        --------
        >>> import tempfile
        >>> audit = Audit(Health(), layers=(Layer("fc", 1.0, 4),))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     audit.plot(f"{folder}/audit.svg")
        """
        from .picture import draw

        draw(self.second_moments, self.ratios, path)


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {key: _plain(one) for key, one in value._asdict().items()}
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return str(value)
    return value
