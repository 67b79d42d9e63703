"""A preset exported once loads in PyTorch, Flax and Keras, and the three agree to 1e-5."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from flax import nnx, traverse_util
from safetensors.flax import load_file

import by_name
import idinit_ref as ir
from files import three_models as three
from idinit_ref.files import presets
from idinit_ref.files.dialects import DIALECTS
from idinit_ref.files.translating import translate

EPS = 0.05  # of the last weight of each branch, so that the branches matter


def three_agree(tensors, model, flax, keras_model, own_rules, inputs, folder):
    """Export a model's weights three times, load each by the framework's own tools, compare.

    model is the PyTorch one: it gives the embeddings and norms, and its configuration.
    """
    made = by_name.plans(tensors, eps=EPS)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    kept = {name: state[name] for name in tensors if name not in made}
    whole = {name: made.get(name, kept.get(name)) for name in tensors}

    ir.save(folder / "model.safetensors", whole)
    model.config.save_pretrained(folder)
    loaded = type(model).from_pretrained(folder).eval()
    x = torch.from_numpy(inputs)
    with torch.no_grad():
        wanted = loaded(x).logits.numpy()
        for name, plan in made.items():
            if isinstance(plan, ir.Plan) and plan.role == "zero":
                loaded.get_parameter(name).zero_()
        without = loaded(x).logits.numpy()
    size = np.abs(wanted).max()
    assert np.abs(wanted - without).max() > 0.01 * size
    assert wanted.std(0).max() > 0.01 * size  # and it depends on the input

    inputs = np.moveaxis(inputs, 1, -1) if inputs.ndim == 4 else inputs
    made = translate(whole, DIALECTS["flax"].extended(own_rules["flax"]))
    ir.save(folder / "flax.safetensors", made)
    flat = load_file(folder / "flax.safetensors")
    abstract = nnx.eval_shape(lambda: flax(model.config, rngs=nnx.Rngs(0)))
    variables = nnx.state(abstract)
    assert {".".join(map(str, key)) for key in dict(nnx.to_flat_state(variables))} == flat.keys()
    tree = nnx.restore_int_paths(traverse_util.unflatten_dict(flat, sep="."))
    nnx.replace_by_pure_dict(variables, tree)
    nnx.update(abstract, variables)
    close(nnx.jit(lambda m, x: m(x))(abstract, inputs), wanted, size)
    del abstract, variables, flat, tree

    made = translate(whole, DIALECTS["keras"].extended(own_rules["keras"]))
    ir.save(folder / "keras.weights.h5", made)
    keras_model = keras_model(model.config)
    keras_model(inputs)
    keras_model.load_weights(folder / "keras.weights.h5")
    close(keras_model(inputs), wanted, size)


def close(got, wanted, size):
    assert got.shape == wanted.shape
    assert np.abs(np.asarray(got) - wanted).max() <= 1e-5 * size


def shaken(model):
    """The model with norms and embeddings that are not all 1, 0 or small."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "norm" in name or "ln_" in name:
                if value.is_floating_point():
                    value.add_(torch.rand(value.shape, generator=random) * 0.2)
            elif "wte" in name or "wpe" in name:
                value.copy_(torch.randn(value.shape, generator=random) * 0.5)
    return model.eval()


def gpt2(config, tensors, folder):
    model = shaken(transformers.GPT2LMHeadModel(config))
    ids = np.random.default_rng(1).integers(0, config.vocab_size, (2, 11))
    three_agree(tensors, model, three.FlaxGPT2, three.KerasGPT2, three.GPT2_RULES, ids, folder)


def resnet(config, tensors, folder):
    model = shaken(transformers.ResNetForImageClassification(config))
    images = np.random.default_rng(0).standard_normal((2, 3, 71, 64)).astype("float32")
    nets = three.FlaxResNet, three.KerasResNet, three.RESNET_RULES
    three_agree(tensors, model, *nets, images, folder)


def tensors_of(kind, config):
    """The shapes of a model's parameters, and of what its norms have counted."""
    with torch.device("meta"):
        model = kind(config)
    held = [*model.named_parameters(), *model.named_buffers()]
    return {name: tuple(value.shape) for name, value in held if value.is_floating_point()}


def test_small_gpt2(tmp_path):
    config = transformers.GPT2Config(n_layer=3, n_embd=48, n_head=4, vocab_size=101, n_positions=16)
    gpt2(config, tensors_of(transformers.GPT2LMHeadModel, config), tmp_path)


@pytest.mark.nightly
def test_small_resnet(tmp_path):
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32], depths=[2, 2], num_labels=10
    )
    resnet(config, tensors_of(transformers.ResNetForImageClassification, config), tmp_path)


@pytest.mark.nightly
def test_resnet50(tmp_path):
    preset = presets.load("resnet50")
    resnet(transformers.ResNetConfig(**preset.source["options"]), preset.tensors, tmp_path)


@pytest.mark.nightly
def test_gpt2(tmp_path):
    gpt2(transformers.GPT2Config(), presets.load("gpt2").tensors, tmp_path)
