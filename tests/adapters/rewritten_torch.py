"""PyTorch's spellings of each kind of operation; matrices have their inputs first."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import idinit_ref_torch as irt
from adapters.rewritten import HEADS, LENGTH, WIDTH, table_of

EACH = WIDTH // HEADS
MASK = torch.arange(WIDTH) % 2 == 0


def run(network, values, x):
    """The network's results with these values, and the values that it starts with."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.ParameterDict({k: torch.tensor(v).float() for k, v in values.items()})

        def forward(self, x):
            return network(dict(self.p.items()), x)

    model, x = Model(), torch.tensor(x)
    before = model(x).detach().numpy()
    irt.init_(model, x)
    return before, {name: value.detach().numpy() for name, value in model.p.items()}


def flat(x):
    return x.reshape(-1, x.shape[-1])


def each(x, w):
    return w.expand(x.shape[0], *w.shape)


LINEAR = {
    "@": lambda x, w: x @ w,
    "linear": lambda x, w: F.linear(x, w.T),
    "layer": lambda x, w: torch.func.functional_call(
        nn.Linear(*w.shape, bias=False), {"weight": w.T}, (x,)
    ),
    "einsum": lambda x, w: torch.einsum("...i,io->...o", x, w),
    "einsum, weight first": lambda x, w: torch.einsum("io,...i->...o", w, x),
    "tensordot": lambda x, w: torch.tensordot(x, w, dims=([-1], [0])),
    "from the left": lambda x, w: (w.T @ x.mT).mT,
    "inner": lambda x, w: torch.inner(x, w.T),
    "bmm": lambda x, w: torch.bmm(x, each(x, w)),
    "mm": lambda x, w: torch.mm(flat(x), w).reshape(*x.shape[:-1], -1),
    "addmm": lambda x, w: torch.addmm(torch.zeros(()), flat(x), w).reshape(*x.shape[:-1], -1),
    "baddbmm": lambda x, w: torch.baddbmm(torch.zeros(1, 1, 1), x, each(x, w)),
    "conv1d": lambda x, w: F.conv1d(x.mT, w.T[..., None]).mT,
    "conv2d": lambda x, w: F.conv2d(x.permute(2, 0, 1)[None], w.T[..., None, None])[0].permute(
        1, 2, 0
    ),
    "conv_transpose1d": lambda x, w: F.conv_transpose1d(x.mT, w[..., None]).mT,
    "unfold": lambda x, w: (w.T @ F.unfold(x.mT[..., None], 1)).mT,
    "product and sum": lambda x, w: (x[..., None] * w).sum(-2),
    "times": lambda x, w: torch.stack([x[:, t] @ w for t in range(x.shape[1])], 1),
    "rows": lambda x, w: torch.stack([row @ w for row in x]),
    "chunks of time": lambda x, w: torch.cat([part @ w for part in x.split(2, 1)], 1),
    "vmap": lambda x, w: torch.vmap(torch.vmap(lambda row: torch.mv(w.T, row)))(x),
    "double": lambda x, w: (x.double() @ w.double()).float(),
    "scaled": lambda x, w: (2 * x) @ (w / 2),
    "flat weight": lambda x, w: x @ w.reshape(-1).view(w.shape),
    "contiguous": lambda x, w: x @ w.T.contiguous().clone().T,
    "heads of inputs": lambda x, w: torch.einsum(
        "bshd,hdo->bso", x.unflatten(-1, (2, -1)), w.unflatten(0, (2, -1))
    ),
    "sum over heads": lambda x, w: torch.einsum(
        "bshd,hdo->bsho", x.unflatten(-1, (2, -1)), w.unflatten(0, (2, -1))
    ).sum(2),
    "flipped": lambda x, w: x.flip(-1) @ w.flip(0),
    "rolled": lambda x, w: x.roll(1, -1) @ w.roll(1, 0),
    "padded": lambda x, w: F.pad(x, (0, 3)) @ F.pad(w, (0, 0, 0, 3)),
    "parts of inputs": lambda x, w: sum(
        a @ b for a, b in zip(x.chunk(2, -1), w.chunk(2), strict=True)
    ),
}
SUM = {
    "+": lambda a, b: a + b,
    "swapped": lambda a, b: b + a,
    "add, alpha": lambda a, b: torch.add(a, b / 2, alpha=2),
    "in place": lambda a, b: a.clone().add_(b),
    "minus minus": lambda a, b: a - (-b),
    "all negative": lambda a, b: -(-a - b),
    "rsub": lambda a, b: torch.rsub(-a, b),
    "reduce": lambda a, b: functools.reduce(torch.add, [a, b]),
    "from zeros": lambda a, b: torch.zeros_like(a).add_(a).add_(b),
    "halved": lambda a, b: (2 * a + 2 * b) / 2,
    "twice minus": lambda a, b: 2 * a - (a - b),
    "addcmul": lambda a, b: torch.addcmul(a, b, torch.ones_like(b)),
    "addcdiv": lambda a, b: torch.addcdiv(a, b, torch.ones(())),
    "lerp": lambda a, b: 2 * torch.lerp(a, b, 0.5),
    "index_add": lambda a, b: a.index_add(0, torch.arange(len(a)), b),
    "index_put": lambda a, b: a.index_put((torch.arange(len(a)),), b, accumulate=True),
    "scatter_add": lambda a, b: a.scatter_add(
        0, torch.arange(len(a))[:, None, None].expand_as(a), b
    ),
    "a leading axis": lambda a, b: (a[None] + b[None])[0],
    "channels first": lambda a, b: (a.permute(2, 0, 1) + b.permute(2, 0, 1)).permute(1, 2, 0),
    "flat": lambda a, b: (a.flatten() + b.flatten()).view(a.shape),
    "double": lambda a, b: (a.double() + b.double()).float(),
    "baddbmm": lambda a, b: torch.baddbmm(a, b, each(a, torch.eye(WIDTH))),
    "masks": lambda a, b: torch.where(MASK, a + b, 0) + torch.where(MASK, 0, a + b),
    "distributed mask": lambda a, b: MASK * a + MASK * b + ~MASK * (a + b),
    "masks on the skip": lambda a, b: torch.where(MASK, a, 0) + torch.where(~MASK, a, 0) + b,
    "log exp": lambda a, b: a + torch.log(torch.exp(b)),
    "complex": lambda a, b: (torch.complex(a, a) + torch.complex(b, b)).real,
    "foreach": lambda a, b: torch._foreach_add([a], [b])[0],
    "stack": lambda a, b: torch.stack([a, b]).sum(0),
    "stack, last axis": lambda a, b: torch.stack([a, b], -1).sum(-1),
    "cat": lambda a, b: torch.cat([a[None], b[None]]).sum(0),
    "mean": lambda a, b: 2 * torch.stack([a, b]).mean(0),
    "einsum": lambda a, b: torch.einsum("n...->...", torch.stack([a, b])),
    "cumsum": lambda a, b: torch.stack([a, b]).cumsum(0)[-1],
    "chunks": lambda a, b: torch.cat(
        [u + v for u, v in zip(a.chunk(2, -1), b.chunk(2, -1), strict=True)], -1
    ),
    "slices": lambda a, b: torch.cat([a[..., :3] + b[..., :3], a[..., 3:] + b[..., 3:]], -1),
    "slices in place": lambda a, b: halves_in_place(a.clone(), b),
    "times": lambda a, b: torch.stack([a[:, t] + b[:, t] for t in range(a.shape[1])], 1),
    "rows": lambda a, b: torch.stack([u + v for u, v in zip(a, b, strict=True)]),
}
MOVE = {
    "none": lambda x: x,
    "permuted": lambda x: x.permute(2, 0, 1).permute(1, 2, 0),
    "flipped": lambda x: x.flip(-1).flip(-1),
    "rolled": lambda x: x.roll(2, -1).roll(-2, -1),
    "split": lambda x: torch.cat(x.chunk(2, -1), -1),
    "gathered": lambda x: x[..., torch.arange(WIDTH)],
    "ordered": lambda x: x[..., torch.arange(WIDTH - 1, -1, -1)].flip(-1),
    "padded": lambda x: F.pad(x, (1, 2))[..., 1:-2],
    "flattened": lambda x: x.unflatten(-1, (2, -1)).flatten(-2),
    "expanded": lambda x: x[None].expand(3, -1, -1, -1)[1],
    "times an identity": lambda x: x @ torch.eye(WIDTH),
    "plus zeros": lambda x: x + torch.zeros_like(x),
    "stacked": lambda x: torch.stack([x, x])[0],
    "times": lambda x: torch.stack(x.unbind(1), 1),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "double": lambda x: x.double().float(),
    "twice negative": lambda x: -torch.neg(x),
    "chosen": lambda x: torch.where(MASK, x, x),
    "squeezed": lambda x: x[:, None].squeeze(1),
    "strided": lambda x: x.contiguous().as_strided(x.shape, x.contiguous().stride()),
    "triangles": lambda x: x.tril() + x.triu(1),
    "checkpoint": lambda x: checkpoint(lambda y: y, x, use_reentrant=False),
    "maximum": lambda x: torch.maximum(x, x),
    "mean of copies": lambda x: torch.stack([x, x]).mean(0),
    "complex": lambda x: torch.view_as_real(
        torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    ).flatten(-2),
}
RELU = {
    "relu": F.relu,
    "clamp": lambda h: h.clamp(min=0),
    "where": lambda h: torch.where(h > 0, h, 0),
    "absolute value": lambda h: (h + h.abs()) / 2,
    "mask": lambda h: h * (h > 0),
    "maximum": lambda h: torch.maximum(h, torch.zeros(())),
    "minimum": lambda h: -torch.minimum(-h, torch.zeros(())),
    "threshold": lambda h: F.threshold(h, 0, 0.0),
    "leaky": lambda h: F.leaky_relu(h, 0.0),
    "prelu": lambda h: F.prelu(h, torch.zeros(1)),
    "masked_fill": lambda h: h.masked_fill(h < 0, 0),
    "hardtanh": lambda h: F.hardtanh(h, 0, 1e9),
    "amax": lambda h: torch.stack([h, torch.zeros_like(h)]).amax(0),
    "heaviside": lambda h: h * torch.heaviside(h, torch.zeros(())),
}
SILU = {
    "silu": F.silu,
    "product": lambda h: h * torch.sigmoid(h),
    "quotient": lambda h: h / (1 + torch.exp(-h)),
    "tanh": lambda h: h * 0.5 * (1 + torch.tanh(h / 2)),
    "glu": lambda h: F.glu(torch.cat([h, h], -1)),
    "difference": lambda h: h - h * torch.sigmoid(-h),
    "softmax": lambda h: h * torch.stack([h, torch.zeros_like(h)], -1).softmax(-1)[..., 0],
    "logsigmoid": lambda h: h * torch.exp(F.logsigmoid(h)),
}
GELU = {
    "gelu": F.gelu,
    "erf": lambda h: 0.5 * h * (1 + torch.erf(h / math.sqrt(2))),
    "normal distribution": lambda h: h * torch.special.ndtr(h),
    "erfc": lambda h: h * 0.5 * torch.erfc(-h / 2**0.5),
    "difference": lambda h: h - h * 0.5 * torch.erfc(h / 2**0.5),
}
TANH = {
    "tanh": torch.tanh,
    "exp": lambda h: (h.exp() - (-h).exp()) / (h.exp() + (-h).exp()),
    "sigmoid": lambda h: 2 * torch.sigmoid(2 * h) - 1,
    "one minus": lambda h: 1 - 2 / (1 + (2 * h).exp()),
    "expm1": lambda h: torch.expm1(2 * h) / (torch.exp(2 * h) + 1),
    "sinh": lambda h: h.sinh() / h.cosh(),
}


