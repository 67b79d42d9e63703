"""One layer, in place: its weights, their axes, and its biases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from idinit_ref import Plan, Role
from idinit_ref.core.kernel import Taps
from idinit_ref.core.noise import LoosenAt
from idinit_ref.core.pattern import Form, Wide
from idinit_ref.core.weights import either
from idinit_ref.errors import OptionTypeError, message
from idinit_ref.tracing import identity

from ._absent import offloaded, write_back
from ._parametrized import computed
from ._sharded import reshard
from ._tensor import check_memory, fill_, shape_of

__all__ = ["idi_layer_", "idiz_layer_", "is_layer", "layer_plans"]

Module = TypeVar("Module", bound=nn.Module)


class _Weight(NamedTuple):
    """A weight of a layer, its plan's options, and whether it computes the layer's output."""

    name: str
    options: Mapping[str, Any] = MappingProxyType({})
    last: bool = True


class _Parts(NamedTuple):
    """A layer's weights and biases; a named bias may be absent."""

    weights: list[_Weight]
    biases: list[str]


def _dense(_: nn.Linear) -> _Parts:
    return _Parts([_Weight("weight")], ["bias"])


def _gpt2(_: nn.Module) -> _Parts:
    return _Parts([_Weight("weight", {"layout": "IO"})], ["bias"])


