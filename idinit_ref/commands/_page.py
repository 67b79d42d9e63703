"""The file of a picture: a check that it can be written, and the page that is saved into it."""

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
    """Raise an OptionError if the picture cannot be written, or matplotlib cannot be imported.

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
        (os.path.isdir(target), "it should be the name of a file, not of a folder", other),
        (
            not os.path.isdir(target.parent),
            f"the folder {target.parent} should exist",
            "make it first, or choose another",
        ),
        (
            os.path.lexists(real) and not os.path.isfile(real),
            "it should be the name of a file, not of a device, a pipe or a dead link",
            other,
        ),
        (
            os.path.lexists(target) and not force,
            "this file should not exist yet",
            f"{other}, or add --force to replace it",
        ),
    ):
        if is_wrong:
            raise OptionError(message("plot", name, should, cure))
    try:
        import matplotlib.figure
        import matplotlib.style  # noqa: F401
    except Exception as problem:  # a broken installation may raise any error
        why = f"{type(problem).__name__}: {problem}"
        should = f"a picture needs matplotlib, which cannot be imported ({why})"
        cure = "pip install matplotlib"
        raise OptionError(message("plot", name, should, cure)) from problem


_PLACE = "its folder should be writable", "choose a folder that you can write to"
_ROOM = "the disk should have room for it", "make room, or choose another folder"
_REFUSALS = {
    errno.ENAMETOOLONG: ("its name should be short enough for the system", "shorten it"),
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
}


@contextmanager
def page(
    path: str | os.PathLike[str], size: tuple[float, float] = (6.4, 4.8), title: str = ""
) -> Iterator[Figure]:
    """Yield a figure that is saved into a file at the end; equal drawings give equal bytes.

    An existing file, .svg or .png, is replaced; a link is followed. If it cannot be written, an
    OptionError is raised and no new file is left. `size` is in inches, `title` is alternative text.
    The user's matplotlib settings are ignored.

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
