"""Measures of an initialised or trained network: moments, ranks, gradients, symmetry.

The arguments are arrays of any framework: real, finite and not empty. The results are Python floats
and NumPy float64, computed in float64 on the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.layout import Layout
from ..core.options import integer, letters
from ..core.text import columns
from ..errors import OptionError, ShapeError, message
from .arrays import EPS, Array, mean_square, named, positive, read, scaled
from .spectrum import singular_values


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments through depth; ``str()`` is a table.

    Parameters
    ----------
    names : tuple of str
        The names of the layers.
    mean, variance, second : ndarray of float64, shape (layers,)
        The mean, the variance, and the mean of squares.

    Examples
    --------
    >>> depth = moments([np.array([1.0, -1.0]), np.array([2.0, 0.0])])
    >>> depth.mean.tolist(), depth.variance.tolist(), depth.second.tolist()
    ([0.0, 1.0], [1.0, 1.0], [1.0, 2.0])
    """

    names: tuple[str, ...]
    mean: Array
    variance: Array
    second: Array

    def __str__(self) -> str:
        numbers = zip(self.mean, self.variance, self.second, strict=True)
        rows = [
            (name, *(f"{x:.4g}" for x in row))
            for name, row in zip(self.names, numbers, strict=True)
        ]
        heads = ("layer", "mean", "variance", "second moment")
        return columns([heads, *rows], numbers=3)


def moments(
    activations: Sequence[Any] | Mapping[str, Any], axis: int | tuple[int, ...] | None = None
) -> Moments:
    """Return mean, variance and second moment of every layer's activations.

    Parameters
    ----------
    activations : sequence of arrays, or mapping of name to array
        One real floating array of any shape for each layer, in the order of depth.
    axis : int or tuple of int, optional
        The axes of the samples. The variance is taken over these and averaged over the others; with
        ``axis=0`` a unit that is the same for the whole batch has variance 0. By default all axes;
        then second = mean^2 + variance.

    Returns
    -------
    Moments
        A second moment or variance beyond float64's range is inf.

    Raises
    ------
    OptionTypeError, DTypeError, ShapeError, OptionError
        If `activations` is not a list or mapping; if an item is not an array, or is not real, empty
        or not finite; if an axis does not exist.

    Notes
    -----
    Theorem T2 of the specification: IDI keeps the variance of every coordinate.

    Examples
    --------
    >>> print(moments({"in": np.array([1.0, -1.0]), "out": np.array([2.0, 0.0])}))
    layer  mean  variance  second moment
    in        0         1              1
    out       1         1              2
    """
    names, rows = [], []
    for name, value in named("activations", activations):
        x, _ = read(f"activations[{name!r}]", value)
        (small,), e = scaled(x)
        try:
            centred = small - small.mean(axis, keepdims=True)
        except (TypeError, ValueError) as problem:
            should = f"activations[{name!r}] of shape {x.shape} should have it ({problem})"
            raise OptionError(message("axis", axis, should, "name axes of all layers")) from None
        names.append(name)
        with np.errstate(over="ignore", under="ignore"):
            middle, variance = np.ldexp(small.mean(), e), np.ldexp(mean_square(centred), 2 * e)
        rows.append((float(middle), float(variance), mean_square(x)))
    mean, variance, second = np.array(rows).T
    return Moments(tuple(names), mean, variance, second)


# Training -----------------------------------------------------------------------------------------


class RankOfChange(NamedTuple):
    """The rank of a weight's change in training.

    Parameters
    ----------
    rank : int
        The number of singular values of the change above `tol`.
    singular_values : ndarray of float64, shape (min(outputs, columns),)
        All singular values, the largest first.
    tol : float
        The threshold, in units of the weight.

    Examples
    --------
    >>> change = rank_of_change(np.diag([3.0, 2.0, 1.0]), np.eye(3), tol=0.5)
    >>> change.rank, change.singular_values.tolist(), change.tol
    (2, [2.0, 1.0, 0.0], 0.5)
    """

    rank: int
    singular_values: Array
    tol: float


