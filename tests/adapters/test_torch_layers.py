"""PyTorch layers: real ones, run forward, with other numbers of outputs than of inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

import by_hand
from idinit_ref import errors, plan
from idinit_ref_torch import idi_layer_, idiz_layer_, layer_plans

EPS = 1e-6
SIZES = st.integers(1, 12)


def inputs(*shape, dtype=torch.float32):
    """Reproducible numbers of both signs, none of them 0."""
    numbers = np.random.default_rng(0).standard_normal(shape)
    return torch.tensor(numbers, dtype=dtype)


def weight_by_hand(weight, role="transit", **options):
    exact = by_hand.weight(tuple(weight.shape), role, **options)
    return torch.tensor(exact, dtype=weight.dtype)


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


# Linear: the theorems -----------------------------------------------------------------------------


@given(SIZES, SIZES)
def test_t1_transit(m, n):
    """Tall: output i is x[i mod n]. Wide: the first m inputs."""
    x = inputs(5, n)
    y = idi_layer_(nn.Linear(n, m))(x)
    assert torch.equal(y, x[:, [i % n for i in range(m)]])


@given(SIZES, SIZES)
def test_t2_variance(m, n):
    """Whatever the inputs' covariance; 2 is a power of two, so that nothing is rounded."""
    x = inputs(50, n) @ inputs(n, n)  # strongly correlated
    y = idi_layer_(nn.Linear(n, m), gain=2)(x)
    for i in range(m):
        assert y[:, i].contiguous().var() == 4 * x[:, i % n].contiguous().var()


@given(SIZES, SIZES)
def test_t4_composition(m, n):
    """Wide after tall is the identity for truncate and fold_mean."""
    m, n = max(m, n), min(m, n)
    tall = idi_layer_(nn.Linear(n, m, dtype=torch.float64))
    x = inputs(4, n, dtype=torch.float64)
    truncated = idi_layer_(nn.Linear(m, n, dtype=torch.float64))
    assert torch.equal(truncated(tall(x)), x)
    mean = idi_layer_(nn.Linear(m, n, dtype=torch.float64), wide="fold_mean")
    torch.testing.assert_close(mean(tall(x)), x, rtol=1e-14, atol=0)
    rms = idi_layer_(nn.Linear(m, n, dtype=torch.float64), wide="fold_rms")
    assert torch.allclose(rms(tall(x)), x, rtol=1e-9, atol=0) == (m == n)


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_t6_relu_chain(tau):
    length, x = 6, inputs(7, 5)
    layers = [part for _ in range(length) for part in (nn.Linear(5, 5), nn.ReLU())]
    for layer in layers[::2]:
        idi_layer_(layer, gain=tau)
    assert torch.equal(nn.Sequential(*layers)(x), tau**length * x.relu())


@given(SIZES, SIZES)
def test_t7_residual_identity(width, hidden):
    x = inputs(6, width, dtype=torch.float64)
    first = idi_layer_(nn.Linear(width, hidden, dtype=torch.float64))
    second = idiz_layer_(nn.Linear(hidden, width, dtype=torch.float64))
    branch = first(x).relu()
    assert (x + second(branch) - x).abs().max() <= 2 * EPS * branch.abs().max() + 1e-15


