"""The value of every tensor in a trace, after all writes to shared memory."""

from __future__ import annotations

from math import gcd
from typing import Any, NamedTuple

from torch import Tensor, strided
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from idinit_ref.tracing import Box, Drawing, Signal, Value, is_constant

from ._sharded import PLAIN

__all__ = ["Memory", "is_floating", "is_wrapper", "shape_of", "storage_of", "tensors_of"]


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape of a tensor as a tuple of int."""
    return tuple(map(int, tensor.shape))


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors among the leaves of a pytree."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def is_floating(tensor: Tensor) -> bool:
    """Whether a tensor holds real or complex numbers."""
    return tensor.is_floating_point() or tensor.is_complex()


def is_wrapper(tensor: Tensor) -> bool:
    """Whether a tensor wraps others and has no memory of its own, as some quantised ones do."""
    return type(tensor) not in PLAIN and hasattr(tensor, "__tensor_flatten__")


def storage_of(tensor: Tensor) -> int:
    """Return the identifier of a tensor's memory; 0 if it has none, as a sparse one."""
    if tensor.layout is not strided or is_wrapper(tensor):
        return 0
    return int(tensor.untyped_storage()._cdata)


class Place(NamedTuple):
    """The position of a tensor in its memory."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Place:
        """Return the position of a tensor."""
        return cls(int(tensor.storage_offset()), shape_of(tensor), tuple(map(int, tensor.stride())))

    @property
    def end(self) -> int:
        """The first entry after the tensor."""
        pairs = zip(self.shape, self.strides, strict=True)
        return self.offset + 1 + sum((size - 1) * step for size, step in pairs)

    def misses(self, other: Place) -> bool:
        """Whether two tensors provably have no entry in common."""
        a, b = (self, other) if self.offset <= other.offset else (other, self)
        axes = [*zip(a.shape, a.strides, strict=True), *zip(b.shape, b.strides, strict=True)]
        step = gcd(*(stride for size, stride in axes if size > 1)) or 1
        if a.end <= b.offset or (b.offset - a.offset) % step:
            return True
        if a.strides != b.strides or not all(a.strides):
            return False
        rest, above, is_apart = b.offset - a.offset, 0, False
        for axis in sorted(range(len(a.shape)), key=lambda axis: -a.strides[axis]):
            by, rest = divmod(rest, a.strides[axis])
            if above and (by + b.shape[axis]) * a.strides[axis] > above:
                return False
            above = a.strides[axis]
            is_apart = is_apart or by >= a.shape[axis]
        return is_apart and not rest

    def box(self, part: Place) -> Box | None:
        """Return where another tensor lies in this one, if it is a box of some of its entries."""
        axes = sorted(
            (a for a, n in enumerate(self.shape) if n > 1), key=lambda a: -self.strides[a]
        )
        low, sizes, rest = [0] * len(self.shape), [1] * len(self.shape), part.offset - self.offset
        inner = self.end - self.offset
        for axis in axes:
            if rest < 0 or inner > self.strides[axis] * self.shape[axis]:
                return None
            low[axis], rest = divmod(rest, self.strides[axis])
            inner = self.strides[axis]
        steps, last = [1] * len(self.shape), -1
        for size, stride in zip(part.shape, part.strides, strict=True):
            if size == 1:
                continue
            axis = next((a for a in axes if self.strides[a] and stride >= self.strides[a]), -1)
            if axis <= last or stride % self.strides[axis]:
                return None
            sizes[axis], steps[axis], last = size, stride // self.strides[axis], axis
        ends = zip(low, sizes, steps, self.shape, strict=True)
        fits = all(a + (n - 1) * step < whole for a, n, step, whole in ends)
        return Box(low, sizes, steps) if fits and not rest else None


class _Write(NamedTuple):
    """A write of a value to a position in memory, and its time."""

    time: int
    value: Value
    place: Place


class Memory:
    """The values of all tensors of a computation."""

    def __init__(self, draw: Drawing) -> None:
        self._draw = draw
        self._values = WeakTensorKeyDictionary()
        self._writes: dict[int, tuple[list[_Write], StorageWeakRef]] = {}
        self._now = 0

    def set(self, tensor: Tensor, value: Value) -> None:
        """Set the value of a tensor."""
        self._now += 1
        self._values[tensor] = (self._now, value)

    def write(self, tensor: Tensor, value: Value) -> None:
        """Set the value of a tensor, and record the write for all tensors that share its memory."""
        self.set(tensor, value)
        at = storage_of(tensor)
        if at:
            # the reference keeps the identifier of a storage from being reused
            storage = tensor.untyped_storage()
            held = StorageWeakRef(storage)  # type: ignore[no-untyped-call]  # the class is untyped
            writes, _ = self._writes.setdefault(at, ([], held))
            writes.append(_Write(self._now, value, Place.of(tensor)))

    def value(self, tensor: Tensor) -> Value:
        """Return the value of a tensor after all writes to its memory."""
        found = self._values.get(tensor)  # type: ignore[no-untyped-call]  # untyped in PyTorch
        if found is None and is_wrapper(tensor):
            return self._wrapped(tensor)
        since, value = found or (0, None)
        writes = self._writes.get(storage_of(tensor)) if self._writes else None
        if writes is not None and writes[0][-1].time > since:
            value = value or self._draw.constant(shape_of(tensor))
            for write in writes[0]:
                if write.time > since:
                    value = self._after(Place.of(tensor), value, write)
            self.set(tensor, value)
        if value is None:
            value = self._draw.constant(shape_of(tensor))
            self._values[tensor] = (since, value)  # one object for each tensor
        return value

    def _wrapped(self, tensor: Tensor) -> Value:
        """Return the value of a wrapper, such as a quantised tensor."""
        names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]  # wrappers have it
        inner = [getattr(tensor, name) for name in names]
        for part in inner:
            value = self.value(part)
            if shape_of(part) == shape_of(tensor) and not is_constant(value):
                return value
        values = [value for value in map(self.value, inner) if not is_constant(value)]
        shape = shape_of(tensor)
        if not values:
            return self._draw.constant(shape)
        return self._draw.other(type(tensor).__name__, values, shape, is_floating(tensor))

    def _after(self, place: Place, value: Value, write: _Write) -> Value:
        """Return a value after a write."""
        shape, new, draw = place.shape, write.value, self._draw
        if place == write.place:
            return new
        if place.misses(write.place):
            return value
        box = place.box(write.place)
        if box is not None:
            part = draw.reshape("view", new, tuple(box.sizes))
            return draw.write("write", value, part, box.low, shape, box.steps)
        box = write.place.box(place)
        if box is not None:
            return draw.reshape("view", draw.part("slice", new, box.spans), shape)
        floating = any(isinstance(one, Signal) for one in (value, new))
        return draw.result("write", [value, new], shape, floating)
