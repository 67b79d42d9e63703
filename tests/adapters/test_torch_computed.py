"""Weights that a PyTorch layer computes from others, and parameters that are elsewhere."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import idinit_ref_torch as irt
from idinit_ref import errors

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.nn.utils import spectral_norm as old_spectral_norm
    from torch.nn.utils import weight_norm as old_weight_norm

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
weight_norm, spectral_norm = parametrizations.weight_norm, parametrizations.spectral_norm
orthogonal = parametrizations.orthogonal


def x_of(*shape):
    return torch.from_numpy(np.random.default_rng(0).integers(-9, 10, shape)).float()


class Symmetric(nn.Module):
    def forward(self, given):
        return given.triu() + given.triu(1).mT


class Exponential(nn.Module):
    def forward(self, given):
        return given.exp()


def changed(layer, how):
    parametrize.register_parametrization(layer, "weight", how)
    return layer


def pruned(layer, mask):
    prune.custom_from_mask(layer, "weight", mask)
    return layer


def frozen(layer):
    return layer.eval()


SOLVED = {
    "weight norm": lambda: weight_norm(nn.Linear(4, 6)),
    "weight norm, wide": lambda: weight_norm(nn.Linear(6, 4)),
    "weight norm of columns": lambda: weight_norm(nn.Linear(6, 4), dim=1),
    "weight norm of all": lambda: weight_norm(nn.Linear(6, 4), dim=None),
    "older weight norm": lambda: old_weight_norm(nn.Linear(4, 6)),
    "older weight norm of columns": lambda: old_weight_norm(nn.Linear(6, 4), dim=1),
    "spectral norm": lambda: spectral_norm(nn.Linear(4, 4)),
    "spectral norm, wide": lambda: spectral_norm(nn.Linear(6, 4)),
    "spectral norm, not training": lambda: frozen(spectral_norm(nn.Linear(4, 4))),
    "older spectral norm": lambda: old_spectral_norm(nn.Linear(4, 4)),
    "orthogonal": lambda: orthogonal(nn.Linear(4, 4)),
    "orthogonal, wide": lambda: orthogonal(nn.Linear(6, 4)),
    "orthogonal, cayley": lambda: orthogonal(nn.Linear(4, 4), orthogonal_map="cayley"),
    "nested": lambda: spectral_norm(weight_norm(nn.Linear(4, 4))),
    "no right inverse, but fixed": lambda: changed(nn.Linear(4, 4), Symmetric()),
    "pruned elsewhere": lambda: pruned(nn.Linear(4, 4), torch.eye(4)),
    "not changed": lambda: nn.Linear(4, 6),
}


@pytest.mark.parametrize("name", SOLVED)
def test_what_the_layer_computes_is_the_weight(name):
    layer, state = SOLVED[name](), torch.get_rng_state()
    assert irt.idi_layer_(layer) is layer
    assert torch.equal(torch.get_rng_state(), state)
    x = x_of(3, layer.in_features)
    want = x[:, torch.arange(layer.out_features) % layer.in_features]
    with torch.no_grad():
        for _ in range(3):  # a power iteration goes on
            torch.testing.assert_close(layer(x), want)
        torch.testing.assert_close(layer.eval()(x), want)
    layer(x).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("dim", [0, 1, 2, None])
@pytest.mark.parametrize("role", ["transit", "zero"])
def test_convolutions_under_weight_norm(dim, role):
    """A slice without entries, as most taps, has the factor 0 and keeps a direction."""
    fill = irt.idi_layer_ if role == "transit" else irt.idiz_layer_
    for kind, options in ((nn.Conv1d, {"groups": 2}), (nn.ConvTranspose1d, {"stride": 2})):
        plain = kind(8, 8 if kind is nn.Conv1d else 4, 6, padding=3, **options)
        layer, x = weight_norm(copy.deepcopy(plain), dim=dim), x_of(2, 8, 9)
        torch.testing.assert_close(fill(layer)(x), fill(plain)(x))
        assert layer.parametrizations.weight.original1.isfinite().all()


def test_packed_weights_and_parts_of_a_layer():
    plain = nn.MultiheadAttention(4, 2)
    layer = weight_norm(copy.deepcopy(plain), "in_proj_weight")
    spectral_norm(layer.out_proj)
    x = x_of(3, 1, 4)
    got, want = (irt.idi_layer_(each)(x, x, x)[0] for each in (layer, plain))
    torch.testing.assert_close(got, want)


def test_a_computed_bias_is_zero():
    layer = irt.idi_layer_(weight_norm(nn.Linear(4, 6), "bias"))
    assert not layer.bias.any()
    assert torch.equal(layer(x_of(2, 4))[:, :4], x_of(2, 4))


REFUSED = {
    "spectral norm of stacked identities": (
        lambda: spectral_norm(nn.Linear(4, 6)),
        {},
        "largest singular value 1.*gain.*1.41421",
    ),
    "spectral norm of another gain": (lambda: spectral_norm(nn.Linear(4, 4)), {"gain": 2.0}, "2 n"),
    "older spectral norm": (lambda: old_spectral_norm(nn.Linear(4, 6)), {}, "remove_spectral_norm"),
    "orthogonal of another gain": (
        lambda: orthogonal(nn.Linear(4, 4)),
        {"gain": 2.0},
        "computed by Orthogonal",
    ),
    "orthogonal without a base": (
        lambda: orthogonal(nn.Linear(4, 4), "weight", "cayley", use_trivialization=False),
        {},
        "PyTorch raised.*remove_parametrizations",
    ),
    "no right inverse": (lambda: changed(nn.Linear(4, 4), Exponential()), {}, "Exponential"),
    "pruned": (lambda: pruned(nn.Linear(4, 4), 1 - torch.eye(4)), {}, "prune.remove"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_the_weight_is_refused_and_left(name):
    make, options, text = REFUSED[name]
    layer = make()
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(errors.OptionError, match=f"(?s){text}"):
        irt.idi_layer_(layer, **options)
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


def test_a_gain_makes_it_possible():
    layer = irt.idi_layer_(spectral_norm(nn.Linear(3, 6)), gain=2**-0.5)
    torch.testing.assert_close(layer(x_of(2, 3)), x_of(2, 3).repeat(1, 2) * 2**-0.5)


@pytest.mark.parametrize(
    "tensor",
    [
        lambda: weight_norm(nn.Linear(4, 4)).weight,
        lambda: old_weight_norm(nn.Linear(4, 4)).weight,
        lambda: spectral_norm(nn.Linear(4, 4)).weight,
        lambda: weight_norm(nn.Linear(4, 4)).weight[:2],
        lambda: nn.Linear(4, 4).weight * 1,
    ],
    ids=["weight norm", "older weight norm", "spectral norm", "view", "product"],
)
def test_a_tensor_that_does_not_last_is_refused(tensor):
    for fill in (irt.idi_, irt.idiz_):
        with pytest.raises(errors.OptionError, match=r"(?s)computed from others.*idi_layer_"):
            fill(tensor())


def test_views_of_what_lasts_are_filled():
    layer = nn.Linear(4, 6)
    for view in (layer.weight[2:], layer.weight[2:].T.T, layer.weight.detach()[2:]):
        nn.init.zeros_(layer.weight)
        irt.idi_(view)
        assert torch.equal(layer.weight[2:], torch.eye(4))


# A whole model --------------------------------------------------------------------------------


class Positions(nn.Module):
    """As in wav2vec 2.0: a convolution under weight norm over time, added to its input."""

    def __init__(self, norm):
        super().__init__()
        self.into = nn.Linear(5, 8)
        self.conv = norm(nn.Conv1d(8, 8, 6, padding=3, groups=2), dim=2)
        self.out = weight_norm(nn.Linear(8, 3))

    def forward(self, x):
        x = self.into(x)
        y = self.conv(x.transpose(1, 2))[:, :, :-1].transpose(1, 2)
        return self.out(x + nn.functional.gelu(y))


@pytest.mark.parametrize("norm", [weight_norm, old_weight_norm])
def test_a_whole_model_gets_the_effective_weights(norm):
    model, x = Positions(norm), x_of(2, 7, 5)
    report = irt.init_(model, x)
    assert list(report.roles) == [name for name, _ in model.named_parameters()]
    v, g = [name for name, _ in model.named_parameters() if "conv" in name and "bias" not in name]
    v, g = (v, g) if report.roles[v] == "zero" else (g, v)
    assert (report.roles[v], report.roles[g]) == ("zero", "keep")
    assert f"factors of {v}" in next(e.why for e in report.entries if e.name == g)
    assert not report.warnings
    with torch.no_grad():
        want = irt.idi_layer_(nn.Linear(5, 8))(x)
        torch.testing.assert_close(model(x), want[..., :3], atol=1e-4, rtol=0)
        like = irt.idiz_layer_(nn.Conv1d(8, 8, 6, padding=3, groups=2))
        torch.testing.assert_close(model.conv(want.mT), like(want.mT))
    assert "conv" in str(irt.audit(model, torch.randn(4, 7, 5)))


def test_a_norm_of_several_steps_is_left_to_the_report():
    model = nn.Sequential(spectral_norm(weight_norm(nn.Linear(4, 4))), nn.ReLU(), nn.Linear(4, 2))
    before = model[0].weight.detach().clone()
    report = irt.init_(model.eval(), x_of(2, 4))
    assert report.roles["2.weight"] == "transit"
    torch.testing.assert_close(model[0].weight, before)


# Elsewhere --------------------------------------------------------------------------------------


def placeholders():
    """What DeepSpeed's ZeRO-3 leaves of a layer outside of GatheredParameters."""
    layer = nn.Linear(4, 6)
    for parameter in layer.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    return layer


