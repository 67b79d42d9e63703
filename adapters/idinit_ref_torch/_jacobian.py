"""The Jacobian of a computation as a linear operator, for `idinit_ref.diagnostics`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from idinit_ref.diagnostics.jacobian import Arrays, Linearised, jacobian_of
from idinit_ref.diagnostics.spectrum import Operator

__all__ = ["jacobian"]


def jacobian(f: Callable[[Tensor], Tensor], x: Tensor) -> Operator:
    """Return the Jacobian of f at x as a linear operator; the matrix is never formed.

    Parameters
    ----------
    f : callable
        Maps one tensor to one tensor, for example a module in evaluation mode. It runs once, in
        `torch.func.vjp`, which gives the products with J^T. The products with J are the vjp of
        those products. (Through 1,000 layers this is much faster than `torch.func.jvp`, which runs
        f for every product.) Attention is computed without fused kernels, since these have no
        second derivative. If another operation has none, PyTorch raises an error.
    x : torch.Tensor
        Real floating-point, of any shape, on any device. A batch of samples counts as one input
        vector.

    Returns
    -------
    idinit_ref.diagnostics.Operator
        The shape is (entries of f(x), entries of x), both in row-major order. Vectors have the
        dtype of x.

    Raises
    ------
    OptionTypeError
        If f cannot be called, or x or f(x) is not a real floating-point tensor.
    ShapeError
        If one of them is empty.

    Notes
    -----
    J[i, j] = d f(x)[i] / d x[j]. For a chain of L square IDI_tau layers, J = tau^L I (theorem T5).

    Examples
    --------
    >>> import torch
    >>> from idinit_ref.diagnostics.spectrum import singular_values
    >>> from idinit_ref_torch import idi_layer_, jacobian
    >>> layer = idi_layer_(torch.nn.Linear(2, 4))
    >>> singular_values(jacobian(layer, torch.zeros(2))).round(6)
    array([1.414214, 1.414214])
    """
    return jacobian_of(_ARRAYS, f, x, _linearise)


def _linearise(f: Callable[[Tensor], Tensor], x: Tensor) -> Linearised:
    x = x.detach()
    with torch.no_grad():  # stores nothing for the parameters' gradients
        with sdpa_kernel(SDPBackend.MATH):
            y, pull = torch.func.vjp(f, x)[:2]
        # u -> J^T u is linear and its transpose is J, so its vjp at any u gives J v.
        push = torch.func.vjp(lambda u: pull(u)[0], torch.zeros_like(y))[1]
    return Linearised(y, lambda v: push(v)[0], lambda u: pull(u)[0])


_ARRAYS = Arrays(
    "tensor",
    Tensor,
    lambda x: bool(x.is_floating_point()),
    lambda x, values: torch.tensor(values).to(x).reshape(x.shape),
)
