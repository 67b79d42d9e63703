"""Names to roles: what every rule says, what no rule says, and real layers that carry it out."""

from __future__ import annotations

import re

import numpy as np
import pytest

import idinit_ref as ir
from by_name import plans
from idinit_ref.roles.names import RULES, Decision, Rule, decide, find

pytestmark = pytest.mark.every

BASIC = {
    "resnet.encoder.stages.0.layers.0.layer.0.convolution.weight": (8, 8, 3, 3),
    "resnet.encoder.stages.0.layers.0.layer.1.convolution.weight": (8, 8, 3, 3),
}
BOTTLENECK = BASIC | {"resnet.encoder.stages.0.layers.0.layer.2.convolution.weight": (32, 8, 1, 1)}


@pytest.mark.parametrize(
    ("name", "shape", "role", "options"),
    [
        ("h.0.attn.c_attn.weight", (4, 12), "transit", {"layout": "IO", "blocks": (4, 4, 4)}),
        ("h.0.crossattention.c_attn.weight", (4, 8), "transit", {"layout": "IO", "blocks": (4, 4)}),
        ("h.0.crossattention.q_attn.weight", (4, 4), "transit", {"layout": "IO"}),
        ("h.0.attn.c_proj.weight", (4, 4), "zero", {"layout": "IO"}),
        ("h.0.crossattention.c_proj.weight", (4, 4), "zero", {"layout": "IO"}),
        ("h.0.mlp.c_fc.weight", (4, 16), "transit", {"layout": "IO"}),
        ("h.0.mlp.c_proj.weight", (16, 4), "zero", {"layout": "IO"}),
        ("h.0.attn.c_proj.bias", (4,), "bias", {}),
        ("h.0.ln_1.bias", (4,), "keep", {}),
        ("ln_f.weight", (4,), "keep", {}),
        ("wte.weight", (9, 4), "keep", {}),
        ("transformer.wpe.weight", (9, 4), "keep", {}),
        ("lm_head.weight", (9, 4), "transit", {}),
        ("bert.encoder.layer.0.attention.self.query.weight", (4, 4), "transit", {}),
        ("encoder.layer.0.attention.output.dense.weight", (4, 4), "zero", {}),
        ("encoder.layer.0.intermediate.dense.weight", (16, 4), "transit", {}),
        ("encoder.layer.0.output.dense.weight", (4, 16), "zero", {}),
        ("encoder.layer.0.output.LayerNorm.bias", (4,), "keep", {}),
        ("embeddings.token_type_embeddings.weight", (2, 4), "keep", {}),
        ("pooler.dense.weight", (4, 4), "transit", {}),
        ("distilbert.transformer.layer.0.attention.q_lin.weight", (4, 4), "transit", {}),
        ("distilbert.transformer.layer.0.attention.out_lin.weight", (4, 4), "zero", {}),
        ("distilbert.transformer.layer.0.ffn.lin1.weight", (16, 4), "transit", {}),
        ("distilbert.transformer.layer.0.ffn.lin2.weight", (4, 16), "zero", {}),
        ("distilbert.transformer.layer.0.sa_layer_norm.weight", (4,), "keep", {}),
        ("qa_outputs.weight", (2, 4), "transit", {"blocks": (1, 1)}),
        ("vit.embeddings.cls_token", (1, 1, 4), "keep", {}),
        ("vit.embeddings.position_embeddings", (1, 5, 4), "keep", {}),
        ("vit.embeddings.patch_embeddings.projection.weight", (4, 3, 2, 2), "transit", {}),
        ("vit.embeddings.patch_embeddings.projection.bias", (4,), "bias", {}),
        ("vit.layers.0.attention.o_proj.weight", (4, 4), "zero", {}),
        ("vit.layers.0.mlp.fc1.weight", (16, 4), "transit", {}),
        ("vit.layers.0.mlp.fc2.weight", (4, 16), "zero", {}),
        ("vit.layernorm.weight", (4,), "keep", {}),
        ("classifier.weight", (2, 4), "transit", {}),
        ("classifier.1.weight", (2, 4), "transit", {}),
        ("model.layers.0.self_attn.k_proj.weight", (2, 4), "transit", {}),
        ("model.layers.0.mlp.gate_proj.weight", (8, 4), "transit", {}),
        ("model.layers.0.mlp.down_proj.weight", (4, 8), "zero", {}),
        ("model.layers.0.post_attention_layernorm.weight", (4,), "keep", {}),
        ("model.norm.weight", (4,), "keep", {}),
        ("resnet.embedder.embedder.convolution.weight", (8, 3, 7, 7), "transit", {}),
        ("resnet.embedder.embedder.normalization.running_var", (8,), "keep", {}),
        ("resnet.embedder.embedder.normalization.num_batches_tracked", (), "keep", {}),
        ("s.0.layers.0.shortcut.convolution.weight", (8, 4, 1, 1), "transit", {}),
        # What older checkpoints hold besides: a mask of ones is no bias to be set to 0.
        ("h.0.attn.bias", (1, 1, 8, 8), "keep", {}),
        ("transformer.h.0.attn.masked_bias", (), "keep", {}),
        ("gpt_neox.layers.0.attention.bias", (1, 1, 8, 8), "keep", {}),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", (2,), "keep", {}),
        ("bert.embeddings.position_ids", (1, 8), "keep", {}),
        ("bert.embeddings.LayerNorm.gamma", (4,), "keep", {}),
        ("bert.embeddings.LayerNorm.beta", (4,), "keep", {}),
    ],
)
def test_roles_by_name(name, shape, role, options):
    decision = decide(name, shape)
    assert decision[:2] == (role, options)
    assert decision.why


