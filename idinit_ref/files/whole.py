"""Files and folders that appear under their names only when they are complete."""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name only when it is complete.

    Parameters
    ----------
    target : Path
        Its name; what is there is replaced.

    Yields
    ------
    BinaryIO
        The file to write to.

    Raises
    ------
    OSError
        If it cannot be written; nothing is left then, nor after any other exception.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with whole_file(folder / "a.txt") as file:
    ...     _ = file.write(b"whole")
    ...     (folder / "a.txt").exists()
    False
    >>> (folder / "a.txt").read_bytes()
    b'whole'
    """
    with together(list) as new, new(target) as file:
        yield file


@contextmanager
def together(
    stale: Callable[[], Sequence[Path]],
) -> Iterator[Callable[[Path], AbstractContextManager[BinaryIO]]]:
    """Yield what opens new files; they appear under their names together, and `stale` goes."""
    parts: list[tuple[Path, Path]] = []

    @contextmanager
    def new(target: Path) -> Iterator[BinaryIO]:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        part = _beside(target, "part")
        parts.append((part, target))
        with open(part, "xb") as file:
            with suppress(OSError, AttributeError):  # there is none yet, or no rights are known
                os.fchmod(file.fileno(), os.stat(target).st_mode & 0o777)
            yield file
            file.flush()
            os.fsync(file.fileno())

    try:
        yield new
        _rename(parts, stale())
    except BaseException:
        _remove(part for part, _ in parts)
        raise


def _beside(path: Path, what: str) -> Path:
    """Return a new name in the same folder, of the bytes that a name may have."""
    end = f".{what}-{secrets.token_hex(8)}"
    return path.with_name(os.fsdecode(os.fsencode(path.name)[: 255 - len(end)]) + end)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink()


def _rename(parts: list[tuple[Path, Path]], stale: Sequence[Path]) -> None:
    """Give new files their names and take away the old ones: all of it, or on an error nothing.

    The last new file (the index of shards) comes last, and the old one of its name goes first, so
    that even a machine that stops here leaves no mixture that loads.
    """
    if len(parts) == 1 and not stale:
        os.replace(*parts[0])
        return
    old = [*stale, *(target for _, target in reversed(parts) if os.path.lexists(target))]
    aside = [
        (path, _beside(path, "old")) for path in sorted(old, key=lambda p: p.suffix != ".json")
    ]
    moves = [*aside, *parts]
    try:
        for source, goal in moves:
            os.replace(source, goal)
    except BaseException:
        for source, goal in reversed(moves):
            if not os.path.lexists(source):  # it was moved
                with suppress(OSError):
                    os.replace(goal, source)
        raise
    try:
        _remove(path for _, path in aside)
    except BaseException:  # stopped: the new files are there, so go on
        _remove(path for _, path in aside)
        raise


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield the name of a folder to make; it gets its own name when it is complete.

    What was there goes then; on an error nothing is left, and what was there stays. What a library
    makes beside the folder until it is done, under a longer name, goes too.
    """
    part, old = _beside(target, "part"), _beside(target, "old")
    try:
        yield part
        if os.path.lexists(target):
            os.replace(target, old)
        os.replace(part, target)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(target):
            os.replace(old, target)
        raise
    finally:
        for path in (old, *part.parent.glob(f"{glob.escape(part.name)}*")):
            shutil.rmtree(path, ignore_errors=True)
            _remove([path])
