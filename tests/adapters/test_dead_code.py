"""Code that no output reads gives no weight a role, in three frameworks.

R2: a weight that would be zero by dead code alone changes the output in proportion as it stands.
"""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np
import pytest
import torch
from torch import nn

import idinit_ref_torch as irt
from adapters.test_spellings import FRAMEWORKS, KERAS, X, facts

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the functions of TensorFlow are read"
)
SIZES = {"a": (8, 8), "w": (8, 8), "o": (8, 8), "h": (8, 4)}


def plain(np_, p, x, dead):
    if dead:
        _ = x + x @ p["w"]
    return np_.tanh(x @ p["w"]) @ p["h"]


def inner(np_, p, x, dead):
    """A weight inside a branch; its result is also added to the skip, and that is not read."""
    x = x @ p["a"]
    inner = np_.tanh(x) @ p["w"]
    if dead:
        _ = np_.tanh(x + inner) @ p["h"]
    return (x + np_.tanh(inner) @ p["o"]) @ p["h"]


def chain(np_, p, x, dead):
    """Two blocks that nothing reads, with weights that the output reads otherwise."""
    if dead:
        y = x
        for name in "wo":
            y = y + np_.relu(y @ p["a"]) @ p[name]
    return np_.tanh(np_.tanh(x @ p["a"]) @ p["w"] @ p["o"]) @ p["h"]


FUNCTIONS = {"plain": plain, "inner": inner, "chain": chain}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_roles_are_those_of_the_code_that_is_read(name, framework):
    function = FUNCTIONS[name]
    used = {key: size for key, size in SIZES.items() if name != "plain" or key in "wh"}
    found, run = framework(lambda *args: function(*args, True), used, X, facts)
    assert found == framework(lambda *args: function(*args, False), used, X, facts)[0]
    zero = [key for key, (role, *_) in found[0].items() if role == "zero"]
    assert zero == (["o"] if name == "inner" else [])
    rng = np.random.default_rng(1)
    p = {key: (rng.normal(size=size) / 3).astype("float32") for key, size in used.items()}
    without = {key: np.zeros_like(value) if key in zero else value for key, value in p.items()}
    if zero:  # R1
        left = X @ p["a"] @ p["h"]
        assert np.allclose(run(without, X), left, atol=1e-5)
    for key in zero or "w":  # R2
        moved = without | {key: without[key] + 1e-2 * rng.normal(size=(8, 8)).astype("float32")}
        assert abs(run(moved, X) - run(without, X)).max() > 1e-4


def largest(np_, x):
    return keras.ops.argmax(x, -1) if np_ is KERAS else x.argmax(-1)


def chosen(np_, p, k):
    return keras.ops.take(p["c"], k, 0) if np_ is KERAS else p["c"][k]


@pytest.mark.parametrize("how", ["index", "comparison", "rounded"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_is_read_as_integers_is_read(framework, how):
    """As the code of a quantiser: the output depends on the encoder's branch."""

    def function(np_, p, x):
        z = x + np_.tanh(x @ p["a"]) @ p["w"]
        if how != "index":
            of = np_.whole(z) if how == "rounded" else z
            return np_.where(of > 0, x, -x) @ p["o"]
        return chosen(np_, p, largest(np_, (z * 2)[..., ::2])) @ p["o"]

    used = SIZES | {"c": (4, 8)}
    used = {key: used[key] for key in ("awoc" if how == "index" else "awo")}
    (found, _), run = framework(function, used, X, facts)
    assert {key for key, (role, *_) in found.items() if role == "zero"} == {"w"}
    rng = np.random.default_rng(1)
    p = {key: rng.normal(size=size).astype("float32") for key, size in used.items()}
    still = run(p | {"w": 0 * p["w"]}, X)
    assert np.allclose(still, run(p | {"w": 0 * p["w"], "a": 0 * p["a"]}, X))  # R1
    assert not np.allclose(still, run(p, X))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_weight_of_dead_code_alone_is_as_any_other(framework):
    """Where the framework's own trace keeps that code; a weight that it drops is not used."""

    def function(np_, p, x):
        _ = x + np_.tanh(x @ p["a"]) @ p["w"]
        return x @ p["h"]

    (found, notes), _ = framework(function, {k: SIZES[k] for k in "awh"}, X, facts)
    roles = {key: role for key, (role, *_) in found.items()}
    assert roles in ({"a": "transit", "w": "transit", "h": "transit"},
                     {"a": "keep", "w": "keep", "h": "transit"})  # fmt: skip
    assert not notes


def test_what_is_returned_beside_the_logits_is_read():
    """A branch of a state that transformers' outputs hold: no logit reads it, but a user may."""
    outputs = pytest.importorskip("transformers.utils").ModelOutput

    @dataclass
    class Out(outputs):
        logits: torch.Tensor | None = None
        state: torch.Tensor | None = None

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.branch, self.head = (nn.Linear(8, n) for n in (8, 8, 3))

        def forward(self, x):
            x = self.first(x)
            return Out(logits=self.head(x), state=x + self.branch(x))

    model, x = Model(), torch.tensor(X)
    report = irt.init_(model, x)
    assert report.roles["branch.weight"] == "zero"
    assert torch.allclose(model(x).state, model.first(x), atol=1e-4)
    assert [one.branch for one in irt.audit(model, x).branches] == ["branch"]


def test_a_branch_that_leads_to_a_number_is_read():
    """Its number leaves the tensors, and decides what is computed."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.branch, self.head = (nn.Linear(8, n) for n in (8, 8, 3))

        def forward(self, x):
            x = self.first(x)
            large = (x + self.branch(x)).sum().item() > 0
            return self.head(x if large else -x)

    report = irt.init_(Model(), torch.tensor(X))
    assert report.roles["branch.weight"] in ("zero", "keep")


def test_a_dead_bias_and_scale_keep_their_kind():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.dead, self.norm, self.head = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x):
            _ = x + self.norm(self.dead(x))
            return self.head(x)

    model = Model()
    report = irt.init_(model, torch.tensor(X), norms="zero")
    assert report.roles["dead.weight"] == "transit"
    assert report.roles["dead.bias"] == "bias"
    assert report.roles["norm.weight"] == "keep"
    assert torch.equal(model.norm.weight, torch.ones(8))
    audit = irt.audit(model, torch.tensor(X))
    assert not audit.branches
    assert audit.unused == (
        "dead.weight", "dead.bias", "norm.weight", "norm.bias",
    )  # fmt: skip


class Energy(nn.Module):
    """A residual net of which only a derivative is returned."""

    def __init__(self, how):
        super().__init__()
        self.a, self.w, self.h = (nn.Linear(8, n, bias=False) for n in (8, 8, 1))
        self.how = how

    def energy(self, x):
        return self.h(x + self.w(torch.tanh(self.a(x)))).sum()

    def forward(self, x):
        if self.how == "autograd":
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.energy(x), x, create_graph=True)[0]
        return getattr(torch.func, self.how)(self.energy)(x)


@pytest.mark.parametrize("how", ["grad", "jacrev", "autograd"])
def test_a_net_of_which_a_derivative_is_returned_is_read(how):
    """Forces: with the zero weight at 0 they are those of the skip alone."""
    model, x = Energy(how), torch.tensor(X[0])
    assert irt.init_(model, x).roles["w.weight"] == "zero"
    left = model.h.weight.expand(5, 8)
    assert torch.allclose(model(x), left, atol=1e-4)
