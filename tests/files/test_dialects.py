"""Dialects: real PyTorch layers, loaded by Flax's and Keras's own loaders, compute the same."""

from __future__ import annotations

import ast
import json
import re

import h5py
import jax
import keras
import numpy as np
import pytest
import safetensors.torch
import torch
from flax import linen, nnx, traverse_util
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.flax import load_file

import idinit_ref as ir
from idinit_ref import Plan
from idinit_ref.commands.cli import main
from idinit_ref.errors import IDInitError, LayoutError, OptionError, OptionTypeError, ShapeError
from idinit_ref.files import sources
from idinit_ref.files.assembly import assemble
from idinit_ref.files.dialects import DIALECTS, Dialect, load
from idinit_ref.files.reading import open_checkpoint
from idinit_ref.files.renaming import Change, Items, entry_of
from idinit_ref.files.storage import ArrayTensor, PlanTensor, blocks, stream
from idinit_ref.files.translating import translate
from idinit_ref.files.views import Derived, added, rearrange, stacked, take

nn, L = torch.nn, keras.layers
FLAX, KERAS = DIALECTS["flax"], DIALECTS["keras"]


# Saving and the frameworks' own loaders -----------------------------------------------------------


def load_flax(model, path):
    """Load a file of NNX paths: every variable, and nothing else."""
    flat = load_file(path)
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    assert {".".join(map(str, key)) for key in dict(nnx.to_flat_state(state))} == flat.keys()
    tree = nnx.restore_int_paths(traverse_util.unflatten_dict(flat, sep="."))
    nnx.replace_by_pure_dict(state, tree)
    nnx.update(model, state)


class Keras(keras.Model):
    """A model with one attribute, as the PyTorch one has."""

    def __init__(self, layer):
        super().__init__()
        self.it = layer

    def call(self, x, y=None, **options):
        return self.it(x, **options) if y is None else self.it(x, y, **options)


class Torch(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.it = layer


class Flax(nnx.Module):
    def __init__(self, layer):
        self.it = layer


def arrays(model, seed=0):
    """Random state for a PyTorch model, and its arrays."""
    random = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.dtype.is_floating_point:
            value.copy_(torch.randn(value.shape, generator=random) * 0.4)
        if name.endswith("running_var"):
            value.abs_().add_(0.5)
    return {name: value.numpy() for name, value in model.state_dict().items()}


def array(value):
    """The whole of a translated tensor, read in the blocks in which it is written."""
    tensor = PlanTensor(value) if isinstance(value, ir.Plan) else value
    dtype = tensor.dtype or "float32"
    parts = list(stream(tensor, dtype))
    return np.concatenate(parts).reshape(tensor.shape) if parts else np.zeros(tensor.shape, dtype)


def in_flax(model, state, tmp_path, rules=()):
    made = translate(state, FLAX.extended(rules))
    ir.save(tmp_path / "m.safetensors", made)
    load_flax(model, tmp_path / "m.safetensors")
    return model.it


def in_keras(layer, state, tmp_path, rules, *inputs, **options):
    model = Keras(layer)
    model(*inputs, **options)
    ir.save(tmp_path / "m.weights.h5", translate(state, KERAS.extended(rules)))
    model.load_weights(tmp_path / "m.weights.h5")
    return np.asarray(model(*inputs, **options))


def close(got, wanted):
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


def batch(*shape, seed=7):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def last(x):
    """Channels first to channels last."""
    return np.moveaxis(np.asarray(x), 1, -1)


def run(layer, *inputs):
    with torch.no_grad():
        return layer(*map(torch.from_numpy, inputs))


# Layers -------------------------------------------------------------------------------------------

RNGS = nnx.Rngs(0)
DW = {"pattern": "it[.]weight", "axes": "(CM)1HW->HWCM", "sizes": {"M": 2}}
UP = {"pattern": "weight", "axes": "IOHW"}
# One line for a whole model: where its bias does not tell, a convolution may be a transposed one.
CONV = [{"pattern": "", "axes": "OIHW"}]
CONV_1D = [{"pattern": "", "axes": "OIW"}]
CONVS = {
    "1d": (
        lambda: nn.Conv1d(4, 6, 3, stride=2),
        lambda: nnx.Conv(4, 6, (3,), strides=2, padding="VALID", rngs=RNGS),
        lambda: L.Conv1D(6, 3, strides=2),
        (2, 4, 11),
        CONV_1D,
        CONV_1D,
    ),
    "2d, same, dilation": (
        lambda: nn.Conv2d(4, 6, (3, 5), padding="same", dilation=2),
        lambda: nnx.Conv(4, 6, (3, 5), kernel_dilation=2, rngs=RNGS),
        lambda: L.Conv2D(6, (3, 5), padding="same", dilation_rate=2),
        (2, 4, 9, 12),
    ),
    "2d, stride, no bias": (
        lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), bias=False),
        lambda: nnx.Conv(4, 6, (3, 2), strides=(2, 1), padding="VALID", use_bias=False, rngs=RNGS),
        lambda: L.Conv2D(6, (3, 2), strides=(2, 1), use_bias=False),
        (2, 4, 9, 8),
        CONV,
        CONV,
    ),
    "2d, groups": (
        lambda: nn.Conv2d(4, 6, (3, 2), groups=2),
        lambda: nnx.Conv(4, 6, (3, 2), feature_group_count=2, padding="VALID", rngs=RNGS),
        lambda: L.Conv2D(6, (3, 2), groups=2),
        (2, 4, 9, 8),
        CONV,
        CONV,
    ),
    "3d": (
        lambda: nn.Conv3d(3, 5, (2, 3, 1)),
        lambda: nnx.Conv(3, 5, (2, 3, 1), padding="VALID", rngs=RNGS),
        lambda: L.Conv3D(5, (2, 3, 1)),
        (2, 3, 4, 5, 6),
    ),
    "depthwise": (
        lambda: nn.Conv2d(4, 8, (3, 2), groups=4),
        lambda: nnx.Conv(4, 8, (3, 2), feature_group_count=4, padding="VALID", rngs=RNGS),
        lambda: L.DepthwiseConv2D((3, 2), depth_multiplier=2),
        (2, 4, 9, 8),
        CONV,
        [DW],
    ),
    "transposed": (
        lambda: nn.ConvTranspose2d(5, 3, (4, 3), stride=(3, 2)),
        lambda: nnx.ConvTranspose(5, 3, (4, 3), strides=(3, 2), padding="VALID", rngs=RNGS),
        lambda: L.Conv2DTranspose(3, (4, 3), strides=(3, 2)),
        (2, 5, 4, 6),
        [UP],
        [UP],
    ),
    "transposed, transpose_kernel": (
        lambda: nn.ConvTranspose2d(5, 3, (4, 3), stride=(3, 2)),
        lambda: nnx.ConvTranspose(
            5, 3, (4, 3), strides=(3, 2), padding="VALID", transpose_kernel=True, rngs=RNGS
        ),
        lambda: L.Conv2DTranspose(3, (4, 3), strides=(3, 2)),
        (2, 5, 4, 6),
        [UP | {"axes": "IOHW->HWOI"}],
        [UP | {"axes": "IOHW->HWOI"}],
    ),
}


@pytest.mark.cases(1)
@pytest.mark.parametrize("case", CONVS)
def test_convolutions(case, tmp_path):
    make, flax, tf, shape, *rules = CONVS[case]
    flax_rules, keras_rules = rules or ([], [])
    model, x = Torch(make()), batch(*shape)
    state = arrays(model)
    wanted = last(run(model.it, x))
    close(in_flax(Flax(flax()), state, tmp_path, flax_rules)(last(x)), wanted)
    close(in_keras(tf(), state, tmp_path, keras_rules, last(x)), wanted)


@pytest.mark.parametrize(
    ("inputs", "bias", "rules"),
    [(4, True, []), (6, True, []), (4, False, [Change("", axes="OI")])],
)
def test_dense(inputs, bias, rules, tmp_path):
    model, x = Torch(nn.Linear(inputs, 6, bias=bias)), batch(3, inputs)
    state = arrays(model)
    wanted = run(model.it, x)
    flax = Flax(nnx.Linear(inputs, 6, use_bias=bias, rngs=RNGS))
    close(in_flax(flax, state, tmp_path, rules)(x), wanted)
    close(in_keras(L.Dense(6, use_bias=bias), state, tmp_path, rules, x), wanted)


