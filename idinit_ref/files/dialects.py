"""Names and axes of other frameworks: the tables.

What PyTorch and Hugging Face call ``encoder.fc.weight``, with axes OI, is ``encoder.fc.kernel`` in
Flax and ``encoder/fc/vars/0`` in Keras, both with axes IO. A `Dialect` is the table that says so.

The framework cannot be seen from a name, so the layers of the model that is to load the file should
have the attribute names of the PyTorch one; where they have not, rules rename them (`Change`,
`Items`).
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
    """What one kind of tensor is in a dialect.

    Parameters
    ----------
    name : str
        Its name after the layer's: ``{}`` stands for each of `parts`, ``{rank}`` for its place
        among the layer's tensors.
    axes : str
        ``"*IO"``: the kernel's axes, then inputs, then outputs; or as in `rearrange`, from OI.
    parts : tuple of str
        The names of what it is cut into, along its outputs.
    order : tuple of int
        The order of its gates.
    join : {"", "sum", "sum but last", "stack"}
        What becomes of the two biases of a recurrent layer.
    within : str
        What stands before the layer's name (a Linen collection).

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
_ZRH = (1, 0, 2)  # of PyTorch's r, z, n
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
        What it is called.
    leaves : mapping of str to Leaf or None
        The table: what each kind of tensor is there, None for one that is not. Empty for PyTorch,
        which leaves everything as it is.
    separator : str
        What stands between the parts of a name.
    index : str or None
        What stands before the index of a list's entry; None where an `Items` rule has to name it.
    others : str
        A regular expression for the last part of names that are not in the table.
    rules : tuple of Change or Items
        What is renamed first.

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
            A mapping as in a file (see `load`).

        Returns
        -------
        Dialect
            A new one; this one stays as it is.

        Raises
        ------
        OptionError, OptionTypeError
            If a rule is none.

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
"""The dialects that are known: PyTorch as it is, Flax NNX, Keras 3, and Flax Linen.

Flax: paths of ``nnx.state``, joined by "."; ``nnx.restore_int_paths`` makes list indices of them
again. Linen: those of its variables. Keras: paths in a ``.weights.h5`` file, by attribute names;
there a list's entries need an `Items` rule, and a Sequential or Functional model has its layers in
the list ``layers``.

Recurrent layers become ``nnx.RNN(nnx.OptimizedLSTMCell)``, ``GRUCell``, ``SimpleCell`` (attribute
``cell``) or Keras ``LSTM``, ``GRU``, ``SimpleRNN``; PyTorch's cells become cells. Attention needs
the number of heads, by a rule: ``Change("attn", sizes={"N": 12})``. Transposed convolutions are
told by their plan's letters, or a rule: ``Change("up[.]weight", axes="IOHW")``; in Flax the kernel
is flipped, as ``transpose_kernel=False`` needs it, and with ``transpose_kernel=True`` it is stored
as ``axes="IOHW->HWOI"``. Keras ``DepthwiseConv2D`` of M outputs a channel:
``axes="(CM)1HW->HWCM", sizes={"M": 2}``; grouped convolutions need no rule.
"""


def load(name: str) -> Dialect:
    """Return a dialect by its name, or from a file that extends one.

    Parameters
    ----------
    name : str
        Of DIALECTS, or the path of a JSON file ``{"base": "keras", "rules": [...]}``. A rule is
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
        If there is no such dialect, or the file does not hold one.
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
        should = f"it could not be read ({problem.strerror or problem})"
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
