"""Bytes of untrusted files: nothing outside the file is read, and every fault is reported.

No size in a file is trusted beyond the size of the file itself.
"""

from __future__ import annotations

import errno
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
Get = Callable[[int, Bytes], None]  # fills an array with the bytes from an offset on
Spans = tuple[range, ...]

DEFLATE = 1032
"""The highest ratio of deflate: bytes out of one byte."""

_PAGE = 2**12  # bytes: smaller gaps are read, too
_PIECE = 2**20  # bytes of one read if most of them are dropped
_AGAIN = "download the file again, or write it anew"


class Faults:
    """The faults of a checkpoint: the first is raised; with `lenient` all are collected."""

    def __init__(self, *, lenient: bool = False) -> None:
        self.lenient = lenient
        self.messages: list[str] = []

    def add(self, problem: CheckpointError) -> None:
        """Raise or collect a fault."""
        if not self.lenient:
            raise problem
        if str(problem) not in self.messages:  # a missing file may hold many tensors
            self.messages.append(str(problem))

    @contextmanager
    def around(self) -> Iterator[None]:
        """Add an error that is raised inside; the rest of the block is then skipped."""
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
        """Return an error about the file: one short line."""
        where = f"{what} of {short(self.path.name)!r}"
        return CheckpointError(message(where, short(got), should, cure))

    @contextmanager
    def open(self) -> Iterator[io.FileIO]:
        """Open it; raise if it has changed."""
        with open(self.path, "rb", buffering=0) as file:
            now = os.fstat(file.fileno())
            if (now.st_size, now.st_mtime_ns) != (self.size, self.time):
                raise self.changed()
            yield file

    def changed(self) -> CheckpointError:
        """Return the error for a file that has changed."""
        should = f"since it was opened, with {self.size:,} bytes, it should not have changed"
        return self.wrong("content", "changed", should, "open it again")

    def fill(self, file: io.FileIO, at: int, into: Bytes | bytearray) -> None:
        """Fill an array with the bytes from an offset on; raise if there are fewer."""
        file.seek(at)
        rest = into.data if isinstance(into, np.ndarray) else memoryview(into)
        while rest:
            count = file.readinto(rest)
            if not count:
                raise self.changed()
            rest = rest[count:]

    def take(self, file: io.FileIO, at: int, count: int) -> bytearray:
        """Return up to `count` bytes from an offset on."""
        content = bytearray(min(count, max(self.size - at, 0)))
        self.fill(file, at, content)
        return content

    def loads(self, content: bytearray, **options: Any) -> Any:
        """Parse JSON of the file, as `metadata.loads`."""
        try:
            return loads(content, **options)
        except MalformedError as problem:
            raise self.wrong(problem.what, problem.got, problem.should) from None


@contextmanager
def reachable(path: Path, name: str = "path") -> Iterator[None]:
    """Give an OSError that is raised inside the form of all messages; it stays of its class."""
    try:
        yield
    except OSError as problem:
        should = f"it cannot be read ({problem.strerror or problem})"
        cure = "name one that exists and that you may read"
        raise OSError(  # Python chooses the class by the number
            problem.errno or errno.EIO, message(name, str(path), should, cure)
        ) from problem


def source_of(path: Path, kind: str, magic: bytes = b"") -> SourceFile:
    """Return a file; raise if it cannot be of this kind, which begins with the bytes `magic`."""
    try:
        with reachable(path):
            status = os.stat(path)
    except ValueError:  # a NUL or a surrogate in the name
        should = "it should be a valid file name"
        raise CheckpointError(message("path", short(path), should, "correct it")) from None
    source = SourceFile(path, status.st_size, status.st_mtime_ns)
    if not stat.S_ISREG(status.st_mode):
        raise source.wrong("kind", "not a regular file", f"it should be {kind}", "name a file")
    with reachable(path), source.open() as file:
        first = bytes(source.take(file, 0, 32))
    if not first:
        raise source.wrong("size", 0, f"{kind} should not be empty")
    if (known := by_content(first)) and known.magic != magic:
        raise source.wrong("content", known.what, f"it should be {kind}", known.cure)
    return source


def library(module: str, files: str, extra: str) -> Any:
    """Import a format's library; the error names the extra to install."""
    try:
        return import_module(module)
    except ImportError as problem:
        cure = f'pip install "idinit-ref[{extra}]"'
        raise ImportError(f"{files} need {module}: {cure}", name=problem.name) from problem


@contextmanager
def readable(source: SourceFile, kind: str) -> Iterator[None]:
    """Turn any error of a library into a CheckpointError about the file."""
    try:
        yield
    except IDInitError:
        raise
    except Exception as problem:
        first_line = (str(problem).splitlines() or [""])[0]
        got = f"{type(problem).__name__}: {first_line}"
        raise source.wrong("content", got, f"it should be {kind} that can be read") from problem


@dataclass(frozen=True, slots=True)
class Plain:
    """Uncompressed bytes in a file."""

    source: SourceFile
    start: int

    @contextmanager
    def reading(self) -> Iterator[Get]:
        """Open the file, and yield a function that reads from it."""
        with self.source.open() as file:
            yield lambda at, into: self.source.fill(file, self.start + at, into)


class Inflater:
    """The state of a deflated stream: compressed bytes taken, bytes made, and their checksum."""

    def __init__(self) -> None:
        self.zlib = zlib.decompressobj(-zlib.MAX_WBITS)
        self.taken = self.made = self.crc = 0


@dataclass(frozen=True, slots=True)
class Packed:
    """Deflated bytes in a file, unpacked in order; a read further back starts again.

    `resting` is shared by all members of a file: it holds the state of the last one read.
    """

    source: SourceFile
    start: int
    packed: int
    size: int
    crc: int
    resting: dict[int, Inflater] = field(compare=False)

    @contextmanager
    def reading(self) -> Iterator[Get]:
        """Open the file, and yield a function that reads from it."""
        with self.source.open() as file:
            yield lambda at, into: self._fill(file, at, into)

    def _fill(self, file: io.FileIO, at: int, into: Bytes) -> None:
        state = self.resting.pop(self.start, None)  # atomic: no two threads share a state
        if state is None or state.made > at:
            state = Inflater()
        while state.made < at:
            self._inflate(file, state, min(at - state.made, _PIECE))
        done = 0
        while done < into.size:
            piece = self._inflate(file, state, min(into.size - done, _PIECE))
            into[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
            done += len(piece)
        self.resting.clear()
        self.resting[self.start] = state

    def _inflate(self, file: io.FileIO, state: Inflater, most: int) -> bytes:
        """Unpack between one and `most` bytes."""
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
        return self.source.wrong("packed array", got, "it should unpack without an error")


def read_block(get: Get, shape: tuple[int, ...], spans: Spans) -> Bytes:
    """Return a block of a row-major array of bytes, which `get` reads.

    Contiguous runs are read whole. Gaps shorter than a page are read with them, and dropped.
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
                rows_read = np.empty((stop - start, *shape[axis + 1 :]), np.uint8)
                get(base + start * step, rows_read.reshape(-1))
                into[...] = rows_read[(slice(None), *inner)]
    return out