@pytest.mark.parametrize("name", ["time_embed", "net.emb", "shared"])
def test_a_dense_plan_whose_name_looks_like_a_table(name, tmp_path):
    """Its letters say that it is none."""
    plan, x = ir.plan((6, 4), loosen=0.3), batch(3, 4)
    wanted = x @ plan.build(dtype="float32").T
    rule = Change(f"^{name}", "it")
    assert list(translate({f"{name}.weight": plan}, "flax")) == [f"{name}.kernel"]
    state = {f"{name}.weight": plan}
    flax = Flax(nnx.Linear(4, 6, use_bias=False, rngs=RNGS))
    close(in_flax(flax, state, tmp_path, [rule])(x), wanted)
    close(in_keras(L.Dense(6, use_bias=False), state, tmp_path, [rule], x), wanted)


def test_embedding_and_its_exceptions(tmp_path):
    model, x = Torch(nn.Embedding(7, 5)), np.array([[0, 6], [3, 1]])
    state = arrays(model)
    rule = Change("it", layer="Embedding")
    close(in_flax(Flax(nnx.Embed(7, 5, rngs=RNGS)), state, tmp_path, [rule])(x), run(model.it, x))
    close(in_keras(L.Embedding(7, 5), state, tmp_path, [rule], x), run(model.it, x))
    # By a name that idinit_ref.roles.names know, unless a bias shows that it is dense, or a rule
    # says so.
    table = np.zeros((7, 5))
    assert list(translate({"m.wte.weight": table}, "flax")) == ["m.wte.embedding"]
    assert translate({"wte.weight": ir.plan((7, 5), layout="IO")}, "keras")["wte/vars/0"].shape == (
        7,
        5,
    )
    dense = translate({"emb.weight": table, "emb.bias": np.zeros(7)}, "flax")
    assert {name: value.shape for name, value in dense.items()} == {
        "emb.kernel": (5, 7),
        "emb.bias": (7,),
    }
    ruled = translate({"emb.weight": table}, FLAX.extended([Change("emb", axes="OI")]))
    assert ruled["emb.kernel"].shape == (5, 7)


@pytest.mark.parametrize("name", ["tok", "token_embedder", "embed.0", "tok_embeddings", "shared"])
def test_a_matrix_without_a_bias_may_be_an_embedding(name, tmp_path):
    model, x = Torch(nn.Embedding(7, 5)), np.array([[0, 6], [3, 1]])
    state = {f"{name}.weight": arrays(model)["it.weight"]}
    with pytest.raises(OptionError, match="may be dense or an embedding") as raised:
        translate(state, "flax")
    dense, table = map(ast.literal_eval, re.findall("{.*?}", str(raised.value)))
    assert translate(state, FLAX.extended([dense]))[f"{name}.kernel"].shape == (5, 7)
    rename = Change(f"^{name}", "it")
    flax = Flax(nnx.Embed(7, 5, rngs=RNGS))
    close(in_flax(flax, state, tmp_path, [table, rename])(x), run(model.it, x))
    # A traced report knows.
    made = translate(state, FLAX, tables=[f"{name}.weight"])
    assert np.array_equal(array(made[f"{name}.embedding"]), state[f"{name}.weight"])
    tied = {f"{name}.weight": ir.plan((7, 5))}  # a head's axes, but Flax holds it as a table
    assert translate(tied, FLAX, tables=tied)[f"{name}.embedding"] is tied[f"{name}.weight"]
    with pytest.raises(LayoutError, match=r"embedding table .* has axes IO"):
        translate(state, FLAX.extended([Change("", axes="OI")]), tables=state)
    both = FLAX.extended([Change("", axes="OI"), Change(name, layer="Embedding")])
    assert list(translate(state, both, tables=state)) == [f"{name}.embedding"]


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (lambda: nn.ConvTranspose2d(4, 4, 3), "transposed one"),
        (lambda: nn.ConvTranspose2d(5, 3, 3, bias=False), "transposed one"),
        (lambda: nn.ConvTranspose2d(4, 4, 3, groups=2), "transposed one"),
        (lambda: nn.ConvTranspose1d(8, 8, 3, groups=8), "transposed one"),
        (lambda: nn.ConvTranspose2d(5, 3, 3), "a bias of 5"),
        (lambda: nn.ConvTranspose3d(3, 5, 3), "a bias of 3"),
        (lambda: nn.Conv2d(4, 6, 3, bias=False), "transposed one"),
        (lambda: nn.Bilinear(5, 3, 4), "stack of matrices"),
        (lambda: nn.Bilinear(5, 3, 4, bias=False), "stack of matrices"),
        (lambda: nn.Linear(4, 6, bias=False), "dense or an embedding"),
        (lambda: nn.Embedding(6, 4), "dense or an embedding"),
    ],
)
@pytest.mark.parametrize("dialect", ["flax", "keras"])
def test_layers_that_cannot_be_told_are_an_error(layer, words, dialect):
    state = arrays(Torch(layer()))
    with pytest.raises(IDInitError, match=words) as raised:
        translate(state, dialect)
    rule = ast.literal_eval(re.search("{.*?}", str(raised.value))[0])
    assert len(rule["axes"]) == state["it.weight"].ndim
    assert len(translate(state, load(dialect).extended([rule]))) == len(state)


def test_a_transposed_convolution_of_groups_is_an_error():
    state = arrays(Torch(nn.ConvTranspose2d(8, 4, 3, groups=2)))
    with pytest.raises(LayoutError, match="a bias of 8"):
        translate(state, "flax")
    with pytest.raises(OptionError, match=r"groups = 2, but it\.weight should have one group"):
        translate(state, FLAX.extended([UP]))


@pytest.mark.nightly
def test_transposed_convolutions_by_the_cure(tmp_path):
    model, x = Torch(nn.ConvTranspose2d(4, 4, 3)), batch(2, 4, 5, 6)
    state, wanted = arrays(model), last(run(model.it, x))
    with pytest.raises(OptionError, match="'IOHW' is a transposed one") as raised:
        translate(state, "flax")
    rule = ast.literal_eval(re.search("{.*?}", str(raised.value))[0]) | {"axes": "IOHW"}
    flax = Flax(nnx.ConvTranspose(4, 4, (3, 3), padding="VALID", rngs=RNGS))
    close(in_flax(flax, state, tmp_path, [rule])(last(x)), wanted)
    close(in_keras(L.Conv2DTranspose(4, 3), state, tmp_path, [rule], last(x)), wanted)


# What is known of them elsewhere ------------------------------------------------------------------


def test_a_file_says_what_its_axes_are(tmp_path):
    """Arrays of a file that this package wrote are translated as the plans were."""
    plans = {
        "up.weight": ir.plan((4, 4, 3, 2), layout="IOHW", transposed=True, loosen=0.1),
        "out.weight": ir.plan((5, 5), "zero"),
        "mine.weight": ir.plan((5, 5), layout="IO", loosen=0.1),
        "tok_embed.weight": ir.plan((7, 5), layout="IO"),
        "experts.weight": ir.plan((2, 6, 4), layout="EOI"),
    }
    ir.save(tmp_path / "a.safetensors", plans)
    opened = open_checkpoint(tmp_path / "a.safetensors")
    for dialect in ("flax", "keras"):
        with pytest.raises(OptionError, match="may be"):
            translate(opened.tensors, dialect)
        made = translate(opened.tensors, dialect, metadata=opened.metadata)
        wanted = translate(plans, dialect)
        assert made.keys() == wanted.keys()
        assert all(np.array_equal(array(made[name]), array(wanted[name])) for name in made)
    grouped = ir.plan((4, 2, 3, 3), layout="IOHW", groups=2, transposed=True)
    ir.save(tmp_path / "b.safetensors", {"up.weight": grouped})
    opened = open_checkpoint(tmp_path / "b.safetensors")
    with pytest.raises(OptionError, match="one group"):
        translate(opened.tensors, "flax", metadata=opened.metadata)


@pytest.mark.parametrize(
    "claims",
    ["", "[]", "[" * 10**5, "3", '{"a.weight": 3}', '{"a.weight": {"layout": "EOI"}}',
     '{"a.weight": {"shape": [6, 4]}}', '{"a.weight": {"layout": ["I", "O"]}}',
     '{"a.weight": {"odd": 1}}', '{"a.weight": {"axes": 1}}', '{"b.weight": {"layout": "IO"}}'],
)  # fmt: skip
def test_what_is_no_claim_says_nothing(claims):
    given = {"a.weight": np.zeros((6, 4))}
    with pytest.raises(OptionError, match="may be"):
        translate(given, "flax", metadata={"idinit_ref.plans": claims})