class Residual(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.first = nn.Linear(width, hidden)
        self.last = nn.Linear(hidden, width)

    def forward(self, x):
        return x + self.last(self.first(x).relu())


def backward(zeros):
    """The gradients of a small residual network; its branches end in IDIZ or in true zeros."""
    net = nn.Sequential(Residual(6, 9), Residual(6, 4), nn.Linear(6, 3))
    for block in net[:2]:
        idi_layer_(block.first)
        idiz_layer_(block.last)
        if zeros:
            nn.init.zeros_(block.last.weight)
    idi_layer_(net[2])
    loss = nn.functional.cross_entropy(net(inputs(8, 6)), torch.arange(8) % 3)
    loss.backward()
    return net


def test_one_step_reaches_every_parameter():
    net = backward(zeros=False)
    for name, parameter in net.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    before = state(net)
    torch.optim.SGD(net.parameters(), lr=1.0).step()
    assert all(not torch.equal(before[name], now) for name, now in net.state_dict().items())


def test_true_zeros_would_leave_the_branch_without_a_gradient():
    net = backward(zeros=True)
    for block in net[:2]:
        assert not block.first.weight.grad.any()
        assert not block.first.bias.grad.any()
        assert block.last.weight.grad.any()


# Convolutions -------------------------------------------------------------------------------------

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
SIDE = 9


def channel_of(outputs, inputs, groups):
    """The input channel that IDI passes to each output channel."""
    m, n = outputs // groups, inputs // groups
    return [g * n + i % n for g in range(groups) for i in range(m)]


def passes(layer, dims):
    """Where output and input overlap, the output is the input, channel by channel."""
    x = inputs(2, layer.in_channels, *[SIDE + axis for axis in range(dims)])
    y = layer(x)
    sides = [min(a, b) for a, b in zip(x.shape[2:], y.shape[2:], strict=True)]
    both = (slice(None), slice(None), *map(slice, sides))
    want = x[:, channel_of(layer.out_channels, layer.in_channels, layer.groups)]
    assert torch.equal(y[both], want[both])
    return y


CHANNELS = [(3, 5, 1), (5, 3, 1), (4, 4, 1), (4, 6, 2), (6, 4, 2), (4, 4, 4), (3, 6, 3), (1, 3, 1)]
AROUND = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3},
    {"kernel_size": 3, "padding": 2},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 4, "padding": "same"},
    {"kernel_size": 2, "padding": "same"},
    {"kernel_size": 4, "padding": "valid"},
    {"kernel_size": 4, "padding": 2},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": 3, "padding": 4, "dilation": 2},
    {"kernel_size": 3, "padding": "same", "dilation": 3},
    {"kernel_size": 5, "padding": "same", "dilation": 2},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    {"kernel_size": 4, "padding": "same", "padding_mode": "circular"},
    {"kernel_size": 5, "padding": 2, "padding_mode": "replicate"},
    {"kernel_size": 5, "padding": 1},
]


@pytest.mark.parametrize("around", AROUND, ids=str)
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_a_centered_convolution_passes_its_input(channels, around):
    into, out, groups = channels
    layer = CONV[1](into, out, groups=groups, **around)
    y = passes(idi_layer_(layer, taps="center"), 1)
    if around.get("padding") == "same":
        assert y.shape[2] == SIDE


@pytest.mark.parametrize(
    ("dims", "options"),
    [
        (2, {"kernel_size": (3, 5), "padding": (1, 2)}),
        (2, {"kernel_size": (2, 3), "padding": "same", "dilation": (1, 2)}),
        (2, {"kernel_size": (4, 3), "padding": (1, 4), "dilation": (1, 2)}),
        (2, {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}),
        (2, {"kernel_size": 3, "padding": 1, "groups": 3}),
        (3, {"kernel_size": (3, 1, 2), "padding": (1, 0, 1)}),
        (3, {"kernel_size": (2, 3, 4), "padding": "same"}),
        (3, {"kernel_size": 3, "padding": 1, "padding_mode": "circular", "groups": 3}),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_in_two_and_three_dimensions(dims, options):
    passes(idi_layer_(CONV[dims](3, 6, **options), taps="center"), dims)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize(
    "around",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 4},
        {"kernel_size": 4, "padding": 2},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": 2, "padding": 3, "dilation": 3},
    ],
    ids=str,
)
def test_a_centered_transposed_convolution_passes_its_input(dims, channels, around):
    into, out, groups = channels
    layer = TRANSPOSED[dims](into, out, groups=groups, **around)
    passes(idi_layer_(layer, taps="center"), dims)


def test_a_stride_samples_the_input():
    x = inputs(1, 3, SIDE)
    layer = idi_layer_(nn.Conv1d(3, 5, 3, stride=2, padding=1), taps="center")
    assert torch.equal(layer(x), x[:, [0, 1, 2, 0, 1], ::2])
    back = idi_layer_(nn.ConvTranspose1d(3, 5, 3, stride=2, padding=1), taps="center")
    assert torch.equal(back(x)[:, :, ::2], x[:, [0, 1, 2, 0, 1]])


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_depthwise_convolutions_are_centered_by_default(kind):
    layer = kind(4, 8, 3, padding=1, groups=4)
    assert {p.taps for p in layer_plans(layer).values()} == {"center"}
    passes(idi_layer_(layer), 2)
    causal = nn.Conv1d(4, 4, 3, padding=2, groups=4)  # as in state-space models, then cropped
    assert layer_plans(causal)["weight"].tap == (2,)
    passes(idi_layer_(causal), 1)


