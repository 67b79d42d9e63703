"""NumPy's files: .npy, and .npz, a ZIP archive of .npy files. Opening reads only headers."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib import format as npy

from ..core.text import short
from .bits import DTYPES
from .disk import DEFLATE, Faults, Inflater, Packed, Plain, SourceFile, readable, source_of
from .metadata import table, tables
from .others import NPY, ZIP
from .stored import Raw

_HEADER = 2**14  # bytes read for a header; NumPy accepts at most 10,000 characters


def open_npz(path: Path, faults: Faults) -> tuple[list[Raw], dict[str, str]]:
    """Return the arrays of an archive, in its order, and the metadata in its comments."""
    kind = "a ZIP archive"
    source = source_of(path, kind, ZIP)
    with source.open() as file:
        listed, last, comment = False, source.size, dict[str, Any]()
        with faults.around(), readable(source, kind), zipfile.ZipFile(file) as archive:
            last_ones = {archive.getinfo(name) for name in archive.namelist()}  # as in NumPy
            members = sorted(last_ones, key=lambda member: member.header_offset)
            last, comment = archive.start_dir, table(archive.comment.decode(errors="replace"))
            listed = True
        if not listed:  # no directory, for example in a truncated file
            members = _scan(source, file)
        ends = [*(member.header_offset for member in members[1:]), last]
        tensors: dict[str, Raw] = {}
        resting: dict[int, Inflater] = {}
        by_tensor: dict[str, dict[str, Any]] = {}
        for member, end in zip(members, ends, strict=True):
            with faults.around():
                name = member.filename.removesuffix(".npy")
                if name == member.filename:
                    raise source.wrong("member", member.filename, "it should end in .npy")
                tensors[name] = _array(source, name, member_of(source, file, member, end, resting))
                by_tensor[name] = table(member.comment.decode(errors="replace"))
    metadata = {key: value for key, value in comment.items() if isinstance(value, str)}
    return list(tensors.values()), metadata | tables(by_tensor)


def open_npy(path: Path, faults: Faults) -> tuple[list[Raw], dict[str, str]]:
    """Return the one array of a file, named after the file."""
    source, tensors = source_of(path, "a single array of NumPy", NPY), list[Raw]()
    with faults.around():
        tensors.append(_array(source, path.stem, (Plain(source, 0), source.size)))
    return tensors, {}


def _scan(source: SourceFile, file: io.FileIO) -> list[zipfile.ZipInfo]:
    """Return the members of an archive by their consecutive headers, from its start on."""
    members, at = [], 0
    while len(head := bytes(source.take(file, at, 30))) == 30 and head[:4] == ZIP:
        _, _, flags, kind, _, crc, packed, size, name, extra = struct.unpack("<4sHHHLLLLHH", head)
        rest = bytes(source.take(file, at + 30, name + extra))
        if flags & 8 or len(rest) < name + extra:  # its size is unknown
            break
        member = zipfile.ZipInfo(rest[:name].decode(errors="replace") or "?")
        if packed == size == 2**32 - 1 and rest[name : name + 2] == b"\x01\x00":
            size, packed = struct.unpack("<QQ", rest[name + 4 : name + 20].ljust(16, b"\xff"))
        member.header_offset, member.flag_bits, member.compress_type = at, flags, kind
        member.compress_size, member.file_size, member.CRC = packed, size, crc
        members.append(member)
        at += 30 + name + extra + packed
    return members


def member_of(
    source: SourceFile,
    file: io.FileIO,
    member: zipfile.ZipInfo,
    end: int,
    resting: dict[int, Inflater],
) -> tuple[Plain | Packed, int]:
    """Return the bytes of a member and their count; raise if its place cannot be right."""
    what = f"member {short(member.filename)!r}"
    if member.flag_bits & 1:
        raise source.wrong(what, "encrypted", "it should not be encrypted", "decrypt it first")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        should, cure = "its compression should be 0 or 8, as in NumPy", "save it with numpy.savez"
        raise source.wrong(what, member.compress_type, should, cure)
    begin = max(member.header_offset, 0)  # negative if the archive's offsets are wrong
    head = bytes(source.take(file, begin, 30))
    if len(head) < 30 or head[:4] != ZIP:
        raise source.wrong(what, head[:4], "it should begin with a member's header")
    sizes = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    start, packed, size = begin + 30 + sizes, member.compress_size, member.file_size
    plain = member.compress_type == zipfile.ZIP_STORED
    if start + packed > end or (packed != size if plain else size > packed * DEFLATE):
        got, should = f"{size} bytes out of {packed}", f"they should end before byte {end}"
        raise source.wrong(what, got, should)
    if plain:
        return Plain(source, start), size
    return Packed(source, start, packed, size, member.CRC, resting), size


def _array(source: SourceFile, name: str, member: tuple[Plain | Packed, int]) -> Raw:
    """Return the array of a member or a file, from its header."""
    (data, size), shown = member, repr(short(name))
    head = np.empty(min(size, _HEADER), np.uint8)
    with data.reading() as get:
        get(0, head)
    with readable(source, f"in {shown} an array of NumPy"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about Python 2's headers and invalid escapes
        (shape, fortran, dtype), skip = _header(head.tobytes())
        sizes = [int(n) if type(n) is int and n >= 0 else None for n in shape]
    if None in sizes:
        raise source.wrong(f"shape of {shown}", str(shape), "it should be of integers >= 0")
    if dtype.hasobject:
        should = "it should hold numbers; objects are pickles, which can run code"
        raise source.wrong(f"dtype of {shown}", dtype.name, should, "save numbers")
    nbytes = prod(shape) * dtype.itemsize
    if skip + nbytes != size:
        should = f"its header demands {skip + nbytes}"
        raise source.wrong(f"bytes of {shown}", size, should)
    little = dtype.newbyteorder("<") == dtype
    order: Literal["<", ">"] = "<" if little else ">"
    kind = dtype.name
    if kind not in DTYPES:  # not decoded: the order of its bytes is a part of its dtype
        kind = short(f"{kind}{'' if little else ', big-endian'}{', in Fortran order' * fortran}")
    return Raw(name, kind, shape, source.path, data, skip, nbytes, order, bool(fortran))


def _header(head: bytes) -> tuple[tuple[tuple[int, ...], bool, np.dtype[Any]], int]:
    """Return an array's header and the header's length, in any version of the format."""
    stream = io.BytesIO(head)
    version = npy.read_magic(stream)
    if version == (1, 0):
        return npy.read_array_header_1_0(stream), stream.tell()
    if version == (2, 0):
        return npy.read_array_header_2_0(stream), stream.tell()
    if version != (3, 0):
        raise ValueError(f"format {version[0]}.{version[1]} is not known")
    # Version 3.0 is 2.0 in UTF-8, for names of fields: with escapes it is a header of 2.0.
    size = int.from_bytes(stream.read(4), "little")
    text = stream.read(size)
    if len(text) < size:
        raise ValueError("its header ends early")
    escaped = text.decode().encode("latin-1", "backslashreplace")
    old = io.BytesIO(len(escaped).to_bytes(4, "little") + escaped)
    return npy.read_array_header_2_0(old), stream.tell()
