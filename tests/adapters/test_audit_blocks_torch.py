"""An audit of a packed PyTorch weight names the blocks that autograd gives no gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import idinit_ref_torch as irt

CERTAIN = {
    "detach": lambda q, x: q.detach(),
    "round": lambda q, x: q.round(),
    "no grad": lambda q, x: _without(q),
    "index": lambda q, x: F.one_hot((q @ q.mT).argmax(-1), 8).float(),
}
UNCERTAIN = {
    "where": lambda q, x: torch.where(x > 100, q, x),
    "relu": lambda q, x: (q - 100).relu() + x,
    "mask": lambda q, x: q * (x > 100) + x,
}


def _without(q):
    with torch.no_grad():
        return q * 1


def samples(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Attention(nn.Module):
    """Queries, keys and values in one matrix; something may happen to the queries."""

    def __init__(self, change):
        super().__init__()
        self.qkv, self.out, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 3)
        self.change = change

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        a = (self.change(q, x) @ k.mT / 8**0.5).softmax(-1)
        return self.head(x + self.out(a @ v))


def without_gradient(model, x):
    """Return the blocks whose gradient autograd says is exactly 0."""
    out = model(x)
    (slope,) = torch.autograd.grad((out * samples(*out.shape, seed=5)).sum(), [model.qkv.weight])
    return {f"qkv.weight[{at}:{at + 8}]" for at in (0, 8, 16) if not slope[at : at + 8].any()}


@pytest.mark.parametrize("how", [*CERTAIN, *UNCERTAIN, "plain"])
def test_a_block_without_a_gradient_is_named(how):
    model, x = Attention({**CERTAIN, **UNCERTAIN}.get(how, lambda q, x: q)), samples(4, 5, 8)
    irt.init_(model, x)
    named = without_gradient(model, x)
    assert ("qkv.weight[0:8]" in named) == (how != "plain")
    audit = irt.audit(model, x, steps=3)
    assert {one.name for one in audit.dead} == named
    assert bool(audit.healthy) == (how not in CERTAIN)
    said = audit.healthy if how in CERTAIN else audit.remarks
    assert any("qkv.weight[0:8]" in text for text in said) == (how != "plain")
    assert not any(one.wakes for one in audit.dead)
    if how not in CERTAIN:  # nothing fails, so there is no second look
        assert audit.steps == 0


def test_blocks_of_one_token_are_a_remark():
    """The softmax of one logit is 1: queries and keys learn nothing from single tokens."""
    model, x = Attention(lambda q, x: q), samples(4, 1, 8)
    irt.init_(model, x)
    audit = irt.audit(model, x)
    assert audit.healthy
    assert {one.name for one in audit.dead} == {"qkv.weight[0:8]", "qkv.weight[8:16]"}
    assert any("no gradient from these inputs for blocks" in text for text in audit.remarks)


def test_a_block_of_a_dead_weight_is_told_once_its_weight_wakes():
    """A head of zeros hides that no gradient passes the rounding."""
    model, x = Attention(CERTAIN["round"]), samples(4, 5, 8)
    irt.init_(model, x)
    nn.init.zeros_(model.head.weight)
    audit = irt.audit(model, x, steps=3)
    assert "the output" in audit.woken
    assert audit.healthy == (
        "1 parameter has a gradient of exactly 0 (qkv.weight[0:8]): no gradient passes round, "
        "whose derivative is 0",
    )


@pytest.mark.parametrize("width", [4, 8, 16])
def test_gates_of_a_packed_weight_that_wait_for_the_first_step_wait(width):
    """What IDIZ reads may cancel (T10): as gates of their own, the blocks get a gradient later."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.both = nn.Linear(4, 4), nn.Linear(4, 2 * width)
            self.down = nn.Linear(width, 4)

        def forward(self, x):
            x = self.first(x)
            a, gate = self.both(x).chunk(2, -1)
            return x + self.down(a * gate.sigmoid())

    model, x = Gated(), samples(6, 4)
    irt.init_(model, x)
    audit = irt.audit(model, x)
    assert audit.healthy
    assert audit.steps == 0
    assert all(one.wakes for one in audit.dead)


def test_a_block_that_no_output_reads_is_not_dead():
    class Unread(nn.Module):
        def __init__(self):
            super().__init__()
            self.both = nn.Linear(8, 16)

        def forward(self, x):
            a, b = self.both(x).chunk(2, -1)
            _ = b.relu()
            return a

    model, x = Unread(), samples(4, 8)
    irt.init_(model, x)
    audit = irt.audit(model, x)
    assert audit.healthy
    assert not audit.dead


def test_the_channels_of_a_packed_convolution_are_blocks_too():
    class Conv(nn.Module):
        def __init__(self):
            super().__init__()
            self.both, self.last = nn.Conv1d(4, 8, 3, padding=1), nn.Conv1d(4, 4, 1)

        def forward(self, x):
            a, gate = self.both(x).chunk(2, 1)
            return self.last(a * gate.detach().sigmoid())

    model, x = Conv(), samples(4, 4, 6)
    irt.init_(model, x)
    audit = irt.audit(model, x)
    assert not audit.healthy
    assert [one.name for one in audit.dead] == ["both.weight[4:8]"]
    assert "detach" in audit.healthy[0]
