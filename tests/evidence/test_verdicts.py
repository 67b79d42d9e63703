"""What a study says of its claim follows its data: other data, another verdict."""

from __future__ import annotations

import contextlib
import re

import pytest

from docs.evidence import (
    _study,
    chains,
    convolution,
    depth,
    epsilon,
    heads,
    identity,
    linear,
    parity,
    rank,
    real,
    residual,
    spread,
    stability,
    symmetry,
    transformer,
    wider,
)
from docs.evidence._baselines import OLD


def rows_of(study, change):
    """The rows of a study's full run, as a function changes them."""
    name = study.__name__.rpartition(".")[2]
    return [{**row, **change(row)} for row in _study.load(name)["rows"]]


def ours(row):
    return row.get("method") == "idinit"


@pytest.mark.parametrize(
    ("study", "change", "said"),
    [
        (depth, lambda r: {"accuracy": 0.1} if ours(r) else {}, "does not hold"),
        (depth, lambda r: {"accuracy": 0.1} if ours(r) and r["depth"] == 100 else {},
         "holds when nets are not too deep: relu up to 10 layers and tanh up to 10 layers"),
        (depth, lambda r: {"log_chi": 0.0, "near": 1.0} if ours(r) else {}, "holds"),
        (depth, lambda r: {"log_chi": 0.0, "near": 0.0} if ours(r) else {},
         "training at any depth: holds\nisometry: does not hold"),
        (chains, lambda r: {"accuracy": 0.9}, "holds"),
        (chains, lambda r: {"accuracy": 0.1}, "does not hold"),
        (chains, lambda r: {"accuracy": 0.1} if r["way"] == "IDI, skips" else {},
         "holds when the activation is tanh"),
        (heads, lambda r: {"score": -2.0 if r["way"] in ("head transit", "norms keep") else -2.5},
         "holds"),
        (heads, lambda r: {"score": -2.0 - r["seed"] / 1e3}, "not shown"),
        (heads, lambda r: {"score": -1.0 if r["way"] == "head keep" else -2.0},
         "does not hold (pre-norm, head keep beats head transit"),
        (symmetry, lambda r: {"score": -1.0 if r["way"] == "shifted" else -2.0},
         "holds when the way is shifted"),
        (symmetry, lambda r: {"score": -1.0 if r["way"] == r["optimiser"] else -2.0},
         "not shown"),
        (residual, lambda r: {"accuracy": 0.1} if ours(r) else {}, f"{OLD}, 8, 32, 128 blocks: "
         "does not hold"),
        (residual, lambda r: {"accuracy": 0.9 + r["seed"] / 1e4} if ours(r) else {},
         f"{OLD}, 8, 32 blocks: does not hold\n{OLD}, 128 blocks: holds"),
        (residual, lambda r: {"accuracy": 0.9} if ours(r) else {"accuracy": 0.1},
         f"{OLD}, 8, 32, 128 blocks: holds"),
        (residual, lambda r: {}, f"{OLD}, 8, 32 blocks: does not hold\n{OLD}, 128 blocks: "
         "not shown (marginal: p 0.07)"),
        (linear, lambda r: {"loss": 1.0} if "momentum" in r["optimiser"] and r["seed"] else {},
         "holds when the optimiser is SGD or Adam"),
        (linear, lambda r: {"loss": 1e-12}, "does not hold"),
        (rank, lambda r: {"rank": 200} if r["way"] == "zero padding" else {}, "does not hold"),
        (spread, lambda r: {}, f"{OLD}, beside 7 of 8 starts: not shown\n{OLD}: holds when the "
         "other start is fixup"),
        (spread, lambda r: {"accuracy": 0.9} if ours(r) else {"accuracy": 0.5 + r["seed"] % 5 / 10},
         f"{OLD}: holds"),
        (spread, lambda r: {"accuracy": 0.5 + r["seed"] % 5 / 10} if ours(r) else {"accuracy": 0.9},
         f"{OLD}: does not hold"),
        (spread, lambda r: {"accuracy": 0.9}, f"{OLD}: not shown"),
        (epsilon, lambda r: {"frozen": 0.5}, "fewer parameters never move: not shown\n"),
        (epsilon, lambda r: {"frozen": 0.5 if r["eps"] else 0.1, "accuracy": r["eps"]},
         "fewer parameters never move: does not hold\naccuracy is higher: holds\n"),
        (epsilon, lambda r: {"frozen": 0.0, "accuracy": 0.9 + r["seed"] / 1e4} if r["eps"] else
         {"frozen": 0.5 + r["seed"] / 1e4, "accuracy": 0.1 if "A" in r["net"] else 0.99},
         "fewer parameters never move: holds\naccuracy is higher: holds when the net is option A "
         "or option A, gamma 1 or option A, gamma 0\n"),
        (convolution, lambda r: {"score": 0.999} if r["taps"] == "center" else {},
         "does not hold"),
        (convolution, lambda r: {"score": 0.9 if r["taps"] in convolution.FUSED else 0.1}, "holds"),
        (convolution, lambda r: {"score": 0.9 if r["taps"] == "outward" else 0.1},
         "holds when the order is outward"),
        (stability, lambda r: {"accuracy": 0.1} if ours(r) else {}, f"{OLD}, beside 4 of 7 starts: "
         f"does not hold\n{OLD}, beside kaiming, orthogonal or zero: not shown"),
        (stability, lambda r: {"accuracy": 0.1 if ours(r) else 0.9}, f"{OLD}: does not hold"),
        (stability, lambda r: {"accuracy": 0.9 if ours(r) else 0.1}, f"{OLD}: holds"),
        (stability, lambda r: {}, f"{OLD}: holds when the other start is kaiming, orthogonal, "
         f"zero, fixup, rezero or skipinit\n{OLD}, beside xavier: not shown"),
        (transformer, lambda r: {"score": -9.0 - r["seed"] / 1e3} if ours(r) else {},
         "does not hold; behind"),
    ],
)  # fmt: skip
def test_the_verdict_follows_the_data(study, change, said):
    found = study.verdict(rows_of(study, change)).holds
    assert found == said if said.endswith("holds") else found.startswith(said)


