"""Names of tensors, which may be written, and of files."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import OptionError, OptionTypeError, message

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def check_name(name: object) -> str:
    """Return the name of a tensor, or raise for one that is not to be written.

    Names are parts joined by "." or "/". One that could lead out of a folder or garble a terminal
    is refused: control characters, backslashes, and parts of a path that are "." or "..". Files of
    others hold any names, and are read.
    """

    def wrong(should: str) -> OptionError:
        return OptionError(message("name", name, should, "rename it"))

    if not isinstance(name, str) or name == "__metadata__":
        raise wrong("it should be a string other than '__metadata__'")
    if not is_text(name):
        raise wrong("it should be text that UTF-8 holds, without lone surrogates")
    if _CONTROL.search(name):
        raise wrong("it should hold no control character")
    if "\\" in name or {".", ".."} & set(name.split("/")):
        raise wrong("it should hold no backslash, and no part between slashes be . or ..")
    return name


def is_text(text: str) -> bool:
    """Whether UTF-8 holds a text: it has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def path_of(path: object) -> Path:
    """Return a path, or raise for what is none."""
    if not isinstance(path, (str, os.PathLike)):
        should = "it should be a path as str or os.PathLike"
        raise OptionTypeError(message("path", path, should, "write 'model.safetensors'"))
    return Path(path)
