"""JAX's spellings of each kind of operation; matrices have their inputs first."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, nn

import idinit_ref_jax as irj
from adapters.rewritten import HEADS, LENGTH, WIDTH, X, table_of

EACH = WIDTH // HEADS
MASK = jnp.arange(WIDTH) % 2 == 0


def run(network, values, x):
    """The network's results with these values, and the values that it starts with."""
    params = {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}
    before = np.asarray(network(params, jnp.asarray(x)))
    found, _ = irj.init(params, (x,), network)
    return before, {name: np.asarray(value) for name, value in found.items()}


@jax.custom_vjp
def custom(x, w):
    return x @ w


custom.defvjp(lambda x, w: (x @ w, (x, w)), lambda held, g: (g @ held[1].T, held[1] * 0))


def turned(x, w):
    return jnp.swapaxes(w.T @ jnp.swapaxes(x, 1, 2), 1, 2)


def conv1d(x, w):
    return lax.conv_general_dilated(
        x, w[None], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )


def conv2d(x, w):
    kinds = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x[:, None], w[None, None], (1, 1), "VALID", dimension_numbers=kinds
    )[:, 0]


LINEAR = {
    "@": lambda x, w: x @ w,
    "dot": jnp.dot,
    "einsum": lambda x, w: jnp.einsum("...i,io->...o", x, w),
    "einsum, weight first": lambda x, w: jnp.einsum("io,bsi->bso", w, x),
    "tensordot": lambda x, w: jnp.tensordot(x, w, 1),
    "dot_general": lambda x, w: lax.dot_general(x, w, (((2,), (0,)), ((), ()))),
    "dot_general, batch": lambda x, w: lax.dot_general(
        x, jnp.broadcast_to(w, (len(x), *w.shape)), (((2,), (1,)), ((0,), (0,)))
    ),
    "from the left": turned,
    "inner": lambda x, w: jnp.inner(x, w.T),
    "vmap": lambda x, w: jax.vmap(jax.vmap(lambda row: w.T @ row))(x),
    "vmap, axis 1": lambda x, w: jax.vmap(lambda row: row @ w, in_axes=1, out_axes=1)(x),
    "vmap over columns": lambda x, w: jax.vmap(lambda c: x @ c, in_axes=1, out_axes=-1)(w),
    "vectorize": jnp.vectorize(lambda row, w: row @ w, signature="(i),(i,o)->(o)"),
    "product and sum": lambda x, w: (x[..., None] * w).sum(-2),
    "conv1d": conv1d,
    "conv2d": conv2d,
    "jit": jax.jit(jnp.matmul),
    "checkpoint": jax.checkpoint(jnp.matmul),
    "custom_vjp": custom,
    "scan": lambda x, w: jnp.swapaxes(
        lax.scan(lambda c, row: (c, row @ w), 0, jnp.swapaxes(x, 0, 1))[1], 0, 1
    ),
    "map": lambda x, w: lax.map(lambda row: row @ w, x),
    "times": lambda x, w: jnp.stack([x[:, t] @ w for t in range(LENGTH)], 1),
    "mm": lambda x, w: (x.reshape(-1, x.shape[-1]) @ w).reshape(*x.shape[:-1], -1),
    "scaled": lambda x, w: (2 * x) @ (w / 2),
    "flat weight": lambda x, w: x @ w.ravel().reshape(w.shape),
    "dynamic_slice": lambda x, w: x @ lax.dynamic_slice(w, (0, 0), w.shape),
    "flipped": lambda x, w: x[..., ::-1] @ w[::-1],
    "rolled": lambda x, w: jnp.roll(x, 1, -1) @ jnp.roll(w, 1, 0),
    "padded": lambda x, w: jnp.pad(x, ((0, 0), (0, 0), (0, 3))) @ jnp.pad(w, ((0, 3), (0, 0))),
    "heads of inputs": lambda x, w: jnp.einsum(
        "bshd,hdo->bso", x.reshape(*x.shape[:-1], 2, -1), w.reshape(2, -1, w.shape[1])
    ),
    "parts of inputs": lambda x, w: sum(
        a @ b for a, b in zip(jnp.split(x, 2, -1), jnp.split(w, 2), strict=True)
    ),
    "cond": lambda x, w: lax.cond(True, lambda: x @ w, lambda: x @ w * 0),
    "fori_loop": lambda x, w: lax.fori_loop(
        0, 1, lambda i, c: x @ w, jnp.zeros((*x.shape[:-1], w.shape[1]))
    ),
    "tree": lambda x, w: jax.tree.map(jnp.matmul, {"a": x}, {"a": w})["a"],
}
SUM = {
    "+": lambda a, b: a + b,
    "swapped": lambda a, b: b + a,
    "lax": lax.add,
    "tree": lambda a, b: jax.tree.reduce(lax.add, [a, b]),
    "minus minus": lambda a, b: a - (-b),
    "halved": lambda a, b: (2 * a + 2 * b) / 2,
    "at": lambda a, b: a.at[:].add(b),
    "at rows": lambda a, b: a.at[jnp.arange(len(a))].add(b),
    "from zeros": lambda a, b: jnp.zeros_like(a).at[:].add(a).at[:].add(b),
    "vmap": jax.vmap(lambda a, b: a + b),
    "masks": lambda a, b: jnp.where(MASK, a + b, 0) + jnp.where(MASK, 0, a + b),
    "chosen": lambda a, b: jnp.where(True, a + b, a),
    "cond": lambda a, b: lax.cond(True, lambda: a + b, lambda: a),
    "written": lambda a, b: lax.dynamic_update_slice(a, a + b, (0, 0, 0)),
    "log exp": lambda a, b: a + jnp.log(jnp.exp(b)),
    "a leading axis": lambda a, b: (a[None] + b[None])[0],
    "channels first": lambda a, b: jnp.moveaxis(
        jnp.moveaxis(a, 0, 2) + jnp.moveaxis(b, 0, 2), 2, 0
    ),
    "stack": lambda a, b: jnp.stack([a, b]).sum(0),
    "stack, last axis": lambda a, b: jnp.stack([a, b], -1).sum(-1),
    "mean": lambda a, b: 2 * jnp.mean(jnp.stack([a, b]), 0),
    "einsum": lambda a, b: jnp.einsum("n...->...", jnp.stack([a, b])),
    "reduce": lambda a, b: lax.reduce(jnp.stack([a, b]), 0.0, lax.add, (0,)),
    "cumsum": lambda a, b: jnp.cumsum(jnp.stack([a, b]), 0)[-1],
    "scan": lambda a, b: lax.scan(
        lambda c, part: (c + part, None), jnp.zeros_like(a), jnp.stack([a, b])
    )[0],
    "parts": lambda a, b: jnp.concatenate(
        [u + v for u, v in zip(jnp.split(a, 2, -1), jnp.split(b, 2, -1), strict=True)], -1
    ),
    "times": lambda a, b: jnp.stack([a[:, t] + b[:, t] for t in range(LENGTH)], 1),
}
MOVE = {
    "none": lambda x: x,
    "permuted": lambda x: x.transpose(2, 0, 1).transpose(1, 2, 0),
    "flipped": lambda x: x[..., ::-1][..., ::-1],
    "reversed": lambda x: lax.rev(lax.rev(x, (1,)), (1,)),
    "rolled": lambda x: jnp.roll(jnp.roll(x, 2, -1), -2, -1),
    "split": lambda x: jnp.concatenate(jnp.split(x, 2, -1), -1),
    "gathered": lambda x: x[..., jnp.arange(WIDTH)],
    "taken": lambda x: jnp.take(x, jnp.arange(WIDTH), -1),
    "along an axis": lambda x: jnp.take_along_axis(x, jnp.arange(WIDTH)[None, None], -1),
    "padded": lambda x: jnp.pad(x, ((0, 0), (0, 0), (1, 2)))[..., 1:-2],
    "reshaped": lambda x: x.reshape(*x.shape[:-1], 2, -1).reshape(x.shape),
    "times an identity": lambda x: x @ jnp.eye(WIDTH),
    "plus zeros": lambda x: x + jnp.zeros_like(x),
    "stacked": lambda x: jnp.stack([x, x])[0],
    "rows": lambda x: jnp.stack([*x]),
    "jit": jax.jit(lambda x: x * 1),
    "checkpoint": jax.checkpoint(lambda x: x),
    "vmap": jax.vmap(lambda row: row),
    "scan": lambda x: lax.scan(lambda c, row: (c, row), 0, x)[1],
    "fori_loop": lambda x: lax.fori_loop(0, 3, lambda i, c: c, x),
    "cond": lambda x: lax.cond(True, lambda: x, lambda: x),
    "barrier": lax.optimization_barrier,
    "dynamic_slice": lambda x: lax.dynamic_slice(x, (0, 0, 0), x.shape),
    "complex": lambda x: lax.complex(x, x).real,
    "triangles": lambda x: jnp.tril(x) + jnp.triu(x, 1),
    "squeezed": lambda x: jnp.squeeze(x[:, None], 1),
    "written": lambda x: jnp.zeros_like(x).at[:].set(x),
}
RELU = {
    "relu": nn.relu,
    "maximum": lambda h: jnp.maximum(h, 0),
    "where": lambda h: jnp.where(h > 0, h, 0.0),
    "clip": lambda h: jnp.clip(h, 0),
    "absolute value": lambda h: (h + abs(h)) / 2,
    "mask": lambda h: h * (h > 0),
    "select": lambda h: lax.select(h > 0, h, jnp.zeros_like(h)),
    "cond": jnp.vectorize(lambda t: lax.cond(t > 0, lambda: t, lambda: 0.0)),
    "leaky": lambda h: nn.leaky_relu(h, 0.0),
    "heaviside": lambda h: h * jnp.heaviside(h, 0.0),
    "piecewise": lambda h: jnp.piecewise(h, [h > 0], [lambda t: t, 0.0]),
}
SILU = {
    "silu": nn.silu,
    "product": lambda h: h * nn.sigmoid(h),
    "quotient": lambda h: h / (1 + jnp.exp(-h)),
    "tanh": lambda h: h * 0.5 * (1 + jnp.tanh(h / 2)),
    "glu": lambda h: nn.glu(jnp.concatenate([h, h], -1)),
    "log_sigmoid": lambda h: h * jnp.exp(nn.log_sigmoid(h)),
}
GELU = {
    "gelu": lambda h: nn.gelu(h, approximate=False),
    "erf": lambda h: 0.5 * h * (1 + lax.erf(h / 2**0.5)),
    "normal distribution": lambda h: h * jax.scipy.stats.norm.cdf(h),
    "erfc": lambda h: 0.5 * h * lax.erfc(-h / 2**0.5),
}
TANH = {
    "tanh": jnp.tanh,
    "exp": lambda h: (jnp.exp(h) - jnp.exp(-h)) / (jnp.exp(h) + jnp.exp(-h)),
    "sigmoid": lambda h: 2 * nn.sigmoid(2 * h) - 1,
    "expm1": lambda h: jnp.expm1(2 * h) / (jnp.exp(2 * h) + 1),
}


