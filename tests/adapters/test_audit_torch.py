"""The audit of PyTorch models, beside the same numbers from plain hooks and gradients."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import idinit_ref_torch as irt
from idinit_ref.diagnostics.facts import signs
from idinit_ref.errors import GraphError, IDInitError, OptionError, OptionTypeError


class Block(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return x + self.down(self.dropout(torch.relu(self.up(self.norm(x)))))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), Block(), nn.BatchNorm1d(8), Block(), nn.Linear(8, 3))


def samples(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_fresh_residual_net_is_healthy_and_its_branches_are_tiny():
    model, x = net(), samples(4, 6)
    irt.init_(model, x)
    audit = irt.audit(model, x)
    assert audit.healthy
    assert audit.output_varies
    assert not audit.not_finite
    assert not audit.limits
    assert [branch.branch for branch in audit.branches] == ["1.down", "3.down"]
    assert all(branch.ratio < 1e-5 for branch in audit.branches)


@pytest.mark.parametrize("hidden", [6, 8, 16])
def test_gated_branches_that_cancel_are_healthy_at_every_width(hidden):
    """From hidden width 2m on, what IDIZ reads cancels (T10): the gates have no gradient yet."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(4, 2)
            self.up = nn.ModuleList([nn.Linear(4, hidden) for _ in range(2)])
            self.down = nn.ModuleList([nn.Linear(hidden, 4) for _ in range(2)])

        def forward(self, x):
            gates = self.gate(x).softmax(-1)
            experts = [down(F.gelu(up(x))) for up, down in zip(self.up, self.down, strict=True)]
            return x + sum(gates[:, k : k + 1] * expert for k, expert in enumerate(experts))

    model, x = Model(), samples(6, 4)
    irt.init_(model, x)
    audit = irt.audit(model, x)
    assert audit.healthy, audit.healthy
    asleep = {dead.name.split(".")[0] for dead in audit.dead if dead.wakes}
    assert asleep == ({"gate"} if hidden >= 8 else set())


@pytest.mark.parametrize("alone", [False, True], ids=["beside a result", "alone"])
def test_a_loss_of_one_number_may_be_returned(alone):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            y = self.net(x)
            return y.square().mean() if alone else (y, y.square().mean())

    model, x = Model(), samples(4, 6)
    irt.init_(model, x)
    assert irt.audit(model, x).healthy


@pytest.mark.parametrize("started", [False, True], ids=["default", "idinit"])
def test_the_numbers_are_those_of_plain_hooks_and_gradients(started):
    model, x = net(), samples(4, 6)
    if started:
        irt.init_(model, x)
    audit = irt.audit(model, x)

    seen, x = {}, x.requires_grad_()
    model.eval()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda _, __, y, name=name: seen.setdefault(name, y))
    skips = {}
    for name in ("1", "3"):
        hook = lambda _, given, name=name: skips.setdefault(name, given[0])  # noqa: E731 - in a loop
        model.get_submodule(name).register_forward_pre_hook(hook)
    y = model(x)
    y.backward(torch.from_numpy(signs([tuple(y.shape)])[0]))
    assert list(audit.second_moments) == list(seen)
    for name, moment in audit.second_moments.items():
        assert moment == pytest.approx(
            float(seen[name].detach().double().square().mean()), rel=1e-4
        )
    for branch, name in zip(audit.branches, ("1", "3"), strict=True):
        skip = float(skips[name].detach().double().square().mean().sqrt())
        assert branch.skip_rms == pytest.approx(skip, rel=1e-5)
    assert audit.input_gradient == pytest.approx(float(x.grad.abs().max()), rel=1e-4)
    dead = [name for name, p in model.named_parameters() if not p.grad.any()]
    assert [one.name for one in audit.dead] == dead
    for layer in audit.layers:
        y = seen[layer.name].detach().numpy().T + 0.0
        different = np.unique(y[np.ptp(y, axis=1) > 0], axis=0)
        assert layer.units - layer.copies - layer.silent == len(different)


