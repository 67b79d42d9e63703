"""The oracle itself: the reference passes, and the oracle is hard to break."""

from __future__ import annotations

import functools
import json
import pickle
import signal
import sys
import threading

import jax
import keras
import numpy as np
import pytest
import torch

import idinit_ref as ir
import idinit_ref_jax as irj
import idinit_ref_tensorflow as irk
import idinit_ref_torch as irt
from idinit_ref.errors import OptionError, OptionTypeError
from idinit_ref.testing import (
    PROPERTIES,
    OracleReport,
    check_exact,
    check_rank,
    check_transit,
    make_oracle,
)
from oracle.wrong import idi, idiz, shifted_idiz
from strategies import TAPS, examples

STILL = lambda: 0.0  # noqa: E731 (a clock by which no time passes)
KERAS = {"layout": "IO", "conv": "HWIO"}
ABOUT_IDI = {"transit", "image", "isometry", "composition"}
ABOUT_IDIZ = {"zero_sums", "residual", "units"}


def named(value):
    """The part of a case's name that a value gives."""
    if isinstance(value, dict):
        return ",".join(f"{k}={getattr(v, '__name__', v)}" for k, v in value.items())
    if isinstance(value, set):
        return ""
    value = getattr(value, "func", value)  # of a partial, whose text has an address
    return getattr(value, "__name__", type(value).__name__)


def untested(report):
    return {outcome.property for outcome in report.outcomes if outcome.verdict == "untested"}


REFERENCES = [
    (ir.idi, {"conv": "OIHW"}, ABOUT_IDIZ | {"device"}),
    (ir.idiz, {"conv": "DHWIO", "layout": "IO"}, ABOUT_IDI | {"device"}),
    (
        lambda s: ir.idi(s, layout="IOW", stride=(2,)),
        {"layout": None, "conv": "IOW", "stride": (2,)},
        ABOUT_IDIZ | {"device", "groups", "underflow"},
    ),
    (
        lambda s: ir.idiz(s, form="shifted"),
        {"form": "shifted", "roles": "zero"},
        ABOUT_IDI | {"device", "groups", "underflow"},
    ),
    (
        functools.partial(ir.idi, taps="diagonal"),
        {"conv": "OIHW", "taps": "diagonal"},
        ABOUT_IDIZ | {"device"},
    ),
    (ir.idi, {"layout": "EOI", "conv": "OIW"}, ABOUT_IDIZ | {"device"}),
    (ir.idi, {"xp": "torch", "conv": "OIHW"}, ABOUT_IDIZ),
    (ir.idiz, {"xp": torch, "conv": "IOHW"}, ABOUT_IDI),
    (ir.idi, {"xp": jax.numpy, "conv": "HWIO"}, ABOUT_IDIZ | {"device"}),
    (ir.idi, {"xp": "array_api_strict", "conv": "OIW"}, ABOUT_IDIZ),
    (irt.idi_, {"conv": "OIHW"}, ABOUT_IDIZ),
    (irt.idiz_, {"conv": "OIDHW"}, ABOUT_IDI),
    (irj.idi, KERAS, ABOUT_IDIZ | {"device"}),
    (irj.idiz, KERAS, ABOUT_IDI | {"device"}),
    (irk.IDI, KERAS, ABOUT_IDIZ | {"device"}),
    (irk.IDIZ, KERAS, ABOUT_IDI | {"device"}),
    (irk.idi_, {**KERAS, "xp": "tensorflow"}, ABOUT_IDIZ | {"device"}),
]
FIRST = [REFERENCES[number] for number in (0, 1, 6, 10, 12, 14, 16)]  # each way of each framework


@pytest.mark.hypothesis
@pytest.mark.every
@pytest.mark.parametrize(
    ("make", "options", "silent"),
    [
        pytest.param(*case, marks=[] if case in FIRST else pytest.mark.nightly)
        for case in REFERENCES
    ],
    ids=named,
)
def test_the_reference_passes_all_in_every_framework(make, options, silent):
    compiled = options.get("xp") is jax.numpy or options is KERAS  # each shape anew
    count = examples(2 if compiled else 4)
    report = make_oracle(make, examples=count, clock=STILL, **options).run()
    assert report.ok, str(report)
    assert untested(report) == silent


