"""Linear operators, such as a network's Jacobian: singular values, chi and stable rank.

[Sa] Saxe, McClelland, Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep
linear neural networks" (ICLR 2014). [Sc] Schoenholz, Gilmer, Ganguli, Sohl-Dickstein, "Deep
Information Propagation" (ICLR 2017). [Pe] Pennington, Schoenholz, Ganguli, "Resurrecting the
sigmoid in deep learning through dynamical isometry" (NeurIPS 2017).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..core.options import integer
from ..errors import OptionError, OptionTypeError, ShapeError, message
from .arrays import EPS, Array, eps_of, mean_square, positive, read, scaled

_SMALL = 2**20  # entries: up to here the matrix is always formed, in seconds
_LARGE = 2**26  # entries: up to here the matrix is formed if that is faster (512 MiB)
_BASIS = 2000  # the most vectors of the iteration for singular values


@dataclass(frozen=True, eq=False)
class Operator:
    """A linear map of real vectors, given by its products with vectors.

    Parameters
    ----------
    matvec, rmatvec : callable
        ``matvec(v)`` with a NumPy float64 v of shape (n,) returns the m entries of J v, and
        ``rmatvec(u)`` with u of shape (m,) the n entries of J^T u, as arrays of any framework.
    shape : (int, int)
        (m, n): outputs and inputs, at least 1.
    precision : float
        The eps of the dtype of the products (2**-23 for float32).

    Raises
    ------
    OptionTypeError, OptionError, ShapeError
        If a parameter is not valid. A product of the wrong size or with a NaN raises when it is
        computed.

    Examples
    --------
    >>> twice = Operator(lambda v: 2 * v, lambda u: 2 * u, (3, 3))
    >>> twice @ np.ones(3)
    array([2., 2., 2.])
    >>> twice.T.shape
    (3, 3)
    """

    matvec: Callable[[Array], Any]
    rmatvec: Callable[[Array], Any]
    shape: tuple[int, int]
    precision: float = EPS

    def __post_init__(self) -> None:
        for name in ("matvec", "rmatvec"):
            if not callable(getattr(self, name)):
                should, cure = "it should be callable", "pass a function of one NumPy vector"
                raise OptionTypeError(message(name, getattr(self, name), should, cure))
        shape: object = self.shape
        if not isinstance(shape, tuple) or len(shape) != 2:
            raise ShapeError(message("shape", shape, "it should be a pair", "pass (m, n)"))
        object.__setattr__(self, "shape", tuple(integer("shape", size, 1) for size in shape))
        positive("precision", self.precision, 1)

    @property
    def T(self) -> Operator:  # noqa: N802 - the name that arrays have
        """The transposed map.

        Examples
        --------
        >>> last = Operator(lambda v: v[-1:], lambda u: np.array([0.0, 0.0, *u]), (1, 3))
        >>> last.T @ np.ones(1)
        array([0., 0., 1.])
        """
        return Operator(self.rmatvec, self.matvec, self.shape[::-1], self.precision)

    def __matmul__(self, x: Any) -> Array:
        """Return J x in float64, for a vector (n,) or for columns (n, k)."""
        x, _ = read("x", x)
        if x.ndim not in (1, 2) or len(x) != self.shape[1]:
            should = f"a map of shape {self.shape} takes vectors or columns of {self.shape[1]}"
            raise ShapeError(message("x's shape", x.shape, should, "flatten it, or transpose it"))
        columns = x.reshape(len(x), -1).T
        out = np.empty((self.shape[0], len(columns)))
        for at, column in enumerate(columns):
            y, _ = read("the product", self.matvec(np.ascontiguousarray(column)))
            if y.size != self.shape[0]:
                should = f"a map of shape {self.shape} should give {self.shape[0]} numbers"
                cure = "set the right shape, or check matvec and rmatvec"
                raise ShapeError(message("the product's shape", y.shape, should, cure))
            out[:, at] = y.reshape(-1)
        return out.reshape((-1, *x.shape[1:]))


def _map(name: str, value: Any) -> Operator | Array:
    """Return an operator, also from SciPy's, or a matrix as a NumPy array."""
    if isinstance(value, Operator):
        return value
    if all(hasattr(value, part) for part in ("matvec", "rmatvec", "shape")):
        dtype = getattr(value, "dtype", None)
        precision = EPS if dtype is None else eps_of(dtype)
        return Operator(value.matvec, value.rmatvec, tuple(value.shape), precision)
    matrix, _ = read(name, value)
    if matrix.ndim != 2:
        cure = "flatten a kernel to (outputs, the rest), and a Jacobian to (outputs, inputs)"
        raise ShapeError(message(f"{name}'s shape", matrix.shape, "it should have 2 axes", cure))
    return matrix


