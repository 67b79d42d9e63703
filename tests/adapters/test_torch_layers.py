"""PyTorch layers: real ones, run forward, with other numbers of outputs than of inputs."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import by_hand
from idinit_ref import errors, plan
from idinit_ref_torch import idi_layer_, idiz_layer_, layer_plans
from strategies import TAPS

EPS = 1e-6
SIZES = st.integers(1, 12)
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def inputs(*shape, dtype=torch.float32):
    """Reproducible numbers of both signs, none of them 0."""
    numbers = np.random.default_rng(0).standard_normal(shape)
    return torch.tensor(numbers, dtype=dtype)


def weight_by_hand(weight, role="transit", **options):
    exact = by_hand.weight(tuple(weight.shape), role, **options)
    return torch.tensor(exact, dtype=weight.dtype)


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


# The theorems, through linear layers and centered convolutions of every dtype -------------------

GAINS = st.sampled_from([1.0, -1.0, -0.5, 4.0]) | st.floats(0.02, 50).flatmap(
    lambda gain: st.sampled_from([gain, -gain])
)
SEEDS = st.integers(0, 99)


class LayerKind(NamedTuple):
    """Layers of a dtype: convolutions of a kernel, or linear where there is none."""

    dtype: torch.dtype
    kernel: tuple[int, ...] = ()

    @property
    def unit(self):
        """The distance from 1 to the next number: one rounding errs by half of it."""
        return torch.finfo(self.dtype).eps

    @property
    def size(self):
        return range(4, 4 + len(self.kernel))

    def layer(self, n, m):
        if not self.kernel:
            return nn.Linear(n, m, dtype=self.dtype)
        return CONV[len(self.kernel)](n, m, self.kernel, padding="same", dtype=self.dtype)

    def idi(self, n, m, **options):
        return idi_layer_(self.layer(n, m), taps="center", **options)

    def signal(self, n, seed, samples=5):
        """Numbers of both signs, away from 0, so that none becomes subnormal: (samples, n, ...)."""
        shape = samples, n, *self.size
        draw = np.random.default_rng(seed).standard_normal
        numbers = draw(shape) + 1j * draw(shape) if self.dtype.is_complex else draw(shape)
        numbers += np.sign(numbers) / 16
        return torch.tensor(numbers, dtype=self.dtype)

    def rounded(self, value):
        """A number as the dtype holds it, by hand."""
        held = torch.finfo(self.dtype)
        return by_hand.nearest(value, 1 - int(math.log2(held.eps)), int(math.log2(held.tiny)))

    def matrix(self, layer, n):
        """What a linear layer multiplies by: the outputs of unit vectors, as float64 rows."""
        return exact(layer(torch.eye(n, dtype=self.dtype))).T.real


def exact(tensor):
    return tensor.detach().to(torch.complex128)


def power_of_two(gain):
    return abs(math.frexp(gain)[0]) == 0.5


def alike(n, value):
    return torch.full((n,), value, dtype=torch.float64)


def linears():
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64]
    return st.sampled_from(dtypes).map(LayerKind)


@st.composite
def kinds(draw):
    kind = draw(linears())
    if kind.dtype.is_complex:  # PyTorch convolves them by three real convolutions, which rounds
        return kind
    return kind._replace(kernel=tuple(draw(st.lists(st.sampled_from([1, 3]), max_size=2))))


@given(SIZES, SIZES, kinds(), SEEDS, GAINS)
def test_t1_transit(m, n, kind, seed, gain):
    """Output i is tau x[i mod n], for a tall layer all inputs and for a wide one the first m.

    Exact: all other products are 0, so that tau x is rounded as it is alone.
    """
    x = kind.signal(n, seed)
    cycle = [i % n for i in range(m)]
    assert torch.equal(kind.idi(n, m)(x), x[:, cycle])
    assert torch.equal(kind.idi(n, m, gain=gain)(x), (x * kind.rounded(gain))[:, cycle])


@given(SIZES, SIZES, kinds(), SEEDS, GAINS)
def test_t2_variance(m, n, kind, seed, gain):
    """Whatever the covariance of x. Exact for powers of two.

    Else y differs from tau x by two roundings, of tau and of y, and a standard deviation moves by
    at most the root mean square of that difference. Float64 adds up to 1000 numbers in pairs.
    """
    draw = np.random.default_rng(seed).integers  # whole numbers: halves of them are not subnormal
    mixed = np.tensordot(draw(-3, 4, (n, n)), draw(-9, 10, (n, 50, *kind.size)), 1)
    x = torch.tensor(mixed, dtype=kind.dtype).movedim(0, 1)
    y = exact(kind.idi(n, m, gain=gain)(x))
    x = exact(x)
    for i in range(m):
        before, after = x[:, i % n].reshape(-1), y[:, i].reshape(-1)
        if power_of_two(gain):
            assert after.var() == gain**2 * before.var()
        else:
            slack = (1.1 * kind.unit + 1e-14) * before.abs().square().mean().sqrt()
            assert abs(after.std() / abs(gain) - before.std()) <= slack


@given(SIZES, SIZES, linears(), GAINS)
def test_t2_row_norm(m, n, kind, gain):
    """One entry a row, so that the norm is its absolute value, exactly."""
    matrix = kind.matrix(kind.idi(n, m, gain=gain), n)
    assert torch.equal(matrix.abs().sum(1), alike(m, abs(kind.rounded(gain))))
    assert torch.equal((matrix != 0).sum(1), torch.ones(m).long())


@given(SIZES, SIZES, linears(), GAINS)
def test_t3_fold_rms(m, n, kind, gain):
    """Rows of norm tau; that of the output's variance where folded inputs are uncorrelated.

    An entry errs by unit / 2, so a row's norm too; the rest are float64's n + 2 roundings. The
    variance is a square, so twice that; a sum of k equal entries has k - 1 roundings more.
    """
    layer = kind.idi(n, m, gain=gain, wide="fold_rms")
    matrix = kind.matrix(layer, n)
    rows = alike(m, abs(gain))
    torch.testing.assert_close(matrix.norm(dim=1), rows, rtol=kind.unit, atol=n * 1e-15)
    # The coordinates of -e_1 .. -e_n, e_1 .. e_n have no covariance, and the variance 1 / n.
    basis = torch.cat([torch.eye(n), -torch.eye(n)]).to(kind.dtype)
    variance = exact(layer(basis)).abs().square().mean(0) * n
    torch.testing.assert_close(variance, rows**2, rtol=3 * kind.unit, atol=n * 1e-14)
    # All coordinates the same: k that fold together add up to k times the variance.
    same = torch.cat([torch.ones(1, n), -torch.ones(1, n)]).to(kind.dtype)
    variance = exact(layer(same)).abs().square().mean(0)
    folded = torch.tensor([max(1, len(range(i, n, m))) for i in range(m)])
    rtol = (n + 2) * kind.unit
    torch.testing.assert_close(variance, rows**2 * folded, rtol=rtol, atol=n * 1e-14)
    assert torch.equal((variance - rows**2).abs() > rows**2 / 2, folded > 1)


@given(SIZES, SIZES, kinds(), SEEDS)
def test_t4_composition(m, n, kind, seed):
    """Wide after tall: the identity for truncate, exactly, and for fold_mean, but not fold_rms.

    A mean of k copies of x rounds 1 / k, k products and k - 1 sums, of which none exceeds x.
    """
    m, n = max(m, n), min(m, n)
    x = kind.signal(n, seed)
    between = kind.idi(n, m)(x)
    assert torch.equal(kind.idi(m, n)(between), x)
    mean = kind.idi(m, n, wide="fold_mean")(between)
    assert ((exact(mean) - exact(x)).abs() <= m * kind.unit * exact(x).abs()).all()
    rms = kind.idi(m, n, wide="fold_rms")(between)
    if m == n:
        assert torch.equal(mean, x)
        assert torch.equal(rms, x)
    else:  # input 0 has at least two copies, so at least sqrt(2) comes back of it
        assert (exact(rms)[:, 0].abs() >= 1.2 * exact(x)[:, 0].abs()).all()


@given(SIZES, SIZES, linears(), GAINS)
def test_t5_isometry(m, n, kind, gain):
    """The matrix holds the rounded tau exactly: the tolerance is that of the decomposition."""
    m, n = max(m, n), min(m, n)
    found = torch.linalg.svdvals(kind.matrix(kind.idi(n, m, gain=gain), n))
    copies = torch.tensor([len(range(j, m, n)) for j in range(n)]).double()  # falling
    tau = abs(kind.rounded(gain))
    torch.testing.assert_close(found, tau * copies.sqrt(), rtol=1e-13, atol=0)


@given(
    st.integers(1, 8),
    st.integers(1, 6),
    linears(),
    st.sampled_from([1.0, -1.0]) | st.floats(0.5, 2),
)
def test_t5_products_of_square_layers(n, depth, kind, gain):
    """A multiple p of the identity, exactly; p has one rounding for each layer."""
    product = kind.matrix(nn.Sequential(*[kind.idi(n, n, gain=gain) for _ in range(depth)]), n)
    p, tau = product[0, 0].item(), kind.rounded(gain)
    assert torch.equal(product, p * torch.eye(n).double())
    assert abs(p - tau**depth) <= depth * kind.unit * abs(tau) ** depth
    values = torch.linalg.svdvals(product)
    torch.testing.assert_close(values, alike(n, abs(p)), rtol=1e-13, atol=0)
    assert (p**2 == 1) == (abs(tau) == 1)  # chi


@given(
    st.integers(1, 8),
    st.integers(1, 6),
    kinds().filter(lambda kind: not kind.dtype.is_complex),
    SEEDS,
    st.sampled_from([1.0, 0.5, 2.0, 2**0.5]) | st.floats(0.5, 2),
)
def test_t6_relu_chain(n, depth, kind, seed, gain):
    """Exact for powers of two; else each layer rounds once, which makes unit / 2."""
    x = kind.signal(n, seed)
    x[0] = x[0].abs()  # some of it goes through
    y, tau, moments = x, kind.rounded(gain), []
    for _ in range(depth):
        y = kind.idi(n, n, gain=gain)(y).relu()
        moments.append(exact(y).abs().square().mean().item())
    wanted = tau**depth * exact(x.relu())
    slack = 0 if power_of_two(gain) else depth * kind.unit
    assert ((exact(y) - wanted).abs() <= slack * wanted.abs()).all()
    # The second moment goes as tau^2 from layer to layer: only tau = 1 keeps it.
    growth = moments[-1] / moments[0]
    assert growth == pytest.approx(tau ** (2 * depth - 2), rel=2 * slack + 1e-13)
    assert (growth == 1) == (tau == 1 or depth == 1)


@given(
    SIZES,
    SIZES,
    kinds(),
    SEEDS,
    st.sampled_from([torch.tanh, torch.sin, torch.abs]),
    st.sampled_from([1e-6, -(2.0**-13)]) | st.floats(1e-4, 1),
)
def test_t7_residual_identity(width, hidden, kind, seed, f, eps):
    """The branch rounds two products and a sum, the addition once more by half a unit of y.

    Every order of the taps holds it: every row of any IDIZ has eps and -eps alone. In float16 a
    product may be subnormal, which errs by half of the smallest number.
    """
    x = kind.signal(width, seed)
    inside = f(kind.idi(width, hidden)(x)).to(kind.dtype)
    least = torch.finfo(kind.dtype).tiny * kind.unit
    bound = 2 * abs(kind.rounded(eps)) * exact(inside).abs().max() * (1 + 3 * kind.unit) + least
    for taps in TAPS:
        branch = idiz_layer_(kind.layer(hidden, width), eps=eps, taps=taps)(inside)
        assert exact(branch).abs().max() <= bound
        y = x + branch
        moved = (exact(y) - exact(x)).abs()
        assert (moved <= bound + kind.unit * exact(y).abs()).all()


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
def test_depthwise_convolutions_need_no_rule_of_their_own(kind):
    passes(idi_layer_(kind(4, 4, 3, padding=1, groups=4)), 2)
    causal = nn.Conv1d(4, 4, 3, padding=2, groups=4)  # as in state-space models, then cropped
    assert layer_plans(causal)["weight"].tap == (2,)
    passes(idi_layer_(causal), 1)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, 3),
        nn.Conv2d(4, 8, 3, groups=2),
        nn.Conv2d(1, 8, 3),
        nn.ConvTranspose2d(4, 8, 3, groups=4),
        nn.Linear(4, 8),
        nn.LSTM(4, 8),
    ],
    ids=str,
)
def test_all_go_outward_by_default(layer):
    assert {how.taps for how in layer_plans(layer).values()} == {"outward"}


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kind", [CONV, TRANSPOSED], ids=["conv", "transposed"])
@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("verb", [idi_layer_, idiz_layer_])
def test_patches_hold_what_the_specification_says(dims, kind, taps, verb):
    layer = verb(kind[dims](4, 6, (2, 3, 2)[:dims], padding=(0, 1, 1)[:dims], groups=2), taps=taps)
    transposed = kind is TRANSPOSED
    want = weight_by_hand(
        layer.weight,
        "transit" if verb is idi_layer_ else "zero",
        layout=("IO" if transposed else "OI") + "DHW"[-dims:],
        groups=2,
        transposed=transposed,
        taps=taps,
        tap=(0, 1, 1)[:dims],
    )
    assert torch.equal(layer.weight, want)
    assert not layer.bias.any()


def test_an_1x1_convolution_passes_its_input_in_every_way():
    for taps in TAPS:
        passes(idi_layer_(nn.Conv2d(3, 7, 1), taps=taps), 2)
        passes(idi_layer_(nn.ConvTranspose2d(3, 7, 1), taps=taps), 2)


def test_a_tap_can_be_chosen():
    layer = idi_layer_(nn.Conv1d(3, 5, 3, padding=1), taps="center", tap=(2,))
    x = inputs(1, 3, SIDE)
    assert torch.equal(layer(x)[:, :3, :-1], x[:, :, 1:])
    depthwise = layer_plans(nn.Conv1d(3, 3, 3, padding=5, groups=3), tap=[1])["weight"]
    assert (depthwise.taps, depthwise.tap) == ("outward", (1,))


@pytest.mark.parametrize("taps", ["outward", "diagonal", "center"])
@pytest.mark.parametrize(
    ("layer", "shift"),
    [
        (nn.Conv1d(3, 2, 3, padding=3), 1),
        (nn.Conv1d(3, 2, 3, padding=5), 3),
        (nn.Conv1d(3, 2, 3, padding=1, dilation=2), 1),
        (nn.Conv1d(3, 2, 3, padding=2, dilation=3), -1),
        (nn.Conv1d(3, 2, 2, padding="same", dilation=3), 1),
        (nn.ConvTranspose1d(3, 2, 3, padding=1, dilation=2), -1),
        (nn.ConvTranspose1d(3, 2, 2, padding=3), -2),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_where_no_tap_is_the_identity_it_is_the_nearest(layer, shift, taps):
    """Output j is input j - shift: by half a dilation at most, or what the padding is too wide."""
    x = inputs(2, 3, SIDE)
    y = idi_layer_(layer, taps=taps)(x)
    kept = [j for j in range(y.shape[2]) if 0 <= j - shift < SIDE]
    assert len(kept) >= SIDE - 5
    assert torch.equal(y[:, 0, kept], x[:, 0, [j - shift for j in kept]])


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
    options = {"gain": 0.5, "wide": "fold_rms", "loosen": 0.25, "loosen_at": "entries", "seed": 3}
    want = plan((6, 2, 3, 5), layout="OIHW", groups=2, taps="center", tap=(1, 2), **options)
    assert layer_plans(layer, taps="center", **options) == {"weight": want}
    assert layer_plans(layer, "zero", eps=0.5, form="shifted") == {
        "weight": plan((6, 2, 3, 5), "zero", eps=0.5, form="shifted", groups=2, tap=(1, 2))
    }
    assert all(torch.equal(before[name], now) for name, now in layer.state_dict().items())


TRANSIT = {"gain": 0.5, "wide": "fold_rms", "loosen": 0.25, "seed": 3}


@pytest.mark.parametrize("layer", [nn.Linear(3, 2), nn.LSTM(2, 3), nn.Conv1d(3, 2, 3)], ids=str)
def test_plans_do_not_use_options_of_a_role_that_no_weight_has(layer):
    assert layer_plans(layer, eps=0.5, **TRANSIT) == layer_plans(layer, **TRANSIT)
    assert layer_plans(layer, "zero", eps=0.5, **TRANSIT) == layer_plans(layer, "zero", eps=0.5)


def test_plans_use_the_options_of_both_roles_where_a_layer_has_both():
    into, out = layer_plans(nn.MultiheadAttention(4, 2), "zero", eps=0.5, **TRANSIT).values()
    assert {name: getattr(into, name) for name in TRANSIT} == TRANSIT
    assert out == plan((4, 4), "zero", eps=0.5)


@pytest.mark.parametrize(
    ("option", "error", "words"),
    [
        ({"gain": 0}, errors.OptionError, ["gain = 0", "non-zero"]),
        ({"gain": "1"}, errors.OptionTypeError, ["gain = '1'", "float"]),
        ({"eps": float("nan")}, errors.OptionError, ["eps = nan", "non-zero"]),
        ({"eps": None}, errors.OptionTypeError, ["eps = None", "float"]),
        ({"wide": "fold"}, errors.OptionError, ["wide = 'fold'", "pick one"]),
        ({"loosen": -1}, errors.OptionError, ["loosen = -1", "standard deviation"]),
        ({"seed": -1}, errors.OptionError, ["seed = -1", "in range"]),
        ({"loosen": 0.1, "seed": "a"}, errors.OptionTypeError, ["seed = 'a'", "whole number"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("layer", [nn.Linear(3, 2), nn.LSTM(2, 2)], ids=str)
@pytest.mark.parametrize("role", ["transit", "zero"])
def test_plans_validate_the_options_of_both_roles(layer, role, option, error, words):
    with pytest.raises(error) as caught:
        layer_plans(layer, role, **option)
    assert all(word in str(caught.value) for word in words), caught.value


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


def test_a_layer_with_memory_for_some_of_its_weights_is_refused():
    layer = nn.Linear(3, 4)
    before = layer.weight.detach().clone()
    layer.bias = nn.Parameter(torch.empty(4, device="meta"))
    for verb in (idi_layer_, idiz_layer_):
        with pytest.raises(errors.OptionError, match=r"'bias' .* on meta, 'weight' on cpu"):
            verb(layer)
    assert torch.equal(layer.weight, before)


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
        None,
    ],
    ids=lambda module: type(module).__name__,
)
@pytest.mark.parametrize("verb", [idi_layer_, idiz_layer_, layer_plans])
def test_layers_that_are_not_known(verb, module):
    with pytest.raises(errors.OptionTypeError) as caught:
        verb(module)
    assert f"module = {type(module)!r}" in str(caught.value)
    assert "Linear, Conv1d, " in str(caught.value)
    cure = "one by one" if isinstance(module, nn.Module) else "pass such a layer itself"
    assert cure in str(caught.value)


def test_a_weight_that_is_no_parameter():
    layer = nn.Linear(3, 3)
    del layer.weight
    layer.weight = torch.ones(3, 3)  # as some code of its own replaces it
    with pytest.raises(errors.OptionTypeError) as caught:
        idi_layer_(layer)
    assert "its 'weight' should be a torch.nn.Parameter" in str(caught.value)
    assert "initialise the layer before" in str(caught.value)
    assert torch.equal(layer.weight, torch.ones(3, 3))


def integer_end(layer):
    weight = torch.ones(6, 6, dtype=torch.int64)
    layer.out_proj.weight = nn.Parameter(weight, requires_grad=False)


def tiny_end(layer):
    layer.out_proj.weight = nn.Parameter(torch.ones(6, 6).to(torch.float8_e4m3fn))


def expanded_bias(layer):
    layer.in_proj_bias = nn.Parameter(torch.ones(1).expand(18))


def computed_bias(layer):
    nn.utils.parametrize.register_parametrization(layer.out_proj, "bias", nn.Sigmoid())


@pytest.mark.parametrize(
    ("spoil", "error", "word"),
    [
        (integer_end, errors.DTypeError, "dtype = 'int64'"),
        (tiny_end, errors.RoundingError, "eps = 1e-06"),
        (expanded_bias, errors.OptionError, "in_proj_bias.stride() = (0,)"),
        (computed_bias, errors.OptionError, "computed by Sigmoid"),
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
        (idi_layer_, {"loosen_at": "entries"}, errors.OptionError, "loosen_at = 'entries'"),
        (idiz_layer_, {"form": "even"}, errors.OptionError, "form = 'even'"),
        (idiz_layer_, {"tap": (1,)}, errors.OptionError, "tap = (1,)"),
        (
            idiz_layer_,
            {"taps": "channel_major", "tap": (1, 1)},
            errors.OptionError,
            "tap = (1, 1), but taps='channel_major'",
        ),
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
