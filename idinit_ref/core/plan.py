"""One weight: its validated options, and what pattern, layout and build make of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from itertools import islice, product
from math import prod
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionTypeError, ShapeError, message
from . import build as _build
from .checked import checked
from .dtypes import Format, format_of, round_array, round_value
from .kernel import Taps
from .lattice import nnz
from .layout import Box, Layout, strides_of
from .noise import LoosenAt, Noise
from .options import box_of, countable, is_plain, sizes
from .pattern import Form, Role, Term, Wide, idi_terms, idiz_terms
from .places import matches, runs

__all__ = ["Plan", "strips"]

_FEW = 64  # slices that are cached for a plan


@dataclass(frozen=True)
class Plan:
    """The complete description of one weight: hashable, and cheap at any size.

    Made by :func:`plan`, which supplies the defaults. Building it twice, on any device, in any
    namespace, whole or in blocks, gives the same bits (spec section 5).

    Parameters
    ----------
    shape, role, gain, eps, wide, form, layout, groups, transposed, stride, blocks, taps, tap, \
loosen, loosen_at, seed
        As in :func:`plan`. Roles of matrices are a tuple if they differ, else one word.

    Raises
    ------
    ShapeError, LayoutError, OptionError, OptionTypeError
        If anything does not fit.

    Examples
    --------
    >>> import idinit_ref as ir
    >>> p = ir.plan((1_000_000, 1_000_000), "zero")
    >>> p.nnz
    2000000
    >>> p.block((slice(0, 2), slice(0, 3)))
    array([[ 1.e-06, -1.e-06,  0.e+00],
           [ 0.e+00,  1.e-06, -1.e-06]])
    """

    shape: tuple[int, ...]
    role: Role | tuple[Role, ...] = "transit"
    gain: float = 1.0
    eps: float = 1e-6
    wide: Wide = "truncate"
    form: Form = "pair"
    layout: str = cast("str", None)
    groups: int = 1
    transposed: bool = False
    stride: tuple[int, ...] | None = None
    blocks: tuple[int, ...] | None = None
    taps: Taps = "outward"
    tap: tuple[int, ...] | None = None
    loosen: float = 0.0
    loosen_at: LoosenAt = "all"
    seed: int = 0
    axes: Layout = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, value in checked(vars(self)).items():
            object.__setattr__(self, name, value)
        apart = isinstance(self.role, tuple) and len(self.role) > len(self.blocks or (0,))
        axes = (self.groups, self.transposed, self.blocks, self.taps, self.tap, self.stride, apart)
        object.__setattr__(self, "axes", Layout(self.shape, self.layout, *axes))

    def options(self) -> dict[str, Any]:
        """Return the options with which `plan` makes this plan again, besides the shape.

        Returns
        -------
        dict
            The role and the layout, and all other options that are not the default.

        Examples
        --------
        >>> import idinit_ref as ir
        >>> ir.plan((4, 3), blocks=(2, 2)).options()
        {'role': 'transit', 'layout': 'OI', 'blocks': (2, 2)}
        """
        own = ((each.name, getattr(self, each.name), each.default) for each in fields(self))
        changed = {name: value for name, value, usual in own if value != usual}
        return {"role": self.role, "layout": self.layout} | {
            name: value for name, value in changed.items() if name not in ("shape", "axes")
        }

    # What it holds --------------------------------------------------------------------------

    @property
    def matrices(self) -> tuple[tuple[int, int, int], ...]:
        """The matrices (m, n, copies) of the weight, in the order of its outputs.

        With a stride, each phase of a kernel is a matrix of its own.

        Examples
        --------
        >>> import idinit_ref as ir
        >>> ir.plan((12, 2, 3, 3), groups=4).matrices
        ((3, 18, 4),)
        """
        at = self.axes
        return tuple((p.m, n, p.copies * at.copies) for p in at.pieces for n in at.widths)

    @property
    def nnz(self) -> int:
        """The number of non-zero entries; with noise in every entry, all of them.

        Examples
        --------
        >>> import idinit_ref as ir
        >>> ir.plan((6, 3)).nnz, ir.plan((6, 3), loosen=0.01).nnz
        (6, 18)
        """
        full = self.loosen and self.loosen_at == "all"
        noisy = {k for k, role in enumerate(self.roles) if role == "transit"} if full else ()
        return sum(
            copies * (m * n if block in noisy else sum(map(nnz, self.terms(m, n, block))))
            for m, n, copies, block in self._matrices()
        )

    @property
    def roles(self) -> tuple[Role, ...]:
        """The role of each block; where matrices along batch axes differ, of each matrix of these.

        Examples
        --------
        >>> import idinit_ref as ir
        >>> ir.plan((6, 3), blocks=(2, 4)).roles, ir.plan((6, 3), "zero").roles
        (('transit', 'transit'), ('zero',))
        >>> ir.plan((2, 4, 4), ("transit", "zero"), layout="LOI").roles
        ('transit', 'zero')
        """
        if isinstance(self.role, tuple):
            return self.role
        return (self.role,) * (1 if self.blocks is None else len(self.blocks))

    @property
    def parts(self) -> tuple[tuple[tuple[slice, ...], Role], ...]:
        """The place of each of `roles` in the weight, beside the role.

        Examples
        --------
        >>> import idinit_ref as ir
        >>> (place, role), _ = ir.plan((4, 3), ("transit", "zero"), blocks=(1, 3)).parts
        >>> place, role
        ((slice(0, 1, None), slice(None, None, None)), 'transit')
        """
        return tuple(zip(self.axes.places, self.roles, strict=True))

    def terms(self, m: int, n: int | None = None, block: int = 0) -> tuple[Term, ...]:
        """Return the closed form of this weight's m x n matrices.

        Parameters
        ----------
        m : int
            The rows of one of `matrices`.
        n : int, optional
            Its columns; those of the first of `matrices` if left out.
        block : int
            Its number in `roles`.

        Returns
        -------
        tuple of idinit_ref.core.pattern.Term
            One for each value, without noise.

        Examples
        --------
        >>> import idinit_ref as ir
        >>> ir.plan((3, 2)).terms(3)
        (Term(value=1.0, rows=range(0, 3), columns=range(0, 2), shift=0, period=2),)
        """
        n = self.axes.widths[0] if n is None else n
        role = self.role if isinstance(self.role, str) else self.role[block]
        if role == "transit":
            return idi_terms(m, n, self.gain, self.wide)
        return idiz_terms(m, n, self.eps, self.form)

    def entries(
        self, index: tuple[slice, ...] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the non-zeros of the weight, or of a block of it, in float64.

        Parameters
        ----------
        index : tuple of slice, optional
            One slice of step 1 for each axis; the whole weight if left out.

        Returns
        -------
        positions : numpy.ndarray of int64, shape (k,)
            Their flat, row-major positions in that block, in rising order.
        values : numpy.ndarray of float64, shape (k,)
            Their values before any rounding.

        Raises
        ------
        IndexingError
            If the index is not of that form.

        Examples
        --------
        >>> import idinit_ref as ir
        >>> positions, values = ir.plan((2, 4), "zero").entries()
        >>> positions.tolist(), values.tolist()
        ([0, 2, 5, 7], [1e-06, -1e-06, 1e-06, -1e-06])
        """
        box = box_of(index, self.shape)
        countable(tuple(len(span) for span in box))
        strides = strides_of([len(span) for span in box])
        if self.loosen:
            parts = [
                (np.arange(at.start, at.stop, at.step), row)
                for at, row in self._noise.rows(self.axes, self.terms, box, strides)
            ]
        else:
            parts = [
                (place, np.full(place.size, value))
                for value, place in _build.positions(runs(self.axes, self.terms, box, strides))
            ]
        if not parts:
            return np.empty(0, np.int64), np.empty(0, np.float64)
        places = np.concatenate([place for place, _ in parts])
        values = np.concatenate([value for _, value in parts])
        order = np.argsort(places)
        return places[order], values[order]

    # Arrays ---------------------------------------------------------------------------------

    def build(self, xp: Any = None, dtype: Any = None, device: Any = None) -> Any:
        """Make the whole weight.

        Parameters
        ----------
        xp : namespace, optional
            numpy (the default), torch, jax.numpy, cupy, dask.array, array_api_strict, any other
            array API namespace, or an array of one.
        dtype : dtype of that namespace, optional
            Real floating or complex; the namespace's default floating dtype if left out.
        device : device of that namespace, optional
            The device of the result.

        Returns
        -------
        array
            Of the plan's shape. Every entry is the float64 one rounded once, to nearest even.

        Raises
        ------
        DTypeError
            If the dtype is not real floating or complex, or not of that namespace.
        RoundingError
            If an entry would become 0 or infinite in that dtype.

        Examples
        --------
        >>> import idinit_ref as ir
        >>> ir.plan((3, 2), gain=2).build(dtype="float32")
        array([[2., 0.],
               [0., 2.],
               [2., 0.]], dtype=float32)
        """
        target, shape = _build.resolve(xp, dtype, device), self.shape
        if target.xp is np:  # as in _array, in fewer steps
            countable(shape)
            size = (prod(shape),)
            known = strips(self, size, strides_of(shape), target.dtype)
            if known is not None:
                flat = _build.zeros(target, size)
                _build.write(flat, known)
                return flat.reshape(shape)
        return self._array(box_of(None, self.shape), target)

    def block(
        self, index: tuple[slice, ...], xp: Any = None, dtype: Any = None, device: Any = None
    ) -> Any:
        """Make a part of the weight, equal to ``build()[index]`` at the cost of that part.

        Parameters
        ----------
        index : tuple of slice
            One slice of step 1 for each axis.
        xp, dtype, device
            As in :meth:`build`.

        Returns
        -------
        array
            The block. (A loosened row's noise is drawn whole, so there it costs its whole rows.)

        Raises
        ------
        IndexingError
            If the index is not of that form.
        DTypeError, RoundingError
            As in :meth:`build`.

        Examples
        --------
        >>> import idinit_ref as ir
        >>> ir.plan((6, 3)).block((slice(2, 4), slice(0, 3)))
        array([[0., 0., 1.],
               [1., 0., 0.]])
        """
        return self._array(box_of(index, self.shape), _build.resolve(xp, dtype, device))

    def check(self, dtype: Any) -> None:
        """Raise what :meth:`build` would raise for a dtype, and make nothing.

        Parameters
        ----------
        dtype : dtype of any framework
            The dtype that the weight would have.

        Raises
        ------
        DTypeError, RoundingError
            As in :meth:`build`.

        Examples
        --------
        >>> import idinit_ref as ir
        >>> ir.plan((3, 3), "zero").check("bfloat16")
        """
        _rounded(self, format_of(dtype))

    def write(
        self,
        flat: Any,
        strides: Sequence[int] | None = None,
        index: tuple[slice, ...] | None = None,
    ) -> None:
        """Write the non-zeros into memory that is already zero.

        Parameters
        ----------
        flat : array, shape (k,)
            A one-dimensional array of any namespace that can be written to: the memory of a
            weight of this shape, or of the block `index` of one, from its first element on.
        strides : sequence of int, optional
            Elements between neighbours on each axis, none of which share memory; row-major if
            left out.
        index : tuple of slice, optional
            One slice of step 1 for each axis: what part of the weight this is (a shard). The
            whole weight if left out.

        Raises
        ------
        IndexingError
            If the index is not of that form.
        ShapeError
            If the array is not flat or too short, or the strides do not fit.
        OptionTypeError
            If the array cannot be written to.
        DTypeError, RoundingError
            As in :meth:`build`; nothing is written on any error.

        Examples
        --------
        >>> import idinit_ref as ir
        >>> stored_by_columns = np.zeros(6)
        >>> ir.plan((2, 3)).write(stored_by_columns, strides=(1, 2))
        >>> stored_by_columns.reshape(3, 2).T
        array([[1., 0., 0.],
               [0., 1., 0.]])
        """
        plain = type(flat) is np.ndarray  # of which array_api_compat's answer takes long
        if not (flat.flags.writeable if plain else _build.is_writable(flat)):
            should = "it should be an array that can be written to"
            cure = "use build() or block(), which return a new array"
            raise OptionTypeError(message("flat", type(flat), should, cure))
        length, dtype = tuple(flat.shape), flat.dtype
        if index is None and strides and is_plain(strides) and min(strides) >= 0:
            known = strips(self, length, cast("tuple[int, ...]", strides), dtype)
            if known is not None:
                _build.write(flat, known)
                return
        box = box_of(index, self.shape)
        shape = tuple(map(len, box))
        steps = strides_of(shape)
        if strides is not None:
            steps = sizes("strides", strides, ShapeError, "count in elements, not in bytes")
        _build.check_memory(length, shape, steps)
        self._fill(flat, box, steps, format_of(dtype))

    # Inside ---------------------------------------------------------------------------------

    def _matrices(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield (m, n, copies, number in `roles`) for each of `matrices`."""
        at = self.axes
        for stack, p, n in product(at.stacks, at.pieces, at.widths):
            yield p.m, n, p.copies * stack.copies * at.repeats, stack.first + p.block

    def _array(self, box: Box, target: _build.Target) -> Any:
        shape = tuple(len(span) for span in box)
        countable(shape)
        rounded = _rounded(self, target.format)
        if target.way == "write":
            flat = _build.zeros(target, (prod(shape),))
            self._fill(flat, box, strides_of(shape), target.format)
            return target.xp.reshape(flat, shape)
        if target.way == "trace" and not self.loosen:
            equal = matches(self.axes, self.terms, target, box, rounded)
            return _build.select(target, shape, equal)
        here = _build.resolve(None, np.dtype(target.dtype), None)
        if target.way == "chunks":

            def block(part: tuple[slice, ...]) -> NDArray[Any]:
                spans = tuple(span[cut] for span, cut in zip(box, part, strict=True))
                return cast("NDArray[Any]", self._array(spans, here))

            return _build.chunks(target, shape, block)
        return _build.move(target, self._array(box, here))

    @property
    def _noise(self) -> Noise:
        still = frozenset(k for k, role in enumerate(self.roles) if role == "zero")
        return Noise(self.loosen, self.loosen_at, self.seed, still)

    def _fill(self, flat: Any, box: Box, strides: Sequence[int], to: Format) -> None:
        if not self.loosen:
            slices: Iterable[tuple[slice, float]] | None
            slices = _few_slices(self, box, tuple(strides), to)
            if slices is None:
                slices = _slices(self, box, strides, to)
            _build.write(flat, slices)
            return
        _rounded(self, to)
        for at, values in self._noise.rows(self.axes, self.terms, box, strides):
            flat[at] = _build.like(flat, round_array(values, to, "gain + noise"))


@lru_cache(maxsize=1024)
def strips(
    plan: Plan, length: tuple[int, ...], strides: tuple[int, ...], dtype: Any
) -> tuple[tuple[slice, float], ...] | None:
    """Return what :meth:`Plan.write` writes for a whole weight, in slices of its flat memory.

    Validates like :meth:`Plan.write`. Returns None for more than 64 slices, or with noise.

    >>> strips(Plan((3, 2)), (6,), (2, 1), "float32")
    ((slice(0, 5, 4), 1.0), (slice(3, 4, 1), 1.0))
    """
    _build.check_memory(length, plan.shape, strides)
    to = format_of(dtype)
    return None if plan.loosen else _few_slices(plan, box_of(None, plan.shape), strides, to)


@lru_cache(maxsize=1024)
def _few_slices(
    plan: Plan, box: Box, strides: tuple[int, ...], to: Format
) -> tuple[tuple[slice, float], ...] | None:
    """Return the slices of a box if there are few: a model has many weights alike."""
    few = tuple(islice(_slices(plan, box, strides, to), _FEW + 1))
    return few if len(few) <= _FEW else None


def _slices(
    plan: Plan, box: Box, strides: Sequence[int], to: Format
) -> Iterator[tuple[slice, float]]:
    """Yield the slices to write for a box."""
    return _build.slices(runs(plan.axes, plan.terms, box, strides, _rounded(plan, to)))


@lru_cache(maxsize=4096)
def _rounded(plan: Plan, to: Format) -> dict[float, float]:
    rounded: dict[float, float] = {}
    roles = plan.roles
    for role in dict.fromkeys(roles):
        own = [(m, n, block) for m, n, _, block in plan._matrices() if roles[block] == role]
        folded = plan.wide != "truncate" and any(m < n for m, n, _ in own)
        what = "eps" if role == "zero" else f"gain after {plan.wide}" if folded else "gain"
        values = dict.fromkeys(term.value for each in own for term in plan.terms(*each))
        if plan.loosen and role == "transit" and values:
            round_value(plan.loosen, to, "loosen")
        rounded |= {value: round_value(value, to, what) for value in values}
    return rounded