def mean(x):
    return x.mean(-1, keepdims=True)


NORM = {
    "standardize": lambda x: nn.standardize(x, epsilon=1e-5),
    "written": lambda x: (x - mean(x)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5),
    "rsqrt": lambda x: (x - mean(x)) * lax.rsqrt(mean((x - mean(x)) ** 2) + 1e-5),
    "second moment": lambda x: (x - mean(x)) * lax.rsqrt(mean(x * x) - mean(x) ** 2 + 1e-5),
    "vmap": jax.vmap(jax.vmap(lambda row: (row - row.mean()) / jnp.sqrt(row.var() + 1e-5))),
}


def less_the_largest(s):
    e = jnp.exp(s - lax.stop_gradient(s.max(-1, keepdims=True)))
    return e / e.sum(-1, keepdims=True)


SOFTMAX = {
    "softmax": nn.softmax,
    "exp": lambda s: jnp.exp(s) / jnp.exp(s).sum(-1, keepdims=True),
    "less the largest": less_the_largest,
    "logsumexp": lambda s: jnp.exp(s - jax.scipy.special.logsumexp(s, -1, keepdims=True)),
    "log_softmax": lambda s: jnp.exp(nn.log_softmax(s)),
}


def heads(h):
    return h.reshape(*h.shape[:-1], HEADS, EACH)


