"""What only PyTorch's tracer meets: joined parameters, writes in place, operators of others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from adapters.zoo_torch import CASES, image
from idinit_ref import errors
from idinit_ref_torch import audit, idi_layer_, init_, plans, trace


class Function(nn.Module):
    """A function of layers, parameters and an input."""

    def __init__(self, function, *layers, **parameters):
        super().__init__()
        self.layers, self.function = nn.ModuleList(layers), function
        for name, tensor in parameters.items():
            self.register_parameter(name, nn.Parameter(tensor))

    def forward(self, *args):
        return self.function(self, *args)


def reasons(report):
    return {entry.name: entry.why for entry in report.entries}


# Joined, and cut again --------------------------------------------------------------------------


def chunks(joined):
    return joined.chunk(2)


def slices(joined):
    return joined[:4], joined[4:]


def views(joined):
    return joined.view(2, 4, *joined.shape[1:]).unbind(0)


def padded(first, second):
    """The same by memory: both are written into what is empty."""
    joined = first.new_empty(8, *first.shape[1:])
    joined[:4], joined[4:] = first, second
    return joined


@pytest.mark.parametrize("join", [lambda a, b: torch.cat([a, b]), padded])
@pytest.mark.parametrize("cut", [chunks, slices, views])
def test_parameters_that_are_joined_and_cut_again_are_what_they_were(join, cut):
    def function(model, x):
        up, down = model.layers
        first, last = cut(join(up.weight, down.weight))
        a, b = cut(join(up.bias, down.bias))
        return x + F.linear(torch.relu(F.linear(x, first, a)), last, b)

    report = init_(Function(function, nn.Linear(4, 4), nn.Linear(4, 4)), torch.zeros(3, 4))
    assert report.roles == {
        "layers.0.weight": "transit",
        "layers.0.bias": "bias",
        "layers.1.weight": "zero",
        "layers.1.bias": "bias",
    }


# Padding ----------------------------------------------------------------------------------------


def wrapped(x):
    return torch.cat([x[..., -1:], x, x[..., :1]], -1)


def rolled(x):
    return F.pad(x, (0, 2)).roll(1, -1)


def written(x):
    out = x.new_zeros(*x.shape[:2], x.shape[2] + 2)
    out[..., 1:-1] = x
    return out


def past(x):
    return torch.cat([x.new_zeros(*x.shape[:2], 2), x], -1)


@pytest.mark.parametrize("pad", [wrapped, rolled, written, past, lambda x: F.pad(x, (2, 0))])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_convolution_passes_its_input_through_whatever_pads_it(pad, groups):
    layer = nn.Conv1d(4, 4, 3, groups=groups, bias=False)
    model, x = Function(lambda m, x: m.layers[0](pad(x)), layer), torch.randn(1, 4, 8)
    init_(model, x)
    assert torch.equal(model(x), x)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_padding_mode_gives_the_tap_of_the_layer(mode, axes):
    if (mode, axes) == ("reflect", 3):
        mode = "replicate"
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    layer = kind(4, 4, 3, padding=1, groups=4, padding_mode=mode, bias=False)
    model, x = nn.Sequential(layer), torch.randn(1, 4, *(6,) * axes)
    init_(model, x)
    whole = layer.weight.clone()
    assert torch.equal(model(x), x)
    idi_layer_(layer)
    assert torch.equal(layer.weight, whole)


# Turned ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [0, 1, 2, 3, -1])
def test_a_kernel_in_quarter_turns_passes_its_input_through(turns):
    """As in networks that are equivariant under turns; one that is odd exchanges the sizes."""

    def function(model, x):
        kernel = torch.rot90(model.w, turns, (2, 3))
        high, wide = kernel.shape[2:]
        return F.conv2d(F.pad(x, (wide - 1, 0, high - 1, 0)), kernel)  # the last tap sees x

    model, x = Function(function, w=torch.randn(6, 4, 3, 2)), torch.randn(1, 4, 5, 7)
    assert init_(model, x).roles == {"w": "transit"}
    assert torch.equal(model(x)[:, :4], x)


# Writes in place --------------------------------------------------------------------------------


def test_a_write_to_one_part_leaves_the_other_parts():
    def function(model, x):
        first, second = model.layers[0](x).chunk(2, -1)
        first.relu_()
        return x + model.layers[1](first * second)

    model = Function(function, nn.Linear(4, 12), nn.Linear(6, 4))
    nodes = trace(model, torch.zeros(2, 4)).by_name
    assert nodes["layers.0.weight"].options == {"layout": "OI", "blocks": (6, 6)}
    assert not any("write" in name for name in nodes)


def test_a_write_to_every_other_entry_leaves_the_others():
    def function(model, x):
        h = model.layers[0](x)
        even, odd = h[..., ::2], h[..., 1::2]
        even.relu_()
        return x + model.layers[1](odd)

    nodes = trace(Function(function, nn.Linear(4, 8), nn.Linear(4, 4)), torch.zeros(2, 4)).by_name
    assert not any("relu" in name or "write" in name for name in nodes["layers.1"].inputs)


def test_parts_that_are_scattered_back_are_the_whole():
    def function(model, x):
        h = model.layers[0](x)
        out = torch.zeros_like(h).slice_scatter(h[..., ::2], -1, step=2)
        out = out.slice_scatter(h[..., 1::2], -1, 1, 4, 2)
        out = out.select_scatter(h[:, -1], 1, -1)
        return x + out

    nodes = trace(Function(function, nn.Linear(4, 4)), torch.zeros(2, 4)).by_name
    assert nodes["add"].inputs[1] == "layers.0"


def test_a_view_of_what_was_written_is_what_was_written():
    def function(model, x):
        h = model.layers[0](x)
        seen = h.view(-1)
        h.mul_(0).add_(x)
        return seen.view_as(x) + model.layers[1](x)

    model = Function(function, nn.Linear(4, 4), nn.Linear(4, 4))
    report = init_(model, torch.ones(2, 4))
    assert report.roles["layers.1.weight"] == "zero"


# Operators of others ----------------------------------------------------------------------------


def operator(name, function):
    made = torch.library.custom_op(name, function, mutates_args=())
    made.register_fake(lambda x, w: function(x, w))
    return made


def times(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x @ w


def differ(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x * w.mean() - w


LINEAR, ADD = operator("idinit_case::linear", times), operator("idinit_case::add", differ)


def test_an_operator_of_another_namespace_is_not_taken_for_atens():
    model = Function(lambda m, x: x + LINEAR(x, m.w), w=torch.randn(4, 4))
    report = init_(model, torch.zeros(1, 4))
    assert report.roles == {"w": "keep"}
    assert reasons(report) == {"w": "it is not known what idinit_case::linear does with it"}
    model = Function(lambda m, x: ADD(x, m.layers[0](x)), nn.Linear(4, 4))
    assert init_(model, torch.zeros(1, 4)).roles["layers.0.weight"] == "transit"


def test_an_override_says_what_such_an_operator_does():
    model = Function(lambda m, x: x + LINEAR(x, m.w), w=torch.randn(4, 4))
    report = init_(model, torch.zeros(1, 4), overrides={"w": {"role": "transit", "layout": "IO"}})
    assert report.roles == {"w": "transit"}
    assert torch.equal(model.w, torch.eye(4))


# Sparse, nested and quantised tensors -----------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta")
@pytest.mark.parametrize("convert", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
@pytest.mark.parametrize("held", ["input", "buffer", "attribute", "made"])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_sparse_tensor_is_data(convert, held, in_place):
    def function(model, x, given):
        adjacent = convert(given.clone()) if held == "made" else given
        adjacent = getattr(model, "adjacent", adjacent)
        h = model.layers[0](adjacent @ x)
        if in_place:
            h = (h * 1).add_(h)
        return x + adjacent @ model.layers[1](torch.relu(h))

    model, adjacent = Function(function, nn.Linear(4, 8), nn.Linear(8, 4)), torch.eye(10)
    if held == "buffer":
        model.register_buffer("adjacent", convert(adjacent))
    if held == "attribute":
        model.adjacent = convert(adjacent)
    given = convert(adjacent) if held == "input" else adjacent
    report = init_(model, (torch.ones(10, 4), given))
    assert report.roles == {
        "layers.0.weight": "transit",
        "layers.0.bias": "bias",
        "layers.1.weight": "zero",
        "layers.1.bias": "bias",
    }


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta")
@pytest.mark.parametrize("sparse", ["mm", "addmm"])
def test_a_sparse_product_is_one(sparse):
    """The usual graph convolution, whose bias follows the aggregation."""

    def function(model, x):
        near, h = torch.eye(6).to_sparse(), x @ model.layers[0].weight.T
        by = {
            "mm": lambda: torch.sparse.mm(near, h) + model.layers[0].bias,
            "addmm": lambda: torch.sparse.addmm(model.layers[0].bias.expand(6, -1), near, h),
        }
        return x + torch.tanh(by[sparse]())

    report = init_(Function(function, nn.Linear(4, 4)), torch.ones(6, 4))
    assert report.roles == {"layers.0.weight": "zero", "layers.0.bias": "bias"}
    assert not report.warnings


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_input_is_blamed_and_a_way_round_told():
    ragged = torch.nested.nested_tensor([torch.zeros(3, 8), torch.zeros(4, 8)])
    with pytest.raises(errors.GraphError, match=r"input 'input' .*to_padded_tensor\(0.0\)"):
        trace(nn.Sequential(nn.Linear(8, 8)), ragged)


class Float8Linear(nn.Linear):
    """Rounds its weight as torchao's does, under a scale that it computes from the weight."""

    __module__ = "torchao.float8.float8_linear"

    def forward(self, x):
        scale = 448 / self.weight.abs().max()
        rounded = (self.weight * scale).to(torch.float8_e4m3fn)
        return F.linear(x, rounded.to(x.dtype) / scale, self.bias)


