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
        Its name; an old file of this name is replaced.

    Yields
    ------
    BinaryIO
        The file to write to.

    Raises
    ------
    OSError
        If it cannot be written. After any exception no new file is left.

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
    """Yield a function that opens new files. All get their names together; `stale` is removed."""
    parts: list[tuple[Path, Path]] = []

    @contextmanager
    def new(target: Path) -> Iterator[BinaryIO]:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        part = _beside(target, "part")
        parts.append((part, target))
        with open(part, "xb") as file:
            with suppress(OSError, AttributeError):  # no old file, or a system without fchmod
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
    """Return a new name in the same folder, of at most 255 bytes."""
    end = f".{what}-{secrets.token_hex(8)}"
    return path.with_name(os.fsdecode(os.fsencode(path.name)[: 255 - len(end)]) + end)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink()


def _rename(parts: list[tuple[Path, Path]], stale: Sequence[Path]) -> None:
    """Give new files their names and remove the old ones; on an error undo everything.

    The old index of shards is removed first and the new one comes last. So even after a crash no
    mixture of files can be loaded.
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
    except BaseException:  # interrupted: the new files have their names, so finish
        _remove(path for _, path in aside)
        raise


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary name for a new folder; a complete folder gets its own name.

    Then the old folder is removed. After an error the old folder stays, and nothing new. Files that
    a library leaves beside the folder under a longer name are removed, too.
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