def test_the_command_line_takes_what_is_known(tmp_path, monkeypatch, capsys):
    """From a traced report the tables, from the metadata of a file the axes."""
    import idinit_ref_torch as irt

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.tok, self.embed = nn.Embedding(7, 5), nn.ModuleList([nn.Embedding(3, 5)])
            self.up = nn.ConvTranspose1d(5, 5, 2)
            self.head = nn.Linear(5, 6, bias=False)

        def forward(self, x):
            return self.head(self.up((self.tok(x) + self.embed[0](x % 3)).mT).mT)

    monkeypatch.chdir(tmp_path)
    net = Net()
    report = irt.init_(net, torch.zeros((1, 4), dtype=torch.int64))
    manifest = report.to_dict()
    manifest["tensors"]["up.weight"] = {"shape": [5, 5, 2], "role": "keep"}
    (tmp_path / "net.json").write_text(json.dumps(manifest))
    up = ir.plan((5, 5, 2), layout="IOW", transposed=True, loosen=0.3)
    state = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    ir.save(tmp_path / "net.safetensors", state | {"up.weight": up})
    line = "export --manifest net.json --keep-from net.safetensors --dialect flax --out new.npz"
    assert main(line.split()) == 0, capsys.readouterr().err
    with np.load(tmp_path / "new.npz") as held:
        assert np.array_equal(held["tok.embedding"], state["tok.weight"])
        assert np.array_equal(held["embed.0.embedding"], state["embed.0.weight"])
        wanted = up.build(dtype="float32").transpose(2, 0, 1)[::-1]
        assert np.array_equal(held["up.kernel"], wanted)
        assert held["head.kernel"].shape == (5, 6)
    # Without what the report and the metadata say, the rules do; diff reads the metadata.
    rules = [{"pattern": "tok|embed", "layer": "Embedding"}, {"pattern": "head", "axes": "OI"}]
    (tmp_path / "d.json").write_text(json.dumps({"base": "flax", "rules": rules}))
    assert main(["diff", "net.safetensors", "new.npz", "--dialect", "flax"]) == 2
    assert "dense or an embedding" in capsys.readouterr().err
    ir.save(tmp_path / "part.npz", {"up.kernel": wanted, "up.bias": state["up.bias"]})
    ir.save(tmp_path / "up.safetensors", {"up.weight": up, "up.bias": state["up.bias"]})
    assert main(["diff", "up.safetensors", "part.npz", "--dialect", "flax"]) == 0
    assert main(["diff", "net.safetensors", "new.npz", "--dialect", "d.json"]) in (0, 1)
    out, err = capsys.readouterr()
    assert err == ""
    assert "only in" not in out


NORMS = {
    "layer": (
        lambda: nn.LayerNorm(5),
        lambda: nnx.LayerNorm(5, epsilon=1e-5, use_fast_variance=False, rngs=RNGS),
        lambda: L.LayerNormalization(epsilon=1e-5),
    ),
    "rms": (
        lambda: nn.RMSNorm(5, eps=1e-6),
        lambda: nnx.RMSNorm(5, epsilon=1e-6, rngs=RNGS),
        lambda: L.RMSNormalization(epsilon=1e-6),
    ),
    "batch": (
        lambda: nn.BatchNorm1d(5).eval(),
        lambda: nnx.BatchNorm(5, epsilon=1e-5, use_running_average=True, rngs=RNGS),
        lambda: L.BatchNormalization(epsilon=1e-5),
    ),
    "batch, not affine": (
        lambda: nn.BatchNorm1d(5, affine=False).eval(),
        lambda: nnx.BatchNorm(
            5, epsilon=1e-5, use_running_average=True, use_scale=False, use_bias=False, rngs=RNGS
        ),
        lambda: L.BatchNormalization(epsilon=1e-5, center=False, scale=False),
    ),
    "group": (
        lambda: nn.GroupNorm(2, 6),
        lambda: nnx.GroupNorm(6, 2, epsilon=1e-5, use_fast_variance=False, rngs=RNGS),
        lambda: L.GroupNormalization(2, epsilon=1e-5),
    ),
}


@pytest.mark.parametrize("case", NORMS)
def test_normalisation(case, tmp_path):
    make, flax, tf = NORMS[case]
    model, x = Torch(make()), batch(4, 6 if case == "group" else 5)
    state = arrays(model)
    wanted = run(model.it, x)
    close(in_flax(Flax(flax()), state, tmp_path)(x), wanted)
    close(in_keras(tf(), state, tmp_path, [], x), wanted)


GATED = {
    "lstm": (nn.LSTM, nnx.OptimizedLSTMCell, L.LSTM, []),
    "lstm, a layer a gate": (nn.LSTM, nnx.LSTMCell, L.LSTM, [Change("it", layer="LSTMCell")]),
    "gru": (nn.GRU, nnx.GRUCell, L.GRU, []),
    "rnn": (nn.RNN, nnx.SimpleCell, L.SimpleRNN, []),
}


@pytest.mark.parametrize("case", GATED)
@pytest.mark.cases(1)
def test_recurrent_layers(case, tmp_path):
    make, cell, tf, rules = GATED[case]
    model, x = Torch(make(4, 5, batch_first=True)), batch(2, 7, 4)
    state = arrays(model)
    wanted = run(model.it, x)[0]
    close(in_keras(tf(5, return_sequences=True), state, tmp_path, [], x), wanted)
    if case == "gru":
        with pytest.raises(OptionError, match=r"last third of it\.bias_hh_l0"):
            translate(state, "flax")
        state["it.bias_hh_l0"][10:] = 0  # shares the model's memory
        wanted = run(model.it, x)[0]
    rnn = nnx.RNN(cell(4, 5, rngs=RNGS), rngs=RNGS)
    close(in_flax(Flax(rnn), state, tmp_path, rules)(x), wanted)


@pytest.mark.nightly
def test_cells_and_layers_of_their_own(tmp_path):
    cell, x = Torch(nn.LSTMCell(4, 5)), batch(2, 4)
    state = arrays(cell)
    h, c = run(cell.it, x)
    flax = in_flax(Flax(nnx.OptimizedLSTMCell(4, 5, rngs=RNGS)), state, tmp_path)
    zero = np.zeros((2, 5), "float32")
    (new_c, new_h), _ = flax((zero, zero), x)
    close(new_h, h)
    close(new_c, c)
    rule = Change("^it", "it.cell")
    close(in_keras(L.RNN(L.LSTMCell(5)), state, tmp_path, [rule], x[:, None]), h)

    class Both(keras.Model):
        def __init__(self):
            super().__init__()
            self.forth = L.LSTM(5, return_sequences=True)
            self.back = L.LSTM(5, return_sequences=True, go_backwards=True)

        def call(self, x):
            return keras.ops.concatenate([self.forth(x), keras.ops.flip(self.back(x), 1)], -1)

    both, x = nn.LSTM(4, 5, batch_first=True, bidirectional=True), batch(2, 7, 4)
    state = {f"rnn.{name}": value for name, value in arrays(both).items()}
    with pytest.raises(OptionError, match="one layer and one direction; rename"):
        translate(state, "keras")
    rules = [
        Change(r"rnn[.](\w+)_l0_reverse$", r"back.\1_l0"),
        Change(r"rnn[.](\w+)_l0$", r"forth.\1_l0"),
    ]
    model = Both()
    model(x)
    ir.save(tmp_path / "b.weights.h5", translate(state, KERAS.extended(rules)))
    model.load_weights(tmp_path / "b.weights.h5")
    close(model(x), run(both, x)[0])


def test_attention_needs_its_heads(tmp_path):
    model = Torch(nn.MultiheadAttention(6, 3, batch_first=True))
    state, x, y = arrays(model), batch(2, 5, 6), batch(2, 4, 6, seed=8)
    wanted = run(model.it, x, y, y)[0]
    heads = [{"pattern": "^it", "sizes": {"N": 3}}]
    flax = in_flax(
        Flax(nnx.MultiHeadAttention(3, 6, decode=False, rngs=RNGS)), state, tmp_path, heads
    )
    close(flax(x, y), wanted)
    close(in_keras(L.MultiHeadAttention(3, 2), state, tmp_path, heads, x, y), wanted)
    for dialect in ("flax", "keras"):
        with pytest.raises(OptionError, match=r"axis of heads; .*'sizes': {'N': 12}"):
            translate(state, dialect)


