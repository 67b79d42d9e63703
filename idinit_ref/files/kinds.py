"""The kind of a tensor of a PyTorch checkpoint, and its axes.

A tensor of two or more axes whose layout is unknown is an error, never a guess. The layout is known
from a plan or the plan in its file's metadata; a rule of the dialect; the caller's list of tables;
its name, if `idinit_ref.roles.names.RULES` know it; or its bias:

* A matrix with a bias of its first axis is dense, OI: `torch.nn` has no other layer of that form.
  (For a square one this is all that excludes axes IO, which transformers' Conv1D has.)
* A kernel of 4 or 5 axes with such a bias is a convolution, unless its second axis divides its
  first: a transposed one of several groups (one group, if it is square) has that form, too.
* Nothing else is known. A matrix without a bias may be an embedding; a kernel without one may be
  transposed; three axes may be a bilinear layer or a stack of matrices. Then a rule has to state
  it, also for many at once: ``Change("conv", axes="OIHW")``, ``Change("proj|fc", axes="OI")``.
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
    """A tensor: its name in the file (`own`), and its name, axes and layer after the rules."""

    own: str
    name: str
    value: Plan | Tensor
    known_plan: Plan | None = None  # the value itself, or the plan in the metadata
    table: bool = False
    doubted: bool = False  # whether the axes may differ from those of the rules by name
    axes: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)
    layer: str | None = None

    @property
    def ndim(self) -> int:
        """The number of its axes."""
        return len(self.value.shape)

    @property
    def moved(self) -> str:
        """The rearrangement of its axes by a rule, or ""."""
        return self.axes if "->" in self.axes else ""

    @property
    def path(self) -> str:
        """The name of its layer."""
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
    """All tensors of a model, and the dialect of the translation."""

    items: Mapping[str, NamedTensor]  # by their names after the rules
    present: Collection[str]  # these names, and those of the model's tensors that the file lacks
    names: Collection[str]  # the names in the file
    dialect: Dialect

    def bias_of(self, item: NamedTensor) -> NamedTensor | None:
        """Return the bias of a tensor's layer."""
        return self.items.get(item.sibling("bias"))


def stored_before(leaf: str) -> tuple[str, ...]:
    """Return the tensors of a layer that Keras stores before this one."""
    order = tuple(_LAYER)
    return order[: order.index(leaf)] if leaf in order else ()


def kind_of(item: NamedTensor, model: Model) -> tuple[str, str]:
    """Return a tensor's kind, which is a key of the dialect's table, and its layer's path."""
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
        kernel = model.items.get(item.sibling(recurrent))
        shape = sorted(kernel.value.shape) if kernel else []  # hidden, gates * hidden
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
    if item.ndim < 2 or (_NORM.search(item.own) and item.known_plan is None and not item.axes):
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
    if item.known_plan is not None:
        return item.known_plan.layout == "IO" and bool(_TABLE.search(item.own))
    rule = find(item.own, names=model.names)
    return rule is not None and rule.role == "keep" and "embedding" in rule.why


def letters_of(item: NamedTensor, kind: str, model: Model) -> str:
    """Return the letters of the stored axes: from a plan, a rule, the name, or the bias."""
    if item.known_plan is not None:
        return item.known_plan.layout
    if item.axes:
        return "" if item.moved else item.axes
    shape, default = item.value.shape, DEFAULT_LAYOUTS.get(item.ndim, "")
    is_made = not isinstance(item.value, Plan | NoiseTensor) and item.value.dtype is None
    if kind == "kernel" and (is_made or item.doubted):
        raise _undecided(item, default)
    rule = find(item.own, names=model.names)
    if rule is not None and (item.ndim == 2 or re.search("convolution|projection", rule.pattern)):
        try:
            layout: str = decide(item.own, shape, names=model.names).options.get("layout", default)
        except OptionError as problem:  # its shape is not packed as the name demands
            should = str(problem).partition(", but ")[2].partition("; ")[0]
            cure = f"state its axes by a rule, e.g. {axes_rule(item, default)}"
            raise OptionError(message(f"shape of {item.own}", shape, should, cure)) from None
        return layout
    if kind != "kernel" or not default:
        return default
    bias = model.bias_of(item)
    if bias is not None:
        wrong = bias.value.shape != shape[:1]  # `kernel_kind` raises
        if wrong or item.ndim == 2 or (item.ndim > 3 and shape[1] and shape[0] % shape[1]):
            return default
    raise _undecided(item, default)


def kernel_kind(item: NamedTensor, letters: str, model: Model) -> str:
    """Return the kind of a kernel; raise if the layer's bias contradicts its axes."""
    value, groups = item.value, 1
    bias = model.bias_of(item)
    size = dict(zip(letters, value.shape, strict=False))
    transposed = letters.startswith("IO") and len(letters) > 2
    if item.known_plan is not None:
        transposed = transposed or item.known_plan.transposed
        groups = item.known_plan.groups if item.known_plan.transposed else 1
    elif transposed and bias is not None and len(bias.value.shape) == 1 and size["O"]:
        groups = max(bias.value.shape[0] // size["O"], 1)
    stacks = [size[c] for c in letters if c not in "OI" + SPATIAL]
    right = ((size["O"] * groups,), (*stacks, size["O"])) if letters else ()
    if bias is not None and letters and bias.value.shape not in right:
        other = ("OI" if letters.startswith("IO") else "IO") + letters[2:]
        cure = f"state its axes by a rule, e.g. {axes_rule(item, other)}"
        if item.known_plan is not None or stacks:
            cure = f"correct its layout {letters}, or the shape of the bias"
        should = (
            f"with axes {letters}, {item.own} should have a bias of {size['O'] * groups}, "
            f"not {bias.value.shape}"
        )
        raise LayoutError(message("shape", value.shape, should, cure))
    if transposed and groups > 1:
        should = f"{item.own} should have one group, as transposed convolutions of other frameworks"
        raise OptionError(message("groups", groups, should, "split it, or drop it by a rule"))
    return "transposed" if transposed else "kernel"


def axes_rule(item: NamedTensor, axes: str) -> dict[str, str]:
    """Return the rule that states a tensor's axes."""
    return {"pattern": f"^{re.escape(item.own)}$".replace(r"\.", "[.]"), "axes": axes}


def _undecided(item: NamedTensor, default: str) -> OptionError:
    rule, shape = axes_rule(item, default), item.value.shape
    table = {"pattern": rule["pattern"], "layer": "Embedding"}
    if item.ndim == 2:
        should = f"without a bias it may be dense or an embedding ({shape})"
        cure = f"state it by a rule, {rule} or {table}"
    else:
        should = f"it may be a convolution or a transposed one ({shape})"
        stack = ", 'EOI' a stack of matrices" if item.ndim == 3 else ""
        cure = f"state it by a rule, e.g. {rule}; 'IO{default[2:]}' is a transposed one{stack}"
    return OptionError(message("name", item.own, should, cure))
