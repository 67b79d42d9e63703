"""The numbers of the constants that a forward pass makes, such as indices and masks.

A trace runs on fake tensors. Operations that depend on no input and no parameter also run on real
ones here, if these are small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses import FakeTensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from ._memory import storage_of, tensors_of
from ._sharded import PLAIN

__all__ = ["Constants", "is_small"]

_MOST = 1 << 16  # the most entries of a constant that is computed


class Constants:
    """The real tensors of constants. They share memory as the constants do."""

    def __init__(self) -> None:
        self.is_fake = False  # whether the pass runs on fake tensors
        self._real = WeakTensorKeyDictionary()  # None: unknown
        self._seen = WeakTensorKeyDictionary()  # the versions whose numbers were taken
        self._lost: dict[int, StorageWeakRef] = {}  # memory that holds other values, too

    def keep(self, tensor: Tensor, held: Tensor) -> None:
        """Keep the numbers of a tensor that the model holds; `tensor` stands for it."""
        if is_small(held):
            with _disable_current_modes():
                self._real[tensor] = held.detach().clone().cpu() if self.is_fake else tensor

    def of(self, tensor: Tensor) -> Tensor | None:
        """Return the real tensor of a constant; None if it is unknown."""
        if tensor in self._real:
            real = self._real[tensor]
        else:  # a tensor from before the pass, of a closure say
            real = None
            if not isinstance(tensor, FakeTensor) and is_small(tensor):
                self.keep(tensor, tensor)
                real = self._real[tensor]
        return None if real is None or storage_of(real) in self._lost else real

    def all_of(self, tensors: Sequence[Tensor]) -> dict[int, Tensor] | None:
        """Return the real tensors of constants by their ids; None if one is unknown."""
        found = {id(tensor): self.of(tensor) for tensor in tensors}
        known = {at: real for at, real in found.items() if real is not None}
        return known if len(known) == len(found) else None

    def numbers(self, tensor: Tensor) -> NDArray[Any] | None:
        """Return the numbers of a constant, if they are known and have changed since last time."""
        real = self.of(tensor)
        version = -1 if real is None or real.is_inference() else real._version
        is_seen = tensor in self._seen and self._seen[tensor] == version >= 0
        if real is None or is_seen:
            return None
        self._seen[tensor] = version
        with _disable_current_modes():
            real = real.detach().cpu()
            found: NDArray[Any] = (real.double() if real.is_floating_point() else real).numpy()
        return found

    def selected(self, mask: Tensor) -> list[Tensor]:
        """Return the indices that a known mask selects, along each axis; none if it is unknown."""
        real = self.of(mask)
        if real is None:
            return []
        with _disable_current_modes():
            places = list(real.bool().nonzero(as_tuple=True))
        found = [self._stand_in(place, mask) for place in places]
        self.set(found, places)
        return found

    def run(
        self, run: Callable[..., Any], name: str, call: Any, real: Mapping[int, Tensor] | None
    ) -> tuple[Any, list[Tensor] | None]:
        """Run an operation, and return its result and the real tensors of it, if these are known.

        A fake tensor has no shape that depends on values. A constant has.
        """
        try:
            out = run(name, *call)
        except (DynamicOutputShapeException, DataDependentOutputException):
            given = next((t for t in tree_leaves(call) if isinstance(t, FakeTensor)), None)
            known = None if real is None else _run_real(call, real)
            if known is None or given is None:
                raise
            out = tree_map_only(Tensor, lambda t: self._stand_in(t, given), known)
            return out, tensors_of(known)
        results = tensors_of(out)
        if real is None or not all(map(is_small, results)):
            return out, None
        if not self.is_fake:
            return out, results
        known = _run_real(call, real)
        return out, None if known is None else tensors_of(known)

    def _stand_in(self, real: Tensor, given: Tensor) -> Tensor:
        """Return a tensor that stands for a real one in the pass, as a given one does."""
        return given.fake_mode.from_tensor(real) if isinstance(given, FakeTensor) else real

    def set(self, results: Sequence[Tensor], real: Sequence[Tensor] | None) -> None:
        """Set the real tensors of the results of an operation, if they are known."""
        for at, tensor in enumerate(results):
            found = None if real is None or at >= len(real) else real[at]
            self._real[tensor] = found if found is not None and is_small(found) else None

    def fill(self, tensor: Tensor, value: float | None) -> None:
        """Set the real tensor of a result with one number everywhere."""
        if value is None or not is_small(tensor):
            return
        if not self.is_fake:
            self._real[tensor] = tensor.zero_() if value == 0 else tensor  # it may be unset
            return
        with _disable_current_modes():
            real = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
            self._real[tensor] = real.fill_(value)

    def lose(self, tensors: Sequence[Tensor]) -> None:
        """Forget the numbers of all that shares memory with some tensors."""
        for tensor in tensors:
            real = self.of(tensor)
            if real is not None:
                held = StorageWeakRef(real.untyped_storage())  # type: ignore[no-untyped-call]  # the class is untyped
                self._lost[storage_of(real)] = held


def _run_real(call: Any, real: Mapping[int, Tensor]) -> Any:
    """Run an operation on real tensors; return None if it fails, as one on a missing device."""
    func, args, kwargs = tree_map_only(Tensor, lambda t: real[id(t)], call)
    try:
        with _disable_current_modes():
            return func(*args, **kwargs)
    # Any kernel may refuse: a missing device or dtype. Then the numbers are not known, as before.
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError):
        return None


def is_small(tensor: Tensor) -> bool:
    """Whether a tensor is a plain one of a few real numbers or bools."""
    is_plain = type(tensor) in PLAIN or isinstance(tensor, FakeTensor)
    is_dense = tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta
    is_real = is_plain and is_dense and not tensor.is_complex()
    return is_real and 0 < tensor.numel() <= _MOST
