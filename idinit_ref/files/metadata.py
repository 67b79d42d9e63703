"""JSON of unknown origin: Python's own parser under a cap; every fault is one `MalformedError`.

The result is not validated: the caller checks every value that it uses.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

CAP = 100_000_000
"""The most bytes of a safetensors header, as its own reader has it; also of an index."""

TABLES = ("idinit_ref.plans", "idinit_ref.sha256")
"""JSON by tensor name in the metadata of a checkpoint; of shards each has its own."""

OWN = ("idinit_ref.plan", "idinit_ref.sha256")
"""The same, where each tensor has its own."""

_SMALL = 2**21  # characters whose values take little memory, whatever they are
_DENSE = 24  # bytes of memory for each character, at most, by the estimate below
_MINUS_ZERO = re.compile(r"-0(?![.\w])")


class MalformedError(ValueError):
    """What is wrong with a JSON text: the place, what is there, and what was expected."""

    def __init__(self, what: str, got: object, should: str) -> None:
        super().__init__(f"{what} is {got!r}, but {should}")
        self.what, self.got, self.should = what, got, should


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON as a dict; raise if a key is there twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise MalformedError("key of the JSON", twice, f"the key {twice!r} should be there once")
    return values


def loads(
    content: bytes | bytearray | str,
    *,
    cap: int = CAP,
    objects: Callable[[list[tuple[str, Any]]], Any] = unique,
) -> Any:
    """Return what a JSON text in UTF-8 holds; MalformedError if it is none, or larger than `cap`.

    Nor may it be nested too deeply, or so dense that its values take far more memory than it.
    `objects` makes an object from its pairs; ``tuple`` keeps them all, in order.

    >>> loads(b'{"a": [1, 2]}'), loads('{"a": 1, "a": 2}', objects=tuple)
    ({'a': [1, 2]}, (('a', 1), ('a', 2)))
    """
    if len(content) > cap:
        raise MalformedError("size", len(content), f"it should have at most {cap:,} bytes")
    text = content.removeprefix("\ufeff") if isinstance(content, str) else _decoded(content)
    del content
    if len(text) > _SMALL:
        _check_dense(text)
    whole = _integer if "-0" in text and _MINUS_ZERO.search(text) else None
    try:
        return json.loads(
            text, object_pairs_hook=objects, parse_constant=_no_number, parse_int=whole
        )
    except json.JSONDecodeError as problem:
        got, should = text[problem.pos : problem.pos + 60], f"it should be JSON ({problem.msg})"
        raise MalformedError(f"JSON at character {problem.pos}", got, should) from None
    except RecursionError:
        raise MalformedError("JSON", text[:60], "it is JSON that is nested too deeply") from None
    except MalformedError:
        raise
    except ValueError:  # Python's own limit
        longest = max(map(len, re.findall(r"\d{1000,}", text)), default=0)
        should = f"it should hold no integer of {longest:,} digits"
        raise MalformedError("JSON", f"{longest:,} digits", should) from None


def _decoded(content: bytes | bytearray) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        should = f"it should be JSON: from its byte {problem.start} on it should be UTF-8"
        raise MalformedError("text", problem.reason, should) from None


def _check_dense(text: str) -> None:
    """Raise if the values would take far more memory than the text: lists of empty lists, say."""
    values = sum(map(text.count, "[{,"))
    if 64 * values + 150 * text.count(":") > _DENSE * len(text):
        should = "its values would take far more memory than the text"
        raise MalformedError("JSON", text[:60], should)


def _no_number(text: str) -> NoReturn:
    raise MalformedError("JSON", text, f"JSON has no {text}")


def _integer(number: str) -> float:
    """Return an integer; -0 is none, as most readers have it."""
    return -0.0 if number == "-0" else int(number)


def table(text: object) -> dict[str, Any]:
    """Return an object of JSON that a file's metadata may hold; an empty one if it is none.

    A value that JSON does not hold is left out.

    >>> table('{"fc.weight": {"role": "zero"}}'), table("hello"), table(None)
    ({'fc.weight': {'role': 'zero'}}, {}, {})
    """
    if not isinstance(text, str):
        return {}
    try:
        values = loads(text, objects=dict)
    except MalformedError:
        return {}
    if not isinstance(values, dict):
        return {}
    return {key: value for key, value in values.items() if _is_json(value)}


def _is_json(value: object) -> bool:
    if isinstance(value, str | int | None):
        return True
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):  # 1e999, or too deep to be written
        return False
    return True


def tables(told: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return as TABLES what each tensor tells of itself in OWN.

    >>> tables({"a": {"idinit_ref.sha256": "0f"}, "b": {}})
    {'idinit_ref.sha256': '{"a": "0f"}'}
    """
    held = {
        key: {name: about[own] for name, about in told.items() if own in about}
        for key, own in zip(TABLES, OWN, strict=True)
    }
    return {key: json.dumps(values, allow_nan=False) for key, values in held.items() if values}
