"""T8, T10 to T13 and T16 of the mathematics page, and what IDI does with the rest of a network.

Statements with "if and only if" are asked for all small sizes, in both directions.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional

import idinit_ref as ir
from strategies import matrices

FLOAT = {"xp": torch, "dtype": torch.float64}
seeds = st.integers(0, 99)


def normal(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape))


# T8 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("a", range(1, 13))
def test_t8_two_compose_if_and_only_if(a):
    for b, c in product(range(1, 13), repeat=2):
        composed = np.array_equal(ir.idi((a, b)) @ ir.idi((b, c)), ir.idi((a, c)))
        assert composed == (a <= b or b % c == 0), (a, b, c)


def test_t8_widths_3_4_8_do_not_compose():
    y = ir.idi((8, 4)) @ ir.idi((4, 3)) @ np.array([1.0, 2.0, 3.0])
    assert y.tolist() == [1, 2, 3, 1, 1, 2, 3, 1]
    assert (ir.idi((8, 3)) @ np.array([1.0, 2.0, 3.0])).tolist() == [1, 2, 3, 1, 2, 3, 1, 2]


# T10 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", range(1, 9))
def test_t10_a_pair_cancels_if_and_only_if(m):
    """f sees equal inputs in copies, so f(W1 x) = W1 f(x), of any values: W2 W1 says it all."""
    for n in range(m + 1, 5 * m + 3):
        branch = ir.idiz((m, n), eps=1.0) @ ir.idi((n, m))
        assert (not branch.any()) == (n >= 2 * m), (m, n)


@pytest.mark.parametrize("m", range(1, 7))
def test_t10_the_shifted_form_cancels_if_and_only_if(m):
    """For m = 1, where all hidden units are copies, and where odd m meets n = 2 m^2, 4 m^2, ..."""
    for n in range(2 * m, 4 * m * m + 2 * m + 2):
        branch = ir.idiz((m, n), eps=1.0, form="shifted") @ ir.idi((n, m))
        cancels = np.abs(branch).max() < 1e-12
        assert cancels == (m == 1 or (m % 2 == 1 and n % (2 * m * m) == 0)), (m, n)


@given(matrices(10), seeds, st.sampled_from([torch.tanh, torch.relu, functional.gelu, torch.sin]))
def test_t10_in_a_branch(size, seed, f):
    """The output of the branch, and the gradient of what feeds it; eps is a power of two."""
    m, n = min(size), max(size)
    assume(m < n)
    w1 = ir.idi((n, m), **FLOAT).requires_grad_()
    w2 = ir.idiz((m, n), eps=0.5, **FLOAT).requires_grad_()
    x = normal(m, seed=seed).requires_grad_()
    branch = w2 @ f(w1 @ x)
    branch.backward(normal(m, seed=seed + 1))
    if n >= 2 * m:
        assert not branch.any()
        assert not x.grad.any()
        assert w2.grad.any() or not f(x).any()
    elif f is torch.tanh:  # one f is enough for "not every f"
        assert branch.any()
        assert x.grad.any()


@given(st.integers(1, 6), seeds)
def test_t10_fused_products_leave_a_rounding(m, seed):
    """A fused multiply-add keeps eps a unrounded once: what is left is that product's rounding."""
    a = normal(m, seed=seed).float().numpy()
    for eps, exact in ((1e-6, False), (2.0**-20, True)):
        eps32 = np.float32(eps)
        product_of_each = a * eps32  # rounded
        fused = product_of_each.astype(float) - a.astype(float) * float(eps32)  # 48 bits: exact
        assert np.all(np.abs(fused) <= 2.0**-24 * np.abs(product_of_each))
        assert not (exact and fused.any())
        w1 = ir.idi((2 * m, m), dtype=np.float32)
        w2 = ir.idiz((m, 2 * m), eps=eps, dtype=np.float32)
        branch = torch.tensor(w2) @ torch.tensor(w1 @ a)
        assert np.all(np.abs(branch.numpy()) <= (0 if exact else 2.0**-23 * eps * np.abs(a).max()))