def _matrix(a: Operator | Array) -> Array:
    """Return the matrix of a map, by min(m, n) products."""
    if not isinstance(a, Operator):
        return a
    m, n = a.shape
    return a @ np.eye(n) if n <= m else (a.T @ np.eye(m)).T


class Estimate(NamedTuple):
    """A number and its standard error, which is 0.0 if it is exact.

    Parameters
    ----------
    value, error : float
        The estimate, and its standard deviation.

    Examples
    --------
    >>> chi(np.eye(3))
    Estimate(value=1.0, error=0.0)
    """

    value: float
    error: float


def singular_values(
    operator: Any, k: int | None = None, *, tol: float = 1e-8, seed: int = 0
) -> Array:
    """Return the singular values of a map, the largest first.

    Parameters
    ----------
    operator : Operator or array of shape (m, n)
        For example a Jacobian or a weight; SciPy's ``LinearOperator`` is accepted too.
    k : int, optional
        The number of values; by default all min(m, n).
    tol : float
        The residual ``|J^T u - s v|`` at which the iteration stops, relative to the largest value.
    seed : int
        The seed of the start vectors.

    Returns
    -------
    ndarray of float64, shape (k,)
        If all values are asked for, or the map has up to 2**20 entries, they come from its matrix,
        formed by min(m, n) products: exact to the rounding of the products. The k largest of a
        larger map come from Golub-Kahan-Lanczos with full reorthogonalisation, in blocks of k,
        since identity-like maps have repeated values. Each is within tol times the largest of a
        true one (within 64 eps of the products' dtype, if more), often within tol squared. No
        larger one is missed with high probability over the start vectors.

    Raises
    ------
    OptionTypeError, DTypeError, ShapeError, OptionError
        If the map is not valid, k is not in 1 to min(m, n), all values are asked for and the map
        has more than 2**26 entries, the iteration does not converge, or the products are not those
        of a matrix and its transpose.

    Notes
    -----
    Golub, Kahan (SIAM J. Numer. Anal. B 2, 1965); blocks: Golub, Luk, Overton (ACM TOMS 7, 1981).
    Isometry [Sa] is that all are 1; theorem T5 has those of IDI_tau.

    Examples
    --------
    >>> singular_values(np.array([[3.0, 0.0], [4.0, 0.0], [0.0, 1.0]]))
    array([5., 1.])
    """
    a = _map("operator", operator)
    m, n = a.shape
    least, entries = min(m, n), m * n
    count = least if k is None else integer("k", k, 1, least + 1)
    tol = positive("tol", tol, 1)
    seed = integer("seed", seed, 0)
    if isinstance(a, Operator) and k is None and entries > _LARGE:
        should = f"a map of shape {(m, n)} is too large for a matrix"
        raise OptionError(message("k", k, should, "ask for the k largest"))
    if k is None or entries <= _SMALL or (entries <= _LARGE and 3 * count >= least):
        return _values(_matrix(a))[:count]
    return _largest(a if n <= m else a.T, count, tol, np.random.default_rng(seed))


def check_normed(layer: object, weight: Array) -> None:
    """Raise unless a layer of spectral norm keeps a weight, whose last axis is that of outputs.

    It keeps those whose singular values are all 1 or 0, and not all 0, for any start of its power
    iteration.

    >>> check_normed("a layer", np.eye(3, 5))
    """
    wide = np.asarray(weight, np.float64).reshape(-1, weight.shape[-1])
    wide = wide if wide.shape[0] <= wide.shape[1] else wide.T
    gram = wide @ wide.T
    if not gram.any() or np.abs(gram @ gram - gram).max() > 1e-5 * gram.max():
        should = "it makes the largest singular value 1, so all should already be 1 or 0"
        cure = "give a gain that makes them so, or wrap the layer afterwards"
        raise OptionError(message("layer", type(layer).__name__, should, cure))


