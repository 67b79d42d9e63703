"""Names and axes of other frameworks: the tables.

PyTorch's and Hugging Face's ``encoder.fc.weight``, with axes OI, is ``encoder.fc.kernel`` in Flax
and ``encoder/fc/vars/0`` in Keras, both with axes IO. A `Dialect` holds this table.

The layers of the model that loads the file should have the attribute names of the PyTorch model.
Where they differ, rules rename them (`Change`, `Items`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from ..errors import OptionError, OptionTypeError, message, prefixed
from .metadata import MalformedError, loads
from .renaming import Change, Items, rule_of


class Leaf(NamedTuple):
    """The form of one kind of tensor in a dialect.

    Parameters
    ----------
    name : str
        Its name after the layer's. ``{}`` stands for each of `parts`, ``{rank}`` for its position
        among the layer's tensors.
    axes : str
        ``"*IO"``: the kernel's axes, then inputs, then outputs; or as in `rearrange`, from OI.
    parts : tuple of str
        The names of the parts into which it is split along its outputs.
    order : tuple of int
        The order of its gates.
    join : {"", "sum", "sum but last", "stack"}
        How the two biases of a recurrent layer are joined.
    within : str
        The prefix of the layer's name (a Linen collection).

    Examples
    --------
    >>> DIALECTS["flax"].leaves["kernel"]
    Leaf(name='kernel', axes='*IO', parts=(), order=(), join='', within='')
    """

    name: str
    axes: str = ""
    parts: tuple[str, ...] = ()
    order: tuple[int, ...] = ()
    join: Literal["", "sum", "sum but last", "stack"] = ""
    within: str = ""


_QKV = ("query", "key", "value")
_FLAX: dict[str, Leaf | None] = {
    "kernel": Leaf("kernel", "*IO"),
    "transposed": Leaf("kernel", "~*IO"),
    "embedding": Leaf("embedding"),
    "scale": Leaf("scale"),
    "bias": Leaf("bias"),
    "mean": Leaf("mean"),
    "var": Leaf("var"),
    "count": None,
    "attention.in": Leaf("{}.kernel", "(ND)I->IND", _QKV),
    "attention.in_bias": Leaf("{}.bias", "(ND)->ND", _QKV),
    "attention.out": Leaf("out.kernel", "O(ND)->NDO"),
    "attention.out_bias": Leaf("out.bias"),
}
_NNX: dict[str, Leaf | None] = {
    **_FLAX,
    **dict.fromkeys(("lstm.input", "gru.input", "rnn.input"), Leaf("dense_i.kernel", "*IO")),
    **dict.fromkeys(
        ("lstm.recurrent", "gru.recurrent", "rnn.recurrent"), Leaf("dense_h.kernel", "*IO")
    ),
    "lstm.bias": Leaf("dense_h.bias", join="sum"),
    "gru.bias": Leaf("dense_i.bias", join="sum but last"),
    "rnn.bias": Leaf("dense_i.bias", join="sum"),
    "LSTMCell.input": Leaf("{}.kernel", "*IO", ("ii", "if_", "ig", "io")),
    "LSTMCell.recurrent": Leaf("{}.kernel", "*IO", ("hi", "hf", "hg", "ho")),
    "LSTMCell.bias": Leaf("{}.bias", "", ("hi", "hf", "hg", "ho"), join="sum"),
}
_ZRH = (1, 0, 2)  # Keras' order of PyTorch's r, z, n
_KERAS: dict[str, Leaf | None] = {
    "kernel": Leaf("vars/0", "*IO"),
    "transposed": Leaf("vars/0", "*OI"),
    **dict.fromkeys(("embedding", "scale", "bias", "mean", "var"), Leaf("vars/{rank}")),
    "count": None,
    "attention.in": Leaf("{}_dense/vars/0", "(ND)I->IND", _QKV),
    "attention.in_bias": Leaf("{}_dense/vars/1", "(ND)->ND", _QKV),
    "attention.out": Leaf("output_dense/vars/0", "O(ND)->NDO"),
    "attention.out_bias": Leaf("output_dense/vars/1"),
    **dict.fromkeys(("lstm.input", "rnn.input"), Leaf("vars/0", "*IO")),
    **dict.fromkeys(("lstm.recurrent", "rnn.recurrent"), Leaf("vars/1", "*IO")),
    **dict.fromkeys(("lstm.bias", "rnn.bias"), Leaf("vars/2", join="sum")),
    "gru.input": Leaf("vars/0", "*IO", order=_ZRH),
    "gru.recurrent": Leaf("vars/1", "*IO", order=_ZRH),
    "gru.bias": Leaf("vars/2", order=_ZRH, join="stack"),
}


@dataclass(frozen=True)
class Dialect:
    """How a framework names its tensors and orders their axes.

    Parameters
    ----------
    name : str
        The name of the dialect.
    leaves : mapping of str to Leaf or None
        The table: the form of each kind of tensor, None for a kind that the dialect lacks. Empty
        for PyTorch, which changes nothing.
    separator : str
        The separator of the parts of a name.
    index : str or None
        The separator before a list index; None if an `Items` rule has to name the entries.
    others : str
        A regular expression for the last part of names that are not in the table.
    rules : tuple of Change or Items
        Rules that are applied before the table.

    Examples
    --------
    >>> [(name, dialect.separator) for name, dialect in DIALECTS.items()]
    [('torch', '.'), ('flax', '.'), ('keras', '/'), ('linen', '.')]
    """

    name: str
    leaves: Mapping[str, Leaf | None] = field(default_factory=dict, repr=False)
    separator: str = "."
    index: str | None = "."
    others: str = ".*"
    rules: tuple[Change | Items, ...] = ()

    def extended(self, rules: Iterable[Change | Items | Mapping[str, Any]]) -> Dialect:
        """Return this dialect with more rules, before its own.

        Parameters
        ----------
        rules : iterable of Change, Items or mapping
            A mapping has the form of a rule in a file (see `load`).

        Returns
        -------
        Dialect
            A new dialect; this one does not change.

        Raises
        ------
        OptionError, OptionTypeError
            If a rule is not valid.

        Examples
        --------
        >>> DIALECTS["keras"].extended([{"list": "h", "class": "MyBlock"}]).rules
        (Items(list='h', of='MyBlock', at=None),)
        """
        if isinstance(rules, (str, Mapping)) or not isinstance(rules, Iterable):
            raise OptionTypeError(message("rules", rules, "it should be a list", "write [...]"))
        return replace(self, rules=(*map(rule_of, rules), *self.rules))


_flax = Dialect("flax", MappingProxyType(_NNX))
DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {
        "torch": Dialect("torch"),
        "flax": _flax,
        "keras": Dialect("keras", MappingProxyType(_KERAS), "/", None, r"(.*/)?vars/\d+"),
        "linen": Dialect(
            "linen",
            {
                kind: leaf
                and leaf._replace(within="batch_stats" if kind in ("mean", "var") else "params")
                for kind, leaf in _FLAX.items()
            },
            index="_",
        ),
    }
)
"""The known dialects: PyTorch, Flax NNX, Keras 3, and Flax Linen.

