"""One function, one answer (section 6): mapped or looped, scanned or unrolled, checkpointed or not.

Every function runs here, too: each form gives what the plain one gives.
"""

from __future__ import annotations

import numpy as np
import pytest

D, LAYERS = 8, 3
X = np.random.default_rng(0).standard_normal((2, D)).astype("float32")
STACKS = {
    name: np.random.default_rng(at).standard_normal((LAYERS, D, D)).astype("float32") / D
    for at, name in enumerate(("up", "gate", "down"))
}


def plain(x, w, relu, sigmoid):
    return x + relu(x @ w["up"] @ w["gate"]) @ w["down"]


def gated(x, w, relu, sigmoid):
    return x + relu(x @ w["up"]) @ w["down"] * sigmoid(x @ w["gate"])


def nested(x, w, relu, sigmoid):
    h = x @ w["up"]
    return x + (h + relu(h) @ w["gate"]) @ w["down"]


BLOCKS = {
    plain: {"up": "transit", "gate": "transit", "down": "zero"},
    gated: {"up": "transit", "gate": "transit", "down": "zero"},
    nested: {"up": "transit", "gate": "zero", "down": "zero"},
}


def torch_forms(block):
    """Yield the name of a form, its roles, and its value."""
    import torch
    from torch.utils.checkpoint import checkpoint

    import idinit_ref_torch as irt

    def one(x, up, gate, down):
        return block(x, {"up": up, "gate": gate, "down": down}, torch.relu, torch.sigmoid)

    def layers(x, w, call=one):
        for k in range(LAYERS):
            x = call(x, w["up"][k], w["gate"][k], w["down"][k])
        return x

    def reentrant(*given):
        return checkpoint(one, *given, use_reentrant=True)

    def lazily(*given):
        return checkpoint(one, *given, use_reentrant=False)

    def unbound(x, w):
        for up, gate, down in zip(*(w[name].unbind() for name in STACKS), strict=True):
            x = one(x, up, gate, down)
        return x

    forms = {
        "layers": layers,
        "layers, unbound": unbound,
        "layers, checkpointed": lambda x, w: layers(x, w, lazily),
        "layers, checkpointed by reentry": lambda x, w: layers(x, w, reentrant),
        "members": lambda x, w: torch.stack([one(x, *(w[n][k] for n in w)) for k in range(LAYERS)]),
        "members, mapped": lambda x, w: torch.vmap(one, (None, 0, 0, 0))(x, *w.values()),
        "members, multiplied": lambda x, w: one(x.expand(LAYERS, 2, D), *w.values()),
    }

    class Model(torch.nn.Module):
        def __init__(self, form):
            super().__init__()
            self.w = torch.nn.ParameterDict(
                {n: torch.nn.Parameter(torch.tensor(a)) for n, a in STACKS.items()}
            )
            self.form = form

        def forward(self, x):
            return self.form(x, {name: self.w[name] for name in STACKS})

    for name, form in forms.items():
        model = Model(form)
        value = model(torch.tensor(X)).detach().numpy()
        roles = irt.init_(model, torch.tensor(X)).roles
        yield name, {key.removeprefix("w."): role for key, role in roles.items()}, value


def jax_forms(block):
    """Yield the same for JAX."""
    import jax
    import jax.numpy as jnp

    import idinit_ref_jax as irj

    def one(x, w):
        return block(x, w, jax.nn.relu, jax.nn.sigmoid)

    def each(w, k):
        return {name: stack[k] for name, stack in w.items()}

    def layers(w, x, call=one):
        for k in range(LAYERS):
            x = call(x, each(w, k))
        return x

    def scanned(w, x, call=one):
        return jax.lax.scan(lambda x, w: (call(x, w), None), x, w)[0]

    forms = {
        "layers": layers,
        "layers, scanned": scanned,
        "layers, scanned in twos": lambda w, x: jax.lax.scan(
            lambda x, w: (one(x, w), None), x, w, unroll=2
        )[0],
        "layers, in a loop": lambda w, x: jax.lax.fori_loop(
            0, LAYERS, lambda k, x: one(x, each(w, k)), x
        ),
        "layers, checkpointed": lambda w, x: layers(w, x, jax.checkpoint(one)),
        "layers, scanned and checkpointed": lambda w, x: scanned(w, x, jax.checkpoint(one)),
        "layers, compiled": lambda w, x: layers(w, x, jax.jit(one)),
        "members": lambda w, x: jnp.stack([one(x, each(w, k)) for k in range(LAYERS)]),
        "members, mapped": lambda w, x: jax.vmap(one, (None, 0))(x, w),
        "members, multiplied": lambda w, x: one(jnp.broadcast_to(x, (LAYERS, 2, D)), w),
        "members, scanned": lambda w, x: jax.lax.map(lambda w: one(x, w), w),
    }
    given = {name: jnp.asarray(a) for name, a in STACKS.items()}
    for name, form in forms.items():
        roles = irj.init(given, jnp.asarray(X), form)[1].roles
        yield name, {key.strip("[']"): role for key, role in roles.items()}, form(given, X)


def tensorflow_forms(block):
    """Yield the same for TensorFlow."""
    import keras
    import tensorflow as tf

    import idinit_ref_tensorflow as irk

    def one(x, up, gate, down):
        return block(x, {"up": up, "gate": gate, "down": down}, tf.nn.relu, tf.sigmoid)

    def layers(x, w, call=one):
        for k in range(LAYERS):
            x = call(x, *(w[name][k] for name in STACKS))
        return x

    def scanned(x, w):
        return tf.while_loop(
            lambda k, x: k < LAYERS,
            lambda k, x: (k + 1, one(x, *(w[name][k] for name in STACKS))),
            (0, x),
        )[1]

    forms = {
        "layers": layers,
        "layers, in a loop": scanned,
        "layers, checkpointed": lambda x, w: layers(x, w, tf.recompute_grad(one)),
        "members": lambda x, w: tf.stack([one(x, *(w[n][k] for n in w)) for k in range(LAYERS)]),
        "members, multiplied": lambda x, w: one(tf.tile(x[None], (LAYERS, 1, 1)), *w.values()),
    }

    class Model(keras.Model):
        def __init__(self, form):
            super().__init__()
            self.up, self.gate, self.down = (tf.Variable(a, name=n) for n, a in STACKS.items())
            self.form = form

        def call(self, x):
            return self.form(x, {name: getattr(self, name) for name in STACKS})

    for name, form in forms.items():
        model = Model(form)
        value = model(tf.constant(X)).numpy()
        roles = irk.init_(model, tf.constant(X)).roles
        yield name, {key.rpartition("/")[2].partition(":")[0]: r for key, r in roles.items()}, value


FORMS = [  # what compiles each form anew: one block each time
    pytest.param(
        forms,
        block,
        id=f"{forms.__name__}-{block.__name__}",
        marks=pytest.mark.nightly if number and forms is not torch_forms else [],
    )
    for forms in (torch_forms, jax_forms, tensorflow_forms)
    for number, block in enumerate(BLOCKS)
]


@pytest.mark.parametrize(("forms", "block"), FORMS)
def test_all_forms_of_a_function_have_its_roles(forms, block):
    first: dict[str, np.ndarray] = {}
    for name, roles, value in forms(block):
        same = first.setdefault(name.partition(",")[0], np.asarray(value))
        np.testing.assert_allclose(value, same, rtol=1e-4, atol=1e-5, err_msg=name)
        assert roles == BLOCKS[block], name
