"""Untrusted JSON: Python's own parser under a size cap. Every fault raises a `MalformedError`.

The values are not validated: the caller checks those that it uses.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

CAP = 100_000_000
"""The most bytes of a header, in the safetensors reader; also used for an index."""

TABLES = ("idinit_ref.plans", "idinit_ref.sha256")
"""Keys of JSON tables by tensor name in the metadata of a file or a shard."""

OWN = ("idinit_ref.plan", "idinit_ref.sha256")
"""The keys in formats with metadata for each tensor."""

_SMALL = 2**21  # characters: the values of a shorter text take little memory
_DENSE = 24  # the most bytes of memory for each character, by the estimate below
_MINUS_ZERO = re.compile(r"-0(?![.\w])")


class MalformedError(ValueError):
    """A fault of a JSON text: the place, the value, and the expectation."""

    def __init__(self, what: str, got: object, should: str) -> None:
        super().__init__(f"{what} is {got!r}, but {should}")
        self.what, self.got, self.should = what, got, should


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict; raise if a key repeats."""
    values = dict(pairs)
    if len(values) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise MalformedError("key of the JSON", twice, f"the key {twice!r} should occur once")
    return values


def loads(
    content: bytes | bytearray | str,
    *,
    cap: int = CAP,
    objects: Callable[[list[tuple[str, Any]]], Any] = unique,
) -> Any:
    """Parse a JSON text in UTF-8.

    Raises a MalformedError if it is not JSON, is larger than `cap`, is nested too deeply, or if its
    values would take far more memory than the text. `objects` builds an object from its pairs;
    ``tuple`` keeps all pairs in order.

    >>> loads(b'{"a": [1, 2]}'), loads('{"a": 1, "a": 2}', objects=tuple)
    ({'a': [1, 2]}, (('a', 1), ('a', 2)))
    """
    if len(content) > cap:
        raise MalformedError("size", len(content), f"it should have at most {cap:,} bytes")
    text = content.removeprefix("\ufeff") if isinstance(content, str) else _decode(content)
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
        raise MalformedError("JSON", text[:60], "its JSON is nested too deeply") from None
    except MalformedError:
        raise
    except ValueError:  # Python's limit of digits
        longest = max(map(len, re.findall(r"\d{1000,}", text)), default=0)
        should = f"it should hold no integer of {longest:,} digits"
        raise MalformedError("JSON", f"{longest:,} digits", should) from None


def _decode(content: bytes | bytearray) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        should = f"it should be JSON in UTF-8, also from byte {problem.start} on"
        raise MalformedError("text", problem.reason, should) from None


def _check_dense(text: str) -> None:
    """Raise if the values would take far more memory than the text: e.g. lists of empty lists."""
    values = sum(map(text.count, "[{,"))
    if 64 * values + 150 * text.count(":") > _DENSE * len(text):
        should = "its values would take far more memory than the text"
        raise MalformedError("JSON", text[:60], should)


def _no_number(text: str) -> NoReturn:
    raise MalformedError("JSON", text, f"JSON has no {text}")


def _integer(number: str) -> float:
    """Return an integer, or -0.0 for -0, as most parsers do."""
    return -0.0 if number == "-0" else int(number)


def table(text: object) -> dict[str, Any]:
    """Return the JSON object in a metadata value, or an empty one if it holds none.

    Values that JSON cannot represent are dropped.

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


def tables(by_tensor: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the metadata TABLES, from each tensor's own metadata under the keys OWN.

    >>> tables({"a": {"idinit_ref.sha256": "0f"}, "b": {}})
    {'idinit_ref.sha256': '{"a": "0f"}'}
    """
    columns = {
        key: {name: about[own] for name, about in by_tensor.items() if own in about}
        for key, own in zip(TABLES, OWN, strict=True)
    }
    return {key: json.dumps(values, allow_nan=False) for key, values in columns.items() if values}
