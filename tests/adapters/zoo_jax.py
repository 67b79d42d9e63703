"""Small models of flax.nnx, flax.linen, Equinox and plain JAX, as people write them."""

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import linen, nnx

D = 16  # the width


def attend(q, k, v):
    """Attention of (batch, time, heads, size) to keys and values of as many heads, or fewer."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


# flax.nnx -----------------------------------------------------------------------------------


class MLP(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 8, rngs=rngs)
        self.second = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))


class Attention(nnx.Module):
    """One packed weight for query, key and value, with fewer heads of keys."""

    def __init__(self, rngs, heads=4, kv=2, rotary=False):
        self.heads, self.kv, self.rotary = heads, kv, rotary
        size = D // heads
        self.qkv = nnx.Linear(D, (heads + 2 * kv) * size, rngs=rngs)
        self.out = nnx.Linear(D, D, use_bias=False, rngs=rngs)

    def __call__(self, x):
        size = D // self.heads
        ends = [self.heads * size, (self.heads + self.kv) * size]
        parts = jnp.split(self.qkv(x), ends, axis=-1)
        q, k, v = (part.reshape(*x.shape[:2], -1, size) for part in parts)
        if self.rotary:
            q, k = rotate(q), rotate(k)
        return self.out(attend(q, k, v).reshape(x.shape))


def rotate(x):
    """Rotary positions: the two halves of every head are split, and put together again."""
    a, b = jnp.split(x, 2, axis=-1)
    at = jnp.arange(x.shape[1])[:, None, None] * jnp.ones(a.shape[-1])
    return jnp.concatenate(
        [a * jnp.cos(at) - b * jnp.sin(at), b * jnp.cos(at) + a * jnp.sin(at)], -1
    )


class SwiGLU(nnx.Module):
    def __init__(self, rngs, packed=True, hidden=24):
        self.packed = packed
        if packed:
            self.gate_up = nnx.Linear(D, 2 * hidden, use_bias=False, rngs=rngs)
        else:
            self.gate = nnx.Linear(D, hidden, use_bias=False, rngs=rngs)
            self.up = nnx.Linear(D, hidden, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(hidden, D, use_bias=False, rngs=rngs)

    def __call__(self, x):
        if self.packed:
            gate, up = jnp.split(self.gate_up(x), 2, axis=-1)
        else:
            gate, up = self.gate(x), self.up(x)
        return self.down(nnx.silu(gate) * up)


class Gelu(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(D, 4 * D, rngs=rngs)
        self.down = nnx.Linear(4 * D, D, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.gelu(self.up(x)))


class Block(nnx.Module):
    """Of a transformer, with the order of norm and sum as asked for."""

    def __init__(self, rngs, attention, mlp, order="pre", dropout=0.0):
        self.order = order
        self.norm1 = nnx.LayerNorm(D, rngs=rngs)
        self.norm2 = nnx.LayerNorm(D, rngs=rngs)
        self.attention = attention(rngs)
        self.mlp = mlp(rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        if order == "scaled":
            self.scale = nnx.Param(jnp.full((D,), 0.1))

    def __call__(self, x):
        if self.order == "post":
            x = self.norm1(x + self.dropout(self.attention(x)))
            return self.norm2(x + self.dropout(self.mlp(x)))
        if self.order == "parallel":
            h = self.norm1(x)
            return x + self.attention(h) + self.mlp(self.norm2(x))
        if self.order == "scaled":
            x = x + self.scale * self.attention(self.norm1(x))
            return x + self.scale[...] * self.mlp(self.norm2(x))
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class Transformer(nnx.Module):
    """Learned positions, blocks, and a head that is tied to the embedding or not."""

    def __init__(self, rngs, attention=Attention, mlp=Gelu, order="pre", tied=False, wrap=None):
        self.tokens = nnx.Embed(11, D, rngs=rngs)
        self.positions = nnx.Param(jnp.zeros((8, D)))
        self.blocks = nnx.List([Block(rngs, attention, mlp, order, 0.1) for _ in range(2)])
        self.norm = nnx.LayerNorm(D, rngs=rngs)
        self.wrap = wrap
        if not tied:
            self.head = nnx.Linear(D, 11, use_bias=False, rngs=rngs)
        self.tied = tied

    def stream(self, ids):
        """The states before the first block, and after each one."""
        x = self.tokens(ids) + self.positions[: ids.shape[1]]
        states = [x]
        for block in self.blocks:
            x = block(x) if self.wrap is None else self.wrap(block)(x)
            states.append(x)
        return states

    def __call__(self, ids):
        x = self.norm(self.stream(ids)[-1])
        return self.tokens.attend(x) if self.tied else self.head(x)


def flax_attention(rngs, kv=None):
    return nnx.MultiHeadAttention(4, D, num_kv_heads=kv, decode=False, rngs=rngs)


def remat(block):
    """A block that is computed again for its gradient."""

    @nnx.remat
    def run(block, x):
        return block(x)

    return lambda x: run(block, x)


def jit(block):
    @nnx.jit
    def run(block, x):
        return block(x)

    return lambda x: run(block, x)


def conv(rngs, n, m, size=3, stride=1, groups=1):
    kernel, strides = (size, size), (stride, stride)
    options = {"feature_group_count": groups, "use_bias": False, "rngs": rngs}
    padding = size // 2
    return nnx.Conv(n, m, kernel, strides=strides, padding=padding, **options)


class ResidualBlock(nnx.Module):
    """Two convolutions; a projection shortcut where the shape changes; perhaps a gate."""

    def __init__(self, rngs, n, m, stride=1, squeeze=False):
        self.conv1, self.norm1 = conv(rngs, n, m, stride=stride), nnx.BatchNorm(m, rngs=rngs)
        self.conv2, self.norm2 = conv(rngs, m, m), nnx.BatchNorm(m, rngs=rngs)
        self.project = (n, stride) != (m, 1)
        if self.project:
            self.shortcut = conv(rngs, n, m, 1, stride)
            self.norm3 = nnx.BatchNorm(m, rngs=rngs)
        self.squeeze = squeeze
        if squeeze:
            self.gate1 = nnx.Linear(m, m // 2, rngs=rngs)
            self.gate2 = nnx.Linear(m // 2, m, rngs=rngs)

    def __call__(self, x):
        h = self.norm2(self.conv2(nnx.relu(self.norm1(self.conv1(x)))))
        if self.squeeze:
            gate = self.gate2(nnx.relu(self.gate1(h.mean((1, 2)))))
            h = h * nnx.sigmoid(gate)[:, None, None, :]
        return nnx.relu(h + (self.norm3(self.shortcut(x)) if self.project else x))


class Inverted(nnx.Module):
    """MobileNetV2's block: wide inside, depthwise there, and nothing after the sum."""

    def __init__(self, rngs, n, m):
        self.expand, self.norm1 = conv(rngs, n, 4 * n, 1), nnx.BatchNorm(4 * n, rngs=rngs)
        self.depthwise = conv(rngs, 4 * n, 4 * n, groups=4 * n)
        self.norm2 = nnx.BatchNorm(4 * n, rngs=rngs)
        self.shrink, self.norm3 = conv(rngs, 4 * n, m, 1), nnx.BatchNorm(m, rngs=rngs)
        self.skips = n == m

    def __call__(self, x):
        h = nnx.relu6(self.norm1(self.expand(x)))
        h = self.norm3(self.shrink(nnx.relu6(self.norm2(self.depthwise(h)))))
        return x + h if self.skips else h


