"""The zoo: its measurements, on models small enough to know, and a sample of it measured anew."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from docs.evidence import _zoo_build, _zoo_measure, _zoo_others, _zoo_serve, zoo
from docs.evidence._data import load


class Residual(nn.Module):
    """x + down(relu(up(x))), behind an entry."""

    def __init__(self):
        super().__init__()
        self.entry, self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x):
        x = self.entry(x)
        return x + self.down(self.up(x).relu())


class Interpolated(Residual):
    """x + a (down(relu(up(x))) - x), behind an entry."""

    def forward(self, x):
        x = self.entry(x)
        return x + 0.5 * (self.down(self.up(x).relu()) - x)


class Stacked(Residual):
    """The mean of x and down(relu(up(x))), stacked, behind an entry."""

    def forward(self, x):
        x = self.entry(x)
        return torch.stack([x, self.down(self.up(x).relu())]).mean(0)


class InPlace(Residual):
    """The same, written into the skip."""

    def forward(self, x):
        x = self.entry(x)
        y = x.clone()
        y[:] = self.down(self.up(x).relu())
        y += x
        return y


class Projected(Residual):
    """A skip with a weight of its own."""

    def __init__(self):
        super().__init__()
        self.skip = nn.Linear(4, 4)

    def forward(self, x):
        x = self.entry(x)
        return self.skip(x) + self.down(self.up(x).relu())


class Unreached(Residual):
    """An expert to which no row is sent."""

    def __init__(self):
        super().__init__()
        self.other = nn.Linear(4, 4)

    def forward(self, x):
        x = super().forward(x)
        return torch.cat([x, x[:0] + self.other(x[:0])])


class Recurrent(nn.Module):
    """A branch in which PyTorch may run all steps at once."""

    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x):
        return x + self.cell(x)[0]


class Gated(Residual):
    """A branch that its gate multiplies: the gate never vanishes, the values do."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(4, 6)

    def forward(self, x):
        x = self.entry(x)
        return x + self.down(self.up(x) * self.gate(x).sigmoid())


class Rectified(Residual):
    """A branch that ends in ReLU, which has no derivative at 0."""

    def forward(self, x):
        x = self.entry(x)
        return x + self.down(self.up(x).relu()).relu()


class Joined(Residual):
    """Behind a token, the skip is a sum of its own: both adds end in a zero weight."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x):
        x = self.entry(x)
        token, rest = x[:, :1], x[:, 1:]
        rest = rest + self.first(rest)
        branch = self.down(self.up(torch.cat((token.relu(), rest), 1)).relu())
        return torch.cat((token, rest), 1) + branch


class Streams(nn.Module):
    """The branch adds what another stream gives, which may remain."""

    def __init__(self):
        super().__init__()
        self.entry, self.other = nn.Linear(3, 4), nn.Linear(3, 4)
        self.own, self.taken = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        a, b = self.entry(x), self.other(x)
        return a + (self.own(a) + self.taken(b))


class PooledStreams(Streams):
    """The same, averaged over neighbours."""

    def forward(self, x):
        a, b = self.entry(x), self.other(x)
        return a + nn.functional.avg_pool1d(self.own(a) + self.taken(b), 3, 1, 1)


class Scaled(Residual):
    """Its skip scales the branch, too, over no weight."""

    def forward(self, x):
        x = self.entry(x)
        box = x.sigmoid()
        return box + self.down(self.up(x).relu()) * box


class SelfGated(Residual):
    """A signal times what its own weights make of it, beside itself, as in a state space."""

    def forward(self, x):
        x = self.entry(x)
        moved = x.view(x.shape)
        return 2 * moved + self.down(self.up(x).relu()) * moved


class Detached(Residual):
    """A branch that never learns."""

    def forward(self, x):
        x = self.entry(x)
        return x + self.down(self.up(x).relu()).detach()


class Normed(Residual):
    """Its last weight is under weight norm: 0 / 0 where its direction is 0."""

    def __init__(self):
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.down)


class Attention(nn.Module):
    """An attention whose keys or values are a residual sum."""

    def __init__(self, changed):
        super().__init__()
        self.changed = changed
        self.q, self.k, self.v, self.more = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        k, v = (k + self.more(k), v) if self.changed == "keys" else (k, v + self.more(v))
        return (q @ k.mT).softmax(-1) @ v


class Scores(nn.Module):
    """A sum of two scores, which only enters a softmax, is no residual add."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.values = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        scores = x @ x.mT
        scores = scores + self.one(x) @ x.mT
        return scores.softmax(-1) @ self.values(x)