@pytest.mark.parametrize(
    ("layer", "taps"),
    [
        (nn.Conv2d(4, 8, 3), "channel_major"),
        (nn.Conv2d(4, 8, 3, groups=2), "channel_major"),
        (nn.Conv2d(1, 8, 3), "channel_major"),
        (nn.ConvTranspose2d(1, 8, 3), "channel_major"),
        (nn.ConvTranspose2d(4, 8, 3, groups=4), "center"),
        (nn.Linear(4, 8), "channel_major"),
    ],
)
def test_all_others_are_patches_by_default(layer, taps):
    assert layer_plans(layer)["weight"].taps == taps


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kind", [CONV, TRANSPOSED], ids=["conv", "transposed"])
@pytest.mark.parametrize("options", [{}, {"taps": "spatial_major"}], ids=str)
@pytest.mark.parametrize("verb", [idi_layer_, idiz_layer_])
def test_patches_hold_what_the_specification_says(dims, kind, options, verb):
    layer = verb(kind[dims](4, 6, (2, 3, 2)[:dims], groups=2), **options)
    transposed = kind is TRANSPOSED
    want = weight_by_hand(
        layer.weight,
        "transit" if verb is idi_layer_ else "zero",
        layout=("IO" if transposed else "OI") + "DHW"[-dims:],
        groups=2,
        transposed=transposed,
        **options,
    )
    assert torch.equal(layer.weight, want)
    assert not layer.bias.any()


def test_an_1x1_convolution_passes_its_input_in_every_way():
    for taps in ("channel_major", "spatial_major", "center"):
        passes(idi_layer_(nn.Conv2d(3, 7, 1), taps=taps), 2)
        passes(idi_layer_(nn.ConvTranspose2d(3, 7, 1), taps=taps), 2)


def test_a_tap_can_be_chosen():
    layer = idi_layer_(nn.Conv1d(3, 5, 3, padding=1), taps="center", tap=(2,))
    x = inputs(1, 3, SIDE)
    assert torch.equal(layer(x)[:, :3, :-1], x[:, :, 1:])
    depthwise = layer_plans(nn.Conv1d(3, 3, 3, padding=5, groups=3), tap=[1])["weight"]
    assert (depthwise.taps, depthwise.tap) == ("center", (1,))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(3, 5, 3, padding=3),
        nn.Conv1d(3, 5, 3, padding=1, dilation=2),
        nn.Conv1d(3, 5, 2, padding="same", dilation=3),
        nn.ConvTranspose1d(3, 5, 3, padding=1, dilation=2),
    ],
    ids=str,
)
def test_a_padding_without_an_identity_tap(layer):
    before = state(layer)
    with pytest.raises(errors.OptionError) as caught:
        idi_layer_(layer, taps="center")
    assert "padding = (" in str(caught.value)
    assert "pass tap=... to choose one" in str(caught.value)
    assert all(torch.equal(before[name], now) for name, now in layer.state_dict().items())


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(5, 7),
        nn.Linear(7, 5),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.ConvTranspose2d(4, 6, 3, groups=2),
    ],
    ids=str,
)
def test_the_zero_role_passes_almost_nothing(layer):
    into = getattr(layer, "in_channels", None)
    x = inputs(2, into, 6, 6) if into else inputs(2, layer.in_features)
    y = idiz_layer_(layer)(x)
    assert 0 < y.abs().max() <= 2 * EPS * x.abs().max() * (1 + 1e-6)
    assert 0.25 <= idiz_layer_(layer, eps=0.5)(x).abs().max() / x.abs().max() <= 1


# Attention ----------------------------------------------------------------------------------------


def test_attention_has_an_identity_in_each_packed_block():
    layer = nn.MultiheadAttention(6, 2, add_bias_kv=True)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(7.0)
    assert idi_layer_(layer, gain=3) is layer
    assert torch.equal(layer.in_proj_weight, 3 * torch.eye(6).repeat(3, 1))
    assert layer_plans(layer)["in_proj_weight"].blocks == (6, 6, 6)
    assert torch.equal(layer.out_proj.weight, 3 * torch.eye(6))
    for bias in (layer.in_proj_bias, layer.out_proj.bias, layer.bias_k, layer.bias_v):
        assert not bias.any()


def test_attention_to_one_token_passes_it():
    layer = idi_layer_(nn.MultiheadAttention(6, 2))
    x = inputs(1, 5, 6)
    assert torch.equal(layer(x, x, x)[0], x)