@pytest.mark.parametrize(
    "call",
    [
        lambda layer: irt.idi_(layer.weight),
        irt.idi_layer_,
        lambda layer: irt.init_(layer, torch.ones(1, 4)),
        lambda layer: irt.trace(nn.Sequential(layer), torch.ones(1, 4)),
    ],
)
def test_placeholders_of_zero_3_are_named(call):
    with pytest.raises(errors.OptionError, match=r"(?s)ZeRO-3.*\(6, 4\).*GatheredParameters"):
        call(placeholders())
    gathered = placeholders()
    for parameter in gathered.parameters():
        parameter.data = torch.ones(parameter.ds_shape)
    assert torch.equal(irt.idi_layer_(gathered)(x_of(1, 4))[:, :4], x_of(1, 4))


def test_lazy_parameters_are_named():
    for call in (irt.idi_layer_, lambda layer: irt.idi_(layer.weight)):
        with pytest.raises(errors.ShapeError, match=r"(?s)Uninitialized.*lazy.*forward pass"):
            call(nn.LazyLinear(3))


class FlatParameter(nn.Parameter):
    """Named as that of the older FSDP, which needs a process group to be made."""


def test_flat_parameters_are_named():
    with pytest.raises(errors.OptionTypeError, match=r"(?s)FullyShardedDataParallel.*fully_shard"):
        irt.idi_(FlatParameter(torch.ones(7)))
    part = nn.Parameter(torch.ones(7))
    part._fsdp_flattened = True
    with pytest.raises(errors.OptionError, match="summon_full_params"):
        irt.idi_(part)


