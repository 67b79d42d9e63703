"""One tensor, in place."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from array_api_compat import torch as namespace
from torch import Tensor

from idinit_ref import Plan, Role
from idinit_ref.core.axes import joined
from idinit_ref.core.kernel import Taps
from idinit_ref.core.layout import split_axes, strides_of
from idinit_ref.core.noise import LoosenAt
from idinit_ref.core.pattern import Form, Wide
from idinit_ref.core.plan import strips
from idinit_ref.errors import OptionError, OptionTypeError, message

from ._absent import lasting, present
from ._sharded import PLAIN, is_sharded, local_of, parts

__all__ = ["check_memory", "fill_", "idi_", "idiz_", "shape_of", "write_", "write_parted_"]


_IN_NUMPY: dict[torch.dtype, np.dtype[Any]] = {
    torch.float16: np.dtype(np.float16),
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}

_modes, _is_functional = torch._C._len_torch_dispatch_stack, torch._is_functional_tensor
_STRIDED = torch.strided

_ALONE = 2**18
"""Up to this many bytes, a single-threaded fill is faster than PyTorch's parallel one."""

_SIMPLE = {bool, float, int, str, type(None)}
"""Types for which equal values are equal options, so that they can be cache keys."""


def shape_of(tensor: Any, name: str = "tensor") -> tuple[int, ...]:
    """Return the shape of a tensor that can be filled in place; raise an error for any other."""
    if type(tensor) not in PLAIN:
        _check_kind(tensor, name)
        if is_sharded(tensor):
            shape_of(local_of(tensor, name), f"{name}.to_local()")
            return tuple(tensor.shape)
        # Any other wrapper would fill each inner tensor as if it were the whole.
        if hasattr(tensor, "__tensor_flatten__") and not tensor.is_nested:
            raise _not_dense(name, type(tensor).__name__)
    elif _is_functional(tensor):  # its data pointer is not its memory
        raise _not_dense(name, "in torch.func.functionalize")
    if tensor.is_nested:
        raise _not_dense(name, "nested")
    if tensor.layout is not torch.strided:
        raise _not_dense(name, tensor.layout)
    if tensor.is_neg() and tensor.is_complex():
        should = (
            f"a {tensor.dtype} tensor should be plain or conjugated: PyTorch handles the sign "
            "of 0 inconsistently in lazily negated ones"
        )
        cure = "fill the base tensor of this view"
        raise OptionError(message(name, "lazily negated", should, cure))
    shape, size = tuple(tensor.shape), tensor.numel()
    if size == 0:
        present(tensor, name)
        return shape
    reach = size - 1 if tensor.is_contiguous() else _reach(tensor, name)
    memory = tensor.untyped_storage().nbytes() // tensor.element_size()
    if memory <= tensor.storage_offset() + reach:
        given = tensor.untyped_storage().nbytes()
        should = f"shape {shape} in {tensor.dtype} needs more; its memory was freed"
        cure = "gather it first, or initialise it before it is sharded"
        raise OptionError(message(f"{name}.untyped_storage().nbytes()", given, should, cure))
    return shape


def _not_dense(name: str, what: object) -> OptionTypeError:
    should = (
        "it should be one dense tensor or a DTensor: not sparse, not nested, and no other "
        "wrapper of tensors"
    )
    cure = "initialise the dense tensor first, then convert or wrap it"
    return OptionTypeError(message(name, what, should, cure))


def _check_kind(tensor: object, name: str) -> None:
    if not isinstance(tensor, Tensor):
        should = "it should be a torch.Tensor"
        cure = "pass a tensor or a parameter; for a layer use idi_layer_ or idiz_layer_"
        raise OptionTypeError(message(name, type(tensor), should, cure))
    present(tensor, name)


def _reach(tensor: Tensor, name: str) -> int:
    """Return the distance from a tensor's first entry to its last, in entries."""
    shape, strides, reach = tuple(tensor.shape), tensor.stride(), 0
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size > 1 and stride <= reach:
            should = f"with shape {shape}, no two entries should share memory"
            cure = "clone() it first, or fill the tensor before it is expanded"
            raise OptionError(message(f"{name}.stride()", strides, should, cure))
        reach += (size - 1) * stride
    return reach


