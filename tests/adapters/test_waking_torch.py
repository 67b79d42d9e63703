"""What an audit of a PyTorch model says of waking, beside real training of the same model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import idinit_ref_torch as irt
from idinit_ref.errors import OptionError


def samples(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Select(nn.Module):
    """Selective kernels: a softmax weighs two branches, by what they have found."""

    def __init__(self, kernel):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, kernel, padding=kernel // 2)
        self.squeeze, self.logits, self.head = nn.Linear(8, 4), nn.Linear(4, 16), nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x).relu()
        a, b = self.a(x).relu(), self.b(x).relu()
        z = self.squeeze((a + b).mean((2, 3))).relu()
        w = self.logits(z).view(-1, 2, 8, 1, 1).softmax(1)
        return self.head((a * w[:, 0] + b * w[:, 1]).mean((2, 3)))


class Beside(nn.Module):
    """Selective kernels inside residual branches: all that they select from is of size eps."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 1)
        self.blocks = nn.ModuleList([Select(5) for _ in range(2)])
        for block in self.blocks:
            del block.first, block.head

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            both = torch.stack([block.a(x), block.b(x)], 1)
            z = block.squeeze(both.sum(1).mean((2, 3))).relu()
            x = x + (both * block.logits(z).view(-1, 2, 8, 1, 1).softmax(1)).sum(1)
        return self.head(x)


class Attend(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x, y):
        return self.out((self.q(x) @ self.k(y).mT / 8**0.5).softmax(-1) @ self.v(y))


class Perceiver(nn.Module):
    """Latents read the input, and output queries read the latents: eps times eps at first."""

    def __init__(self, reads=True):
        super().__init__()
        self.latents, self.queries = (nn.Parameter(samples(n, 8, seed=n)) for n in (6, 2))
        self.encode, self.decode, self.head = Attend(), Attend(), nn.Linear(8, 3)
        self.reads = reads

    def forward(self, x):
        x = x if self.reads else x * 0 + 1
        z = self.latents.expand(len(x), -1, -1)
        z = z + self.encode(z, x)
        q = self.queries.expand(len(x), -1, -1)
        return self.head(q + self.decode(q, z))


class Res(nn.Module):
    def __init__(self, function=torch.relu):
        super().__init__()
        self.first, self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale, self.head = nn.Parameter(torch.ones(8)), nn.Linear(8, 3)
        self.function = function

    def forward(self, x):
        x = self.first(x)
        return self.head(x + self.scale * self.down(self.function(self.up(x))))


class Nested(nn.Module):
    """Scales of 0 inside scales of 0: one step wakes the next."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.scales = nn.ParameterList([nn.Parameter(torch.zeros(())) for _ in range(3)])

    def forward(self, x):
        h, x = 0, self.first(x)
        for layer, scale in zip(self.layers, self.scales, strict=True):
            h = scale * layer(x).tanh() * (1 + h)
        return x + h


class Mixed(nn.Module):
    """Two equal branches, mixed by a learned softmax whose logits never get a gradient."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.logits = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        w = self.logits.softmax(0)
        return self.head(x + w[0] * self.a(x) + w[1] * self.b(x))


class Stop(torch.autograd.Function):
    """A function whose backward pass gives 0, or nothing."""

    @staticmethod
    def forward(ctx, x, nothing):
        ctx.nothing = nothing
        return x.relu()

    @staticmethod
    def backward(ctx, grad):
        return None if ctx.nothing else grad * 0, None


def hooked(x):
    x = x.relu()
    if x.requires_grad:
        x.register_hook(torch.zeros_like)
    return x


def filled(model, **values):
    with torch.no_grad():
        for name, value in values.items():
            dict(model.named_parameters())[name.replace("__", ".")].fill_(value)
    return model