def of_a_head(softmax):
    return lambda q, k, v: softmax(q @ jnp.swapaxes(k, -1, -2) * EACH**-0.5) @ v


def in_a_loop(q, k, v, softmax):
    own = [slice(head * EACH, (head + 1) * EACH) for head in range(HEADS)]
    one = of_a_head(softmax)
    return jnp.concatenate([one(*(h[..., at] for h in (q, k, v))) for at in own], -1)


def mapped(q, k, v, softmax):
    given = tuple(jnp.moveaxis(heads(h), 2, 0) for h in (q, k, v))
    out = lax.map(lambda each: of_a_head(softmax)(*each), given)
    return jnp.moveaxis(out, 0, 2).reshape(X.shape)


ATTENTION = {
    "einsum": lambda q, k, v, softmax: jnp.einsum(
        "bhqk,bkhd->bqhd",
        softmax(jnp.einsum("bqhd,bkhd->bhqk", heads(q), heads(k)) * EACH**-0.5),
        heads(v),
    ).reshape(X.shape),
    "fused": lambda q, k, v, softmax: nn.dot_product_attention(
        heads(q), heads(k), heads(v)
    ).reshape(X.shape),
    "vmap": lambda q, k, v, softmax: jax.vmap(jax.vmap(of_a_head(softmax), in_axes=1, out_axes=1))(
        heads(q), heads(k), heads(v)
    ).reshape(X.shape),
    "map": mapped,
    "in a loop": in_a_loop,
}
TABLE = table_of(globals())