def test_a_layer_that_trains_in_float8_is_the_layer_that_it_is():
    def function(model, x):
        return x + model.layers[1](torch.relu(model.layers[0](x)))

    model = Function(function, Float8Linear(4, 8), Float8Linear(8, 4))
    kept = dict(vars(model.layers[0]))
    assert init_(model, torch.zeros(1, 4)).roles == {
        "layers.0.weight": "transit",
        "layers.0.bias": "bias",
        "layers.1.weight": "zero",
        "layers.1.bias": "bias",
    }
    assert vars(model.layers[0]) == kept


# Attention that takes functions -----------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*flex_attention")
@pytest.mark.parametrize("kind", ["plain", "masked", "biased"])
def test_flex_attention_is_one_operation(kind):
    def function(model, x):
        q, options = model.layers[0](x)[:, None], {}
        if kind == "masked":
            options["block_mask"] = create_block_mask(
                lambda b, h, i, j: i >= j, None, None, 16, 16, device="cpu"
            )
        if kind == "biased":
            options["score_mod"] = lambda score, b, h, i, j: score + model.bias[i, j]
        return x + model.layers[1](flex_attention(q, q, q, **options)[:, 0])

    layers = [nn.Linear(8, 8), nn.Linear(8, 8)]
    model = Function(function, *layers, bias=torch.zeros(16, 16))
    graph = trace(model, torch.zeros(1, 16, 8))
    assert sum("flex_attention" in node.name for node in graph.nodes) == 1
    roles = init_(model, torch.zeros(1, 16, 8)).roles
    assert (roles["layers.0.weight"], roles["layers.1.weight"]) == ("transit", "zero")
    assert roles["bias"] == "keep"


