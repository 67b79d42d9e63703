"""Roles by names, for the weights of a checkpoint without a graph (spec section 6).

The names are those of the Hugging Face transformers library and its checkpoints. A name that no
rule knows is an error, never a guess. This module imports no framework.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

from ..errors import OptionError, message

__all__ = ["RULES", "Decision", "Kind", "Rule", "decide", "find"]

Kind = Literal["transit", "zero", "bias", "keep"]
"""The role of a tensor: IDI, IDIZ, zeros, or kept (IDInit does not define it)."""

_NONE: Mapping[str, Any] = MappingProxyType({})


class Rule(NamedTuple):
    """One rule by names; in a sequence of rules the first match decides.

    Parameters
    ----------
    pattern : str
        A regular expression, searched for in the name.
    role : {"transit", "zero", "bias", "keep"}
        The role of a matching tensor.
    options : mapping
        Options of `idinit_ref.plan`. In addition ``parts=k`` splits the outputs into k square
        blocks (packed q, k, v); a shape that is not packed like this is an error.
    why : str
        The reason, in words.
    unless : str, optional
        A replacement for the pattern, which gives the name of a sibling. If the model has this
        tensor, the rule does not apply (a convolution ends a branch if none follows it).

    Examples
    --------
    >>> mine = Rule("[.]to_out[.]weight$", "zero", {"layout": "IO"}, "my own")
    >>> decide("block.0.to_out.weight", (4, 8), (mine, *RULES))
    Decision(role='zero', options={'layout': 'IO'}, why='my own')
    """

    pattern: str
    role: Kind
    options: Mapping[str, Any] = _NONE
    why: str = ""
    unless: str | None = None


class Decision(NamedTuple):
    """The decision on one tensor: its role, the options of its plan, and the reason.

    Parameters
    ----------
    role : {"transit", "zero", "bias", "keep"}
        Its role.
    options : dict
        Options of :func:`idinit_ref.plan`, such as layout and blocks.
    why : str
        The rule, in words.

    Examples
    --------
    >>> decide("lm_head.weight", (6, 4))
    Decision(role='transit', options={}, why='head')
    """

    role: Kind
    options: dict[str, Any]
    why: str


_IO = MappingProxyType({"layout": "IO"})

RULES: tuple[Rule, ...] = (
    # What IDInit does not define.
    Rule(r"\.(running_mean|running_var|num_batches_tracked)$", "keep", why="batch statistics"),
    Rule(
        r"(?i)(^|\.)(ln(_\w+)?|bn\d*|\w*norm\w*)\.(weight|bias|gamma|beta)$",
        "keep",
        why="normalisation",
    ),
    Rule(
        r"(^|\.)(wte|embed_tokens|(word|token_type)_embeddings)\.weight$", "keep", why="embedding"
    ),
    Rule(r"(^|\.)(wpe\.weight|position_embeddings(\.weight)?)$", "keep", why="position embedding"),
    Rule(r"(^|\.)(cls|mask|distillation)_token$", "keep", why="learned token"),
    # Buffers of older checkpoints: a mask of ones is not a bias.
    Rule(r"\.(attn|attention)\.(masked_)?bias$", "keep", why="attention mask"),
    Rule(r"(^|\.)position_ids$", "keep", why="position indices"),
    Rule(r"\.rotary_emb\.inv_freq$", "keep", why="rotary frequencies"),
    Rule(r"(^|\.)bias$", "bias", why="bias"),
    # The last weight of each residual branch.
    Rule(r"\.(attn|crossattention|mlp)\.c_proj\.weight$", "zero", _IO, "last of its branch"),
    Rule(r"\.output\.dense\.weight$", "zero", why="last of its branch"),
    Rule(
        r"\.(o_proj|out_proj|out_lin|down_proj|fc2|ffn\.lin2)\.weight$",
        "zero",
        why="last of its branch",
    ),
    Rule(r"\.layer\.2\.convolution\.weight$", "zero", why="last of its bottleneck"),
    Rule(
        r"\.layer\.1\.convolution\.weight$",
        "zero",
        why="last of its basic block",
        unless=".layer.2.convolution.weight",
    ),
    # All the other dense and convolution weights.
    Rule(r"\.attn\.c_attn\.weight$", "transit", {**_IO, "parts": 3}, "packed query, key, value"),
    Rule(r"\.crossattention\.c_attn\.weight$", "transit", {**_IO, "parts": 2}, "packed key, value"),
    Rule(r"\.(q_attn|c_fc)\.weight$", "transit", _IO, "inside its branch"),
    Rule(r"\.((q|k|v)_(proj|lin)|query|key|value)\.weight$", "transit", why="inside its branch"),
    Rule(
        r"\.(gate_proj|up_proj|fc1|ffn\.lin1|intermediate\.dense)\.weight$",
        "transit",
        why="inside its branch",
    ),
    Rule(r"\.layer\.\d+\.convolution\.weight$", "transit", why="inside its branch"),
    Rule(r"\.shortcut\.convolution\.weight$", "transit", why="projection shortcut"),
    Rule(r"\.embedder\.convolution\.weight$", "transit", why="stem"),
    Rule(r"(^|\.)patch_embeddings\.projection\.weight$", "transit", why="patch embedding"),
    Rule(r"(^|\.)pooler\.dense\.weight$", "transit", why="pooler"),
    Rule(r"(^|\.)qa_outputs\.weight$", "transit", {"blocks": (1, 1)}, "packed start and end"),
    Rule(r"(^|\.)(pre_classifier|vocab_(transform|projector))\.weight$", "transit", why="head"),
    Rule(r"(^|\.)(lm_head|score|classifier(\.\d+)?)\.weight$", "transit", why="head"),
)
"""The rules for GPT-2, (Distil)BERT, ViT, ResNet, Llama and names like theirs; first match wins."""


def find(
    name: str, rules: Sequence[Rule] = RULES, *, names: Collection[str] | None = None
) -> Rule | None:
    """Return the first rule that matches a name, or None.

    Parameters
    ----------
    name, rules, names
        As in :func:`decide`.

    Returns
    -------
    Rule or None
        The first match; None if there is none.

    Raises
    ------
    OptionError
        If the rule's role is unknown, or it needs the sibling names.

    Examples
    --------
    >>> find("h.0.attn.c_proj.weight").why
    'last of its branch'
    """
    for rule in rules:
        if not re.search(rule.pattern, name):
            continue
        if rule.role not in get_args(Kind):
            raise OptionError(
                message(
                    "role",
                    rule.role,
                    f"the rule {rule.pattern!r} should have one of {', '.join(get_args(Kind))}",
                    "pick one",
                )
            )
        if rule.unless is not None:
            if names is None:
                raise OptionError(
                    message(
                        "name",
                        name,
                        "its role depends on the model's other names",
                        "pass them as names=",
                    )
                )
            if re.sub(rule.pattern, rule.unless, name) in names:
                continue
        return rule
    return None


def decide(
    name: str,
    shape: Sequence[int],
    rules: Sequence[Rule] = RULES,
    *,
    names: Collection[str] | None = None,
) -> Decision:
    """Decide one tensor by its name (spec section 6).

    Parameters
    ----------
    name : str
        Its name in the checkpoint.
    shape : sequence of int
        Its stored shape.
    rules : sequence of Rule
        Tried in order. Put your own first: ``(Rule(...), *RULES)``.
    names : collection of str, optional
        All names of the model, for rules that depend on a tensor's siblings.

    Returns
    -------
    Decision
        Role, options of `idinit_ref.plan`, reason.

    Raises
    ------
    OptionError
        If no rule matches the name, a rule's role is unknown, a rule needs the sibling names, or
        the shape is not packed as the rule demands.

    Examples
    --------
    >>> decide("h.0.attn.c_proj.weight", (768, 768))
    Decision(role='zero', options={'layout': 'IO'}, why='last of its branch')
    >>> decide("h.0.attn.c_attn.weight", (768, 2304)).options
    {'layout': 'IO', 'blocks': (768, 768, 768)}
    """
    rule = find(name, rules, names=names)
    if rule is not None:
        why = rule.why or f"rule {rule.pattern}"
        return Decision(rule.role, _options(name, tuple(shape), rule), why)
    near = get_close_matches(name, [rule.pattern for rule in rules], 3, 0.0)
    raise OptionError(
        message(
            "name",
            name,
            f"no rule knows it (shape {tuple(shape)}); the nearest are {', '.join(near) or 'none'}",
            "add a Rule before the others, with the role 'transit', 'zero', 'bias' or 'keep'",
        )
    )


def _options(name: str, shape: tuple[int, ...], rule: Rule) -> dict[str, Any]:
    options = dict(rule.options)
    parts = options.pop("parts", None)
    if parts is not None:
        sizes = dict(zip(options.get("layout", "OI"), shape, strict=False))
        outputs, inputs = sizes.get("O", 0), sizes.get("I", 0)
        if len(shape) != 2 or outputs != parts * inputs:
            raise OptionError(
                message(
                    "shape",
                    shape,
                    f"{name} should hold {parts} square matrices side by side ({rule.why})",
                    "add a Rule of your own for it, with its blocks",
                )
            )
        options["blocks"] = (inputs,) * parts
    return options