class WrittenScores(Attention):
    """A sum of scores that is written into a part of them, of which there are views."""

    def __init__(self):
        super().__init__("scores")
        self.places = nn.Parameter(torch.randn(4, 4, 4))

    def forward(self, x):
        q, k, v = (layer(x)[:, None] for layer in (self.q, self.k, self.v))
        scores = q @ k.mT
        scores[:, :, 1:, 1:] += torch.einsum("bhtc,tkc->bhtk", q[:, :, 1:], self.places)
        return scores.softmax(-1) @ v


def found(model, zero=(), given=None):
    """Measure a model whose parameters have these roles."""
    roles = {
        name: "bias" if "bias" in name else "zero" if name in zero else "transit"
        for name, _ in model.named_parameters()
    }
    return _zoo_measure.roles(model, (torch.randn(2, 5, 4 if given is None else given),), roles)


FAULTS = ("missed", "vain", "false")


@pytest.mark.parametrize("kind", [Residual, InPlace, Projected, Gated, Rectified, Scaled])
def test_the_end_of_a_branch_is_right(kind):
    row = found(kind(), ["down.weight"], 3)
    assert not any(row[key] for key in FAULTS)
    assert row["adds"] == (kind is not Projected)
    assert row["projections"] == (kind is Projected)


@pytest.mark.parametrize("kind", [Residual, InPlace, Gated, Scaled])
def test_a_branch_without_a_zero_is_missed(kind):
    assert len(found(kind(), [], 3)["missed"]) == 1


@pytest.mark.parametrize(("zero", "missed"), [(["cell.weight_ih_l0"], 0), ([], 1)])
def test_a_recurrent_layer_ends_in_its_kernel(zero, missed):
    row = found(Recurrent(), zero)
    assert (row["adds"], len(row["missed"])) == (1, missed)
    assert not row["vain"] + row["false"]


@pytest.mark.parametrize(("zero", "missed"), [([], 1), (["down.weight"], 0)])
def test_a_signal_that_its_own_weights_gate_is_a_branch_beside_itself(zero, missed):
    row = found(SelfGated(), zero, 3)
    assert (row["adds"], len(row["missed"])) == (1, missed)
    assert not row["vain"] + row["false"]


def test_a_branch_that_never_learns_may_stay_as_it_is():
    row = found(Detached(), [], 3)
    assert row["adds"] == 1
    assert not any(row[key] for key in FAULTS)


def test_two_zeros_in_a_row_are_in_vain():
    assert found(Residual(), ["up.weight", "down.weight"], 3)["vain"] == [
        "up.weight",
        "down.weight",
    ]


def test_a_zero_gate_beside_zero_values_is_in_vain():
    row = found(Gated(), ["down.weight", "gate.weight"], 3)
    assert "gate.weight" in row["vain"]


def test_a_zero_that_no_row_reaches_is_idle():
    row = found(Unreached(), ["down.weight", "other.weight"], 3)
    assert (row["idle"], row["false"], row["vain"]) == (1, [], [])


def test_a_zero_that_ends_no_branch_is_false():
    assert found(Residual(), ["entry.weight", "down.weight"], 3)["false"] == ["entry.weight"]


@pytest.mark.parametrize("kind", [Interpolated, Stacked])
def test_a_zero_may_end_a_difference_or_a_stack(kind):
    assert not found(kind(), ["down.weight"], 3)["false"]
    row = found(kind(), ["entry.weight", "up.weight", "down.weight"], 3)
    assert row["false"] == ["entry.weight"]
    assert row["vain"] == ["up.weight", "down.weight"]


def test_a_skip_joined_of_parts_has_a_branch_and_a_false_zero_is_still_found():
    ends = ["first.weight", "down.weight"]
    assert not any(found(Joined(), ends, 3)[key] for key in FAULTS)
    assert "entry.weight" in found(Joined(), [*ends, "entry.weight"], 3)["false"]
    assert found(Joined(), [*ends, "up.weight"], 3)["vain"] == ["up.weight", "down.weight"]


@pytest.mark.parametrize("kind", [Streams, PooledStreams])
@pytest.mark.parametrize(
    ("zero", "fault"),
    [
        (["own.weight"], {}),
        (["own.weight", "taken.weight"], {"false": ["taken.weight"]}),
        (["own.weight", "other.weight"], {"false": ["other.weight"]}),
        (["taken.weight"], {"false": ["taken.weight"], "missed": 1}),
        ([], {"missed": 1}),
    ],
    ids=["right", "taken", "other", "taken alone", "none"],
)
def test_what_a_branch_takes_from_another_stream_may_remain(kind, zero, fault):
    row = found(kind(), zero, 3)
    assert row["false"] == fault.get("false", [])
    assert len(row["missed"]) == fault.get("missed", 0)
    assert row["vain"] == []


@pytest.mark.parametrize("kind", [Scores, WrittenScores])
def test_scores_are_no_residual_add(kind):
    assert found(kind())["adds"] == 0


