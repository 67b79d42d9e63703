"""Values for tensors that IDInit does not define, by the caller's rules: ones, noise and so on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError, message
from .bits import DTYPES, FLOATS, convert
from .sources import Asked
from .storage import ArrayTensor, NoiseTensor, Tensor
from .views import Derived

_NUMBERS = {"num_batches_tracked": "int64", "position_ids": "int64"}  # integers, by their name
_OFFSET = {  # types of models in which all normalisations multiply by 1 + weight
    "gemma", "gemma2", "gemma3_text", "nemotron", "recurrent_gemma", "t5gemma", "t5_gemma_module",
    "vaultgemma",
}  # fmt: skip
_MIXED = {  # types of models in which some normalisations do
    "gemma3", "minimax_m3_vl", "muse_glimmer", "muse_spark", "paligemma", "qwen3_5", "qwen3_5_text",
    "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next", "qwen4_exp", "step3p7", "t5gemma2",
    "t5gemma2_text", "t5gemma2_encoder", "t5gemma2_decoder", "videoprism",
}  # fmt: skip
_ONES = frozenset({"weight", "scale", "gamma", "running_var", "moving_variance", "var"})
_ZEROS = frozenset({"bias", "beta", "running_mean", "moving_mean", "mean", "num_batches_tracked"})


class Fill(NamedTuple):
    """A rule for tensors that IDInit does not define: a pattern of names, and their values.

    Parameters
    ----------
    pattern : str
        A tensor's name, a reason for which tensors are kept ("normalisation": the source's reason
        or that of the rules by name), or a shell pattern of names.
    rule : {"zeros", "ones", "identity", "constant", "normal"}
        The values.
    value : float
        The constant, or the standard deviation.
    seed : int
        The seed of the noise.
    text : str
        The rule as the caller wrote it.
    """

    pattern: str
    rule: str
    value: float = 0.0
    seed: int = 0
    text: str = ""

    def fits(self, name: str, reasons: Collection[str]) -> bool:
        """Whether the rule applies: by exact name to any tensor, else only to a kept one.

        `reasons` are those for keeping the tensor; empty if it is not kept.
        """
        if name == self.pattern:
            return True
        return any(fnmatchcase(text, self.pattern) for text in reasons and (name, *reasons))

    def tensor(self, name: str, asked: Asked, model_type: str = "") -> Tensor:
        """Return the values for a tensor of a model of some type.

        Noise is a `NoiseTensor`. Its seed is the first 63 bits of the SHA-256 of ``SEED:NAME``, so
        it depends on no other tensor.
        """
        shape, leaf = asked.shape, re.split(r"[./]", name)[-1]

        def wrong(should: str, cure: str) -> OptionError:
            return OptionError(message("fill", f"{self.pattern}={self.text}", should, cure))

        value = {"zeros": 0.0, "ones": 1.0}.get(self.rule, self.value)
        if self.rule == "identity":
            if len(shape) > 1 or leaf not in _ONES | _ZEROS:
                should = f"{name} (shape {shape}) is not a scale, shift, mean or variance"
                raise wrong(should, "choose zeros, ones, constant:V or normal:STD")
            first, *inner = model_type.split("+")
            offset = first in _OFFSET
            value = float(leaf in _ONES and not (leaf == "weight" and offset))
            if leaf == "weight" and (first in _MIXED or (not offset and _OFFSET & set(inner))):
                raise wrong(
                    f"{name} may multiply by w or by 1 + w: a {model_type!r} model has both",
                    "state it: --fill 'PATTERN=zeros' for 1 + w, --fill 'PATTERN=ones' for w",
                )
        own = asked.dtype or _NUMBERS.get(leaf, "float32")
        if own in FLOATS:
            if self.rule == "normal":
                digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
                return NoiseTensor(shape, self.value, int.from_bytes(digest[:8], "little") >> 1)

            def constant(spans: Sequence[range], dtype: str) -> NDArray[Any]:
                block = np.full([len(span) for span in spans], value)
                return convert(block, "float64", dtype, "constant")

            return Derived(shape, None, constant)
        kind = np.dtype(own if own in DTYPES else "bool")
        least, most = (0, 1) if kind.kind == "b" else (np.iinfo(kind).min, np.iinfo(kind).max)
        is_whole = value.is_integer() and least <= value <= most
        if own not in DTYPES or self.rule == "normal" or not is_whole:
            cure = "use a pattern that leaves it out, or copy it"
            raise wrong(f"{name} has the dtype {own}, which cannot hold this value", cure)
        return ArrayTensor(np.broadcast_to(kind.type(int(value)), shape))


def parse_fill(text: str) -> Fill:
    """Return the fill that ``PATTERN=RULE`` describes.

    Parameters
    ----------
    text : str
        RULE is ``zeros``, ``ones``, ``identity`` (scales and variances of a normalisation 1; its
        shifts, means and counts 0), ``constant:V`` or ``normal:STD[:SEED]``.

    Returns
    -------
    Fill
        The rule, for `assemble`.

    Raises
    ------
    OptionError
        If the text has another form.

    Examples
    --------
    >>> parse_fill("embedding=normal:0.02:7")
    Fill(pattern='embedding', rule='normal', value=0.02, seed=7, text='normal:0.02:7')
    """
    pattern, _, rule = text.rpartition("=")
    kind, *numbers = rule.split(":")
    most = {"zeros": 0, "ones": 0, "identity": 0, "constant": 1, "normal": 2}.get(kind, -1)
    try:
        value = float(numbers[0]) if numbers else 0.0
        seed = int(numbers[1]) if len(numbers) > 1 else 0
        right = pattern and min(most, 1) <= len(numbers) <= most and np.isfinite(value)
        right = right and 0 <= seed < 2**63 and not (kind == "normal" and value < 0)
    except ValueError:
        right = False
    if not right:
        should = (
            "it should be PATTERN=RULE, with the rule zeros, ones, identity, constant:V or "
            "normal:STD[:SEED]"
        )
        cure = "write 'normalisation=identity' or '*.wte.weight=normal:0.02'"
        raise OptionError(message("fill", text, should, cure))
    return Fill(pattern, kind, value, seed, rule)
