"""The checks of `checks.py`: on each GPU that there is, and on the CPU, which proves the checks.

What runs "on the CPU" here says nothing about a GPU. Where a framework has none, one test of that
framework's name is skipped, and says so.
"""

from __future__ import annotations

import statistics

import numpy as np
import pytest
import torch

import idinit_ref as ir
import idinit_ref_torch as irt
from docs.evidence import _data, _decoder
from gpu import bandwidth, checks, trained
from gpu.places import FRAMEWORKS, UNTESTED, Place, Recorded, why_not

NO = {framework: why_not(framework) for framework in FRAMEWORKS}
PLACES = [Place(framework, gpu=False) for framework in FRAMEWORKS]
PLACES += [Place(framework, gpu=True) for framework in FRAMEWORKS if NO[framework] is None]
BOTH = [(place, check) for place in PLACES for check in checks.CHECKS[place.framework]]


@pytest.fixture(autouse=True)
def the_way_of_a_gpu(monkeypatch):
    """PyTorch's memory on the CPU is not written through NumPy here, as none of a GPU can be."""
    monkeypatch.setattr(irt._tensor, "_IN_NUMPY", {})


@pytest.mark.cases(999 if any(place.gpu for place in PLACES) else 3)
@pytest.mark.parametrize(
    ("place", "check"), BOTH, ids=[f"{place}-{check.__name__}" for place, check in BOTH]
)
def test_bits(place, check, x64):
    check(place)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_checks_ran_on_a_gpu(framework):
    if NO[framework] is not None:
        pytest.skip(f"{UNTESTED} with {framework}: {NO[framework]}")
    assert any(place.gpu for place, _ in BOTH if place.framework == framework)


# The checks can fail, and the CPU's stand-ins do what they stand for --------------------------


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_wrong_bit_is_noticed(framework, x64, monkeypatch):
    place = Place(framework, gpu=False)
    right = checks.expected

    def wrong(plan, dtype):
        out = right(plan, dtype)
        if out is not None and plan.shape == (300, 200):
            out[299, 0] = -out[299, 0]  # the sign of a zero
        return out

    monkeypatch.setattr(checks, "expected", wrong)
    with pytest.raises(AssertionError, match="300, 200"):
        checks.build_gives_the_bits(place)


def test_the_stand_in_of_a_graph_replays_and_refuses():
    weight = torch.ones(5, 4)
    replay = Recorded.of(lambda: irt.idi_(weight))
    weight.fill_(9)
    assert torch.equal(weight, torch.full((5, 4), 9.0))  # nothing yet
    replay()
    assert weight.numpy().tobytes() == ir.idi((5, 4), dtype="float32").tobytes()
    for unfit in (lambda: weight.sum().item(), lambda: weight.copy_(torch.tensor(np.ones(4)))):
        with pytest.raises(RuntimeError, match="not permitted during a capture"):
            Recorded.of(unfit)


def test_noise_cannot_be_captured():
    """It is drawn by the host: what a_captured_fill_is_replayed leaves out, and why."""
    with pytest.raises(RuntimeError, match="not permitted during a capture"):
        Recorded.of(lambda: irt.idi_(torch.ones(5, 4), loosen=0.1))


# The benchmark ------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_benchmark_measures_what_it_says(framework):
    place = Place(framework, gpu=False)
    size = bandwidth.measure(place, 2**16, rounds=3)
    assert set(size.seconds) == {"zero", "idi", "idiz", "copy"}
    assert all(len(took) == 3 and min(took) > 0 for took in size.seconds.values())
    data = bandwidth.gathered([(place, [size])], dict.fromkeys(FRAMEWORKS, "not here"))
    text = bandwidth.page(data)
    assert "of zero" in text
    assert text.count("| idi |") == text.count("| copy |") == 1
    assert f"| {statistics.median(size.seconds['zero']) * 1e3:.3f} ms |" in text
    assert all(f"{name}: not run" in text for name in FRAMEWORKS)


def test_the_page_without_a_gpu_holds_no_figures():
    text = bandwidth.page(bandwidth.gathered([], dict.fromkeys(FRAMEWORKS, "not here")))
    assert "No GPU could be used" in text
    assert "GB/s" not in text
    assert "|" not in text
    assert all(f"{name}: not run" in text for name in FRAMEWORKS)


def test_a_page_with_figures_is_not_lost_to_a_machine_without_a_gpu(tmp_path, monkeypatch):
    page, data = tmp_path / "gpu.md", tmp_path / "gpu.json"
    monkeypatch.setattr(bandwidth, "FOLDER", tmp_path)
    monkeypatch.setattr(_data, "FOLDER", tmp_path)
    monkeypatch.setattr(bandwidth, "why_not", lambda framework: "not here")
    bandwidth.main([])
    assert "No GPU could be used" in page.read_text()
    bandwidth.main([])
    data.write_text('{"rows": [1]}')
    page.write_text("figures\n")
    with pytest.raises(SystemExit, match="keeps its figures"):
        bandwidth.main([])
    assert page.read_text() == "figures\n"


def test_the_page_is_what_its_data_say():
    text = (_data.FOLDER / "gpu.md").read_text()
    assert text == bandwidth.page(_data.load("gpu"))
    assert ("GB/s" in text) == bool(_data.load("gpu")["rows"])


def test_the_benchmark_s_fills_are_the_weights():
    for framework in FRAMEWORKS:
        place = Place(framework, gpu=False)
        for name, shape, role in bandwidth.FILLS:
            array = bandwidth.Work(place, 2**12).filled(name)
            want = ir.plan(bandwidth.sizes(shape, 2**12), role).build(dtype="float32")
            assert np.asarray(array).tobytes() == want.tobytes(), (framework, name)


def test_what_there_was_no_time_for_is_named():
    data = trained.run(trained.TOY, "cpu", minutes=0)
    assert not data["rows"]
    assert len(data["left out"]) == len(trained.STARTS) * len(trained.SEEDS)


@pytest.mark.nightly
def test_the_large_transformer_is_trained_at_toy_size():
    row = trained.train(trained.TOY, "rezero", 1e-3, trained.TUNE, "cpu")
    assert row["first"] == pytest.approx(_decoder.CHANCE, abs=0.7)
    assert -row["score"] == pytest.approx(_decoder.CHANCE, abs=0.7)
