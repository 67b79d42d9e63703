"""An audit of a packed JAX weight names the blocks that `jax.grad` gives no gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import idinit_ref_jax as irj

KEYS = jax.random.split(jax.random.key(0), 2)
CERTAIN = {
    "stop": lambda q, x: jax.lax.stop_gradient(q),
    "round": lambda q, x: jnp.round(q),
    "index": lambda q, x: jax.nn.one_hot((q @ q.mT).argmax(-1), 8),
}
UNCERTAIN = {
    "where": lambda q, x: jnp.where(x > 100, q, x),
    "relu": lambda q, x: jax.nn.relu(q - 100) + x,
}
SHAPES = {
    "plain": (8, 24),  # cut by split
    "axes": (8, 3, 8),  # three matrices in one, of an einsum
}


def attention(change, shape):
    def apply(params, x):
        if len(shape) == 2:
            q, k, v = jnp.split(x @ params["qkv"], 3, -1)
        else:
            q, k, v = jnp.moveaxis(jnp.einsum("bti,ico->btco", x, params["qkv"]), 2, 0)
        a = jax.nn.softmax(change(q, x) @ k.mT / 8**0.5)
        return (x + a @ v @ params["out"]) @ params["head"]

    shapes = {"qkv": shape, "out": (8, 8), "head": (8, 3)}
    return apply, {name: jnp.ones(size) for name, size in shapes.items()}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("how", [*CERTAIN, *UNCERTAIN, "plain"])
def test_a_block_without_a_gradient_is_named(how, shape):
    apply, params = attention({**CERTAIN, **UNCERTAIN}.get(how, lambda q, x: q), SHAPES[shape])
    x, given = jax.random.normal(KEYS[0], (4, 5, 8)), jax.random.normal(KEYS[1], (4, 5, 3))
    params, _ = irj.init(params, x, apply)
    slope = jax.grad(lambda params: (apply(params, x) * given).sum())(params)["qkv"]
    slope = slope.reshape(8, 3, 8)
    spans = ["0:8", "8:16", "16:24"] if shape == "plain" else ["0:1", "1:2", "2:3"]
    named = {f"qkv[:, {span}]" for at, span in enumerate(spans) if not slope[:, at].any()}
    assert (f"qkv[:, {spans[0]}]" in named) == (how != "plain")
    audit = irj.audit(params, x, apply, steps=3)
    assert {one.name for one in audit.dead} == named
    assert bool(audit.healthy) == (how not in CERTAIN)
    assert audit.steps == (0 if how not in CERTAIN else 3)