def centred(x):
    return x - x.mean(-1, keepdim=True)


NORM = {
    "layer_norm": lambda x: F.layer_norm(x, (WIDTH,)),
    "written": lambda x: centred(x) / torch.sqrt(x.var(-1, correction=0, keepdim=True) + 1e-5),
    "rsqrt": lambda x: centred(x) * torch.rsqrt((centred(x) ** 2).mean(-1, True) + 1e-5),
    "second moment": lambda x: (
        centred(x) / ((x * x).mean(-1, True) - x.mean(-1, True) ** 2 + 1e-5).sqrt()
    ),
    "group": lambda x: F.group_norm(flat(x), 1).view(x.shape),
    "batch": lambda x: F.batch_norm(x.reshape(1, -1, WIDTH), None, None, training=True).view(
        x.shape
    ),
    "instance": F.instance_norm,
    "a matrix": lambda x: F.rms_norm(x @ (torch.eye(WIDTH) - 1 / WIDTH), (WIDTH,), eps=1e-5),
}
SOFTMAX = {
    "softmax": lambda s: s.softmax(-1),
    "exp": lambda s: s.exp() / s.exp().sum(-1, True),
    "less the largest": lambda s: F.normalize((s - s.amax(-1, True)).exp(), p=1, dim=-1),
    "logsumexp": lambda s: (s - s.logsumexp(-1, True)).exp(),
    "log_softmax": lambda s: s.log_softmax(-1).exp(),
}


