"""The transformer of its study, and how its methods begin."""

from __future__ import annotations

import math

import pytest
import torch

from docs.evidence import transformer

CODES = torch.arange(2 * 16).reshape(2, 16)


def made(method: str, *, norm: bool = True) -> transformer.Transformer:
    torch.manual_seed(0)
    shape = (96, transformer.WIDTH, 2, 4, 16)
    model = transformer.Transformer(*shape, norm=norm, scalars=method == "rezero")
    transformer.METHODS[method](model, CODES)
    return model


@torch.no_grad()
@pytest.mark.parametrize("method", transformer.METHODS)
def test_no_position_sees_a_later_one(method: str) -> None:
    model = made(method)
    torch.nn.init.normal_(model.head.weight)  # muP's is 0, and would show nothing
    changed = CODES.clone()
    changed[:, 9] = 95
    same = torch.isclose(model(CODES), model(changed), atol=1e-6).all(1).unflatten(0, (2, 16))
    assert same[:, :9].all()
    assert not same[:, 9].any()


@torch.no_grad()
@pytest.mark.parametrize(
    ("method", "least", "most"),
    [("idinit", 0, 1e-4), ("rezero", 0, 0), ("gpt2", 1e-3, 9), ("zero", 1e-3, 9), ("mup", 1e-3, 9)],
)
def test_what_the_branches_add_at_the_start(method: str, least: float, most: float) -> None:
    model = made(method)
    x = model.token(CODES)
    assert least <= (model.blocks(x) - x).abs().max() <= most


@torch.no_grad()
def test_mup_begins_at_chance_and_learns_its_matrices_slower() -> None:
    model = made("mup")
    loss = torch.nn.functional.cross_entropy(model(CODES), CODES.flatten())
    assert math.isclose(loss, math.log(96), rel_tol=1e-6)
    optimiser = torch.optim.AdamW(transformer.groups("mup", model, 0.01), lr=0.01)
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    assert rates[id(model.token.weight)] == 0.01
    assert rates[id(model.head.weight)] == 0.01 * transformer.BASE / transformer.WIDTH


@torch.no_grad()
def test_t_fixup_scales_its_weights() -> None:
    model = made("t_fixup", norm=False)
    attention, (up, _, _) = (block.branch for block in model.blocks[:2])
    drawn = math.sqrt(6 / (64 + 256))  # the bound of Xavier's uniform weights
    assert math.isclose(up.weight.abs().max(), drawn * 0.67 / 2**0.25, rel_tol=0.01)
    bound = math.sqrt(6 / (64 + 64))
    assert math.isclose(attention.q.weight.abs().max(), bound, rel_tol=0.01)
    assert math.isclose(attention.o.weight.abs().max(), bound * 0.67 / 2**0.25, rel_tol=0.01)
    assert math.isclose(model.token.weight.std(), 64**-0.5 / 18**0.25, rel_tol=0.05)


def test_gpt2_scales_the_last_of_each_branch() -> None:
    stds = {name: p.std().item() for name, p in made("gpt2").named_parameters() if p.ndim == 2}
    for name, std in stds.items():
        last = name.endswith(("branch.o.weight", "branch.2.weight"))
        assert math.isclose(std, 0.01 if last else 0.02, rel_tol=0.05), name  # 2 L = 4


def test_steps_to_a_loss() -> None:
    runs = [{"curve": [3.0, 2.0, 2.5, 1.0]}, {"curve": [3.0, 3.0, 3.0, 3.0]}, {"curve": []}]
    assert transformer.reached(runs, 2.0) == [20, None, None]
    assert transformer.reached(runs, 3.0) == [10, 10, None]