@pytest.mark.hypothesis
@pytest.mark.cases(5)
@pytest.mark.parametrize("stride", [None, (2, 2)], ids=str)
@pytest.mark.parametrize("wide", ["truncate", "fold_rms", "fold_mean"])
@pytest.mark.parametrize("taps", TAPS)
def test_a_right_function_of_a_shape_alone_is_not_broken(taps, wide, stride):
    """It has no parameter for an option, so properties that need another value are not asked."""

    def mine(shape):
        kernel = {"taps": taps, "stride": stride} if len(shape) > 2 else {}
        return ir.idi(shape, wide=wide, **kernel)

    options = {"taps": taps, "wide": wide, "stride": stride}
    report = make_oracle(mine, conv="OIHW", examples=examples(4), clock=STILL, **options).run()
    assert report.ok, str(report)
    is_image = taps in ("outward", "center") and wide == "truncate"
    assert ("image" in untested(report)) is not is_image


def both(shape, role="transit", tau=1.0, epsilon=1e-6):
    return idi(shape, tau) if role == "transit" else idiz(shape, epsilon)


class Initializer:
    """As in Keras."""

    def __init__(self, gain=1.0):
        self.gain = gain

    def __call__(self, shape, dtype=None):
        return idi(shape, self.gain).astype(dtype or "float32")


def factory(gain=1.0):
    return lambda key, shape, dtype="float32": jax.numpy.asarray(idi(shape, gain), dtype)


@pytest.mark.parametrize(
    ("make", "options", "call"),
    [
        (lambda shape: idi(shape), {}, "f((1, 1))"),
        (both, {}, "both((1, 1))"),
        (functools.partial(both, role="zero"), {"roles": ("zero",), "name": "g"}, "g((1, 1))"),
        (Initializer, {}, "Initializer()((1, 1))"),
        (Initializer(), {}, "Initializer((1, 1))"),
        (factory, {}, "factory()(jax.random.key(0), (1, 1))"),
        (factory(), {}, "f(jax.random.key(0), (1, 1))"),
        (lambda shape: np.asfortranarray(idi(shape)), {}, "f((1, 1))"),
        (lambda shape, *rest, **more: idi(shape), {}, "f((1, 1))"),
        (lambda shape, gain=1.0, /: idi(shape, gain), {}, "f((1, 1))"),
        (lambda shape, wide=True: idi(shape), {}, "f((1, 1))"),
    ],
    ids=[
        *("lambda", "both", "partial", "class", "object", "factory", "made by a factory"),
        *("fortran order", "any arguments", "positional only", "wide of another kind"),
    ],
)
@pytest.mark.cases(5)
def test_how_it_is_called_is_found_from_the_signature(make, options, call):
    oracle = make_oracle(make, examples=4, clock=STILL, **options)
    broken = {"zero": set(), "transit": {"underflow", "exact"}}[
        options.get("roles", ["transit"])[0]
    ]
    told = {}
    report = oracle.run(told.__setitem__)
    assert {o.property for o in report.broken} <= {*broken, "underflow"}, str(report)
    assert told["about"].endswith(f"called as {call}")


@pytest.mark.parametrize(
    ("make", "options", "error", "says"),
    [
        (3, {}, OptionTypeError, "it should be callable; give f"),
        (lambda m, n: None, {}, OptionTypeError, "what to pass for 'n'"),
        (lambda: None, {}, OptionTypeError, "returned NoneType"),
        (idi, {"expect": ["exact", "best"]}, OptionError, "'best'"),
        (idi, {"roles": "both"}, OptionError, "'transit', 'zero'"),
        (idi, {"layout": None}, OptionError, "give conv="),
        (idi, {"layout": "OX"}, ir.errors.LayoutError, "'I' \\(inputs\\) is missing"),
        (idi, {"conv": "OI"}, OptionError, "spatial letters"),
        (idi, {"xp": 3}, OptionError, "array namespace"),
        (idi, {"budget": "long"}, OptionTypeError, "seconds > 0"),
        (idi, {"budget": float("inf")}, OptionError, "seconds > 0, from 0.01 to 100000"),
        (idi, {"expect": 5}, OptionError, "expect = 5, but it should be one of 'exact'"),
        (idi, {"expect": []}, OptionError, "it should name at least one"),
        (idi, {"roles": 5}, OptionError, "roles = 5, but it should be one of 'transit'"),
        (idi, {"layout": 5}, OptionTypeError, "layout = 5, but it should be a string of axis"),
        (idi, {"conv": 3}, OptionTypeError, "conv = 3, but it should be a string of axis"),
        (idi, {"only": 5}, OptionTypeError, "it should be a function of a plan"),
        (idi, {"clock": 5}, OptionTypeError, "it should be a function without parameters"),
        (idi, {"examples": 0}, OptionError, ">= 1"),
        (idi, {"taps": "spiral"}, OptionError, "'outward', 'diagonal'"),
        (idi, {"form": "pear"}, OptionError, "'pair', 'shifted'"),
        (idi, {"stride": (2,)}, OptionError, "none are tested; give conv="),
        (idi, {"conv": "OIHW", "stride": (2,)}, OptionError, "one number for each of the 2"),
    ],
    ids=named,
)
def test_a_wrong_question(make, options, error, says):
    with pytest.raises(error, match=says):
        make_oracle(make, **options)