class ResNet(nnx.Module):
    def __init__(self, rngs, blocks):
        self.stem, self.norm = conv(rngs, 3, 8), nnx.BatchNorm(8, rngs=rngs)
        self.blocks = nnx.List(blocks(rngs))
        self.head = nnx.Linear(16, 5, rngs=rngs)

    def stream(self, x):
        states = [nnx.relu(self.norm(self.stem(x)))]
        for block in self.blocks:
            states.append(block(states[-1]))
        return states

    def __call__(self, x):
        return self.head(self.stream(x)[-1].mean((1, 2)))


def residual_blocks(rngs, squeeze=False):
    return [ResidualBlock(rngs, 8, 8, 1, squeeze), ResidualBlock(rngs, 8, 16, 2, squeeze),
            ResidualBlock(rngs, 16, 16, 1, squeeze)]  # fmt: skip


def inverted_blocks(rngs):
    return [Inverted(rngs, 8, 8), Inverted(rngs, 8, 16)]


class Experts(nnx.Module):
    """A soft mixture of experts whose weights are stacked."""

    def __init__(self, rngs, experts=3, hidden=8):
        self.router = nnx.Linear(D, experts, use_bias=False, rngs=rngs)
        self.up = nnx.Param(jnp.zeros((experts, D, 2 * hidden)))
        self.bias = nnx.Param(jnp.zeros((experts, 2 * hidden)))
        self.down = nnx.Param(jnp.zeros((experts, hidden, D)))

    def __call__(self, x):
        h = jnp.einsum("btd,edh->bteh", x, self.up[...]) + self.bias[...]
        gate, up = jnp.split(h, 2, axis=-1)
        out = jnp.einsum("bteh,ehd->bted", nnx.silu(gate) * up, self.down[...])
        return jnp.einsum("bted,bte->btd", out, nnx.softmax(self.router(x)))