def per_head(x, w, *sizes):
    return (x @ w).reshape(*x.shape[:2], *sizes)


def flat_heads(parts):
    return [part.reshape(*part.shape[:2], WIDTH) for part in parts]


PACKED = {
    "parts of heads": lambda x, w: flat_heads(jnp.split(per_head(x, w, HEADS, -1), 3, -1)),
    "slices of heads": lambda x, w: flat_heads(
        lax.slice_in_dim(per_head(x, w, HEADS, -1), at * EACH, (at + 1) * EACH, axis=3)
        for at in range(3)
    ),
    "one of three": lambda x, w: flat_heads(
        per_head(x, w, HEADS, 3, EACH)[..., at, :] for at in range(3)
    ),
    "three in front": lambda x, w: flat_heads(jnp.moveaxis(per_head(x, w, HEADS, 3, EACH), 3, 0)),
    "every third": lambda x, w: [(x @ w)[..., at::3] for at in range(3)],
    "three last": lambda x, w: flat_heads(jnp.split(per_head(x, w, HEADS, EACH, 3), 3, -1)),
    "einsum": lambda x, w: flat_heads(
        jnp.einsum("bti,ihkd->kbthd", x, w.reshape(WIDTH, HEADS, 3, EACH))
    ),
    "three axes": lambda x, w: flat_heads(jnp.split(jnp.einsum("bti,ihk->bthk", x, w), 3, -1)),
    "four axes": lambda x, w: flat_heads(jnp.einsum("bti,ihkd->kbthd", x, w)),
}


def halves_turned(h):
    one, two = jnp.split(heads(h), 2, -1)
    both = jnp.concatenate([one * 0.8 - two * 0.6, two * 0.8 + one * 0.6], -1)
    return both.reshape(h.shape)


def pairs_turned(h):
    turned = jnp.stack([-heads(h)[..., 1::2], heads(h)[..., ::2]], -1)
    return h * 0.8 + turned.reshape(h.shape) * 0.6


def complex_turned(h):
    turned = lax.complex(*jnp.split(heads(h), 2, -1)) * (0.8 + 0.6j)
    return jnp.stack([turned.real, turned.imag], -2).reshape(h.shape)


TURNS = [lambda h: h, halves_turned, pairs_turned, complex_turned]