def test_attention_with_keys_and_values_of_other_sizes():
    layer = idi_layer_(nn.MultiheadAttention(6, 2, kdim=4, vdim=8))
    plans = layer_plans(layer)
    assert list(plans) == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]
    for name in plans:
        weight = layer.get_parameter(name)
        assert torch.equal(weight, weight_by_hand(weight)), name
    value = inputs(1, 5, 8)
    y, _ = layer(inputs(1, 5, 6), inputs(1, 5, 4), value)
    assert torch.equal(y, value[..., :6])


def test_attention_that_ends_a_branch_has_zero_only_at_its_end():
    split = layer_plans(nn.MultiheadAttention(6, 2, kdim=4, vdim=8), "zero")
    assert [of.role for of in split.values()] == ["transit", "transit", "transit", "zero"]
    layer = idiz_layer_(nn.MultiheadAttention(6, 2, bias=False))
    assert torch.equal(layer.in_proj_weight, torch.eye(6).repeat(3, 1))
    assert torch.equal(layer.out_proj.weight, weight_by_hand(layer.out_proj.weight, "zero"))
    x = inputs(4, 5, 6)
    assert 0 < layer(x, x, x)[0].abs().max() <= 2 * EPS * x.abs().max()


# Recurrent layers ---------------------------------------------------------------------------------

RECURRENT = [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)]
CELLS = [(nn.LSTMCell, 4), (nn.GRUCell, 3), (nn.RNNCell, 1)]


def stack(rows, columns, gates):
    """One IDI below the other."""
    return torch.cat([torch.tensor(by_hand.weight((rows, columns))).float()] * gates)


@pytest.mark.parametrize(("kind", "gates"), RECURRENT)
@pytest.mark.parametrize("way", ["", "_reverse"])
@pytest.mark.parametrize("bias", [True, False])
def test_every_gate_of_a_recurrent_layer_is_idi(kind, gates, way, bias):
    layer = kind(3, 5, num_layers=2, bidirectional=way == "_reverse", bias=bias)
    idi_layer_(layer)
    below = 10 if way else 5
    assert torch.equal(layer.get_parameter(f"weight_ih_l0{way}"), stack(5, 3, gates))
    assert torch.equal(layer.get_parameter(f"weight_hh_l0{way}"), stack(5, 5, gates))
    assert torch.equal(layer.get_parameter(f"weight_ih_l1{way}"), stack(5, below, gates))
    assert torch.equal(layer.get_parameter(f"weight_hh_l1{way}"), stack(5, 5, gates))
    names = [name for name, _ in layer.named_parameters()]
    assert list(layer_plans(layer)) == [name for name in names if name.startswith("weight")]
    biases = [name for name in names if name.startswith("bias")]
    assert bool(biases) == bias
    assert not any(layer.get_parameter(name).any() for name in biases)


@pytest.mark.parametrize(("kind", "gates"), CELLS)
def test_every_gate_of_a_cell_is_idi(kind, gates):
    layer = idi_layer_(kind(7, 5))
    assert torch.equal(layer.weight_ih, stack(5, 7, gates))
    assert torch.equal(layer.weight_hh, stack(5, 5, gates))
    assert not layer.bias_ih.any()
    assert not layer.bias_hh.any()


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_the_first_step_of_recurrent_layers():
    """From a state of 0, the gates see x[i mod n]."""
    x = inputs(1, 4, 3)
    seen = x[..., [0, 1, 2, 0, 1]]
    sigmoid, tanh = seen.sigmoid(), seen.tanh()
    close = {"rtol": 1e-5, "atol": 1e-6}
    lstm = idi_layer_(nn.LSTM(3, 5))(x)[0]
    torch.testing.assert_close(lstm, sigmoid * (sigmoid * tanh).tanh(), **close)
    torch.testing.assert_close(idi_layer_(nn.GRU(3, 5))(x)[0], (1 - sigmoid) * tanh, **close)
    torch.testing.assert_close(idi_layer_(nn.RNN(3, 5))(x)[0], tanh, **close)
    projected = idi_layer_(nn.LSTM(3, 5, proj_size=2))(x)[0]
    torch.testing.assert_close(projected, lstm[..., :2], **close)