Flax: paths of ``nnx.state``, joined by "."; ``nnx.restore_int_paths`` restores list indices. Linen:
paths of its variables. Keras: paths in a ``.weights.h5`` file, by attribute names; the entries of a
list need an `Items` rule, and a Sequential or Functional model has its layers in the list
``layers``.

Recurrent layers become ``nnx.RNN(nnx.OptimizedLSTMCell)``, ``GRUCell``, ``SimpleCell`` (attribute
``cell``) or Keras ``LSTM``, ``GRU``, ``SimpleRNN``; PyTorch's cells become cells. Attention needs
the number of heads, by a rule: ``Change("attn", sizes={"N": 12})``. A transposed convolution is
known by the letters of its plan, or a rule: ``Change("up[.]weight", axes="IOHW")``. In Flax its
kernel is flipped for ``transpose_kernel=False``; for ``transpose_kernel=True`` use
``axes="IOHW->HWOI"``. Keras ``DepthwiseConv2D`` with M outputs per channel needs
``axes="(CM)1HW->HWCM", sizes={"M": 2}``; grouped convolutions need no rule.
"""


def load(name: str) -> Dialect:
    """Return a dialect by its name, or from a file that extends one.

    Parameters
    ----------
    name : str
        In DIALECTS, or the path of a JSON file ``{"base": "keras", "rules": [...]}``. A rule is
        ``{"pattern": ..., "name": ..., "axes": ..., "sizes": {...}, "layer": ...}`` (`Change`; only
        the pattern is needed, and ``"name": null`` drops the tensor) or
        ``{"list": ..., "class": ..., "at": [...]}`` (`Items`).

    Returns
    -------
    Dialect
        The names and axes that the file describes.

    Raises
    ------
    OptionError, OptionTypeError
        If the dialect is unknown, or the file does not hold one.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> load("keras").separator
    '/'
    """
    if name in DIALECTS:
        return DIALECTS[name]
    if not str(name).endswith(".json"):
        near = get_close_matches(str(name), DIALECTS, 1)
        cure = f"did you mean {near[0]}?" if near else "pick one, or write a file"
        should = f"it should be one of {', '.join(DIALECTS)}, or a .json file"
        raise OptionError(message("dialect", name, should, cure))
    form = 'write {"base": "keras", "rules": [...]}'
    try:
        content = loads(Path(name).read_bytes())
    except OSError as problem:
        should = f"it should be a readable file ({problem.strerror or problem})"
        raise type(problem)(
            problem.errno, message("dialect", name, should, "check the path")
        ) from problem
    except MalformedError as problem:
        raise OptionError(message("dialect", name, problem.should, form)) from None
    if not isinstance(content, dict) or content.keys() != {"base", "rules"}:
        raise OptionError(message("dialect", name, "it should hold a base and rules", form))
    if not isinstance(content["base"], str) or content["base"] not in DIALECTS:
        should = f"it should be one of {', '.join(DIALECTS)}"
        raise OptionError(message(f"base in {name}", content["base"], should, "pick one"))
    with prefixed(f"in {name}"):
        return DIALECTS[content["base"]].extended(content["rules"])