@pytest.fixture
def accelerate():
    import accelerate

    return accelerate


def test_offloaded_layers_are_named_and_written_where_accelerate_brings_them(accelerate):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    accelerate.cpu_offload(model, torch.device("cpu"))
    for call in (irt.idi_layer_, lambda layer: irt.init_(layer, torch.ones(1, 4))):
        with pytest.raises(errors.OptionError, match=r"(?s)offloaded.*align_module_device"):
            call(model[0])
    with accelerate.utils.align_module_device(model[0]):
        irt.idi_layer_(model[0], gain=2.0)
    assert model[0].weight.is_meta
    assert torch.equal(model[0](x_of(1, 4))[:, :4], 2 * x_of(1, 4))


def test_layers_offloaded_to_disk_are_refused(accelerate, tmp_path):
    model = nn.Sequential(nn.Linear(4, 6))
    accelerate.disk_offload(model, str(tmp_path), torch.device("cpu"))
    disk = pytest.raises(errors.OptionError, match=r"(?s)to disk.*before it is dispatched")
    with accelerate.utils.align_module_device(model[0]), disk:
        irt.idi_layer_(model[0])


class Hook:
    """As accelerate's AlignDevicesHook that has brought copies to another device."""

    def __init__(self, weights):
        self.offload, self.weights_map = True, weights


def test_copies_that_were_brought_are_given_back():
    layer = nn.Linear(4, 6)
    kept = {name: torch.full_like(tensor, 7) for name, tensor in layer.named_parameters()}
    layer._hf_hook = Hook(kept)
    irt.idi_layer_(layer)
    assert torch.equal(kept["weight"], layer.weight)
    assert not kept["bias"].any()
