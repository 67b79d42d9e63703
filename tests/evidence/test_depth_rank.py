"""What the studies of depth and of rank compute, by another route."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from docs.evidence import depth, rank
from docs.evidence._study import pick


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the studies run; PyTorch's other threads do not flush what is nearly 0, and are slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_jacobian_is_the_product_of_weights_and_slopes():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3)).double()
    x = torch.randn(5).double()
    first, last = (layer.weight.detach().numpy() for layer in (body[0], body[2]))
    slope = 1 - np.tanh(first @ x.numpy()) ** 2
    np.testing.assert_allclose(depth.jacobian(body, x), last * slope @ first, rtol=1e-12)


def test_widths_alternate_from_64_inputs_to_10_outputs():
    layers = [m for m in depth._net("relu", 4, "96, 64") if isinstance(m, nn.Linear)]
    assert [tuple(m.weight.shape) for m in layers] == [(96, 64), (64, 96), (96, 64), (10, 96)]


def test_a_net_without_a_gradient_is_said_to_stand_still():
    row = depth.measure("train", "relu", 1000, "64", "xavier", 0, 1.0)
    assert row["still"] == 1
    assert row["accuracy"] < 0.2


def test_rows_are_different_if_an_entry_is_and_zeros_are_none():
    weight = torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, 2.0], [1.0, -2.0]]).double()
    assert rank.distinct(weight) == 2
    weight[2, 0] += 1e-6
    assert rank.distinct(weight) == 3


def test_turning_keeps_lengths_and_leaves_no_input_the_same_for_all():
    images = torch.randn(50, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    images[..., 0, 0] = -1.0
    turned = rank.turned(images)
    torch.testing.assert_close(turned.norm(dim=1), images.flatten(1).double().norm(dim=1))
    assert turned.std(0).min() > 0.1


def test_the_bound_is_the_number_of_classes_of_units():
    """For 3 inputs, 6 hidden units and 1 output: 3 + 1, by counting orbits by hand."""
    torch.manual_seed(0)
    x, y = torch.randn(40, 3).double(), torch.randint(2, (40,))
    eye = torch.eye(3).double()
    first, middle = torch.cat([eye, eye]), torch.eye(6).double()
    last = torch.zeros(1, 6).double()
    last[0, 0] = 1
    weights = [w.clone().requires_grad_() for w in (first, middle, last)]
    steps = torch.optim.SGD(weights, lr=0.1, momentum=0.9)
    for _ in range(50):
        out = (x @ weights[0].T).tanh() @ weights[1].T
        loss = (out.tanh() @ weights[2].T - y[:, None]).square().mean()
        steps.zero_grad()
        loss.backward()
        steps.step()
    change = (weights[1] - middle).detach()
    assert torch.linalg.matrix_rank(change, rtol=1e-9) == 4
    orbits = [[0], [3], [1, 4], [2, 5]]
    for rows in orbits:
        for columns in orbits:
            block = change[rows][:, columns]
            torch.testing.assert_close(block, block[:1, :1].expand_as(block), atol=1e-13, rtol=0)


@pytest.fixture(scope="module")
def small():
    """The cases of the quick run, once each."""
    return [
        {"way": way, "rate": 0.1, "seed": seed, **rank.measure(way, 0.1, seed)}
        for way in rank.QUICK
        for seed in rank.SEEDS[:1]
    ]


@pytest.mark.nightly
def test_the_check_of_rank_can_fail(small):
    rank.check(small)
    for row in pick(small, way="idi"):
        row["rank"] = 64
    with pytest.raises(AssertionError):
        rank.check(small)