def test_packed_attention_of_gpt2(tmp_path):
    """GPT-2's c_attn is IO: three square matrices side by side."""
    from transformers import GPT2Config
    from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

    config = GPT2Config(n_embd=12, n_head=3, attn_implementation="eager")
    attn = GPT2Attention(config, layer_idx=0).eval()
    state = {f"h.attn.{name}": value for name, value in arrays(attn).items()}
    x = batch(2, 5, 12)
    with torch.no_grad():
        wanted = attn(torch.from_numpy(x), attention_mask=torch.tril(torch.ones(5, 5)).log())[0]
    rules = [
        Change("c_attn[.]", "in_proj_", sizes={"N": 3}),
        Change("c_proj", "out_proj", sizes={"N": 3}),
        Change("h.attn", "it"),
    ]
    flax = nnx.MultiHeadAttention(3, 12, decode=False, rngs=RNGS)
    got = in_flax(Flax(flax), state, tmp_path, rules)(x, mask=np.tril(np.ones((5, 5), bool)))
    close(got, wanted)
    layer = L.MultiHeadAttention(3, 4)
    close(in_keras(layer, state, tmp_path, rules, x, x, use_causal_mask=True), wanted)


def test_linen(tmp_path):
    class Net(linen.Module):
        def setup(self):
            self.layers = [linen.Conv(6, (3, 1)), linen.Dense(3)]
            self.norm = linen.BatchNorm(use_running_average=True, epsilon=1e-5)

        def __call__(self, x):
            return self.norm(self.layers[1](self.layers[0](x)))

    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Conv2d(4, 6, (3, 1), padding="same"), nn.Linear(6, 3)])
            self.norm = nn.BatchNorm2d(3).eval()

        def forward(self, x):
            x = self.layers[1](self.layers[0](x).movedim(1, -1))
            return self.norm(x.movedim(-1, 1))

    same, x = Same(), batch(2, 4, 6, 5)
    made = translate(arrays(same), "linen")
    ir.save(tmp_path / "m.safetensors", made)
    loaded = traverse_util.unflatten_dict(load_file(tmp_path / "m.safetensors"), sep=".")
    shapes = jax.eval_shape(Net().init, jax.random.key(0), last(x))
    assert jax.tree.map(np.shape, loaded) == jax.tree.map(np.shape, shapes)
    close(Net().apply(loaded, last(x)), last(run(same, x)))
    with pytest.raises(OptionError, match="is unknown"):
        translate({"rnn.weight_hh_l0": np.zeros((8, 2))}, "linen")


# Names --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # save_weights
def test_lists_in_keras_are_named_by_class(tmp_path):
    class MLPBlock2D(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.parts = [L.Dense(4), L.BatchNormalization(), L.Dense(6)]

        def call(self, x):
            for part in self.parts:
                x = part(x)
            return x

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.blocks = [MLPBlock2D(), MLPBlock2D()]

        def call(self, x):
            return self.blocks[1](self.blocks[0](x))

    net = nn.Module()
    make = lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, 1e-3), nn.Linear(4, 6))  # noqa: E731
    net.blocks = nn.ModuleList(nn.ModuleDict({"parts": make()}) for _ in range(2))
    state, x = arrays(net), batch(3, 6)
    rules = [
        Items("blocks", "MLPBlock2D"),
        Items("blocks.*.parts", "Dense", (0, 2)),
        Items("blocks.*.parts", "BatchNormalization", [1]),
    ]
    model = Net()
    model(x)
    model.save_weights(tmp_path / "own.weights.h5")
    made = translate(state, KERAS.extended(rules))
    own = set()
    with h5py.File(tmp_path / "own.weights.h5") as file:
        file.visititems(
            lambda name, item: own.add(name) if isinstance(item, h5py.Dataset) else None
        )
    assert made.keys() == own
    ir.save(tmp_path / "m.weights.h5", made)
    model.load_weights(tmp_path / "m.weights.h5")
    net.eval()
    wanted = torch.from_numpy(x)
    for block in net.blocks:
        wanted = block["parts"](wanted)
    close(model(x), wanted.detach())
    for missing in (rules[1:], rules[:-1]):
        with pytest.raises(OptionError, match=r"by their class; add a rule, e.g. {'list': 'blocks"):
            translate(state, KERAS.extended(missing))


@pytest.mark.parametrize(
    "name", ["MyBlock", "GPT2Block", "Conv2D", "MLPBlock2D", "my_block", "LSTM"]
)
def test_class_names_are_those_of_keras(name):
    from keras.src.utils.naming import to_snake_case

    assert entry_of(Items("x", name), 0) == to_snake_case(name)
    assert entry_of(Items("x", name, (5, 2, 7)), 7) == to_snake_case(name) + "_2"
    assert entry_of(Items("x", name, (5,)), 0) is None


def test_torch_is_the_identity_and_can_be_renamed():
    given = {
        "a.weight": ir.plan((3, 2)),
        "b": np.ones((2, 3, 4)),
        "a.num_batches_tracked": np.array(3),
    }
    made = translate(given, "torch")
    assert list(made) == list(given)
    assert made["a.weight"] is given["a.weight"]
    assert np.array_equal(array(made["b"]), given["b"])
    rules = [Change("^a", "x.a"), Change("b$", "c", axes="ABC->CAB"), Change("num_", None)]
    made = translate(given, DIALECTS["torch"].extended(rules))
    assert {name: value.shape for name, value in made.items()} == {
        "x.a.weight": (3, 2),
        "c": (4, 2, 3),
    }


def test_all_rules_that_fit_apply_in_their_order():
    keras_ = KERAS.extended([Items("*", "Old")]).extended([Change("^a", "b"), Change("^b", "c")])
    assert list(translate({"a.0.bias": np.zeros(2)}, keras_)) == ["c/old/vars/0"]
    assert keras_.extended([Items("c", "New")]).rules[0].of == "New"
    assert list(translate({"a.0.bias": np.zeros(2)}, keras_.extended([Items("c", "New")]))) == [
        "c/new/vars/0"
    ]


def test_a_layer_without_a_path():
    model = {"weight": ir.plan((4, 3)), "bias": np.zeros(4)}
    assert list(translate(model, "flax")) == ["kernel", "bias"]
    assert list(translate(model, "keras")) == ["vars/0", "vars/1"]
    rnn = {"weight_ih_l0": np.zeros((8, 3)), "weight_hh_l0": np.zeros((8, 2))}
    assert list(translate(rnn, "keras")) == ["cell/vars/0", "cell/vars/1"]


def test_parameters_of_their_own():
    token = {"vit.embeddings.cls_token": np.zeros((1, 1, 4)), "scale": np.zeros(3)}
    assert list(translate(token, "flax")) == list(token)
    for name in token:
        with pytest.raises(OptionError, match="its form in keras is unknown"):
            translate({name: token[name]}, "keras")
    rules = [Change("cls_token$", "vars/0"), Change("^scale", "scaling.vars/0")]
    assert list(translate(token, KERAS.extended(rules))) == [
        "vit/embeddings/vars/0",
        "scaling/vars/0",
    ]


def test_a_keras_layer_with_a_gap_is_an_error():
    """Keras would refuse it, or put each number into the variable before its own."""
    lstm = arrays(nn.LSTM(3, 4))
    lacks = {f"rnn.{name}": value for name, value in lstm.items() if "weight_ih" not in name}
    with pytest.raises(OptionError, match=r"'rnn/cell'.* before vars/2 .*bias_ih_l0.* vars/0;"):
        translate(lacks, "keras")
    with pytest.raises(OptionError, match=r"layer = ''.*vars/0, vars/1;"):
        translate({"scale": np.zeros(2)}, KERAS.extended([Change("scale", "vars/2")]))
    assert list(translate({"norm.bias": np.zeros(2)}, "keras")) == ["norm/vars/0"]
    for name in ("norm", "fc"):  # what is left out is there nonetheless
        with pytest.raises(OptionError, match=rf"layer = '{name}'.*{name}.bias.* vars/0;"):
            translate({f"{name}.weight": None, f"{name}.bias": np.zeros(2)}, "keras")
    whole = {"norm.weight": None, "norm.bias": None, "fc.bias": np.zeros(2)}
    assert list(translate(whole, "keras")) == ["fc/vars/0"]
    assert list(translate({"a.bias": np.zeros(2), "a.weight": None}, "flax")) == ["a.bias"]
    assert list(translate({"a.bias": np.zeros(2), "a.weight": None}, "torch")) == ["a.bias"]


