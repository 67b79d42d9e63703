"""The audit of an initialised model: results of a forward and a backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.text import columns

if TYPE_CHECKING:
    from rich.console import Group

LARGE = 0.1
"""A branch counts as small up to this share of its skip's rms; IDInit's branches are near eps."""

RANGE = 1e4
"""The largest factor, up or down, between the second moments of the first and the last weight
operation without a remark."""


class Layer(NamedTuple):
    """One weight operation, in the order of computation.

    Parameters
    ----------
    name : str
        The name of its node in the graph of `trace`.
    second_moment : float
        The mean of squares of its result; an infinite entry counts as 0.
    units : int
        The units of its result: its channels, or the entries of the last axis.
    copies : int
        The units that copy an earlier one exactly at all compared positions.
    silent : int
        The units that are constant at these positions.
    is_constant : bool
        Whether the whole result is zero, or the same for every sample.

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
        The node of the sum.
    branch, skip : str
        The two terms; the branch is the one with more weights before it.
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
    """A parameter, or a block of one, whose gradient is exactly 0.

    Parameters
    ----------
    name : str
        The name of the parameter. Of a packed weight that has a gradient, a block may have none: it
        is named as one would index the array, ``qkv.weight[0:64]``.
    behind : str
        The node that stops the gradient: where the signal dies, or the first later weight operation
        that has a gradient. It is "" for a bias whose weight has a gradient: its own cancels.
    why : str
        The reason as a sentence.
    wakes : bool
        Whether the parameter gets a gradient within the first steps. So it is if the weight of this
        operation has a gradient: one step changes it, and it may let gradients through, for example
        a truncated weight that does not read this part yet, or gradients whose terms cancel. So it
        is, too, if the second look has measured a gradient.

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
    """The failures as sentences; true if there are none.

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
    """The results of one forward and one backward pass; ``str()`` is a report.

    With ``steps``, and only if something fails, or a weight has no gradient for no known reason, a
    second look after a few small steps of training tells what ends by itself; all measurements are
    those of the first.

    Parameters
    ----------
    healthy : Health
        True, or the tuple of failures: something is not finite, the output does not depend on the
        input, a branch is exactly zero, or a used parameter has a gradient of exactly 0; and it
        does not end within the first steps.
    remarks : tuple of str
        Observations that are not failures: what fails in the first steps only, branches that are
        not small, units that are copies, a second moment that grows or shrinks too far, parameters
        that are unused, or whose gradient comes later.
    limits : tuple of str
        Facts that these inputs, or this framework, could not show.
    output_varies : bool, optional
        Whether the output differs between samples; None if unknown.
    input_gradient : float, optional
        The largest entry of the output's gradient to the input; None if all inputs are integers.
    layers : tuple of Layer
        Every measured weight operation, in the order of computation.
    branches : tuple of Branch
        Every measured residual add.
    dead : tuple of Dead
        The used, trained parameters whose gradient is exactly 0.
    unused : tuple of str
        The parameters from which no path leads to the output.
    not_finite : tuple of str
        The nodes, outputs, parameters and gradients that are not finite, in the order of
        computation. An infinity that later nodes make finite again is not listed: -inf under a
        softmax, or beside finite entries of the output.
    steps : int
        The steps of training before the last second look; 0 if there was none.
    woken : tuple of str
        What failed and no longer fails after these steps: "the output", nodes that end a branch,
        and parameters.

    Examples
    --------
    >>> print(Audit(Health(), layers=(Layer("fc", 1.0, 4),), output_varies=True))
    healthy: the output depends on the input, and gradients reach all its parameters
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
    steps: int = 0
    woken: tuple[str, ...] = ()

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
        return {branch.branch: branch.ratio for branch in self.branches}

    def _verdict(self) -> str:
        steps = f"{self.steps} step{'s' * (self.steps != 1)} of training"
        if self.woken and self.healthy:
            return f"healthy: what fails at the start ends within {steps}"
        if self.healthy:
            return (
                "healthy: the output depends on the input, and gradients reach all its parameters"
            )
        lasting = f", also after {steps}" if self.steps else ""
        count = len(self.healthy)
        return f"not healthy: {count} failure{'s' * (count != 1)}{lasting}"

    def _sentences(self) -> Iterator[tuple[str, str]]:
        """Yield all sentences, each with its kind."""
        yield from (("failure", text) for text in self.healthy)
        yield from (("remark", text) for text in self.remarks)
        yield from (("limit", text) for text in self.limits)

    def _tables(self) -> Iterator[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
        """Yield the headings and the rows of each table."""
        layers: list[tuple[str, ...]] = [
            (name, f"{second:.4g}", *map(str, (units, copies, silent)))
            for name, second, units, copies, silent, _ in self.layers
        ]
        if layers:
            yield ("weight operation", "second moment", "units", "copies", "constant"), layers
        branches: list[tuple[str, ...]] = [
            (branch.add, f"{branch.rms:.4g}", f"{branch.skip_rms:.4g}", f"{branch.ratio:.2g}")
            for branch in self.branches
        ]
        if branches:
            yield ("residual add", "branch", "skip", "branch / skip"), branches

    def __str__(self) -> str:
        lines = [f"  {kind}: {text}" for kind, text in self._sentences()]
        tables = (columns([head, *rows], numbers=len(head) - 1) for head, rows in self._tables())
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
        """Return the audit as numbers, strings and lists, for JSON; infinities and NaN are text.

        Returns
        -------
        dict of str
            By the names of the parameters above; `healthy` is a bool, and `failures` a list.

        Examples
        --------
        >>> values = Audit(Health(["the output is not finite"])).to_dict()
        >>> values["healthy"], values["failures"]
        (False, ['the output is not finite'])
        """
        out = {key: _plain(value) for key, value in asdict(self).items() if key != "healthy"}
        return {"healthy": bool(self.healthy), "failures": list(self.healthy), **out}

    def plot(self, path: str | Path) -> None:
        """Draw the second moment through depth, and the branches beside their skips.

        Parameters
        ----------
        path : str or Path
            The file to write; its suffix is the format, such as .svg or .png.

        Raises
        ------
        ImportError
            If matplotlib is not installed: the extra ``plot``.
        OptionError
            If the audit has measured no weight operation.

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
        value = value._asdict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return str(value)
    return value