def test_an_expected_property_that_cannot_be_asked():
    with pytest.raises(OptionError, match="it takes no groups="):
        make_oracle(idi, expect=["groups"]).run()
    with pytest.raises(OptionError, match="idi takes no groups="):
        check_exact(idi, ir.plan((2, 1), groups=2))
    with pytest.raises(OptionError, match="the property rank does not apply"):
        check_rank(idi, ir.plan((2, 1), loosen=0.5))


def test_a_check_that_cannot_be_asked():
    with pytest.raises(OptionError, match="a weight for the property exact"):
        make_oracle(idi, only=lambda plan: False, expect=["exact"]).run()
    with pytest.raises(OptionTypeError, match=r"plan = \(2, 2\), but it should be a Plan"):
        check_exact(idi, (2, 2))
    for dtype in ("nope", "int8"):
        with pytest.raises(OptionError, match=f"dtype = '{dtype}', but it should be a floating"):
            check_exact(Initializer, ir.plan((2, 2)), dtype=dtype)


@pytest.mark.parametrize(
    "dtype", ["float32", np.float32, np.dtype("float32")], ids=["str", "type", "dtype"]
)
def test_a_dtype_by_name_or_as_it_is(dtype):
    check_exact(Initializer, ir.plan((2, 2)), dtype=dtype)


def test_complex_dtypes_may_be_refused():
    def real_only(shape, dtype=np.float64):
        if np.dtype(dtype).kind == "c":
            raise TypeError("real dtypes only")
        return idi(shape).astype(dtype)

    def wrong_if_complex(shape, dtype=np.float64):
        return idi(shape).astype(dtype) * (1 + (np.dtype(dtype).kind == "c"))

    assert make_oracle(real_only, expect=["exact", "dtype"], examples=20).run().ok
    assert not make_oracle(wrong_if_complex, expect=["exact"]).run().ok


def test_a_tensor_that_was_not_written_to():
    def torch_idi_(tensor):
        return torch.eye(*tensor.shape)

    [outcome] = make_oracle(torch_idi_, xp="torch", expect=["rank"]).run().outcomes
    assert "the array passed in is unchanged" in outcome.message


def test_a_first_call_that_fails():
    """What it is not about is still untested, and how to call is said."""
    report = make_oracle(lambda *shape: np.eye(*shape)).run()
    assert untested(report) >= ABOUT_IDIZ | {"device", "groups"}
    assert "the first call failed: f((1, 1))" in report.diagnosis[0]
    assert "wrap anything else: lambda shape: f(*shape)" in report.diagnosis[0]


def test_an_interrupt_is_the_users_own():
    """In `idinit check`, where nobody can be at the keyboard, it is a finding."""

    def interrupted(shape):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            make_oracle(interrupted, expect=["exact"]).run()
    finally:
        signal.signal(signal.SIGINT, before)


def test_underflow_names_the_dtype_that_was_asked_for():
    def ignores_dtype(shape, gain=1.0, dtype=np.float32):
        return idi(shape, gain).astype(np.float32)

    [outcome] = make_oracle(ignores_dtype, expect=["underflow"]).run().outcomes
    assert "an array in float32, but should be an error" in outcome.message
    assert "rounds to 0 in float16" in outcome.message


