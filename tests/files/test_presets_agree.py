"""Name rules and structure agree: on every preset, at full size and small."""

from __future__ import annotations

import pytest
import torch

from files.make_presets import MODELS
from files.test_presets import SMALL
from idinit_ref.files import presets
from idinit_ref.roles.decide import decide
from idinit_ref.roles.names import decide as by_name
from idinit_ref_torch import trace

IDS = torch.zeros(1, 6, dtype=torch.long)
SIZES = {"vit-b-16": 224, "resnet50": 64}


def build(name, **options):
    import transformers

    model_class, config_class, general = MODELS[name]
    config = getattr(transformers, config_class)(**{**general, **options})
    return getattr(transformers, model_class)(config)


def structure(model, name, size=None):
    """The role and the storage of every parameter, from the computation."""
    given = torch.zeros(1, 3, size, size) if size else IDS
    report = decide(trace(model, given))
    return {
        entry.name: (entry.role, entry.plan and (entry.plan.layout, entry.plan.blocks))
        for entry in report.entries
    }


def names(shapes, parameters):
    """The same, from the names alone; biases of normalisations and statistics included."""
    found = {}
    for key, shape in shapes.items():
        if key in parameters:
            role, options, _ = by_name(key, shape, names=shapes)
            is_weight = role in ("transit", "zero")
            default = {2: "OI", 3: "OIW", 4: "OIHW"}.get(len(shape))
            stored = options.get("layout", default), options.get("blocks")
            found[key] = role, stored if is_weight else None
    return found


@pytest.mark.nightly
@pytest.mark.parametrize("name", MODELS)
def test_they_agree_at_full_size(name):
    with torch.device("meta"):
        model = build(name)
    found = structure(model, name, SIZES.get(name))
    assert list(found) == [key for key in presets.load(name).tensors if key in found]
    assert found == names(presets.load(name).tensors, found)


@pytest.mark.parametrize("name", MODELS)
def test_they_agree_on_small_models(name):
    model = build(name, **SMALL[name])
    size = {"vit-b-16": 8, "resnet50": 32}.get(name)
    found = structure(model, name, size)
    assert found == names({k: tuple(v.shape) for k, v in model.state_dict().items()}, found)


@pytest.mark.parametrize("kind", ["MaskedLM", "SequenceClassification", "QuestionAnswering"])
def test_they_agree_on_distilbert(kind):
    """It has no preset, but its names are in the rules."""
    import transformers

    config = transformers.DistilBertConfig(dim=8, hidden_dim=20, n_layers=2, n_heads=2)
    model = getattr(transformers, f"DistilBertFor{kind}")(config)
    found = structure(model, "distilbert")
    assert {role for role, _ in found.values()} == {"transit", "zero", "bias", "keep"}
    assert found == names({k: tuple(v.shape) for k, v in model.state_dict().items()}, found)
