"""Data, and the one loop that trains."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn

from docs.evidence._study import need

__all__ = ["accuracy", "batches", "digits", "learn", "photographs", "train"]


@cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return scikit-learn's 8 x 8 digits: images and labels to learn from, and 360 held out.

    Images are (N, 1, 8, 8) of mean 0 and variance 1 over all; the split is the same always.
    """
    data = need("sklearn.datasets").load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.as_tensor(data.images, dtype=torch.float32)[order, None]
    labels = torch.as_tensor(data.target)[order]
    images = (images - images[360:].mean()) / images[360:].std()
    return images[360:], labels[360:], images[:360], labels[:360]


@cache
def photographs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return patches of scikit-learn's two photographs, and the order of each one's colours.

    Patches to learn from, their labels, and patches of the right quarter of each photograph, which
    is held out, with theirs. Patches are (N, 3, 16, 16) of mean 0 and variance 1 over all. The
    classes are the six orders of red, green and blue; all is drawn once, the same always.
    """
    load, found = need("sklearn.datasets").load_sample_image, []
    images = [torch.tensor(load(name)) for name in ("china.jpg", "flower.jpg")]
    rows = torch.stack(images).permute(0, 3, 1, 2).float().unfold(2, 16, 16).unfold(3, 16, 16)
    orders = torch.tensor(list(permutations(range(3))))
    draw, cut = torch.Generator().manual_seed(0), rows.shape[3] * 3 // 4
    for part in (rows[:, :, :, :cut], rows[:, :, :, cut:]):
        patches = part.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        patches = patches[torch.randperm(len(patches), generator=draw)]
        labels = torch.randint(len(orders), (len(patches),), generator=draw)
        found += [patches[torch.arange(len(patches))[:, None], orders[labels]], labels]
    x, y, judge, labels = found
    mean, deviation = x.mean(), x.std()
    return (x - mean) / deviation, y, (judge - mean) / deviation, labels


def batches(x: Tensor, y: Tensor, size: int, epochs: int, seed: int) -> Iterator[tuple[Any, Any]]:
    """Yield shuffled batches of so many epochs, the same ones for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(size):
            if len(rows) == size or size > len(x):
                yield x[rows], y[rows]


def train(
    model: nn.Module,
    data: Iterator[tuple[Any, Any]],
    optimiser: torch.optim.Optimizer,
    loss: nn.Module | None = None,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> Iterator[float]:
    """Train; yield the loss of each batch before its step; stop if it is not finite."""
    loss = loss or nn.CrossEntropyLoss()
    model.train()
    for x, y in data:
        value = loss(model(x), y)
        if not torch.isfinite(value):
            return
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        yield value.item()
        optimiser.step()
        if schedule is not None:
            schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the fraction of rows classified right; a NaN output is wrong."""
    model.eval()
    out = model(x)
    right = (out.argmax(1) == y) & torch.isfinite(out).all(1)
    model.train()
    return right.float().mean().item()


def learn(
    model: nn.Module, optimiser: torch.optim.Optimizer, *, size: int, epochs: int, seed: int
) -> dict[str, float]:
    """Learn the digits in batches of `size`; a run that diverges has the results of chance."""
    x, y, judge, labels = digits()
    steps = sum(1 for _ in train(model, batches(x, y, size, epochs, seed), optimiser))
    with torch.no_grad():
        model.eval()
        loss = nn.functional.cross_entropy(model(judge), labels).item()
    if steps < len(x) // size * epochs or not math.isfinite(loss):
        return {"accuracy": 0.1, "loss": math.log(10), "diverged": 1}
    return {"accuracy": accuracy(model, judge, labels), "loss": loss, "diverged": 0}