@given(st.integers(1, 8), seeds)
def test_what_does_not_hold_in_a_branch_four_times_as_wide(m, seed):
    """The page's three warnings: unused columns, copies that cancel, no gradient back."""
    last, first = ir.idiz((m, 4 * m), eps=0.5), ir.idi((4 * m, m))
    x, upstream = normal(m, seed=seed).numpy(), normal(m, seed=seed + 1).numpy()
    hidden = np.maximum(first @ x, 0)
    assert np.flatnonzero(last.any(axis=0)).tolist() == [*range(2 * m)]
    assert not (last @ hidden).any()
    to_hidden = (last.T @ upstream) * (hidden > 0)
    assert not (first.T @ to_hidden).any()


@given(st.integers(1, 8), seeds)
def test_one_step_gives_every_unit_a_gradient_and_leaves_twins(m, seed):
    last, first = ir.idiz((m, 4 * m)), ir.idi((4 * m, m))
    x, upstream = np.abs(normal(m, seed=seed).numpy()) + 0.1, normal(m, seed=seed + 1).numpy()
    hidden = np.maximum(first @ x, 0)
    last = last - 0.1 * np.outer(upstream, hidden)  # gradient descent on W2 alone
    to_hidden = last.T @ upstream
    assert to_hidden.all()
    assert (first.T @ to_hidden).all()
    assert (last @ hidden).all()
    assert np.array_equal(last[:, 2 * m : 3 * m], last[:, 3 * m :])  # and so are their gradients
    np.testing.assert_allclose(to_hidden[2 * m : 3 * m], to_hidden[3 * m :], rtol=1e-9)


# T11 ------------------------------------------------------------------------------------------


def units(w1, w2):
    """One row for each hidden unit: what it reads, and what it writes."""
    return np.concatenate([np.asarray(w1), np.asarray(w2).T], axis=1)


def classes(rows, tolerance=0.0):
    """How many different ones there are, of those that differ by more than the tolerance."""
    if tolerance == 0:
        return len(np.unique(rows, axis=0))
    found = []
    for row in rows:
        if not any(np.abs(row - other).max() <= tolerance for other in found):
            found.append(row)
    return len(found)


def different(m, n, form):
    """What T11 says."""
    return 2 * m + min(m, n - 2 * m) if form == "pair" else min(n, m * math.lcm(2, m))


forms = pytest.mark.parametrize("form", ["pair", "shifted"])


@forms
@pytest.mark.parametrize("m", range(1, 6))
def test_t11_how_many_units_differ(m, form):
    for n in range(2 * m, 2 * m * math.lcm(2, m) + 3):
        found = classes(units(ir.idi((n, m)), ir.idiz((m, n), form=form)))
        assert found == different(m, n, form), n
        assert form == "pair" or (found == n) == (n <= m * math.lcm(2, m))


def sgd(parameter, gradient, state):
    return parameter - 0.0625 * gradient


def adam(parameter, gradient, state):
    """Adam with decoupled decay."""
    step, first, second = state.get("of", (0, 0.0, 0.0))
    step, first = step + 1, 0.9 * first + 0.1 * gradient
    second = 0.999 * second + 0.001 * gradient * gradient
    state["of"] = step, first, second
    size = np.sqrt(second / (1 - 0.999**step)) + 1e-8
    return parameter * (1 - 1e-4) - 0.01 * (first / (1 - 0.9**step)) / size