class EncoderDecoder(nnx.Module):
    """T5's blocks: RMSNorm, cross-attention, a table of relative positions, a tied head."""

    def __init__(self, rngs):
        self.shared, self.relative = nnx.Embed(11, D, rngs=rngs), nnx.Embed(4, 4, rngs=rngs)
        self.norms = nnx.List([nnx.RMSNorm(D, rngs=rngs) for _ in range(5)])
        self.encoder, self.decoder = flax_attention(rngs), flax_attention(rngs)
        self.cross = nnx.List([nnx.Linear(D, D, use_bias=False, rngs=rngs) for _ in range(4)])
        self.mlp1, self.mlp2 = Gelu(rngs), Gelu(rngs)

    def attend_to(self, x, memory, mask):
        q, k, v, out = self.cross
        heads = lambda h: h.reshape(*h.shape[:2], 4, -1)  # noqa: E731
        at = jnp.arange(x.shape[1])[:, None] - jnp.arange(memory.shape[1])
        bias = self.relative(jnp.clip(at, -1, 2) + 1).transpose(2, 0, 1)
        scores = jnp.einsum("bqhd,bkhd->bhqk", heads(q(x)), heads(k(memory))) + bias
        weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e9))
        return out(jnp.einsum("bhqk,bkhd->bqhd", weights, heads(v(memory))).reshape(x.shape))

    def __call__(self, source, target):
        x, y = self.shared(source), self.shared(target)
        x = x + self.encoder(self.norms[0](x), mask=(source > 0)[:, None, None])
        x = x + self.mlp1(self.norms[1](x))
        y = y + self.decoder(self.norms[2](y), is_causal=True)
        y = y + self.attend_to(self.norms[3](y), x, source > 0)
        y = y + self.mlp2(self.norms[4](y))
        return self.shared.attend(y)


class UNet(nnx.Module):
    """Its skips are concatenated: only the middle has a residual sum."""

    def __init__(self, rngs):
        self.down1, self.down2 = conv(rngs, 3, 8), conv(rngs, 8, 16, stride=2)
        self.middle = conv(rngs, 16, 16)
        self.up = nnx.ConvTranspose(16, 8, (2, 2), strides=(2, 2), rngs=rngs)
        self.last = conv(rngs, 16, 2)

    def __call__(self, x):
        a = nnx.relu(self.down1(x))
        b = nnx.relu(self.down2(a))
        b = b + self.middle(b)
        return self.last(jnp.concatenate([a, self.up(b)], -1))


class Scanned(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(rngs):
            return Block(rngs, flax_attention, Gelu)

        self.layers = make(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def run(layer, x):
            return layer(x)

        return run(self.layers, x)


class Recurrent(nnx.Module):
    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.OptimizedLSTMCell(D, D, rngs=rngs))
        self.head = nnx.Linear(D, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.rnn(x))


# Equinox ------------------------------------------------------------------------------------


class EqxBlock(eqx.Module):
    norm1: eqx.nn.LayerNorm
    norm2: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.norm1 = eqx.nn.LayerNorm(D)
        self.norm2 = eqx.nn.LayerNorm(D)
        self.attention = eqx.nn.MultiheadAttention(4, D, key=keys[0], use_output_bias=True)
        self.up = eqx.nn.Linear(D, 4 * D, key=keys[1])
        self.down = eqx.nn.Linear(4 * D, D, key=keys[2])
        self.dropout = eqx.nn.Dropout(0.1)

    def __call__(self, x):
        h = jax.vmap(self.norm1)(x)
        x = x + self.dropout(self.attention(h, h, h))
        h = jax.vmap(self.up)(jax.vmap(self.norm2)(x))
        return x + jax.vmap(self.down)(jax.nn.gelu(h))


class EqxTransformer(eqx.Module):
    tokens: eqx.nn.Embedding
    positions: jax.Array
    blocks: list
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 5)
        self.tokens = eqx.nn.Embedding(11, D, key=keys[0])
        self.positions = jnp.zeros((8, D))
        self.blocks = [EqxBlock(key) for key in keys[1:3]]
        self.norm = eqx.nn.LayerNorm(D)
        self.head = eqx.nn.Linear(D, 11, use_bias=False, key=keys[3])

    def stream(self, ids):
        states = [jax.vmap(self.tokens)(ids) + self.positions[: len(ids)]]
        for block in self.blocks:
            states.append(block(states[-1]))
        return states

    def __call__(self, ids):
        return jax.vmap(self.head)(jax.vmap(self.norm)(self.stream(ids)[-1]))


