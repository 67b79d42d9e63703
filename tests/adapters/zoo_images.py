"""Models of pictures for PyTorch, as published but compact.

`scale` divides the widths; 1 gives the published ones.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional


def conv(into, out, kernel, stride=1, padding=0):
    """A convolution with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(into, out, kernel, stride, padding, bias=False), nn.BatchNorm2d(out), nn.ReLU()
    )


def classifier(into, hidden, classes):
    """Three dense layers; the dropout of the published ones is left out."""
    layers = [nn.Flatten(), nn.Linear(into, hidden), nn.ReLU(), nn.Linear(hidden, hidden)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(hidden, classes))


def alexnet(scale=1, classes=10):
    """Krizhevsky 2014, as torchvision has it: no norms, large kernels, max pooling."""
    a, b, c, d = (width // scale for width in (64, 192, 384, 256))
    return nn.Sequential(
        *(nn.Conv2d(3, a, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(b, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, d, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(d, d, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
        nn.AdaptiveAvgPool2d(6),
        classifier(d * 36, 4096 // scale, classes),
    )


def vgg(depth, scale=1, classes=10):
    """Simonyan and Zisserman 2015, without norms: 3 x 3 convolutions and max pooling."""
    counts = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}[depth]
    layers, into = [], 3
    for width, count in zip((64, 128, 256, 512, 512), counts, strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(into, width // scale, 3, padding=1), nn.ReLU()]
            into = width // scale
        layers.append(nn.MaxPool2d(2))
    pool = nn.AdaptiveAvgPool2d(7)
    return nn.Sequential(*layers, pool, classifier(into * 49, 4096 // scale, classes))


def strided(kernel, scale=1, classes=10):
    """No norm and no pooling: every convolution halves the picture."""
    widths = [3, *(width // scale for width in (64, 128, 256, 512))]
    layers = []
    for into, out in pairwise(widths):
        layers += [nn.Conv2d(into, out, kernel, 2, kernel // 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(classes))


class Block3d(nn.Module):
    """Two 3 x 3 x 3 convolutions with batch norm beside a shortcut."""

    def __init__(self, into, out, stride):
        super().__init__()
        self.conv1 = nn.Conv3d(into, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(out)
        self.conv2 = nn.Conv3d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm3d(out)
        self.down = None
        if stride > 1:
            down = nn.Conv3d(into, out, 1, stride, bias=False)
            self.down = nn.Sequential(down, nn.BatchNorm3d(out))

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + (x if self.down is None else self.down(x))).relu()


def r3d_18(scale=1, classes=10):
    """Tran 2018: a ResNet-18 of 3-D convolutions."""
    widths = [width // scale for width in (64, 64, 128, 256, 512)]
    stem = nn.Conv3d(3, widths[0], (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
    layers = [stem, nn.BatchNorm3d(widths[0]), nn.ReLU()]
    for k, (into, out) in enumerate(pairwise(widths)):
        layers += [Block3d(into, out, 2 if k else 1), Block3d(out, out, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(out, classes))


def dcgan(scale=1, noise=100):
    """Radford 2016: the generator, from noise of 1 x 1 to pictures of 64 x 64."""
    widths = [width // scale for width in (512, 256, 128, 64)]
    layers, into = [], noise
    for k, width in enumerate(widths):
        up = nn.ConvTranspose2d(into, width, 4, 2 if k else 1, 1 if k else 0, bias=False)
        layers += [up, nn.BatchNorm2d(width), nn.ReLU()]
        into = width
    return nn.Sequential(*layers, nn.ConvTranspose2d(into, 3, 4, 2, 1, bias=False), nn.Tanh())


class UNet(nn.Module):
    """Two convolutions a level, and a concatenation on the way up.

    Up by interpolation, as in segmentation_models_pytorch, or by a transposed convolution, as in
    Ronneberger 2015, here padded.
    """

    def __init__(self, widths=(8, 16, 32, 64, 64), classes=3, learned=False):
        super().__init__()

        def two(into, out):
            return nn.Sequential(conv(into, out, 3, 1, 1), conv(out, out, 3, 1, 1))

        self.down = nn.ModuleList(two(*pair) for pair in zip((3, *widths), widths, strict=False))
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))  # from below, to the left
        ways = (nn.ConvTranspose2d(a, b, 2, 2) for a, b in pairs)
        self.ways = nn.ModuleList(ways if learned else (nn.Upsample(None, 2) for _ in pairs))
        self.up = nn.ModuleList(two((b if learned else a) + b, b) for a, b in pairs)
        self.head = nn.Conv2d(widths[0], classes, 3, 1, 1)

    def forward(self, x):
        skips = []
        for k, down in enumerate(self.down):
            x = down(functional.max_pool2d(x, 2) if k else x)
            skips.append(x)
        skips.pop()
        for way, up in zip(self.ways, self.up, strict=True):
            x = up(torch.cat([way(x), skips.pop()], 1))
        return self.head(x)


class Mixed(nn.Module):
    """Branches of one input, concatenated."""

    def __init__(self, *branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], 1)


def inception(scale=1, classes=10):
    """Szegedy 2016: InceptionV3, all of its blocks, without the auxiliary classifier."""

    def w(width):
        return max(width // scale, 1)

    def row(into, *steps):
        """A chain of convolutions: width, kernel, stride, padding."""
        layers = []
        for width, *how in steps:
            layers.append(conv(into, w(width), *how))
            into = w(width)
        return nn.Sequential(*layers)

    def pooled(into, out):
        return nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(into, w(out), 1))

    def a(into, pool):
        wide = row(into, (48, 1), (64, 5, 1, 2))
        twice = row(into, (64, 1), (96, 3, 1, 1), (96, 3, 1, 1))
        return Mixed(row(into, (64, 1)), wide, twice, pooled(into, pool)), w(64) * 2 + w(96) + w(
            pool
        )

    def b(into):
        twice = row(into, (64, 1), (96, 3, 1, 1), (96, 3, 2))
        return Mixed(row(into, (384, 3, 2)), twice, nn.MaxPool2d(3, 2)), w(384) + w(96) + into

    def c(into, m):
        flat, tall = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
        once = row(into, (m, 1), (m, *flat), (192, *tall))
        twice = row(into, (m, 1), (m, *tall), (m, *flat), (m, *tall), (192, *flat))
        return Mixed(row(into, (192, 1)), once, twice, pooled(into, 192)), w(192) * 4

    def d(into):
        small = row(into, (192, 1), (320, 3, 2))
        large = row(into, (192, 1), (192, (1, 7), 1, (0, 3)), (192, (7, 1), 1, (3, 0)), (192, 3, 2))
        return Mixed(small, large, nn.MaxPool2d(3, 2)), w(320) + w(192) + into

    def e(into):
        def both(into):
            flat = conv(into, w(384), (1, 3), 1, (0, 1))
            return Mixed(flat, conv(into, w(384), (3, 1), 1, (1, 0)))

        once = nn.Sequential(conv(into, w(384), 1), both(w(384)))
        twice = nn.Sequential(row(into, (448, 1), (384, 3, 1, 1)), both(w(384)))
        branches = row(into, (320, 1)), once, twice, pooled(into, 192)
        return Mixed(*branches), w(320) + w(384) * 4 + w(192)

    layers = [row(3, (32, 3, 2), (32, 3), (64, 3, 1, 1)), nn.MaxPool2d(3, 2)]
    layers += [row(w(64), (80, 1), (192, 3)), nn.MaxPool2d(3, 2)]
    into = w(192)
    blocks = [(a, 32), (a, 64), (a, 64), (b,), (c, 128), (c, 160), (c, 160), (c, 192), (d,)]
    for make, *more in [*blocks, (e,), (e,)]:
        block, into = make(into, *more)
        layers.append(block)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(into, classes))
