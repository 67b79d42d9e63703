"""Names and axes of other frameworks: a PyTorch checkpoint said in Flax's or Keras's words.

What PyTorch and Hugging Face call ``encoder.fc.weight``, with axes OI, is ``encoder.fc.kernel`` in
Flax and ``encoder/fc/vars/0`` in Keras, both with axes IO. A `Dialect` is the table that says so.
Nothing is made here: a plan becomes a plan of other axes, any other tensor a `View` of itself.

The framework cannot be seen from a name, so the layers of the model that is to load the file should
have the attribute names of the PyTorch one; where they have not, rules rename them (`Change`,
`Items`). A tensor of two or more axes whose layer is not known is an error, never a guess. It is
known by a plan, or by what the file that it is from says of its plan; by a rule of the dialect; as
one of the caller's tables; by its name, where `idinit_ref.roles.names.RULES` know it; or by its
bias:

* A matrix with a bias of its first axis is dense, OI, as `torch.nn` has no other layer of that
  form. (Where it is square, that alone speaks against axes IO, as those of transformers' Conv1D.)
* A kernel of 4 or 5 axes with such a bias is a convolution, unless its second axis divides its
  first: then a transposed one of several groups (one group, if it is square) has that form, too.
* Nothing else is: a matrix without a bias may be an embedding, a kernel without one transposed;
  with three axes, a bilinear layer or a stack of matrices. A rule says it, if need be for the
  whole model: ``Change("conv", axes="OIHW")``, ``Change("proj|fc", axes="OI")``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, cast

from numpy.typing import NDArray

from ..core.layout import DEFAULT_LAYOUTS, SPATIAL
from ..core.options import choice, integer
from ..core.plan import Plan
from ..errors import IDInitError, LayoutError, OptionError, OptionTypeError, ShapeError, message
from ..roles.names import decide, find
from .metadata import MalformedError, loads, table
from .storage import Made, Noise, Tensor, as_tensor, check_name
from .views import Stack, Sum, axes_of, rearrange, take

__all__ = [
    "DIALECTS",
    "Change",
    "Dialect",
    "Items",
    "Leaf",
    "load",
    "translate",
]


# The table ----------------------------------------------------------------------------------------


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


def _text(label: str, value: object) -> str:
    if not isinstance(value, str):
        raise OptionTypeError(message(label, value, "it should be text", "write a string"))
    return value


@dataclass(frozen=True)
class Change:
    """A rule: the tensors whose PyTorch name has a pattern get another name, or other axes.

    All rules that fit a name apply, in their order, each to what the one before made of it. The
    new name is still a PyTorch one, whose last part the dialect turns into its own (``weight``
    into ``kernel``): rename ``gpt.c_attn.weight`` to ``gpt.in_proj_weight``, and it is packed q,
    k, v. A last part that the dialect does not know (``vars/0``) stays.

    Parameters
    ----------
    pattern : str
        A regular expression, searched for in the name.
    name : str or None
        What every match is replaced by, as in `re.sub`; left out, the name stays. None drops the
        tensor.
    axes : str, optional
        What the stored axes are (``"IOHW"``: a transposed convolution), or what becomes of them
        (``"OI->IO"``, as in `rearrange`), whatever the table says. Tensors of another number of
        axes it does not concern; where a plan says otherwise, it is an error.
    sizes : mapping of str to int
        For axes that are split; of an attention layer N, the number of heads.
    layer : {"Embedding", "LSTMCell"}, optional
        What else the shape cannot say: a 2-D weight that is a table; an LSTM that is to be Flax's
        LSTMCell, which has a layer for each gate.

    Raises
    ------
    OptionError, OptionTypeError
        If anything does not fit.

    Examples
    --------
    >>> import numpy as np
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
            should = "it should be the stored axes, O and I among them, or what becomes of them"
            raise OptionError(message("axes", self.axes, should, "e.g. 'IOHW', or 'OI->IO'"))
        sizes: object = self.sizes
        if not isinstance(sizes, Mapping):
            should = "it should be a mapping of letters to sizes"
            raise OptionTypeError(message("sizes", self.sizes, should, 'e.g. {"N": 12}'))
        for letter, size in self.sizes.items():
            integer(f"sizes[{letter!r}]", size, low=1)
        if self.layer is not None:
            choice("layer", self.layer, ("Embedding", "LSTMCell"))

    @property
    def ndim(self) -> int | None:
        """How many axes a tensor has that its axes are of; None where it says none.

        Examples
        --------
        >>> Change("up[.]", axes="IOHW").ndim, Change("fc[.]", axes="OI->IO").ndim
        (4, 2)
        """
        if self.axes is None:
            return None
        return len(axes_of(self.axes)[0] if "->" in self.axes else self.axes)