def trained_exactly(w1, w2, x, target, update, steps):
    """Train x + W2 f(W1 x) with f(z) = z / (1 + z z); sums in one order for every hidden unit.

    Only additions, products, divisions and roots, each rounded as IEEE 754 says. So equal units
    get equal bits, whatever their place. A matrix product may add in another order for each place.
    """
    states = {}, {}
    for _ in range(steps):
        z = sum(w1[:, [c]] * x[[c], :] for c in range(len(x)))
        h, slope = z / (1 + z * z), (1 - z * z) / ((1 + z * z) * (1 + z * z))
        error = (x + w2 @ h - target) / x.shape[1]
        back = slope * sum(w2[[i], :].T * error[[i], :] for i in range(len(x)))
        samples = range(x.shape[1])
        grad1 = sum(back[:, [b]] * x[:, [b]].T for b in samples)
        grad2 = sum(error[:, [b]] * h[:, [b]].T for b in samples)
        w1, w2 = update(w1, grad1, states[0]), update(w2, grad2, states[1])
    return w1, w2


@forms
@pytest.mark.parametrize("update", [sgd, adam])
@settings(max_examples=15)
@given(m=st.integers(1, 4), more=st.integers(0, 20), seed=seeds)
def test_t11_twins_stay_twins_to_the_bit(form, update, m, more, seed):
    n = 2 * m + more
    w1, w2 = ir.idi((n, m)), ir.idiz((m, n), form=form)
    x, target = normal(m, 6, seed=seed).numpy(), normal(m, 6, seed=seed + 1).numpy()
    start = units(w1, w2)
    w1, w2 = trained_exactly(w1, w2, x, target, update, steps=50)
    end = units(w1, w2)
    assert np.abs(end - start).max() > 1e-3
    for j, k in product(range(n), repeat=2):
        if np.array_equal(start[j], start[k]):
            assert np.array_equal(end[j], end[k])
    assert classes(end) == different(m, n, form)


def trained(m, n, form, eps, optimiser, rate):
    """The hidden units of x + W2 tanh(W1 x + b) after 50 steps of a torch optimiser, in float64."""
    x = normal(64, m)
    target = 2 * torch.sin(x @ normal(m, m, seed=1))
    start = ir.idi((n, m), **FLOAT), torch.zeros(n), ir.idiz((m, n), eps=eps, form=form, **FLOAT)
    w1, bias, w2 = parameters = [torch.nn.Parameter(value.double()) for value in start]
    steps = optimiser(parameters, lr=rate)
    for _ in range(50):
        steps.zero_grad()
        torch.mean((x + torch.tanh(x @ w1.T + bias) @ w2.T - target) ** 2).backward()
        steps.step()
    return units(torch.cat([w1, bias[:, None]], dim=1).detach(), w2.detach())


@forms
@pytest.mark.parametrize(("m", "n"), [(2, 5), (2, 11), (3, 9), (3, 19), (4, 16)])
@pytest.mark.parametrize(
    ("optimiser", "rate"),
    [(torch.optim.SGD, 0.05), (torch.optim.AdamW, 0.01)],
    ids=["SGD", "AdamW"],
)
@pytest.mark.cases(4)
def test_t11_through_training(m, n, form, optimiser, rate):
    """Matrix products round twins apart, and nothing else does: T11 counts at 1e-9, at 0 or above.

    Of what eps = 1e-6 alone tells apart, SGD leaves one unit for each input at 1e-3. Adam divides
    a gradient by its own size, so most of them part; a larger eps parts all.
    """
    most = different(m, n, form)
    for eps in (1e-6, 0.25):
        end = trained(m, n, form, eps, optimiser, rate)
        assert classes(end) >= classes(end, 1e-9) == most
        apart = classes(end, 1e-3)
        if eps == 0.25:
            assert apart == most
        elif optimiser is torch.optim.SGD:
            assert apart == m
        else:
            assert m < apart <= most


# T12 ------------------------------------------------------------------------------------------

LIPSCHITZ = [
    pytest.param(torch.tanh, 1.0, id="tanh"),
    pytest.param(torch.relu, 1.0, id="relu"),
    pytest.param(torch.sin, 1.0, id="sin"),
    pytest.param(functional.gelu, 1.13, id="gelu"),
    pytest.param(lambda x: torch.softmax(x, dim=0), 1.0, id="softmax"),  # not elementwise
]


