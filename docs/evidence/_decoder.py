"""The decoder over characters of several studies, its text, and the loop that trains it."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from docs.evidence import _training

ASCII = "\n" + "".join(map(chr, range(32, 127)))
NAMES = """
argparse ast base64 bdb bisect calendar cmd code codecs codeop configparser contextlib copy
copyreg csv datetime difflib dis doctest enum filecmp fileinput fnmatch fractions ftplib functools
getopt getpass gettext glob gzip hashlib heapq hmac inspect ipaddress linecache locale mailbox
mimetypes netrc opcode operator optparse os pathlib pdb pickle pkgutil platform plistlib posixpath
pprint profile pstats queue quopri random reprlib sched selectors shelve shlex shutil smtplib
socket statistics string subprocess tarfile tempfile textwrap threading timeit tokenize trace
traceback typing uuid warnings weakref zipfile
"""
MODULES = NAMES.split()

VOCAB = len(ASCII)
CHANCE = math.log(VOCAB)

# The model ----------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Causal attention with weights of its own for query, key, value and output."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        return self.o(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """``x + scale * last(branch(norm(x)))``; norms and scale only where they are asked for."""

    def __init__(
        self, branch: nn.Module, width: int, *, norm: bool, scalars: bool, sandwich: bool
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.branch, self.attends = branch, isinstance(branch, Attention)
        self.last = nn.LayerNorm(width) if sandwich else nn.Identity()
        self.scale = nn.Parameter(torch.ones(())) if scalars else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.last(self.branch(self.norm(x)))
        return x + (out if self.scale is None else self.scale * out)


class Transformer(nn.Module):
    """A decoder over characters: (batch, context) in, logits (batch * context, vocabulary) out."""

    def __init__(
        self,
        vocab: int,
        width: int,
        layers: int,
        heads: int,
        context: int,
        *,
        norm: bool,
        scalars: bool = False,
        sandwich: bool = False,
    ) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(vocab, width), nn.Embedding(context, width)
        branches: list[nn.Module] = []
        for _ in range(layers):
            up = nn.Linear(width, 4 * width, bias=False)
            down = nn.Linear(4 * width, width, bias=False)
            branches += [Attention(width, heads), nn.Sequential(up, nn.GELU(), down)]
        options = {"norm": norm, "scalars": scalars, "sandwich": sandwich}
        blocks = [Block(branch, width, **options) for branch in branches]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.head = nn.Linear(width, vocab, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token(x) + self.place.weight[: x.shape[1]]
        return self.head(self.norm(self.blocks(x))).flatten(0, 1)


def embed(model: Transformer, std: float) -> None:
    """Draw both embeddings; IDInit and ZerO leave them as they are."""
    for layer in (model.token, model.place):
        nn.init.normal_(layer.weight, std=std)


def linears(model: Transformer) -> list[nn.Linear]:
    """Return the dense layers, the head last."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def ends(model: Transformer) -> list[nn.Linear]:
    """Return the last dense layer of each branch."""
    return [block.branch.o if block.attends else block.branch[-1] for block in model.blocks]


# The text ----------------------------------------------------------------------------------------


@cache
def text() -> tuple[Tensor, Tensor, str]:
    """Return training characters, held-out characters, and the digest of both."""
    folder = Path(os.__file__).parent
    files = [folder / f"{name}.py" for name in MODULES]
    files = [file if file.exists() else file.with_suffix("") / "__init__.py" for file in files]
    whole = "".join(file.read_text("utf-8") for file in files)  # later versions have packages
    known = {character: number for number, character in enumerate(ASCII)}
    codes = torch.tensor([known.get(character, known["?"]) for character in whole])
    cut = len(codes) * 9 // 10
    return codes[:cut], codes[cut:], hashlib.sha256(whole.encode()).hexdigest()


def windows(
    codes: Tensor, size: int, context: int, steps: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of random windows, and for each character the one that follows."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        begin = torch.randint(len(codes) - context, (size, 1), generator=generator)
        rows = codes[begin + torch.arange(context + 1)]
        yield rows[:, :-1], rows[:, 1:].flatten()


def learn(
    model: Transformer,
    optimiser: torch.optim.Optimizer,
    *,
    steps: int,
    batch: int,
    context: int,
    seed: int,
    tuning: bool,
    watch: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Train; the rate rises over a tenth of the steps, then falls linearly to 0.

    A seed draws the windows. To judge a rate there is a tenth of the text of its own, from which
    nothing learns that is judged so. `watch` is told the number of steps that were made.
    """
    where = model.head.weight.device
    seen, judge = (codes.to(where) for codes in text()[:2])
    if tuning:
        seen, judge = seen[: -len(judge)], seen[-len(judge) :]
    parameters = list(model.parameters())

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_(parameters, 1.0)

    optimiser.register_step_pre_hook(clip)
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warm, (steps - step) / (steps - warm))
    )
    losses = []
    data = windows(seen, batch, context, steps, seed)
    for loss in _training.train(model, data, optimiser, schedule=schedule):
        if watch is not None:
            watch(len(losses))
        losses.append(loss)
    x, y = next(windows(judge, 128, context, 1, 0))
    with torch.no_grad():
        loss = functional.cross_entropy(model(x), y).item()
    diverged = len(losses) < steps or not loss < CHANCE
    return {
        "score": -CHANCE if diverged else -loss,
        "first": losses[0] if losses else None,
        "diverged": int(diverged),
    }


def scale(width: int, layers: int, steps: int, tokens: int) -> dict[str, int]:
    """Return the size of a transformer and of its training, for the template of a page."""
    return {
        "width": width,
        "layers": layers,
        "hidden": 4 * width,
        "steps": steps,
        "tokens": tokens,
    }
