"""What the other initialisations make, by their papers' formulas."""

from __future__ import annotations

import math

import pytest
import torch

from docs.evidence import _baselines, _nets

X = torch.ones(2, 1, 8, 8)


def made(name, blocks=4, width=8, **options):
    torch.manual_seed(0)
    net = _nets.resnet(blocks, width, scalars=_baselines.METHODS[name].scalars, **options)
    _baselines.apply(name, net, X)
    return net, [m for m in net.modules() if isinstance(m, _nets.Residual)]


def test_fixup():
    """Zhang et al. 2019: L^(-1/(2m-2)) of He's deviation; last layer of a branch and head 0."""
    net, blocks = made("fixup", blocks=16, width=64)
    for block in blocks:
        first, last = _nets.weighted(block.branch)
        expected = math.sqrt(2 / (9 * 64)) / 4  # m = 2: 16^(-1/2)
        assert first.weight.std().item() == pytest.approx(expected, rel=0.03)
        assert not last.weight.any()
        assert block.scale == 1
    assert not net[-1].weight.any()


@pytest.mark.parametrize("name", ["rezero", "skipinit"])
def test_scale_zero(name):
    """Bachlechner et al. 2020, De and Smith 2020: a block is the identity, and has no bias."""
    net, blocks = made(name)
    x = torch.randn(2, 8, 8, 8)
    assert all(torch.equal(block(x), x) for block in blocks)
    assert all(block.branch[1].weight.any() for block in blocks)
    biases = [m.value for m in net.modules() if isinstance(m, _nets.Bias)]
    assert biases
    assert not any(bias.requires_grad or bias.item() for bias in biases)
    assert all(block.scale.requires_grad for block in blocks)


def test_zero_gamma():
    """Goyal et al. 2017: gamma of a branch's last norm is 0, all others 1."""
    net, blocks = made("zero_gamma", norm=True)
    gammas = [m.weight.mean().item() for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert gammas == [1.0, *[1.0, 0.0] * len(blocks)]


def test_zero_is_hadamard_where_outputs_are_more():
    """Zhao et al. 2022: c I* H I*; square matrices the identity."""
    square, wider = (_nets.mlp(sizes) for sizes in ((4, 4), (4, 8)))
    for net in (square, wider):
        _baselines.apply("zero", net, torch.ones(1, 4))
    assert torch.equal(square[0].weight, torch.eye(4))
    weight = wider[0].weight.detach()
    signs = [[(-1) ** (i & j).bit_count() for j in range(4)] for i in range(8)]
    assert torch.equal(weight.sign(), torch.tensor(signs).float())
    assert weight.abs().std() == pytest.approx(0, abs=1e-6)


def test_delta_orthogonal():
    """Xiao et al. 2018: an orthogonal centre tap (gain sqrt 2), 0 elsewhere."""
    _, blocks = made("delta_orthogonal")
    weight = blocks[0].branch[0].weight.detach()
    centre = weight[:, :, 1, 1]
    assert torch.allclose(centre @ centre.T, 2 * torch.eye(8), atol=1e-5)
    assert weight.count_nonzero() == centre.count_nonzero()


@pytest.mark.parametrize("name", ["dirac", "bartlett"])
def test_the_identity(name):
    _, blocks = made(name)
    x = torch.randn(2, 8, 8, 8)
    assert torch.equal(blocks[0].branch[0].bias, torch.zeros(8))
    assert torch.allclose(blocks[0].branch[0](x), x)


@pytest.mark.parametrize("name", ["orthogonal", "orthogonal_1"])
def test_orthogonal(name):
    net = _nets.mlp((6, 6))
    _baselines.apply(name, net, torch.ones(1, 6))
    gain = 2.0 if name == "orthogonal" else 1.0
    assert torch.allclose(net[0].weight @ net[0].weight.T, gain * torch.eye(6), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "deviation"),
    [
        ("xavier", math.sqrt(2 / (400 + 200))),
        ("kaiming", math.sqrt(2 / 400)),
        ("default", 1 / math.sqrt(3 * 400)),
    ],
)
def test_deviation(name, deviation):
    torch.manual_seed(0)
    net = _nets.mlp((400, 200))
    _baselines.apply(name, net, torch.ones(1, 400))
    assert net[0].weight.std().item() == pytest.approx(deviation, rel=0.02)
    bound = math.sqrt(3) * deviation
    assert (net[0].weight.abs().max() <= bound * 1.001).item() == (name != "kaiming")


def test_hardt_ma():
    """Hardt, Ma 2017: deviation 1/(k^2 c) in the branches."""
    _, blocks = made("hardt_ma", width=32)
    assert blocks[0].branch[0].weight.std().item() == pytest.approx(1 / (9 * 32), rel=0.05)


def test_a_net_without_what_a_method_needs_is_refused():
    with pytest.raises(ValueError, match="no Residual"):
        _baselines.apply("fixup", _nets.mlp((4, 4)), torch.ones(1, 4))
    with pytest.raises(ValueError, match="scalars=True"):
        _baselines.apply("rezero", _nets.resnet(1, 4), X)
    with pytest.raises(ValueError, match="batch normalisation"):
        _baselines.apply("zero_gamma", _nets.resnet(1, 4), X)