def check_memory(tensors: Mapping[str, Tensor]) -> None:
    """Raise an error if only some tensors have memory, since the others would not be filled."""
    empty = [name for name, tensor in tensors.items() if tensor.is_meta]
    if empty and len(empty) < len(tensors):
        held = next(name for name in tensors if name not in empty)
        given = (
            f"{empty[0]!r} (and {len(empty) - 1} more) on meta, {held!r} on {tensors[held].device}"
        )
        should = "either all parameters or none should be on the meta device"
        cure = "give the others memory with to_empty(device=...), or load them first"
        raise OptionError(message("module", given, should, cure))


def fill_(tensor: Tensor, how: Plan) -> Tensor:
    """Fill a tensor that `shape_of` accepted; check the dtype before writing."""
    size = tensor.numel()
    memory = _in_numpy(tensor, size) if size and tensor.is_contiguous() else None
    if memory is not None:  # as below in fewer steps, which dominate the time for most weights
        known = strips(how, memory.shape, tensor.stride(), memory.dtype)
        if known is not None:
            _clear(tensor, memory)
            for at, value in known:
                memory[at] = value
            return tensor
    how.check(tensor.dtype)
    write_(tensor.detach(), how)
    return tensor


def _clear(tensor: Tensor, memory: Any) -> None:
    """Fill a tensor with 0, given its memory as an array."""
    if memory.nbytes > _ALONE:
        tensor.detach().zero_()
        return
    memory.fill(0)
    if not tensor.is_inference():  # as zero_ does: autograd may have saved the tensor
        torch.autograd.graph.increment_version(tensor)


def write_(tensor: Tensor, how: Plan) -> None:
    """Fill a checked tensor under no_grad; of a sharded one, only this rank's part."""
    if tensor.is_meta:
        return
    if is_sharded(tensor):
        for part, index in parts(tensor):
            _write(part, how, index)
    else:
        _write(tensor, how, None)


def _write(tensor: Tensor, how: Plan, index: tuple[slice, ...] | None) -> None:
    size = extent = tensor.numel()
    if size == 0:
        return
    strides = tensor.stride()
    if not tensor.is_contiguous():
        steps = zip(tensor.shape, strides, strict=True)
        extent = 1 + sum((length - 1) * stride for length, stride in steps)
    memory = _in_numpy(tensor, extent)
    if memory is not None and extent == size:
        _clear(tensor, memory)
    else:
        tensor.zero_()
    if memory is None:
        memory = tensor.as_strided((extent,), (1,), tensor.storage_offset())
    how.write(memory, strides, index)


def write_parted_(tensor: Tensor, how: Plan, parted: tuple[tuple[int, ...], str]) -> None:
    """Fill a tensor as `write_` does, if its plan joins the axes that share a letter."""
    if tensor.is_meta:
        return
    whole = torch.empty(how.shape, dtype=tensor.dtype, device=tensor.device)
    write_(whole, how)
    new = split_axes(namespace, whole, *parted)
    if not is_sharded(tensor):
        to = tensor.view(parted[0]) if tensor.is_contiguous() else tensor
        to.copy_(new.reshape(to.shape))  # a view, where it may be: a copy takes long
        return
    new = new.reshape(tuple(tensor.shape))
    for part, index in parts(tensor):
        part.copy_(new[index])


_IDI = (
    "gain", "wide", "layout", "groups", "transposed", "stride", "blocks", "taps", "tap", "loosen",
    "loosen_at", "seed",
)  # fmt: skip
_IDIZ = ("eps", "form", "layout", "groups", "transposed", "stride", "blocks", "taps", "tap")


class _Strips(NamedTuple):
    """The non-zero entries of a contiguous weight, as runs of equally spaced entries."""

    memory: Any
    """The ctypes type of the weight's memory."""
    runs: tuple[tuple[int, int, tuple[int], float], ...]
    """For each run: its first byte, number of entries, stride in bytes, and value."""