def test_a_snippet_of_an_implementation_called_ir():
    def ir_(shape):
        return np.eye(*shape)

    ir_.__name__ = ir_.__qualname__ = "ir"
    report = make_oracle(ir_, expect=["exact"], source=("some.module", "ir")).run()
    assert "from some.module import ir as mine\n    check_exact(mine, " in str(report)


def test_groups_are_asked_of_kernels_alone():
    def kernels(shape, groups=1):
        if len(shape) == 2:
            assert groups == 1
            return idi(shape)
        return ir.idi(shape, groups=groups)

    assert make_oracle(kernels, conv="OIHW", expect=["groups", "exact"]).run().ok
    assert "groups" in untested(make_oracle(kernels, examples=1).run())


@pytest.mark.parametrize(
    "make",
    [
        lambda shape, layout="channels_first": idi(shape) / (layout == "channels_first"),
        lambda shape, role="idi": idi(shape) / (role == "idi"),
        lambda shape, wide="cut": idi(shape) / (wide == "cut"),
        lambda shape, dtype="float32": torch.tensor(idi(shape)).to(getattr(torch, dtype)),
    ],
    ids=["layout", "role", "wide", "dtype"],
)
def test_a_parameter_with_words_of_its_own_is_none_of_ours(make):
    assert make_oracle(make, expect=["exact", "rank"]).run().ok


def test_numbers_that_differ_are_shown_to_differ():
    report = make_oracle(lambda s: idi(s, 1 + 1e-12), examples=10).run()
    for outcome in report.broken:
        got, _, should = outcome.message.split(" = ", 1)[1].partition(", but should be ")
        assert not should.split("  [")[0].endswith(got)
    assert len(report.broken) >= 2


class Bound:
    def bad(self, shape):
        return np.eye(*shape)


def test_a_method_is_not_imported_from_its_class():
    report = make_oracle(Bound().bad, expect=["exact"]).run()
    assert "f = ...  # your implementation" in str(report)


def test_a_sparse_tensor():
    report = make_oracle(lambda s: torch.eye(*s).to_sparse(), expect=["exact"]).run()
    assert "but should be a dense array" in str(report)


def test_no_call_is_made_when_the_budget_is_over():
    """By a clock that every call moves on by a second; one example is always tried."""
    calls = []

    def mine(shape):
        calls.append(shape)
        return idi(shape)

    oracle = make_oracle(mine, budget=8.0, expect=["exact", "rank"], clock=lambda: len(calls))
    exact, rank = oracle.run().outcomes
    assert exact.verdict == rank.verdict == "held"
    assert 1 <= rank.examples <= exact.examples <= 9
    assert len(calls) == 1 + exact.examples + rank.examples
    slow = make_oracle(mine, budget=0.01, expect=["exact"], clock=lambda: len(calls)).run()
    assert slow.outcomes[0].examples == 1


def test_a_wrong_one_is_found_wrong_in_no_time():
    calls = []
    wrong = lambda shape: calls.append(shape) or np.zeros(shape)  # noqa: E731 (one line)
    options = {"budget": 0.01, "clock": lambda: len(calls), "expect": ["exact"]}
    [outcome] = make_oracle(wrong, **options).run().outcomes
    assert (outcome.verdict, outcome.examples) == ("broken", 1)


def test_an_implementation_of_another_framework():
    report = make_oracle(idi, xp="torch", expect=["exact"]).run()
    assert "an instance of numpy.ndarray, but should be an array of torch" in str(report)


