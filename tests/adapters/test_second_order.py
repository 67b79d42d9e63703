"""Products in which one weight makes two factors vanish: which weights are zero, and running them.

R2: a zero weight changes its branch in proportion to its own change, so a tenth gives a tenth.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest

from adapters.test_same_drawing import in_jax, in_torch, keras_model, linear
from adapters.test_tensorflow_vanishing import walked
from idinit_ref.roles.search import infer_roles
from idinit_ref_tensorflow import trace

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the functions of TensorFlow are read too"
)


def sum_of(np_, x):
    return np_.einsum("bti->bt", x)[..., None]


def attended(np_, q, k, v):
    return np_.einsum("bts,bse->bte", np_.einsum("btd,bsd->bts", q, k), v)


def associated(np_, q, k, v):
    return np_.einsum("btd,bde->bte", q, np_.einsum("bsd,bse->bde", k, v))


def recurrent(np_, q, k, v):
    """The state as a product of entries, summed later."""
    return np_.einsum("btde->bte", np_.einsum("bsd,bse->bde", k, v)[:, None] * q[..., None])


def scored(np_, q, k, v):
    return sum_of(np_, q * k) * v


FORMS = [attended, associated, recurrent, scored]


def drawn(function):
    model = keras_model(function)
    yield from (in_torch(function), in_jax(function), trace(model), walked(model))


def zeros(graph):
    return {name.strip("[']")[-1] for name, role in infer_roles(graph).items() if role == "zero"}


def order(branch, weight):
    """The power of a weight's size with which a branch grows, from zero."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(2, 5, 8))
    weights = {name: draw.normal(size=(8, 8)) for name in "abcd"}

    def size(scale):
        given = {**weights, weight: weights[weight] * scale}
        return np.abs(branch(np, *(linear(np, x, given[name]) for name in "abc"))).max()

    return round(np.log10(size(1e-6) / size(1e-7)))


KINDS = {
    "one weight makes keys and values": (lambda np_, form, a, b, c: form(np_, a, b, b), "a"),
    "each its own weight": (lambda np_, form, a, b, c: form(np_, a, b, c), "c"),
    "and the values are added": (lambda np_, form, a, b, c: b + form(np_, a, b, b), "b"),
}


@pytest.mark.cases(6)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_of_both_factors_is_not_zero_in_vain(kind, form):
    how, zero = KINDS[kind]

    def branch(np_, *heads):
        return how(np_, form, *heads)

    def function(np_, p, x):
        return x + branch(np_, *(linear(np_, x, w) for w in (p.a, p.b, p.c)))

    assert order(branch, "b") == (2 if zero == "a" else 1)
    for graph in drawn(function):
        assert zeros(graph) == {zero}
        assert order(branch, zero) == 1


def test_a_contraction_of_a_signal_with_itself_is_a_square():
    def branch(np_, a, b, c):
        return np_.einsum("btd,bte->bde", b, b)[:, :5]

    assert order(branch, "b") == 2
    for graph in drawn(lambda np_, p, x: x + branch(np_, None, linear(np_, x, p.b), None)):
        assert zeros(graph) == set()


def softmaxed(np_, q, k, v):
    scores = np_.softmax(np_.einsum("btd,bsd->bts", q, k))
    return np_.einsum("bts,bse->bte", scores, v)


def joined(np_, p, x):
    packed = linear(np_, x, np_.concatenate([p.a, p.b, p.c]))
    return [packed[..., at : at + 8] for at in (0, 8, 16)]


def packed(np_, p, x):
    """Queries and keys of width 3, and values of width 2, four times."""
    h = linear(np_, x, p.c)
    return h[..., :3], h[..., 3:6], np_.concatenate([h[..., 6:]] * 4)


@pytest.mark.cases(3)
@pytest.mark.parametrize("form", [*FORMS, softmaxed])
@pytest.mark.parametrize("how", [joined, packed])
def test_the_values_of_a_packed_weight_end_their_branch(how, form):
    """The block of the values alone makes it vanish: it is of first order in that block."""
    for graph in drawn(lambda np_, p, x: x + form(np_, *how(np_, p, x))):
        assert "c" in zeros(graph)