def eqx_conv(n, m, size, stride, key):
    return eqx.nn.Conv2d(n, m, size, stride, padding=size // 2, use_bias=False, key=key)


class EqxResidual(eqx.Module):
    conv1: eqx.nn.Conv2d
    norm1: eqx.nn.BatchNorm
    conv2: eqx.nn.Conv2d
    norm2: eqx.nn.BatchNorm
    shortcut: eqx.nn.Conv2d | None

    def __init__(self, n, m, stride, key):
        keys = jax.random.split(key, 3)
        self.conv1, self.norm1 = eqx_conv(n, m, 3, stride, keys[0]), batch_norm(m)
        self.conv2, self.norm2 = eqx_conv(m, m, 3, 1, keys[1]), batch_norm(m)
        self.shortcut = None if (n, stride) == (m, 1) else eqx_conv(n, m, 1, stride, keys[2])

    def __call__(self, x, state):
        h, state = self.norm1(self.conv1(x), state)
        h, state = self.norm2(self.conv2(jax.nn.relu(h)), state)
        return jax.nn.relu(h + (x if self.shortcut is None else self.shortcut(x))), state


def batch_norm(channels):
    return eqx.nn.BatchNorm(channels, "batch", mode="batch")


class EqxResNet(eqx.Module):
    stem: eqx.nn.Conv2d
    blocks: list
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        self.stem = eqx_conv(3, 8, 3, 1, keys[0])
        self.blocks = [EqxResidual(8, 8, 1, keys[1]), EqxResidual(8, 16, 2, keys[2])]
        self.head = eqx.nn.Linear(16, 5, key=keys[3])

    def __call__(self, x, state):
        x = self.stem(x)
        for block in self.blocks:
            x, state = block(x, state)
        return self.head(x.mean((1, 2))), state


def batched(model, x, state):
    """Apply an Equinox model with a state to a batch."""
    run = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    return run(x, state)[0]


class EqxTied(eqx.Module):
    shared: eqx.nn.Shared

    def __init__(self, key):
        table = eqx.nn.Embedding(11, D, key=key)
        head = eqx.nn.Linear(D, 11, use_bias=False, key=key)
        self.shared = eqx.nn.Shared(
            (table, head), lambda pair: pair[1].weight, lambda pair: pair[0].weight
        )

    def __call__(self, ids):
        table, head = self.shared()
        return jax.vmap(head)(jax.vmap(table)(ids))


# flax.linen ---------------------------------------------------------------------------------


class LinenBlock(linen.Module):
    @linen.compact
    def __call__(self, x):
        h = linen.LayerNorm()(x)
        x = x + linen.MultiHeadDotProductAttention(num_heads=4)(h, h)
        h = linen.Dense(4 * D)(linen.LayerNorm()(x))
        return x + linen.Dense(D)(linen.gelu(h))


class LinenTransformer(linen.Module):
    @linen.compact
    def __call__(self, ids):
        x = linen.Embed(11, D)(ids)
        for _ in range(2):
            x = LinenBlock()(x)
        return linen.Dense(11, use_bias=False, name="head")(linen.LayerNorm()(x))


class LinenScanned(linen.Module):
    @linen.compact
    def __call__(self, x):
        class Step(linen.Module):
            @linen.compact
            def __call__(self, x, _):
                return linen.remat(LinenBlock)()(x), None

        scan = linen.scan(Step, {"params": 0}, split_rngs={"params": True}, length=3)
        return scan(name="layers")(x, None)[0]


# Plain functions ----------------------------------------------------------------------------


def scanned_params(layers=3):
    shapes = {
        "embed": (11, D),
        "layers": {
            "norm": {"scale": (layers, D), "bias": (layers, D)},
            "qkv": (layers, D, 3 * D),
            "out": (layers, D, D),
            "mlp": {"up": (layers, D, 4 * D), "b": (layers, 4 * D), "down": (layers, 4 * D, D)},
        },
        "head": (D, 11),
    }
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        shapes,
        is_leaf=lambda shape: isinstance(shape, tuple),
    )


def layer_norm(x, params):
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)
    return x * params["scale"] + params["bias"]


def scanned(params, ids):
    """A transformer whose layers are stacked, and scanned over."""

    @jax.checkpoint
    def layer(x, params):
        q, k, v = jnp.split(layer_norm(x, params["norm"]) @ params["qkv"], 3, axis=-1)
        heads = (*x.shape[:2], 4, D // 4)
        mixed = attend(q.reshape(heads), k.reshape(heads), v.reshape(heads)).reshape(x.shape)
        x = x + mixed @ params["out"]
        h = jax.nn.gelu(layer_norm(x, params["norm"]) @ params["mlp"]["up"] + params["mlp"]["b"])
        return x + h @ params["mlp"]["down"], None

    x, _ = jax.lax.scan(layer, params["embed"][ids], params["layers"])
    return x @ params["head"]