def test_a_relu_that_is_never_on_is_found_and_named():
    model, x = net(), samples(4, 6)
    irt.init_(model, x)
    with torch.no_grad():
        model[1].up.bias.fill_(-100)
    audit = irt.audit(model, x)
    assert not audit.healthy
    dead = {one.name for one in audit.dead if one.behind == "1: relu"}
    assert dead == {f"1.{n}" for n in (
        "norm.weight", "norm.bias", "up.weight", "up.bias", "down.weight")}  # fmt: skip
    assert "1: relu is 0" in str(audit)
    assert "the branch 1.down" in str(audit)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_weight_of_zeros_is_found_and_named(frozen):
    model, x = net(), samples(4, 6)
    irt.init_(model, x)
    with torch.no_grad():
        model[0].weight.zero_()
    model[0].weight.requires_grad_(not frozen)
    audit = irt.audit(model, x, steps=3)
    assert audit.output_varies is False
    assert audit.input_gradient == 0
    assert bool(audit.healthy) != frozen  # the zeros move at the first step
    said = audit.healthy if frozen else audit.remarks
    assert said[0].endswith("the signal dies at 0")


def test_a_detached_layer_is_found():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.b(self.a(x).detach())

    audit = irt.audit(Detached(), samples(3, 4))
    assert [one.name for one in audit.dead] == ["a.weight", "a.bias"]
    assert "behind torch.Tensor.detach" in str(audit)
    assert audit.output_varies
    assert "gradient to the input is exactly 0" in audit.healthy[0]


class Siamese(nn.Module):
    def __init__(self, end, how):
        super().__init__()
        self.e = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        self.c, self.end, self.how = nn.Linear(4, 2), end, how

    def forward(self, a, b):
        if self.how == "linear":
            a, b = self.e(a), self.e(b)
        else:  # a product and a sum
            h = self.e[:2]
            a, b = (h(x) @ self.e[2].weight.T + self.e[2].bias for x in (a, b))
        a, b = (x.detach() if self.how == "stopped" else x for x in (a, b))
        return self.c(self.end(a - b))


@pytest.mark.parametrize("end", [torch.abs, torch.square])
@pytest.mark.parametrize("how", ["linear", "written out", "stopped"])
def test_a_bias_that_cancels_is_a_remark_and_one_behind_a_stop_a_failure(how, end):
    torch.manual_seed(0)
    model, pair = Siamese(end, how), (samples(5, 6), samples(5, 6, seed=2))
    before = model(*pair)
    before.sum().backward()
    gradient = model.e[2].weight.grad
    assert (gradient is not None and bool(gradient.any())) == (how != "stopped")
    audit = irt.audit(model, pair)
    with torch.no_grad():
        model.e[2].bias += 1
    torch.testing.assert_close(model(*pair), before)  # the bias is in vain, not cut off
    assert bool(audit.healthy) == (how != "stopped"), audit.healthy
    if how == "stopped":
        assert "e.2.bias" in str(audit.healthy)
        assert "cancels" not in str(audit)
    else:
        assert [one.name for one in audit.dead] == ["e.2.bias"]
        assert [text for text in audit.remarks if text.startswith("cancels: ")]
        assert "e.2.bias" in str(audit.remarks)


@pytest.mark.parametrize("how", ["round", "sign", "cast", "plain"])
def test_a_bias_that_is_rounded_is_named_so_and_does_not_cancel(how):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.b = nn.Parameter(samples(4, 4)), nn.Parameter(samples(4))

        def forward(self, x):
            ways = {"plain": lambda b: b, "cast": lambda b: (2 * b).long().float()}
            return x @ self.w + ways.get(how, getattr(torch, how, None))(self.b)

    torch.manual_seed(0)
    model, x = Net(), samples(3, 4, seed=2)
    before = model(x)
    before.sum().backward()
    is_cut = model.b.grad is None or not model.b.grad.any()
    assert is_cut == (how != "plain")
    audit = irt.audit(model, x)
    with torch.no_grad():
        model.b -= 9
    assert not torch.equal(model(x), before)  # it counts, so it does not cancel
    assert bool(audit.healthy) == (how == "plain")
    assert "cancels" not in str(audit)
    if is_cut:
        assert f"(b): no gradient passes {how}" in audit.healthy[0]