@dataclass(frozen=True)
class Items:
    """A rule: what the entries of a list are called, where a framework names them by their class.

    Keras calls the entries of a list ``my_block``, ``my_block_1``, ... after their class.

    Parameters
    ----------
    list : str
        The list's name before its index, after all `Change` rules, as the shell has patterns:
        ``"encoder.layer"``, ``"*.stages.*.layers"``.
    of : str
        The entries' class, ``"MyBlock"`` or ``"my_block"``.
    at : sequence of int, optional
        The indices of all entries of that class, where a list holds several.

    Raises
    ------
    OptionError, OptionTypeError
        If anything does not fit.

    Examples
    --------
    >>> import numpy as np
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

    def entry(self, index: int) -> str | None:
        """Return the name of an entry, or None if it is of another class.

        Parameters
        ----------
        index : int
            Its place in the list.

        Returns
        -------
        str or None
            The class's name in snake case, with its rank in the class from the second one on.

        Examples
        --------
        >>> rule = Items("f", "MyBlock", (0, 2))
        >>> rule.entry(0), rule.entry(1), rule.entry(2)
        ('my_block', None, 'my_block_1')
        """
        if self.at is not None and index not in self.at:
            return None
        rank = index if self.at is None else sorted(set(self.at)).index(index)
        name = re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", self.of))
        return name.lower() + (f"_{rank}" if rank else "")

    def fits(self, name: str) -> bool:
        """Return whether it names an entry of a list that is in a tensor's name.

        Parameters
        ----------
        name : str
            The tensor's name, as PyTorch writes it.

        Returns
        -------
        bool
            True if a list that fits the pattern stands in it before the index of such an entry.

        Examples
        --------
        >>> rule = Items("f", "Dense", (0, 2))
        >>> rule.fits("f.2.bias"), rule.fits("f.1.bias"), rule.fits("g.2.bias")
        (True, False, False)
        """
        parts = name.split(".")
        return any(
            part.isdecimal()
            and fnmatchcase(".".join(parts[:k]), self.list)
            and self.entry(int(part)) is not None
            for k, part in enumerate(parts)
        )


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
        return replace(self, rules=(*map(_rule, rules), *self.rules))


_CHANGE = ("pattern", "name", "axes", "sizes", "layer")
_ITEMS = ("list", "class", "at")


def _rule(given: object) -> Change | Items:
    if isinstance(given, (Change, Items)):
        return given
    if not isinstance(given, Mapping) or not ({"pattern", "list"} & given.keys()):
        raise OptionTypeError(
            message(
                "rule",
                given,
                "it should have a pattern of names, or a list",
                'e.g. {"pattern": "^net[.]", "name": ""} or {"list": "layers", "class": "Block"}',
            )
        )
    known = _CHANGE if "pattern" in given else _ITEMS
    for key in given:
        choice("key of a rule", key, known)
    options = dict(given)
    if "pattern" in given:
        return Change(**options)
    return Items(options.pop("list"), options.pop("class", None), **options)


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
        found = loads(Path(name).read_bytes())
    except OSError as problem:
        should = f"it could not be read ({problem.strerror or problem})"
        raise type(problem)(
            problem.errno, message("dialect", name, should, "check the path")
        ) from problem
    except MalformedError as problem:
        raise OptionError(message("dialect", name, problem.should, form)) from None
    if not isinstance(found, dict) or found.keys() != {"base", "rules"}:
        raise OptionError(message("dialect", name, "it should hold a base and rules", form))
    if not isinstance(found["base"], str) or found["base"] not in DIALECTS:
        raise OptionError(
            message(
                f"base in {name}",
                found["base"],
                f"it should be one of {', '.join(DIALECTS)}",
                "pick one",
            )
        )
    try:
        return DIALECTS[found["base"]].extended(found["rules"])
    except (OptionError, OptionTypeError) as problem:
        raise type(problem)(f"in {name}: {problem}") from problem


# Translating --------------------------------------------------------------------------------------

_GATED = re.compile(r"(weight|bias)_(ih|hh)(?:_l(\d+)(_reverse)?)?")
_GATES = {"lstm": 4, "gru": 3, "rnn": 1}
_GATE_PARTS = {"weight_ih": "input", "weight_hh": "recurrent", "bias_ih": "bias", "bias_hh": "bias"}
_TABLE = re.compile(  # names of embedding tables
    r"(^|\.)(wte|wpe|shared|relative_attention_bias|embed_(tokens|positions)"
    r"|\w*(emb|embed|embeds|embedding|embeddings))\.weight$"
)
_AS_IT_IS = re.compile(r"(^|\.)((cls|mask|distillation)_token|position_embeddings)$")
_NORM = re.compile(r"(?i)(^|\.)(ln(_\w+)?|\w*norm\w*)\.weight$")
_LAYER = {"weight": "weight", "bias": "bias", "running_mean": "mean", "running_var": "var"}


@dataclass(frozen=True)
class _Item:
    """A tensor: its own name, and what the rules made of it."""

    own: str
    name: str
    value: Plan | Tensor
    said: Plan | None = None  # itself, or as the metadata has it
    table: bool = False
    doubted: bool = False  # that its axes are as the rules by name have them
    axes: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)
    layer: str | None = None

    @property
    def ndim(self) -> int:
        return len(self.value.shape)

    @property
    def moved(self) -> str:
        """What a rule says that becomes of its axes."""
        return self.axes if "->" in self.axes else ""

    @property
    def path(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]

    def sibling(self, leaf: str) -> str:
        """Return the name of another tensor of its layer."""
        return f"{self.path}.{leaf}" if self.path else leaf


def translate(
    tensors: Mapping[str, Plan | NDArray[Any] | Tensor | None],
    dialect: str | Dialect,
    *,
    tables: Collection[str] = (),
    metadata: Mapping[str, str] | None = None,
) -> dict[str, Plan | Tensor]:
    """Say a PyTorch checkpoint in the words of another framework.

    Parameters
    ----------
    tensors : mapping of str to Plan, numpy.ndarray, Tensor or None
        By PyTorch or Hugging Face names. None is one that the model has, but that is left out.
    dialect : str or Dialect
        As in `load`.
    tables : collection of str, optional
        Names of embedding tables, where that is known otherwise (as a traced report knows it).
    metadata : mapping of str to str, optional
        Of the file that the tensors are from (``open_checkpoint(...).metadata``): what its
        ``idinit_ref.plans`` says of a tensor, a plan of its shape, is believed.

    Returns
    -------
    dict
        By the dialect's names, in the same order. A plan whose axes are permuted is a plan.

    Raises
    ------
    OptionError, OptionTypeError, LayoutError, ShapeError, OSError
        If a tensor's kind is not known, two get one name, a Keras layer lacks its first tensors,
        a rule fits nothing or contradicts a plan, or as in `load`.

    Examples
    --------
    >>> import numpy as np
    >>> import idinit_ref as ir
    >>> model = {"fc.weight": ir.plan((6, 4)), "fc.bias": np.zeros(6, "float32")}
    >>> made = translate(model, "keras")
    >>> list(made), made["fc/vars/0"].layout, made["fc/vars/0"].shape
    (['fc/vars/0', 'fc/vars/1'], 'IO', (4, 6))
    """
    if not isinstance(dialect, Dialect):
        dialect = load(dialect)
    claims = table((metadata or {}).get("idinit_ref.plans"))
    items: dict[str, _Item] = {}
    whole: set[str] = set()  # all names, of what is left out, too
    used: set[int] = set()
    for own, given in tensors.items():
        check_name(own)
        value = given if given is None or isinstance(given, Plan) else as_tensor(own, given)
        item = _Item(own, own, Made(Plan((0, 0))) if value is None else value)
        if value is not None:
            item = replace(item, said=_said(value, claims.get(own)), table=own in tables)
        renamed = _renamed(item, dialect, used, value is None)
        if renamed is None:
            continue
        if renamed.name in items:
            raise _twice(renamed.name, [items[renamed.name].own, own])
        whole.add(renamed.name)
        if value is not None:
            items[renamed.name] = _agreed(renamed)
    _check_rules(dialect, used, whole, tensors)
    items = _consistent(items, tensors.keys())
    found: dict[str, list[tuple[str, Plan | Tensor, str]]] = {}
    for item in items.values():
        for name, part, join in _translated(item, items, whole, tensors.keys(), dialect):
            sources = found.setdefault(check_name(name), [])
            # The bias of the input comes first, whatever the order of the file.
            first = join and "_ih" in item.leaf
            sources.insert(0 if first else len(sources), (item.own, part, join))
    made = {name: _joined(name, sources) for name, sources in found.items()}
    if dialect.separator == "/":
        _check_numbers({name: [own for own, _, _ in each] for name, each in found.items()})
    return made


def _said(value: Plan | Tensor, claim: object) -> Plan | None:
    """Return the plan that says what the axes are."""
    if isinstance(value, Plan):
        return value
    if not isinstance(claim, dict):
        return None
    options: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in claim.items()
    }
    try:
        return Plan(value.shape, **options)
    except (IDInitError, TypeError):  # of another shape, or no plan's options
        return None


def _renamed(item: _Item, dialect: Dialect, used: set[int], left_out: bool) -> _Item | None:
    """Return a tensor with all that the rules say of it, or None if one drops it."""
    for k, rule in enumerate(dialect.rules):
        if isinstance(rule, Items) or not re.search(rule.pattern, item.name):
            continue
        if rule.name is None:
            used.add(k)
            return None
        concerned = rule.ndim in (None, item.ndim) or left_out
        if concerned:
            used.add(k)
        item = replace(
            item,
            name=check_name(re.sub(rule.pattern, rule.name, item.name)),
            axes=(concerned and rule.axes) or item.axes,
            sizes={**item.sizes, **rule.sizes},
            layer=rule.layer or item.layer,
        )
    return item


def _agreed(item: _Item) -> _Item:
    """Return a tensor, unless a rule says other axes than what is known of it."""
    before = item.axes.partition("->")[0]
    layout = item.said.layout if item.said else ""
    if layout and item.moved and not re.fullmatch("[A-Z]+", before):
        return item  # axes that are split or dropped
    if item.table and not item.said and not item.moved and item.layer != "Embedding":
        layout = "IO"
    if item.axes and layout and before != layout:
        what = "its plan says" if item.said else "it is an embedding table:"
        should = f"{what} {layout} of {item.own}, shape {item.value.shape}"
        raise LayoutError(message("axes", item.axes, should, "correct the rule, or its pattern"))
    return item


def _consistent(items: Mapping[str, _Item], names: Collection[str]) -> dict[str, _Item]:
    """Doubt the rules by name for all weights stored as IO, if it is said that one is not so."""

    def by_name(item: _Item) -> bool:
        rule = None if item.ndim != 2 else find(item.own, names=names)
        return rule is not None and rule.options.get("layout") == "IO"

    if not any(item.axes.startswith("OI") and by_name(item) for item in items.values()):
        return dict(items)
    return {
        name: replace(item, doubted=item.said is None and not item.axes and by_name(item))
        for name, item in items.items()
    }


def _check_rules(
    dialect: Dialect, used: Collection[int], whole: Collection[str], names: Collection[str]
) -> None:
    """Raise if a rule fits nothing."""
    for k, rule in enumerate(dialect.rules):
        if isinstance(rule, Items):
            if dialect.leaves and any(map(rule.fits, whole)):
                continue
            label, got, kind = "list", rule.list, "a list's entry"
            should = f"it fits no entry of a list that {dialect.name} names"
        elif k in used:
            continue
        else:
            label, got, kind = "pattern", rule.pattern, "a tensor"
            of = f" of {rule.ndim} axes ({rule.axes})" if rule.axes else ""
            should = f"it fits no tensor{of}"
        near = ", ".join(get_close_matches(got, names, 3, 0.0)) or "none"
        cure = f"name {kind}, or leave the rule out"
        raise OptionError(message(label, got, f"{should}; the nearest names are {near}", cure))


def _check_numbers(found: Mapping[str, list[str]]) -> None:
    """Raise if a Keras layer would have a tensor, but not the ones before it."""
    layers: dict[str, dict[int, list[str]]] = {}
    for name, own in found.items():
        if match := re.fullmatch(r"(?:(.*)/)?vars/(\d+)", name):
            layers.setdefault(match[1] or "", {})[int(match[2])] = own
    for layer, numbers in layers.items():
        last = max(numbers)
        if missing := [str(k) for k in range(last) if k not in numbers]:
            should = (
                f"before vars/{last} ({', '.join(numbers[last])}) it should have "
                f"vars/{', vars/'.join(missing)}"
            )
            cure = "copy or fill what is missing, or leave out the whole layer"
            raise OptionError(message("layer", layer, should, cure))


def _translated(
    item: _Item,
    items: Mapping[str, _Item],
    whole: Collection[str],
    names: Collection[str],
    dialect: Dialect,
) -> list[tuple[str, Plan | Tensor, str]]:
    """Return what becomes of one tensor: names, tensors, and how they join others of the name."""
    value = item.value
    if not dialect.leaves:
        moved = rearrange(value, item.moved, item.sizes) if item.moved else value
        return [(item.name, moved, "")]
    kind, path = _kind(item, items, whole, names, dialect)
    letters = _letters(item, kind, items, names) if item.ndim > 1 else ""
    if kind == "kernel" and not item.moved:
        kind = _checked(item, items, letters) if letters else "other"
    own = Leaf(item.leaf) if re.fullmatch(dialect.others, item.leaf) else Leaf("")
    leaf = own if kind == "other" else dialect.leaves.get(kind, Leaf(""))
    if leaf is None:
        return []
    stays = item.moved or leaf.axes or kind == "embedding" or _AS_IT_IS.search(item.own)
    if not leaf.name or (item.ndim > 1 and not stays):
        raise _unknown(item, items, dialect)
    count = len(leaf.parts or leaf.order) or 1
    axis = max(letters.find("O"), 0)
    size, rest = divmod(value.shape[axis], count) if value.shape else (0, 0)
    if rest:
        should = f"{item.own} should hold {count} equal parts along axis {axis}"
        raise ShapeError(message("shape", value.shape, should, "add a rule for it"))
    spans = [(k * size, (k + 1) * size) for k in range(count)]
    made: list[tuple[str, Plan | Tensor, str]] = []
    for k, part in enumerate(leaf.parts or ("",)):
        cut = [spans[gate] for gate in ((k,) if leaf.parts else leaf.order)]
        piece = take(value, axis, cut, part) if cut else value
        end = leaf.name
        if kind != "other":
            present = (item.sibling(other) in whole for other in _before(item.leaf))
            end = end.format(part, rank=sum(present))
        words = [leaf.within, *_path(item, path, dialect), end]
        name = dialect.separator.join(word for word in words if word)
        made.append((name, _placed(piece, item, letters, leaf, dialect), leaf.join))
    return made


def _before(leaf: str) -> tuple[str, ...]:
    """Return what Keras stores before a tensor of a layer."""
    order = tuple(_LAYER)
    return order[: order.index(leaf)] if leaf in order else ()


def _kind(
    item: _Item,
    items: Mapping[str, _Item],
    whole: Collection[str],
    names: Collection[str],
    dialect: Dialect,
) -> tuple[str, str]:
    """Return which row of the table a tensor has, and its layer's path."""
    path, leaf = item.path, item.leaf
    if leaf == "num_batches_tracked":
        return "count", path
    if match := _GATED.fullmatch(leaf):
        if match[3] not in (None, "0") or match[4]:
            end = leaf[match.end(2) :]
            start, new = ("[.]", "_other.") if path else ("^", "other.")
            rule = {"pattern": f"{start}([a-z_]+){end}$", "name": rf"{new}\1_l0"}
            raise OptionError(
                message(
                    "name",
                    item.own,
                    f"a recurrent layer of {dialect.name} has one layer and one direction",
                    f"rename each to a layer of its own, e.g. {rule}",
                )
            )
        recurrent = items.get(item.sibling(leaf.replace("_ih", "_hh").replace("bias", "weight")))
        shape = sorted(recurrent.value.shape) if recurrent else []  # hidden, gates * hidden
        fits = [k for k, n in _GATES.items() if len(shape) == 2 and shape[1] == n * shape[0]]
        kind = fits[0] if fits else "gated"
        if kind == "lstm" and item.layer == "LSTMCell":
            kind = "LSTMCell"
        cell = f"{path}.cell".lstrip(".") if match[3] else path
        return f"{kind}.{_GATE_PARTS[f'{match[1]}_{match[2]}']}", cell
    if leaf in ("in_proj_weight", "in_proj_bias"):
        return "attention.in" + "_bias" * leaf.endswith("bias"), path
    above, _, last = path.rpartition(".")
    inner = ("in_proj_weight", "in_proj_bias", "q_proj_weight")
    beside = {f"{above}.{each}".lstrip(".") for each in inner}
    packed = any(each in whole or each in names for each in beside)
    if last == "out_proj" and packed and leaf in ("weight", "bias"):
        return "attention.out" + "_bias" * (leaf == "bias"), above
    if leaf != "weight":
        return _LAYER.get(leaf, "other"), path
    if item.ndim < 2 or (_NORM.search(item.own) and item.said is None and not item.axes):
        return "scale", path
    return "embedding" if item.ndim == 2 and _is_table(item, whole, names) else "kernel", path


