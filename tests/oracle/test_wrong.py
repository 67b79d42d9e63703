"""The tests of the tests: each wrong implementation breaks the very properties that it should."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from idinit_ref import testing
from idinit_ref.testing import PROPERTIES, make_oracle
from oracle.wrong import ALL

pytestmark = pytest.mark.every

OFTEN = Counter(name for wrong in ALL.values() for name in wrong.broken)


def oracle(name, **options):
    wrong = ALL[name]
    return make_oracle(wrong.make, **wrong.options, **options, clock=lambda: 0.0)


def breaks(name, report, properties):
    """These it breaks and no others; each message repeats itself, and names the call."""
    assert {outcome.property for outcome in report.broken} == properties, str(report)
    for outcome in report.broken:
        first, blank, *code = outcome.message.split("\n")
        assert re.fullmatch(r".+ = .+, but should be .+  \[.+\]", first)
        assert not blank
        assert len(code) == 3
        assert code == outcome.snippet.split("\n")
        assert name in outcome.call
        with pytest.raises(AssertionError) as caught:
            exec(outcome.snippet, {})
        if "noise" not in name:
            assert str(caught.value) == outcome.message


@pytest.mark.parametrize("name", ALL)
def test_a_wrong_implementation_breaks_what_it_should(name):
    """Of the properties that it breaks, the one that the fewest others break."""
    rarest = min(sorted(ALL[name].broken), key=OFTEN.__getitem__)
    breaks(name, oracle(name, expect=[rarest]).run(), {rarest})


@pytest.mark.cases(2)
@pytest.mark.parametrize("name", ALL)
def test_a_wrong_implementation_breaks_nothing_else(name):
    breaks(name, oracle(name).run(), ALL[name].broken)


@pytest.mark.parametrize("name", PROPERTIES)
def test_every_check_rejects_two(name):
    assert len([wrong for wrong in ALL.values() if name in wrong.broken]) >= 2


# T2 for any covariance leaves nothing but the signs of the rows open, so what breaks a norm or a
# singular value of IDI breaks it as well; the variance of IDIZ for white inputs is its norm; and
# T7 bounds the sizes of a row. Rows that are missing, or there twice, leave columns without an
# entry, and hidden units alike.
FOLLOW = {
    "row_norm": {"variance"},
    "isometry": {"variance", "row_norm"},
    "zero_sums": {"units"},
    "residual": {"row_norm", "variance", "rank", "reach", "zero_sums", "units"},
    "rank": {"reach", "units"},
    "units": {"reach"},
    "groups": {"transit", "variance", "residual", "zero_sums", "rank", "row_norm", "units"},
    "image": {"transit", "variance"},
}


@pytest.mark.parametrize("name", [n for n in PROPERTIES if n != "exact"])
def test_every_check_is_the_one_that_rejects(name):
    """For two of them at least: no other but `exact`, `layout` and those that follow."""
    whole = {"exact", "layout", *FOLLOW.get(name, ())}
    alone = [wrong for wrong in ALL.values() if name in wrong.broken <= whole | {name}]
    assert len(alone) >= 2


def test_every_check_is_public():
    assert {f"check_{name}" for name in PROPERTIES} <= set(testing.__all__)