def test_a_bias_that_one_of_two_equal_calls_stops_is_not_said_to_cancel():
    """Both calls are one product of the graph; the other's result is read behind a stop."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.c = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            learnt, given = self.a(x), F.linear(x, self.a.weight, self.a.bias.detach())
            return self.c(torch.sigmoid(learnt).detach() * given)

    torch.manual_seed(0)
    model, x = Net(), samples(3, 4)
    model(x).sum().backward()
    assert model.a.bias.grad is None
    audit = irt.audit(model, x)
    assert "cancels" not in str(audit)
    assert "biases without a gradient, whose weights have one: a.bias" in audit.remarks


class Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


@torch.no_grad()
def ungraded(h):
    return h.relu() + 1


STEPS = {
    "round": torch.round,
    "sign": torch.sign,
    "cast": lambda h: (h > 0).float(),
    "where": lambda h: torch.where(h > 0, 1.0, 0.0),
    "argmax": lambda h: F.one_hot(h.argmax(-1), 8).float(),
    "no_grad": ungraded,
    "relu": torch.relu,
    "straight through": lambda h: h + (h.round() - h).detach(),
    "function": Through.apply,
}


@pytest.mark.parametrize("step", STEPS)
def test_what_lets_no_gradient_through_is_the_cause(step):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return x + self.b(STEPS[step](self.a(x)))

    model, x = Model(), samples(4, 8)
    irt.init_(model, x)
    audit = irt.audit(model, x)
    model(x).sum().backward()
    with torch.no_grad():
        model.b.weight += 1
    model(x).square().sum().backward()
    learns = model.a.weight.grad is not None and bool(model.a.weight.grad.any())
    assert learns == (step in ("relu", "straight through", "function"))
    assert bool(audit.healthy) == learns, audit.healthy
    assert not audit.unused
    if not learns:
        assert [one.name for one in audit.dead] == ["a.weight", "a.bias"]
        names = {"argmax": "cast", "no_grad": "add"}
        assert audit.dead[0].behind == names.get(step, step)


def test_a_weight_norm_whose_terms_cancel_wakes():
    """Its length has no gradient yet, its direction has one."""

    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            norm = torch.nn.utils.parametrizations.weight_norm
            self.a, self.b = norm(nn.Linear(8, 16)), norm(nn.Linear(16, 8))

        def forward(self, x):
            return x + self.b(self.a(x).relu())

    model, x = Normed(), samples(4, 8)
    irt.init_(model, x)
    audit = irt.audit(model, x)
    assert audit.healthy, audit.healthy
    assert audit.branches[0].rms == 0
    assert "exactly 0 until the first step" in audit.remarks[-2]


def test_a_parameter_that_is_not_used_or_not_trained_is_not_dead():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model.spare = nn.Linear(2, 2)
    model.forward = lambda x: model[1](model[0](x))
    model[0].weight.requires_grad_(False)
    audit = irt.audit(model, samples(3, 4))
    assert audit.healthy
    assert audit.unused == ("spare.weight", "spare.bias")
    assert not audit.dead


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named_where_it_begins(bad):
    model, x = net(), samples(4, 6)
    with torch.no_grad():
        model[3].up.weight[0, 0] = bad
    audit = irt.audit(model, x)
    assert audit.not_finite[0] == "3.up"
    assert not audit.healthy


CAUSAL = torch.full((5, 5), -torch.inf).triu(1)
MASKS = {
    "add": lambda a: a + CAUSAL,
    "iadd": lambda a: a.add_(CAUSAL),
    "fill": lambda a: a.masked_fill(CAUSAL < 0, -torch.inf),
    "where": lambda a: torch.where(CAUSAL < 0, -torch.inf, a),
    "heads": lambda a: (a[:, None] + CAUSAL)[:, 0],
    "maximum": lambda a: a + CAUSAL - (a + CAUSAL).amax(-1, keepdim=True),
}


class Masked(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.qkv, self.out, self.mask = nn.Linear(8, 24), nn.Linear(8, 8), mask

    def forward(self, x, *given):
        q, k, v = self.qkv(x).chunk(3, -1)
        return x + self.out(self.mask(q @ k.mT / 8**0.5, *given).softmax(-1) @ v)


@pytest.mark.parametrize("way", MASKS)
def test_a_mask_of_infinities_is_no_fault(way):
    model, x = Masked(MASKS[way]), samples(3, 5, 8)
    irt.init_(model, x)
    audit = irt.audit(model, x)
    assert audit.healthy, audit.healthy
    assert not audit.not_finite
    assert [branch.branch for branch in audit.branches] == ["out"]
    with torch.no_grad():
        model.out.weight[0, 0] = float("nan")
    assert irt.audit(model, x).not_finite[0] == "out"


def test_a_mask_among_the_inputs_is_no_fault_and_neither_are_masked_logits():
    model, x = Masked(lambda a, mask: a + mask), samples(3, 5, 8)
    irt.init_(model, (x, CAUSAL))
    assert irt.audit(model, (x, CAUSAL)).healthy
    with pytest.raises(OptionError, match="given with infinities"):
        irt.audit(model, (x, -CAUSAL))

    class Logits(nn.Linear):
        def forward(self, x):
            return super().forward(x) + CAUSAL[2]  # at the last two of five units

    for result in (lambda y: y, lambda y: y.log_softmax(-1), lambda y: y.softmax(-1)):
        model = Logits(8, 5)
        model.register_forward_hook(lambda _, __, y, result=result: result(y))
        irt.init_(model, x)
        audit = irt.audit(model, x)
        assert audit.healthy, audit.healthy
        said = any("holds -inf" in remark for remark in audit.remarks)
        assert said == (not model(x).isfinite().all())
    irt.init_(model := nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 5)), x)
    with torch.no_grad():
        model[0].weight.mul_(1e30)
        model[1].weight.mul_(1e30)
    assert irt.audit(model, x).not_finite[:2] == ("1", "the output")


def test_an_infinity_whose_gradient_is_no_number_is_named():
    class Log(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            y = y.amax(-1, keepdim=True) - y
            return torch.where(y > 0, y.log(), 0.0)

    audit = irt.audit(Log(8, 8), samples(3, 8))
    assert any(name.startswith("log") for name in audit.not_finite)
    assert "the gradient of weight" in audit.not_finite


def two(i, o):
    return nn.Sequential(
        nn.Conv2d(i, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(),
        nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(),
    )  # fmt: skip


class UNet(nn.Module):
    def __init__(self, w=(8, 16, 32, 64, 64)):
        super().__init__()
        self.down = nn.ModuleList([two(i, o) for i, o in zip((3, *w), w, strict=False)])
        self.up = nn.ModuleList([two(a + b, b) for a, b in zip(w[:0:-1], w[-2::-1], strict=True)])
        self.head = nn.Conv2d(w[0], 3, 3, 1, 1)

    def forward(self, x):
        skips = []
        for k, level in enumerate(self.down):
            x = level(x if k == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for level in self.up:
            x = level(torch.cat([F.interpolate(x, scale_factor=2.0), skips.pop()], 1))
        return self.head(x)


def test_a_u_net_whose_image_is_moved_out_of_sight_is_dead_and_outward_is_alive():
    model, x = UNet(), samples(2, 3, 32, 32)
    irt.init_(model, x, taps="channel_major")
    audit = irt.audit(model, x)
    assert not audit.healthy
    assert audit.output_varies is False
    assert "the signal dies at up.3.0" in str(audit)
    irt.init_(model, x)
    assert irt.audit(model, x).healthy


def test_tokens_alone_are_judged_by_samples_and_embeddings():
    model = nn.Sequential(nn.Embedding(10, 8), Block(), nn.Linear(8, 10))
    x = torch.tensor([[1, 2, 3], [4, 5, 6]])
    irt.init_(model, x)
    audit = irt.audit(model, x)
    assert audit.healthy
    assert audit.output_varies
    assert audit.input_gradient is None
    assert "integers" in audit.limits[0]
    with torch.no_grad():
        model[2].weight.zero_()
    assert not irt.audit(model.requires_grad_(False), x).healthy


def test_one_sample_is_a_limit_and_a_dead_net_is_seen_all_the_same():
    model, x = net(), samples(1, 6)
    irt.init_(model, x)
    audit = irt.audit(model, x)
    assert audit.healthy
    assert audit.output_varies is None
    assert "one sample" in audit.limits[0]
    with torch.no_grad():
        model[4].weight.zero_()
    assert "gradient to the input is exactly 0" in irt.audit(model, x).healthy[0]
    model[4].weight.requires_grad_(False)
    assert "gradient to the input is exactly 0" in irt.audit(model, x).healthy[0]


# Nothing changes ----------------------------------------------------------------------------


def test_the_model_is_as_it_was_to_the_bit():
    model, x = net().train(), samples(4, 6)
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    grads = {name: p.grad for name, p in model.named_parameters()}
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    before = {
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "same": [id(t) for t in (*model.parameters(), *model.buffers())],
        "modes": [m.training for m in model.modules()],
        "hooks": [list(m._forward_hooks) + list(m._forward_pre_hooks) for m in model.modules()],
        "keys": [list(vars(m)) for m in model.modules()],
    }
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()
    given = x.clone()
    irt.audit(model, x)
    assert all(torch.equal(v, before["state"][k]) for k, v in model.state_dict().items())
    assert [id(t) for t in (*model.parameters(), *model.buffers())] == before["same"]
    assert [m.training for m in model.modules()] == before["modes"]
    assert before["hooks"] == [
        list(m._forward_hooks) + list(m._forward_pre_hooks) for m in model.modules()
    ]
    assert [list(vars(m)) for m in model.modules()] == before["keys"]
    assert all(p.grad is grads[name] for name, p in model.named_parameters())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert all(map(np.array_equal, np.random.get_state(), generators[2]))
    assert torch.equal(x, given)
    assert not x.requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("inside", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off_around_it(inside):
    model, x = net(), samples(4, 6)
    with inside():
        audit = irt.audit(model, x)
    assert audit.healthy


def test_an_input_may_be_written_to_and_a_part_run_again_in_the_backward_pass():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x -= 1
            return checkpoint(self.b, self.a(x), use_reentrant=False)

    x = samples(3, 4)
    given = x.clone()
    audit = irt.audit(Odd(), x)
    assert audit.healthy
    assert torch.equal(x, given)


@pytest.mark.filterwarnings("ignore:torch.utils.checkpoint:UserWarning")  # without use_reentrant
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # a trace
@pytest.mark.parametrize("how", [{}, {"use_reentrant": True}, {"use_reentrant": False}], ids=str)
def test_checkpoints_of_each_kind_give_the_audit_of_the_plain_model(how):
    class Model(nn.Sequential):
        def forward(self, x):
            x = self[0](x)
            x = checkpoint(self[1], x, **how) if how is not None else self[1](x)
            return self[2](checkpoint(self[1], x, **how) if how is not None else self[1](x))

    model, x = Model(nn.Linear(6, 8), Block(), nn.Linear(8, 3)), samples(4, 6)
    irt.init_(model, x)
    before = [torch.full_like(p, 3.0) for p in model.parameters()]
    for parameter, old in zip(model.parameters(), before, strict=True):
        parameter.grad = old
    outer = torch.ones(8, requires_grad=True)
    model[1].register_forward_hook(lambda _, __, y: y * outer)
    audit = irt.audit(model, x)
    assert all(p.grad is old and (old == 3).all() for p, old in zip(
        model.parameters(), before, strict=True))  # fmt: skip
    how = None
    assert audit == irt.audit(model, x)
    assert audit.healthy


@pytest.mark.parametrize(("zeros", "is_healthy"), [("s", True), ("sz", False), ("z", True)])
def test_a_branch_whose_scale_or_end_is_0_wakes_with_the_first_step(zeros, is_healthy):
    """Unless both are 0: then neither ever has a gradient."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.s, self.z = nn.Parameter(torch.ones(4)), nn.Linear(4, 4, bias=False)
            self.a = nn.Linear(4, 4)

        def forward(self, x):
            return x + self.s * self.z(self.a(x))

    model = Net()
    for name in zeros:
        nn.init.zeros_(model.s if name == "s" else model.z.weight)
    found = irt.audit(model, samples(3, 4))
    assert bool(found.healthy) == is_healthy
    assert found.branches[0].rms == 0
    assert {"a.weight"} <= {one.name for one in found.dead}
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        optimiser.zero_grad()
        model(samples(3, 4)).square().sum().backward()
        optimiser.step()
    assert bool(model.a.weight.grad.any()) == is_healthy