@pytest.mark.nightly
def test_two_oracles_do_not_meet():
    """In two threads at once, each with its own verdict."""
    found = {}
    options = {"clock": STILL, "examples": 3}
    oracles = {
        "right": make_oracle(lambda s: idi(s), **options),
        "wrong": make_oracle(lambda s: np.eye(*s), **options),
    }
    threads = [
        threading.Thread(target=lambda k=k, o=o: found.setdefault(k, o.run()))
        for k, o in oracles.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found["right"].ok
    alone = make_oracle(lambda s: np.eye(*s), **options).run()
    assert [o.message for o in found["wrong"].outcomes] == [o.message for o in alone.outcomes]


def test_the_same_seed_gives_the_same_examples():
    def seen(seed):
        calls = []

        def mine(shape):
            calls.append(shape)
            return idi(shape)

        make_oracle(mine, seed=seed, clock=STILL, expect=["exact"]).run()
        return calls

    assert seen(1) == seen(1) != seen(2)


def test_the_class_for_pytest():
    wrong = make_oracle(lambda s: np.eye(*s), name="my eye", clock=STILL).tests()
    assert wrong.__name__ == "TestMyEye"
    names = [name for name in vars(wrong) if name.startswith("test_")]
    assert "test_exact" in names
    assert "test_groups" not in names
    with pytest.raises(AssertionError, match=r"W\[1, 0\] = 0, but should be 1"):
        wrong().test_exact()
    wrong().test_rank()


@pytest.fixture
def mine():
    return idi


def test_a_fixture_is_asked_in_a_test(mine):
    """The function that makes it has no value at import, where `tests()` is called."""
    assert make_oracle(mine, expect=["rank"]).run().ok
    with pytest.raises(OptionTypeError, match="it is a pytest fixture") as problem:
        make_oracle(globals()["mine"])
    assert "write a test that takes the fixture: def test_mine(mine): report = " in str(
        problem.value
    )


_options = {"examples": 3, "expect": ["exact", "rank"], "clock": STILL}


class TestWithFixtures(make_oracle(ir.idi, **_options).tests()):
    @pytest.fixture(autouse=True)
    def one_for_each_test(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)


def test_reports_travel():
    report = make_oracle(lambda s: np.eye(*s), examples=5).run()
    assert pickle.loads(pickle.dumps(report)) == report
    assert json.loads(json.dumps(report.to_dict()))["ok"] is False
    assert [o.property for o in report.outcomes] == list(PROPERTIES)
    assert "why:" in str(report)
    assert OracleReport("x", ()).ok


TestReference = make_oracle(ir.idi, examples=5, clock=STILL).tests()


def tiled_both_ways(shape):
    m, n = shape
    k = min(m, n)
    return np.tile(np.eye(k), (-(-m // k), -(-n // k)))[:m, :n]


def idiz_padded(shape):
    out = idiz(shape)
    out[shape[1] :] *= shape[1] == 1
    return out + 0.0


@pytest.mark.parametrize(
    ("make", "options", "says"),
    [
        (lambda s: idi(s[::-1]).T, {}, "right in layout IO"),
        (lambda s: np.eye(*s), {}, "zeros instead of copies"),
        (
            lambda s: np.repeat(np.eye(s[1]), -(-s[0] // s[1]), axis=0)[: s[0]],
            {},
            "IDI: each identity row is repeated",
        ),
        (tiled_both_ways, {}, "IDI, wide: columns are copied, too"),
        (lambda s: idi(s) * (1 - 2 * (s[0] == s[1])), {}, "IDI, square: -1 times"),
        (lambda s, gain=1.0: idi(s), {}, "^gain is ignored"),
        (lambda s, gain=1.0: idi(s, gain if s[0] == s[1] else 1), {}, "tall: gain is ignored"),
        (lambda s, gain=1.0: idi(s, gain / abs(gain)), {}, "gain is taken for its sign"),
        (lambda s, wide="truncate": idi(s), {}, "^wide is ignored"),
        (lambda s, blocks=None: ir.idi(s), {}, "^blocks is ignored"),
        (lambda s, loosen=0, seed=0: ir.idi(s), {}, "^loosen is ignored"),
        (lambda s, layout="OI": idi(s), {}, "^layout is ignored"),
        (
            lambda s, taps="outward": ir.idi(s),
            {"layout": None, "conv": "OIHW"},
            "^taps is ignored",
        ),
        (
            lambda s: ir.idi(s, taps="channel_major"),
            {"layout": None, "conv": "OIHW"},
            "these are channel_major kernels: right for taps='channel_major', not 'outward'",
        ),
        (
            lambda s: ir.idiz(s, tap=(0, 0)),
            {"layout": None, "conv": "OIHW", "roles": "zero"},
            "it starts at the first tap, not at the identity tap|these are spatial_major kernels",
        ),
        (
            lambda s: ir.idiz(s, tap=tuple(k // 2 for k in s[2:])),
            {"layout": None, "conv": "OIHW", "roles": "zero"},
            "its identity tap is k // 2 on each axis",
        ),
        (
            lambda s: ir.idi(s, layout="IOHW"),
            {"layout": None, "conv": "IOHW", "stride": (2, 2)},
            "the stride is ignored: these kernels have no phases",
        ),
        (
            lambda s: ir.idi(s, layout="HWIO", stride=(2, 2)),
            {"layout": None, "conv": "HWIO", "stride": (-2, -2)},
            "right for a kernel that is stored the other way round",
        ),
        (lambda s, stride=None: ir.idi(s), {"layout": None, "conv": "OIW"}, "stride is ignored"),
        (idiz, {"roles": "zero", "form": "shifted"}, "right for form='pair', not 'shifted'"),
        (
            lambda s: ir.idiz(s, form="shifted"),
            {"roles": "zero"},
            "right for form='shifted', not 'pair'",
        ),
        (
            lambda s: shifted_idiz(s, lambda q, i, m: q * m + i),
            {"roles": "zero", "form": "shifted"},
            "its blocks are not shifted",
        ),
        (lambda s: idi(s) * (np.arange(s[0]) < 10)[:, None], {}, "entries of shape"),
        (lambda s, gain=1.0: idi(s, abs(gain)), {}, "the sign of gain is lost"),
        (lambda s, gain=1.0: idi(s, gain**2), {}, "gain is squared"),
        (lambda s, gain=1.0: gain * np.array(idi(s)), {}, "but for the sign of its zeros"),
        (lambda s, eps=1e-6: idiz(s), {}, "eps is ignored"),
        (idiz_padded, {"roles": "zero"}, "IDIZ, tall: zeros instead of copies"),
        (lambda s: np.roll(idi(s), 1 + s[0] % 2, 0), {}, "not a mistake that the oracle knows"),
        (lambda s: 2 * idi(s), {}, "2 times what it should be"),
        (lambda s: -idi(s), {}, "-1 times what it should be"),
        (lambda s: np.zeros(s), {}, "all zeros"),
        (lambda s: idi(s) * np.random.default_rng().normal(size=s), {}, "random|other numbers"),
        (lambda s: ir.idi(s, wide="fold_rms"), {}, "wide='fold_rms'"),
        (lambda s: ir.idi(s, taps="spatial_major"), {"conv": "OIHW"}, "taps='spatial_major'"),
        (lambda s: ir.idi(s, layout="HWOI"), {"layout": None, "conv": "HWIO"}, "exchanged"),
        (
            lambda s, groups=1: ir.idi(s),
            {"layout": None, "conv": "OIHW"},
            "2 groups: the groups are ignored",
        ),
        (lambda s: ir.idi(s), {"roles": "zero"}, "IDI, not IDIZ"),
        (lambda s: ir.idiz(s, eps=1e-3), {"roles": "zero"}, "1000 times"),
        (lambda s: abs(ir.idiz(s)), {"roles": "zero"}, "both entries of a row are positive"),
        (
            lambda t: torch.nn.init.dirac_(t),
            {"xp": "torch", "layout": None, "conv": "OIHW", "taps": "center"},
            "",
        ),
    ],
    ids=named,
)
@pytest.mark.cases(3)
def test_the_diagnosis(make, options, says):
    import re

    report = make_oracle(make, examples=10, clock=STILL, **options).run()
    assert re.search(says, "\n".join(report.diagnosis)), report.diagnosis


def test_keras_identity():
    report = make_oracle(keras.initializers.Identity, layout="IO", examples=6, clock=STILL).run()
    assert {o.property for o in report.broken} >= {"exact", "transit", "row_norm"}
    assert "zeros instead of copies" in str(report)


def test_without_hypothesis():
    import subprocess

    code = "import sys; sys.modules['hypothesis'] = None; import idinit_ref.testing"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "idinit-ref[testing]"' in run.stderr


@pytest.mark.parametrize("xp", [np, torch, jax.numpy], ids=lambda xp: xp.__name__)
def test_a_kernel_of_one_tap_that_is_stored_flipped(xp):
    """NumPy calls its reversed view contiguous, and PyTorch takes no negative strides."""
    plan = ir.plan((1, 1, 1, 1), stride=(1, -2))
    check_transit(lambda shape: plan.build(xp=xp), plan)
