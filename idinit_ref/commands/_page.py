"""The file of a picture: whether it can be written, and the page that becomes it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OptionError, message
from ..files.whole import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE: dict[str, Any] = {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "idinit"}


def check(path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Raise OptionError if a picture cannot be written there, or matplotlib not be imported.

    >>> check("weight.gif")
    Traceback (most recent call last):
        ...
    idinit_ref.errors.OptionError: plot = 'weight.gif', but the name should end in .svg or .png;
    write weight.svg
    """
    target, name, real = Path(path), os.fspath(path), os.path.realpath(path)
    other = "choose another name"
    for is_wrong, should, cure in (
        (
            target.suffix.lower() not in (".svg", ".png"),
            "the name should end in .svg or .png",
            f"write {target.with_suffix('.svg') if target.name else 'weight.svg'}",
        ),
        (os.path.isdir(target), "it should be the name of a file, and a folder has it", other),
        (
            not os.path.isdir(target.parent),
            f"there is no folder {target.parent}",
            "make it first, or choose another",
        ),
        (
            os.path.lexists(real) and not os.path.isfile(real),
            "it should be the name of a file, and a device, a pipe or a dead link has it",
            other,
        ),
        (
            os.path.lexists(target) and not force,
            "no such file should be there yet",
            f"{other}, or add --force to replace it",
        ),
    ):
        if is_wrong:
            raise OptionError(message("plot", name, should, cure))
    try:
        import matplotlib.figure
        import matplotlib.style  # noqa: F401
    except Exception as problem:  # a broken one raises anything
        why = f"{type(problem).__name__}: {problem}"
        should = f"a picture needs matplotlib, which cannot be imported ({why})"
        cure = "pip install matplotlib"
        raise OptionError(message("plot", name, should, cure)) from problem


_PLACE = "its folder should be one that takes new files", "choose a folder that you can write to"
_ROOM = "there should be room for it", "make room there, or choose another folder"
_REFUSALS = {
    errno.ENAMETOOLONG: ("the system should take its name", "choose a shorter one"),
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
}


@contextmanager
def page(
    path: str | os.PathLike[str], size: tuple[float, float] = (6.4, 4.8), title: str = ""
) -> Iterator[Figure]:
    """Yield a figure that becomes a file at the end: the same bytes for the same drawing.

    The file, .svg or .png, is replaced if it is there (of a link, the one that it leads to);
    OptionError if it cannot be written, and nothing is left then. `size` is in inches, `title` is
    alternative text. The user's own matplotlib settings have no say in it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with page(Path(folder) / "a.png") as figure:
    ...         _ = figure.subplots().plot([1, 2])
    ...     (Path(folder) / "a.png").read_bytes()[1:4]
    b'PNG'
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    target = Path(path)
    form = target.suffix.lower()[1:]
    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=size)
        yield figure
        named: dict[str, Any] = {"Title": title} if title else {}
        lacks = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[form]
        try:
            with whole_file(Path(os.path.realpath(target))) as file:
                figure.savefig(file, format=form, dpi=150, metadata=named | lacks)
        except OSError as problem:
            should, cure = _REFUSALS.get(problem.errno or 0, _PLACE)
            should += f" ({problem.strerror or problem})"
            raise OptionError(message("plot", os.fspath(path), should, cure)) from problem
