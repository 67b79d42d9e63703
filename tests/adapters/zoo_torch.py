"""PyTorch models, small, each with the role of every parameter as one writes it by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

IDS = torch.arange(12).reshape(2, 6) % 11 + 3


class Case(NamedTuple):
    """A model, what it is called with, and rows of (pattern, role): each name fits one row."""

    make: Callable[[], nn.Module]
    inputs: Any
    table: dict[str, str]
    options: Mapping[str, dict[str, Any]] = MappingProxyType({})


def image(*shape: int) -> torch.Tensor:
    return torch.linspace(-1, 1, math.prod(shape)).reshape(shape)


# Convolutional networks, written by hand --------------------------------------------------------


def conv(n: int, m: int, k: int = 1, stride: int = 1, **options: Any) -> nn.Sequential:
    padding = options.pop("padding", (k - 1) // 2)
    return nn.Sequential(
        nn.Conv2d(n, m, k, stride, padding, bias=False, **options), nn.BatchNorm2d(m)
    )


class Bottleneck(nn.Module):
    def __init__(self, n, m, stride, expansion=4):
        super().__init__()
        self.conv1, self.conv2 = conv(n, m), conv(m, m, 3, stride)
        self.conv3 = conv(m, m * expansion)
        self.down = None
        if stride != 1 or n != m * expansion:
            self.down = conv(n, m * expansion, 1, stride)

    def forward(self, x):
        h = F.relu(self.conv1(x), inplace=True)
        h = F.relu(self.conv2(h), inplace=True)
        h = self.conv3(h)
        h += x if self.down is None else self.down(x)
        return F.relu(h, inplace=True)


class ResNet50(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.stem = conv(3, width, 7, 2)
        n, stages = width, []
        for stage, depth in enumerate((3, 4, 6, 3)):
            m, blocks = width * 2**stage, []
            for block in range(depth):
                blocks.append(Bottleneck(n, m, 2 if stage and not block else 1))
                n = 4 * m
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(n, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem(x), inplace=True), 3, 2, 1)
        return self.fc(self.stages(x).mean((2, 3)))


class Inverted(nn.Module):
    def __init__(self, n, m, stride, expand):
        super().__init__()
        layers = [] if expand == 1 else [conv(n, n * expand), nn.ReLU6(inplace=True)]
        layers += [
            conv(n * expand, n * expand, 3, stride, groups=n * expand),
            nn.ReLU6(inplace=True),
            conv(n * expand, m),
        ]
        self.layers = nn.Sequential(*layers)
        self.is_residual = stride == 1 and n == m

    def forward(self, x):
        return x + self.layers(x) if self.is_residual else self.layers(x)


class MobileNetV2(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8, 3, 2), nn.ReLU6(inplace=True))
        rows = [(8, 4, 1, 1), (4, 6, 2, 6), (6, 6, 1, 6), (6, 8, 2, 6), (8, 8, 1, 6)]
        self.blocks = nn.Sequential(*(Inverted(*row) for row in rows))
        self.last = nn.Sequential(conv(8, 16), nn.ReLU6(inplace=True))
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        return self.fc(self.last(self.blocks(self.stem(x))).mean((2, 3)))


class UNet(nn.Module):
    """Skips that are concatenated are no residual adds."""

    def __init__(self):
        super().__init__()

        def double(n, m):
            return nn.Sequential(conv(n, m, 3), nn.ReLU(), conv(m, m, 3), nn.ReLU())

        self.down = nn.ModuleList([double(1, 4), double(4, 8)])
        self.middle = double(8, 16)
        self.up = nn.ModuleList([nn.ConvTranspose2d(16, 8, 2, 2), nn.ConvTranspose2d(8, 4, 2, 2)])
        self.merge = nn.ModuleList([double(16, 8), double(8, 4)])
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        skips = []
        for down in self.down:
            skips.append(down(x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.middle(x)
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], 1))
        return self.head(x)


class DenseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * k) for k in range(3))
        self.layers = nn.ModuleList(nn.Conv2d(8 + 4 * k, 4, 3, padding=1) for k in range(3))
        self.transition = nn.Conv2d(20, 10, 1)
        self.fc = nn.Linear(10, 4)

    def forward(self, x):
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = torch.cat([x, layer(F.relu(norm(x)))], 1)
        return self.fc(F.avg_pool2d(self.transition(x), 2).mean((2, 3)))


class SEBlock(nn.Module):
    def __init__(self, n=8):
        super().__init__()
        self.conv1, self.conv2 = conv(n, n, 3), conv(n, n, 3)
        self.squeeze, self.excite = nn.Linear(n, n // 2), nn.Linear(n // 2, n)

    def forward(self, x):
        h = self.conv2(F.relu(self.conv1(x)))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(h.mean((2, 3))))))
        return F.relu(x + h * gate[:, :, None, None])


class SEResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.blocks = conv(3, 8, 3), nn.Sequential(SEBlock(), SEBlock())
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


class Causal(nn.Module):
    """Depthwise and dilated convolutions, padded to the left by themselves, with a gate."""

    def __init__(self, n=4):
        super().__init__()
        self.depthwise = nn.Conv1d(n, n, 3, groups=n)
        self.dilated = nn.Conv1d(n, 2 * n, 3, dilation=2, padding=4)
        self.out = nn.Conv1d(n, n, 1)

    def forward(self, x):
        h = self.depthwise(F.pad(x, (2, 0)))
        h = F.glu(self.dilated(h)[..., : x.shape[-1]], 1)
        return x + self.out(h)


# Transformers, written by hand ------------------------------------------------------------------


class Attention(nn.Module):
    """Packed as timm packs it."""

    def __init__(self, n=16, heads=2):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(n, 3 * n), nn.Linear(n, n)

    def forward(self, x):
        b, t, n = x.shape
        qkv = self.qkv(x).reshape(b, t, 3, self.heads, n // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, t, n))


class MLP(nn.Sequential):
    def __init__(self, n=16, inner=32):
        super().__init__(nn.Linear(n, inner), nn.GELU(), nn.Linear(inner, n))


class SwiGLU(nn.Module):
    def __init__(self, n=16, inner=24):
        super().__init__()
        self.gate_up = nn.Linear(n, 2 * inner, bias=False)
        self.down = nn.Linear(inner, n, bias=False)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """Pre-norm, post-norm, with layer scale, or parallel in one of three orders of the sum."""

    def __init__(self, kind="pre", mlp=MLP, n=16):
        super().__init__()
        self.kind, self.attn, self.mlp = kind, Attention(n), mlp(n)
        self.norm1, self.norm2 = nn.LayerNorm(n), nn.LayerNorm(n)
        if kind == "scale":
            self.gamma1, self.gamma2 = (nn.Parameter(torch.full((n,), 0.5)) for _ in range(2))

    def forward(self, x):
        if self.kind == "post":
            x = self.norm1(x + self.attn(x))
            return self.norm2(x + self.mlp(x))
        if self.kind.startswith("parallel"):
            a, m = self.attn(self.norm1(x)), self.mlp(self.norm2(x))
            sums = {"parallel xam": (x + a) + m, "parallel amx": (a + m) + x}
            return sums.get(self.kind, x + (m + a))
        if self.kind == "scale":
            x = x + self.gamma1 * self.attn(self.norm1(x))
            return x + self.gamma2 * self.mlp(self.norm2(x))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self, kind="pre", mlp=MLP, n=16):
        super().__init__()
        self.wte, self.pos = nn.Embedding(20, n), nn.Parameter(torch.zeros(6, n))
        self.blocks = nn.ModuleList(Block(kind, mlp, n) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(n), nn.Linear(n, 20)

    def forward(self, ids):
        x = self.wte(ids) + self.pos[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


BLOCKS = {
    "wte.weight": "keep",
    "pos": "keep",
    "blocks.*.norm[12].*": "keep",
    "norm.*": "keep",
    "blocks.*.attn.qkv.weight": "transit",
    "blocks.*.attn.proj.weight": "zero",
    "*qkv.bias": "bias",
    "*proj.bias": "bias",
    "head.weight": "transit",
    "head.bias": "bias",
}
MLPS = {"*.mlp.0.weight": "transit", "*.mlp.2.weight": "zero", "*.mlp.[02].bias": "bias"}


class EncoderDecoder(nn.Module):
    """PyTorch's own layers: packed weights, used whole for x and in parts for x and memory."""

    def __init__(self, norm_first, n=16):
        super().__init__()
        options = {"dim_feedforward": 32, "batch_first": True, "norm_first": norm_first}
        encoder = nn.TransformerEncoderLayer(n, 2, **options)
        decoder = nn.TransformerDecoderLayer(n, 2, **options)
        self.encoder = nn.TransformerEncoder(encoder, 2, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(decoder, 2)
        self.head = nn.Linear(n, 5)

    def forward(self, source, target):
        return self.head(self.decoder(target, self.encoder(source)))


ENCODER_DECODER = {
    "*norm?.*": "keep",
    "*.in_proj_weight": "transit",
    "*.in_proj_bias": "bias",
    "*.out_proj.weight": "zero",
    "*.out_proj.bias": "bias",
    "*.linear1.weight": "transit",
    "*.linear2.weight": "zero",
    "*.linear?.bias": "bias",
    "head.weight": "transit",
    "head.bias": "bias",
}


class LoRA(nn.Module):
    def __init__(self, n=16, m=48, rank=4):
        super().__init__()
        self.base = nn.Linear(n, m)
        self.a, self.b = nn.Linear(n, rank, bias=False), nn.Linear(rank, m, bias=False)
        self.base.requires_grad_(False)

    def forward(self, x):
        return self.base(x) + 0.5 * self.b(self.a(x))


class LoRAModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = Attention()
        self.attn.qkv = LoRA()

    def forward(self, x):
        return x + self.attn(x)


# Weights that are stored or used in other ways --------------------------------------------------


class Experts(nn.Module):
    """Stacks of experts, looped over, in a batched product, or selected by token."""

    def __init__(self, kind, n=8, inner=6, count=3):
        super().__init__()
        self.kind, self.router = kind, nn.Linear(n, count, bias=False)
        self.gate_up = nn.Parameter(torch.randn(count, 2 * inner, n))
        self.down = nn.Parameter(torch.randn(count, inner, n))
        self.bias = nn.Parameter(torch.randn(count, n))

    def forward(self, x):
        weights = self.router(x).softmax(-1)
        if self.kind == "loop":
            out = torch.zeros_like(x)
            for e in range(len(self.gate_up)):
                gate, up = F.linear(x, self.gate_up[e]).chunk(2, -1)
                h = (F.silu(gate) * up) @ self.down[e] + self.bias[e]
                out.index_add_(0, torch.arange(len(x)), h * weights[:, e, None])
            return x + out
        if self.kind == "batched":
            gate, up = torch.einsum("tn,ekn->etk", x, self.gate_up).chunk(2, -1)
            h = torch.bmm(F.silu(gate) * up, self.down) + self.bias[:, None]
            return x + torch.einsum("etn,te->tn", h, weights)
        best = weights.argmax(-1)
        gate, up = torch.bmm(self.gate_up[best], x[..., None])[..., 0].chunk(2, -1)
        h = torch.bmm((F.silu(gate) * up)[:, None], self.down[best])[:, 0] + self.bias[best]
        return x + h * weights.gather(1, best[:, None])


EXPERTS = {"router.weight": "transit", "gate_up": "transit", "down": "zero", "bias": "bias"}


def stored_experts(kind):
    """How a graph says that the experts are stored; in a loop, also that each is read alone."""
    alone = kind == "loop"
    return {
        "gate_up": {"layout": "EOI", "blocks": (6, 6), **({"parts": "EO"} if alone else {})},
        "down": {"layout": "EIO", **({"parts": "E"} if alone else {})},
        "router.weight": {"layout": "OI"},
    }


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(6, 4, batch_first=True, **options)
        width = options.get("proj_size", 4) * (2 if options.get("bidirectional") else 1)
        self.fc = nn.Linear(width, 2)

    def forward(self, x):
        return self.fc(self.rnn(x)[0][:, -1])


class Cell(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell, self.fc = kind(6, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = self.cell(x)
        return self.fc(h[0] if isinstance(h, tuple) else h)


def recurrent_table(name: str) -> dict[str, str]:
    return {
        f"{name}.weight_*": "transit",
        f"{name}.bias_*": "bias",
        "fc.weight": "transit",
        "fc.bias": "bias",
    }


class Heads(nn.Module):
    """Weights of three axes, as einsum takes them."""

    def __init__(self, n=8, heads=2):
        super().__init__()
        self.into = nn.Parameter(torch.randn(heads, n, n // heads))
        self.out = nn.Parameter(torch.randn(heads, n // heads, n))

    def forward(self, x):
        h = torch.einsum("btn,hnd->bthd", x, self.into)
        return x + torch.einsum("bthd,hdn->btn", h.tanh(), self.out)


class Queries(nn.Module):
    """Learned queries look at the data: what is made of them alone is a signal all the same."""

    def __init__(self, n=8):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(3, n))
        self.attn = nn.MultiheadAttention(n, 2, kdim=6, vdim=6, batch_first=True)
        self.mlp = MLP(n, 12)

    def forward(self, x):
        q = self.queries.expand(len(x), -1, -1)
        q = self.attn(q, x, x)[0]
        return q + self.mlp(q)


class TiedAutoencoder(nn.Module):
    """One weight in two directions: the same matrix cannot be told in one way."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 6))

    def forward(self, x):
        return F.linear(F.linear(x, self.w), self.w.t())


BN = {"*.1.weight": "keep", "*.1.bias": "keep"}
CASES: dict[str, Case] = {
    "resnet50": Case(
        lambda: ResNet50(8),
        image(1, 3, 32, 32),
        {
            "stem.0.weight": "transit",
            "stages.*.conv[12].0.weight": "transit",
            "stages.*.conv3.0.weight": "zero",
            "stages.*.down.0.weight": "transit",
            "stages.*.1.weight": "keep",
            "stages.*.1.bias": "keep",
            "stem.1.*": "keep",
            "fc.weight": "transit",
            "fc.bias": "bias",
        },
        {
            "stem.0.weight": {"layout": "OIHW", "tap": (3, 3)},
            "stages.0.0.conv2.0.weight": {"layout": "OIHW", "tap": (1, 1)},
        },
    ),
    "mobilenetv2": Case(
        MobileNetV2,
        image(1, 3, 32, 32),
        {
            "stem.0.0.weight": "transit",
            "blocks.0.layers.[02].0.weight": "transit",
            "blocks.[13].layers.[024].0.weight": "transit",
            "blocks.[24].layers.[02].0.weight": "transit",
            "blocks.[24].layers.4.0.weight": "zero",
            "last.0.0.weight": "transit",
            "*.?.1.weight": "keep",
            "*.?.1.bias": "keep",
            "fc.weight": "transit",
            "fc.bias": "bias",
        },
        {"blocks.1.layers.2.0.weight": {"layout": "OIHW", "groups": 24, "tap": (1, 1)}},
    ),
    "unet": Case(
        UNet,
        image(1, 1, 16, 16),
        {
            "*.[02].0.weight": "transit",
            "*.[02].1.weight": "keep",
            "*.[02].1.bias": "keep",
            "up.?.weight": "transit",
            "up.?.bias": "bias",
            "head.weight": "transit",
            "head.bias": "bias",
        },
        {
            "up.0.weight": {
                "layout": "IOHW",
                "transposed": True,
                "tap": (0, 0),
                "stride": (2, 2),
            }
        },
    ),
    "densenet": Case(
        DenseNet,
        image(1, 3, 8, 8),
        {
            "norms.*": "keep",
            "stem.weight": "transit",
            "layers.*.weight": "transit",
            "transition.weight": "transit",
            "fc.weight": "transit",
            "stem.bias": "bias",
            "layers.*.bias": "bias",
            "transition.bias": "bias",
            "fc.bias": "bias",
        },
    ),
    "seresnet": Case(
        SEResNet,
        image(1, 3, 8, 8),
        {
            "stem.0.weight": "transit",
            "*.conv1.0.weight": "transit",
            "*.conv2.0.weight": "zero",
            "*.squeeze.weight": "transit",
            "*.excite.weight": "transit",
            "*.squeeze.bias": "bias",
            "*.excite.bias": "bias",
            "stem.1.*": "keep",
            "*.conv?.1.*": "keep",
            "fc.weight": "transit",
            "fc.bias": "bias",
        },
    ),
    "causal": Case(
        Causal,
        image(2, 4, 9),
        {
            "depthwise.weight": "transit",
            "dilated.weight": "transit",
            "out.weight": "zero",
            "*.bias": "bias",
        },
        {
            "depthwise.weight": {"layout": "OIW", "groups": 4, "tap": (2,)},
            "dilated.weight": {"layout": "OIW", "tap": (2,), "blocks": (4, 4)},
            "out.weight": {"layout": "OIW", "tap": (0,)},
        },
    ),
    **{
        kind: Case(
            lambda kind=kind: Transformer(kind),
            IDS,
            {**BLOCKS, **MLPS, **({"*.gamma?": "keep"} if kind == "scale" else {})},
            {"blocks.1.attn.qkv.weight": {"layout": "OI", "blocks": (16, 16, 16)}},
        )
        for kind in ("pre", "post", "scale", "parallel xam", "parallel amx", "parallel xma")
    },
    "swiglu": Case(
        lambda: Transformer("pre", SwiGLU),
        IDS,
        {**BLOCKS, "*.mlp.gate_up.weight": "transit", "*.mlp.down.weight": "zero"},
        {"blocks.0.mlp.gate_up.weight": {"layout": "OI", "blocks": (24, 24)}},
    ),
    **{
        f"encoder-decoder {'pre' if first else 'post'}": Case(
            lambda first=first: EncoderDecoder(first),
            (image(2, 5, 16), image(2, 4, 16)),
            ENCODER_DECODER,
            {
                f"{name}.in_proj_weight": {"layout": "OI", "blocks": (16, 16, 16)}
                for name in (
                    "encoder.layers.0.self_attn",
                    "decoder.layers.1.self_attn",
                    "decoder.layers.1.multihead_attn",
                )
            },
        )
        for first in (True, False)
    },
    "lora": Case(
        LoRAModel,
        image(2, 4, 16),
        {
            "attn.qkv.base.*": "keep",
            "attn.qkv.a.weight": "transit",
            "attn.qkv.b.weight": "zero",
            "attn.proj.weight": "zero",
            "attn.proj.bias": "bias",
        },
        {"attn.qkv.b.weight": {"layout": "OI", "blocks": (16, 16, 16)}},
    ),
    **{
        f"experts {kind}": Case(
            lambda kind=kind: Experts(kind), image(5, 8), EXPERTS, stored_experts(kind)
        )
        for kind in ("loop", "batched", "selected")
    },
    "lstm": Case(
        lambda: Recurrent(nn.LSTM, num_layers=2),
        image(2, 3, 6),
        recurrent_table("rnn"),
        {
            f"rnn.weight_{k}_l{n}": {"layout": "OI", "blocks": (4,) * 4}
            for k in ("ih", "hh")
            for n in (0, 1)
        },
    ),
    "lstm of one step": Case(
        lambda: Recurrent(nn.LSTM, bidirectional=True),
        image(2, 1, 6),
        recurrent_table("rnn"),
        {"rnn.weight_hh_l0_reverse": {"layout": "OI", "blocks": (4,) * 4}},
    ),
    "lstm with projection": Case(
        lambda: Recurrent(nn.LSTM, proj_size=3),
        image(2, 3, 6),
        recurrent_table("rnn"),
        {"rnn.weight_hr_l0": {"layout": "OI"}},
    ),
    "gru": Case(
        lambda: Recurrent(nn.GRU),
        image(2, 3, 6),
        recurrent_table("rnn"),
        {f"rnn.weight_{k}_l0": {"layout": "OI", "blocks": (4,) * 3} for k in ("ih", "hh")},
    ),
    "rnn": Case(
        lambda: Recurrent(nn.RNN),
        image(2, 3, 6),
        recurrent_table("rnn"),
        {"rnn.weight_hh_l0": {"layout": "OI"}},
    ),
    **{
        kind.__name__.lower(): Case(
            lambda kind=kind: Cell(kind),
            image(2, 6),
            recurrent_table("cell"),
            {"cell.weight_hh": {"layout": "OI", **({"blocks": (4,) * n} if n > 1 else {})}},
        )
        for kind, n in ((nn.LSTMCell, 4), (nn.GRUCell, 3), (nn.RNNCell, 1))
    },
    "heads": Case(
        Heads,
        image(2, 3, 8),
        {"into": "transit", "out": "zero"},
        {
            "into": {"layout": "OI", "parted": ((2, 8, 4), "OIO")},
            "out": {"layout": "IO", "parted": ((2, 4, 8), "IIO")},
        },
    ),
    "queries": Case(
        Queries,
        image(2, 4, 6),
        {
            "queries": "keep",
            "attn.[qkv]_proj_weight": "transit",
            "attn.in_proj_bias": "bias",
            "attn.out_proj.weight": "transit",
            "attn.out_proj.bias": "bias",
            "mlp.0.weight": "transit",
            "mlp.2.weight": "zero",
            "mlp.?.bias": "bias",
        },
    ),
    "tied autoencoder": Case(TiedAutoencoder, image(2, 6), {"w": "keep"}),
}
