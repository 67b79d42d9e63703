"""Safetensors files: all that the format's own reader accepts, and also unknown dtypes.

A file begins with a length of 8 bytes and a JSON object, with an entry for each tensor; then comes
the data, without gaps. Version 0.8 of that reader also accepts these, and so does this one: spaces
around the header, a repeated name (the last one counts), more keys in an entry, an entry as a list.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate, chain
from math import prod
from operator import attrgetter, mul
from pathlib import Path
from typing import Any, cast

from ..core.text import short
from .bits import DTYPES, itemsize
from .disk import Faults, Plain, SourceFile, source_of
from .metadata import CAP
from .naming import is_text
from .stored import Raw

_Pairs = tuple[tuple[str, Any], ...]  # a JSON object
_WORD = 60  # the most characters of an unknown dtype
_FIELDS = ("dtype", "shape", "data_offsets")
_DEPTH = 125  # the most nested lists and objects in an additional key
_BITS = {code: 8 * itemsize(name) for name, code in DTYPES.items()} | {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8
}  # fmt: skip
_NAMES = {code: name for name, code in DTYPES.items()}


def open_safetensors(path: Path, faults: Faults) -> tuple[list[Raw], dict[str, str]]:
    """Return the tensors of a file in the order of its bytes, and its metadata."""
    source = source_of(path, "a safetensors file")
    with source.open() as file:
        first = bytes(source.take(file, 0, 8))
        if first.isascii() and first.decode().isprintable():  # a length far too large
            should = "it should be a safetensors file, which begins with a length of 8 bytes"
            raise source.wrong("content", first.decode(), should)
        if source.size < 8:
            raise source.wrong("size", source.size, "it should be at least 8 bytes")
        length = int.from_bytes(first, "little")
        if length > source.size - 8 or length > CAP:
            should = (
                f"it should be at most {CAP:,} bytes and at most the rest of the file, "
                f"{source.size - 8:,}"
            )
            raise source.wrong("length of the header", length, should)
        objects = _objects(source, 8 + length)
        header = source.loads(source.take(file, 8, length), objects=objects)
    if type(header) is not tuple:
        raise source.wrong("header", _json(header), "it should be an object of entries")
    tensors, metadata = _tensors(source, header, 8 + length, faults)
    del header
    tensors.sort(key=attrgetter("skip", "size"))
    place = 0
    for tensor in tensors:
        if tensor.skip != place:
            got = tensor.skip, tensor.skip + tensor.size
            should = f"they should begin at the end of the tensor before, {place}"
            faults.add(source.wrong(f"data_offsets of {short(tensor.name)!r}", got, should))
        place = tensor.skip + tensor.size
    if place != (data := source.size - 8 - length):
        should = f"its tensors have {place}"
        faults.add(source.wrong("bytes of data", data, should))
    return tensors, metadata


def _objects(source: SourceFile, start: int) -> Callable[[list[tuple[str, Any]]], Any]:
    """Return a JSON hook that turns an entry into a tensor, and any other object into its pairs.

    So a header may have a million entries: no parsed values are kept. Entries that are unusual,
    empty or wrong stay pairs, for `_fields` and `_check_size`.
    """
    plain, data, path = Plain(source, start), source.size - start, source.path

    def entry(pairs: list[tuple[str, Any]]) -> Any:
        try:
            (a, code), (b, shape), (c, (begin, end)) = pairs
            if a == "dtype" and b == "shape" and c == "data_offsets" and type(shape) is list:
                bits = _BITS[code]
                for size in shape:
                    if type(size) is not int or size <= 0:
                        return tuple(pairs)
                    bits *= size
                right = type(begin) is type(end) is int and 0 <= begin <= end <= data
                if right and bits == 8 * (end - begin):
                    dtype = _NAMES.get(code, code)
                    return Raw("", dtype, tuple(shape), path, plain, begin, end - begin)
        except (KeyError, TypeError, ValueError):
            pass
        return tuple(pairs)

    return entry


def _tensors(
    source: SourceFile, header: _Pairs, start: int, faults: Faults
) -> tuple[list[Raw], dict[str, str]]:
    """Return the tensors of a header, and the metadata."""
    last, data = dict(header), source.size - start
    if len(last) < len(header):
        _check_repeated(source, header)
    metadata = _metadata(source, last.pop("__metadata__", None))
    plain, tensors = Plain(source, start), []
    for name, value in last.items():
        if type(value) is Raw:
            value.name = name
            tensors.append(value)
            continue
        with faults.around():
            code, shape, begin, end = _fields(source, name, value)
            _check_size(source, name, code, shape, (begin, end), data)
            dtype = _NAMES.get(code, code)
            tensors.append(Raw(name, dtype, tuple(shape), source.path, plain, begin, end - begin))
    if not is_text("".join(last)):
        wrong = next(name for name in last if not is_text(name))
        should = "it should be Unicode text, without lone surrogates"
        raise source.wrong("name of a tensor", wrong, should)
    return tensors, metadata


def _check_repeated(source: SourceFile, header: _Pairs) -> None:
    """Raise if a value that a later one of the same name replaces is not an entry."""
    if sum(name == "__metadata__" for name, _ in header) > 1:
        raise source.wrong("key of the header", "__metadata__", "it should occur once")
    for name, value in header:
        if name != "__metadata__" and type(value) is not Raw:
            _fields(source, name, value)


def _metadata(source: SourceFile, value: object) -> dict[str, str]:
    if value is None:
        return {}
    right = type(value) is tuple and all(type(text) is str for _, text in value)
    if not right or not all(is_text(key) and is_text(text) for key, text in cast("Any", value)):
        should = "it should be an object of texts, or null"
        raise source.wrong("__metadata__", str(value), should)
    return dict(cast("Any", value))


def _fields(source: SourceFile, name: str, value: object) -> tuple[str, list[int], int, int]:
    """Return the fields of an entry, in any order, with additional keys, or as a list."""
    shown = repr(short(name))
    if type(value) is list and len(value) == 3:
        value = tuple(zip(_FIELDS, value, strict=True))
    if type(value) is not tuple:
        raise source.wrong(f"entry of {shown}", _json(value), "it should be an object")
    keys = [key for key, _ in value if key in _FIELDS]
    if sorted(keys) != sorted(_FIELDS):
        should = f"they should be {', '.join(_FIELDS)}, each once"
        raise source.wrong(f"keys of {shown}", ", ".join(key for key, _ in value), should)
    for key, more in value:
        if key not in _FIELDS:
            _check_more(source, f"key {short(key)!r} of {shown}", [key, more], _DEPTH + 1)
    fields: dict[str, Any] = dict(value)
    code, shape, offsets = (fields[key] for key in _FIELDS)
    if type(code) is tuple and len(code) == 1 and code[0][1] is None:
        code = code[0][0]  # {"F32": null}, a form of Rust's serde
    if type(code) is not str or len(code) > _WORD or not is_text(code):
        should = f"it should be a text of at most {_WORD} characters"
        raise source.wrong(f"dtype of {shown}", _json(code), should)
    if not _are_sizes(shape):
        should = "it should be a list of integers >= 0 and < 2**64"
        raise source.wrong(f"shape of {shown}", _json(shape), should)
    if not _are_sizes(offsets) or len(offsets) != 2:
        should = "they should be two integers >= 0 and < 2**64"
        raise source.wrong(f"data_offsets of {shown}", _json(offsets), should)
    return code, shape, offsets[0], offsets[1]


def _are_sizes(value: Any) -> bool:
    return type(value) is list and all(type(n) is int and 0 <= n < 2**64 for n in value)


def _json(value: object) -> str:
    """Return a value as text for a message."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _check_more(source: SourceFile, what: str, value: object, depth: int) -> None:
    """Raise if the format's own reader refuses the value of an additional key."""
    if isinstance(value, list | tuple | Raw):
        if depth < (2 if isinstance(value, Raw) else 1):
            raise source.wrong(what, "...", "it is nested too deeply")
        if isinstance(value, Raw):  # an object that looks like an entry
            return
        for part in value if isinstance(value, list) else chain.from_iterable(value):
            _check_more(source, what, part, depth - 1)
    elif isinstance(value, str):
        if not is_text(value):
            raise source.wrong(what, value, "it should be Unicode text")
    elif isinstance(value, int | float):
        try:
            right = math.isfinite(float(value))
        except OverflowError:
            right = False
        if not right:
            raise source.wrong(what, str(value), "it should be a finite number of float64")


def _check_size(
    source: SourceFile, name: str, code: str, shape: list[int], offsets: tuple[int, int], data: int
) -> None:
    """Raise if offsets lie outside the data, or their size differs from shape and dtype."""
    bits, size = _BITS.get(code), offsets[1] - offsets[0]
    if bits is not None:
        if any(count >= 2**64 for count in accumulate((*shape, bits), mul)):
            should = "it should have fewer than 2**64 bits"
            raise source.wrong(f"shape of {short(name)!r}", str(tuple(shape)), should)
        size, rest = divmod(prod(shape) * bits, 8)
        if rest:
            should = f"its entries, of {bits} bits, should fill whole bytes"
            raise source.wrong(f"shape of {short(name)!r}", str(tuple(shape)), should)
    if offsets[1] - offsets[0] != size or size < 0 or offsets[1] > data:
        apart = "in order" if bits is None else f"{size} bytes apart"
        should = f"they should be at most {data}, and {apart}"
        raise source.wrong(f"data_offsets of {short(name)!r}", offsets, should)