# Unknown kinds are errors -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensors", "error", "text"),
    [
        ({"experts.gate_up_proj": np.zeros((2, 3, 4))}, OptionError, "experts.gate_up_proj"),
        ({"a.weight": np.zeros((2,) * 6)}, OptionError, "a.weight"),
        ({"norm.weight": np.zeros((2, 3, 4))}, OptionError, "norm.weight"),
        ({"a.bias": np.zeros((2, 3))}, OptionError, "a.bias"),
        ({"a.running_mean": np.zeros((2, 3))}, OptionError, "running_mean"),
        ({"a.weight_hh_l0": np.zeros((4, 5))}, OptionError, "weight_hh_l0"),
        ({"a.weight_ih_l0": np.zeros((4, 5))}, OptionError, "weight_ih_l0"),
        ({"a.weight_hr_l0": np.zeros((4, 5))}, OptionError, "weight_hr_l0"),
        ({"a.weight": np.zeros((6, 4)), "a.bias": np.zeros(4)}, LayoutError, "a bias of 6"),
        ({"a.weight": np.zeros((6, 4, 3)), "a.bias": np.zeros(4)}, LayoutError, "'axes': 'IOW'"),
        ({"e.down_proj.weight": np.zeros((2, 3, 4))}, OptionError, "down_proj"),
        ({"embed.weight": np.zeros((7, 4, 3))}, OptionError, "embed"),
        ({"a.weight": np.zeros((0, 0, 3, 3)), "a.bias": np.zeros(0)}, OptionError, "transposed"),
        ({"h.attn.c_attn.weight": np.zeros((12, 4))}, OptionError, "side by side"),
        ({"a.in_proj_weight": np.zeros((8, 4))}, ShapeError, "3 equal parts"),
        (
            {"a.weight": ir.plan((4, 2, 3, 3), layout="IOHW", groups=2, transposed=True)},
            OptionError,
            "one group",
        ),
        ({"a.weight": "x"}, OptionTypeError, "a.weight"),
        ({"a\n.weight": np.zeros(2)}, OptionError, "control"),
        ({"a.in_proj_weight": np.zeros((12, 4))}, OptionError, "heads"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dialect", ["flax", "keras"])
def test_what_cannot_be_told_is_an_error(tensors, error, text, dialect):
    with pytest.raises(error, match=text) as raised:
        translate(tensors, dialect)
    assert "; " in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_cure_of_an_unknown_name_is_a_cure():
    for dialect in (FLAX, KERAS):
        given = {"experts.gate_up_proj": np.arange(24.0).reshape(2, 3, 4)}
        with pytest.raises(OptionError) as raised:
            translate(given, dialect)
        rule = ast.literal_eval(re.search(r"{.*}", str(raised.value))[0])
        (made,) = translate(given, dialect.extended([rule])).values()
        assert np.array_equal(array(made), given["experts.gate_up_proj"])


def test_two_tensors_on_one_name_are_an_error_that_names_both():
    two = {"a.bias": np.zeros(2), "b.bias": np.zeros(2)}
    for dialect in ("torch", "flax", "keras"):
        with pytest.raises(OptionError, match=r"only one of a\.bias, b\.bias"):
            translate(two, load(dialect).extended([Change("^b", "a")]))
    with pytest.raises(OptionError, match=r"only one of b\.bias, a\.x"):
        translate(two | {"a.x": np.zeros(2)}, KERAS.extended([
            Change("a.bias", None), Change("a.x", "c.vars/0"), Change("^b", "c"),
        ]))  # fmt: skip
    with pytest.raises(OptionError, match="other bias"):
        translate({"a.weight_hh": np.zeros((6, 2)), "a.bias_hh": np.zeros(6)}, "keras")


# Rules --------------------------------------------------------------------------------------------


def test_a_dialect_from_a_file(tmp_path):
    file = tmp_path / "mine.json"
    rules = [
        {"pattern": "^net[.]", "name": ""},
        {"pattern": "up[.]weight$", "axes": "IOHW"},
        {"pattern": "old", "name": None},
        {"list": "layers", "class": "MyBlock", "at": [1, 3]},
        {"pattern": "fc", "axes": "OI"},
    ]
    file.write_text(json.dumps({"base": "keras", "rules": rules}))
    model = {
        "net.layers.3.up.weight": np.zeros((5, 4, 3, 2)),
        "net.layers.1.fc.weight": np.zeros((5, 4)),
        "old.weight": np.zeros(3),
    }
    made = translate(model, str(file))
    assert {name: value.shape for name, value in made.items()} == {
        "layers/my_block_1/up/vars/0": (3, 2, 4, 5),
        "layers/my_block/fc/vars/0": (4, 5),
    }
    assert load(str(file)) == KERAS.extended(rules)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "JSON"),
        ("[" * 10**5, "JSON"),
        ("[]", "a base and rules"),
        ('{"base": "keras"}', "a base and rules"),
        ('{"base": "kers", "rules": []}', "one of torch, flax, keras"),
        ('{"base": ["keras"], "rules": []}', "one of torch, flax, keras"),
        ('{"base": "keras", "rules": {}}', "a list"),
        ('{"base": "keras", "rules": "x"}', "a list"),
        ('{"base": "keras", "rules": 3}', "a list"),
        ('{"base": "keras", "rules": ["x"]}', "a pattern of names, or a list"),
        ('{"base": "keras", "rules": [{"name": "x"}]}', "a pattern of names, or a list"),
        ('{"base": "keras", "rules": [{"pattern": "x", "nam": "y"}]}', "one of 'pattern', 'name'"),
        ('{"base": "keras", "rules": [{"pattern": "("}]}', "a regular expression"),
        ('{"base": "keras", "rules": [{"pattern": 3}]}', "text"),
        ('{"base": "keras", "rules": [{"pattern": "x", "name": "\\\\1"}]}', "fit the groups"),
        ('{"base": "keras", "rules": [{"pattern": "x", "name": "\\\\g<n>"}]}', "fit the groups"),
        ('{"base": "keras", "rules": [{"pattern": "x", "name": 3}]}', "text"),
        ('{"base": "keras", "rules": [{"pattern": "x", "axes": "OI->I"}]}', "before and once"),
        ('{"base": "keras", "rules": [{"pattern": "x", "axes": "OO->OO"}]}', "before and once"),
        ('{"base": "keras", "rules": [{"pattern": "x", "axes": "oi"}]}', "the stored axes"),
        ('{"base": "keras", "rules": [{"pattern": "x", "axes": "OO"}]}', "the stored axes"),
        ('{"base": "keras", "rules": [{"pattern": "x", "axes": "XO"}]}', "the stored axes"),
        ('{"base": "keras", "rules": [{"pattern": "x", "axes": "OIHH"}]}', "the stored axes"),
        ('{"base": "keras", "rules": [{"pattern": "x", "axes": 3}]}', "text"),
        ('{"base": "keras", "rules": [{"pattern": "x", "sizes": 3}]}', "letters to sizes"),
        ('{"base": "keras", "rules": [{"pattern": "x", "sizes": {"N": 0}}]}', "an integer >= 1"),
        ('{"base": "keras", "rules": [{"pattern": "x", "sizes": {"N": true}}]}', "an integer"),
        ('{"base": "keras", "rules": [{"pattern": "x", "layer": "Dense"}]}', "'LSTMCell'"),
        ('{"base": "keras", "rules": [{"list": "x"}]}', "class = None"),
        ('{"base": "keras", "rules": [{"list": "x", "class": "a/b"}]}', "name of a class"),
        ('{"base": "keras", "rules": [{"list": 3, "class": "A"}]}', "text"),
        ('{"base": "keras", "rules": [{"list": "x", "class": "A", "at": "01"}]}', "a list"),
        ('{"base": "keras", "rules": [{"list": "x", "class": "A", "at": [-1]}]}', "integer >= 0"),
        ('{"base": "keras", "rules": [{"list": "x", "class": "A", "pattern": "y"}]}', "key of"),
        (b"\xff", "UTF-8"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_is_an_error(text, words, tmp_path):
    file = tmp_path / "mine.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(IDInitError, match=words) as raised:
        load(str(file))
    assert "mine.json" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dialect", ["torch", "flax", "keras"])
@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Change("^backbone[.]", ""), r"pattern = '\^backbone\[.\]'.*no tensor; .*a.fc.bias"),
        (Change("gone", None), "pattern = 'gone'"),
        (Change("gone", layer="Embedding"), "pattern = 'gone'"),
        (Change("fc", axes="OIHW"), r"no tensor of 4 axes \(OIHW\)"),
        (Change("fc", axes="ABC->CAB"), r"no tensor of 3 axes"),
        (Items("h", "MyBlock"), "list = 'h'.*no list entry"),
        (Items("l", "MyBlock", (3,)), "list = 'l'"),
    ],
)
def test_a_rule_that_fits_nothing_is_an_error(rule, words, dialect):
    model = {"a.fc.weight": ir.plan((4, 3)), "a.fc.bias": np.zeros(4), "l.0.bias": np.zeros(2)}
    good = [] if dialect == "torch" else [Items("l", "Dense")]
    translate(model, load(dialect).extended(good))
    with pytest.raises(OptionError, match=words):
        translate(model, load(dialect).extended([rule, *good]))