# What cannot be judged ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "given", "error", "said"),
    [
        (net(), torch.zeros(2, 6), OptionError, "zeros only"),
        (net(), torch.full((2, 6), float("nan")), OptionError, "infinities or NaN"),
        (nn.ReLU(), torch.ones(2, 6), GraphError, "should have parameters"),
        (nn.Linear(2, 2, device="meta"), torch.ones(2, 2), OptionError, "meta device"),
        (net(), torch.ones(2, 7), GraphError, "^inputs = .*forward pass should accept"),
        (net(), None, OptionTypeError, "^inputs = .*NoneType.*wrap it"),
        (3, torch.ones(2, 7), IDInitError, "torch.nn.Module"),
    ],
    ids=["zeros", "nan", "no parameters", "meta", "shape", "none", "no model"],
)
def test_bad_inputs_are_errors_of_one_line(model, given, error, said):
    with pytest.raises(error, match=said) as caught:
        irt.audit(model, given)
    assert "\n" not in str(caught.value)


def test_an_output_of_integers_is_an_error():
    class Picks(nn.Linear):
        def forward(self, x):
            return super().forward(x).argmax(-1)

    with pytest.raises(GraphError, match="return a floating array"):
        irt.audit(Picks(4, 4), samples(2, 4))


def test_a_forward_without_gradients_is_said():
    class Still(nn.Linear):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    audit = irt.audit(Still(4, 4), samples(2, 4))
    assert not audit.healthy
    assert "no_grad" in audit.limits[0]