def _values(matrix: Array) -> Array:
    (small,), e = scaled(matrix)
    with np.errstate(over="ignore"):  # inf if float64 cannot hold a value
        out: Array = np.ldexp(np.linalg.svd(small, compute_uv=False), e)
    return out


def _largest(a: Operator | Array, k: int, tol: float, rng: np.random.Generator) -> Array:
    """Return the k largest singular values of a map with n <= m, by Lanczos in blocks."""
    m, n = a.shape
    if isinstance(a, Operator):
        tol = max(tol, 64 * a.precision)
    v, q, r = np.empty((n, 0)), np.empty((m, 0)), np.empty((0, 0))  # a @ v = q @ r
    block, due = _orthonormal(rng.standard_normal((n, k)), v, rng)[0], 3 * k
    while True:
        v = np.hstack([v, block])
        image = a @ block
        new, column = _orthonormal(image, q, rng)
        old, width = q.shape[1], block.shape[1]
        r = np.hstack([np.vstack([r, np.zeros((width, old))]), column])
        q = np.hstack([q, new])
        if v.shape[1] == n:  # the whole space: a = q r v^T
            return _values(r)[:k]
        back = a.T @ new
        if old == 0:  # later products may consist of rounding errors
            _adjoint(a, block, image, new, back)
        block, column = _orthonormal(back, v, rng)
        if v.shape[1] < due:
            continue
        due = int(1.1 * v.shape[1])  # few decompositions: their cost stays small
        left, s, _ = np.linalg.svd(r)
        # The part of a.T u outside the span of v; inside, it is s v up to rounding.
        residual = np.linalg.norm(column[v.shape[1] :] @ left[-width:, :k], axis=0)
        if np.all(residual <= tol * s[0]):
            return np.asarray(s[:k], dtype=np.float64)
        if v.shape[1] >= _BASIS:
            should = f"after {v.shape[1]} vectors the residual is {residual.max() / s[0]:.1e}"
            raise OptionError(message("tol", tol, should, "allow a larger one, or ask for fewer"))


def _adjoint(a: Operator | Array, v: Array, av: Array, u: Array, atu: Array) -> None:
    """Raise unless <u, A v> = <A^T u, v> up to rounding; needs no further product."""
    if not isinstance(a, Operator):
        return
    one, other = (u * av).sum(), (atu * v).sum()
    size = np.linalg.norm(u) * np.linalg.norm(av) + np.linalg.norm(atu) * np.linalg.norm(v)
    if abs(one - other) > max(1e-3, 64 * a.precision) * size:
        should = f"<u, J v> = {one:.6g} and <J^T u, v> = {other:.6g} should be equal"
        cure = "check that rmatvec is the transpose of matvec, and that both are linear"
        raise OptionError(message("operator", f"of shape {a.shape}", should, cure))