KINDS = {
    "select": (lambda: Select(5), (4, 3, 8, 8), {}, True),
    "select of two samples": (Beside, (2, 3, 16, 16), {}, True),
    "twins": (lambda: Select(3), (4, 3, 8, 8), {}, False),
    "twins that logits mix": (Mixed, (6, 8), {}, False),
    "perceiver": (Perceiver, (4, 5, 8), {}, True),
    "blind perceiver": (lambda: Perceiver(reads=False), (4, 5, 8), {}, False),
    "zero head": (Res, (6, 8), {"head__weight": 0}, True),
    "zero entry": (Res, (6, 8), {"first__weight": 0}, True),
    "zeros one inside the other": (Nested, (6, 8), {}, True),
    "zero head and end": (Res, (6, 8), {"head__weight": 0, "down__weight": 0}, True),
    "zero end and scale": (Res, (6, 8), {"down__weight": 0, "down__bias": 0, "scale": 0}, False),
    "zero entry and head": (Res, (6, 8), {"first__weight": 0, "head__weight": 0}, False),
    "zero inside": (Res, (6, 8), {"up__weight": 0}, False),
    "dead ReLU": (Res, (6, 8), {"up__bias": -100}, False),
    "dead ReLU behind 0": (Res, (6, 8), {"up__bias": -100, "first__weight": 0}, False),
    "detached": (lambda: Res(torch.detach), (6, 8), {}, False),
    "rounded": (lambda: Res(torch.round), (6, 8), {}, False),
    "gradient of 0": (lambda: Res(lambda h: Stop.apply(h, False)), (6, 8), {}, False),
    "no gradient": (lambda: Res(lambda h: Stop.apply(h, True)), (6, 8), {}, False),
    "gradient of 0 by a hook": (lambda: Res(hooked), (6, 8), {}, False),
}


def started(kind):
    """Return the model of a kind as `init_` and the given values leave it, and samples."""
    torch.manual_seed(0)
    build, shape, values, _ = KINDS[kind]
    model, x = build(), samples(*shape)
    irt.init_(model, x)
    return filled(model, **values), x


def trained(model, x, optimiser):
    """Return the parameters that get no gradient in eight steps, and whether the output varies."""
    model, asleep = copy.deepcopy(model).eval(), {name for name, _ in model.named_parameters()}
    optimiser = optimiser(model.parameters())
    with torch.no_grad():
        target = model(x) + samples(*model(x).shape, seed=7)
    for _ in range(8):
        optimiser.zero_grad()
        (model(x) - target).square().mean().backward()
        asleep -= {
            name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()
        }
        optimiser.step()
    y = model(x)
    return asleep, bool((y - y[:1]).abs().max() > 1e-6 * y.abs().max())


@pytest.mark.every
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "optimiser", [lambda p: torch.optim.SGD(p, 0.1), lambda p: torch.optim.Adam(p, 1e-2)]
)
def test_what_wakes_in_training_is_a_remark_and_what_never_does_a_failure(kind, optimiser):
    model, x = started(kind)
    audit = irt.audit(model, x, steps=3)
    asleep, varies = trained(model, x, optimiser)
    unused = {*audit.unused}
    assert {one.name for one in audit.dead if not one.wakes} == asleep - unused
    assert any("the output does not" in said for said in audit.healthy) == (not varies)
    assert bool(audit.healthy) == KINDS[kind][-1]
    if audit.healthy:
        assert audit.woken
        assert any(said.startswith("ends after ") for said in audit.remarks)


@pytest.mark.parametrize("steps", [0, 6])
@pytest.mark.parametrize("kind", ["gradient of 0", "no gradient", "gradient of 0 by a hook"])
def test_what_stops_a_gradient_is_named_also_in_a_trained_model(kind, steps):
    model, x = started(kind)
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimiser.step()
    audit = irt.audit(model, x, steps=3)
    (said,) = audit.healthy
    assert "up.weight, up.bias" in said
    own = "" if "hook" in kind else ", a function with a gradient of its own"
    assert f"no gradient passes relu{own}: down sends one back" in said