PARITY = {
    "all learn": (lambda noise, count: True, "does not hold"),
    "none learns": (lambda noise, count: False, "holds"),
    "noise learns": (lambda noise, count: noise > 0, "holds when the identity is exact"),
    "even counts learn": (lambda noise, count: count % 2 == 0, "holds when the count is odd"),
    "even counts learn with noise": (
        lambda noise, count: noise > 0 and count % 2 == 0,
        "holds when the identity is exact or the count is odd",
    ),
    "noise or an even count learns": (
        lambda noise, count: noise > 0 or count % 2 == 0,
        "holds when the identity is exact and the count is odd",
    ),
    "the larger noise learns": (
        lambda noise, count: noise > 0.001,
        "holds when noise is 0, 1 negative or noise is 0, 2 negative or noise is 0, 3 negative",
    ),
}


@pytest.mark.every
@pytest.mark.parametrize("way", PARITY)
def test_the_verdict_on_negative_eigenvalues_says_which_fail(way):
    learns, said = PARITY[way]
    rows = rows_of(parity, lambda r: {"loss": 1e-9 if learns(r["noise"], r["count"]) else 0.5})
    found = parity.verdict(rows).holds
    assert found.startswith(said) if way == "the larger noise learns" else found == said
    with contextlib.nullcontext() if way == "noise learns" else pytest.raises(AssertionError):
        parity.check(rows)
    decides = "The parity decides" in parity.page(rows)
    assert decides == ("even counts" in way or "even count" in way)


GOOD = {"healthy": 1, "moments": [0.0, -1.0], "branches": [-6.0], "still": [0, 0]}
REAL = {  # what a row is, and what is said of the parts of the claim, in their order
    "good": ({}, ["holds"] * 5),
    "sick": ({"healthy": 0, "why": "x"}, ["does not hold (12 of 12 models fail)", *["holds"] * 4]),
    "fading": ({"moments": [0.0, -3.0]}, ["holds", "does not hold (12 of 12 models fail)",
                                          *["holds"] * 3]),
    "growing": ({"moments": [200.0, 0.0]}, ["holds", "does not hold (12 of 12 models fail)",
                                            *["holds"] * 3]),
    "lost": ({"moments": [0.0, None]}, ["holds", "does not hold (12 of 12 models fail)",
                                        *["holds"] * 3]),
    "large": ({"branches": [-1.0]}, ["holds"] * 2 + ["does not hold (12 of 12 models fail)"]
              + ["holds"] * 2),
    "late": ({"still": [3, 0]}, ["holds"] * 3 + ["does not hold (12 of 12 models fail)", "holds"]),
    "stuck": ({"still": [0, 3]}, ["holds"] * 4 + ["does not hold (12 of 12 models fail)"]),
}  # fmt: skip


