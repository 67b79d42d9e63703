"""Validation of names of tensors and of paths."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import OptionError, OptionTypeError, message

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def check_name(name: object) -> str:
    """Return a tensor's name; raise if it must not be written.

    Names are parts joined by "." or "/". Names that could leave a folder or garble a terminal are
    refused: control characters, backslashes, and parts "." or ".." of a path. Reading accepts any
    name.
    """

    def wrong(should: str) -> OptionError:
        return OptionError(message("name", name, should, "rename it"))

    if not isinstance(name, str) or name == "__metadata__":
        raise wrong("it should be a string other than '__metadata__'")
    if not is_text(name):
        raise wrong("it should be valid UTF-8, without lone surrogates")
    if _CONTROL.search(name):
        raise wrong("it should hold no control character")
    if "\\" in name or {".", ".."} & set(name.split("/")):
        raise wrong("it should hold no backslash, and no part between slashes should be . or ..")
    return name


def is_text(text: str) -> bool:
    """Whether UTF-8 can encode a text: it has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def path_of(path: object) -> Path:
    """Return a path; raise for any other type."""
    if not isinstance(path, (str, os.PathLike)):
        should = "it should be a path as str or os.PathLike"
        raise OptionTypeError(message("path", path, should, "write 'model.safetensors'"))
    return Path(path)