@pytest.mark.parametrize(("kind", "gates"), RECURRENT)
def test_a_recurrent_layer_that_ends_a_branch(kind, gates):
    layer = kind(3, 5, num_layers=2, bidirectional=True)
    plans = layer_plans(layer, "zero")
    for name, of in plans.items():
        assert of.role == ("zero" if "_l1" in name else "transit"), name
        assert of.blocks == (5,) * gates
    x = inputs(6, 2, 3)
    y = idiz_layer_(layer)(x)[0]
    assert 0 < y.abs().max() <= 2 * EPS * x.abs().max()


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_projection_that_ends_a_branch():
    layer = nn.LSTM(3, 5, num_layers=2, bidirectional=True, proj_size=2)
    plans = layer_plans(layer, "zero")
    assert {name for name, of in plans.items() if of.role == "zero"} == {
        "weight_hr_l1",
        "weight_hr_l1_reverse",
    }
    assert plans["weight_hr_l0"].blocks is None
    x = inputs(6, 2, 3)
    assert 0 < idiz_layer_(layer)(x)[0].abs().max() <= 2 * EPS


@pytest.mark.parametrize(("kind", "gates"), CELLS)
def test_a_cell_that_ends_a_branch(kind, gates):
    plans = layer_plans(kind(3, 5), "zero")
    assert {name: (of.role, of.blocks) for name, of in plans.items()} == {
        "weight_ih": ("zero", (5,) * gates),
        "weight_hh": ("zero", (5,) * gates),
    }


# Plans and options --------------------------------------------------------------------------------


def test_plans_are_those_of_the_core_and_write_nothing():
    layer = nn.Conv2d(4, 6, (3, 5), padding=(1, 2), groups=2)
    before = state(layer)
    options = {"gain": 0.5, "wide": "fold_rms", "loosen": 0.25, "seed": 3}
    want = plan((6, 2, 3, 5), layout="OIHW", groups=2, taps="center", tap=(1, 2), **options)
    assert layer_plans(layer, taps="center", **options) == {"weight": want}
    assert layer_plans(layer, "zero", eps=0.5) == {
        "weight": plan((6, 2, 3, 5), "zero", eps=0.5, groups=2)
    }
    assert all(torch.equal(before[name], now) for name, now in layer.state_dict().items())


def test_each_weight_of_a_layer_is_loosened_by_a_seed_of_its_own():
    layer = idi_layer_(nn.LSTM(3, 4, num_layers=2), loosen=0.1, seed=5)
    for k, name in enumerate(layer_plans(layer)):
        weight = layer.get_parameter(name)
        want = weight_by_hand(weight, blocks=(4,) * 4, loosen=0.1, seed=5 + k)
        assert torch.equal(weight, want), name
    seeds = [of.seed for of in layer_plans(layer, seed=5).values()]
    assert seeds == [5, 5, 5, 5]  # where there is no noise, all is as without


def test_a_layer_in_bfloat16():
    layer = idiz_layer_(nn.Linear(3, 3, dtype=torch.bfloat16), eps=0.3)
    near = by_hand.nearest(0.3, 8, -126)
    assert layer.weight.tolist() == [[near, -near, 0], [0, near, -near], [-near, 0, near]]


def test_parameters_stay_the_same_objects():
    layer = nn.Linear(3, 5)
    layer.weight.requires_grad_(False)
    weight, bias = layer.weight, layer.bias
    idi_layer_(layer)
    assert layer.weight is weight
    assert layer.bias is bias
    assert not weight.requires_grad
    assert bias.requires_grad


def test_tied_weights_are_filled_where_they_are():
    embedding, head = nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)
    head.weight = embedding.weight
    idi_layer_(head)
    assert embedding(torch.tensor([4])).tolist() == [[0.0, 1.0, 0.0]]


def test_a_layer_on_the_meta_device():
    layer = nn.LSTM(3, 10**5, device="meta")
    assert idi_layer_(layer) is layer
    assert layer.weight_hh_l0.is_meta


def test_a_lazy_layer():
    layer = nn.LazyConv2d(5, 3, padding=1)
    with pytest.raises(errors.ShapeError) as caught:
        idi_layer_(layer)
    assert "weight = <class 'torch.nn.parameter.UninitializedParameter'>" in str(caught.value)
    assert "run one forward pass" in str(caught.value)
    layer(torch.ones(1, 3, SIDE, SIDE))
    passes(idi_layer_(layer, taps="center"), 2)