@lru_cache(maxsize=1024, typed=True)  # typed: True == 1.0, but it is not a gain
def _strips(shape: torch.Size, dtype: np.dtype[Any], role: Role, *values: Any) -> _Strips | None:
    """Return the runs of a contiguous weight; None if axes are joined or the runs are too many."""
    options = dict(zip(_IDI if role == "transit" else _IDIZ, values, strict=True))
    letters = options.pop("layout")
    how = joined(shape, role, letters, **options)
    if letters is not None and letters != how.layout:
        return None
    known = strips(how, (shape.numel(),), strides_of(shape), dtype)
    if known is None:
        return None
    size = dtype.itemsize
    rows = ((range(at.start, at.stop, at.step), value) for at, value in known)
    runs = tuple((at.start * size, len(at), (at.step * size,), value) for at, value in rows)
    return _Strips(ctypes.c_char * (shape.numel() * size), runs)


def _fast_fill(tensor: Tensor, role: Role, values: tuple[Any, ...]) -> bool:
    """Fill a plain tensor whose runs are few and known; return False for any other.

    Few steps matter: a large fill evicts this code from the caches, so each step costs five times
    as much.
    """
    dtype = _IN_NUMPY.get(tensor.dtype) if type(tensor) in PLAIN else None
    if (
        dtype is None
        or not tensor.is_cpu
        or tensor.ndim < 2  # may be a part of a flat parameter
        or tensor.is_nested
        or tensor.layout is not _STRIDED
        or tensor.is_neg()
        or tensor.is_inference()
        or _is_functional(tensor)
        or _modes()  # a mode such as make_fx would miss the write
        or tensor.grad_fn is not None
        or not tensor.is_contiguous()
        or not _SIMPLE.issuperset(map(type, values))
        or not (size := tensor.numel())
        or tensor.untyped_storage().nbytes() // dtype.itemsize < tensor.storage_offset() + size
    ):
        return False
    known = _strips(tensor.shape, dtype, role, *values)
    if known is None:
        return False
    try:
        memory = known.memory.from_address(tensor.data_ptr())
    except RuntimeError:  # within a functional transform
        return False
    if len(memory) > _ALONE:
        (tensor.detach() if tensor.requires_grad else tensor).zero_()
    else:
        _clear(tensor, np.ndarray(size, dtype, memory))
    for start, count, step, value in known.runs:
        np.ndarray(count, dtype, memory, start, step).fill(value)
    return True


def _filled(tensor: Tensor, role: Role, *values: Any) -> Tensor:
    if _fast_fill(tensor, role, values):
        return tensor
    options = dict(zip(_IDI if role == "transit" else _IDIZ, values, strict=True))
    layout = options.pop("layout")
    shape = shape_of(tensor)
    lasting(tensor, "tensor")
    how = joined(shape, role, layout, **options)
    if layout is None or layout == how.layout:
        return fill_(tensor, how)
    how.check(tensor.dtype)
    with torch.no_grad():
        write_parted_(tensor.detach(), how, (shape, layout))
    return tensor


def _in_numpy(tensor: Tensor, extent: int) -> Any:
    """Return a tensor's memory as a NumPy array, or None if that is impossible.

    Slices of the array cost a sixth of a tensor's. The array does not keep the memory alive.
    """
    dtype = _IN_NUMPY.get(tensor.dtype)
    if dtype is None or type(tensor) not in PLAIN or not tensor.is_cpu or tensor.is_neg():
        return None
    if _modes():  # a mode such as make_fx would miss the write
        return None
    try:
        return _array(tensor, extent, dtype)
    except RuntimeError:  # within a functional transform
        return None


def _array(tensor: Tensor, extent: int, dtype: np.dtype[Any]) -> Any:
    # After tensor.numpy() the memory could not be resized, which FSDP does.
    place: Any = (ctypes.c_char * (extent * dtype.itemsize)).from_address(tensor.data_ptr())
    return np.ndarray((extent,), dtype, place)


