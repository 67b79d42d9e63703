"""What an initialisation does to a network: moments, Jacobians, ranks, gradients, symmetry, gains.

Arrays of any framework go in; they are real, finite and not empty. Python floats and NumPy float64
come out, computed in float64 on the host. Maps that are too large for a matrix are known by their
products alone: an `Operator`, as the adapters' ``jacobian(f, x)`` gives.
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
        Of the layers.
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
        return columns([heads, *rows], numbers=True)


def moments(
    activations: Sequence[Any] | Mapping[str, Any], axis: int | tuple[int, ...] | None = None
) -> Moments:
    """Return mean, variance and second moment of every layer's activations.

    Parameters
    ----------
    activations : sequence of arrays, or mapping of name to array
        One real floating array of any shape for each layer, in the order of depth.
    axis : int or tuple of int, optional
        The axes of the samples. The variance is taken over these and averaged over the others, so
        that with ``axis=0`` a unit which is the same for the whole batch has none. None: all axes,
        where second = mean^2 + variance.

    Returns
    -------
    Moments
        A second moment or variance beyond float64's range is inf.

    Raises
    ------
    OptionTypeError, DTypeError, ShapeError, OptionError
        If it is no list or mapping, or an array of it is none, not real, empty or not finite; if
        an axis does not exist.

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
    """What training has changed of a weight.

    Parameters
    ----------
    rank : int
        The number of singular values of the change above `tol`.
    singular_values : ndarray of float64, shape (min(outputs, columns),)
        All of them, the largest first.
    tol : float
        What counts as zero, in the weight's own units.

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
        Of one shape; real floating. A kernel is flattened to a matrix with a row for each output
        (and group), as in section 3 of the specification.
    tol : float, optional
        Singular values above it count. None: the larger of ``max(matrix.shape) * 2**-52`` times
        the largest one and of ``2 * eps`` times the larger Frobenius norm of the two weights, eps
        of the coarser dtype: what storing a weight can add to its rank.
    layout : str, optional
        The letters of the axes, "OI", "OIW", "OIHW" or "OIDHW" if left out: "HWIO" in Keras, Flax.

    Returns
    -------
    RankOfChange
        The rank, and the singular values that it was decided from.

    Raises
    ------
    OptionTypeError, DTypeError, ShapeError, LayoutError, OptionError
        If these are no such arrays, their shapes differ, or the layout does not fit or has batch
        axes; if tol is not positive.

    Notes
    -----
    A gradient step on B samples adds at most rank B to a dense weight. Roundings of many steps
    pile up (about as the square root of their number); then a larger tol tells them apart.

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
        should = "it should have no batch axes, which hold weights of their own"
        raise OptionError(message("layout", at.letters, should, "ask for each of them"))
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
    """How much of a model gets no gradient; ``str()`` is a table.

    Parameters
    ----------
    names : tuple of str
        Of the parameters.
    zero : ndarray of float64, shape (parameters,)
        The fraction of each one's entries with a gradient of exactly zero.
    zero_rows : ndarray of float64, shape (parameters,)
        The fraction of its rows (neurons) that have no other entries.
    overall, overall_rows : float
        The same of all entries, and of all rows.

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
        return columns([("parameter", "zero", "rows of zeros"), *rows], numbers=True)


def gradient_coverage(
    gradients: Sequence[Any] | Mapping[str, Any],
    parameters: Sequence[Any] | Mapping[str, Any] | None = None,
    *,
    outputs: int = 0,
) -> Coverage:
    """Return which fraction of the gradient's entries is exactly zero.

    Parameters
    ----------
    gradients : sequence, or mapping of name to array
        One real floating array for each parameter. None, as frameworks give where a parameter has
        no part in the loss, counts as zeros. Sparse gradients of lookups are understood.
    parameters : sequence or mapping, optional
        The parameters, in the same form, by the same names and with the gradients' shapes: they
        say how many zeros a None stands for. Only those without a gradient are needed.
    outputs : int
        The axis of the neurons: 0 in PyTorch, -1 for kernels of Keras and Flax. Each entry of an
        array with one axis, and a scalar, is a row.

    Returns
    -------
    Coverage
        How much of each parameter, and of all, has a gradient.

    Raises
    ------
    OptionTypeError, DTypeError, ShapeError, OptionError
        If a gradient is no such array, there is None and no parameter for it, a parameter has
        no gradient of its name or one of another shape, or an array with several axes lacks that
        axis.

    Notes
    -----
    IDIZ_eps (section 2 of the specification) is there for the gradients that exact zeros stop.

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
                cure = "pass the parameters too: they say how many zeros that is"
                should = "it is None, and there is no parameter of that name"
                raise OptionError(message("gradients", name, should, cure))
            shape = tuple(int(size) for size in known[name].shape)
            if 0 in shape:
                should, cure = "it is empty", "leave parameters without entries out"
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
    """How alike the units of a layer are.

    Parameters
    ----------
    matrix : ndarray of float64, shape (units, units)
        Their correlations over the samples; NaN for a unit that is constant, which has none.
    pairs : ndarray of int64, shape (pairs, 2)
        The pairs i < j with ``|rho| > 1 - tol``: one unit is the other, but for scale and shift.
    constant : ndarray of int64, shape (constant units,)
        The units that are the same for all samples: they say nothing, and are in no pair.
    distinct : int
        The number of different units: classes of pairs, without the constant ones.

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
        Activations, real and floating. All axes but one are samples: the batch, and places.
    units : int
        The axis of the units: the last, or 1 for channels in PyTorch's (N, C, H, W).
    tol : float
        Units count as one if ``|rho| > 1 - tol``. At 1e-6 they differ by less than 0.15% of their
        standard deviation.

    Returns
    -------
    Correlation
        The matrix, and the pairs that say the same.

    Raises
    ------
    OptionTypeError, DTypeError, ShapeError, OptionError
        If it is no such array, with less than 3 samples (of 2, any units correlate), or tol does
        not lie between 0 and 1.

    Notes
    -----
    A unit is taken to be constant where its values differ by no more than 4 eps of the largest, eps
    of the dtype. Theorem T1: output i of a tall IDI is input i mod n, so that n are distinct.

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
    while not np.array_equal(label, seen):  # the least index that is reached through pairs
        label, seen = np.where(alike, label, len(rho)).min(axis=1), label
    return Correlation(
        rho, np.argwhere(np.triu(alike, 1)), np.flatnonzero(still), len(np.unique(label[~still]))
    )