@pytest.mark.parametrize(("f", "lipschitz"), LIPSCHITZ)
@settings(max_examples=15)
@given(
    size=matrices(10),
    depth=st.integers(1, 4),
    eps=st.sampled_from([1e-6, -0.01, 0.1, 0.2]),
    tau=st.sampled_from([1.0, -0.5, 2.0]),
    form=st.sampled_from(["pair", "shifted"]),
    seed=seeds,
)
def test_t12_near_isometry(f, lipschitz, size, depth, eps, tau, form, seed):
    m, n = size
    w1 = ir.idi((n, m), gain=tau, **FLOAT)
    w2 = ir.idiz((m, n), eps=eps, form=form, **FLOAT)
    s = float(torch.linalg.matrix_norm(w2, 2) * lipschitz * torch.linalg.matrix_norm(w1, 2))
    if n >= 2 * m:
        expected = math.sqrt(2 * -(-n // m)) * abs(eps * tau) * lipschitz
        assert math.isclose(s, expected, rel_tol=1e-9)
    assume(s < 1)

    def blocks(x):
        for _ in range(depth):
            x = x + w2 @ f(w1 @ x)
        return x

    found = torch.linalg.svdvals(torch.func.jacrev(blocks)(normal(m, seed=seed)))
    assert found.max() <= (1 + s) ** depth * (1 + 1e-12)
    assert found.min() >= (1 - s) ** depth * (1 - 1e-12)


@given(st.integers(2, 8), st.integers(1, 4))
def test_t12_the_bounds_are_reached(m, depth):
    """A linear block with n = m, eps = 1/4: its largest singular value is 1 + 1/2 for even m."""
    w = np.eye(m) + ir.idiz((m, m), eps=0.25) @ ir.idi((m, m))
    found = np.linalg.svd(np.linalg.matrix_power(w, depth), compute_uv=False)
    assert found.max() <= 1.5**depth * (1 + 1e-12)
    assert math.isclose(found.max(), 1.5**depth, rel_tol=1e-12) == (m % 2 == 0)


# T13 ------------------------------------------------------------------------------------------


def gelu(x):
    return x * 0.5 * math.erfc(-x / math.sqrt(2))


def silu(x):
    return x / (1 + math.exp(-x))


def leaky(x):
    return x if x > 0 else 0.25 * x


def iterated(f, x, depth):
    for _ in range(depth):
        x = f(x)
    return x


numbers = st.floats(-4, 4).map(lambda x: x + math.copysign(0.01, x))


@given(
    st.lists(numbers, min_size=1, max_size=6),
    st.integers(1, 9),
    st.sampled_from([1.0, 0.5, 2.0, -1.0]),
    st.sampled_from([gelu, silu, leaky, math.tanh, math.sin, abs]),
)
def test_t13_a_chain_iterates_a_scalar_function(x, depth, tau, f):
    """To the bit, since tau is a power of two."""
    y, n = np.array(x), len(x)
    for _ in range(depth):
        y = np.vectorize(f, otypes=[float])(ir.idi((n, n), gain=tau) @ y)
    assert y.tolist() == [iterated(lambda z: f(tau * z), each, depth) for each in x]


@given(
    st.integers(1, 6),
    st.integers(1, 9),
    st.floats(0.5, 1.5),
    st.sampled_from([torch.tanh, functional.gelu, functional.silu, torch.relu]),
    seeds,
)
def test_t13_the_jacobian_is_diagonal(n, depth, tau, f, seed):
    """And holds the derivatives of the scalar function; here tau is any number."""
    w = ir.idi((n, n), gain=tau, **FLOAT)

    def chain(x):
        return iterated(lambda z: f(w @ z), x, depth)

    x = normal(n, seed=seed)
    found = torch.func.jacrev(chain)(x)
    assert not (found - torch.diag(torch.diagonal(found))).any()
    for i in range(n):
        slope = torch.func.grad(lambda z: iterated(lambda y: f(tau * y), z, depth))(x[i])
        torch.testing.assert_close(found[i, i], slope, rtol=1e-12, atol=1e-300)


@given(numbers, st.integers(1, 40))
def test_t13_leaky_relu(x, depth):
    assert iterated(leaky, x, depth) == (x if x > 0 else 0.25**depth * x)


@given(st.floats(0.01, 3), st.integers(1, 400))
def test_t13_tanh(x, depth):
    """|y| <= x / sqrt(1 + 2 L x^2 / 3); the derivative is within the bounds of the proof."""
    y, slope = x, 1.0
    for _ in range(depth):
        y = math.tanh(y)
        slope *= 1 - y * y
    q = 1 + 2 * depth * x * x / 3
    assert y <= x / math.sqrt(q) * (1 + 1e-12)
    assert slope <= q**-1.5 * (1 + 1e-12)
    assert slope >= q**-1.5 * math.exp(-(x**2 + x**4) / 6) * (1 - 1e-12)


@pytest.mark.parametrize("f", [gelu, silu])
@given(x=st.floats(-6, 3.5).filter(lambda x: abs(x) > 1e-3))
def test_t13_gelu_and_silu_halve_in_the_limit(f, x):
    y = x
    while abs(y) > 1e-9:
        assert abs(f(y)) < abs(y)
        y = f(y)
    assert math.isclose(f(y) / y, 0.5, rel_tol=1e-8)


@pytest.mark.parametrize("x", [2.0, 2.5, 3.0, 3.5, 4.0])
def test_t13_how_long_gelu_and_silu_hold_a_large_input(x):
    """Layers until half of x is left: exp(x^2 / 2) and exp(x), up to factors of x."""

    def layers(f):
        y, found = x, 0
        while y > x / 2:
            y, found = f(y), found + 1
        return found

    low = math.sqrt(2 * math.pi) * math.exp(x * x / 2) / (math.e * x)
    assert low <= layers(gelu) <= low * math.e * x * x + 1
    assert math.exp(x - 1) / x <= layers(silu) <= 2 * math.exp(x) + 1


# T16 ------------------------------------------------------------------------------------------


@given(matrices(10), seeds, st.floats(0.1, 3))
def test_t16_a_narrow_head_sends_a_gradient_to_its_own_coordinates(size, seed, tau):
    classes_, width = min(size), max(size)
    x = normal(5, width, seed=seed).requires_grad_()
    head = ir.idi((classes_, width), gain=tau, **FLOAT)
    logits = x @ head.T
    functional.cross_entropy(logits, torch.arange(5) % classes_).backward()
    assert not x.grad[:, classes_:].any()
    assert classes_ == 1 or x.grad[:, :classes_].all()


def stream(last, first, x):
    for w2 in last:
        x = x + w2 @ torch.tanh(first @ x)
    return x


@given(st.integers(1, 4), st.integers(1, 3), seeds, st.sampled_from([2, 4, 8, 16]))
def test_t16_the_first_step_of_equal_branches_adds_up(m, ratio, seed, depth):
    """The gradients of their last weights agree up to eps L, so the output moves L times as far."""
    eps, rate, n = 1e-6, 1e-6, ratio * m + 1
    first = ir.idi((n, m), **FLOAT)
    x, target = normal(m, seed=seed), normal(m, seed=seed + 1)

    def step(branches):
        last = [ir.idiz((m, n), eps=eps, **FLOAT).requires_grad_() for _ in range(branches)]
        before = stream(last, first, x)
        torch.sum((before - target) ** 2 / 2).backward()
        gradients = [w.grad for w in last]
        with torch.no_grad():
            after = stream([w - rate * g for w, g in zip(last, gradients, strict=True)], first, x)
        return gradients, after - before.detach()

    (alone,), moved_alone = step(1)
    gradients, moved = step(depth)
    for gradient in gradients:
        slack = 20 * eps * depth * n * alone.abs().max()
        assert (gradient - alone).abs().max() <= slack
    torch.testing.assert_close(moved, depth * moved_alone, rtol=0, atol=1e-2 * float(moved.norm()))


# In a network ---------------------------------------------------------------------------------

NORMS = {
    "layer norm": lambda z: functional.layer_norm(z, z.shape[-1:], eps=0),
    "RMS norm": lambda z: z / torch.sqrt(torch.mean(z**2, dim=-1, keepdim=True)),
    "batch norm": lambda z: functional.batch_norm(z, None, None, training=True, eps=1e-30),
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
@given(size=matrices(8), seed=seeds, tau=st.floats(0.05, 20))
def test_norms_turn_the_gain_into_a_gradient_of_1_over_tau(norm, size, seed, tau):
    m, n = size
    assume(m > 2 and n > 2)
    x, upstream = normal(4, n, seed=seed), normal(4, m, seed=seed + 1)
    found = []
    for gain in (1.0, tau):
        w, at = ir.idi((m, n), gain=gain, **FLOAT).requires_grad_(), x.clone().requires_grad_()
        y = norm(at @ w.T)
        y.backward(upstream)
        found.append((y.detach(), at.grad, w.grad * gain))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-7, atol=1e-9)


def chain(x, layers, weight):
    """Apply dense layers, each with batch norm in training mode and a ReLU."""
    for _ in range(layers):
        x = torch.relu(functional.batch_norm(x @ weight.T, None, None, training=True, eps=1e-12))
    return x


@given(size=st.integers(2, 24), width=st.integers(1, 4), seed=seeds)
def test_batch_norms_and_relus_leave_the_largest_value(size, width, seed):
    x = normal(size, width, seed=seed)
    first = chain(x, 1, ir.idi((width, width), **FLOAT))
    ratio = (first.sort(0).values[-2] / first.max(0).values).max()
    layers = 2 + math.ceil(-math.log1p(-float(ratio)) / math.log1p(1 / (size - 1)))
    left = chain(x, layers, ir.idi((width, width), **FLOAT))
    expected = torch.where(x == x.max(0).values, math.sqrt(size - 1), 0.0).double()
    torch.testing.assert_close(left, expected)


def test_batch_norms_and_relus_thin_a_chain():
    """Identities: about one value in L is left after L layers; random weights: half of them."""
    x = normal(4096, 32)
    w = torch.linalg.qr(normal(32, 32, seed=1)).Q
    for layers, part in ((10, 0.1), (30, 0.036), (100, 0.011)):
        left = (chain(x, layers, ir.idi((32, 32), **FLOAT)) > 0).double().mean()
        assert math.isclose(float(left), part, rel_tol=0.1)
        assert 0.4 < (chain(x, layers, w) > 0).double().mean() < 0.6


def rms(x):
    return x / x.square().mean(-1, keepdim=True).sqrt()


@given(st.integers(1, 6), st.integers(1, 16), seeds)
def test_attention_scores_each_token_with_itself_by_the_root_of_the_heads_size(heads, size, seed):
    """Queries and keys are the input: over the heads the self-scores have the mean sqrt(size)."""
    width = heads * size
    x = rms(normal(5, width, seed=seed))
    w = ir.idi((width, width), **FLOAT)
    q, k = ((x @ w.T).reshape(5, heads, size) for _ in range(2))
    own = torch.einsum("thd,thd->th", q, k) / math.sqrt(size)
    torch.testing.assert_close(own.mean(1), torch.full((5,), math.sqrt(size)).double())


def test_attention_starts_with_each_token_at_itself():
    x = rms(normal(32, 512))
    w = ir.idi((512, 512), **FLOAT)
    q, k = ((x @ w.T).reshape(32, 8, 64).transpose(0, 1) for _ in range(2))
    scores = q @ k.transpose(1, 2) / 8
    others = scores[:, ~torch.eye(32, dtype=bool)]
    assert abs(float(others.mean())) < 0.1
    assert abs(float(others.std()) - 1) < 0.1
    assert torch.diagonal(scores.softmax(-1), dim1=1, dim2=2).min() > 0.5


@pytest.mark.parametrize(("groups", "heads"), [(1, 4), (2, 4), (2, 6), (3, 6), (4, 4)])
def test_of_grouped_queries_only_head_0_meets_its_own_slice(groups, heads):
    size, width = 3, 3 * heads
    x = normal(width)
    q = (ir.idi((width, width), **FLOAT) @ x).reshape(heads, size)
    k = (ir.idi((groups * size, width), **FLOAT) @ x).reshape(groups, size)
    k = k.repeat_interleave(heads // groups, dim=0)
    own = [torch.equal(q[h], k[h]) for h in range(heads)]
    assert own == [h == 0 or groups == heads for h in range(heads)]


@given(st.integers(1, 8), st.integers(0, 30), seeds)
def test_a_tall_head_gives_equal_logits_to_tokens_equal_modulo_the_width(width, more, seed):
    vocabulary = width + more
    logits = ir.idi((vocabulary, width), **FLOAT) @ normal(width, seed=seed)
    for token in range(vocabulary):
        assert logits[token] == logits[token % width]


@pytest.mark.parametrize("vocabulary", [2048, 6144, 7000])
def test_a_tall_head_starts_at_ln_v_and_a_half(vocabulary):
    """For coordinates of variance 1, and targets that do not depend on them."""
    x = normal(64, 2048)
    logits = x @ ir.idi((vocabulary, 2048), **FLOAT).T
    targets = torch.randint(vocabulary, (64,), generator=torch.Generator().manual_seed(0))
    loss = functional.cross_entropy(logits, targets, reduction="none")
    error = 4 * float(loss.std()) / 8  # of a mean of 64
    assert abs(float(loss.mean()) - (math.log(vocabulary) + 0.5)) < error + 0.01
    assert abs(float(logits.logsumexp(1).mean()) - (math.log(vocabulary) + 0.5)) < 0.01


@pytest.mark.parametrize("sigma", [0.02, 0.05])
def test_a_tied_embedding_starts_by_naming_its_own_token(sigma):
    """Branches are 0 up to eps, so the head meets the norm of the embedding: logit sigma d."""
    vocabulary, width = 600, 512
    table = sigma * normal(vocabulary, width)
    x, eps = table, 1e-6
    for _ in range(3):
        inside = torch.tanh(rms(x) @ ir.idi((4 * width, width), **FLOAT).T)
        x = x + inside @ ir.idiz((width, 4 * width), eps=eps, **FLOAT).T
    logits = rms(x) @ table.T
    assert torch.equal(logits.argmax(1), torch.arange(vocabulary))
    own = torch.diagonal(logits)
    torch.testing.assert_close(own, torch.full_like(own, sigma * width), rtol=0.2, atol=0)
    others = logits[~torch.eye(vocabulary, dtype=bool)]
    assert math.isclose(float(others.std()), sigma * math.sqrt(width), rel_tol=0.05)
    another = (torch.arange(vocabulary) + 1) % vocabulary
    loss = functional.cross_entropy(logits, another)
    assert loss > max(0.9 * sigma * width, math.log(vocabulary))


@given(st.integers(2, 30), st.integers(0, 40), seeds)
def test_a_tied_identity_gives_a_token_the_logit_of_its_own(width, more, seed):
    """Table and head an IDI: 1 for tokens equal modulo d, and sqrt(d) behind an RMS norm."""
    table = ir.idi((width + more, width), **FLOAT)
    expected = [[float((u - v) % width == 0) for v in range(len(table))] for u in range(len(table))]
    assert (table @ table.T).tolist() == expected
    normed = rms(table) @ table.T
    torch.testing.assert_close(normed, math.sqrt(width) * torch.tensor(expected).double())