def _is_table(item: _Item, whole: Collection[str], names: Collection[str]) -> bool:
    """Whether a 2-D weight is known to be an embedding table."""
    if item.layer == "Embedding":
        return True
    if item.axes or item.sibling("bias") in whole:
        return False
    if item.table:
        return True
    if item.said is not None:
        return item.said.layout == "IO" and bool(_TABLE.search(item.own))
    rule = find(item.own, names=names)
    return rule is not None and rule.role == "keep" and "embedding" in rule.why


def _letters(item: _Item, kind: str, items: Mapping[str, _Item], names: Collection[str]) -> str:
    """Return what the stored axes are: by a plan, a rule, the name, or the layer's bias."""
    if item.said is not None:
        return item.said.layout
    if item.axes:
        return "" if item.moved else item.axes
    shape, default = item.value.shape, DEFAULT_LAYOUTS.get(item.ndim, "")
    is_made = not isinstance(item.value, Plan | Noise) and item.value.dtype is None
    if kind == "kernel" and (is_made or item.doubted):  # of several axes, or said otherwise
        raise _undecided(item, default)
    rule = find(item.own, names=names)
    if rule is not None and (item.ndim == 2 or re.search("convolution|projection", rule.pattern)):
        try:
            layout: str = decide(item.own, shape, names=names).options.get("layout", default)
        except OptionError as problem:  # it is not packed as that name is
            should = str(problem).partition(", but ")[2].partition("; ")[0]
            cure = f"say its axes by a rule, e.g. {_says(item, default)}"
            raise OptionError(message(f"shape of {item.own}", shape, should, cure)) from None
        return layout
    if kind != "kernel" or not default:
        return default
    bias = items.get(item.sibling("bias"))
    if bias is not None:
        wrong = bias.value.shape != shape[:1]  # it is an error elsewhere
        if wrong or item.ndim == 2 or (item.ndim > 3 and shape[1] and shape[0] % shape[1]):
            return default
    raise _undecided(item, default)