@pytest.mark.parametrize(
    ("tensors", "roles"),
    [(BASIC, ["transit", "zero"]), (BOTTLENECK, ["transit", "transit", "zero"])],
    ids=["basic", "bottleneck"],
)
def test_the_last_convolution_of_a_block_is_zero_whichever_block_it_is(tensors, roles):
    assert [decide(k, s, names=tensors).role for k, s in tensors.items()] == roles
    assert [made.role for made in plans(tensors).values()] == roles


def test_the_rule_that_decides_can_be_asked_for():
    assert find("h.0.attn.c_proj.weight").pattern == r"\.(attn|crossattention|mlp)\.c_proj\.weight$"
    own = Rule("c_proj", "keep")
    assert find("h.0.attn.c_proj.weight", (own, *RULES)) is own
    assert find("odd") is None
    names = list(BOTTLENECK)
    assert [find(name, names=names).role for name in names] == ["transit", "transit", "zero"]
    with pytest.raises(ir.errors.OptionError, match="pass them as names="):
        find(names[1])


def test_a_name_that_needs_its_siblings_says_so():
    name = list(BASIC)[1]
    with pytest.raises(ir.errors.OptionError, match=r"layer\.1.*other names; pass them as names="):
        decide(name, BASIC[name])


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blocks.0.gamma_1", (4,)),
        ("blocks.0.scale.weight", (4,)),
        ("entity_embeddings.weight", (9, 4)),
        ("register_tokens.weight", (9, 4)),
        ("relative_attention_bias.weight", (9, 4)),
        ("bias_table", (4, 4)),
        ("encoder.mixer.proj_a.weight", (3, 5)),
        # T5 and BART: an embedding, and the last weights of branches.
        ("shared.weight", (9, 4)),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", (4, 4)),
        ("encoder.block.0.layer.0.SelfAttention.o.weight", (4, 4)),
        ("decoder.block.0.layer.1.EncDecAttention.o.weight", (4, 4)),
        ("encoder.block.0.layer.1.DenseReluDense.wi.weight", (8, 4)),
        ("encoder.block.0.layer.1.DenseReluDense.wo.weight", (4, 8)),
        # GPT-NeoX and Bloom: packed by heads, and last weights.
        ("gpt_neox.embed_in.weight", (9, 4)),
        ("gpt_neox.layers.0.attention.query_key_value.weight", (12, 4)),
        ("gpt_neox.layers.0.attention.dense.weight", (4, 4)),
        ("gpt_neox.layers.0.mlp.dense_4h_to_h.weight", (4, 16)),
        ("transformer.h.0.self_attention.query_key_value.weight", (12, 4)),
        ("transformer.h.0.self_attention.dense.weight", (4, 4)),
        ("transformer.h.0.mlp.dense_4h_to_h.weight", (4, 16)),
        # Phi, ConvNeXt: last weights, and a depthwise kernel.
        ("model.layers.0.self_attn.dense.weight", (4, 4)),
        ("convnext.encoder.stages.0.layers.0.dwconv.weight", (4, 1, 7, 7)),
        ("convnext.encoder.stages.0.layers.0.pwconv2.weight", (4, 16)),
    ],
)
def test_a_name_that_no_rule_knows_is_never_guessed(name, shape):
    with pytest.raises(ir.errors.OptionError) as caught:
        decide(name, shape)
    text = str(caught.value)
    assert repr(name) in text
    assert str(shape) in text
    assert "add a Rule" in text
    near = re.search(r"the nearest are (.*); add", text)[1]
    assert set(near.split(", ")) <= {rule.pattern for rule in RULES}
    with pytest.raises(ir.errors.OptionError, match=re.escape(repr(name))):
        plans({"lm_head.weight": (9, 4), name: shape})