def _left_padding(module: Any) -> Sequence[int]:
    """Return the left padding of a convolution, for any padding mode."""
    if module.padding == "valid":
        return [0] * len(module.kernel_size)
    if module.padding == "same":  # if the padding is odd, PyTorch pads one more to the right
        axes = zip(module.dilation, module.kernel_size, strict=True)
        return [step * (k - 1) // 2 for step, k in axes]
    return tuple(module.padding)


def _conv(module: Any) -> _Parts:
    spatial = "DHW"[-len(module.kernel_size) :]
    options = {
        "layout": ("IO" if module.transposed else "OI") + spatial,
        "groups": module.groups,
        "transposed": module.transposed,
        **identity(
            _left_padding(module),
            module.dilation,
            module.kernel_size,
            module.stride if module.transposed else (),
        ),
    }
    return _Parts([_Weight("weight", options)], ["bias"])


def _attention(module: Any) -> _Parts:
    if module._qkv_same_embed_dim is False:
        packed = [_Weight(f"{c}_proj_weight", last=False) for c in "qkv"]
    else:
        packed = [_Weight("in_proj_weight", {"blocks": (module.embed_dim,) * 3}, last=False)]
    biases = ["in_proj_bias", "out_proj.bias", "bias_k", "bias_v"]
    return _Parts([*packed, _Weight("out_proj.weight")], biases)


def _gates(module: Any, at: str) -> dict[str, Any]:
    size = module.hidden_size
    return {"blocks": (size,) * (getattr(module, f"weight_ih{at}").shape[0] // size)}


def _recurrent(module: nn.RNNBase) -> _Parts:
    weights, biases = [], []
    for layer in range(module.num_layers):
        last = layer == module.num_layers - 1
        for way in ("", "_reverse") if module.bidirectional else ("",):
            at = f"_l{layer}{way}"
            gated = last and not module.proj_size
            weights += [
                _Weight(f"weight_{kind}{at}", _gates(module, at), gated) for kind in ("ih", "hh")
            ]
            if module.proj_size:
                weights.append(_Weight(f"weight_hr{at}", last=last))
            biases += [f"bias_ih{at}", f"bias_hh{at}"] if module.bias else []
    return _Parts(weights, biases)


def _cell(module: nn.RNNCellBase) -> _Parts:
    gates = _gates(module, "")
    return _Parts(
        [_Weight("weight_ih", gates), _Weight("weight_hh", gates)], ["bias_ih", "bias_hh"]
    )


_CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
_KINDS: dict[type[nn.Module], Callable[[Any], _Parts]] = {
    nn.Linear: _dense,
    **dict.fromkeys(_CONVOLUTIONS, _conv),
    nn.MultiheadAttention: _attention,
    **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), _recurrent),
    **dict.fromkeys((nn.LSTMCell, nn.GRUCell, nn.RNNCell), _cell),
}


def _is_gpt2s(module: object) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")  # of transformers


def is_layer(module: object) -> bool:
    """Whether a module is one of the known layers."""
    return isinstance(module, tuple(_KINDS)) or _is_gpt2s(module)


def _parts(module: Any) -> _Parts:
    for kind, parts in _KINDS.items():
        if isinstance(module, kind):
            return parts(module)
    if _is_gpt2s(module):
        return _gpt2(module)
    known = ", ".join(kind.__name__ for kind in _KINDS)
    cure = "pass its layers one by one, or its weights to idi_ or idiz_ with layout=..."
    if not isinstance(module, nn.Module):
        cure = "pass such a layer itself, e.g. torch.nn.Linear(4, 3), or a weight to idi_ or idiz_"
    should = f"it should be one of {known}, or transformers' Conv1D"
    raise OptionTypeError(message("module", type(module), should, cure))


def _tensor(module: nn.Module, name: str) -> Tensor:
    """Return a parameter, or the current value of a tensor that the layer computes."""
    how = computed(module, name)
    if how is not None:
        for part, tensor in how.held().items():
            shape_of(tensor, part)
        return how.now()
    try:
        return module.get_parameter(name)
    except AttributeError as problem:
        should = f"its {name!r} should be a torch.nn.Parameter or a PyTorch parametrization"
        cure = "initialise the layer before its weight is replaced"
        raise OptionTypeError(message("module", type(module), should, cure)) from problem


def layer_plans(
    module: nn.Module,
    role: Role = "transit",
    *,
    gain: float = 1.0,
    eps: float = 1e-6,
    wide: Wide = "truncate",
    form: Form = "pair",
    taps: Taps = "outward",
    tap: Sequence[int] | None = None,
    loosen: float = 0.0,
    loosen_at: LoosenAt = "all",
    seed: int = 0,
) -> dict[str, Plan]:
    """Decide the weights of one layer, and write nothing.

    All options are validated, but an option takes effect only if a weight of the layer has its
    role.

    The known layers are Linear, Conv1d to Conv3d, ConvTranspose1d to 3d, MultiheadAttention, LSTM,
    GRU, RNN and their cells, and the Conv1D of transformers. Packed weights (q, k, v; gates) are
    split into their matrices. See spec sections 3, 4 and 6.

    Parameters
    ----------
    module : torch.nn.Module
        One layer.
    role : {"transit", "zero"}
        The role of the layer. In a layer of several weights, only those that compute its output
        are "zero": the out_proj of attention; weight_hr of a recurrent module's last layer or,
        without one, all its gates. The other weights are "transit".
    gain, wide
        For the weights in role "transit", as in :func:`idi_`.
    eps, form
        For the weights in role "zero", as in :func:`idiz_`.
    taps : {"outward", "diagonal", "center", "channel_major", "spatial_major"}
        How a kernel becomes a matrix (section 3). The first three start at the identity tap, in
        each phase of a strided transposed convolution.
    tap : sequence of int, optional
        The identity tap in the order D, H, W. By default it is read from the layer: its left
        padding divided by its dilation, or the nearest tap.
    loosen, loosen_at, seed
        Noise added to the weights in role "transit"; weight number k uses the seed ``seed + k``.

    Returns
    -------
    dict of str to Plan
        By the names that ``module.named_parameters()`` uses, in a fixed order.

    Raises
    ------
    OptionTypeError
        If the layer or an option has the wrong type, or a weight is not a dense parameter.
    ShapeError, LayoutError, OptionError
        If an option does not fit the layer, or the layer is lazy and has not run yet.

    Examples
    --------
    >>> import torch
    >>> from idinit_ref_torch import layer_plans
    >>> plans = layer_plans(torch.nn.MultiheadAttention(4, 2), "zero")
    >>> {name: (p.role, p.blocks) for name, p in plans.items()}
    {'in_proj_weight': ('transit', (4, 4, 4)), 'out_proj.weight': ('zero', None)}
    """
    plans = {}
    for k, (name, stored, last) in enumerate(_parts(module).weights):
        how = either(
            shape_of(_tensor(module, name), name), role if last else "transit", k, gain=gain,
            eps=eps, wide=wide, form=form, taps=taps, loosen=loosen, loosen_at=loosen_at, seed=seed,
            **stored,
        )  # fmt: skip
        plans[name] = how if tap is None else replace(how, tap=cast("tuple[int, ...]", tap))
    return plans


def idi_layer_(
    module: Module,
    *,
    gain: float = 1.0,
    wide: Wide = "truncate",
    taps: Taps = "outward",
    tap: Sequence[int] | None = None,
    loosen: float = 0.0,
    loosen_at: LoosenAt = "all",
    seed: int = 0,
) -> Module:
    """Fill the weights of one layer with IDI_tau and its biases with 0, in place.

    See [P, Eq. 3] and spec sections 1 and 3. :func:`layer_plans` lists the known layers.

    Parameters
    ----------
    module : torch.nn.Module
        One layer.
    gain, wide, taps, tap, loosen, loosen_at, seed
        As in :func:`layer_plans`.

    Returns
    -------
    torch.nn.Module
        The same object.

    Raises
    ------
    ShapeError, LayoutError, OptionError, OptionTypeError
        As in :func:`layer_plans`.
    DTypeError, RoundingError
        As in :func:`idi_`. On an error the layer does not change.

    Examples
    --------
    >>> import torch
    >>> from idinit_ref_torch import idi_layer_
    >>> layer = idi_layer_(torch.nn.Linear(2, 3))
    >>> layer(torch.tensor([5.0, 7.0])).tolist()
    [5.0, 7.0, 5.0]
    """
    return _apply(
        module, "transit", gain=gain, wide=wide, taps=taps, tap=tap, loosen=loosen,
        loosen_at=loosen_at, seed=seed,
    )  # fmt: skip


def idiz_layer_(
    module: Module,
    *,
    eps: float = 1e-6,
    form: Form = "pair",
    taps: Taps = "outward",
    tap: Sequence[int] | None = None,
) -> Module:
    """Fill the last weights of one layer with IDIZ_eps, others with IDI, biases with 0, in place.

    For the last layer of a residual branch (spec sections 2 and 3). If the layer has several
    weights, the argument `role` of :func:`layer_plans` lists the last ones.

    Parameters
    ----------
    module : torch.nn.Module
        One layer.
    eps, form, taps, tap
        As in :func:`layer_plans`.

    Returns
    -------
    torch.nn.Module
        The same object.

    Raises
    ------
    ShapeError, LayoutError, OptionError, OptionTypeError, DTypeError, RoundingError
        As in :func:`idi_layer_`.

    Examples
    --------
    >>> import torch
    >>> from idinit_ref_torch import idiz_layer_
    >>> idiz_layer_(torch.nn.Conv2d(1, 2, 1), eps=0.25).weight.flatten().tolist()
    [0.25, -0.25]
    """
    return _apply(module, "zero", eps=eps, form=form, taps=taps, tap=tap)


def _apply(module: Module, role: Role, **options: Any) -> Module:
    loaded = []
    if isinstance(module, nn.Module):
        reshard(module)
        loaded = offloaded(module)
    plans: dict[str, Plan | None] = {**layer_plans(module, role, **options)}
    biases = [name for name in _parts(module).biases if attrgetter(name)(module) is not None]
    tensors = {name: _tensor(module, name) for name in [*plans, *biases]}
    for name, tensor in tensors.items():
        how = plans.setdefault(name, None)
        if how is None:
            shape_of(tensor, name)
        else:
            how.check(tensor.dtype)
    check_memory(tensors)
    solved = [_solve(module, name, tensors[name], how) for name, how in plans.items()]
    for (name, how), pairs in zip(plans.items(), solved, strict=True):
        if pairs is None:
            _fill(tensors[name], how)
    with torch.no_grad():
        for held, new in (pair for pairs in solved for pair in pairs or ()):
            held.copy_(new)
        for name in plans:
            way = computed(module, name)
            if way is not None:
                way.recompute()
    write_back(loaded)
    return module


def _fill(tensor: Tensor, how: Plan | None) -> Tensor:
    """Fill a tensor with a plan's weight, or with 0 if there is no plan (a bias)."""
    if how is not None:
        return fill_(tensor, how)
    return tensor.detach().zero_()


def _solve(
    module: nn.Module, name: str, tensor: Tensor, how: Plan | None
) -> list[tuple[Tensor, Tensor]] | None:
    """Return the new values of the tensors from which a module computes a weight."""
    way = computed(module, name)
    if way is None or tensor.is_meta:
        return None if way is None else []
    return way.solve(_fill(torch.empty_like(tensor), how))
