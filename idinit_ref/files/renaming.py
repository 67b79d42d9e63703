"""Rules of a dialect: new names and axes of tensors, and names of list entries."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, cast

from ..core.options import choice, integer
from ..errors import OptionError, OptionTypeError, message
from .views import axes_of


def _text(label: str, value: object) -> str:
    if not isinstance(value, str):
        raise OptionTypeError(message(label, value, "it should be text", "write a string"))
    return value


@dataclass(frozen=True)
class Change:
    """A rule: tensors whose PyTorch name matches a pattern get another name, or other axes.

    All matching rules apply in order, each to the result of the one before. The new name is still a
    PyTorch name; the dialect translates its last part (``weight`` into ``kernel``). So renaming
    ``gpt.c_attn.weight`` to ``gpt.in_proj_weight`` makes it packed q, k, v. A last part that is not
    in the dialect (``vars/0``) stays.

    Parameters
    ----------
    pattern : str
        A regular expression, searched for in the name.
    name : str or None
        The replacement of every match, as in `re.sub`; by default the name stays. None drops the
        tensor.
    axes : str, optional
        The letters of the stored axes (``"IOHW"``: a transposed convolution), or their
        rearrangement (``"OI->IO"``, as in `rearrange`), which replaces that of the table. Tensors
        with another number of axes are left alone; a plan with other axes is an error.
    sizes : mapping of str to int
        The sizes of axes that are split, such as N, the number of heads of attention.
    layer : {"Embedding", "LSTMCell"}, optional
        The type of the layer, where the shape does not show it: a 2-D weight that is a table; an
        LSTM for Flax's LSTMCell, which has a layer for each gate.

    Raises
    ------
    OptionError, OptionTypeError
        If a parameter is not valid.

    Examples
    --------
    >>> import numpy as np
    >>> from idinit_ref.files import DIALECTS, translate
    >>> flax = DIALECTS["flax"].extended([Change("^net[.]", "backbone."), Change("^up[.]", None)])
    >>> list(translate({"net.a.bias": np.zeros(2), "up.b.bias": np.zeros(2)}, flax))
    ['backbone.a.bias']
    """

    pattern: str
    name: str | None = r"\g<0>"
    axes: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    layer: Literal["Embedding", "LSTMCell"] | None = None

    def __post_init__(self) -> None:
        try:
            compiled = re.compile(_text("pattern", self.pattern))
        except re.error as problem:
            should = f"it should be a regular expression ({problem})"
            raise OptionError(message("pattern", self.pattern, should, "correct it")) from None
        if self.name is not None:
            try:
                compiled.sub(_text("name", self.name), "")
            except (re.error, IndexError) as problem:
                should = f"it should fit the groups of {self.pattern!r} ({problem})"
                raise OptionError(message("name", self.name, should, "correct it")) from None
        if self.axes is not None and "->" in _text("axes", self.axes):
            axes_of(self.axes)
        elif self.axes is not None and not (
            re.fullmatch("[A-Z]+", self.axes)
            and {"O", "I"} <= set(self.axes)
            and len(set(self.axes)) == len(self.axes)
        ):
            should = "it should be the stored axes, with O and I, or a rearrangement of them"
            raise OptionError(message("axes", self.axes, should, "e.g. 'IOHW', or 'OI->IO'"))
        sizes: object = self.sizes
        if not isinstance(sizes, Mapping):
            should = "it should be a mapping of letters to sizes"
            raise OptionTypeError(message("sizes", self.sizes, should, 'e.g. {"N": 12}'))
        for letter, size in self.sizes.items():
            integer(f"sizes[{letter!r}]", size, low=1)
        if self.layer is not None:
            choice("layer", self.layer, ("Embedding", "LSTMCell"))


def ndim_of(rule: Change) -> int | None:
    """Return the number of axes of the tensors to which a rule's axes apply; None without axes.

    >>> ndim_of(Change("up[.]", axes="IOHW")), ndim_of(Change("fc[.]", axes="OI->IO"))
    (4, 2)
    """
    if rule.axes is None:
        return None
    return len(axes_of(rule.axes)[0] if "->" in rule.axes else rule.axes)


@dataclass(frozen=True)
class Items:
    """A rule: the names of a list's entries, in a framework that names them after their class.

    Keras calls the entries of a list ``my_block``, ``my_block_1``, ... after their class.

    Parameters
    ----------
    list : str
        A shell pattern of the list's name before its index, after all `Change` rules:
        ``"encoder.layer"``, ``"*.stages.*.layers"``.
    of : str
        The entries' class, ``"MyBlock"`` or ``"my_block"``.
    at : sequence of int, optional
        The indices of all entries of this class, if a list holds several classes.

    Raises
    ------
    OptionError, OptionTypeError
        If a parameter is not valid.

    Examples
    --------
    >>> import numpy as np
    >>> from idinit_ref.files import DIALECTS, translate
    >>> keras = DIALECTS["keras"].extended([Items("h", "MyBlock"), Items("f", "Dense", (0, 2))])
    >>> list(translate({"h.1.fc.bias": np.zeros(2), "f.2.bias": np.zeros(2)}, keras))
    ['h/my_block_1/fc/vars/0', 'f/dense_1/vars/0']
    """

    list: str
    of: str
    at: Sequence[int] | None = None

    def __post_init__(self) -> None:
        _text("list", self.list)
        if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", _text("class", self.of)):
            should = "it should be the name of a class"
            raise OptionError(message("class", self.of, should, "e.g. 'MyBlock'"))
        if self.at is None:
            return
        if not isinstance(cast("object", self.at), (list, tuple)):
            raise OptionTypeError(message("at", self.at, "it should be a list", "e.g. [0, 2]"))
        object.__setattr__(self, "at", tuple(integer("at", k, low=0) for k in self.at))


def entry_of(rule: Items, index: int) -> str | None:
    """Return the name of a list's entry; None if it has another class.

    It is the class's name in snake case; from the second entry of the class on, with a number.

    >>> rule = Items("f", "MyBlock", (0, 2))
    >>> entry_of(rule, 0), entry_of(rule, 1), entry_of(rule, 2)
    ('my_block', None, 'my_block_1')
    """
    if rule.at is not None and index not in rule.at:
        return None
    rank = index if rule.at is None else sorted(set(rule.at)).index(index)
    name = re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", rule.of))
    return name.lower() + (f"_{rank}" if rank else "")


def fits(rule: Items, name: str) -> bool:
    """Return whether a tensor's name contains an entry that the rule names.

    >>> rule = Items("f", "Dense", (0, 2))
    >>> fits(rule, "f.2.bias"), fits(rule, "f.1.bias"), fits(rule, "g.2.bias")
    (True, False, False)
    """
    parts = name.split(".")
    return any(
        part.isdecimal()
        and fnmatchcase(".".join(parts[:k]), rule.list)
        and entry_of(rule, int(part)) is not None
        for k, part in enumerate(parts)
    )


_CHANGE = ("pattern", "name", "axes", "sizes", "layer")
_ITEMS = ("list", "class", "at")


def rule_of(given: object) -> Change | Items:
    """Return a rule; a mapping is turned into one."""
    if isinstance(given, (Change, Items)):
        return given
    if not isinstance(given, Mapping) or not ({"pattern", "list"} & given.keys()):
        should = "it should have a pattern of names, or a list"
        cure = 'e.g. {"pattern": "^net[.]", "name": ""} or {"list": "layers", "class": "Block"}'
        raise OptionTypeError(message("rule", given, should, cure))
    known = _CHANGE if "pattern" in given else _ITEMS
    for key in given:
        choice("key of a rule", key, known)
    options = dict(given)
    if "pattern" in given:
        return Change(**options)
    return Items(options.pop("list"), options.pop("class", None), **options)
