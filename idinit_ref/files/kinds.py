"""What a tensor of a PyTorch checkpoint is, and what its axes are.

A tensor of two or more axes whose layout is not known is an error, never a guess. What tells its
layout is a plan, or what its file says of its plan; a rule of the dialect; the caller's list of
tables; its name, where `idinit_ref.roles.names.RULES` know it; or its bias:

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
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ..core.layout import DEFAULT_LAYOUTS, SPATIAL
from ..core.plan import Plan
from ..errors import LayoutError, OptionError, message
from ..roles.names import decide, find
from .dialects import Dialect
from .storage import NoiseTensor, Tensor

_GATED = re.compile(r"(weight|bias)_(ih|hh)(?:_l(\d+)(_reverse)?)?")
_GATES = {"lstm": 4, "gru": 3, "rnn": 1}
_GATE_PARTS = {"weight_ih": "input", "weight_hh": "recurrent", "bias_ih": "bias", "bias_hh": "bias"}
_TABLE = re.compile(  # names of embedding tables
    r"(^|\.)(wte|wpe|shared|relative_attention_bias|embed_(tokens|positions)"
    r"|\w*(emb|embed|embeds|embedding|embeddings))\.weight$"
)
AS_IT_IS = re.compile(r"(^|\.)((cls|mask|distillation)_token|position_embeddings)$")
_NORM = re.compile(r"(?i)(^|\.)(ln(_\w+)?|\w*norm\w*)\.weight$")
_LAYER = {"weight": "weight", "bias": "bias", "running_mean": "mean", "running_var": "var"}


@dataclass(frozen=True)
class NamedTensor:
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
        """How many axes it has."""
        return len(self.value.shape)

    @property
    def moved(self) -> str:
        """How a rule rearranges its axes, "" if none does."""
        return self.axes if "->" in self.axes else ""

    @property
    def path(self) -> str:
        """Its layer's name."""
        return self.name.rpartition(".")[0]

    @property
    def leaf(self) -> str:
        """Its name in the layer."""
        return self.name.rpartition(".")[2]

    def sibling(self, leaf: str) -> str:
        """Return the name of another tensor of its layer."""
        return f"{self.path}.{leaf}" if self.path else leaf


@dataclass(frozen=True)
class Model:
    """All tensors of a model, and the dialect that they are translated into."""

    items: Mapping[str, NamedTensor]  # by what the rules made of their names
    present: Collection[str]  # these names, and those of what the model has and the file has not
    names: Collection[str]  # the file's own
    dialect: Dialect

    def bias_of(self, item: NamedTensor) -> NamedTensor | None:
        """Return the bias of a tensor's layer."""
        return self.items.get(item.sibling("bias"))


def stored_before(leaf: str) -> tuple[str, ...]:
    """Return what Keras stores before a tensor of a layer."""
    order = tuple(_LAYER)
    return order[: order.index(leaf)] if leaf in order else ()


def kind_of(item: NamedTensor, model: Model) -> tuple[str, str]:
    """Return which row of the table a tensor has, and its layer's path."""
    path, leaf = item.path, item.leaf
    if leaf == "num_batches_tracked":
        return "count", path
    if match := _GATED.fullmatch(leaf):
        if match[3] not in (None, "0") or match[4]:
            end = leaf[match.end(2) :]
            start, new = ("[.]", "_other.") if path else ("^", "other.")
            rule = {"pattern": f"{start}([a-z_]+){end}$", "name": rf"{new}\1_l0"}
            should = f"a recurrent layer of {model.dialect.name} has one layer and one direction"
            cure = f"rename each to a layer of its own, e.g. {rule}"
            raise OptionError(message("name", item.own, should, cure))
        recurrent = leaf.replace("_ih", "_hh").replace("bias", "weight")
        held = model.items.get(item.sibling(recurrent))
        shape = sorted(held.value.shape) if held else []  # hidden, gates * hidden
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
    packed = any(each in model.present or each in model.names for each in beside)
    if last == "out_proj" and packed and leaf in ("weight", "bias"):
        return "attention.out" + "_bias" * (leaf == "bias"), above
    if leaf != "weight":
        return _LAYER.get(leaf, "other"), path
    if item.ndim < 2 or (_NORM.search(item.own) and item.said is None and not item.axes):
        return "scale", path
    return "embedding" if item.ndim == 2 and _is_table(item, model) else "kernel", path