def _orthonormal(x: Array, basis: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return new orthonormal columns, and the coefficients of x in the basis and in them.

    Where x lies in the basis, the new column is random, with coefficient 0: the iteration then
    continues in the rest of the space.
    """
    (size, held), width = basis.shape, x.shape[1]
    q = np.hstack([basis, np.zeros((size, min(width, size - held)))])
    out = np.zeros((q.shape[1], width))
    for at in range(width):
        have = min(held + at, q.shape[1])
        kept, rest = q[:, :have], x[:, at]
        for _ in range(2):  # in floating point, twice is enough
            part = kept.T @ rest
            rest, out[:have, at] = rest - kept @ part, out[:have, at] + part
        if have == size:
            continue
        norm = np.linalg.norm(rest)
        if norm > EPS * size**0.5 * np.linalg.norm(x[:, at]):
            out[have, at] = norm
        else:
            rest = np.asarray(rng.standard_normal(size))
            for _ in range(2):
                rest = rest - kept @ (kept.T @ rest)
            norm = np.linalg.norm(rest)
        q[:, have] = rest / norm
    return q[:, held:], out


def chi(operator: Any, *, samples: int = 32, seed: int = 0) -> Estimate:
    """Return the mean squared singular value of a map, per input: ``|J|_F^2 / n``.

    It is the mean of ``|J v|^2`` over unit vectors v at the input: the growth of small differences.
    In mean field theory, with m = n, chi of one layer decides whether they grow or shrink through
    depth, and J of L wide layers has chi^L. If m < n, the n - m directions that J loses count as
    zeros.

    Parameters
    ----------
    operator : Operator or array of shape (m, n)
        As for :func:`singular_values`.
    samples : int
        The samples of the estimate, at least 2; each costs 4 products.
    seed : int
        The seed of its random vectors.

    Returns
    -------
    Estimate
        Exact, with error 0.0, for matrices, for operators of up to 2**20 entries, and if
        min(m, n) products cost no more than the estimate. Otherwise unbiased, by Hutch++, with its
        standard error, which has a relative error of 1 / sqrt(2 samples). inf if float64 cannot
        hold it.

    Raises
    ------
    OptionTypeError, DTypeError, ShapeError, OptionError
        If the map is not valid, samples < 2, seed < 0, or the products are not those of a matrix
        and its transpose.

    Notes
    -----
    chi: [Sc], [Pe]. Hutch++: Meyer, Musco, Musco, Woodruff (SOSA 2021). By theorem T5 a chain of L
    square IDI_tau has chi = tau^(2 L).

    Examples
    --------
    >>> chi(np.array([[2.0, 0.0], [0.0, 1.0]]))
    Estimate(value=2.5, error=0.0)
    """
    a = _map("operator", operator)
    samples = integer("samples", samples, 2)
    rng = np.random.default_rng(integer("seed", seed, 0))
    (m, n), size = a.shape, min(a.shape)
    if not isinstance(a, Operator):
        return Estimate(mean_square(a) * m, 0.0)
    tall = a if n <= m else a.T

    def squares(x: Array) -> Array:
        """Return |A x|^2 of every column."""
        columns = (tall @ x[:, [at]] for at in range(x.shape[1]))
        return np.array([mean_square(y) * len(y) for y in columns])

    if m * n <= _SMALL or size <= 4 * samples:
        units = (np.arange(size)[:, None] == [at] for at in range(size))
        return Estimate(float(sum(squares(unit.astype(float))[0] for unit in units)) / n, 0.0)
    signs = rng.choice((-1.0, 1.0), (size, 2 * samples))
    sketch, probes = signs[:, :samples], signs[:, samples:]
    # J^T J of a deep net is concentrated in a few directions: these are summed exactly, and only
    # the rest is sampled.
    image = tall @ sketch
    back = tall.T @ image
    _adjoint(tall, sketch, image, image, back)
    basis, _ = _orthonormal(back, np.empty((size, 0)), rng)
    rest = squares(probes - basis @ (basis.T @ probes))
    value, error = squares(basis).sum() + rest.mean(), rest.std(ddof=1) / samples**0.5
    return Estimate(float(value) / n, float(error) / n)


def stable_rank(operator: Any, *, samples: int = 32, seed: int = 0) -> Estimate:
    """Return the stable rank of a map: ``|J|_F^2 / s_1^2``, s_1 its largest singular value.

    It is at most the rank. Singular values much smaller than s_1 hardly count.

    Parameters
    ----------
    operator : Operator or array of shape (m, n)
        As for :func:`singular_values`.
    samples, seed : int
        As for :func:`chi`.

    Returns
    -------
    Estimate
        Between 1 and min(m, n); 0.0 for the zero map. Its error is that of ``|J|_F^2``.

    Raises
    ------
    OptionTypeError, DTypeError, ShapeError, OptionError
        As in :func:`chi` and :func:`singular_values`.

    Notes
    -----
    Rudelson, Vershynin (J. ACM 54, 2007). By theorem T5 that of IDI_tau with m >= n is
    m / ceil(m / n).

    Examples
    --------
    >>> stable_rank(np.diag([2.0, 1.0, 1.0]))
    Estimate(value=1.5, error=0.0)
    """
    a = _map("operator", operator)
    (top,) = singular_values(a, 1, seed=seed)
    if not top:
        return Estimate(0.0, 0.0)
    unit: Operator | Array
    if isinstance(a, Operator):
        unit = Operator(lambda v: (a @ v) / top, lambda u: (a.T @ u) / top, a.shape, a.precision)
    else:
        unit = a / top
    value, error = chi(unit, samples=samples, seed=seed)
    return Estimate(value * a.shape[1], error * a.shape[1])