def rank_of_change(
    weight: Any, initial: Any, tol: float | None = None, *, layout: str | None = None
) -> RankOfChange:
    """Return the numerical rank of a weight minus its initial value.

    Parameters
    ----------
    weight, initial : array
        Of the same shape; real floating. A kernel is flattened to a matrix with a row for each
        output (and group), as in section 3 of the specification.
    tol : float, optional
        Singular values above it count. By default the larger of ``max(matrix.shape) * 2**-52``
        times the largest singular value, and ``2 * eps`` times the larger Frobenius norm of the two
        weights, with the larger eps of their dtypes: rounding can add this much to the rank.
    layout : str, optional
        The letters of the axes; by default "OI", "OIW", "OIHW" or "OIDHW". Keras and Flax: "HWIO".

    Returns
    -------
    RankOfChange
        The rank, the singular values and the threshold.

    Raises
    ------
    OptionTypeError, DTypeError, ShapeError, LayoutError, OptionError
        If the arrays are not valid, their shapes differ, the layout does not fit or has batch axes,
        or tol is not positive.

    Notes
    -----
    A gradient step on B samples adds at most rank B to a dense weight. The rounding errors of many
    steps accumulate, about as the square root of their number; then a larger tol is needed.

    Examples
    --------
    >>> rank_of_change(np.array([[1.0, 2.0], [0.0, 3.0]]), np.eye(2)).rank
    1
    """
    after, coarse = read("weight", weight)
    before, eps = read("initial", initial)
    if after.shape != before.shape:
        should = f"it should be {before.shape}, the shape of the initial value"
        raise ShapeError(
            message("weight's shape", after.shape, should, "compare a parameter with its own copy")
        )
    at = Layout(after.shape, letters(layout, after.shape), 1, False, None, "outward", None)
    if at.batch_axes:
        should = "it should have no batch axes, which stack several weights"
        raise OptionError(message("layout", at.letters, should, "pass each weight by itself"))
    (after, before), e = scaled(after, before)
    change = np.moveaxis(after - before, at.o_axis, 0).reshape(at.outputs, -1)
    values = singular_values(change)
    with np.errstate(over="ignore", under="ignore"):
        if tol is None:
            norms = map(np.linalg.norm, (after.ravel(), before.ravel()))
            least = max(values[0] * max(change.shape) * EPS, 2 * max(coarse, eps) * max(norms))
            tol = float(np.ldexp(least, e))
        else:
            tol = positive("tol", tol)
            least = np.ldexp(tol, -e)
        return RankOfChange(int(np.sum(values > least)), np.ldexp(values, e), tol)


class Coverage(NamedTuple):
    """The share of a model that gets no gradient; ``str()`` is a table.

    Parameters
    ----------
    names : tuple of str
        The names of the parameters.
    zero : ndarray of float64, shape (parameters,)
        For each parameter, the fraction of entries with a gradient of exactly zero.
    zero_rows : ndarray of float64, shape (parameters,)
        For each parameter, the fraction of rows (neurons) with only such entries.
    overall, overall_rows : float
        The same fractions over all entries, and over all rows.

    Examples
    --------
    >>> coverage = gradient_coverage({"w": np.array([[0.0, 0.0], [0.0, 2.0]]), "b": np.ones(2)})
    >>> coverage.names, coverage.zero.tolist(), coverage.overall
    (('w', 'b'), [0.75, 0.0], 0.5)
    """

    names: tuple[str, ...]
    zero: Array
    zero_rows: Array
    overall: float
    overall_rows: float

    def __str__(self) -> str:
        each = [*zip(self.names, self.zero, self.zero_rows, strict=True)]
        all_ = [*each, ("overall", self.overall, self.overall_rows)]
        rows = [(name, f"{x:.4g}", f"{y:.4g}") for name, x, y in all_]
        return columns([("parameter", "zero", "rows of zeros"), *rows], numbers=2)


def gradient_coverage(
    gradients: Sequence[Any] | Mapping[str, Any],
    parameters: Sequence[Any] | Mapping[str, Any] | None = None,
    *,
    outputs: int = 0,
) -> Coverage:
    """Return the fraction of the gradient's entries that are exactly zero.

    Parameters
    ----------
    gradients : sequence, or mapping of name to array
        One real floating array for each parameter. None, which frameworks return for a parameter
        that the loss does not use, counts as zeros. Sparse gradients of lookups are accepted.
    parameters : sequence or mapping, optional
        The parameters, with the same names and shapes. They give the number of zeros of a None;
        only those without a gradient are needed.
    outputs : int
        The axis of the neurons: 0 in PyTorch, -1 for kernels of Keras and Flax. In an array with
        one axis each entry is a row; a scalar is one row.

    Returns
    -------
    Coverage
        The fractions for each parameter and for all.

    Raises
    ------
    OptionTypeError, DTypeError, ShapeError, OptionError
        If a gradient is not a valid array, a None has no parameter, a parameter has no gradient of
        its name or one of another shape, or an array with several axes lacks the axis `outputs`.

    Notes
    -----
    IDIZ_eps (section 2 of the specification) lets gradients pass that exact zeros would stop.

    Examples
    --------
    >>> print(gradient_coverage({"w": np.array([[0.0, 0.0], [0.0, 2.0]]), "b": np.ones(2)}))
    parameter  zero  rows of zeros
    w          0.75            0.5
    b             0              0
    overall     0.5           0.25
    """
    known = {} if parameters is None else dict(named("parameters", parameters))
    given = named("gradients", gradients)
    if left := [name for name in known if name not in dict(given)]:
        cure = "pass None as the gradient of a parameter that has none"
        raise OptionError(message("parameters", left, "they should all be in gradients", cure))
    names, counts = [], []
    for name, value in given:
        if value is None:
            if getattr(known.get(name), "shape", None) is None:
                cure = "pass the parameters too: their shapes give the number of zeros"
                should = "it is None, so a parameter of this name should be given"
                raise OptionError(message("gradients", name, should, cure))
            shape = tuple(int(size) for size in known[name].shape)
            if 0 in shape:
                should, cure = "it should not be empty", "leave out parameters without entries"
                raise ShapeError(message(f"parameters[{name!r}]'s shape", shape, should, cure))
            alive = np.zeros(shape, dtype=bool)
        else:
            alive = read(f"gradients[{name!r}]", value)[0] != 0
            shape = tuple(getattr(known.get(name), "shape", alive.shape))
            if shape != alive.shape:
                should = f"it should be its parameter's, {shape}"
                cure = "pass the gradient of that parameter"
                place = f"gradients[{name!r}]'s shape"
                raise ShapeError(message(place, alive.shape, should, cure))
        if alive.ndim > 1:
            axis = integer("outputs", outputs, -alive.ndim, alive.ndim)
            alive = np.moveaxis(alive, axis, 0)
        rows = alive.reshape(alive.shape[0] if alive.ndim else 1, -1)
        names.append(name)
        counts.append((np.sum(~rows), rows.size, np.sum(~rows.any(1)), len(rows)))
    zeros, size, dead, rows = np.array(counts, dtype=np.float64).T
    overall = float(zeros.sum() / size.sum()), float(dead.sum() / rows.sum())
    return Coverage(tuple(names), zeros / size, dead / rows, *overall)