class Alone(nn.Module):
    """A block whose first weight has no gradient at first: the terms of the second cancel."""

    def __init__(self):
        super().__init__()
        self.first, self.mid, self.up, self.down = (
            nn.Linear(n, m) for n, m in ((8, 8), (8, 8), (8, 16), (16, 8))
        )

    def forward(self, x):
        x = self.first(x)
        return x + self.down(self.up(self.mid(x)).relu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_terms_that_cancel_need_no_second_look(dtype):
    """Theorem T10: the gradient that the second weight sends back is exactly 0."""
    model, x = Alone().to(dtype), samples(6, 8).to(dtype)
    irt.init_(model, x)
    audit = irt.audit(model, x, steps=3)
    assert audit.healthy
    assert audit.steps == 0
    assert {one.name for one in audit.dead} == {"mid.weight", "mid.bias"}
    assert "mid.weight" not in trained(model.float(), x.float(), lambda p: torch.optim.SGD(p, 1))[0]


@pytest.mark.parametrize("kind", ["select", "zeros one inside the other"])
def test_the_steps_are_those_that_training_takes(kind):
    """In each step of real training the parameters wake that the audit says."""
    model, x = started(kind)
    audit = irt.audit(model, x, steps=3)
    before = {one.name for one in audit.dead}
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(audit.steps + 1):
        optimiser.zero_grad()
        (model(x) - samples(*model(x).shape, seed=7)).square().mean().backward()
        asleep = {n for n, p in model.named_parameters() if not p.grad.any()}
        assert bool(asleep) == (step < audit.steps)
        assert asleep < before or (step == 0 and asleep == before)
        before = asleep
        optimiser.step()


class Noisy(Res):
    """Has all that a run could change: statistics, random numbers, gradients, hooks, counters."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls += 1
        return super().forward(self.drop(self.norm(x)) + 0 * torch.rand(8))


@pytest.mark.parametrize("raises", [False, True])
def test_a_second_look_changes_nothing_in_the_model(raises):
    torch.manual_seed(0)
    model, x = Noisy(), samples(6, 8)
    irt.init_(model, x)
    filled(model.train(), head__weight=0, up__bias=-100)
    model.norm.eval()
    model.first.weight.grad = torch.ones_like(model.first.weight)

    def refuse(module, given):
        if raises and module.weight.any():
            raise ValueError("zeros only")

    model.head.register_forward_pre_hook(refuse)
    before = {
        "values": [t.clone() for t in (*model.parameters(), *model.buffers())],
        "tensors": [id(t) for t in (*model.parameters(), *model.buffers())],
        "memory": [t.data_ptr() for t in (*model.parameters(), *model.buffers())],
        "modes": [m.training for m in model.modules()],
        "keys": [list(vars(m)) for m in model.modules()],
        "hooks": [list(m._forward_hooks) + list(m._forward_pre_hooks) for m in model.modules()],
        "grads": [p.grad for p in model.parameters()],
    }
    state = torch.get_rng_state()
    audit = irt.audit(model, x, steps=3)
    assert not audit.healthy
    assert audit.steps == (0 if raises else 3)
    assert ("zeros only" in str(audit.limits)) == raises
    now = [*model.parameters(), *model.buffers()]
    assert all(map(torch.equal, now, before["values"]))
    assert [id(t) for t in now] == before["tensors"]
    assert [t.data_ptr() for t in now] == before["memory"]
    assert [m.training for m in model.modules()] == before["modes"]
    assert [list(vars(m)) for m in model.modules()] == before["keys"]
    assert [list(m._forward_hooks) + list(m._forward_pre_hooks) for m in model.modules()] == (
        before["hooks"]
    )
    assert all(
        a is b for a, b in zip((p.grad for p in model.parameters()), before["grads"], strict=True)
    )
    assert torch.equal(model.first.weight.grad, torch.ones_like(model.first.weight))
    assert torch.equal(torch.get_rng_state(), state)


def test_tied_and_frozen_weights_take_their_part():
    """A tied weight moves at both its places, and a frozen zero never moves."""

    class Tied(Res):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(8, 8, bias=False)
            self.last.weight = self.first.weight

        def forward(self, x):
            return self.last(super().forward(x) @ torch.ones(3, 8))

    model, x = Tied(), samples(6, 8)
    irt.init_(model, x)
    filled(model, head__weight=0, head__bias=0)
    audit = irt.audit(model, x, steps=3)
    assert audit.healthy
    assert "the output" in audit.woken
    model.head.weight.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    assert not irt.audit(model, x, steps=3).healthy


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_half_precision_moves_too(dtype):
    model, x = started("select")
    audit = irt.audit(model.to(dtype), x.to(dtype), steps=3)
    assert audit.healthy
    assert {name.split(".")[0] for name in audit.woken} == {"squeeze", "logits"}


@pytest.mark.parametrize("head", ["random", "zero"])
def test_without_steps_the_model_runs_once(head):
    """The contract of the default: one forward pass."""
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), samples(6, 8)
    irt.init_(model, x)
    if head == "zero":
        nn.init.zeros_(model[2].weight)
    runs = []
    model.register_forward_pre_hook(lambda *_: runs.append(1))
    audit = irt.audit(model, x)
    assert len(runs) == 1
    assert (audit.steps, audit.woken) == (0, ())
    assert bool(audit.healthy) == (head == "random")
    unknown = [said for said in audit.limits if " is unknown: steps=0" in said]
    assert len(unknown) == (head == "zero")
    after = irt.audit(model, x, steps=3)
    assert after.healthy
    assert len(runs) == (2 if head == "random" else 3)
    assert after.steps == (head == "zero")


def test_a_wrong_number_of_steps_is_an_error_before_the_model_runs():
    model = Res()
    model.register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    with pytest.raises(OptionError, match="steps = -1, but it should be an integer"):
        irt.audit(model, samples(6, 8), steps=-1)