def heads(h):
    return h.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def joined(h):
    return h.transpose(1, 2).flatten(2)


def scores(q, k):
    return heads(q) @ heads(k).mT / EACH**0.5


def in_a_loop(q, k, v, softmax):
    out = []
    for head in range(HEADS):
        own = slice(head * EACH, (head + 1) * EACH)
        weights = softmax(q[..., own] @ k[..., own].mT / EACH**0.5)
        out.append(weights @ v[..., own])
    return torch.cat(out, -1)


def query_by_query(q, k, v, softmax):
    rows = [softmax(scores(q, k)[:, :, t : t + 1]) @ heads(v) for t in range(LENGTH)]
    return joined(torch.cat(rows, 2))


ATTENTION = {
    "written": lambda q, k, v, softmax: joined(softmax(scores(q, k)) @ heads(v)),
    "fused": lambda q, k, v, softmax: joined(
        F.scaled_dot_product_attention(heads(q), heads(k), heads(v))
    ),
    "scaled query": lambda q, k, v, softmax: joined(
        softmax(heads(q * EACH**-0.5) @ heads(k).mT) @ heads(v)
    ),
    "from the left": lambda q, k, v, softmax: joined((heads(v).mT @ softmax(scores(q, k)).mT).mT),
    "einsum": lambda q, k, v, softmax: torch.einsum(
        "bhqk,bkhd->bqhd", softmax(scores(q, k)), v.unflatten(-1, (HEADS, -1))
    ).flatten(2),
    "products and sums": lambda q, k, v, softmax: joined(
        (softmax(scores(q, k))[..., None] * heads(v)[:, :, None]).sum(-2)
    ),
    "vmap": lambda q, k, v, softmax: joined(
        torch.vmap(torch.vmap(lambda q, k, v: softmax(q @ k.T / EACH**0.5) @ v))(
            heads(q), heads(k), heads(v)
        )
    ),
    "query by query": query_by_query,
    "in a loop": in_a_loop,
}