# Many ranks ---------------------------------------------------------------------------------


def ranked(rank, store, folder):
    """Audit a model that is parted among two ranks, each with samples of its own."""
    from torch import distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )  # fmt: skip

    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    said = []
    for way in ("tensor parallel", "fsdp"):
        torch.manual_seed(0)
        model = Block()
        if way == "fsdp":
            fully_shard(model)
        else:
            mesh = init_device_mesh("cpu", (2,))
            parallelize_module(model, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
        x = samples(4, 8, seed=rank)
        before = [p.to_local().clone() if hasattr(p, "to_local") else p for p in model.parameters()]
        audit = irt.audit(model, x)
        after = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
        whole = irt.audit(_whole(), x)
        said.append(audit == whole and all(map(torch.equal, before, after)))
    audit = irt.audit(zero_headed(), samples(4, 8, seed=rank), steps=3)
    said.append(not audit.healthy and "ranks" in audit.limits[-1] and audit.steps == 0)
    (folder / f"{rank}.txt").write_text(str(said))
    dist.destroy_process_group()


def zero_headed():
    """A model that wakes at the first step."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
    nn.init.zeros_(model[1].weight)
    return model


def _whole():
    torch.manual_seed(0)
    return Block()


@pytest.mark.nightly
def test_parted_models_are_audited_as_whole_ones(tmp_path):
    torch.multiprocessing.spawn(ranked, (tmp_path / "store", tmp_path), nprocs=2)
    assert irt.audit(zero_headed(), samples(4, 8), steps=3).healthy
    for rank in range(2):
        assert (tmp_path / f"{rank}.txt").read_text() == "[True, True, True]"


def test_an_empty_batch_is_named():
    with pytest.raises(GraphError, match="not an empty batch"):
        irt.audit(nn.Linear(4, 4), torch.zeros(0, 4))


def test_a_constant_behind_a_weight_that_moves_is_not_to_blame():
    """The gradient of the norm cancels at the MLP (T10); positions are the same for all samples."""

    class Attended(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.up, self.down = (
                nn.LayerNorm(8, bias=False),
                nn.Linear(8, 32),
                nn.Linear(32, 8),
            )
            self.q, self.positions = nn.Linear(8, 8), nn.Embedding(5, 5)

        def forward(self, x):
            x = x + self.down(torch.relu(self.up(self.norm(x))))
            bias = self.positions(torch.arange(5)) + 1
            return (self.q(x) @ x.mT + bias).softmax(-1) @ x

    model, x = Attended(), samples(4, 5, 8)
    irt.init_(model, x)
    audit = irt.audit(model, x)
    assert audit.healthy
    [dead] = audit.dead
    assert (dead.name, dead.behind, dead.wakes) == ("norm.weight", "up", True)
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        optimiser.zero_grad()
        model(x).square().sum().backward()
        optimiser.step()
    assert model.norm.weight.grad.any()


class Forward(nn.Module):
    """A residual block, with its own derivative in forward mode, or the one it has in reverse."""

    def __init__(self, how):
        super().__init__()
        self.first, self.up, self.down = nn.Linear(5, 8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.how = how

    def block(self, x):
        return x + self.down(self.up(x).tanh())

    def forward(self, x):
        x = self.first(x)
        if self.how == "jvp":
            return torch.func.jvp(self.block, (x,), (x,))[1]
        rows = torch.func.jacrev if self.how == "reverse" else torch.func.jacfwd
        return (torch.func.vmap(rows(self.block))(x) @ x[..., None])[..., 0]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by torch.func.jvp
@pytest.mark.parametrize("how", ["jvp", "jacfwd"])
def test_forward_mode_derivatives_inside_a_model_are_audited(how):
    """One function in two modes of differentiation: the same output, and the same verdict."""
    x, found = samples(6, 5), []
    for mode in (how, "reverse"):
        torch.manual_seed(0)
        model = Forward(mode)
        irt.init_(model, x)
        audit = irt.audit(model, x)
        dead = {one.name for one in audit.dead if not one.wakes}
        found.append((audit.healthy, audit.input_gradient, dead, model(x)))
    (*mine, y), (*other, z) = found
    assert mine == other
    assert mine[0]
    assert torch.allclose(y, z)


def test_a_frozen_model_shows_nothing_of_gradients():
    audit = irt.audit(nn.Linear(4, 4).requires_grad_(False), torch.randn(3, 4))
    assert any(limit.startswith("no parameter is trained") for limit in audit.limits)