def test_keys_are_no_residual_add_and_values_are():
    """The product with the queries sums the outputs of the keys away."""
    assert found(Attention("keys"))["adds"] == 0
    assert found(Attention("values"))["adds"] == 1


def test_a_zero_weight_under_weight_norm_has_magnitude_0():
    model = Normed()
    g, v = (f"down.parametrizations.weight.original{k}" for k in (0, 1))
    roles = {name: "bias" if name.endswith("bias") else "transit" for name in model.state_dict()}
    held, _ = _zoo_measure._as_held(model, roles | {g: "keep", v: "zero"}, {})
    row = _zoo_measure.roles(model, (torch.randn(2, 5, 3),), held)
    assert (held[g], held[v]) == ("zero", "transit")
    assert row["adds"] == 1
    assert not any(row[key] for key in FAULTS)


class Packed(nn.Module):
    """The next residual and another output, as in WaveNet, of one weight."""

    def __init__(self, norm=False):
        super().__init__()
        self.inner, self.after = nn.Linear(3, 3), nn.Linear(3, 3)
        own = nn.Linear(3, 6)
        self.packed = nn.utils.parametrizations.weight_norm(own) if norm else own

    def forward(self, x):
        inner, outer = self.packed(self.inner(x).tanh()).chunk(2, -1)
        return x + inner + self.after(x), self.after(outer)


@pytest.mark.parametrize("norm", [False, True])
def test_the_zero_block_of_a_weight_is_judged_alone(norm):
    """Zero as a whole, it would leave the other output dead; without a zero block R1 fails."""
    row = _zoo_measure.judge(lambda: (Packed(norm), (torch.randn(2, 5, 3),)))
    assert row["zeros"] == 2
    assert row["verdict"] == "right", row
    model = Packed()
    roles = {name: "bias" if name.endswith("bias") else "transit" for name in model.state_dict()}
    given = (torch.randn(2, 5, 3),)
    for rows, missed in (([1.0, 0.0], 0), ([0.0, 1.0], 1)):
        part = torch.tensor(rows).repeat_interleave(3)[:, None]
        zero = roles | {"packed.weight": "zero", "after.weight": "zero"}
        row = _zoo_measure.roles(model, given, zero, {"packed.weight": part})
        assert len(row["missed"]) == missed


def test_an_attention_that_pytorch_fuses_without_gradients_is_seen():
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            return x + self.attention(x, x, x, need_weights=False)[0]

    row = found(Fused().eval(), ["attention.out_proj.weight"])
    assert row["adds"] == 1
    assert not any(row[key] for key in FAULTS)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_mask_is_no_source_of_a_branch():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Linear(4, 4)

        def forward(self, x):
            places = x.sigmoid()
            return places + self.weight(torch.ones(x.shape).masked_fill(places > 0.5, 0.0))

    assert found(Masked())["adds"] == 0


def test_a_bias_that_was_drawn_does_not_hide_that_a_branch_vanishes():
    model = Residual()
    assert model.down.bias.any()
    assert found(model, ["down.weight"], 3)["adds"] == 1


def test_a_constant_output_and_dead_matrices_are_seen():
    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.last(self.first(x) - 100).relu()

    model, x = Dead(), (torch.randn(2, 4),)
    with torch.no_grad():
        model.last.weight.copy_(torch.eye(4))
    assert _zoo_measure.constant(model, x)
    assert _zoo_measure.steps(model, x)["later"] == {name for name, _ in model.named_parameters()}


def test_side_effects_are_seen():
    model = nn.BatchNorm1d(3)
    before = _zoo_measure.state(model)
    model(torch.randn(4, 3))  # its running mean, and random numbers
    model.eval()
    names = _zoo_measure.changed(before, _zoo_measure.state(model))
    assert {"PyTorch's random numbers", "training flags", "buffer running_mean"} <= set(names)


@pytest.mark.nightly  # it forks, which a process with JAX's threads in it should not
def test_a_model_that_ends_its_process_does_not_end_the_run():
    def work(job):
        if job == "ends":
            raise SystemExit(3)
        if job == "turns":
            while True:
                pass
        return {"verdict": "right", "why": ""}

    rows = dict(_zoo_serve.served(["ends", "runs", "turns"], work, 2, seconds=1))
    assert rows["runs"] == {"verdict": "right", "why": ""}
    assert rows["ends"]["verdict"] == "failed"
    assert "1 seconds" in rows["turns"]["why"]