def halves_in_place(a, b):
    a[..., :4] += b[..., :4]
    a[..., 4:] += b[..., 4:]
    return a


TABLE = table_of(globals())


def per_head(x, w, *sizes):
    return (x @ w).view(*x.shape[:2], *sizes)


def flat_heads(parts):
    return [part.reshape(*part.shape[:2], WIDTH) for part in parts]


PACKED = {
    "parts of heads": lambda x, w: [
        joined(part) for part in per_head(x, w, HEADS, -1).transpose(1, 2).chunk(3, -1)
    ],
    "slices of heads": lambda x, w: flat_heads(
        per_head(x, w, HEADS, -1)[..., at * EACH : (at + 1) * EACH] for at in range(3)
    ),
    "one of three": lambda x, w: flat_heads(
        per_head(x, w, HEADS, 3, EACH)[..., at, :] for at in range(3)
    ),
    "three in front": lambda x, w: flat_heads(
        per_head(x, w, HEADS, 3, EACH).permute(3, 0, 1, 2, 4).unbind()
    ),
    "every third": lambda x, w: [(x @ w)[..., at::3] for at in range(3)],
    "three last": lambda x, w: flat_heads(per_head(x, w, HEADS, EACH, 3).unbind(-1)),
    "einsum": lambda x, w: flat_heads(
        torch.einsum("bti,ihkd->kbthd", x, w.view(WIDTH, HEADS, 3, EACH))
    ),
    "three axes": lambda x, w: flat_heads(torch.einsum("bti,ihk->bthk", x, w).chunk(3, -1)),
    "four axes": lambda x, w: flat_heads(torch.einsum("bti,ihkd->kbthd", x, w)),
}


def halves_turned(h):
    one, two = h.unflatten(-1, (HEADS, -1)).chunk(2, -1)
    return torch.cat([one * 0.8 - two * 0.6, two * 0.8 + one * 0.6], -1).flatten(2)


def pairs_turned(h):
    h = h.unflatten(-1, (HEADS, -1))
    turned = torch.stack([-h[..., 1::2], h[..., ::2]], -1).flatten(-2)
    return (h * 0.8 + turned * 0.6).flatten(2)


def complex_turned(h):
    one, two = h.unflatten(-1, (HEADS, -1)).chunk(2, -1)
    turned = torch.complex(one, two) * torch.tensor(0.8 + 0.6j)
    return torch.cat([turned.real, turned.imag], -1).flatten(2)


TURNS = [lambda h: h, halves_turned, pairs_turned, complex_turned]
