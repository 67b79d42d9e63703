"""Twelve real architectures at small sizes: ten of transformers, two written here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from docs.evidence._study import need

__all__ = ["MODELS"]

SIZE, LENGTH, WORDS = 64, 16, 128


def _ids(length: int = LENGTH) -> Tensor:
    return torch.randint(1, WORDS, (2, length))


def _images(size: int = SIZE) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, size, size)}


def _language(name: str, **options: Any) -> tuple[nn.Module, Any]:
    config = getattr(need("transformers"), f"{name}Config")(vocab_size=WORDS, **options)
    kind = {"GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM")
    config.use_cache = False
    return getattr(need("transformers"), kind)(config), {"input_ids": _ids()}


def _vision(name: str, **options: Any) -> tuple[nn.Module, Any]:
    config = getattr(need("transformers"), f"{name}Config")(num_labels=10, **options)
    return getattr(need("transformers"), f"{name}ForImageClassification")(config), _images()


class UNet(nn.Module):
    """Three levels of residual blocks with group norms, as in diffusion, skips by concatenation."""

    class Block(nn.Module):
        """``skip(x) + conv(silu(norm(conv(silu(norm(x))))))``."""

        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.GroupNorm(8, inputs), nn.GroupNorm(8, outputs)
            self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
            same = inputs == outputs
            self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1)

        def forward(self, x: Tensor) -> Tensor:
            out = self.conv1(functional.silu(self.norm1(x)))
            return self.skip(x) + self.conv2(functional.silu(self.norm2(out)))

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        one, two, four = width, 2 * width, 4 * width
        self.stem = nn.Conv2d(3, one, 3, padding=1)
        self.down = nn.ModuleList([self.Block(one, one), self.Block(one, two)])
        self.halve = nn.ModuleList(nn.Conv2d(n, n, 3, 2, 1) for n in (one, two))
        self.middle = self.Block(two, four)
        self.up = nn.ModuleList([self.Block(four + two, two), self.Block(two + one, one)])
        self.norm, self.head = nn.GroupNorm(8, one), nn.Conv2d(one, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x, kept = self.stem(x), []
        for block, half in zip(self.down, self.halve, strict=True):
            kept.append(block(x))
            x = half(kept[-1])
        x = self.middle(x)
        for block in self.up:
            x = block(torch.cat([functional.interpolate(x, scale_factor=2.0), kept.pop()], 1))
        return self.head(functional.silu(self.norm(x)))


class DiT(nn.Module):
    """Patches, and blocks whose norms are shifted, scaled and gated by the time (Peebles 2023)."""

    class Block(nn.Module):
        """Attention and an MLP, each ``x + gate * f(norm(x) * (1 + scale) + shift)``."""

        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.heads = heads
            self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in "ab")
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.mlp = nn.Sequential(
                nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
            )
            self.adapt = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

        def attend(self, x: Tensor) -> Tensor:
            parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            out = functional.scaled_dot_product_attention(*parts)
            return self.out(out.transpose(1, 2).flatten(2))

        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            shift, scale, gate, low, high, last = self.adapt(time)[:, None].chunk(6, -1)
            x = x + gate * self.attend(self.norms[0](x) * (1 + scale) + shift)
            return x + last * self.mlp(self.norms[1](x) * (1 + high) + low)

    def __init__(self, width: int = 64, layers: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.time = nn.Sequential(nn.Linear(8, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(self.Block(width, 4) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 48)

    def forward(self, images: Tensor, time: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        time = self.time(time[:, None] * torch.arange(1.0, 9.0)).cos()
        for block in self.blocks:
            x = block(x, time)
        return self.head(self.norm(x))


def _whisper() -> tuple[nn.Module, Any]:
    each = {"layers": 2, "attention_heads": 4, "ffn_dim": 128}
    sizes = {f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in each.items()}
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    config = need("transformers").WhisperConfig(
        vocab_size=WORDS, d_model=64, num_mel_bins=16, max_source_positions=32,
        max_target_positions=LENGTH, decoder_start_token_id=1, dropout=0.0, **tokens, **sizes,
    )  # fmt: skip
    inputs = {"input_features": torch.randn(2, 16, 64), "decoder_input_ids": _ids(8)}
    return need("transformers").WhisperForConditionalGeneration(config), inputs


def _t5() -> tuple[nn.Module, Any]:
    config = need("transformers").T5Config(
        vocab_size=WORDS, d_model=64, d_kv=16, d_ff=256, num_layers=4, num_heads=4,
        tie_word_embeddings=False,
    )  # fmt: skip
    inputs = {"input_ids": _ids(), "decoder_input_ids": _ids(8)}
    return need("transformers").T5ForConditionalGeneration(config), inputs


_GPT = {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": LENGTH}
_LLAMA = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 176,
}  # fmt: skip
_VIT = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 256, "image_size": SIZE, "patch_size": 8,
}  # fmt: skip
_CONV = {"hidden_sizes": [16, 32, 64, 128], "depths": [2, 2, 2, 2]}

MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "GPT-2": lambda: _language("GPT2", **_GPT),
    "Llama": lambda: _language("Llama", **_LLAMA),
    "Mixtral": lambda: _language("Mixtral", num_local_experts=4, **_LLAMA),
    "T5": _t5,
    "Whisper": _whisper,
    "Mamba": lambda: _language("Mamba", hidden_size=64, num_hidden_layers=4, state_size=8),
    "ViT": lambda: _vision("ViT", **_VIT),
    "DiT": lambda: (DiT(), (torch.randn(2, 3, 16, 16), torch.rand(2))),
    "ConvNeXt": lambda: _vision("ConvNext", **_CONV),
    "ResNet-50": lambda: _vision("ResNet", embedding_size=16, layer_type="bottleneck", **_CONV),
    "EfficientNet": lambda: _vision(
        "EfficientNet", image_size=SIZE, width_coefficient=0.25, depth_coefficient=0.5,
        hidden_dim=320,
    ),
    "U-Net": lambda: (UNet(), torch.randn(2, 3, 16, 16)),
}  # fmt: skip
"""By name: a function that draws a model, by its own default, and two inputs that differ."""