def _checked(item: _Item, items: Mapping[str, _Item], letters: str) -> str:
    """Return the kind of a kernel; raise if its layer's bias shows that its axes are others."""
    value, groups = item.value, 1
    bias = items.get(item.sibling("bias"))
    size = dict(zip(letters, value.shape, strict=False))
    transposed = letters.startswith("IO") and len(letters) > 2
    if item.said is not None:
        transposed = transposed or item.said.transposed
        groups = item.said.groups if item.said.transposed else 1
    elif transposed and bias is not None and len(bias.value.shape) == 1 and size["O"]:
        groups = max(bias.value.shape[0] // size["O"], 1)
    stacks = [size[c] for c in letters if c not in "OI" + SPATIAL]
    right = ((size["O"] * groups,), (*stacks, size["O"])) if letters else ()
    if bias is not None and letters and bias.value.shape not in right:
        other = ("OI" if letters.startswith("IO") else "IO") + letters[2:]
        cure = f"say its axes by a rule, e.g. {_says(item, other)}"
        if item.said is not None or stacks:
            cure = f"correct its layout {letters}, or the shape of the bias"
        raise LayoutError(
            message(
                "shape",
                value.shape,
                f"with axes {letters}, {item.own} should have a bias of {size['O'] * groups}, "
                f"not {bias.value.shape}",
                cure,
            )
        )
    if transposed and groups > 1:
        should = f"{item.own} should have one group, as transposed convolutions have elsewhere"
        raise OptionError(message("groups", groups, should, "split it, or drop it by a rule"))
    return "transposed" if transposed else "kernel"


def _placed(
    value: Plan | Tensor, item: _Item, letters: str, leaf: Leaf, dialect: Dialect
) -> Plan | Tensor:
    """Return a tensor with the dialect's axes."""
    if item.moved:
        return rearrange(value, item.moved, item.sizes)
    if not leaf.axes or (item.ndim < 2 and "*" in leaf.axes):
        return value
    if "*" in leaf.axes:
        batch = "".join(c for c in letters if c not in "OI" + SPATIAL)
        mark = "~" * leaf.axes.startswith("~")
        kernel = "".join(mark + c for c in SPATIAL if c in letters)
        return rearrange(value, f"{letters}->{batch}{kernel}{leaf.axes[-2:]}")
    if "N" not in item.sizes:
        raise OptionError(
            message(
                "name",
                item.own,
                f"attention in {dialect.name} has an axis of heads",
                "give their number by a rule, e.g. "
                f"{{'pattern': '^{re.escape(item.own.rpartition('.')[0])}', 'sizes': {{'N': 12}}}}",
            )
        )
    if item.ndim == 2:
        value = rearrange(value, f"{letters}->OI")
    return rearrange(value, leaf.axes, item.sizes)


def _path(item: _Item, path: str, dialect: Dialect) -> list[str]:
    """Return the words of a layer's name in the dialect."""
    parts = path.split(".")
    words: list[str] = []
    for k, part in enumerate(parts):
        if not part.isdecimal():
            words.append(part)
            continue
        before = ".".join(parts[:k])
        rules = [r for r in dialect.rules if isinstance(r, Items) and fnmatchcase(before, r.list)]
        entry = next(filter(None, (rule.entry(int(part)) for rule in rules)), None)
        if entry is None and dialect.index is None:
            raise OptionError(
                message(
                    "name",
                    item.own,
                    f"{dialect.name} calls the entries of the list {before!r} by their class",
                    f"add a rule, e.g. {{'list': '{before}', 'class': 'MyBlock'}}",
                )
            )
        if entry is None and dialect.index != dialect.separator and words:
            words[-1] += f"{dialect.index}{part}"
        else:
            words.append(entry or part)
    return words


def _joined(name: str, sources: list[tuple[str, Plan | Tensor, str]]) -> Plan | Tensor:
    """Return the one tensor that several become, or raise if they may not."""
    own = [source for source, _, _ in sources]
    made = [value for _, value, _ in sources]
    joins = {join for _, _, join in sources}
    join = joins.pop() if len(joins) == 1 else ""
    if join == "stack" and len(sources) == 1:
        should = f"{own[0]} should come with the layer's other bias"
        raise OptionError(message("name", name, should, "add it, or leave both out"))
    if len(sources) == 1 and not (join == "sum but last" and "_hh" in own[0]):
        return made[0]
    tensors = tuple(Made(value) if isinstance(value, Plan) else value for value in made)
    if not join or len(tensors) > 2 or tensors[0].shape != tensors[-1].shape:
        raise _twice(name, own)
    if join == "sum but last":
        size = tensors[-1].shape[0]
        if tensors[-1].read((slice(size - size // 3, size),), "float64").any():
            should = f"the last third of {own[-1]} should be 0: Flax's GRUCell has no such bias"
            raise OptionError(message("name", name, should, "set it to 0, or leave it out"))
        if len(tensors) == 1:
            return made[0]
    return Stack(tensors) if join == "stack" else Sum(tensors)


def _twice(name: str, own: list[str]) -> OptionError:
    should = f"it should be one tensor, not each of {', '.join(own)}"
    return OptionError(message("name", name, should, "rename or drop one of them by a rule"))


def _unknown(item: _Item, items: Mapping[str, _Item], dialect: Dialect) -> OptionError:
    letters = "ABCDEFGH"[: item.ndim]
    name = item.leaf
    if not re.fullmatch(dialect.others, name):
        beside = [other.leaf for other in items.values() if other.path == item.path]
        name = f"vars/{beside.index(item.leaf)}"
    rule = {**_says(item, f"{letters}->{letters}"), "name": item.sibling(name)}
    should = f"what it is in {dialect.name} cannot be told (shape {item.value.shape})"
    return OptionError(message("name", item.own, should, f"say it by a rule, e.g. {rule}"))


def _says(item: _Item, axes: str) -> dict[str, str]:
    """Return the rule that says a tensor's axes."""
    return {"pattern": f"^{re.escape(item.own)}$".replace(r"\.", "[.]"), "axes": axes}


def _undecided(item: _Item, default: str) -> OptionError:
    rule, shape = _says(item, default), item.value.shape
    table = {"pattern": rule["pattern"], "layer": "Embedding"}
    if item.ndim == 2:
        should = f"without a bias, whether it is dense or an embedding cannot be told ({shape})"
        cure = f"say it by a rule, {rule} or {table}"
    else:
        should = f"whether it is a convolution, or a transposed one, cannot be told ({shape})"
        stack = ", 'EOI' a stack of matrices" if item.ndim == 3 else ""
        cure = f"say it by a rule, e.g. {rule}; 'IO{default[2:]}' is a transposed one{stack}"
    return OptionError(message("name", item.own, should, cure))
