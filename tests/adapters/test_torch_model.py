"""Whole PyTorch models: every role by hand, and nothing changed but what the report says."""

from __future__ import annotations

import copy
import logging
import random
import warnings
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import weight_norm as old_weight_norm

from adapters.zoo_torch import (
    CASES,
    IDS,
    MLP,
    Attention,
    ResNet50,
    SwiGLU,
    Transformer,
    image,
)
from adapters.zoo_transformers import FULL, MODELS
from idinit_ref import errors
from idinit_ref.diagnostics.audit import LARGE
from idinit_ref.roles.decide import decide
from idinit_ref_torch import audit, idiz_layer_, init_, plans, trace

EPS = 1e-6


def state(model):
    """Everything of a model that one could change: by bits, so that NaNs count too."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "tensors": {
            name: (id(tensor), tensor.detach().clone().reshape(-1).view(torch.uint8).tolist())
            for name, tensor in tensors.items()
        },
        "training": [module.training for module in model.modules()],
        "attributes": [
            {name: id(value) for name, value in vars(module).items()} for module in model.modules()
        ],
        "random": (
            torch.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),
        ),
    }


def rows_that_fit(name, table):
    return [pattern for pattern in table if fnmatchcase(name, pattern)]


def by_hand(names, table):
    """The roles of a table: every name fits exactly one row, and every row a name."""
    found = {name: rows_that_fit(name, table) for name in names}
    assert {name: rows for name, rows in found.items() if len(rows) != 1} == {}
    assert set(table) == {rows[0] for rows in found.values()}
    return {name: table[rows[0]] for name, rows in found.items()}


@cache
def graph_of(name):
    torch.manual_seed(0)
    case = {**CASES, **MODELS}[name]
    return trace(case.make(), case.inputs)


# Roles and storage, by hand ---------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CASES, *MODELS])
def test_every_role_is_the_one_written_by_hand(name):
    case = {**CASES, **MODELS}[name]
    model = case.make()
    report = decide(graph_of(name))
    assert list(report.roles) == [key for key, _ in model.named_parameters()]
    assert report.roles == by_hand(report.roles, case.table)


@pytest.mark.parametrize(
    "name", [name for name, case in {**CASES, **MODELS}.items() if case.options]
)
def test_weights_are_read_as_they_are_stored(name):
    nodes = graph_of(name).by_name
    for key, options in {**CASES, **MODELS}[name].options.items():
        assert dict(nodes[key].options) == options, key


@pytest.mark.parametrize("name", [*CASES, *MODELS])
def test_tracing_leaves_a_model_as_it_was(name):
    case = {**CASES, **MODELS}[name]
    model = case.make()
    for number, module in enumerate(model.modules()):
        module.training = number % 2 == 0
    before = state(model)
    trace(model, case.inputs)
    assert state(model) == before


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "gpt2-xl" else pytest.mark.nightly) for name in FULL],
)
def test_a_full_model_without_memory(name):
    case = FULL[name]
    with torch.device("meta"):
        model = case.make()
    report = decide(trace(model, case.inputs))
    assert report.roles == by_hand(report.roles, case.table)
    assert sum(parameter.numel() for parameter in model.parameters()) > 1e9
    assert all(parameter.is_meta for parameter in model.parameters())


def test_names_can_be_read():
    whys = {entry.name: entry.why for entry in decide(graph_of("pre")).entries}
    assert whys["blocks.1.mlp.2.weight"] == (
        "last of the branch blocks.1.mlp.2, which blocks.1: add (2) adds to blocks.1: add"
    )
    assert graph_of("pre").outputs == ("head",)


# What is written --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pre", "post", "lora", "causal", "experts batched", "gru"])
def test_init_writes_what_the_report_says_and_nothing_else(kind):
    case = CASES[kind]
    torch.manual_seed(0)
    model = case.make()
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    objects = {name: id(tensor) for name, tensor in model.named_parameters()}
    report = init_(model, case.inputs)
    after = dict(model.named_parameters())
    assert {name: id(tensor) for name, tensor in after.items()} == objects
    for entry in report.entries:
        if entry.plan is not None:
            expected = entry.plan.build(xp=torch, dtype=before[entry.name].dtype)
        else:
            expected = torch.zeros_like(before[entry.name])
            expected = before[entry.name] if entry.role == "keep" else expected
        assert torch.equal(after[entry.name], expected), entry.name
    assert plans(model, case.inputs) == report.plans


def test_packed_weights_are_one_matrix_each():
    attention = Attention(4)
    init_(attention, image(1, 3, 4))
    assert torch.equal(attention.qkv.weight, torch.eye(4).repeat(3, 1))


def blocks_move(model, blocks, inputs, norm=lambda block: lambda y: y):
    """How far each block moves its input, relative to it and up to its last normalisation."""
    moves = []

    def measure(block, given, y):
        x = given[0]
        y = y[0] if isinstance(y, tuple) else y
        x = norm(block)(x)
        moves.append(((y - x).norm() / x.norm()).item())

    hooks = [block.register_forward_hook(measure) for block in blocks]
    with torch.no_grad():
        model.eval()(**inputs) if isinstance(inputs, Mapping) else model.eval()(inputs)
    for hook in hooks:
        hook.remove()
    return moves


@pytest.mark.parametrize("kind", ["pre", "scale", "parallel xam", "parallel amx", "parallel xma"])
def test_blocks_hardly_move_their_input(kind):
    torch.manual_seed(0)
    model = Transformer(kind)
    init_(model, IDS)
    moves = blocks_move(model, model.blocks, IDS)
    assert len(moves) == 2
    assert max(moves) < 1e-4


def test_post_norm_blocks_only_normalise():
    torch.manual_seed(0)
    model = Transformer("post")
    init_(model, IDS)
    moves = blocks_move(model, model.blocks, IDS, lambda b: lambda x: b.norm2(b.norm1(x)))
    assert len(moves) == 2
    assert max(moves) < 1e-4


def test_blocks_of_a_resnet_without_projection_hardly_move_their_input():
    torch.manual_seed(0)
    model = ResNet50(4)
    x = torch.randn(1, 3, 32, 32)
    init_(model, x)
    blocks = [block for stage in model.stages for block in stage if block.down is None]
    moves = blocks_move(model, blocks, x)
    assert len(moves) == 12
    assert max(moves) < 1e-4


# Gradients at step 0 ----------------------------------------------------------------------------


def without_gradient(model, ids, target):
    model.zero_grad()
    F.cross_entropy(model.train()(ids).flatten(0, 1), target.flatten()).backward()
    return {
        name
        for name, tensor in model.named_parameters()
        if tensor.grad is None or not tensor.grad.abs().max() > 0
    }


@pytest.mark.parametrize(
    ("mlp", "silent"),
    [
        # 16 -> 32 -> 16: both entries of a row of the last weight meet copies of one input, and
        # cancel. So the normalisation before gets nothing ("What does not hold").
        (MLP, {f"blocks.{k}.norm2.{what}" for k in (0, 1) for what in ("weight", "bias")}),
        (SwiGLU, set()),  # 16 -> 24 -> 16: they meet different inputs
    ],
)
def test_every_parameter_gets_a_gradient_at_step_0_but_what_feeds_a_branch_that_cancels(
    mlp, silent
):
    torch.manual_seed(0)
    model = Transformer("pre", mlp)
    init_(model, IDS)
    target = torch.randint(0, 20, IDS.shape)
    assert without_gradient(model, IDS, target) == silent


def test_exact_zeros_instead_of_eps_leave_the_branch_without_gradient():
    torch.manual_seed(0)
    model = Transformer("pre", SwiGLU)
    init_(model, IDS)
    last = [name for name, plan in plans(model, IDS).items() if plan.role == "zero"]
    with torch.no_grad():
        for name in last:
            model.get_parameter(name).zero_()
    target = torch.randint(0, 20, IDS.shape)
    inside = {"attn.qkv.weight", "attn.qkv.bias", "mlp.gate_up.weight"}
    norms = {f"norm{k}.{what}" for k in (1, 2) for what in ("weight", "bias")}
    silent = {f"blocks.{k}.{name}" for k in (0, 1) for name in inside | norms}
    assert without_gradient(model, IDS, target) == silent
    assert last == [f"blocks.{k}.{n}.weight" for k in (0, 1) for n in ("attn.proj", "mlp.down")]


# Options ----------------------------------------------------------------------------------------


def test_options_reach_the_plans():
    model = Transformer()
    made = plans(
        model, IDS, gain=0.5, eps=1e-3, wide="fold_mean", head="zero", embeddings="transit"
    )
    assert made["blocks.0.attn.qkv.weight"].gain == 0.5
    assert made["blocks.0.attn.qkv.weight"].wide == "fold_mean"
    assert made["blocks.0.attn.proj.weight"].eps == 1e-3
    assert made["head.weight"].role == "zero"
    assert (made["wte.weight"].role, made["wte.weight"].layout) == ("transit", "IO")
    kernels = plans(CASES["resnet50"].make(), CASES["resnet50"].inputs)
    assert (kernels["stem.0.weight"].taps, kernels["stem.0.weight"].tap) == ("outward", (3, 3))


def test_orders_and_forms_reach_the_plans():
    case = CASES["resnet50"]
    made = plans(case.make(), case.inputs, taps="center", form="shifted")
    assert (made["stem.0.weight"].taps, made["stem.0.weight"].tap) == ("center", (3, 3))
    zeros = [plan for plan in made.values() if plan.role == "zero"]
    assert {plan.form for plan in zeros} == {"shifted"}
    made = plans(case.make(), case.inputs, taps="channel_major")
    assert (made["stem.0.weight"].taps, made["stem.0.weight"].tap) == ("channel_major", None)


def test_a_head_can_be_kept():
    report = decide(graph_of("pre"), head="keep")
    kept = {name for name, role in report.roles.items() if role == "keep"}
    assert kept - {n for n, r in decide(graph_of("pre")).roles.items() if r == "keep"} == {
        "head.weight"
    }


def test_overrides():
    model = Transformer()
    before = model.blocks[0].attn.qkv.weight.detach().clone()
    report = init_(
        model,
        IDS,
        overrides={
            "*.qkv.weight": "keep",
            "blocks.1.*.2.weight": "transit",
            "head.weight": {"gain": 2.0},
        },
    )
    assert torch.equal(model.blocks[0].attn.qkv.weight, before)
    assert torch.equal(model.blocks[1].mlp[2].weight, torch.eye(16, 32))
    assert torch.equal(model.head.weight[:16], 2 * torch.eye(16))
    assert "override 'blocks.1.*.2.weight'" in str(report)


# Frozen, tied, shared, computed, unused ---------------------------------------------------------


def entry(model, inputs, name):
    return next(e for e in decide(trace(model, inputs)).entries if e.name == name)


def test_frozen_parameters_are_left_alone_unless_asked_for():
    model = Transformer()
    model.blocks[0].attn.proj.weight.requires_grad_(False)
    found = entry(model, IDS, "blocks.0.attn.proj.weight")
    assert (found.role, found.why) == ("keep", "frozen: requires_grad is False")
    report = init_(model, IDS, overrides={"blocks.0.attn.proj.weight": "zero"})
    assert report.roles["blocks.0.attn.proj.weight"] == "zero"
    assert model.blocks[0].attn.proj.weight[0, 0].item() == np.float32(EPS)


def test_a_tied_head_is_an_embedding():
    model = Transformer()
    model.head.weight = model.wte.weight
    found = entry(model, IDS, "wte.weight")
    assert (found.role, found.why) == ("keep", "embedding, and the head that is tied to it")
    assert "head.weight" not in plans(model, IDS)
    assert plans(model, IDS, embeddings="transit")["wte.weight"].layout == "OI"


def test_layers_that_are_used_twice_keep_one_role():
    model = Transformer()
    model.blocks[1] = model.blocks[0]
    report = decide(trace(model, IDS))
    assert report.roles["blocks.0.mlp.2.weight"] == "zero"
    assert report.roles["blocks.0.attn.qkv.weight"] == "transit"
    assert report.plans["blocks.0.attn.qkv.weight"].blocks == (16, 16, 16)


def test_a_parameter_that_operations_read_differently_is_left_alone():
    found = entry(CASES["tied autoencoder"].make(), image(2, 6), "w")
    assert found.why == (
        "used in two ways that need different plans: "
        "by mm with w {'layout': 'OI'}, by mm with w (2) {'layout': 'IO'}"
    )


def test_parameters_that_share_memory_are_left_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(model[0].weight.detach()[1:])
    model[1].bias = None
    found = entry(model, image(2, 4), "0.weight")
    assert (found.role, found.why) == ("keep", "shares memory with 1.weight")
    assert entry(model, image(2, 4), "1.weight").why == "shares memory with 0.weight"


def test_parameters_beside_each_other_in_one_memory_are_parameters_as_others():
    model, memory = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.zeros(32)
    for k in (0, 1):
        model[k].weight = nn.Parameter(memory[16 * k : 16 * k + 16].view(4, 4))
    init_(model, image(2, 4))
    assert torch.equal(memory.view(2, 4, 4), torch.eye(4).repeat(2, 1, 1))


def test_parameters_that_are_not_used_are_named():
    model = Transformer()
    model.spare = nn.Linear(3, 3)
    found = entry(model, IDS, "spare.weight")
    assert (found.role, found.why) == (
        "keep",
        "not used by the computation of these example inputs",
    )


class Residual(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return x + self.layer(x)


@pytest.mark.parametrize(
    ("wrap", "names", "what"),
    [
        (parametrizations.spectral_norm, ["weight.original"], "divided by what is computed from"),
        (parametrizations.orthogonal, ["weight.original"], "masked by a constant array"),
    ],
)
def test_weights_that_are_computed_are_named_and_left_alone(wrap, names, what):
    model = Residual(wrap(nn.Linear(4, 4)))
    before = state(model)
    report = init_(model, image(2, 4), overrides={"layer.bias": "keep"})
    for name in names:
        found = next(e for e in report.entries if e.name == f"layer.parametrizations.{name}")
        assert found.role == "keep"
        assert found.why.startswith(what)
        assert found.why.endswith("before its use as a weight: a role is the result's")
    assert state(model) == before


def test_old_weight_norm():
    with pytest.warns(FutureWarning, match="weight_norm"):
        model = Residual(old_weight_norm(nn.Linear(4, 4)))
    before = vars(model.layer)["weight"]
    report = decide(trace(model, image(2, 4)))
    assert report.roles == {
        "layer.bias": "bias",
        "layer.weight_g": "keep",
        "layer.weight_v": "zero",
    }
    assert vars(model.layer)["weight"] is before


@pytest.mark.parametrize(
    ("layer", "dim"),
    [
        (nn.Linear(4, 4), 0),
        (nn.Linear(4, 4), None),
        (nn.Conv1d(4, 4, 3, padding=1), 2),
        (nn.ConvTranspose1d(4, 4, 3, padding=1), 0),
    ],
    ids=str,
)
def test_a_weight_under_weight_norm_ends_a_branch(layer, dim):
    """wav2vec 2, EnCodec: what is computed is IDIZ."""
    inner = parametrizations.weight_norm(nn.Conv1d(4, 4, 1)) if dim == 2 else nn.Identity()
    plain = idiz_layer_(copy.deepcopy(layer), eps=1e-4).weight
    model = Residual(nn.Sequential(inner, parametrizations.weight_norm(layer, dim=dim)))
    x = image(2, 4) if isinstance(layer, nn.Linear) else image(2, 4, 7)
    report = init_(model, x, eps=1e-4)
    ends = [e for e in report.entries if e.role == "zero"]
    assert [e.name for e in ends] == ["layer.1.parametrizations.weight.original1"]
    torch.testing.assert_close(model.layer[1].weight, plain)
    assert 0 < (model(x) - x).abs().max() < 1e-2
    kept = init_(model, x, overrides={"*original1": "keep"})
    assert "zero" not in kept.roles.values()


@pytest.mark.parametrize(
    ("weight", "zero"),
    [
        (lambda v, g: g * (v / v.norm(dim=1, keepdim=True)), "g"),
        (lambda v, g: v * (g / v.norm(dim=1, keepdim=True)), "g"),
        (lambda v, g: (v.mT * g[:, 0]).mT, "v"),
        (lambda v, g: v / g, "v"),
        (lambda v, g: v * (1 + g), "v"),
        (lambda v, g: v * g.exp(), "v"),
        (lambda v, g: torch.cat([v[:2] * g[:2], v[2:]]), ""),
        (lambda v, g: v * g * g, "v"),
        (lambda v, g: v * v, ""),
        (lambda v, g: v / (v * v).sum(1, keepdim=True).sqrt(), ""),
    ],
    ids=[
        "g v/|v|",
        "v g/|v|",
        "columns",
        "v/g",
        "v(1+g)",
        "v exp g",
        "half",
        "v g g",
        "v v",
        "v/|v|",
    ],
)
def test_a_weight_vanishes_with_a_factor_of_it_alone(weight, zero):
    model = Function(
        lambda m, x: x + x @ weight(m.v, m.g).mT, v=torch.randn(4, 4), g=torch.ones(4, 1)
    )
    roles = init_(model, image(2, 4)).roles
    assert roles == dict.fromkeys("vg", "keep") | dict.fromkeys(zero, "zero")


class Halved(nn.Module):
    def forward(self, weight):
        return weight.to(torch.float64).to(weight.dtype)


def test_a_weight_that_is_only_cast_is_that_weight():
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Halved())
    found = entry(Residual(layer), image(2, 4), "layer.parametrizations.weight.original")
    assert found.role == "zero"


class Quantised(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
        self.scale, self.last = nn.Parameter(torch.ones(4, 1)), nn.Linear(4, 4)

    def forward(self, x):
        return x + self.last(F.linear(x, self.weight * self.scale))


def test_quantised_weights_are_named_and_no_override_can_write_them():
    model = Quantised()
    found = {e.name: e for e in decide(trace(model, image(2, 4))).entries}
    assert found["weight"].why == "int8: not a floating parameter"
    assert found["scale"].role == "keep"
    assert found["last.weight"].role == "zero"
    before = state(model)
    with pytest.raises(errors.DTypeError, match=r"parameter 'weight'.*int8"):
        init_(model, image(2, 4), overrides={"weight": "transit"})
    with pytest.raises(errors.DTypeError, match=r"parameter 'weight'.*int8"):
        init_(model, image(2, 4), overrides={"weight": "bias"})
    assert state(model) == before


def test_complex_models():
    model = Residual(nn.Linear(4, 4, dtype=torch.complex64))
    init_(model, torch.zeros(2, 4, dtype=torch.complex64))
    assert torch.equal(
        model.layer.weight.real,
        F.linear(torch.eye(4), EPS * (torch.eye(4) - torch.eye(4).roll(1, 0))),
    )


def test_a_dtype_that_cannot_hold_eps_leaves_the_model_untouched():
    model = Transformer().to(torch.float8_e5m2)
    before = state(model)
    with pytest.raises(errors.IDInitError):
        init_(model, IDS)
    assert state(model) == before
    model = Residual(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))).half()
    before = state(model)
    with pytest.raises(errors.RoundingError, match=r"parameter 'layer.1.weight'"):
        init_(model, image(2, 4).half(), eps=1e-9)
    assert state(model) == before


# Computations of other kinds --------------------------------------------------------------------


class Function(nn.Module):
    def __init__(self, function, *layers, **parameters):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.function = function
        for name, tensor in parameters.items():
            self.register_parameter(name, nn.Parameter(tensor))

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def buffered(model, x):
    """Writes results into slices of a buffer, as unrolled models do."""
    out = torch.empty(2, 3, 4)
    for k in range(3):
        out[:, k] = model.layers[0](x[:, k])
    return x + out


def in_place(model, x):
    h = model.layers[0](x)
    h.relu_()
    h.add_(x)
    return h


def by_addmm(model, x):
    return torch.addmm(x, x, model.w)


def by_addbmm(model, x):
    return torch.addbmm(x, x[None], model.w[None])


def by_baddbmm(model, x):
    return torch.baddbmm(x[None], x[None], model.w[None])


def by_addmv(model, x):
    return torch.addmv(x, model.w, x)


def by_addr(model, x):
    return torch.addr(x, model.layers[0](x)[0], x[1].relu())


def without_base(model, x):
    return torch.addmm(x, x, model.w, beta=0)


def by_alpha(model, x):
    return torch.add(x, model.layers[0](x), alpha=0.5)


def twice(model, x):
    for _ in range(3):
        x = x + model.layers[0](x)
    return x


def by_einsum(model, x):
    return x + torch.einsum("bn,mn->bm", x, model.w)


def sliced(model, x):
    """Two rows of one weight at a time."""
    return x + torch.cat([F.linear(x, part) for part in model.w.chunk(2)], -1)


def joined(model, x):
    return x + F.linear(x, torch.cat([model.v, model.w]))


@pytest.mark.parametrize(
    ("function", "x", "roles"),
    [
        (buffered, image(2, 3, 4), {"layers.0.weight": "zero", "layers.0.bias": "bias"}),
        (in_place, image(2, 4), {"layers.0.weight": "zero", "layers.0.bias": "bias"}),
        (by_addmm, image(2, 4), {"w": "zero"}),
        (by_addbmm, image(2, 4), {"w": "zero"}),
        (by_baddbmm, image(2, 4), {"w": "zero"}),
        (by_addmv, image(4), {"w": "zero"}),
        (by_addr, image(4, 4), {"layers.0.weight": "zero", "layers.0.bias": "bias"}),
        (without_base, image(2, 4), {"w": "transit"}),
        (by_alpha, image(2, 4), {"layers.0.weight": "zero", "layers.0.bias": "bias"}),
        (twice, image(2, 4), {"layers.0.weight": "zero", "layers.0.bias": "bias"}),
        (by_einsum, image(2, 4), {"w": "zero"}),
        (sliced, image(2, 4), {"w": "zero"}),
        (joined, image(2, 4), {"v": "zero", "w": "zero"}),
    ],
)
def test_computations_by_hand(function, x, roles):
    layers = [nn.Linear(4, 4)] if "layers.0.weight" in roles else []
    sizes = {"v": (2, 4), "w": (2, 4) if "v" in roles else (4, 4)}
    given = {name: torch.randn(sizes[name]) for name in roles if name in sizes}
    report = decide(trace(Function(function, *layers, **given), x))
    assert report.roles == roles
    if function is sliced:  # as F.linear(x, w)
        assert report.plans["w"].blocks is None


def by_inputs(model, x):
    """Experts side by side along the inputs: one matrix or many, nobody can tell."""
    return x + sum(F.linear(x, part) for part in model.w.chunk(2, 1))


@pytest.mark.parametrize(
    ("function", "size", "why"),
    [
        (by_inputs, (4, 8), "only a part of its inputs goes into mm with w"),
    ],
)
def test_what_cannot_be_told_is_named_and_left_alone(function, size, why):
    found = entry(Function(function, w=torch.randn(size)), image(2, 4), "w")
    assert found.role == "keep"
    assert why in found.why


@dataclass
class Result:
    cache: list[torch.Tensor]
    logits: torch.Tensor
    hidden: torch.Tensor


@pytest.mark.parametrize(
    "result",
    [
        lambda h, y: y,
        lambda h, y: (y, {"cache": [h]}),
        lambda h, y: {"hidden": h, "logits": y},
        lambda h, y: {"last": y, "hidden": h},
        lambda h, y: Result([h], y, h),
    ],
)
def test_the_head_is_that_of_the_main_result(result):
    def function(model, x):
        h = model.layers[0](x)
        return result(h, model.layers[1](h))

    model = Function(function, nn.Linear(4, 4), nn.Linear(4, 4))
    report = decide(trace(model, image(2, 4)), head="keep")
    assert [name for name, role in report.roles.items() if role == "keep"] == ["layers.1.weight"]


def test_branches_on_values_are_followed_on_the_real_model():
    def branching(model, x):
        return x + model.layers[0](x) if x.sum() > 0 else x * 2

    model = Function(branching, nn.Linear(4, 4))
    before = state(model)
    assert decide(trace(model, torch.ones(2, 4))).roles["layers.0.weight"] == "zero"
    assert entry(model, -torch.ones(2, 4), "layers.0.weight").why.startswith("not used")
    assert state(model) == before
    with pytest.raises(errors.GraphError, match=r"_local_scalar_dense.*move it to a real device"):
        trace(model.to("meta"), torch.ones(2, 4, device="meta"))


def test_state_that_a_forward_pass_changes_is_restored():
    def stateful(model, x):
        model.calls += 1
        model.seen.append(x)
        model.cache = x
        model.last = nn.Parameter(x)
        model.total.add_(1)
        torch.rand(3), random.random(), np.random.random()
        y = model.layers[1](model.layers[0](x))
        return y if model.calls < 0 or (y.sum() > 0 and model.calls < 9) else y + 1

    model = Function(stateful, nn.Linear(4, 4), nn.BatchNorm1d(4))
    model.calls, model.seen, model.cache = 0, [], None
    model.register_buffer("total", torch.zeros(1))
    before = state(model)
    trace(model, image(2, 4))
    assert state(model) == before
    assert (model.calls, model.seen, model.cache) == (0, [], None)


def test_a_forward_pass_that_writes_to_a_parameter_is_no_computation():
    def writing(model, x):
        model.w.mul_(0.5)
        return x + x @ model.w

    model = Function(writing, w=torch.randn(4, 4))
    before = state(model)
    with pytest.raises(errors.GraphError, match=r"aten.mul_.*should not write to its parameters"):
        trace(model, image(2, 4))
    assert state(model) == before


def test_inputs_of_every_form():
    model = Transformer()
    expected = decide(trace(model, IDS)).roles
    assert decide(trace(model, (IDS,))).roles == expected
    assert decide(trace(model, {"ids": IDS})).roles == expected
    assert decide(trace(model, IDS.to("meta"))).roles == expected
    assert decide(trace(model.to("meta"), IDS)).roles == expected


@pytest.mark.parametrize(
    "around",
    [
        torch.inference_mode,
        torch.enable_grad,
        FakeTensorMode,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    ],
)
def test_the_callers_modes_do_not_matter(around):
    model = Transformer()
    with around():
        report = decide(trace(model, IDS))
    assert report.roles == decide(graph_of("pre")).roles


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile itself
def test_compiled_models():
    model = torch.compile(Transformer())
    roles = {f"_orig_mod.{name}": role for name, role in decide(graph_of("pre")).roles.items()}
    assert decide(trace(model, IDS)).roles == roles


def test_a_model_that_has_memory_for_a_half_of_its_weights_is_refused():
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))
    model[0].to("meta")
    nn.init.ones_(model[1].weight)
    with pytest.raises(errors.OptionError, match=r"'0\.weight' .* on meta, '1\.weight' on cpu"):
        init_(model, torch.zeros(1, 4))
    assert (model[1].weight == 1).all()


def test_one_forward_pass_with_meta_parameters_checks_and_writes_nothing():
    model = Transformer().to("meta")
    report = init_(model, IDS)
    assert report.roles["blocks.0.mlp.2.weight"] == "zero"
    assert all(parameter.is_meta for parameter in model.parameters())


# Bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "options", "error", "says"),
    [
        (torch.zeros(2, 7, dtype=torch.long), {}, errors.GraphError, r"int64\(2, 7\).*raised: "),
        (torch.zeros(2, 6), {}, errors.GraphError, r"float32\(2, 6\).*pass arguments that model"),
        ({"idz": IDS}, {}, errors.GraphError, r"idz.*unexpected keyword"),
        ("text", {}, errors.OptionTypeError, "example_inputs.*wrap it in a tuple"),
        (IDS, {"overrides": {"*.q.weight": "keep"}}, errors.OptionError, r"nearest are.*weight"),
        (IDS, {"gain": 0}, errors.OptionError, "gain"),
        (IDS, {"head": "last"}, errors.OptionError, "head"),
    ],
)
def test_bad_input_is_named_and_leaves_the_model_untouched(inputs, options, error, says):
    model = Transformer()
    before = state(model)
    with pytest.raises(error, match=says):
        init_(model, inputs, **options)
    assert state(model) == before


def test_models_that_cannot_be_traced_are_named():
    with pytest.raises(errors.GraphError, match="should have parameters"):
        init_(nn.ReLU(), image(2, 4))
    with pytest.raises(errors.OptionTypeError, match=r"should be a torch.nn.Module"):
        trace(lambda x: x, image(2, 4))
    with pytest.raises(errors.GraphError, match=r"lazy 0.weight.*run one forward pass first"):
        trace(nn.Sequential(nn.LazyLinear(4)), image(2, 4))


@pytest.mark.nightly
def test_gpt2_at_full_size_has_the_plans_of_its_small_form():
    import transformers

    found = []
    for options in ({}, {"n_embd": 64, "n_head": 4}):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**options))
        found.append(init_(model, IDS).roles)
    assert found[0] == found[1]


SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
OF_HEADS = {
    "GPTNeoX": SMALL,
    "GPTNeoXJapanese": {**SMALL, "bos_token_id": 1, "eos_token_id": 2},
    "Bloom": {"vocab_size": 50, "hidden_size": 32, "n_layer": 1, "n_head": 4},
    "Falcon": {**SMALL, "multi_query": False},
    "Persimmon": SMALL,
    "CodeGen": {"vocab_size": 50, "n_embd": 64, "n_layer": 1, "n_head": 8, "rotary_dim": 4,
                "bos_token_id": 1, "eos_token_id": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", OF_HEADS)
def test_queries_keys_and_values_of_each_head_are_three_identities(name):
    """CodeGen interleaves them for four devices, the others for each of four heads."""
    import transformers

    config = getattr(transformers, f"{name}Config")(**OF_HEADS[name])
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    init_(model, IDS)
    weights = {
        k: v for k, v in model.state_dict().items() if "query_key_value.w" in k or "qkv" in k
    }
    (weight,) = weights.values()
    size = weight.shape[1]
    three = weight.unflatten(0, (4, 3, -1)).transpose(0, 1).reshape(3, size, size)
    assert torch.equal(three, torch.eye(size).expand(3, -1, -1))
    assert audit(model, IDS).healthy


def test_inference_tensors_are_refused():
    with torch.inference_mode():
        model = nn.Linear(4, 4)
    with pytest.raises(errors.OptionTypeError, match="inference"):
        init_(model, image(2, 4))


# What a forward pass may change besides, and what it may be made of -----------------------------


class Holder:
    """A plain object with attributes."""

    k = None


class Slotted:
    __slots__ = ("k",)


def remembering(model, x):
    k = model.layers[0](x)
    held = model.cache
    held.k = k if held.k is None else held.k + k
    model.slotted.k = k
    held.lists["k"].append(k)
    model.stats[0] += 1
    model.pair[0][0] += 1
    model.nested["k"][0] = model.nested["k"][0] + k
    model.names.add(len(model.names))
    model.counts["runs"] += 1
    model.order.move_to_end("a")
    model.array += 1
    torch.rand(3, generator=model.generator)
    model.python.random(), model.numpy.random()
    return x + k if not model.by_value or x.sum() > 0 else x


@pytest.mark.parametrize("by_value", [False, True])  # True: the real pass follows a failed one
def test_state_inside_of_objects_and_containers_is_restored(by_value):
    model = Function(remembering, nn.Linear(4, 4))
    model.by_value, model.cache, model.slotted = by_value, Holder(), Slotted()
    model.cache.lists = defaultdict(list)
    model.slotted.k = None
    model.stats = [torch.zeros(1)]
    model.pair = ([torch.zeros(1)],)
    model.nested, model.names = {"k": [torch.zeros(2, 4)]}, set()
    model.counts, model.order = Counter(runs=1), OrderedDict(a=1, b=2)
    model.array, model.generator = np.zeros(2), torch.Generator().manual_seed(1)
    model.python, model.numpy = random.Random(1), np.random.default_rng(1)
    drawn = [
        model.generator.get_state().tolist(),
        model.python.getstate(),
        model.numpy.bit_generator.state,
    ]
    old = model.stats[0], model.pair[0][0], model.nested["k"][0]
    assert decide(trace(model, torch.ones(2, 4))).roles["layers.0.weight"] == "zero"
    assert drawn == [
        model.generator.get_state().tolist(),
        model.python.getstate(),
        model.numpy.bit_generator.state,
    ]
    assert model.cache.k is None
    assert "k" not in vars(model.cache)
    assert not model.cache.lists
    assert model.slotted.k is None
    assert [id(t) for t in (model.stats[0], model.pair[0][0], model.nested["k"][0])] == [
        id(t) for t in old
    ]
    assert [float(t.abs().sum()) for t in old] == [0, 0, 0]
    assert (model.names, model.counts["runs"], list(model.order)) == (set(), 1, ["a", "b"])
    assert model.array.tolist() == [0, 0]
    assert not isinstance(model(torch.ones(2, 4)), torch._subclasses.FakeTensor)


def test_an_object_among_the_inputs_is_restored():
    def function(model, x, held):
        held.k = model.layers[0](x)
        return x + held.k

    held = Holder()
    trace(Function(function, nn.Linear(4, 4)), (image(2, 4), held))
    assert held.k is None


def test_old_spectral_norm():
    torch.manual_seed(0)  # else one start in 256 is dead behind ReLU
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        last = nn.utils.spectral_norm(nn.Linear(4, 4))
    model = Residual(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), last))
    report = decide(trace(model, image(2, 4)))
    assert report.roles == {
        "layer.0.weight": "transit",
        "layer.0.bias": "bias",
        "layer.2.bias": "bias",
        "layer.2.weight_orig": "keep",
    }
    (note,) = report.warnings
    assert note.text.endswith("that end with layer.2.weight_orig do not start small")
    found = audit(model, torch.eye(2, 4))  # its largest singular value, a number, is a result
    assert not any("layer.0.weight" in one.name for one in found.dead)
    assert min(found.ratios.values()) > LARGE


@pytest.mark.parametrize(
    "add",
    [
        lambda x, y, g: torch.addcmul(x, g, y),
        lambda x, y, g: x.clone().addcmul_(g, y, value=0.5),
        lambda x, y, g: torch.addcmul(x, g, y, out=torch.empty(2, 4)),
        lambda x, y, g: torch.addcdiv(x, y, g),
        lambda x, y, g: torch._foreach_add([x, x], [y, y])[1],
        lambda x, y, g: torch._foreach_add_(held := [x.clone()], [y], alpha=2) or held[0],
    ],
)
def test_fused_adds_are_adds(add):
    model = Function(lambda m, x: add(x, m.layers[0](x), m.g), nn.Linear(4, 4), g=torch.ones(4))
    roles = decide(trace(model, image(2, 4))).roles
    assert (roles["layers.0.weight"], roles["g"]) == ("zero", "keep")


@dataclass
class Boxes:
    boxes: list[torch.Tensor]


@pytest.mark.parametrize(
    "result",
    [
        lambda a, b: {"pred_logits": a, "pred_boxes": b},
        lambda a, b: [a, Boxes([b])],
        lambda a, b: (a, [[b]]),
    ],
)
def test_every_result_has_a_head(result):
    def function(model, x):
        h = model.layers[0](x).relu()
        return result(model.layers[1](h), model.layers[2](h))

    model = Function(function, *(nn.Linear(4, 4) for _ in range(3)))
    report = decide(trace(model, image(2, 4)), head="keep")
    kept = [name for name, role in report.roles.items() if role == "keep"]
    assert kept == ["layers.1.weight", "layers.2.weight"]


def test_operations_that_hide_others_are_named():
    def by_cond(model, x):
        return x + torch.cond(x.sum() > 0, model.layers[0], torch.relu, (x,))

    with pytest.raises(errors.GraphError, match=r"'cond'.*write the branch .*in Python"):
        trace(Function(by_cond, nn.Linear(4, 4)), image(2, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Linear(4, 4))
    with pytest.raises(errors.GraphError, match=r"submodule layers.0, .*pass the eager module"):
        trace(Function(by_cond, scripted), image(2, 4))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("inside", [True, False])
def test_gradients_inside_a_forward_pass_are_no_operations_of_layers(inside, device):
    def forces(model, x):
        with torch.enable_grad() if inside else nullcontext():
            x = x.detach().requires_grad_() if inside else x
            energy = model.layers[0](x).tanh() @ model.layers[1].weight.T
            return energy, torch.autograd.grad(energy.sum(), x, create_graph=True)[0]

    model = Function(forces, nn.Linear(4, 4), nn.Linear(4, 1, bias=False)).to(device)
    report = decide(trace(model, image(2, 4).to(device).requires_grad_()))
    assert report.roles == {
        "layers.0.weight": "transit",
        "layers.0.bias": "bias",
        "layers.1.weight": "transit",
    }


def test_gradients_on_the_real_model_leave_its_own_alone():
    def meta(model, x):
        loss = (model.layers[0](x) ** 2).sum()
        loss.backward()
        return x + model.layers[0](x) if loss > 0 else x

    model = Function(meta, nn.Linear(4, 4))
    assert decide(trace(model, torch.ones(2, 4))).roles["layers.0.weight"] == "zero"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_override_of_a_computed_weight_knows_how_it_is_stored():
    model = Function(lambda m, x: x + x @ (m.w * m.w), w=torch.randn(4, 4))
    graph = trace(model, image(2, 4))
    assert decide(graph).roles["w"] == "keep"
    assert decide(graph, overrides={"w": "zero"}).plans["w"].layout == "IO"
    layer = parametrizations.weight_norm(nn.Conv1d(4, 4, 3, padding=2, groups=4))
    name = "layer.parametrizations.weight.original1"
    graph = trace(nn.Sequential(OrderedDict(layer=layer)), image(2, 4, 8))
    plan = decide(graph, overrides={name: "transit"}).plans[name]
    assert (plan.groups, plan.taps, plan.tap) == (4, "outward", (2,))


@pytest.mark.parametrize(
    "scale", [lambda w: w * 0.5, lambda w: w / 2, lambda w: torch.ones(()) * w]
)
def test_a_weight_that_is_scaled_by_a_number_is_that_weight(scale):
    model = Function(lambda m, x: x + x @ scale(m.w), w=torch.randn(4, 4))
    plan = plans(model, image(2, 4))["w"]
    assert (plan.role, plan.layout) == ("zero", "IO")


def test_sparse_tensors_that_are_held_somewhere_do_not_disturb():
    model = Residual(nn.Linear(4, 4))
    model.held = {"graph": torch.eye(2).to_sparse()}
    assert decide(trace(model, image(2, 4))).roles["layer.weight"] == "zero"


def test_an_error_is_told_once():
    """PyTorch logs the traceback of a shape that does not fit; the error says it already."""
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    log = logging.getLogger("torch._subclasses.fake_tensor")
    log.addHandler(handler)
    try:
        with pytest.raises(errors.GraphError, match="shapes cannot be multiplied"):
            init_(nn.Linear(4, 2), torch.zeros(1, 5))
        assert not told
        log.error("it speaks again")
        assert told
    finally:
        log.removeHandler(handler)