def idi_(
    tensor: Tensor,
    *,
    gain: float = 1.0,
    wide: Wide = "truncate",
    layout: str | None = None,
    groups: int = 1,
    transposed: bool = False,
    stride: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    taps: Taps = "outward",
    tap: Sequence[int] | None = None,
    loosen: float = 0.0,
    loosen_at: LoosenAt = "all",
    seed: int = 0,
) -> Tensor:
    """Fill a tensor with IDI_tau, in place: ``W[i, j] = tau if j = i mod n``.

    See [P, Eq. 3] and spec section 1; for kernels IDIC_tau, [P, Sec. 3.3] and spec section 3.
    Autograd does not record the fill, and no random number generator is used. Complex tensors get
    the imaginary part 0. Meta tensors are only checked.

    Parameters
    ----------
    tensor : torch.Tensor, 2 to 5 axes (any number with `layout`)
        Real floating-point or complex, with any strides for which no two entries share memory. Of a
        DTensor each rank fills its own part, without communication.
    gain : float
        tau; any finite non-zero real number.
    wide : {"truncate", "fold_rms", "fold_mean"}
        How to fill a matrix with more columns than rows.
    layout : str, optional
        A letter for each axis: O outputs, I inputs, D H W spatial, any other capital a batch
        axis. Axes with the same letter count as one: "OOI" for (heads, size, d). The default
        depends on the rank: "OI", "OIW", "OIHW", "OIDHW".
    groups, transposed
        For a convolution (spec section 4).
    stride : sequence of int, optional
        The strides of a transposed convolution in the order D, H, W. Each phase of its kernel is
        a matrix of its own (section 3).
    blocks : sequence of int, optional
        Sizes that split the O axis into separate matrices, as packed q, k, v.
    taps : {"outward", "diagonal", "center", "channel_major", "spatial_major"}
        How a kernel becomes a matrix (section 3). The first three start at the identity tap.
    tap : sequence of int, optional
        The identity tap in the order D, H, W; (k - 1) // 2 by default.
    loosen, loosen_at, seed
        Standard deviation, place ("all", or "entries" for IDI's own) and seed of added noise
        [P, Sec. 3.1.1]; none by default.

    Returns
    -------
    torch.Tensor
        The same object, with its dtype, device, strides and requires_grad.

    Raises
    ------
    ShapeError, LayoutError, OptionError, OptionTypeError
        If an option does not fit, or the tensor cannot be filled: it is not dense, has no memory of
        its own, is computed from others (the weight of a layer under a parametrization), is an
        engine's placeholder or a lazily negated complex view, or is a DTensor with a Partial
        placement.
    DTypeError, RoundingError
        If the dtype is neither real floating-point nor complex, or would round an entry to 0 or
        infinity. On an error the tensor does not change.

    Examples
    --------
    >>> import torch
    >>> from idinit_ref_torch import idi_
    >>> idi_(torch.empty(2, 3, dtype=torch.bfloat16), gain=2)
    tensor([[2., 0., 0.],
            [0., 2., 0.]], dtype=torch.bfloat16)
    """
    return _filled(
        tensor, "transit", gain, wide, layout, groups, transposed, stride, blocks, taps, tap,
        loosen, loosen_at, seed,
    )  # fmt: skip


def idiz_(
    tensor: Tensor,
    *,
    eps: float = 1e-6,
    form: Form = "pair",
    layout: str | None = None,
    groups: int = 1,
    transposed: bool = False,
    stride: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    taps: Taps = "outward",
    tap: Sequence[int] | None = None,
) -> Tensor:
    """Fill a tensor with IDIZ_eps, in place: +eps and -eps in every row.

    For the last weight of a residual branch. See spec section 2, and section 3 for kernels
    (IDIZC_eps). Autograd, random numbers, complex and meta tensors are treated as in :func:`idi_`.

    Parameters
    ----------
    tensor, layout, groups, transposed, stride, blocks, taps, tap
        As in :func:`idi_`.
    eps : float
        Any finite real number that does not round to 0 in the tensor's dtype.
    form : {"pair", "shifted"}
        How the entries of a wide matrix are placed: two in each row, or one in each column.

    Returns
    -------
    torch.Tensor
        The same object, with its dtype, device, strides and requires_grad.

    Raises
    ------
    ShapeError, LayoutError, OptionError, OptionTypeError, DTypeError, RoundingError
        As in :func:`idi_`.

    Examples
    --------
    >>> import torch
    >>> from idinit_ref_torch import idiz_
    >>> idiz_(torch.empty(2, 3), eps=0.5)
    tensor([[ 0.5000,  0.0000, -0.5000],
            [ 0.0000,  0.5000, -0.5000]])
    """
    return _filled(
        tensor, "zero", eps, form, layout, groups, transposed, stride, blocks, taps, tap
    )  # fmt: skip