@pytest.mark.nightly  # likewise
@pytest.mark.parametrize("code", ["the same code", "other code"])
def test_a_stopped_run_goes_on(code, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "measure", lambda model: {"verdict": "right", "why": model})
    log = tmp_path / "rows.jsonl"
    zoo.run(["a/one"], log, 1)
    text = log.read_text().replace('"why": "a/one"', '"why": "known"')
    log.write_text(text + '{"model": "a/t')  # cut off
    if code == "other code":
        monkeypatch.setattr(zoo, "_source", lambda family: "")
    rows = zoo.run(["a/one", "a/two"], log, 1)
    assert [row["why"] for row in rows] == [
        "known" if code == "the same code" else "a/one",
        "a/two",
    ]
    assert len(log.read_text().splitlines()) == 2


@pytest.mark.parametrize("minutes", ["0", "-1"])
def test_without_time_the_page_is_written_of_what_is_known(minutes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(zoo, "prepare", lambda: None)
    monkeypatch.setattr(zoo, "models", lambda: ["a/one", "a/two"])
    log = tmp_path / "zoo.rows.jsonl"
    log.write_text(zoo._line({"model": "a/two", "verdict": "right", "why": ""}))
    zoo.main(["--minutes", minutes, "--out", str(tmp_path)])
    assert "1 models of 2" in (tmp_path / "zoo.md").read_text()
    assert log.exists()  # the next run goes on


def test_what_was_slow_or_not_built_comes_last(tmp_path, monkeypatch):
    asked = []
    page = {"a/1": "not built", "a/2": "failed", "a/3": "wrong"}
    rows = {"rows": [{"model": model, "verdict": held} for model, held in page.items()]}
    monkeypatch.setattr(zoo, "load", lambda name: rows)
    monkeypatch.setattr(zoo, "served", lambda todo, *more, **given: asked.extend(todo) or ())
    zoo.run(["a/1", "a/2", "a/3", "a/4"], tmp_path / "rows.jsonl", 1)
    assert asked == ["a/3", "a/4", "a/2", "a/1"]


@pytest.mark.parametrize("key", ["verdict", "missed"])
def test_worse_is_told_and_better_is_not(key):
    """So that the test of the sample can fail."""
    good = {"verdict": "wrong", "why": "", "missed": []}
    bad = good | ({"verdict": "refused"} if key == "verdict" else {"missed": ["an add"]})
    assert zoo.worse(bad, good)
    assert not zoo.worse(good, bad)
    assert not zoo.worse(good, good)


def test_every_mask_of_a_detector_has_both_classes():
    """Of one class alone a step learns all: the loss is 0, and so are all gradients."""
    _, targets = _zoo_others._images("torchvision", "maskrcnn_resnet50_fpn", nn.Identity(), 64)
    for target in targets:
        boxes = target["boxes"].int()
        for mask, (left, top, right, bottom) in zip(target["masks"], boxes, strict=True):
            assert mask[top:bottom, left:right].unique().tolist() == [0, 1]


def test_a_model_that_reads_its_widths_from_a_tensor_is_counted_without_memory(monkeypatch):
    def made(family, name, options):
        width = torch.tensor(options["width"]).tolist()
        return nn.Linear(width, width, bias=False)

    monkeypatch.setattr(_zoo_others, "_made", made)
    assert _zoo_others._size("timm", "huge", {"width": 20_000}) == 4 * 10**8
    assert _zoo_others._size("timm", "wrong", {}) == 0
    assert nn.Linear(2, 2).weight.device.type == "cpu"  # nothing is left of it


def test_an_empty_codebook_is_drawn_and_other_buffers_are_not():
    model = nn.BatchNorm1d(2)
    model.register_buffer("codes", torch.zeros(3, 2))
    _zoo_build._with_codebooks(model)
    assert model.codes.all()
    assert not model.running_mean.any()


def test_a_type_that_cannot_be_built_says_why(monkeypatch, quiet):
    monkeypatch.setattr(_zoo_build, "classes", lambda kind, config: [nn.Linear])
    with pytest.raises(_zoo_build.CannotBuildError, match=r"TypeError: .*out_features"):
        _zoo_build.build("bert")


@pytest.fixture(scope="module")
def page():
    """What the page says, by model."""
    return {row["model"]: row for row in load("zoo")["rows"]}


@pytest.fixture
def quiet():
    """As the command runs: one thread, and transformers' warnings are not ours."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


@pytest.mark.parametrize("kind", zoo.SAMPLE)
@pytest.mark.cases(2)
def test_no_model_is_worse_than_its_page_says(kind, page, quiet):
    model = f"transformers/{kind}"
    assert zoo.worse(zoo.measure(model), page[model]) == ""


@pytest.mark.nightly
def test_the_ends_of_branches_in_flax():
    """They are those that the model's own lines say, and all else is alive."""
    row = zoo.measure("flax/residual_mlp")
    assert (row["verdict"], row["why"], row["alive"]) == ("right", "", 1)
