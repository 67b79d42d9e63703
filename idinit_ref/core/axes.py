"""Which axes of a stored weight are inputs, outputs or copies: by letters, numbers or an einsum.

The letters are those of a layout. Here a letter may stand for several axes, which then count as
one in row-major order: "IOO" for the kernel (d, heads, size) of queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import index
from typing import Any, cast

from array_api_compat import numpy as xp

from ..errors import LayoutError, OptionError, OptionTypeError, ShapeError, message
from .layout import SPATIAL, merge_axes, split_axes
from .pattern import Role
from .plan import Plan
from .weights import plan

__all__ = [
    "bias",
    "check_clear",
    "einsum_letters",
    "joined",
    "letters_of",
    "numbered",
    "places",
    "stored",
    "unknown",
]

_BATCH = "ABCEFGJKLMNPQRSTUVXYZ"  # the letters that the specification gives no meaning


def joined(shape: Sequence[int], role: Role, letters: str | None, **options: Any) -> Plan:
    """Decide a weight whose axes of one letter count as one; its plan has them joined.

    >>> joined((8, 2, 3), "transit", "IOO").shape
    (8, 6)
    """
    if not isinstance(letters, str) or len(letters) != len(shape):
        return plan(shape, role, layout=letters, **options)
    twice = [c for c in SPATIAL if letters.count(c) > 1]
    if twice:
        should = f"the axis {twice[0]!r} of a kernel should stand in it once"
        cure = "name the axes of a kernel D, H and W; only inputs, outputs and copies are joined"
        raise LayoutError(message("layout", letters, should, cure))
    if 2 < len(letters) != len(set(letters)) and not {"I", "O"} <= set(letters):
        should = f"it should name inputs (I) and outputs (O) of shape {tuple(shape)}"
        cure = "write IOO, say, for a kernel of one axis of inputs and two of outputs"
        raise LayoutError(message("layout", letters, should, cure))
    if {"I", "O"} <= set(letters) and len(set(letters)) < len(letters):
        plan(shape, role, layout=_BATCH[: len(shape) - 2] + "IO")  # an error where sizes are none
        shape, letters = merge_axes(shape, letters)
    return plan(shape, role, layout=letters, **options)


def stored(
    how: Plan, dtype: Any, shape: Sequence[int], letters: str, parted: Sequence[int] | None = None
) -> Any:
    """Build a weight that `joined` decided, in NumPy, and give it its stored shape again.

    `parted` are the sizes of the axes that the letters name, where the stored shape has others.

    >>> stored(joined((2, 2, 2), "transit", "IOO"), "float32", (2, 2, 2), "IOO").tolist()
    [[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]]
    """
    array = split_axes(xp, how.build(dtype=dtype), shape if parted is None else parted, letters)
    return xp.reshape(array, tuple(shape))


def einsum_letters(
    equation: str, name: str = "equation", numbered: str = "input_axes= and output_axes="
) -> str:
    """Return the layout of an einsum's kernel, its second operand, by where each letter stands.

    >>> einsum_letters("...bc,cde->...bde"), einsum_letters("nta,nab->ntb")
    ('IOO', 'BIO')
    """
    operands, _, result = equation.replace(" ", "").partition("->")
    inputs, _, kernel = operands.partition(",")
    batch = iter(_BATCH[1:] + _BATCH[0])
    kinds = {(True, False): "I", (False, True): "O"}
    where = [(c in inputs, c in result) for c in kernel]
    clear = (False, False) not in where and len(set(kernel)) == len(kernel) and "." not in kernel
    if not clear or not {*kinds} <= {*where}:
        should = (
            f"each axis of its kernel, {kernel!r}, should stand once in it, and in the first "
            "operand (inputs), in the result (outputs) or in both (copies); there should be "
            "inputs and outputs"
        )
        cure = f"say what they are to its kernel's initialiser: layout=, or {numbered}"
        raise OptionError(message(name, equation, should, cure))
    return "".join(kinds.get(both) or next(batch) for both in where)


def places(name: str, axes: object, needed: bool) -> tuple[int, ...]:
    """Return the numbers of some axes as a tuple, which may be empty unless it is needed.

    >>> places("input_axes", -2, True)
    (-2,)
    """
    given = axes if isinstance(axes, Sequence) else (axes,)
    try:
        found = tuple(index(cast("Any", place)) for place in given)
    except TypeError:
        found = None
    if found is None or any(isinstance(place, bool) for place in given):
        should = "it should be an integer or a tuple of them"
        raise OptionTypeError(message(name, axes, should, "write -1 or (0, 1)"))
    if needed and not found:
        should = "a weight should have at least one such axis"
        usual = -2 if name.startswith("in") else -1
        raise OptionError(message(name, axes, should, f"name it: {name}={usual}"))
    return found


def numbered(layout: str | None, axes: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    """Return the axes of inputs, outputs and copies that are given, by name; None is not given.

    Raise if a layout names the axes already.

    >>> numbered(None, {"in_axis": -1, "out_axis": None, "batch_axis": ()})
    {'in_axis': (-1,), 'batch_axis': ()}
    """
    given = [(name, value) for name, value in axes.items() if value is not None]
    found = {name: places(name, value, not name.startswith("batch")) for name, value in given}
    if layout is not None and any(found.values()):
        should = f"it names all axes, so {found} should not be given as well"
        inputs, outputs, copies = axes
        cure = f"give either layout, or {inputs}, {outputs} and {copies}"
        raise OptionError(message("layout", layout, should, cure))
    return found


def letters_of(shape: Sequence[int], axes: Mapping[str, tuple[int, ...]]) -> str:
    """Return the layout of a weight whose axes of inputs, outputs and copies are numbered.

    `axes` holds them in this order, by the names that an error uses. What is left is the kernel.

    >>> letters_of((3, 8, 2, 4), {"input_axes": (1,), "output_axes": (-2, -1), "batch_axes": (0,)})
    'AIOO'
    """
    ndim, left = len(shape), len(shape) - sum(map(len, axes.values()))
    *_, (last, copies) = axes.items()
    if len(copies) > len(_BATCH) or left > len(SPATIAL):
        should = (
            f"{dict(axes)} should leave at most {len(SPATIAL)} axes of it for the kernel, and name "
            f"at most {len(_BATCH)} batch axes"
        )
        cure = f"name the axes of stacked weights in {last}, and all axes of the inputs"
        raise ShapeError(message("shape", tuple(shape), should, cure))
    kinds: tuple[Iterator[str], ...] = iter("I" * ndim), iter("O" * ndim), iter(_BATCH)
    letters: dict[int, str] = {}
    for (name, numbers), kind in zip(axes.items(), kinds, strict=True):
        for number in numbers:
            axis = number % ndim if -ndim <= number < ndim else None
            if axis is None or axis in letters:
                should = (
                    f"axis {number} should be one of the {ndim} axes of the weight"
                    if axis is None
                    else f"axis {number} of {ndim} is named twice in {dict(axes)}"
                )
                cure = "name every axis once, as inputs, outputs or batch"
                raise OptionError(message(name, numbers, should, cure))
            letters[axis] = next(kind)
    kernel = iter(SPATIAL[len(SPATIAL) - left :])
    return "".join(letters.get(axis) or next(kernel) for axis in range(ndim))


def check_clear(
    shape: Sequence[int],
    layer: object,
    convolves: bool,
    options: Mapping[str, Any],
    names: str,
    copies: int = 0,
) -> None:
    """Raise if the last axes of a weight, three to five without its copies, may not be a kernel's.

    They are if the layer that asks convolves, or if some option only has a meaning for kernels. An
    order of taps has none for matrices, but a model may pass it to all of its layers. A call by
    hand (no layer) need not name the axes of a square kernel of odd size.

    >>> usual = {"groups": 1, "transposed": False, "stride": None, "tap": None, "taps": "outward"}
    >>> check_clear((3, 3, 8, 8), None, False, usual, "layout=")
    >>> check_clear((3, 8, 8), None, False, usual | {"groups": 2}, "layout=")
    """
    usual: dict[str, object] = {"groups": 1, "transposed": False, "stride": None, "tap": None}
    usual |= {"taps": "outward"} if layer is None else {}
    convolves |= any(options[name] != value for name, value in usual.items())
    if layer is None and not copies and len(shape) > 3:
        convolves |= len({*shape[:-2]}) == 1 and shape[0] in range(1, 12, 2)
    if 2 < len(shape) - copies < 6 and not convolves:
        asker = "a direct call" if layer is None else type(layer).__name__
        raise unknown(shape, asker, names)


def bias(shape: Sequence[int]) -> ShapeError:
    """Return the error for a bias with several axes, which looks like a matrix."""
    should = "it should be the shape of a weight, not of a bias"
    return ShapeError(message("shape", tuple(shape), should, "leave its initialiser out: zeros"))


def unknown(shape: Sequence[int], asker: str, numbered: str) -> LayoutError:
    """Return the error for a weight whose axes are unknown."""
    ndim = len(shape)
    samples = {3: ("IOO", "OOI", "BIO", "WIO"), 4: ("BIOO", "BOOI", "HWIO")}.get(ndim, ())
    layouts = ", ".join(f"layout={letters!r}" for letters in samples) or "layout=..."
    return LayoutError(
        message(
            "layout",
            None,
            f"for shape {tuple(shape)} of {asker} it should name the {ndim} axes: they may belong "
            "to a convolution, a stack or heads",
            f"give the initialiser {layouts} (axes of one letter count as one), or {numbered}; or "
            "set the built layer with idi_layer_ or idiz_layer_",
        )
    )
