"""When the result of an operation is zero: the drawing's word, and PyTorch's own arithmetic."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adapters.test_torch_tracing import Function
from adapters.vanishing import vanishing
from idinit_ref_torch import _table, _words, init_, trace

X = torch.linspace(0.3, 1.7, 48).reshape(2, 4, 6)
IMAGE = torch.linspace(0.3, 1.7, 2 * 4 * 6 * 6).reshape(2, 4, 6, 6)


def zeros_of(function, inputs, **parameters):
    """For every subset of inputs that is zero: whether the result is, and whether it should be."""
    model = Function(function, nn.Linear(3, 3), **parameters)
    names = [f"args.{k}" if len(inputs) > 1 else "args" for k in range(len(inputs))]
    graph = trace(model, tuple(inputs))
    assert {node.name for node in graph.nodes if node.kind == "input"} >= set(names), graph.nodes
    for chosen in range(1, 2 ** len(inputs)):
        at = [k for k in range(len(inputs)) if chosen >> k & 1]
        given = [x * 0 if k in at else x for k, x in enumerate(inputs)]
        with torch.no_grad():
            out = model(*given)
        said = graph.outputs[0] in vanishing(graph, [names[k] for k in at])
        yield len(at) == len(inputs), said, bool((out == 0).all())


ROWS = torch.tensor([0, 1, 1, 0])[:, None].expand(4, 6)
POWERS = torch.tensor([1.0, 2, 3, 1, 2, 3])


def over(whole, part):
    whole[1:] = part
    return whole


FUNCTIONS = """
abs asin asinh atan ceil cos cosh digamma erf erfc erfinv exp exp2 expm1 floor frac i0 lgamma log
log1p logit neg positive reciprocal round rsqrt sigmoid sign sin sinc sinh sqrt square tan tanh
trunc celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish relu relu6
selu silu softplus softshrink softsign tanhshrink
"""
UNARY = {name: getattr(torch, name, getattr(F, name, None)) for name in FUNCTIONS.split()}
ONE = {
    **UNARY,
    "x + 1": lambda x: x + 1,
    "x + 0": lambda x: x + 0,
    "1 - x": lambda x: 1 - x,
    "2 * x": lambda x: 2 * x,
    "x / 3": lambda x: x / 3,
    "3 / x": lambda x: 3 / (x + 1),
    "x ** 2": lambda x: x**2,
    "x ** 0.5": lambda x: x**0.5,
    "x ** -1": lambda x: (x + 1) ** -1,
    "2 ** x": lambda x: 2**x,
    "to powers above 0": lambda x: x**POWERS,
    "to powers, one of them 0": lambda x: x ** torch.tensor([0.0, 2, 3, 1, 2, 3]),
    "to the power of an arange": lambda x: x ** torch.arange(6),
    "vander": lambda x: torch.vander(x[0, 0]),
    "x * x": lambda x: x * x,
    "clamp": lambda x: x.clamp(-1, 1),
    "clamp above 0": lambda x: x.clamp(min=0.1),
    "hardtanh above 0": lambda x: F.hardtanh(x, 0.5, 1.0),
    "threshold": lambda x: F.threshold(x, 0.1, 0.0),
    "threshold to 5": lambda x: F.threshold(x, 0.1, 5.0),
    "softmax": lambda x: x.softmax(-1),
    "igamma": lambda x: torch.special.gammainc(torch.tensor(2.0), x),
    "igammac": lambda x: torch.special.gammaincc(torch.tensor(2.0), x),
    "histogram": lambda x: x.histc(4),
    "prelu": lambda x: F.prelu(x, torch.ones(4)),
    "log_softmax": lambda x: x.log_softmax(-1),
    "logsumexp": lambda x: x.logsumexp(-1),
    "layer norm": lambda x: F.layer_norm(x, (6,)),
    "rms norm": lambda x: F.rms_norm(x, (6,)),
    "norm by hand": lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "standardised": lambda x: (x - x.mean(-1, True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt(),
    "sum": lambda x: x.sum(-1),
    "mean": lambda x: x.mean((0, 2)),
    "prod": lambda x: x.prod(-1),
    "amax": lambda x: x.amax(-1),
    "max": lambda x: x.max(-1).values,
    "std": lambda x: x.std(-1),
    "cumsum": lambda x: x.cumsum(-1),
    "cumprod": lambda x: x.cumprod(-1),
    "sort": lambda x: x.sort(-1).values,
    "topk": lambda x: x.topk(2, -1).values,
    "fft": lambda x: torch.fft.fft(x).real,
    "pad": lambda x: F.pad(x, (1, 1)),
    "pad with 1": lambda x: F.pad(x, (1, 1), value=1.0),
    "circular pad": lambda x: F.pad(x, (1, 1), mode="circular"),
    "reflection pad": lambda x: F.pad(x, (1, 1), mode="reflect"),
    "roll": lambda x: x.roll(1, -1),
    "flip": lambda x: x.flip(0),
    "stack": lambda x: torch.stack([x, x], 1),
    "cat": lambda x: torch.cat([x, x.abs()], 1),
    "cat with ones": lambda x: torch.cat([x, torch.ones(2, 1, 6)], 1),
    "cat with zeros": lambda x: torch.cat([x, torch.zeros(2, 1, 6)], 1),
    "zeros added": lambda x: torch.zeros_like(x) + x,
    "accumulated": lambda x: torch.zeros(2, 6).index_add(0, torch.tensor([0, 1, 1, 0]), x[0]),
    "accumulated on ones": lambda x: torch.ones(2, 6).index_add(0, torch.arange(2), x[0, :2]),
    "written": lambda x: torch.zeros(3, 4, 6).index_put((torch.tensor([0, 2]),), x),
    "written over ones": lambda x: over(torch.ones(3, 4, 6), x),
    "written over zeros": lambda x: over(torch.zeros(3, 4, 6), x),
    "scattered": lambda x: x.scatter(1, torch.zeros(2, 1, 6, dtype=torch.long), 0.0),
    "scattered ones": lambda x: x.scatter(1, torch.zeros(2, 1, 6, dtype=torch.long), 1.0),
    "gather": lambda x: x.gather(1, torch.zeros(2, 1, 6, dtype=torch.long)),
    "index": lambda x: x[:, [0, 2]],
    "masked": lambda x: x.masked_fill(torch.eye(4, 6) > 0, 0.0),
    "masked by -inf": lambda x: x.masked_fill(torch.eye(4, 6) > 0, -1e9),
    "where": lambda x: torch.where(torch.eye(4, 6) > 0, x, torch.zeros(4, 6)),
    "where or 1": lambda x: torch.where(torch.eye(4, 6) > 0, x, 1.0),
    "tril": lambda x: x.tril(),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "maximum with 1": lambda x: torch.maximum(x, torch.ones(())),
    "swish by hand": lambda x: x * torch.sigmoid(x),
    "glu": lambda x: F.glu(x, -1),
    "written on a diagonal": lambda x: torch.diagonal_scatter(torch.zeros(4, 4), x[0, 0, :4]),
    "on a diagonal of ones": lambda x: torch.diagonal_scatter(torch.ones(4, 4), x[0, 0, :4]),
    "as strided": lambda x: torch.as_strided_scatter(torch.zeros(40), x[0], (4, 6), (6, 1)),
    "put": lambda x: torch.zeros(9).put(torch.arange(6), x[0, 0]),
    "put on ones": lambda x: torch.ones(9).put(torch.arange(6), x[0, 0]),
    "summed at": lambda x: torch.zeros(2, 6).scatter_reduce(0, ROWS, x[0], "sum"),
    "largest at": lambda x: torch.zeros(2, 6).scatter_reduce(0, ROWS, x[0], "amax"),
    "largest at, of ones": lambda x: torch.ones(2, 6).scatter_reduce(0, ROWS, x[0], "amax"),
    "blocks": lambda x: torch.block_diag(x[0], x[1]),
    "a block of ones": lambda x: torch.block_diag(x[0], torch.ones(2, 2)),
    "aminmax": lambda x: x.aminmax(dim=-1).max,
    "kthvalue": lambda x: x.kthvalue(2).values,
    "mode": lambda x: x.mode().values,
    "view_copy": lambda x: torch.permute_copy(torch.slice_copy(x, 1, 1), (1, 2, 0)),
    "renorm": lambda x: x.renorm(2, 1, 1.0),
    "pdist": lambda x: torch.pdist(x[0]),
    "pinv": torch.linalg.pinv,
    "det": lambda x: torch.linalg.det(x[:, :, :4]),
    "masked_select": lambda x: x[0].masked_select(torch.eye(4, 6) > 0),
    "unpool 1d": lambda x: F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), 2),
    "distance to ones": lambda x: torch.cdist(x, torch.ones(2, 4, 6)),
    "sampled at": lambda x: F.grid_sample(
        torch.ones(2, 1, 3, 3), x.unflatten(-1, (3, 2)) - 1, align_corners=True
    ),
    "complex": lambda x: torch.complex(torch.ones_like(x), x),
    "polar": lambda x: torch.polar(x, torch.ones_like(x)),
    "slopes": lambda x: F.prelu(torch.ones(2, 4, 6), x[0, :, 0]),
    "ones, clamped": lambda x: torch.ones(6).clamp(min=x),
    "solved": lambda x: torch.linalg.solve(torch.eye(4), x),
    "solved by": lambda x: torch.linalg.solve(x[:, :, :4] + torch.eye(4), torch.ones(2, 4, 1)),
    "triangles": lambda x: torch.linalg.solve_triangular(torch.eye(4), x, upper=True),
    "singular values": torch.linalg.svdvals,
    "singular vectors": lambda x: torch.linalg.svd(x)[0],
    "eigenvalues": lambda x: torch.linalg.eigvalsh(x[:, :, :4] @ x[:, :, :4].mT),
    "eigenvectors": lambda x: torch.linalg.eigh(x[:, :, :4] @ x[:, :, :4].mT)[1],
    "gradient of gelu": lambda x: torch.ops.aten.gelu_backward(torch.ones_like(x), x),
    "diff": lambda x: x.diff(),
    "unfold": lambda x: x.unfold(2, 2, 1),
    "repeat": lambda x: x.repeat(1, 2, 1),
}
PLANES = {
    "max pool": lambda x: F.max_pool2d(x, 2),
    "avg pool": lambda x: F.avg_pool2d(x, 2),
    "adaptive pool": lambda x: F.adaptive_avg_pool2d(x, 1),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "shuffle": lambda x: F.pixel_shuffle(x, 2),
    "channel shuffle": nn.ChannelShuffle(2),
    "unpool": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    "unpool 3d": lambda x: F.max_unpool3d(*F.max_pool3d(x, 2, return_indices=True), 2),
    "group norm": lambda x: F.group_norm(x, 2),
    "batch norm": lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4)),
    "instance norm": lambda x: F.instance_norm(x),
}
TWO = {
    "a + b": lambda a, b: a + b,
    "a - b": lambda a, b: a - b,
    "a * b": lambda a, b: a * b,
    "a / b": lambda a, b: a / (b + 1),
    "lerp": lambda a, b: torch.lerp(a, b, 0.3),
    "cross": lambda a, b: torch.linalg.cross(a[..., :3], b[..., :3]),
    "addcmul": lambda a, b: torch.addcmul(a, b, b),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "a ** b": lambda a, b: a**b,
    "atan2": lambda a, b: torch.atan2(a, b + 1),
    "hypot": torch.hypot,
    "where": lambda a, b: torch.where(torch.eye(4, 6) > 0, a, b),
    "a @ b": lambda a, b: a @ b.mT,
    "einsum": lambda a, b: torch.einsum("bti,bsi->bts", a, b),
    "outer": lambda a, b: a[..., None] * b[..., None, :],
    "gated": lambda a, b: a * torch.sigmoid(b),
    "cat": lambda a, b: torch.cat([a, b], 1),
    "index_add": lambda a, b: a.index_add(1, torch.arange(4), b),
    "masked": lambda a, b: a * (b > 1),
    "conv": lambda a, b: F.conv1d(a, b[:, :, :3], padding=1),
    "depthwise": lambda a, b: F.conv1d(a[:1], b[0, :, None, :3], groups=4),
    "cdist": torch.cdist,
    "grid": lambda a, b: F.grid_sample(a[:, None], b.unflatten(-1, (3, 2)), align_corners=True),
    "gradient of relu": lambda a, b: torch.ops.aten.threshold_backward(a, b, 0),
    "gradient of a max pool": lambda a, b: torch.ops.aten.max_pool2d_with_indices_backward(
        a[..., :3], b, (1, 2), (1, 2), (0, 0), (1, 1), False,
        F.max_pool2d(b, (1, 2), return_indices=True)[1]),
}  # fmt: skip
THREE = {
    "attention": F.scaled_dot_product_attention,
    "by hand": lambda q, k, v: torch.softmax(q @ k.mT, -1) @ v,
    "linear attention": lambda q, k, v: q @ (k.mT @ v),
    "addmm": lambda a, b, c: torch.baddbmm(a[:, :, :4], b, c.mT),
    "addbmm": lambda a, b, c: torch.addbmm(a[0, :, :4], b, c.mT),
    "addmv": lambda a, b, c: torch.addmv(a[0, :, 0], b[0], c[0, 0]),
    "addr": lambda a, b, c: torch.addr(a[0], b[0, :, 0], c[0, 0]),
}


@pytest.mark.parametrize("name", ONE)
def test_a_function_of_one_signal_vanishes_where_its_node_says(name):
    for _, said, found in zeros_of(lambda model, x: ONE[name](x), [X]):
        assert said == found


@pytest.mark.parametrize("name", PLANES)
def test_what_acts_on_planes_vanishes_where_its_node_says(name):
    for _, said, found in zeros_of(lambda model, x: PLANES[name](x), [IMAGE]):
        assert said == found


@pytest.mark.parametrize("name", [*TWO, *THREE])
def test_an_operation_on_signals_vanishes_where_its_node_says(name):
    """That is never said wrongly of some of them, and rightly of all at once."""
    function = {**TWO, **THREE}[name]
    inputs = [X, X.flip(0) + 0.1, X.flip(1) + 0.2][: 2 + (name in THREE)]
    for is_all, said, found in zeros_of(lambda model, *given: function(*given), inputs):
        assert found or not said
        if is_all:
            assert said == found


def pointwise():
    """Every function of one or two tensors that PyTorch calls pointwise."""
    for full in sorted(torch._C._dispatch_get_all_op_names()):
        space, _, name = full.partition("::")
        name, _, overload = name.partition(".")
        if space != "aten" or name.endswith(("_", "_backward")):
            continue
        function = getattr(getattr(torch.ops.aten, name), overload or "default")
        arguments = [a for a in function._schema.arguments if not a.has_default_value()]
        kinds = [str(a.type) for a in arguments]
        if kinds in (["Tensor"], ["Tensor"] * 2) and torch.Tag.pointwise in function.tags:
            yield function, len(kinds)


def test_every_pointwise_function_of_pytorch_vanishes_as_its_node_says():
    """Of those that give no number at 0, or only shapes, nothing is asked."""
    wrong, count = [], 0
    for function, many in pointwise():
        zeros, model = (
            [torch.zeros(2, 3)] * many,
            Function(lambda m, *x, f=function: f(*x), nn.Linear(1, 1)),
        )
        names = [f"args.{k}" for k in range(many)] if many > 1 else ["args"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                out = function(*zeros)
            except (NotImplementedError, RuntimeError):
                continue
            if (
                not isinstance(out, torch.Tensor)
                or not out.is_floating_point()
                or out.isnan().any()
            ):
                continue
            graph = trace(model, tuple(torch.zeros(2, 3) for _ in names))
        said = graph.outputs[0] in vanishing(graph, names)
        count += 1
        if said != bool((out == 0).all()):
            wrong.append(function)
    assert count > 100
    assert not wrong


HIGHER = {"flex_attention", "flex_attention_backward"}  # operators that take functions
BY_OTHERS = {"transformers::grouped_mm_fallback"}  # registered once they are imported


def test_every_name_is_an_operation_of_pytorch():
    known = {full.partition(".")[0] for full in torch._C._dispatch_get_all_op_names()}
    names = {*_table.MOVES, *_table.TABLE, *_words.WORDS, *_table.FRESH, *_table._SOURCES}
    assert HIGHER <= names - known <= HIGHER | BY_OTHERS


@torch.library.custom_op("idinit_tests::shifted", mutates_args=())
def shifted(x: torch.Tensor) -> torch.Tensor:
    return x + 1


def test_an_operation_that_no_table_knows_ends_no_branch_and_is_named():
    model = Function(lambda m, x: x + shifted(m.layers[0](x)), nn.Linear(6, 6))
    report = init_(model, X)
    assert report.roles["layers.0.weight"] == "transit"
    (note,) = report.warnings
    assert note.kind == "endless"
    assert note.text.endswith("it is not known what idinit_tests::shifted is at 0")


# Which axes hold the units ------------------------------------------------------------------------


def node(graph, does):
    (found,) = [node for node in graph.nodes if node.does == does]
    return found


HEADS = {
    "matmul": lambda q, k, v: (
        torch.softmax(
            q.unflatten(-1, (2, 3)).transpose(1, 2)
            @ k.unflatten(-1, (2, 3)).transpose(1, 2).mT, -1)
        @ v.unflatten(-1, (2, 3)).transpose(1, 2)),
    "einsum": lambda q, k, v: torch.einsum(
        "bhqk,bkhd->bqhd",
        torch.softmax(torch.einsum(
            "bqhd,bkhd->bhqk", q.unflatten(-1, (2, 3)), k.unflatten(-1, (2, 3))), -1),
        v.unflatten(-1, (2, 3))),
}  # fmt: skip


def attention(mix):
    def function(model, x):
        q, k, v = (layer(x) for layer in model.layers)
        return mix(q, k, v)

    return trace(Function(function, *(nn.Linear(6, 6) for _ in range(3))), X)


@pytest.mark.parametrize("how", HEADS)
def test_the_scores_sum_the_units_of_queries_and_keys(how):
    graph = attention(HEADS[how])
    scores, mixed = (node for node in graph.nodes if node.does == "contract")
    assert (scores.vanishes, set(scores.sums)) == ((), {0, 1})
    (values,) = mixed.vanishes
    assert "softmax" not in mixed.inputs[values]
    assert mixed.sums == ()


def test_fused_attention_vanishes_with_its_values_and_sums_queries_and_keys():
    def fused(q, k, v):
        heads = (x.unflatten(-1, (2, 3)).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(*heads)

    found = node(attention(fused), "attention")
    assert (found.vanishes, found.sums) == ((2,), (0, 1))


@pytest.mark.parametrize("order", ["keys first", "scores first", "multiply and sum"])
def test_a_product_whose_units_are_summed_later_does_not_vanish_by_them(order):
    def mix(q, k, v):
        if order == "keys first":
            return q @ (k.mT @ v)
        if order == "scores first":
            return (q @ k.mT) @ v
        state = k[..., :, None] * v[..., None, :]  # as a state space has it, by hand
        return (q[..., :, None] * state).sum(-2)

    graph = attention(mix)
    zero = vanishing(graph, {"layers.2"})
    assert graph.outputs[0] in zero
    for name in ("layers.0", "layers.1"):
        assert graph.outputs[0] not in vanishing(graph, {name})


# Shifts, and learned tensors that are data --------------------------------------------------------


@pytest.mark.parametrize(("before", "does"), [
    (lambda model, x: model.layers[0](x), "shift"),
    (lambda model, x: F.layer_norm(x, (6,)), "shift"),
    (lambda model, x: x * torch.rsqrt(x.square().mean(-1, True) + 1e-6) * model.w, "shift"),
    (lambda model, x: torch.relu(model.layers[0](x)), "never"),
    (lambda model, x: x, "never"),
], ids=["weight", "norm", "norm by hand", "function", "input"])  # fmt: skip
def test_a_parameter_that_is_added_shifts_what_is_a_result_or_a_norm(before, does):
    """Behind a weight it is its bias, and no node."""

    def function(model, x):
        return before(model, x) + model.b

    given = Function(function, nn.Linear(6, 6, bias=False), b=torch.ones(6), w=torch.ones(6))
    last = trace(given, X).nodes[-1]
    if last.kind == "weight":
        return
    assert last.does == "shift"
    assert last.vanishes == ("never" if does == "never" else "all")


def test_a_frozen_batch_norm_shifts_a_convolution():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1, bias=False)
            self.register_buffer("scale", torch.ones(4, 1, 1))
            self.register_buffer("bias", torch.ones(4, 1, 1))

        def forward(self, x):
            return x + (self.conv(x) * self.scale + self.bias)

    graph = trace(Net(), IMAGE)
    assert [node.does for node in graph.nodes[-4:]] == ["", "scale", "shift", ""]
    assert graph.nodes[-2].vanishes == "all"


class Latents(nn.Module):
    def __init__(self, keeps=True):
        super().__init__()
        self.latents, self.keeps = nn.Parameter(torch.randn(3, 8)), keeps
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        z = self.latents.expand(x.shape[0], -1, -1)
        a = torch.softmax(self.q(z) @ self.k(x).mT, -1) @ self.v(x)
        return z + self.o(a) if self.keeps else self.o(a)


def test_learned_latents_start_one_signal_on_both_ways():
    graph = trace(Latents(), torch.zeros(2, 5, 8))
    starts = [node.name for node in graph.nodes if node.kind == "input"]
    assert len(starts) == 2
    assert starts[1].endswith("latents: data")
    assert graph.nodes[-1].kind == "add"


@pytest.mark.parametrize("how", ["cat", "add", "where"])
def test_a_learned_token_starts_a_signal(how):
    def function(model, x):
        token = model.token.expand(2, -1, -1)
        if how == "cat":
            return torch.cat([token[:, :1], x], 1)
        return token + x if how == "add" else torch.where(x > 0, x, token)

    graph = trace(Function(function, nn.Linear(2, 2), token=torch.ones(1, 4, 6)), X)
    assert "token: data" in {node.name for node in graph.nodes if node.kind == "input"}
    assert graph.outputs[0] not in vanishing(graph, {"args"})


# Kernels that are computed ------------------------------------------------------------------------


def dynamic(how):
    """A table, mixed for every image by any numbers, makes the kernel of an operation."""

    def function(model, x):
        kernel = torch.tanh(model.layers[0](x.mean((2, 3)))) @ model.table
        if how == "product":
            return x + torch.einsum("bihw,boi->bohw", x, kernel.view(2, 4, 4))
        kernel = kernel.view(8, 4, 1, 1)
        return x + F.conv2d(x.reshape(1, 8, 6, 6), kernel, groups=2).view(x.shape)

    return trace(Function(function, nn.Linear(4, 5), table=torch.randn(5, 16)), IMAGE)


@pytest.mark.parametrize("how", ["product", "convolution"])
def test_a_table_that_makes_a_kernel_is_kept(how):
    graph = dynamic(how)
    (made,) = (node for node in graph.nodes if node.does == "contract")
    (maker,) = (node for node in graph.nodes if node.weights == ("table",))
    assert made.name not in vanishing(graph, {maker.name})
    assert graph.by_name["table"].note.startswith("it makes the kernel of")
    assert not graph.by_name["layers.0.weight"].note


@pytest.mark.parametrize("shared", [False, True])
def test_a_map_over_members_gives_their_common_input_the_shape_of_the_sum(shared):
    def function(model, x):
        def member(up, down, x):
            return x + torch.relu(x @ up) @ down

        return torch.vmap(member, (0, 0, None if shared else 0))(model.up, model.down, x)

    given = Function(function, up=torch.randn(3, 8, 16), down=torch.randn(3, 16, 8))
    graph = trace(given, torch.zeros(*(() if shared else (3,)), 2, 8))
    (add,) = (node for node in graph.nodes if node.kind == "add")
    assert [graph.by_name[name].shape for name in add.inputs] == [(3, 2, 8)] * 2