@pytest.mark.parametrize("way", REAL)
def test_each_part_of_a_good_start_is_judged(way):
    change, said = REAL[way]
    rows = rows_of(real, lambda r: GOOD | (change if r["start"] == "init_" else {}))
    lines = real.verdict(rows).holds.splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == said
    with pytest.raises(AssertionError) if change else contextlib.nullcontext():
        real.check([row for row in rows if row["start"] == "init_"] + [
            {**row, "branches": [0.0]} for row in rows if row["start"] == "default"
        ])  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"moments": [0.0, -3.0]}, "signals keep their size (second moments within 2 powers of "
         "ten): holds when the model is not ViT (3.0 powers)"),
        ({"still": [2, 0]}, "gradients reach every matrix at the start: "
         "holds when the model is not ViT (2 of 28 get exactly 0)"),
    ],
    ids=["moments", "gradients"],
)  # fmt: skip
def test_the_models_that_start_badly_are_named(change, said):
    rows = rows_of(real, lambda r: GOOD | (change if r["model"] == "ViT" else {}))
    assert said in real.verdict(rows).holds.splitlines()


@pytest.mark.parametrize(
    ("worst", "said"),
    [
        ("orthogonal", "identity inside: holds\nIDIZ at the end, IDI inside: not shown\n"),
        ("IDI", "identity inside: does not hold\nIDIZ at the end, IDI inside: not shown\n"),
        ("IDI, 0", "identity inside: not shown\nIDIZ at the end, IDI inside: holds\n"
         "IDIZ at the end, orthogonal inside: not shown"),
        ("orthogonal, 0", "identity inside: not shown\nIDIZ at the end, IDI inside: not shown\n"
         "IDIZ at the end, orthogonal inside: holds"),
        ("default", "identity inside: not shown\nIDIZ at the end, IDI inside: not shown\n"),
    ],
)  # fmt: skip
def test_the_inside_and_the_end_of_a_branch_are_judged_apart(worst, said):
    rows = rows_of(
        identity,
        lambda r: {"score": (-2.0 if r["start"].startswith(worst) else -1.0) - r["seed"] / 1e3},
    )
    assert identity.verdict(rows).holds.startswith(said)


def test_a_start_is_better_only_if_it_is_so_at_the_same_rate():
    """Orthogonal weights are ahead at the best rates; at their rate IDI is level with them."""
    net, rates = "resnet, width 32", {"IDI, IDIZ": 0.01, "orthogonal, IDIZ": 0.003}
    rows = rows_of(
        identity,
        lambda r: (
            {"score": (-1.0 if r["start"].startswith("orthogonal") else -2.0) - r["seed"] / 1e3}
            | {"rate": rates.get(r["start"], r["rate"])}
        ),
    )
    assert identity.judged_inside(rows, net) == "not shown"  # there is no run at the same rate
    pair = _study.pick(rows, net=net, start="orthogonal, IDIZ")
    at_ours = {"start": "orthogonal, IDIZ, rate of IDI", "rate": 0.01}
    at_theirs = {"start": "IDI, IDIZ, rate of orthogonal", "rate": 0.003}
    rows += [{**row, **at_ours} for row in pair]
    assert identity.judged_inside(rows, net) == "better"
    rows += [{**row, **at_theirs} for row in pair]
    assert identity.judged_inside(rows, net) == "not shown"
    assert (
        identity.said(identity.effects(rows, net)["orthogonal inside instead of IDI"]) == "better"
    )


@pytest.mark.parametrize("study", [chains, heads, identity, symmetry])
def test_a_page_shows_every_kind_of_row(study):
    """Of runs to choose a rate, of runs that judge, and of starts: one that changes, is seen."""
    name = study.__name__.rpartition(".")[2]
    rows, seen = _study.load(name)["rows"], set()
    text = study.page(rows)
    for at, row in enumerate(rows):
        kind = (row["seed"] in study.TUNE, row.get("kind"), row.get("net"), row.get("optimiser"))
        if kind not in seen and not row.get("diverged"):
            seen.add(kind)
            values = {key: row[key] - 1 for key in ("score", "accuracy", "size") if key in row}
            assert study.page([*rows[:at], {**row, **values}, *rows[at + 1 :]]) != text, row