def test_in_torch_lists_have_no_classes():
    with pytest.raises(OptionError, match=r"list = 'l'.* that torch names"):
        translate({"l.0.bias": np.zeros(2)}, load("torch").extended([Items("l", "Dense")]))


@pytest.mark.parametrize(
    ("plan", "axes"),
    [
        (ir.plan((6, 4)), "IO"),
        (ir.plan((4, 4), layout="IO"), "OI"),
        (ir.plan((4, 4, 3, 3)), "IOHW"),
        (ir.plan((4, 4, 3, 3), layout="IOHW", transposed=True), "OIHW"),
        (ir.plan((4, 4, 3, 3), layout="IOHW", transposed=True), "OIHW->HWIO"),
        (ir.plan((2, 4, 4), layout="EOI"), "OIW"),
    ],
)
def test_a_rule_that_contradicts_a_plan_is_an_error(plan, axes, tmp_path):
    ir.save(tmp_path / "a.safetensors", {"a.weight": plan})
    opened = open_checkpoint(tmp_path / "a.safetensors")
    for dialect in ("torch", "flax", "keras"):
        extended = load(dialect).extended([Change("a", axes=axes)])
        with pytest.raises(LayoutError, match=f"the plan a.weight.*axes {plan.layout}"):
            translate({"a.weight": plan}, extended)
        with pytest.raises(LayoutError, match=f"the plan a.weight.*axes {plan.layout}"):
            translate(opened.tensors, extended, metadata=opened.metadata)
    agrees = FLAX.extended([Change("a", axes=plan.layout)])
    as_told, as_known = (translate({"a.weight": plan}, which) for which in (agrees, "flax"))
    assert [*as_told] == [*as_known]
    for name, tensor in as_told.items():
        assert np.array_equal(array(tensor), array(as_known[name]))


def test_axes_concern_tensors_of_as_many():
    """So one line says what all convolutions are, and another what all matrices are."""
    model = {
        "conv.weight": np.zeros((4, 4, 3, 3)),
        "conv.bias": np.zeros(4),
        "conv.proj.weight": np.zeros((6, 4)),
        "norm.weight": np.zeros(4),
    }
    rules = [Change("conv", axes="OIHW"), Change("", axes="OI")]
    made = translate(model, FLAX.extended(rules))
    assert {name: value.shape for name, value in made.items()} == {
        "conv.kernel": (3, 3, 4, 4),
        "conv.bias": (4,),
        "conv.proj.kernel": (4, 6),
        "norm.scale": (4,),
    }
    moved = translate(model, DIALECTS["torch"].extended([Change("conv", axes="AB->BA")]))
    assert moved["conv.proj.weight"].shape == (4, 6)


def test_the_cure_of_a_recurrent_layer_at_the_top_is_one():
    for path in ("", "rnn."):
        state = {path + name: value for name, value in
                 arrays(nn.LSTM(3, 4, bidirectional=True)).items()}  # fmt: skip
        with pytest.raises(OptionError, match="one layer and one direction") as raised:
            translate(state, "keras")
        rule = ast.literal_eval(re.search("{.*}", str(raised.value))[0])
        made = translate(state, KERAS.extended([rule]))
        other = "rnn_other/cell" if path else "other/cell"
        first = "rnn/cell" if path else "cell"
        assert made.keys() == {f"{n}/vars/{k}" for n in (first, other) for k in range(3)}
        assert np.array_equal(
            array(made[f"{other}/vars/1"]), state[f"{path}weight_hh_l0_reverse"].T
        )


def test_there_is_no_such_dialect(tmp_path):
    with pytest.raises(OptionError, match="did you mean keras"):
        load("kras")
    with pytest.raises(FileNotFoundError, match=r"no\.json.*should be a readable file"):
        load(str(tmp_path / "no.json"))
    with pytest.raises(OptionTypeError, match="a pattern of names"):
        KERAS.extended([3])
    assert isinstance(load("flax"), Dialect)


@pytest.mark.parametrize(
    ("shape", "axes", "sizes", "words"),
    [
        ((2, 3), "OIW->WIO", {}, "2 axes before the arrow"),
        ((6, 3), "(AB)C->ABC", {}, "size of A or B"),
        ((6, 3), "(AB)C->ABC", {"A": 4}, "should make 6"),
        ((6, 3), "(AB)C->ABC", {"A": 4, "B": 2}, "should make 6"),
        ((6, 3), "A1->A", {}, "should make 3"),
    ],
)
def test_axes_that_do_not_fit_are_an_error(shape, axes, sizes, words):
    with pytest.raises(LayoutError, match=words):
        rearrange(ArrayTensor(np.zeros(shape)), axes, sizes)


@pytest.mark.parametrize(("axis", "pieces"), [(2, [(0, 1)]), (0, [(0, 3)]), (0, [(1, 1)])])
def test_pieces_outside_are_an_error(axis, pieces):
    with pytest.raises(ShapeError, match="inside axis"):
        take(ArrayTensor(np.zeros((2, 3))), axis, pieces)


# Views --------------------------------------------------------------------------------------------

AXES = [
    ("ABC->CAB", {}, lambda x: x.transpose(2, 0, 1)),
    ("ABC->~CA~B", {}, lambda x: x.transpose(2, 0, 1)[::-1, :, ::-1]),
    ("(XY)BC->YBXC", {"X": 2}, lambda x: x.reshape(2, 3, 5, 4).transpose(1, 2, 0, 3)),
    ("A(XYZ)C->XA1~ZCY", {"X": 1, "Y": 5},
     lambda x: x.reshape(6, 1, 5, 1, 4).transpose(1, 0, 3, 4, 2)[:, :, None]),
    ("(XYZ)BC->BXYZC", {"X": 1, "Z": 3},
     lambda x: x.reshape(1, 2, 3, 5, 4).transpose(3, 0, 1, 2, 4)),
    ("AB(XY)->~XA~YB", {"Y": 2},
     lambda x: x.reshape(6, 5, 2, 2).transpose(2, 0, 3, 1)[::-1, :, ::-1]),
]  # fmt: skip


@pytest.mark.parametrize(("axes", "sizes", "by_numpy"), AXES, ids=[a for a, _, _ in AXES])
@given(data=st.data())
def test_any_block_of_a_view(axes, sizes, by_numpy, data):
    whole = np.arange(120.0).reshape(6, 5, 4)
    cuts = [(3, 6), (0, 2), (5, 6)]
    for source, wanted in [
        (ArrayTensor(whole), by_numpy(whole)),
        (
            take(ArrayTensor(whole), 0, cuts),
            by_numpy(np.concatenate([whole[a:b] for a, b in cuts])),
        ),
    ]:
        view = rearrange(source, axes, sizes)
        assert view.shape == wanted.shape
        index = tuple(
            slice(*sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))))
            for n in view.shape
        )
        got = view.read(index, "float64")
        assert np.array_equal(got, wanted[index])
        assert got.shape == wanted[index].shape


