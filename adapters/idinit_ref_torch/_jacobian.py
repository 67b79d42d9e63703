"""The Jacobian of a computation, by its products: for `idinit_ref.diagnostics`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from idinit_ref.diagnostics.arrays import eps_of
from idinit_ref.diagnostics.spectrum import Operator
from idinit_ref.errors import OptionTypeError, ShapeError, message

__all__ = ["jacobian"]


def jacobian(f: Callable[[Tensor], Tensor], x: Tensor) -> Operator:
    """Return the Jacobian of f at x as a linear map, which is never written out.

    Parameters
    ----------
    f : callable
        From one tensor to one: a module in evaluation mode, say. It is run once, by
        `torch.func.vjp`, which gives the products with J^T; those with J are the vjp of these
        (much faster than `torch.func.jvp`, which runs f anew, through 1,000 layers). Attention
        is computed without fused kernels, which have no second derivative; where another
        operation has none, PyTorch says so.
    x : torch.Tensor
        Real floating, of any shape and device. Several samples at once are several inputs.

    Returns
    -------
    idinit_ref.diagnostics.Operator
        Of shape (entries of f(x), entries of x), both in row-major order; the vectors are computed
        with in the dtype of x.

    Raises
    ------
    OptionTypeError
        If x or f(x) is no real floating tensor.
    ShapeError
        If one of them is empty.

    Notes
    -----
    J[i, j] = d f(x)[i] / d x[j]; of a chain of L square IDI_tau it is tau^L I (theorem T5).

    Examples
    --------
    >>> import torch
    >>> from idinit_ref.diagnostics.spectrum import singular_values
    >>> from idinit_ref_torch import idi_layer_, jacobian
    >>> layer = idi_layer_(torch.nn.Linear(2, 4))
    >>> singular_values(jacobian(layer, torch.zeros(2))).round(6)
    array([1.414214, 1.414214])
    """
    _check("x", x)
    x = x.detach()

    def checked(x: Tensor) -> Tensor:
        y = f(x)
        _check("f(x)", y)
        return y

    with torch.no_grad():  # of the parameters: no memory is kept for them
        with sdpa_kernel(SDPBackend.MATH):
            y, pull = torch.func.vjp(checked, x)[:2]
        # u -> J^T u is linear, and its own transpose is J, at whichever u.
        push = torch.func.vjp(lambda u: pull(u)[0], torch.zeros_like(y))[1]

    def matvec(v: NDArray[np.float64]) -> Any:
        return push(_like(x, v))[0]

    def rmatvec(u: NDArray[np.float64]) -> Any:
        return pull(_like(y, u))[0]

    precision = max(eps_of(x.dtype), eps_of(y.dtype))
    return Operator(matvec, rmatvec, (y.numel(), x.numel()), precision)


def _check(name: str, value: Any) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
        cure = "take one real tensor to one: wrap the rest in a lambda"
        raise OptionTypeError(message(name, got, "it should be a real floating tensor", cure))
    if value.numel() == 0:
        raise ShapeError(message(f"{name}'s shape", tuple(value.shape), "it is empty", "fill it"))


def _like(tensor: Tensor, values: NDArray[np.float64]) -> Tensor:
    return torch.tensor(values).to(tensor).reshape(tensor.shape)