class Correlation(NamedTuple):
    """The correlations of the units of a layer.

    Parameters
    ----------
    matrix : ndarray of float64, shape (units, units)
        The correlations over the samples; NaN for a constant unit.
    pairs : ndarray of int64, shape (pairs, 2)
        The pairs i < j with ``|rho| > 1 - tol``: equal units up to scale and shift.
    constant : ndarray of int64, shape (constant units,)
        The units that are the same for all samples; they are in no pair.
    distinct : int
        The number of distinct units: classes of pairs, without the constant ones.

    Examples
    --------
    >>> alike = feature_correlation(np.array([[0.0, 0.0, 7.0], [1.0, -2.0, 7.0], [3.0, -6.0, 7.0]]))
    >>> alike.matrix[0, :2].round(6).tolist(), alike.constant.tolist(), alike.distinct
    ([1.0, -1.0], [2], 1)
    """

    matrix: Array
    pairs: NDArray[np.int64]
    constant: NDArray[np.int64]
    distinct: int


def feature_correlation(features: Any, *, units: int = -1, tol: float = 1e-6) -> Correlation:
    """Return the correlation of every two units of a layer over a batch.

    Parameters
    ----------
    features : array of 2 axes or more
        Activations, real and floating. All axes but one are samples: the batch, and positions.
    units : int
        The axis of the units: by default the last; 1 for channels in PyTorch's (N, C, H, W).
    tol : float
        Two units count as one if ``|rho| > 1 - tol``. At 1e-6 they differ by less than 0.15% of
        their standard deviation.

    Returns
    -------
    Correlation
        The matrix, the pairs of equal units, and the constant units.

    Raises
    ------
    OptionTypeError, DTypeError, ShapeError, OptionError
        If `features` is not a valid array, has fewer than 3 samples (over 2 samples any two units
        correlate), or tol does not lie between 0 and 1.

    Notes
    -----
    A unit counts as constant if its values differ by at most 4 eps of the largest one, with the eps
    of the dtype. Theorem T1: output i of a tall IDI is input i mod n, so n units are distinct.

    Examples
    --------
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 5.0]])
    >>> alike = feature_correlation(np.hstack([x, -x, x * 0 + 7]))
    >>> alike.distinct, alike.pairs.tolist(), alike.constant.tolist()
    (2, [[0, 2], [1, 3]], [4, 5])
    """
    x, eps = read("features", features)
    tol = positive("tol", tol, 1)
    if x.ndim < 2:
        should, cure = "it should have 2 axes or more", "pass (samples, units)"
        raise ShapeError(message("features' shape", x.shape, should, cure))
    x = np.moveaxis(x, integer("units", units, -x.ndim, x.ndim), -1)
    x = x.reshape(-1, x.shape[-1])
    if len(x) < 3:
        should = "it should hold 3 samples or more: any two units correlate over 2"
        raise ShapeError(message("features' shape", x.shape, should, "give a larger batch"))
    size = np.max(np.abs(x), axis=0)
    still = np.max(x, axis=0) / 2 - np.min(x, axis=0) / 2 <= 2 * eps * size
    x = x / np.where(size, size, 1.0)
    x = x - x.mean(axis=0)
    x = x / np.where(still, 1.0, np.linalg.norm(x, axis=0))
    rho = np.clip(x.T @ x, -1.0, 1.0)
    np.fill_diagonal(rho, 1.0)
    rho[still] = rho[:, still] = np.nan
    alike = np.abs(rho) > 1 - tol
    label, seen = np.arange(len(rho)), np.full(len(rho), -1)
    while not np.array_equal(label, seen):  # the least index reached through pairs
        label, seen = np.where(alike, label, len(rho)).min(axis=1), label
    return Correlation(
        rho, np.argwhere(np.triu(alike, 1)), np.flatnonzero(still), len(np.unique(label[~still]))
    )