# Axes that count as one -------------------------------------------------------------------------


def test_heads_of_a_weight_are_parts_of_one_matrix():
    """The values that all heads compute together are the input, of which `out` makes almost 0."""
    model = CASES["heads"].make()
    report = init_(model, image(2, 3, 8))
    x = torch.randn(5, 8)
    assert torch.equal(torch.einsum("tn,hnd->thd", x, model.into).flatten(1), x)
    assert float(model.out.detach().abs().max()) == pytest.approx(1e-6)
    shapes = {entry.name: entry.shape for entry in report.entries}
    assert shapes == {"into": (2, 8, 4), "out": (2, 4, 8)}


def test_a_result_that_is_spread_over_another_is_added_to_it():
    """The relative positions of SAM's attention: one axis of 1 beside one of 2."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.score, self.row = nn.Linear(4, 12), nn.Linear(4, 6)

        def forward(self, x):
            score = self.score(x).reshape(-1, 3, 2, 2) + self.row(x).reshape(-1, 3, 2, 1)
            return score.reshape(-1, 3, 4).relu()

    report = init_(Net(), torch.zeros(5, 4))
    assert report.roles == {
        "score.weight": "transit",
        "score.bias": "bias",
        "row.weight": "transit",
        "row.bias": "bias",
    }


@pytest.mark.parametrize("returned", [True, False])
def test_what_a_model_returns_besides_its_logits_learns(returned):
    """RT-DETR: an auxiliary loss takes the boxes of each layer, which the next one detaches."""

    class ModelOutput(dict):
        """As transformers has it, of which the logits count."""

    def function(model, x):
        boxes = x + model.layers[0](x)
        out = {"logits": model.layers[1](boxes.detach())}
        return ModelOutput(out | ({"boxes": boxes} if returned else {}))

    roles = init_(Function(function, nn.Linear(4, 4), nn.Linear(4, 3)), image(2, 4)).roles
    assert roles["layers.0.weight"] == ("zero" if returned else "keep")


class Momentum(nn.Module):
    """Two encoders; the second follows the first, and a pointer is read as a number."""

    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False)
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))

    def forward(self, x):
        for own, other in zip(self.key.parameters(), self.query.parameters(), strict=True):
            own.data = own.data * 0.9 + other.data * 0.1
        self.pointer[0] = (int(self.pointer) + 2) % 12
        return self.query(x), self.key(x)


@pytest.mark.every
@pytest.mark.parametrize("call", [trace, plans, init_, audit])
def test_a_parameter_whose_memory_the_pass_sets_anew_is_as_before(call):
    """The number needs a pass on real values; there, MoCo's momentum update stayed in the model."""
    model = Momentum()
    memory = [p.data_ptr() for p in model.parameters()]
    before = [p.clone() for p in (*model.key.parameters(), model.pointer)]
    call(model, torch.ones(2, 4))
    after = (*model.key.parameters(), model.pointer)
    assert all(map(torch.equal, before, after))
    assert [p.data_ptr() for p in model.parameters()] == memory


@pytest.mark.parametrize("how", ["numpy", "array", "tolist", "item", "a branch"])
def test_numbers_that_leave_the_tensors_are_told(how):
    """No gradient comes back, as behind `detach`. What else reads the signal still learns."""
    ways = {
        "numpy": lambda h: torch.from_numpy(np.tanh(h.detach().numpy())),
        "array": lambda h: torch.as_tensor(np.asarray(h.detach())),
        "tolist": lambda h: torch.tensor(h.tolist()),
        "item": lambda h: torch.ones(2, 4) * h.mean().item(),
        "a branch": lambda h: h if h.mean() > 0 else -h,
    }

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.after = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.after(ways[how](self.before(x)))

    model, x = Model(), torch.randn(2, 4)
    model(x).sum().backward()
    note = trace(model, x).by_name["before.weight"].note
    by = {"array": "numpy", "a branch": ""}.get(how, how)
    assert (model.before.weight.grad is None) == bool(by) == bool(note)
    assert f"torch.Tensor.{by}" in note or not by
