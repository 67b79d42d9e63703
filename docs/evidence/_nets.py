"""The networks of the studies, plain enough for every method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["Bias", "Residual", "mlp", "resnet", "weighted"]


class Bias(nn.Module):
    """One learned number, 0 at first, that is added everywhere, for Fixup."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.value


class Residual(nn.Module):
    """``shortcut(x) + scale * branch(x)``, with ReLU afterwards if asked for.

    With `scalars` the scale is learned, 1 at first, and the branch's result gets a `Bias`.
    """

    def __init__(
        self,
        branch: nn.Sequential,
        shortcut: nn.Module | None = None,
        *,
        activation: bool = False,
        scalars: bool = False,
    ) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut or nn.Identity()
        self.scale = nn.Parameter(torch.ones(())) if scalars else None
        self.bias = Bias() if scalars else nn.Identity()
        self.activation = nn.ReLU() if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        if self.scale is not None:
            out = out * self.scale
        return self.activation(self.shortcut(x) + self.bias(out))


def weighted(model: nn.Module) -> Iterator[nn.Linear | nn.Conv2d]:
    """Yield the dense and convolution layers of a model, in order."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            yield module


def mlp(
    sizes: Sequence[int], activation: Callable[[], nn.Module] | None = None, *, bias: bool = False
) -> nn.Sequential:
    """Return dense layers of these sizes, with the activation between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        if layers and activation is not None:
            layers.append(activation())
        layers.append(nn.Linear(inputs, outputs, bias=bias))
    return nn.Sequential(*layers)


def resnet(
    blocks: int,
    width: int = 16,
    *,
    norm: bool = False,
    scalars: bool = False,
    kernel: int = 3,
    stages: int = 1,
    inputs: int = 1,
    classes: int = 10,
) -> nn.Sequential:
    """Return a residual net for small images.

    A convolution, blocks of ``x + conv(relu(conv(x)))``, ReLU, the average over each quarter of the
    image, and a dense layer. `norm`: batch normalisation after each convolution. `stages`: in each
    but the first the channels are doubled and the image halved, with a 1 x 1 projection of stride 2
    in the shortcut. `scalars`: Fixup's scales and biases.
    """

    def conv(inputs: int, outputs: int, size: int = kernel, stride: int = 1) -> list[nn.Module]:
        layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=not (norm or scalars))
        normed = [nn.BatchNorm2d(outputs)] if norm else []
        return [*([Bias()] if scalars else []), layer, *normed]

    layers: list[nn.Module] = conv(inputs, width)
    for number in range(blocks):
        wide = width << (number * stages // blocks)
        before = width << (max(number - 1, 0) * stages // blocks)
        stride = 1 if wide == before else 2
        middle = [*([Bias()] if scalars else []), nn.ReLU()]
        branch = [*conv(before, wide, stride=stride), *middle, *conv(wide, wide)]
        shortcut = None if stride == 1 else nn.Sequential(*conv(before, wide, 1, 2))
        layers.append(Residual(nn.Sequential(*branch), shortcut, scalars=scalars))
    layers += [nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * wide, classes)]
    return nn.Sequential(*layers)