@pytest.mark.parametrize(
    ("claim", "change", "said"),
    [
        ("residual", {"xavier": 0.1, "kaiming": 0.1, "idinit": 0.9}, "width 64, 32 blocks: holds"),
        ("residual", {"xavier": 0.8, "kaiming": 0.1, "idinit": 0.9},
         "width 64, 32 blocks: holds when the other start is kaiming"),
        ("residual", {"xavier": 0.1, "kaiming": 0.1, "idinit": 0.5},
         "width 64, 32 blocks: does not hold"),
        ("epsilon", {"eps 0": 0.5, "eps 1e-6": 0.5},
         "width 64, fewer parameters never move: holds\nwidth 64, accuracy is higher: not shown"),
        ("epsilon", {"eps 0": 0.6, "eps 1e-6": 0.5},
         "width 64, fewer parameters never move: holds\nwidth 64, accuracy is higher: "
         "does not hold"),
        ("stability", {"idinit": 0.9, "xavier": 0.1, "kaiming": 0.1, "rezero": 0.1},
         "width 64, 4 blocks: holds"),
        ("stability", {"idinit": 0.1, "xavier": 0.9, "kaiming": 0.1, "rezero": 0.1},
         "width 64, 4 blocks, beside kaiming or rezero: not shown\n"
         "width 64, 4 blocks, beside xavier: does not hold"),
        ("stability, transformer", {"idinit": -2.0, "default": -2.0, "rezero": -3.0},
         "width 64, transformer: holds when the other start is rezero\n"
         "width 64, transformer, beside default: not shown"),
        ("spread", {"idinit": 0.5, "xavier": 0.5, "fixup": 0.5}, "width 64, 4 blocks: not shown"),
    ],
)  # fmt: skip
def test_what_is_said_at_other_widths_follows_the_data(claim, change, said):
    rows = [row for row in _study.load("wider")["rows"] if row["claim"] == claim]
    rows = [
        {**row, "score": change[row["start"]] + row["seed"] / 1e4,
         "frozen": 0.5 if row["start"] == "eps 0" else 0.1}
        for row in rows
    ]  # fmt: skip
    assert wider.verdicts(rows)[claim][0] == said


COPIES = "copies of hidden units in a wide MLP"
WAYS = {  # of changing the data of symmetry: what is said of units at two tolerances, and of loss
    "as measured": (lambda r: {}, ["holds", "not shown", "not shown"]),
    "zeros part them too": (lambda r: {"units": [[200, 1.0, 1.0]]}, ["not shown"] * 3),
    "eps parts them": (lambda r: {"units": [[200, 1.0, 1.0]] if r["way"] == "pair" else
                                  [[200, 0.2, 0.2]]}, ["holds", "holds", "not shown"]),
    "eps is worse": (lambda r: {"units": [[200, 0.1, 0.1]] if r["way"] == "pair" else
                                [[200, 0.2, 0.2]], "score": -2.0 - (r["way"] == "pair")},
                     ["does not hold"] * 3),
    "eps is better": (lambda r: {"score": -2.0 + (r["way"] == "pair")},
                      ["holds", "not shown", "holds"]),
}  # fmt: skip


@pytest.mark.every
@pytest.mark.parametrize("way", WAYS)
def test_what_eps_does_in_a_wide_mlp_follows_the_data(way, monkeypatch):
    change, said = WAYS[way]
    data = _study.load("symmetry")
    data["rows"] = [{**row, **change(row)} for row in data["rows"]]
    monkeypatch.setattr(epsilon, "load", lambda name: data)
    lines = epsilon.verdict(_study.load("epsilon")["rows"]).holds.splitlines()
    assert [line.rpartition(": ")[2] for line in lines if line.startswith(COPIES)] == said


@pytest.mark.parametrize(
    ("branch", "said"),
    [
        (0.01, "with eps 0.01 branches begin below 0.1 of their skip: holds"),
        (0.5, "with eps 0.01 branches begin below 0.1 of their skip: holds when the net is same "
         "width or option A or option A, gamma 0 (a norm undoes it in option A, gamma 1: 0.50)"),
    ],
    ids=["no", "yes"],
)  # fmt: skip
def test_a_norm_undoes_a_large_eps_if_the_data_say_so(branch, said):
    def change(row):
        return {"branch": branch if row["net"].endswith("gamma 1") else 0.001}

    rows = [{**r, **({} if r["epochs"] else change(r))} for r in _study.load("epsilon")["rows"]]
    assert epsilon.verdict(rows).holds.splitlines()[-1] == said


FOUR = r"(?:.+: )?(?:holds|holds when [^:]+|does not hold|not shown)(?: \([^()]*\))?"


@pytest.mark.every
@pytest.mark.parametrize(
    "study", [real, residual, stability, spread, epsilon, wider, parity, linear]
)
def test_a_verdict_has_one_of_four_words_for_each_claim(study):
    rows = rows_of(study, lambda row: {})
    for line in study.verdict(rows).holds.splitlines():
        assert re.fullmatch(FOUR, line), line


@pytest.mark.parametrize(
    ("taps", "score", "said"),
    [("outward", 0.999, "By this rule outward is"), ("diagonal", 0.0, "By this rule it goes")],
    ids=["outward is ahead everywhere", "diagonal is ahead nowhere"],
)
def test_the_default_of_kernels_follows_the_data(taps, score, said):
    rows = rows_of(convolution, lambda r: {"score": score} if r["taps"] == taps else {})
    assert said in convolution.page(rows)
    assert said not in (_study.FOLDER / "convolution.md").read_text()
    with pytest.raises(AssertionError):
        convolution.check(rows)