@st.composite
def rearrangements(draw):
    """Axes with their sizes, by hand in NumPy: how they are split, where they go."""
    letters = iter("ABCDEFGHIJKLMNOP")
    shape, split, before, sizes = [], [], "", {}
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["plain", "plain", "one", "split"]))
        inner = draw(st.lists(st.integers(1, 3), min_size=2, max_size=3))
        if kind == "plain":
            inner = inner[:1]
        elif kind == "one":
            inner = []
        names = [next(letters) for _ in inner]
        before += "1" if kind == "one" else f"({''.join(names)})" if kind == "split" else names[0]
        open_ = draw(st.sampled_from(names)) if kind == "split" else None
        if kind == "split":
            sizes |= {n: k for n, k in zip(names, inner, strict=True) if n != open_}
        shape.append(int(np.prod(inner, dtype=int)))
        split += list(zip(names, inner, strict=True))
    order = draw(st.permutations(range(len(split))))
    new = sorted(draw(st.lists(st.integers(0, len(order)), max_size=2)), reverse=True)
    flips = [draw(st.booleans()) for _ in order]
    after = [("~" if flip else "") + split[k][0] for k, flip in zip(order, flips, strict=True)]
    whole = np.arange(float(np.prod(shape, dtype=int))).reshape(shape)
    wanted = whole.reshape([size for _, size in split]).transpose(order)
    wanted = np.flip(wanted, [axis for axis, flip in enumerate(flips) if flip])
    for place in new:
        after.insert(place, "1")
        wanted = np.expand_dims(wanted, place)
    return whole, f"{before}->{''.join(after)}", sizes, wanted


@given(case=rearrangements(), data=st.data())
@example((np.arange(6.0).reshape(6, 1), "(CM)1->CM", {"M": 2}, np.arange(6.0).reshape(3, 2)), None)
def test_any_rearrangement(case, data):
    whole, axes, sizes, wanted = case
    view = rearrange(ArrayTensor(whole), axes, sizes)
    assert view.shape == wanted.shape
    assert np.array_equal(array(view), wanted)
    if data is None:
        return
    index = tuple(
        slice(*sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))))
        for n in view.shape
    )
    got = view.read(index, "float64")
    assert got.shape == wanted[index].shape
    assert np.array_equal(got, wanted[index])


def test_depthwise_of_a_plan(tmp_path):
    """As many axes as before, but one is split and one dropped."""
    plan, x = ir.plan((8, 1, 3, 2), groups=4, loosen=0.3), batch(2, 4, 9, 8)
    layer = nn.Conv2d(4, 8, (3, 2), groups=4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(plan.build(dtype="float32")))
    (made,) = translate({"it.weight": plan}, KERAS.extended([DW])).values()
    assert made.shape == (3, 2, 4, 2)
    keras_layer = L.DepthwiseConv2D((3, 2), depth_multiplier=2, use_bias=False)
    got = in_keras(keras_layer, {"it.weight": plan}, tmp_path, [DW], last(x))
    close(got, last(run(layer, x)))


@given(data=st.data())
def test_any_block_of_joined_tensors(data):
    x, y = batch(6, 3), batch(6, 3, seed=8)
    for tensor, wanted in [
        (added((ArrayTensor(x), ArrayTensor(y))), x.astype("float64") + y),
        (stacked((ArrayTensor(x), ArrayTensor(y))), np.stack([x, y])),
    ]:
        assert (tensor.shape, tensor.dtype) == (wanted.shape, "float32")
        index = tuple(
            slice(*sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))))
            for n in tensor.shape
        )
        got = tensor.read(index, "float32")
        assert np.array_equal(got, wanted[index].astype("float32"))
        assert got.shape == wanted[index].shape


def test_a_view_reads_what_it_needs_and_no_more(monkeypatch):
    """The blocks of a written view ask the source for each element once."""
    monkeypatch.setattr("idinit_ref.files.storage.BLOCK", 40)
    whole = np.arange(6 * 50 * 4.0).reshape(6, 50, 4)

    class Counted(ArrayTensor):
        def read(self, index, dtype):
            block = super().read(index, dtype)
            assert block.size <= 40
            total.append(block.size)
            return block

    for axes, sizes in [("ABC->CAB", {}), ("(XY)BC->BXYC", {"X": 2}), ("A(XY)C->XY~CA", {"X": 5})]:
        total = []
        view = rearrange(Counted(whole), axes, sizes)
        assert len(list(blocks(view.shape))) > 25
        sum(block.size for block in stream(view, "float64"))
        assert sum(total) == whole.size


def test_what_does_not_change_stays_the_same():
    held = ArrayTensor(np.zeros((6, 4)))
    assert rearrange(held, "OI->OI") is held
    assert take(held, 0, [(0, 6)]) is held
    view = rearrange(take(held, 0, [(3, 6), (0, 3)]), "OI->IO")
    assert (view.shape, view.dtype) == ((4, 6), "float64")


# Plans --------------------------------------------------------------------------------------------

PLANS = [
    ("OI->IO", ir.plan((6, 4), gain=2)),
    ("OI->IO", ir.plan((6, 4), loosen=0.1, seed=3)),
    ("IO->OI", ir.plan((4, 12), layout="IO", blocks=(4, 4, 4), loosen=0.1)),
    ("OIHW->HWIO", ir.plan((6, 2, 3, 2), "zero", groups=2)),
    ("OIHW->HWIO", ir.plan((6, 2, 3, 2), taps="spatial_major", groups=2, loosen=0.1)),
    ("OIHW->HWIO", ir.plan((6, 4, 3, 2), taps="center", tap=(2, 0))),
    ("OIDHW->DHWIO", ir.plan((5, 3, 2, 3, 1), loosen=0.1)),
    ("IOHW->HWOI", ir.plan((6, 2, 3, 2), layout="IOHW", groups=3, transposed=True, loosen=0.1)),
    ("EOI->EIO", ir.plan((3, 6, 4), layout="EOI", loosen=0.1)),
    ("EFOI->IEOF", ir.plan((3, 2, 6, 4), layout="EFOI", loosen=0.1)),
]


@pytest.mark.parametrize(("axes", "plan"), PLANS)
def test_a_permuted_plan_is_a_plan_with_the_same_numbers(axes, plan):
    made = rearrange(plan, axes)
    before, after = axes.split("->")
    assert isinstance(made, ir.Plan)
    assert made.layout == after
    wanted = plan.build(dtype="float32").transpose([before.index(c) for c in after])
    assert np.array_equal(made.build(dtype="float32"), wanted)


def test_batch_axes_that_change_places_are_no_plan():
    plan = ir.plan((3, 2, 6, 4), layout="EFOI", loosen=0.1)
    made = rearrange(plan, "EFOI->FEIO")
    assert isinstance(made, Derived)
    assert np.array_equal(array(made), plan.build(dtype="float32").transpose(1, 0, 3, 2))


def test_plans_in_dialects():
    """The letters of a plan say what no shape says."""
    up = ir.plan((5, 3, 4, 2), layout="IOHW", loosen=0.1)
    model = {
        "up.weight": up,
        "up.bias": np.zeros(3),
        "h.c_fc.weight": ir.plan((4, 12), layout="IO"),
        "fc.weight": ir.plan((6, 4), "zero"),
        "experts.weight": ir.plan((2, 6, 4), layout="EOI"),
        "rnn.weight_ih_l0": ir.plan((15, 2), blocks=(5, 5, 5)),
        "rnn.weight_hh_l0": ir.plan((15, 5), blocks=(5, 5, 5), loosen=0.1),
    }
    bits = {name: p.build(dtype="float32") for name, p in model.items() if name != "up.bias"}
    keras_, flax = translate(model, "keras"), translate(model, "flax")
    wanted = {
        "up": bits["up.weight"].transpose(2, 3, 1, 0),
        "h/c_fc": bits["h.c_fc.weight"],
        "fc": bits["fc.weight"].T,
        "experts": bits["experts.weight"].transpose(0, 2, 1),
    }
    for name, value in wanted.items():
        assert np.array_equal(array(keras_[f"{name}/vars/0"]), value)
        assert isinstance(keras_[f"{name}/vars/0"], ir.Plan)
    assert np.array_equal(
        array(flax["up.kernel"]), bits["up.weight"].transpose(2, 3, 0, 1)[::-1, ::-1]
    )
    r, z, n = np.split(bits["rnn.weight_hh_l0"].T, 3, axis=1)
    assert np.array_equal(array(keras_["rnn/cell/vars/1"]), np.concatenate([z, r, n], 1))
    assert isinstance(flax["rnn.cell.dense_h.kernel"], ir.Plan)