def test_the_error_names_near_rules():
    with pytest.raises(ir.errors.OptionError, match=r"nearest are \S*c_attn"):
        decide("h.0.attn.c_atn.weights", (4, 12))


def test_own_rules_come_first():
    own = Rule(r"^lm_head\.weight$", "zero", {"taps": "center"})
    assert decide("lm_head.weight", (9, 4), (own, *RULES)) == Decision(
        "zero", {"taps": "center"}, r"rule ^lm_head\.weight$"
    )


def test_a_rule_of_unknown_role_is_an_error():
    with pytest.raises(ir.errors.OptionError, match=r"role = 'ones'.*transit, zero, bias, keep"):
        decide("a", (3,), (Rule("a", "ones"),))


@pytest.mark.parametrize("shape", [(4, 13), (12, 4), (4, 12, 1), (12,)])
def test_what_is_not_packed_as_the_rule_says_is_an_error(shape):
    with pytest.raises(ir.errors.OptionError) as caught:
        decide("h.0.attn.c_attn.weight", shape)
    assert str(shape) in str(caught.value)
    assert "3 square matrices" in str(caught.value)


def test_plans_of_a_checkpoint():
    tensors = {
        "wte.weight": (9, 4),
        "h.0.attn.c_attn.weight": (4, 12),
        "h.0.attn.c_proj.weight": (4, 4),
        "h.0.attn.c_proj.bias": (4,),
        "ln_f.weight": (4,),
    }
    made = plans(tensors, gain=2.0, eps=0.25)
    assert list(made) == list(tensors)[1:4]
    assert made["h.0.attn.c_attn.weight"] == ir.plan(
        (4, 12), gain=2.0, layout="IO", blocks=(4, 4, 4)
    )
    assert made["h.0.attn.c_proj.weight"] == ir.plan((4, 4), "zero", eps=0.25, layout="IO")
    bias = made["h.0.attn.c_proj.bias"]
    assert (bias.shape, bias.dtype, bias.strides) == ((4,), np.float32, (0,))
    assert not bias.any()


def test_a_rules_own_gain_wins():
    made = plans({"a": (3, 3)}, (Rule("a", "transit", {"gain": 3.0}),), gain=2.0)
    assert made["a"].gain == 3.0


def test_real_gpt2_layers_pass_what_the_rules_promise():
    """A real Conv1D, outputs in the last axis: q = k = v = x, the MLP repeats x, c_proj is 0."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=6, n_layer=1, n_head=2, n_positions=8, vocab_size=11))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    state = {
        name: torch.from_numpy(value.build(dtype="float32") if hasattr(value, "build") else +value)
        for name, value in plans(shapes).items()
    }
    model.load_state_dict(state, strict=False)
    block, x = model.transformer.h[0], torch.randn(3, 6)
    assert torch.equal(block.attn.c_attn(x), torch.cat([x, x, x], dim=1))
    assert torch.equal(block.mlp.c_fc(x), torch.cat([x, x, x, x], dim=1))
    assert block.attn.c_proj(x).abs().max() <= 2e-6 * x.abs().max()
    wide = torch.randn(3, 24)
    assert block.mlp.c_proj(wide).abs().max() <= 2e-6 * wide.abs().max()