def _is_table(item: NamedTensor, model: Model) -> bool:
    """Whether a 2-D weight is known to be an embedding table."""
    if item.layer == "Embedding":
        return True
    if item.axes or item.sibling("bias") in model.present:
        return False
    if item.table:
        return True
    if item.said is not None:
        return item.said.layout == "IO" and bool(_TABLE.search(item.own))
    rule = find(item.own, names=model.names)
    return rule is not None and rule.role == "keep" and "embedding" in rule.why


def letters_of(item: NamedTensor, kind: str, model: Model) -> str:
    """Return what the stored axes are: by a plan, a rule, the name, or the layer's bias."""
    if item.said is not None:
        return item.said.layout
    if item.axes:
        return "" if item.moved else item.axes
    shape, default = item.value.shape, DEFAULT_LAYOUTS.get(item.ndim, "")
    is_made = not isinstance(item.value, Plan | NoiseTensor) and item.value.dtype is None
    if kind == "kernel" and (is_made or item.doubted):  # of several axes, or said otherwise
        raise _undecided(item, default)
    rule = find(item.own, names=model.names)
    if rule is not None and (item.ndim == 2 or re.search("convolution|projection", rule.pattern)):
        try:
            layout: str = decide(item.own, shape, names=model.names).options.get("layout", default)
        except OptionError as problem:  # it is not packed as that name is
            should = str(problem).partition(", but ")[2].partition("; ")[0]
            cure = f"say its axes by a rule, e.g. {says(item, default)}"
            raise OptionError(message(f"shape of {item.own}", shape, should, cure)) from None
        return layout
    if kind != "kernel" or not default:
        return default
    bias = model.bias_of(item)
    if bias is not None:
        wrong = bias.value.shape != shape[:1]  # it is an error elsewhere
        if wrong or item.ndim == 2 or (item.ndim > 3 and shape[1] and shape[0] % shape[1]):
            return default
    raise _undecided(item, default)


def kernel_kind(item: NamedTensor, letters: str, model: Model) -> str:
    """Return the kind of a kernel; raise if its layer's bias shows that its axes are others."""
    value, groups = item.value, 1
    bias = model.bias_of(item)
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
        cure = f"say its axes by a rule, e.g. {says(item, other)}"
        if item.said is not None or stacks:
            cure = f"correct its layout {letters}, or the shape of the bias"
        should = (
            f"with axes {letters}, {item.own} should have a bias of {size['O'] * groups}, "
            f"not {bias.value.shape}"
        )
        raise LayoutError(message("shape", value.shape, should, cure))
    if transposed and groups > 1:
        should = f"{item.own} should have one group, as transposed convolutions have elsewhere"
        raise OptionError(message("groups", groups, should, "split it, or drop it by a rule"))
    return "transposed" if transposed else "kernel"


def says(item: NamedTensor, axes: str) -> dict[str, str]:
    """Return the rule that says a tensor's axes."""
    return {"pattern": f"^{re.escape(item.own)}$".replace(r"\.", "[.]"), "axes": axes}


def _undecided(item: NamedTensor, default: str) -> OptionError:
    rule, shape = says(item, default), item.value.shape
    table = {"pattern": rule["pattern"], "layer": "Embedding"}
    if item.ndim == 2:
        should = f"without a bias, whether it is dense or an embedding cannot be told ({shape})"
        cure = f"say it by a rule, {rule} or {table}"
    else:
        should = f"whether it is a convolution, or a transposed one, cannot be told ({shape})"
        stack = ", 'EOI' a stack of matrices" if item.ndim == 3 else ""
        cure = f"say it by a rule, e.g. {rule}; 'IO{default[2:]}' is a transposed one{stack}"
    return OptionError(message("name", item.own, should, cure))