def test_the_linear_layer_of_gpt2():
    from transformers.pytorch_utils import Conv1D

    x = inputs(4, 3)
    layer = Conv1D(5, 3)
    nn.init.ones_(layer.bias)
    assert torch.equal(idi_layer_(layer)(x), x[:, [0, 1, 2, 0, 1]])
    assert torch.equal(idi_layer_(Conv1D(2, 3))(x), x[:, :2])
    assert layer_plans(layer, "zero") == {"weight": plan((3, 5), "zero", layout="IO")}


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module",
    [
        nn.Bilinear(2, 3, 4),
        nn.Embedding(3, 4),
        nn.LayerNorm(3),
        nn.Sequential(nn.Linear(2, 2)),
        type("Conv1D", (nn.Module,), {})(),
        torch.ones(3, 3),
    ],
    ids=lambda module: type(module).__name__,
)
@pytest.mark.parametrize("verb", [idi_layer_, idiz_layer_, layer_plans])
def test_layers_that_are_not_known(verb, module):
    with pytest.raises(errors.OptionTypeError) as caught:
        verb(module)
    assert f"module = {type(module)!r}" in str(caught.value)
    assert "Linear, Conv1d, " in str(caught.value)
    assert "one by one" in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        nn.utils.parametrizations.weight_norm,
        lambda layer: nn.utils.parametrizations.orthogonal(layer, "weight"),
        lambda layer: prune.l1_unstructured(layer, "weight", 1),
    ],
    ids=["weight_norm", "orthogonal", "pruned"],
)
def test_a_weight_that_is_computed_from_others(make):
    layer = make(nn.Linear(3, 3))
    before = state(layer)
    with pytest.raises(errors.OptionTypeError) as caught:
        idi_layer_(layer)
    assert "its 'weight' should be a plain torch.nn.Parameter" in str(caught.value)
    assert "initialise it before" in str(caught.value)
    assert all(torch.equal(before[name], now) for name, now in layer.state_dict().items())


def integer_end(layer):
    weight = torch.ones(6, 6, dtype=torch.int64)
    layer.out_proj.weight = nn.Parameter(weight, requires_grad=False)


def tiny_end(layer):
    layer.out_proj.weight = nn.Parameter(torch.ones(6, 6).to(torch.float8_e4m3fn))


def expanded_bias(layer):
    layer.in_proj_bias = nn.Parameter(torch.ones(1).expand(18))


def computed_bias(layer):
    nn.utils.parametrize.register_parametrization(layer.out_proj, "bias", nn.Tanh())


@pytest.mark.parametrize(
    ("spoil", "error", "word"),
    [
        (integer_end, errors.DTypeError, "dtype = 'int64'"),
        (tiny_end, errors.RoundingError, "eps = 1e-06"),
        (expanded_bias, errors.OptionError, "in_proj_bias.stride() = (0,)"),
        (computed_bias, errors.OptionTypeError, "'out_proj.bias' should be a plain"),
    ],
)
def test_all_of_a_layer_is_validated_before_any_of_it_is_written(spoil, error, word):
    layer = nn.MultiheadAttention(6, 2)
    spoil(layer)
    versions = [(parameter, parameter._version) for parameter in layer.parameters()]
    with pytest.raises(error) as caught:
        idiz_layer_(layer)
    assert word in str(caught.value)
    assert all(parameter._version == before for parameter, before in versions)


@pytest.mark.parametrize(
    ("verb", "options", "error", "word"),
    [
        (layer_plans, {"role": "zeros"}, errors.OptionError, "role = 'zeros'"),
        (idi_layer_, {"gain": float("nan")}, errors.OptionError, "gain = nan"),
        (idi_layer_, {"wide": "fold"}, errors.OptionError, "wide = 'fold'"),
        (idi_layer_, {"seed": -1}, errors.OptionError, "seed = -1"),
        (idi_layer_, {"taps": "centre"}, errors.OptionError, "taps = 'centre'"),
        (idiz_layer_, {"eps": 0}, errors.OptionError, "eps = 0"),
        (idiz_layer_, {"tap": (1, 1)}, errors.OptionError, "tap = (1, 1)"),
        (idiz_layer_, {"taps": "center", "tap": (3, 0)}, errors.OptionError, "tap = (3, 0)"),
    ],
)
def test_options_that_do_not_fit(verb, options, error, word):
    layer = nn.Conv2d(3, 5, 3, padding=1)
    before = state(layer)
    with pytest.raises(error) as caught:
        verb(layer, **options)
    assert word in str(caught.value)
    assert all(torch.equal(before[name], now) for name, now in layer.state_dict().items())
