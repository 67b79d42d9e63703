"""What stored numbers are recognised as, and how two checkpoints differ, against NumPy."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from dataclasses import FrozenInstanceError, dataclass
from itertools import pairwise
from math import isnan
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import by_hand
import idinit_ref as ir
from idinit_ref.files.bits import DTYPES, FLOATS
from idinit_ref.files.difference import diff
from idinit_ref.files.recognise import inspect, recognise
from idinit_ref.files.storage import ArrayTensor, PlanTensor
from strategies import TAPS, examples

ORDERS = ["OI{}", "IO{}", "{}IO", "{}OI"]
VALUES = {"float8_e4m3fn": [1.0, -0.75, 0.25], "float8_e5m2": [1.0, -0.75, 0.3]}


def theirs(name):
    return np.dtype(getattr(ml_dtypes, name, name))


def bits(array):
    return array.view(f"u{array.dtype.itemsize}")


@st.composite
def zoo(draw):
    """A weight in a dtype: its options, and its array by the specification in plain loops."""
    kernel = "DHW"[draw(st.integers(0, 3)) :]
    layout = draw(st.sampled_from(["", "", "E", "EX"])) + draw(st.sampled_from(ORDERS)).format(
        kernel
    )
    size = {c: draw(st.integers(1, 4 if c not in "OI" else 9)) for c in layout}
    transposed, groups = draw(st.booleans()), draw(st.integers(1, 4))
    grouped = "I" if transposed else "O"
    size[grouped] = max(size[grouped] // groups, 1) * groups
    options = {"layout": layout, "groups": groups, "transposed": transposed}
    if draw(st.booleans()):
        cuts = sorted(draw(st.lists(st.integers(0, size["O"]), max_size=3)))
        options["blocks"] = tuple(b - a for a, b in pairwise([0, *cuts, size["O"]]))
    options["taps"] = draw(st.sampled_from(TAPS))
    if options["taps"] not in TAPS[-2:] and kernel and draw(st.booleans()):
        options["tap"] = tuple(draw(st.integers(0, size[c] - 1)) for c in kernel)
    if kernel and draw(st.integers(0, 3)) == 0:
        options["stride"] = tuple(draw(st.sampled_from([1, 2, 3, -2])) for c in kernel)
    dtype = draw(st.sampled_from(FLOATS))
    role = draw(st.sampled_from(["transit", "zero"]))
    if role == "zero":
        options["eps"] = draw(st.sampled_from(VALUES.get(dtype, [1e-6, 0.5, -1e-3])))
        options["form"] = draw(st.sampled_from(["pair", "shifted"]))
    else:
        options["gain"] = draw(st.sampled_from(VALUES.get(dtype, [1.0, -0.75, 1 / 3, 1e-3])))
        options["wide"] = draw(st.sampled_from(["truncate", "fold_rms", "fold_mean"]))
    shape = tuple(size[c] for c in layout)
    exact = by_hand.weight(shape, role, **options)
    with np.errstate(all="ignore"):
        array = exact.astype(theirs(dtype))
    assume(np.array_equal(array == 0, exact == 0))
    return {"role": role, **options}, array


def consistent(found, array):
    """A finding says nothing false of an array: a plan makes its bits, a constant is it."""
    if found.kind in ("idi", "idiz"):
        assert found.plan.role == {"idi": "transit", "idiz": "zero"}[found.kind]
        with np.errstate(all="ignore"):
            made = found.plan.build(dtype=array.dtype)
        assert np.array_equal(bits(made), bits(array))
    else:
        assert found.plan is None
    if found.kind == "zero":
        assert not array.any()
    if found.kind == "constant":
        assert found.value == array.flat[0].item() or isnan(abs(found.value))
        assert (bits(array) == bits(array).flat[0]).all()


@settings(max_examples=examples(12))
@given(zoo())
def test_a_weight_is_recognised_from_its_numbers_alone(weight):
    _, array = weight
    found = recognise(ArrayTensor(array))
    consistent(found, array)
    if len(np.unique(bits(array))) > 1:
        assert found.kind in ("idi", "idiz")
        assert (found.source, found.claim, found.digest) == ("pattern", None, None)


@pytest.mark.nightly
@pytest.mark.parametrize("_", range(100))
def test_many_weights_are_recognised_from_their_numbers_alone(_):
    test_a_weight_is_recognised_from_its_numbers_alone()


@pytest.mark.parametrize("gain", [0.25, 0.3, 1.0, 1.7])
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "bfloat16"])
def test_a_fold_of_blocks_whose_numbers_round_apart(dtype, gain):
    """One gain explains all of them, though none of them alone gives it."""
    options = {"blocks": (1, 3), "wide": "fold_rms", "layout": "DHWIO"}
    plan = ir.plan((1, 3, 3, 1, 4), gain=gain, **options)
    array = plan.build(dtype=dtype)
    found = recognise(ArrayTensor(array))
    assert found.kind == "idi"
    consistent(found, array)


@st.composite
def wide_upsamplings(draw):
    """A wide weight of a transposed layer: equal strides and paddings, entries in all columns."""
    axes, stride = draw(st.integers(1, 3)), draw(st.integers(2, 4))
    k = draw(st.integers(stride, 4 if axes == 3 else 6))
    layout = draw(st.sampled_from(["IO{}", "{}OI", "{}IO"])).format("DHW"[3 - axes :])
    size = dict.fromkeys("DHW", k) | {"I": draw(st.integers(1, 8)), "O": draw(st.integers(1, 4))}
    sign = -1 if layout.endswith("IO") else 1  # as Flax and lax.conv_transpose store them
    options = {"stride": (sign * stride,) * axes, "tap": (draw(st.integers(0, k - 1)),) * axes}
    options["taps"] = draw(st.sampled_from(["outward", "diagonal", "center"]))
    role = draw(st.sampled_from(["transit", "zero"]))
    options |= {"form": "shifted"} if role == "zero" else {}
    if role == "transit":
        options["wide"] = draw(st.sampled_from(["fold_rms", "fold_mean"]))
    return by_hand.weight(tuple(size[c] for c in layout), role, layout=layout, **options)


@settings(max_examples=examples(8))
@given(wide_upsamplings())
def test_a_wide_weight_of_phases_is_recognised_from_its_numbers_alone(exact):
    array = exact.astype(np.float32)
    found = recognise(ArrayTensor(array))
    consistent(found, array)
    assert found.kind != "other"


@pytest.mark.parametrize(("shape", "layout", "role", "options", "text"), [
    ((1, 2, 4, 4, 4), "IODHW", "zero", {"stride": (2, 2, 2), "tap": (1, 1, 1), "form": "shifted"},
     "idiz: IODHW, eps 1e-06, form shifted, stride (2, 2, 2)"),
    ((4, 1, 5, 5), "IOHW", "transit", {"stride": (2, 2), "tap": (2, 2), "wide": "fold_rms"},
     "idi: IOHW, gain 1.0, wide fold_rms, stride (2, 2)"),
    ((5, 5, 4, 1), "HWIO", "transit", {"stride": (-2, -2), "tap": (2, 2), "wide": "fold_rms"},
     "idi: HWIO, gain 1.0, wide fold_rms, stride (2, 2)"),  # with one output it is the same
    ((8, 3, 6, 6), "IOHW", "transit",
     {"stride": (3, 3), "tap": (1, 1), "taps": "diagonal", "wide": "fold_mean"},
     "idi: IOHW, gain 1.0, wide fold_mean, stride (3, 3), taps diagonal, tap (1, 1)"),
])  # fmt: skip
def test_wide_weights_of_transposed_layers(shape, layout, role, options, text):
    exact = by_hand.weight(shape, role, layout=layout, **options)
    assert str(found(exact.astype(np.float32))) == text


@given(zoo())
def test_a_claim_that_holds_is_the_plan(weight):
    claim, array = weight
    for stored in (claim, json.loads(json.dumps(claim))):  # tuples are lists in a file
        found = recognise(ArrayTensor(array), claim=stored)
        assert (found.claim, found.source) == (True, "claim")
        assert found.plan == ir.plan(array.shape, **claim)


@settings(max_examples=examples(2))  # what is no weight is compared with all of them
@given(zoo(), st.data())
def test_one_changed_entry_is_not_that_weight(weight, data):
    claim, array = weight
    changed = array.copy()
    place = tuple(data.draw(st.integers(0, n - 1)) for n in array.shape)
    was = array[place]
    new = data.draw(st.sampled_from([np.nan, -0.0, 0.0, 0.5, -was, 2 * was]))
    with np.errstate(all="ignore"):
        changed[place] = new
    assume(not np.array_equal(bits(changed), bits(array)))
    found = recognise(ArrayTensor(changed), claim=claim)
    assert found.claim is False
    number = repr(changed[place].item()) if array.dtype.kind != "V" else repr(float(changed[place]))
    assert f"but {list(place)} is {number}, not " in found.detail
    consistent(found, changed)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("new", [0.0, -0.0, 1.0, -1.0, 3.0, np.nan])
@pytest.mark.parametrize("options", [
    {}, {"role": "zero", "eps": 0.5}, {"wide": "fold_mean", "layout": "IO"},
    {"blocks": (20, 10, 10)},
])  # fmt: skip
def test_a_change_anywhere_is_seen_in_larger_weights(dtype, new, options):
    made = ir.plan((40, 12) if options.get("layout") != "IO" else (37, 11), **options)
    array = made.build(dtype=theirs(dtype))
    rng = np.random.default_rng(len(dtype))
    at = {(0, 0), tuple(n - 1 for n in array.shape)}
    at |= {tuple(rng.integers(0, array.shape)) for _ in range(4)}
    ones = [tuple(place) for place in np.argwhere(array != 0)[[0, 5, -1]]]
    for place in at | set(ones):
        changed = array.copy()
        changed[place] = new
        if not np.array_equal(bits(changed), bits(array)):
            assert recognise(ArrayTensor(changed)).kind == "other"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("gain", [0.1, 1 / 3, 2**0.5, 1024.0, -0.007, 1e-6])
def test_gain_and_eps_are_the_shortest_decimals(dtype, gain):
    kind = theirs(dtype).type
    decimals = [float(f"{gain:.{digits}e}") for digits in range(17)]
    shortest = next(number for number in decimals if kind(number) == kind(gain))
    for plan in (ir.plan((9, 4), gain=gain), ir.plan((5, 7), "zero", eps=gain)):
        made = found(plan.build(dtype=theirs(dtype))).plan
        number = made.gain if plan.role == "transit" else made.eps
        assert kind(number) == kind(gain)
        assert len(repr(number)) <= len(repr(shortest))


def found(array, **more):
    return recognise(ArrayTensor(array), **more)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (ir.idiz((64, 16, 3, 3), dtype="float16"), "idiz: OIHW, eps 1e-06"),
        (ir.idi((16, 64), layout="IO"), "idi: IO, gain 1.0"),
        (ir.idi((101, 101), dtype=theirs("bfloat16")), "idi: OI, gain 1.0"),
        (ir.idi((5, 5)), "idi: OI, gain 1.0"),  # as IO it would be the same: not told
        (ir.idi((48, 32), blocks=(32, 8, 8)), "idi: OI, gain 1.0, blocks (32, 8, 8)"),
        (ir.idi((128, 24), blocks=(32,) * 4), "idi: OI, gain 1.0, blocks (32, 32, 32, 32)"),
        (ir.idi((3, 8, 5), layout="EIO"), "idi: EIO, gain 1.0"),
        (ir.idi((32, 8, 3, 3), groups=4),
         "idi: OIHW, gain 1.0, groups 4; also OIHW, gain 1.0, taps center"),
        (ir.idi((32, 8, 3, 3), groups=4, taps="channel_major"),
         "idi: OIHW, gain 1.0, groups 4, taps channel_major"),
        (ir.idi((4, 6, 3, 3), taps="center"), "idi: OIHW, gain 1.0"),  # outward is the same
        (ir.idi((8, 6, 3, 3), taps="center"), "idi: OIHW, gain 1.0, taps center"),
        (ir.idi((8, 6, 3, 3), taps="center", tap=(2, 0)),
         "idi: OIHW, gain 1.0, taps center, tap (2, 0)"),
        (ir.idi((8, 6, 3, 3), tap=(2, 0)), "idi: OIHW, gain 1.0, tap (2, 0)"),
        (ir.idi((8, 6, 3, 3), taps="diagonal"), "idi: OIHW, gain 1.0, taps diagonal"),
        (ir.idi((8, 6, 3, 3), taps="channel_major"), "idi: OIHW, gain 1.0, taps channel_major"),
        (ir.idi((8, 5, 4, 4), layout="IOHW", stride=(2, 2)),
         "idi: IOHW, gain 1.0, stride (2, 2)"),
        (ir.idiz((8, 5, 4, 4), layout="IOHW", stride=(2, 2), taps="diagonal"),
         "idiz: IOHW, eps 1e-06, stride (2, 2), taps diagonal"),
        (ir.idi((8, 5, 4, 4), layout="IOHW", stride=(2, 1)),
         "idi: IOHW, gain 1.0, stride (2, 1)"),
        (ir.idi((4, 3, 5), layout="WIO", stride=(-2,)),
         "idi: WIO, gain 1.0, stride (2,), tap (0,)"),
        (ir.idiz((3, 17), form="shifted"), "idiz: OI, eps 1e-06, form shifted"),
        (ir.idiz((3, 5, 3, 3), form="shifted", eps=-0.5, taps="diagonal"),
         "idiz: OIHW, eps -0.5, form shifted, taps diagonal"),
        (ir.idiz((17, 3), form="shifted"), "idiz: OI, eps 1e-06"),  # which is no other there
        (ir.idi((3, 3, 4, 6), layout="HWIO"), "idi: HWIO, gain 1.0"),
        (ir.idiz((7, 1, 3, 3), groups=7, taps="center"),
         "idiz: OIHW, eps 1e-06, groups 7, taps center"),
        (ir.idi((7, 1, 3, 3), groups=7),
         "idi: OIHW, gain 1.0, groups 7; also OIHW, gain 1.0, taps center"),
        (ir.idi((3, 7), wide="fold_rms"), "idi: OI, gain 1.0, wide fold_rms"),
        (ir.idi((5, 1)), "idi: OI, gain 1.0"),
        (np.ones((4, 4)), "constant: 1.0"),
        (np.ones(3, "i2"), "constant: 1"),
        (np.array(True), "constant: True"),
        (np.array(1j, "c8"), "constant: 1j"),
        (np.full(3, np.nan), "constant: nan"),
        (np.zeros((2, 3), "u8"), "zero"),
        (np.zeros((2, 3), ml_dtypes.float8_e4m3fn), "zero"),
        (np.full(3, -0.0), "zero: -0.0"),
        (np.array([-0.0, 0.0]), "zero: 0.0 and -0.0"),
        (np.zeros((0, 3)), "zero: no entries"),
        (np.array([1, np.inf, np.nan, 3], ">f4"),
         "other: 1 of 4 not zero, 1 to 3, mean 2, standard deviation 1, 1 NaN, 1 infinite"),
    ],
)  # fmt: skip
def test_one_line(array, text):
    assert str(found(array)) == text


def test_a_finding_is_frozen():
    with pytest.raises(FrozenInstanceError):
        found(np.ones(2)).kind = "zero"


def test_among_plans_that_fit_the_claim_comes_first_then_the_rules():
    packed = ir.idi((4, 12), layout="IO")  # [I I I]: also three blocks, also a fold
    name = "h.0.attn.c_attn.weight"
    by_rule = ir.plan((4, 12), layout="IO", blocks=(4, 4, 4))
    assert (found(packed, name=name).plan, found(packed, name=name).source) == (by_rule, "rules")
    claimed = found(packed, name=name, claim={"layout": "IO"})
    assert (claimed.plan, claimed.source) == (ir.plan((4, 12), layout="IO"), "claim")
    alone = found(packed, name="no such name")
    assert (alone.plan, alone.source) == (claimed.plan, "pattern")
    assert alone.detail == "IO, gain 1.0"


def test_a_rule_may_need_the_other_names():
    name = "resnet.encoder.stages.0.layers.0.layer.1.convolution.weight"
    weight = ir.idiz((1, 1, 3, 3), taps="center")  # or IDI with a small gain
    assert found(weight, name=name).source == "pattern"
    plain = ir.idiz((4, 2, 3, 3))
    assert found(plain, name=name, names=[name]).source == "rules"


@pytest.mark.parametrize(
    ("claim", "text"),
    [
        ({"gain": 2}, "claimed IDI OI, gain 2.0, but [0, 0] is 1.0, not 2.0"),
        ({"role": "zero"}, "claimed IDIZ OI, eps 1e-06, but [0, 0] is 1.0, not 1e-06"),
        ({"blocks": [2, 2]}, "blocks (2, 2), but [2, 0] is 0.0, not 1.0"),
        ({"loosen": 0.1, "seed": 3}, "loosen 0.1, seed 3, but [0, 0] is 1.0, not "),
        ({"layout": "II"}, "the claim is impossible: layout = 'II', but"),
        ({"gain": "1"}, "the claim is impossible: gain = '1', but it should be a real number"),
        ({"colour\x1b[0m": 1}, "the claim is not a plan: unknown options 'colour\\x1b[0m'"),
        ({"shape": [4, 3]}, "the claim is not a plan: unknown options 'shape'"),
        (["gain"], "the claim is not a plan: ['gain']"),
        ({"role": []}, "the claim is impossible: role = [], but"),
    ],
)  # fmt: skip
def test_a_wrong_claim_is_said_in_detail(claim, text):
    finding = found(ir.idi((4, 3)), claim=claim)
    assert (finding.claim, finding.kind, finding.plan) == (False, "idi", ir.plan((4, 3)))
    assert text in finding.detail
    assert len(finding.detail.splitlines()) == 1


def test_a_late_change_is_seen_and_its_place_told():
    array = ir.idi((3000, 1000), dtype="float16")
    array[2900, 7] = 0.25
    finding = found(array, claim={})
    assert finding.kind == "other"
    assert "but [2900, 7] is 0.25, not 0.0" in finding.detail


@pytest.mark.parametrize("shape", [(3, 2, 3, 3), (4, 3, 3, 2), (2, 2, 1, 3, 3)])
@pytest.mark.cases(1)
def test_a_window_on_many_ones_is_enough_to_say_no(shape, monkeypatch):
    monkeypatch.setattr("idinit_ref.files.patterns._WINDOW", 20)
    array = np.ones(shape, np.float32)
    array.flat[-1] = 2
    assert found(array).kind == "other"


def test_every_copy_has_to_hold():
    array = ir.idi((3, 600, 600), layout="EOI")
    assert found(array).kind == "idi"
    array[2] = array[2, ::-1].copy()
    assert found(array).kind == "other"


def test_what_the_rules_say_has_to_hold():
    finding = found(np.eye(9)[::-1], name="model.layers.0.self_attn.q_proj.weight")
    assert (finding.kind, finding.source) == ("other", None)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=5), st.data())
def test_no_pattern_of_ones_is_an_error(shape, data):
    array = np.zeros(shape, np.float32)
    places = st.lists(st.integers(0, array.size - 1), max_size=array.size)
    array.flat[data.draw(places)] = 1
    array.flat[data.draw(places)] *= data.draw(st.sampled_from([-1, 2]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("idinit_ref.files.patterns._WINDOW", data.draw(st.integers(1, 99)))
        consistent(found(array), array)


def test_a_claim_of_integers_or_of_what_rounds_to_zero_cannot_be():
    assert "dtype = 'int32', but" in found(np.eye(3, dtype="i4"), claim={}).detail
    small = found(ir.idi((3, 3), dtype="float16"), claim={"role": "zero", "eps": 1e-9})
    assert "it rounds to 0 in float16" in small.detail


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(40, 30), (300, 5, 3, 3)])
def test_a_loosened_weight_is_recognised_by_its_claim_only(dtype, shape):
    claim = {"loosen": 0.01, "seed": 7}
    array = ir.idi(shape, **claim, dtype=theirs(dtype))
    assert found(array, claim=claim).plan == ir.plan(shape, **claim)
    assert found(array).kind == "other"
    array[-1, -1] += 1
    assert f"but {[n - 1 for n in shape[:2]]}"[:-1] in found(array, claim=claim).detail


def test_noise_in_too_long_rows_is_not_made_again():
    long = np.broadcast_to(np.float32(1), (1, 2**22))
    finding = found(long, claim={"loosen": 0.1})
    assert (finding.claim, finding.kind) == (None, "constant")
    assert "the claim is not checked" in finding.detail


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != "complex64"])
def test_statistics_are_those_of_numpy(dtype):
    rng = np.random.default_rng(1)
    array = (rng.standard_normal((900, 700)) * 5 + 3).astype(np.float32)
    array[rng.random(array.shape) < 0.3] = 0
    array = (np.abs(array) if dtype[0] in "ub" and dtype != "bfloat16" else array).astype(
        theirs(dtype)
    )
    if dtype in FLOATS:
        array[3, 4] = np.nan
        if dtype != "float8_e4m3fn":
            array[0, 1] = -np.inf
    numbers = found(array).numbers
    exact = array.astype(np.float64)
    finite = exact[np.isfinite(exact)]
    assert numbers.size == array.size
    assert numbers.nonzero == np.count_nonzero(exact)
    assert (numbers.nan, numbers.infinite) == (np.isnan(exact).sum(), np.isinf(exact).sum())
    assert (numbers.low, numbers.high) == (finite.min(), finite.max())
    assert numbers.mean == pytest.approx(finite.mean(), rel=1e-9)
    assert numbers.std == pytest.approx(finite.std(), rel=1e-9)


def test_statistics_of_complex_numbers_are_those_of_their_parts():
    array = np.array([[1 + 2j, 0], [3j, -4]], "c8")
    numbers = found(array).numbers
    parts = array.view("f4")
    assert (numbers.nonzero, numbers.low, numbers.high) == (3, -4, 3)
    assert (numbers.mean, numbers.std) == pytest.approx((parts.mean(), parts.std()))


@pytest.mark.parametrize("sparse", [0.0, 0.9, 0.9999])
def test_random_numbers_are_no_plan(sparse):
    rng = np.random.default_rng(2)
    array = rng.standard_normal((800, 900)).astype(np.float32)
    array[rng.random(array.shape) < sparse] = 0
    for weight in (array, np.sign(array)):
        assert found(weight).kind == "other"


@dataclass(frozen=True)
class Virtual:
    """A plan as a file would hold it."""

    plan: ir.Plan
    dtype: str

    @property
    def shape(self):
        return self.plan.shape

    def read(self, index, dtype):
        assert dtype == self.dtype
        return PlanTensor(self.plan).read(index, dtype)


def peak(run):
    tracemalloc.start()
    out = run()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return out, most


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((4096, 16384), {"role": "zero"}),
        ((4096, 16384), {"layout": "IO"}),
        ((30, 1024, 512), {"layout": "EOI", "role": "zero"}),
        ((4096, 4096, 3), {"wide": "fold_rms"}),
    ],
)
@pytest.mark.cases(1)
def test_a_large_weight_takes_little_memory(shape, options, dtype):
    plan = ir.plan(shape, **options)
    for claim in (None, options):
        finding, most = peak(lambda claim=claim: recognise(Virtual(plan, dtype), claim=claim))
        assert finding.plan == plan
        assert most < 50e6


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8"])
def test_other_large_tensors_take_little_memory(dtype):
    rng = np.random.default_rng(3)
    row = rng.integers(-1, 2, 16384).astype(dtype)
    ones = np.broadcast_to(np.ones(1, dtype), (1024, 16384))
    for array, kind in ((np.broadcast_to(row, (1024, 16384)), "other"), (ones, "constant")):
        finding, most = peak(lambda array=array: found(array))
        assert finding.kind == kind
        assert most < 50e6


def test_a_claim_has_a_role_for_each_block():
    claim = {"role": ["transit", "zero"], "blocks": [2, 3], "eps": 0.5}
    array = np.vstack([by_hand.idi_matrix(2, 4, 1.0), by_hand.idiz_matrix(3, 4, 0.5)])
    found = recognise(ArrayTensor(array), claim=claim)
    assert (found.kind, found.source, found.claim) == ("idi+idiz", "claim", True)
    assert found.plan.roles == ("transit", "zero")
    assert "gain 1.0, eps 0.5, role ('transit', 'zero')" in str(found)
    array[4, 0] = 3.0
    found = recognise(ArrayTensor(array), claim=claim)
    assert (found.kind, found.claim) == ("other", False)
    assert "claimed IDI+IDIZ OI, gain 1.0, eps 0.5" in found.detail
    assert "[4, 0] is 3.0, not 0.0" in found.detail


# Checkpoints --------------------------------------------------------------------------------------


def checkpoint(tensors, **metadata):
    return SimpleNamespace(
        tensors={name: ArrayTensor(array) for name, array in tensors.items()},
        metadata={key.replace("__", "."): value for key, value in metadata.items()},
    )


def test_inspect_reads_claims_and_digests():
    tensors = {"a": ir.idi((4, 8)), "b": ir.idiz((3, 3)), "c": np.zeros(3, "f4")}
    plans = {"a": {"role": "transit", "layout": "OI"}, "b": {"role": "zero", "eps": 1.0}}
    right = hashlib.sha256(tensors["a"].tobytes()).hexdigest()
    file = checkpoint(
        tensors,
        idinit_ref__plans=json.dumps(plans),
        idinit_ref__sha256=json.dumps({"a": right, "b": right}),
    )
    steps = []
    seen = {name: finding for name, _, finding in inspect(file, lambda *s: steps.append(s))}
    assert list(seen) == ["a", "b", "c"]
    assert [f.kind for f in seen.values()] == ["idi", "idiz", "zero"]
    assert [f.claim for f in seen.values()] == [True, False, None]
    assert [f.digest for f in seen.values()] == [True, False, None]
    assert f"SHA-256 is {hashlib.sha256(tensors['b']).hexdigest()}, not {right}" in seen["b"].detail
    total = sum(array.nbytes for array in tensors.values())
    assert steps[-1] == (total, total)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "3", "null", '{"a": 3}', "[" * 10**5, '{"b": {}}']
)
def test_garbage_in_the_metadata_is_no_claim(text):
    file = checkpoint({"a": ir.idi((4, 8))}, idinit_ref__plans=text, idinit_ref__sha256=text)
    ((_, _, finding),) = inspect(file)
    assert finding.kind == "idi"
    assert finding.source == "pattern"
    assert finding.digest is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_digest_is_that_of_the_stored_bytes(dtype):
    array = np.arange(12).reshape(3, 4).astype(theirs(dtype))
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    assert found(array, digest=digest).digest is True
    if array.dtype.kind != "V":  # NumPy's own
        swapped = array.astype(array.dtype.newbyteorder(">"))
        assert found(swapped, digest=digest).digest is True
    assert found(array, digest=digest[::-1]).digest is False


# Two of them --------------------------------------------------------------------------------------


def one(a, b):
    (difference,) = diff({"w": ArrayTensor(a)}, {"w": ArrayTensor(b)})
    return difference


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_differences_are_those_of_numpy(dtype, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    shape = tuple(data.draw(st.lists(st.integers(1, 5), max_size=3)))
    a = np.asarray(rng.integers(0, 2 if dtype == "bool" else 100, shape)).astype(theirs(dtype))
    b, changed = a.copy(), data.draw(st.integers(0, 4))
    for _ in range(changed):
        b[tuple(rng.integers(0, shape))] = rng.integers(0, 100)
    where = np.argwhere(np.asarray(a != b))
    difference = one(a, b)
    assert difference.way == ("values" if len(where) else "equal")
    assert (difference.size, difference.count) == (a.size, len(where))
    if len(where):
        wide = "c16" if dtype == "complex64" else "f8"
        assert difference.largest == np.abs(a.astype(wide) - b.astype(wide)).max()
        assert difference.first == tuple(where[0])
        first = tuple(where[0])
        assert difference.values == (a[first].item(), b[first].item())
    else:
        assert (difference.largest, difference.first, difference.values) == (None, None, None)


def test_a_nan_is_a_nan_and_a_sign_is_a_sign():
    nan = np.array([np.nan, 1.0, 0.0])
    other = nan.copy()
    other.view("u8")[0] += 1
    assert one(nan, other).way == "equal"
    signed = one(nan, np.array([np.nan, 1.0, -0.0]))
    assert (signed.way, signed.count, signed.largest, signed.first) == ("values", 1, 0.0, (2,))
    against = one(nan, np.array([2.0, 1.0, 0.0]))
    assert (against.count, against.largest) == (1, np.inf)
    assert str(against).endswith("first at [0]: nan and 2.0")


def test_integers_differ_exactly():
    low, high = np.array([-(2**63)]), np.array([2**63 - 1])
    assert one(low, high).largest == 2**64 - 1
    assert one(high, np.array([2.0**63])).count == 1  # equal in float64
    assert one(np.array([2**62]), np.array([2.0**62])).count == 0
    assert one(high, np.array([2**63], "u8")).count == 1
    assert one(np.array([1, 0], "?"), np.array([1, 1], "u1")).count == 1


@pytest.mark.parametrize(("wide", "narrow"), [("float32", "bfloat16"), ("float64", "float16"),
                                              ("bfloat16", "float8_e5m2")])  # fmt: skip
def test_another_dtype_is_compared_exactly(wide, narrow):
    rng = np.random.default_rng(5)
    a = rng.standard_normal((40, 30)).astype(theirs(wide))
    a[1, 1] = np.nan
    b = a.astype(theirs(narrow))
    difference = one(a, b)
    assert (difference.way, difference.rounded) == ("dtype", "a")
    apart = np.abs(a.astype("f8") - b.astype("f8"))
    assert (difference.count, difference.largest) == ((apart > 0).sum(), np.nanmax(apart))
    assert f"equal after rounding a to {narrow}" in str(difference)
    assert one(b, a).rounded == "b"
    b[3, 3] += 1
    assert one(a, b).rounded is None
    exact = one(b, b.astype(theirs(wide)))
    assert (exact.way, exact.count, exact.first) == ("dtype", 0, None)
    assert str(exact) == f"w: {narrow} in a, {wide} in b; the same numbers"


def test_an_overflow_is_no_rounding():
    assert one(np.array([1e30, 1], "f4"), np.array([np.inf, 1], "f2")).rounded is None


def test_names_and_shapes():
    a = {"model.layers.0.fc.weight": np.zeros((2, 3)), "t": np.zeros((2, 3)), "s": np.zeros(2)}
    b = {"layers.0.fc.weight": np.zeros((2, 3)), "t": np.zeros((3, 2)), "s": np.zeros(3)}
    found = {d.name: d for d in diff(a, b)}
    assert list(found) == ["model.layers.0.fc.weight", "t", "s", "layers.0.fc.weight"]
    first, t, s, last = found.values()
    assert (first.way, first.close) == ("only in a", ("layers.0.fc.weight",))
    assert (last.way, last.close) == ("only in b", ("model.layers.0.fc.weight",))
    assert (first.shapes, last.dtypes) == (((2, 3), None), (None, "float64"))
    assert (t.way, t.transposed, s.way, s.transposed) == ("shape", True, "shape", False)
    assert str(t) == (
        "t: shape (2, 3) in a, (3, 2) in b; only the order of axes differs: try --dialect"
    )
    assert str(s) == "s: shape (2,) in a, (3,) in b"
    assert str(last) == "layers.0.fc.weight: only in b; like model.layers.0.fc.weight"


def test_a_plan_is_compared_in_the_dtype_of_its_partner():
    plan = ir.plan((300, 4000), "zero")
    held = ArrayTensor(plan.build(dtype=theirs("bfloat16")))
    for a, b in (
        (PlanTensor(plan), held),
        (held, PlanTensor(plan)),
        (PlanTensor(plan), PlanTensor(plan)),
    ):
        (difference,) = diff({"w": a}, {"w": b})
        assert difference.way == "equal"
    steps = []
    list(diff({"w": held}, {"w": held}, lambda *s: steps.append(s)))
    assert steps[-1] == (1_200_000, 1_200_000)
    assert len(steps) > 1


def test_the_first_difference_may_lie_in_a_later_block():
    a = np.zeros((3, 600_000), "i2")
    b = a.copy()
    b[2, 599_999] = 7
    b[1, 500] = -9
    difference = one(a, b)
    assert (difference.first, difference.values, difference.largest) == ((1, 500), (0, -9), 9)
    assert difference.count == 2
    with_one = a.copy()
    with_one[0, 0] = 1
    _, most = peak(lambda: one(with_one, b))
    assert most < 30e6
