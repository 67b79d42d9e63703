"""Published models of pictures under `init_`: none is dead, and a U-Net trains."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapters import zoo_images as zoo
from idinit_ref_torch import init_


def wide_unet(scale, **options):
    """A U-Net of five levels with the widths that most have."""
    return zoo.UNet([width // scale for width in (64, 128, 256, 512, 512)], **options)


PICTURES = (8, 3, 64, 64)
MODELS = {
    "alexnet": (zoo.alexnet, PICTURES),
    "vgg16": (lambda scale: zoo.vgg(16, scale), PICTURES),
    "vgg19": (lambda scale: zoo.vgg(19, scale), PICTURES),
    "5x5-strided": (lambda scale: zoo.strided(5, scale), PICTURES),
    "7x7-strided": (lambda scale: zoo.strided(7, scale), PICTURES),
    "r3d-18": (zoo.r3d_18, (4, 3, 8, 32, 32)),
    "dcgan": (zoo.dcgan, (8, 100, 1, 1)),
    "unet-32": (wide_unet, (4, 3, 32, 32)),
    "unet-64": (wide_unet, (4, 3, 64, 64)),
    "unet-64-transposed": (lambda scale: wide_unet(scale, learned=True), (4, 3, 64, 64)),
    "unet-64-skip-first": (lambda scale: wide_unet(scale, skip_first=True), (4, 3, 64, 64)),
    "inception": (zoo.inception, (4, 3, 96, 96)),
    "inception-16": (zoo.inception, (16, 3, 96, 96)),
}
# Its last blocks see one place. At an eighth of its width, batch norms and ReLUs thin 4 values out
# to none for one of eight inputs; at its published width for none.
THIN = "inception"


def step(model, x):
    """One step of AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    optimizer.zero_grad()
    loss(model(x)).backward()
    optimizer.step()
    optimizer.zero_grad()


def loss(y):
    """Cross entropy with random labels, or for pictures the distance to random ones."""
    draw = torch.Generator().manual_seed(2)
    if y.dim() == 2:
        labels = torch.randint(0, y.shape[1], y.shape[:1], generator=draw)
        return nn.functional.cross_entropy(y, labels)
    return nn.functional.mse_loss(y, torch.rand(y.shape, generator=draw) * 2 - 1)


def without_gradient(model, x):
    """The names of the parameters whose gradient is 0 everywhere."""
    loss(model(x)).backward()
    pairs = model.named_parameters()
    return [name for name, p in pairs if p.grad is None or not p.grad.any()]


def initialised(name, scale, seed=1):
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model, x = make(scale), torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    model(x)  # lazy layers
    init_(model, x)
    return model, x


def is_alive(name, scale, seed=1):
    model, x = initialised(name, scale, seed)
    with torch.no_grad():
        y = model.eval()(x)
    assert y.isfinite().all()
    assert y.std() > 0
    assert (y - y[:1]).abs().max() > y.std() / 100, "does not depend on the input"
    model.train()
    step(model, x)
    dead = without_gradient(model, x)
    assert len(dead) <= len(list(model.parameters())) / 4, dead


@pytest.mark.cases(2)
@pytest.mark.parametrize("name", MODELS)
def test_no_model_is_dead(name):
    is_alive(name, 8)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(2, 10))
@pytest.mark.parametrize("name", [name for name in MODELS if name != THIN])
def test_no_model_is_dead_for_other_inputs(name, seed):
    is_alive(name, 8, seed)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "seed"), [*((name, 1) for name in MODELS), *((THIN, seed) for seed in range(2, 10))]
)
def test_no_model_of_its_published_width_is_dead(name, seed):
    is_alive(name, 1, seed)


@pytest.mark.nightly
def test_a_u_net_that_puts_the_skip_first():
    """Truncated, it awakes level by level; by default what reads `cat([skip, up])` is folded."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model = zoo.UNet(skip_first=True, learned=True)
    init_(model, x, wide="truncate")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    dead = []
    for _ in range(len(model.up) + 1):
        optimizer.zero_grad()
        dead.append(len(without_gradient(model, x)))
        optimizer.step()
    assert len(list(model.parameters())) == 64
    assert dead == [50, 36, 22, 8, 0]  # as docs/models.md has it
    init_(model, x)
    model.zero_grad()
    assert without_gradient(model, x) == []


@pytest.mark.nightly
def test_a_u_net_trains():
    """Which of three classes a place has can be read off two channels of the picture there."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(8, 3, 32, 32, generator=draw)
    labels = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    torch.manual_seed(0)
    model = zoo.UNet()
    init_(model, x)
    assert without_gradient(model, x) == []
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    with torch.no_grad():
        assert nn.functional.cross_entropy(model(x), labels) < 0.6  # ln 3 = 1.10 if it is dead
