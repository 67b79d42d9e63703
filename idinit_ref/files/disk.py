"""Bytes in files that strangers wrote: nothing outside of a file is read, every fault is told.

A file is believed only as far as its own size bears it out.
"""

from __future__ import annotations

import io
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.text import short
from ..errors import CheckpointError, IDInitError, message
from .metadata import MalformedError, loads
from .others import by_content

Bytes = NDArray[np.uint8]
Get = Callable[[int, Bytes], None]  # fills an array with the bytes from a place on
Spans = tuple[range, ...]

DEFLATE = 1032
"""The most bytes that deflate makes out of one."""

_PAGE = 2**12  # bytes: a smaller gap is read through, as the disk does
_PIECE = 2**20  # bytes that are read at once where most of them are cut away
_AGAIN = "download the file again, or write it anew"


class Faults:
    """What is wrong with a checkpoint: the first is raised, or with `lenient` all are kept."""

    def __init__(self, *, lenient: bool = False) -> None:
        self.lenient = lenient
        self.messages: list[str] = []

    def add(self, problem: CheckpointError) -> None:
        """Raise it, or keep it."""
        if not self.lenient:
            raise problem
        if str(problem) not in self.messages:  # a file that is missing may have many tensors
            self.messages.append(str(problem))

    @contextmanager
    def around(self) -> Iterator[None]:
        """Add what is raised inside; the rest of what is inside is then left out."""
        try:
            yield
        except CheckpointError as problem:
            self.add(problem)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A regular file as it was when its header was read."""

    path: Path
    size: int
    time: int

    def wrong(self, what: str, got: object, should: str, cure: str = _AGAIN) -> CheckpointError:
        """Return an error about it, of one line that is not long."""
        where = f"{what} of {short(self.path.name)!r}"
        return CheckpointError(message(where, short(got), should, cure))

    @contextmanager
    def open(self) -> Iterator[io.FileIO]:
        """Open it, if it is still the same."""
        with open(self.path, "rb", buffering=0) as file:
            now = os.fstat(file.fileno())
            if (now.st_size, now.st_mtime_ns) != (self.size, self.time):
                raise self.changed()
            yield file

    def changed(self) -> CheckpointError:
        """Return the error of a file that is not what it was."""
        should = f"since it was opened, with {self.size:,} bytes, it should not have changed"
        return self.wrong("content", "another", should, "open it again")

    def fill(self, file: io.FileIO, at: int, into: Bytes | bytearray) -> None:
        """Read the bytes from a place on, all or an error."""
        file.seek(at)
        rest = into.data if isinstance(into, np.ndarray) else memoryview(into)
        while rest:
            count = file.readinto(rest)
            if not count:
                raise self.changed()
            rest = rest[count:]

    def take(self, file: io.FileIO, at: int, count: int) -> bytearray:
        """Return the bytes from a place on; at the end of the file fewer."""
        content = bytearray(min(count, max(self.size - at, 0)))
        self.fill(file, at, content)
        return content

    def loads(self, content: bytearray, **options: Any) -> Any:
        """Return what JSON of the file holds, as `metadata.loads`."""
        try:
            return loads(content, **options)
        except MalformedError as problem:
            raise self.wrong(problem.what, problem.got, problem.should) from None


def source_of(path: Path, kind: str, magic: bytes = b"") -> SourceFile:
    """Look at a file, and raise for one that cannot be of its kind, whose first bytes these are."""
    try:
        status = os.stat(path)
    except ValueError:  # a NUL, or a surrogate that no file name holds
        should = "it should be a name that a file can have"
        raise CheckpointError(message("path", short(path), should, "correct it")) from None
    source = SourceFile(path, status.st_size, status.st_mtime_ns)
    if not stat.S_ISREG(status.st_mode):
        raise source.wrong("kind", "not a regular file", f"it should be {kind}", "name a file")
    with source.open() as file:
        first = bytes(source.take(file, 0, 32))
    if not first:
        raise source.wrong("size", 0, f"{kind} is not empty")
    if (known := by_content(first)) and known.magic != magic:
        raise source.wrong("content", known.what, f"it should be {kind}", known.cure)
    return source


def needed(module: str, files: str, extra: str) -> Any:
    """Return the library of some files, or say what to install."""
    try:
        return import_module(module)
    except ImportError as problem:
        cure = f'pip install "idinit-ref[{extra}]"'
        raise ImportError(f"{files} need {module}: {cure}", name=problem.name) from problem


@contextmanager
def readable(source: SourceFile, kind: str) -> Iterator[None]:
    """Turn whatever a library raises into an error that says that the file is broken."""
    try:
        yield
    except IDInitError:
        raise
    except Exception as problem:
        said = (str(problem).splitlines() or [""])[0]
        got = f"{type(problem).__name__}: {said}"
        raise source.wrong("content", got, f"it should be {kind} that can be read") from problem


@dataclass(frozen=True, slots=True)
class Plain:
    """Bytes that lie in a file as they are."""

    source: SourceFile
    start: int

    @contextmanager
    def reading(self) -> Iterator[Get]:
        """Open the file, and yield what reads from it."""
        with self.source.open() as file:
            yield lambda at, into: self.source.fill(file, self.start + at, into)


class Inflater:
    """Where a deflated stream has been read to."""

    def __init__(self) -> None:
        self.zlib = zlib.decompressobj(-zlib.MAX_WBITS)
        self.taken = self.made = self.crc = 0


@dataclass(frozen=True, slots=True)
class Packed:
    """Deflated bytes in a file, unpacked in order; going back begins anew.

    `resting` keeps the state of one member for all of a file: of the one that was read last.
    """

    source: SourceFile
    start: int
    packed: int
    size: int
    crc: int
    resting: dict[int, Inflater] = field(compare=False)

    @contextmanager
    def reading(self) -> Iterator[Get]:
        """Open the file, and yield what reads from it."""
        with self.source.open() as file:
            yield lambda at, into: self._fill(file, at, into)

    def _fill(self, file: io.FileIO, at: int, into: Bytes) -> None:
        state = self.resting.pop(self.start, None)  # atomic: no two threads have the same
        if state is None or state.made > at:
            state = Inflater()
        while state.made < at:
            self._some(file, state, min(at - state.made, _PIECE))
        done = 0
        while done < into.size:
            piece = self._some(file, state, min(into.size - done, _PIECE))
            into[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
            done += len(piece)
        self.resting.clear()
        self.resting[self.start] = state

    def _some(self, file: io.FileIO, state: Inflater, most: int) -> bytes:
        """Unpack at least one byte."""
        piece = b""
        while not piece:
            packed: bytes | bytearray = state.zlib.unconsumed_tail
            if not packed:
                count = min(2**16, self.packed - state.taken)
                packed = self.source.take(file, self.start + state.taken, count)
                state.taken += count
            try:
                piece = state.zlib.decompress(packed, most)
            except zlib.error as problem:
                raise self._bad(str(problem)) from problem
            if not piece and (state.zlib.eof or not packed):
                raise self._bad("it ends early")
        state.made += len(piece)
        state.crc = zlib.crc32(piece, state.crc)
        if state.made == self.size and state.crc != self.crc:
            raise self._bad("its checksum differs")
        return piece

    def _bad(self, got: str) -> CheckpointError:
        return self.source.wrong("packed array", got, "it should unpack to what was written")


def read_block(get: Get, shape: tuple[int, ...], spans: Spans) -> Bytes:
    """Return a block of an array of bytes that lies in row-major order where `get` reads.

    Whole runs of the block are read. If the gaps between runs are shorter than a page, the gaps
    are read too, and cut away.
    """
    out = np.empty([len(span) for span in spans], np.uint8)
    if not out.size:
        return out
    last = len(shape) - 1
    steps = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    whole = last
    while whole and len(spans[whole]) == shape[whole]:
        whole -= 1
    axis = min(whole, next(axis for axis, step in enumerate(steps) if step <= _PAGE))
    span, step = spans[axis], steps[axis]
    inner = tuple(slice(span.start, span.stop) for span in spans[axis + 1 :])
    rows = len(span) if axis == whole else max(_PIECE // max(step, 1), 1)
    for place in product(*spans[:axis]):
        base = sum(i * step for i, step in zip(place, steps, strict=False))
        part = out[tuple(i - span.start for i, span in zip(place, spans, strict=False))]
        for start in range(span.start, span.stop, rows):
            stop = min(start + rows, span.stop)
            into = part[start - span.start : stop - span.start]
            if axis == whole:
                get(base + start * step, into.reshape(-1))
            else:
                seen = np.empty((stop - start, *shape[axis + 1 :]), np.uint8)
                get(base + start * step, seen.reshape(-1))
                into[...] = seen[(slice(None), *inner)]
    return out
