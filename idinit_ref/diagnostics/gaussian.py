"""The Gaussian gain of any activation, with a warning if it does not suit identity weights.

[Sc] Schoenholz, Gilmer, Ganguli, Sohl-Dickstein, "Deep Information Propagation" (ICLR 2017).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from ..core.build import resolve
from ..core.options import integer
from ..errors import OptionError, OptionTypeError, ShapeError, message
from .arrays import EPS, Array, positive, read


class IdentityGainWarning(UserWarning):
    """A Gaussian gain that makes a chain of identity weights explode or vanish (theorem T6).

    Examples
    --------
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     gain = gaussian_gain(lambda x: np.maximum(x, 0.0))
    >>> caught[0].category.__name__, round(gain, 4)
    ('IdentityGainWarning', 1.4142)
    """


def gaussian_gain(
    activation: Callable[[Any], Any], sigma: float = 1.0, *, nodes: int = 32, xp: Any = None
) -> float:
    """Return g with E[(g * activation(sigma * z))^2] = sigma^2 for z of N(0, 1).

    This is the gain of mean field theory: with weights of variance g^2 / n the second moment stays
    sigma^2 through depth (ReLU: Kaiming's sqrt(2)). Identity weights are not random: see Warns.

    Parameters
    ----------
    activation : callable
        Elementwise, from an array to one of the same shape.
    sigma : float
        The standard deviation before the activation.
    nodes : int
        The nodes of Gauss-Legendre quadrature on each interval: 4 to 200.
    xp : namespace, optional
        The namespace of the activation's arrays: torch, jax.numpy, or any other that
        array-api-compat supports. By default NumPy, whose arrays TensorFlow's functions accept too.

    Returns
    -------
    float
        Accurate to about 1e-13, also for activations with kinks or jumps; bumps narrower than about
        0.01 may be missed. Intervals, one of which ends at 0, are halved until both halves agree
        with the whole. If the activation computes in float32 (JAX's default), the accuracy is about
        1e-7. ``|z|`` above 13 is left out; an activation for which this would matter is an error.

    Raises
    ------
    OptionTypeError, DTypeError, ShapeError, OptionError
        If an argument is not valid, or the activation does not return a finite real array of the
        same shape, is 0 everywhere, or has a second moment that does not converge.

    Warns
    -----
    IdentityGainWarning
        If theorem T6 of the specification applies: the activation is positively homogeneous, as
        ReLU and leaky ReLU are, and this gain times its slope is not 1. (Activations that approach
        straight lines, GELU and SiLU, explode likewise; bounded ones such as tanh do not.)

    Notes
    -----
    The gain of [Sc], which holds for any activation. Gauss-Hermite quadrature, exact for
    polynomials, has an error of 0.6% for hard tanh with its kinks, at 32 nodes.

    Examples
    --------
    >>> gain = gaussian_gain(np.tanh)
    >>> round(gain, 10)
    1.5925374197
    """
    sigma, nodes = positive("sigma", sigma), integer("nodes", nodes, 4, 201)
    function: object = activation
    if not callable(function):
        should, cure = "it should be callable", "pass a function such as np.tanh"
        raise OptionTypeError(message("activation", function, should, cure))
    space = np if xp is None else resolve(xp, None, None).xp
    precision = EPS

    def phi(x: Array) -> Array:
        nonlocal precision
        y, eps = read("activation(x)", activation(space.asarray(x)))
        if y.shape != x.shape:
            should = f"it should have the shape of x, {x.shape}"
            raise ShapeError(message("activation(x)'s shape", y.shape, should, "use elementwise"))
        precision = max(precision, eps)
        return y

    with np.errstate(over="ignore", invalid="ignore"):  # inf and NaN raise below
        total = _mean(lambda z: (phi(sigma * z) / sigma) ** 2, nodes, lambda: precision)
    if not 0 < total < np.inf:
        should = f"the mean of its squares should converge to a positive number, not {total}"
        cure = "give one that is not 0 everywhere, has few jumps, and is not random"
        raise OptionError(message("activation", activation, should, cure))
    gain = float(total**-0.5)
    _warn(phi, sigma, gain, precision)
    return gain


def _mean(f: Callable[[Array], Array], nodes: int, precision: Callable[[], float]) -> float:
    """Return E[f(z)] for z of N(0, 1) by adaptive quadrature; NaN if it does not converge."""
    at, weights = np.polynomial.legendre.leggauss(nodes)

    def integral(left: Array, right: Array) -> Array:
        half = (right - left)[:, None] / 2
        z = (left + right)[:, None] / 2 + half * at
        density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
        return np.asarray((half * f(z.reshape(-1)).reshape(z.shape) * density) @ weights)

    # Finer towards 0, to resolve the activation there at any sigma.
    edges = np.concatenate([[0.0], 2.0 ** np.arange(-52, 0), np.arange(1.0, 14.0)])
    edges = np.concatenate([-edges[:0:-1], edges])
    left, right, total = edges[:-1], edges[1:], 0.0
    whole = integral(left, right)
    if not whole[0] + whole[-1] <= 1e-10 * np.sum(whole):  # the tails would matter
        return float("nan")
    for _ in range(60):
        middle = (left + right) / 2
        first, second = integral(left, middle), integral(middle, right)
        halves = first + second
        rough = np.abs(halves - whole) > 4 * precision() * (total + np.sum(halves))
        total += float(np.sum(halves[~rough]))
        if not rough.any():
            return total
        left = np.concatenate([left[rough], middle[rough]])
        right = np.concatenate([middle[rough], right[rough]])
        whole = np.concatenate([first[rough], second[rough]])
        if len(whole) > 2000:
            return float("nan")
    return total + float(np.sum(whole))  # the intervals around jumps, as narrow as 2^-60


def _warn(phi: Callable[[Array], Array], sigma: float, gain: float, precision: float) -> None:
    """Warn if T6 applies: phi(t x) = t phi(x), and this gain does not preserve signals."""
    x = 13 * sigma * 2.0 ** -np.arange(20.0)  # the range of the integral
    slopes = phi(np.concatenate([x, -x])).reshape(2, -1) / np.stack([x, -x])
    if np.max(np.ptp(slopes, axis=1)) > 64 * precision * np.max(np.abs(slopes)):
        return
    rates = []
    for sign in (1.0, -1.0):
        signal = [sign]
        for _ in range(4):  # after two layers it keeps its sign, alternates, or is 0
            signal.append(signal[-1] * float(slopes[int(signal[-1] < 0), 0]))
        rates.append(abs(signal[4] / signal[2]) ** 0.5 if signal[2] else 0.0)
    rate = max(rates)
    if rate == 0.0 or abs(gain * rate - 1) <= max(1e-9, 64 * precision):
        return
    should = (
        "this gain is for random weights: identity weights mix no signs, so a chain of L layers of "
        f"IDI_tau with this activation and tau = {gain:.6g} multiplies a signal by "
        f"{gain * rate:.6g}^L (theorem T6: ReLU with Kaiming's sqrt(2) explodes as 2^(L/2))"
    )
    cure = f"with identity weights use tau = {1 / rate:.6g}, the only one that keeps the moment"
    warnings.warn(IdentityGainWarning(message("gain", gain, should, cure)), stacklevel=3)