def test_a_plan_of_any_size_is_translated_at_once():
    huge = ir.plan((3_000_000, 1_000_000))
    made = translate({"a.in_proj_weight": huge}, FLAX.extended([Change("a", sizes={"N": 1000})]))
    view = made["a.key.kernel"]
    assert view.shape == (1_000_000, 1000, 1000)
    one = view.read((slice(5, 6), slice(0, 1), slice(0, 9)), "bfloat16")
    assert one.tolist() == [[[0, 0, 0, 0, 0, 0x3F80, 0, 0, 0]]]


# What a third reader found ------------------------------------------------------------------------


class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = torch.nn.GRU(3, 4, batch_first=True)


def test_a_file_sorted_by_name_has_the_biases_the_other_way_round(tmp_path):
    """bias_hh comes before bias_ih in a .safetensors file, and not in a state."""
    model, path = Recurrent(), tmp_path / "g.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    stored = open_checkpoint(path).tensors
    assert list(stored).index("gru.bias_hh_l0") < list(stored).index("gru.bias_ih_l0")
    held = {name: value.numpy() for name, value in model.state_dict().items()}
    one, two = (translate(given, "keras") for given in (stored, held))
    whole = (slice(None), slice(None))
    for name in two:
        index = whole[: len(two[name].shape)]
        assert np.array_equal(one[name].read(index, "float32"), two[name].read(index, "float32"))
    with torch.no_grad():
        model.gru.bias_hh_l0[-4:] = 0
    safetensors.torch.save_file(model.state_dict(), path)
    stored = open_checkpoint(path).tensors
    (name,) = (name for name in translate(stored, "flax") if name.endswith("bias"))
    both = sum(model.gru.state_dict()[f"bias_{end}_l0"].numpy() for end in ("ih", "hh"))
    assert np.allclose(array(translate(stored, "flax")[name]), both)
    with torch.no_grad():
        model.gru.bias_ih_l0[-4:] = 0
        model.gru.bias_hh_l0[-4:] = 1
    safetensors.torch.save_file(model.state_dict(), path)
    stored = open_checkpoint(path).tensors
    with pytest.raises(OptionError, match=r"last third of gru\.bias_hh_l0 should be 0"):
        translate(stored, "flax")
    alone = {name: value for name, value in stored.items() if "bias_ih" not in name}
    with pytest.raises(OptionError, match=r"last third of gru\.bias_hh_l0 should be 0"):
        translate(alone, "flax")


def test_what_is_made_without_a_plan_of_its_own_axes_is_not_guessed():
    """A weight of a report whose stored axes hold several of a matrix."""
    given = {
        "shape": [8, 8], "role": "transit", "layout": "IO", "blocks": [4, 4],
        "axes": "IOO", "parted": [8, 2, 4],
    }  # fmt: skip
    asked = {"k.weight": sources._asked("k.weight", given, "m.json")}
    value = assemble(asked).values["k.weight"]
    assert value.dtype is None
    with pytest.raises(OptionError, match=r"k\.weight.*state it by a rule"):
        translate({"k.weight": value, "k.bias": np.zeros(8, "f")}, "flax")
    made = translate({"k.weight": value}, FLAX.extended([Change("k.weight", axes="IO")]))
    assert made["k.kernel"].shape == (8, 8)


@pytest.mark.parametrize("dialect", ["flax", "keras"])
def test_the_cure_for_a_norm_of_two_axes_touches_nothing_else(dialect):
    tensors = {
        "norm.weight": np.ones((4, 8), "f"),
        "norm.bias": np.zeros((4, 8), "f"),
        "fc.weight": ir.plan((8, 4)),
        "fc.bias": np.zeros(8, "f"),
    }
    table = DIALECTS[dialect]
    for _ in range(2):
        with pytest.raises(OptionError, match="state it by a rule") as caught:
            translate(tensors, table)
        rule = ast.literal_eval(re.search(r"e\.g\. (\{.*\})", str(caught.value))[1])
        table = table.extended([rule])
    made = translate(tensors, table)
    assert len(made) == 4
    assert {made[name].shape for name in made if "norm" in name} == {(4, 8)}
    assert [plan.shape for plan in made.values() if isinstance(plan, Plan)] == [(4, 8)]
    assert [plan.layout for plan in made.values() if isinstance(plan, Plan)] == ["IO"]
    with pytest.raises(LayoutError, match="has axes OI"):
        translate(tensors, DIALECTS[dialect].extended([Change("weight$", axes="AB->AB")]))


def test_one_weight_that_is_said_otherwise_makes_its_family_doubtful():
    """nanoGPT has GPT-2's names with torch.nn.Linear's axes."""
    tensors = {
        "h.0.attn.c_proj.weight": np.ones((8, 8), "f"),
        "h.0.attn.c_proj.bias": np.zeros(8, "f"),
        "h.0.mlp.c_fc.weight": np.ones((32, 8), "f"),
        "h.0.mlp.c_fc.bias": np.zeros(32, "f"),
    }
    with pytest.raises(LayoutError, match="'axes': 'OI'") as caught:
        translate(tensors, "flax")
    rule = ast.literal_eval(re.search(r"e\.g\. (\{.*\})", str(caught.value))[1])
    with pytest.raises(OptionError, match=r"h\.0\.attn\.c_proj\.weight.*state it by a rule"):
        translate(tensors, FLAX.extended([rule]))
    made = translate(tensors, FLAX.extended([Change(r"c_\w+\.weight", axes="OI")]))
    assert made["h.0.mlp.c_fc.kernel"].shape == (8, 32)


def test_packed_weights_that_are_not_packed_have_a_cure_that_works():
    tensors = {"h.0.attn.c_attn.weight": np.ones((24, 8), "f"), "h.0.attn.c_attn.bias": np.ones(24)}
    with pytest.raises(OptionError, match="state its axes by a rule") as caught:
        translate(tensors, "flax")
    rule = ast.literal_eval(re.search(r"e\.g\. (\{.*\})", str(caught.value))[1])
    assert translate(tensors, FLAX.extended([rule]))["h.0.attn.c_attn.kernel"].shape == (8, 24)


def test_a_stack_of_matrices_may_have_a_stack_of_biases():
    tensors = {"e.weight": ir.plan((2, 8, 4), layout="EOI"), "e.bias": np.zeros((2, 8), "f")}
    bias = Change("e[.]bias", "e.bias", axes="EO->EO")
    assert translate(tensors, FLAX.extended([bias]))["e.kernel"].shape == (2, 4, 8)


def test_a_table_has_no_bias(tmp_path, monkeypatch):
    tensors = {"proj.weight": ir.plan((8, 4)), "proj.bias": np.zeros(8, "f")}
    assert "proj.kernel" in translate(tensors, "flax", tables=["proj.weight"])
    monkeypatch.chdir(tmp_path)  # and a reason that begins so is none
    asked = {"p.weight": {"shape": [8, 4], "role": "transit", "why": "embedding projection"}}
    (tmp_path / "m.json").write_text(json.dumps(asked))
    words = "export --manifest m.json --dialect flax --out p.safetensors"
    assert main(re.split(" ", words)) == 0
    assert list(open_checkpoint("p.safetensors").tensors) == ["p.kernel"]


@pytest.mark.parametrize("left_out", ["in_proj_weight", "in_proj_bias", "q_proj_weight"])
def test_attention_is_attention_without_its_packed_weight(left_out):
    tensors = {
        f"attn.{left_out}": None,
        "attn.out_proj.weight": np.ones((8, 8), "f"),
        "attn.out_proj.bias": np.zeros(8, "f"),
    }
    heads = KERAS.extended([Change("attn", sizes={"N": 2})])
    made = translate(tensors, heads)
    assert made["attn/output_dense/vars/0"].shape == (2, 4, 8)


def test_a_dense_layer_may_be_called_norm():
    tensors = {"norm.weight": ir.plan((8, 4)), "unnormal.weight": np.ones((8, 4), "f")}
    made = translate(tensors, FLAX.extended([Change("unnormal.weight", axes="OI")]))
    assert {name: tensor.shape for name, tensor in made.items()} == {
        "norm.kernel": (4, 8),
        "unnormal.kernel": (4, 8),
    }
