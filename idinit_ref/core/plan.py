"""The public face of one weight: validates everything, then asks pattern, layout and build."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from itertools import islice
from math import prod
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import IndexingError, OptionError, OptionTypeError, ShapeError, message
from . import build as _build
from .dtypes import Format, format_of, round_array, round_value
from .kernel import CORNER, Taps
from .lattice import keys, lines, nnz, remainder
from .layout import Box, Layout, strides_of
from .noise import LoosenAt, Noise
from .options import choice, countable, integer, letters, real, sizes
from .pattern import Form, Role, Term, Wide, idi_terms, idiz_terms

__all__ = ["Plan", "either", "plan", "strips"]

_KEYS = 2**16  # places that a traced program holds as constants
_FEW = 64  # slices that are remembered for a plan
_INT = frozenset({int})
_OPTIONS: dict[Role, dict[str, object]] = {  # of one role alone, and what they are left out
    "transit": {"gain": 1.0, "wide": "truncate", "loosen": 0.0, "loosen_at": "all", "seed": 0},
    "zero": {"eps": 1e-6, "form": "pair"},
}
_NAMES = {"transit": "IDI", "zero": "IDIZ"}


@dataclass(frozen=True)
class Plan:
    """One weight, decided but not yet made: pure integers, cheap at any size, hashable.

    Made by :func:`plan`, which supplies the defaults. Building it twice, on any device, in any
    namespace, whole or in blocks, gives the same bits (spec section 5).

    Parameters
    ----------
    shape : tuple of int
        The stored shape.
    role : {"transit", "zero"}
        IDI_tau (section 1) or IDIZ_eps (section 2).
    gain : float
        tau, the value of IDI's entries; any finite non-zero real. For ``role="transit"``.
    eps : float
        The value of IDIZ's entries; any finite non-zero real. For ``role="zero"``.
    wide : {"truncate", "fold_rms", "fold_mean"}
        What IDI does with a wide matrix.
    form : {"pair", "shifted"}
        How IDIZ fills a matrix of n >= 2m columns: two entries a row, or one in every column.
    layout : str
        A letter for each axis (section 4).
    groups : int
        Groups of a convolution.
    transposed : bool
        Whether the I axis holds all inputs and the O axis the outputs per group.
    blocks : tuple of int, optional
        Sizes that cut the O axis into matrices of their own.
    stride : tuple of int, optional
        The strides of a transposed convolution, in the order D, H, W.
    taps : {"outward", "diagonal", "center", "channel_major", "spatial_major"}
        How a kernel becomes a matrix (section 3).
    tap : tuple of int, optional
        The identity tap, in the order D, H, W.
    loosen : float
        Standard deviation s of the noise added to IDI; 0 for none.
    loosen_at : {"all", "entries"}
        Where that noise goes: into whole rows, or into the entries that are not 0.
    seed : int
        The seed of that noise, 0 <= seed < 2**63.

    Raises
    ------
    ShapeError, LayoutError, OptionError, OptionTypeError
        If anything does not fit; nothing is made then.

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
    role: Role = "transit"
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
        def settle(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        settle("shape", sizes("shape", self.shape, ShapeError))
        choice("role", self.role, get_args(Role))
        choice("wide", self.wide, get_args(Wide))
        choice("form", self.form, get_args(Form))
        choice("taps", self.taps, get_args(Taps))
        choice("loosen_at", self.loosen_at, get_args(LoosenAt))
        settle("gain", real("gain", self.gain))
        settle("eps", real("eps", self.eps))
        settle("loosen", real("loosen", self.loosen, zero=True))
        settle("groups", integer("groups", self.groups, low=1))
        settle("seed", integer("seed", self.seed, low=0, high=2**63))  # beyond, see standard_normal
        if not isinstance(self.transposed, (bool, np.bool_)):
            raise OptionTypeError(
                message("transposed", self.transposed, "it should be True or False", "write one")
            )
        settle("transposed", bool(self.transposed))
        if self.blocks is not None:
            settle("blocks", sizes("blocks", self.blocks, OptionError))
        if self.tap is not None:
            settle("tap", sizes("tap", self.tap, OptionError, "count from 0 to k - 1"))
        if self.stride is not None:
            cure = "write the strides of the layer as integers"
            settle("stride", sizes("stride", self.stride, OptionError, cure, low=None))
        settle("layout", letters(self.layout, self.shape))
        self._check_role()
        axes = (self.groups, self.transposed, self.blocks, self.taps, self.tap, self.stride)
        settle("axes", Layout(self.shape, self.layout, *axes))

    def _check_role(self) -> None:
        """Raise for an option of the other role, or of noise where there is none."""
        other: Role = "transit" if self.role == "zero" else "zero"
        for name, default in _OPTIONS[other].items():
            if getattr(self, name) != default:
                should = f"{_NAMES[self.role]} (role {self.role!r}) has no such option"
                cure = f"leave it out, or use role={other!r}"
                raise OptionError(message(name, getattr(self, name), should, cure))
        if self.loosen_at != "all" and not self.loosen:
            should = "there is no noise to place: loosen is 0"
            cure = "give a standard deviation with loosen=, or leave it out"
            raise OptionError(message("loosen_at", self.loosen_at, should, cure))

    def options(self) -> dict[str, Any]:
        """Return what `plan` needs besides the shape to make it again: what is not the default.

        Returns
        -------
        dict
            The role and the layout, always, and all other options that are not the default.

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
        """The matrices (m, n, copies) that the weight is made of, in the order of its outputs.

        With a stride each phase of a kernel is one.

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
        """How many entries are not zero (all of a matrix's when it is loosened everywhere).

        Examples
        --------
        >>> import idinit_ref as ir
        >>> ir.plan((6, 3)).nnz, ir.plan((6, 3), loosen=0.01).nnz
        (6, 18)
        """
        noisy = self.loosen and self.loosen_at == "all"
        return sum(
            copies * (m * n if noisy else sum(map(nnz, self.terms(m, n))))
            for m, n, copies in self.matrices
        )

    def terms(self, m: int, n: int | None = None) -> tuple[Term, ...]:
        """Return the closed form of this weight's m x n matrices.

        Parameters
        ----------
        m : int
            The rows of one of `matrices`.
        n : int, optional
            Its columns; those of the first of `matrices` if left out.

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
        if self.role == "transit":
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
        box = self._box(index)
        countable(tuple(len(span) for span in box))
        strides = strides_of([len(span) for span in box])
        if self.loosen:
            found = [
                (np.arange(at.start, at.stop, at.step), row)
                for at, row in self._noise.rows(self.axes, self.terms, box, strides)
            ]
        else:
            found = [
                (place, np.full(place.size, value))
                for value, place in _build.positions(self._runs(box, strides, None))
            ]
        if not found:
            return np.empty(0, np.int64), np.empty(0, np.float64)
        places = np.concatenate([place for place, _ in found])
        values = np.concatenate([value for _, value in found])
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
            Where the result is to lie.

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
        return self._array(self._box(None), target)

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
        return self._array(self._box(index), _build.resolve(xp, dtype, device))

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
        self._rounded(format_of(dtype))

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
            raise OptionTypeError(
                message(
                    "flat",
                    type(flat),
                    "it should be an array that can be written to",
                    "use build() or block(), which return a new array",
                )
            )
        length, dtype = tuple(flat.shape), flat.dtype
        if index is None and strides and _is_plain(strides) and min(strides) >= 0:
            known = strips(self, length, cast("tuple[int, ...]", strides), dtype)
            if known is not None:
                _build.write(flat, known)
                return
        box = self._box(index)
        shape = tuple(map(len, box))
        steps = strides_of(shape)
        if strides is not None:
            steps = sizes("strides", strides, ShapeError, "count in elements, not in bytes")
        _check_memory(length, shape, steps)
        self._fill(flat, box, steps, format_of(dtype))

    # Inside ---------------------------------------------------------------------------------

    def _box(self, index: tuple[slice, ...] | None) -> Box:
        if index is None:
            return tuple(range(size) for size in self.shape)
        if not isinstance(index, tuple) or len(index) != len(self.shape):
            raise IndexingError(
                message(
                    "index",
                    index,
                    f"it should be a tuple of {len(self.shape)} slices, one for each axis of shape "
                    f"{self.shape}",
                    "write slice(None) for a whole axis",
                )
            )
        box = []
        for span, size in zip(index, self.shape, strict=True):
            if not isinstance(span, slice) or span.step not in (None, 1):
                raise IndexingError(
                    message(
                        "index",
                        index,
                        f"{span!r} should be a slice of step 1",
                        "write slice(i, i + 1) for one place",
                    )
                )
            try:
                start, stop, _ = span.indices(size)
            except TypeError as problem:
                raise IndexingError(
                    message("index", index, f"{span!r} should have integer ends", "round them")
                ) from problem
            box.append(range(start, max(start, stop)))
        return tuple(box)

    def _array(self, box: Box, target: _build.Target) -> Any:
        shape = tuple(len(span) for span in box)
        countable(shape)
        self._rounded(target.format)
        if target.way == "write":
            flat = _build.zeros(target, (prod(shape),))
            self._fill(flat, box, strides_of(shape), target.format)
            return target.xp.reshape(flat, shape)
        if target.way == "trace" and not self.loosen:
            return _build.select(target, shape, self._matches(target, box))
        here = _build.resolve(None, np.dtype(target.dtype), None)
        if target.way == "chunks":

            def block(part: tuple[slice, ...]) -> NDArray[Any]:
                spans = tuple(span[cut] for span, cut in zip(box, part, strict=True))
                return cast("NDArray[Any]", self._array(spans, here))

            return _build.chunks(target, shape, block)
        return _build.move(target, self._array(box, here))

    @property
    def _noise(self) -> Noise:
        return Noise(self.loosen, self.loosen_at, self.seed)

    def _rounded(self, to: Format) -> dict[float, float]:
        """Return every entry's value as the format holds it, or raise RoundingError."""
        return _rounded(self, to)

    def _runs(
        self, box: Box, strides: Sequence[int], rounded: dict[float, float] | None
    ) -> Iterator[_build.Run]:
        """Yield where the entries of a box lie, in memory of these strides."""
        for sheet in self.axes.sheets(box, strides):
            repeats = tuple((repeat.times, repeat.stride) for repeat in sheet.repeats)
            for strip in sheet.strips:
                for term in self.terms(sheet.m, strip.n):
                    value = term.value if rounded is None else rounded[term.value]
                    for line in lines(term, sheet.rows, strip.first, strip.step, strip.length):
                        row = line.row - sheet.rows.start
                        start = row * sheet.row_stride + line.item * strip.stride
                        step = line.row_step * sheet.row_stride + line.item_step * strip.stride
                        yield _build.Run(
                            value,
                            sheet.offset + strip.offset + start,
                            ((line.length, step), *repeats),
                        )

    def _matches(self, target: _build.Target, box: Box) -> Iterator[_build.Match]:
        """Yield the entries of a box as comparisons of broadcastable integer arrays."""
        xp, at, rounded = target.xp, self.axes, self._rounded(target.format)
        # Few keys beside many entries are counted once, here; many are left to the compiler.
        size, rows = prod(map(len, box)), len(box[at.o_axis])
        keyed = rows + size // max(rows, 1)
        where: Any = np if 4 * keyed < size and keyed < _KEYS else xp
        output = at.row_grid(where, box)
        columns = [(n, at.column_grid(where, box, k)) for k, n in enumerate(at.widths) if n]
        for piece in at.pieces:
            row = output - piece.start
            ours = (row >= 0) & (row < piece.m * piece.copies)
            row = remainder(where, row, range(piece.m * piece.copies), max(piece.m, 1))
            row = where.where(ours, row, -1)
            found = [
                _build.Match(rounded[term.value], *keys(term, where, row, column))
                for n, column in columns
                for term in self.terms(piece.m, n)
            ]
            yield from _build.united(found) if where is np else found

    def _fill(self, flat: Any, box: Box, strides: Sequence[int], to: Format) -> None:
        if not self.loosen:
            slices: Iterable[tuple[slice, float]] | None
            slices = _few_slices(self, box, tuple(strides), to)
            if slices is None:
                slices = _build.slices(self._runs(box, strides, self._rounded(to)))
            _build.write(flat, slices)
            return
        self._rounded(to)
        for at, values in self._noise.rows(self.axes, self.terms, box, strides):
            flat[at] = _build.like(flat, round_array(values, to, "gain + noise"))


def plan(
    shape: Sequence[int],
    role: Role = "transit",
    *,
    gain: float = 1.0,
    eps: float = 1e-6,
    wide: Wide = "truncate",
    form: Form = "pair",
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
) -> Plan:
    """Decide one weight, and make nothing yet.

    Parameters
    ----------
    shape : sequence of int
        The stored shape; zero-size axes are allowed.
    role : {"transit", "zero"}
        IDI_tau [P, Eq. 3], or IDIZ_eps for the last weight of a residual branch.
    gain : float
        tau, for ``role="transit"``; any finite non-zero real.
    eps : float
        For ``role="zero"``; any finite non-zero real.
    wide : {"truncate", "fold_rms", "fold_mean"}
        What IDI does where there are more columns than rows.
    form : {"pair", "shifted"}
        What IDIZ does where there are at least twice as many columns as rows: two entries a row,
        or one in every column.
    layout : str, optional
        A letter for each axis: O outputs, I inputs, D H W spatial, any other capital a batch
        axis. By rank if left out: "OI", "OIW", "OIHW", "OIDHW".
    groups : int
        Groups of a convolution, each initialised on its own.
    transposed : bool
        With groups: the I axis holds all inputs and the O axis the outputs per group, as in
        PyTorch's transposed convolutions and in Keras' depthwise ones.
    stride : sequence of int, optional
        The strides of a transposed convolution in the order D, H, W. Each phase of its kernel is
        a matrix of its own. Negative where the kernel is stored flipped. With a dilation d give
        s / gcd(s, d).
    blocks : sequence of int, optional
        Sizes that cut the O axis into matrices of their own, as packed q, k, v.
    taps : {"outward", "diagonal", "center", "channel_major", "spatial_major"}
        How a kernel becomes a matrix. "outward": from the identity tap on, all channels of a tap
        together. "diagonal": from there on too, each channel at its own tap. "center": the
        identity tap alone. "channel_major" and "spatial_major": column c*K + s, or s*C + c, from
        the first tap on.
    tap : sequence of int, optional
        The identity tap in the order D, H, W: the left padding divided by the dilation;
        (k - 1) // 2 if left out.
    loosen : float
        Standard deviation of the noise added to IDI [P, Sec. 3.1.1]; 0 for none.
    loosen_at : {"all", "entries"}
        Whether the noise goes into whole rows, or into the entries that are not 0.
    seed : int
        The seed of that noise, 0 <= seed < 2**63.

    Returns
    -------
    Plan
        Frozen, hashable, and cheap at any size.

    Raises
    ------
    ShapeError, LayoutError, OptionError, OptionTypeError
        If anything does not fit, with the value, the expectation and the cure.

    Examples
    --------
    >>> import idinit_ref as ir
    >>> ir.plan((3, 2)).build()
    array([[1., 0.],
           [0., 1.],
           [1., 0.]])
    """
    given: Any = (
        shape, role, gain, eps, wide, form, layout, groups, transposed, stride, blocks, taps, tap,
        loosen, loosen_at, seed,
    )  # fmt: skip
    if _is_plain(shape) and _is_plain(blocks) and _is_plain(tap) and _is_plain(stride):
        try:
            return _remembered(*given)
        except TypeError:  # of what has no hash, or is an error: raised again below
            pass
    return Plan(*given)


def _is_plain(numbers: Sequence[int] | None) -> bool:
    """Whether equal ones are the same: True and 2.0 are no sizes, though equal to 1 and 2."""
    return numbers is None or (type(numbers) is tuple and _INT.issuperset(map(type, numbers)))


_remembered = lru_cache(maxsize=1024, typed=True)(Plan)


def either(
    shape: Sequence[int],
    role: Role,
    number: int = 0,
    *,
    gain: float = 1.0,
    eps: float = 1e-6,
    wide: Wide = "truncate",
    form: Form = "pair",
    loosen: float = 0.0,
    loosen_at: LoosenAt = "all",
    seed: int = 0,
    **stored: Any,
) -> Plan:
    """Decide weight `number` of a layer, from the options of both roles.

    The adapters' layer calls take options for transit and zero weights together. All of them are
    validated, and those of `role` are used; a loosened weight has the seed ``seed + number``. The
    corner orders use no identity tap, so there the layer's `tap` is left out.

    >>> either((2, 3), "zero", gain=2.0, eps=0.5).eps
    0.5
    """
    noise: dict[str, Any] = {"loosen": loosen, "loosen_at": loosen_at, "seed": seed}
    noisy = plan((0, 0), gain=gain, wide=wide, **noise)
    zero = plan((0, 0), "zero", eps=eps, form=form)
    if stored.get("taps", "outward") in CORNER:
        stored = stored | {"tap": None}
    if role == "zero":
        return plan(shape, role, eps=zero.eps, form=form, **stored)
    noise["seed"] = noisy.seed + number if noisy.loosen else noisy.seed
    return plan(shape, role, gain=gain, wide=wide, **noise, **stored)


@lru_cache(maxsize=1024)
def strips(
    plan: Plan, length: tuple[int, ...], strides: tuple[int, ...], dtype: Any
) -> tuple[tuple[slice, float], ...] | None:
    """Return what :meth:`Plan.write` writes for a whole weight, in slices of its flat memory.

    Checks all that it checks. None if there are many, which it makes one by one.

    >>> strips(plan((3, 2)), (6,), (2, 1), "float32")
    ((slice(0, 5, 4), 1.0), (slice(3, 4, 1), 1.0))
    """
    _check_memory(length, plan.shape, strides)
    to = format_of(dtype)
    return None if plan.loosen else _few_slices(plan, plan._box(None), strides, to)


def _check_memory(flat: tuple[int, ...], shape: tuple[int, ...], steps: tuple[int, ...]) -> None:
    """Raise unless flat memory has a place of its own for every entry."""
    if len(steps) != len(shape):
        should = f"there should be one number for each axis of shape {shape}"
        raise ShapeError(message("strides", steps, should, "count in elements, not in bytes"))
    if prod(shape) == 0:
        return
    reach = 0
    for step, size in sorted(zip(steps, shape, strict=True)):
        if size > 1 and step <= reach:
            should = f"in shape {shape} no two places should share memory"
            raise ShapeError(message("strides", steps, should, "write to a copy of its own"))
        reach += (size - 1) * step
    if len(flat) != 1 or flat[0] <= reach:
        should = f"shape {shape} with strides {steps} needs one axis of {reach + 1} places"
        raise ShapeError(message("flat", flat, should, "pass a flat view of all its memory"))


@lru_cache(maxsize=1024)
def _few_slices(
    plan: Plan, box: Box, strides: tuple[int, ...], to: Format
) -> tuple[tuple[slice, float], ...] | None:
    """Return the slices of a box if there are few: a model has many weights alike."""
    runs = plan._runs(box, strides, _rounded(plan, to))
    slices = tuple(islice(_build.slices(runs), _FEW + 1))
    return slices if len(slices) <= _FEW else None


@lru_cache(maxsize=4096)
def _rounded(plan: Plan, to: Format) -> dict[float, float]:
    folded = plan.wide != "truncate" and any(m < n for m, n, _ in plan.matrices)
    what = "eps" if plan.role == "zero" else f"gain after {plan.wide}" if folded else "gain"
    values = dict.fromkeys(term.value for m, n, _ in plan.matrices for term in plan.terms(m, n))
    if plan.loosen and values:
        round_value(plan.loosen, to, "loosen")
    return {value: round_value(value, to, what) for value in values}
