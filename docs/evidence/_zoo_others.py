"""Models that are no types of transformers: torchvision's, timm's, and some in flax.

torchvision and timm come with the extra ``zoo``; where they are not installed they are left out.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from docs.evidence import _zoo_keras
from docs.evidence._zoo_build import CannotBuildError, runs, said

Row = dict[str, Any]

SMALL = (
    "test_",
    "atto",
    "femto",
    "pico",
    "nano",
    "tiny",
    "mini",
    "xxs",
    "_xs",
    "s0",
    "_s",
    "18",
    "small",
    "b0",
)
LARGEST = 150_000_000  # parameters: most of these models have one size
DETECTORS = r"rcnn|retinanet|ssd|fcos"
_kept: list[Any] = []  # a library lives as long as its object


def installed(name: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(name) is not None


def name_operators() -> None:
    """Define torchvision's compiled operators where they could not be loaded.

    Without their names it cannot be imported beside PyTorch's build for the CPU. What its
    detectors need of them is written out.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    try:
        import torchvision  # noqa: F401 - whether it can be
    except RuntimeError:
        file = Path(spec.origin).parent / "_meta_registrations.py"
        pattern = r'register_(?:meta|fake)\("(?:torchvision::)?(\w+)"\)'
        library = torch.library.Library("torchvision", "FRAGMENT")
        _kept.append(library)
        for name in dict.fromkeys(re.findall(pattern, file.read_text())):
            if not hasattr(torch.ops.torchvision, name):
                library.define(f"{name}(Tensor x) -> Tensor")
        from torchvision.ops import boxes

        boxes.nms = _distinct
        module: Any = importlib.import_module("torchvision.ops.roi_align")
        plain = module._roi_align.__wrapped__  # slow if compiled, or with a sample a pixel
        module._roi_align = lambda *given: plain(*given[:5], max(2, given[5]), given[6])


def _distinct(boxes: torch.Tensor, scores: torch.Tensor, most: float) -> torch.Tensor:
    """Return the boxes that no better one overlaps: torchvision's compiled `nms`, written out."""
    from torchvision.ops import box_iou

    order = scores.argsort(descending=True)
    overlaps = box_iou(boxes[order], boxes[order]) > most
    free = torch.ones(len(order), dtype=torch.bool)
    for k in range(len(order)):
        if free[k]:
            free[k + 1 :] &= ~overlaps[k, k + 1 :]
    return order[free]


def names() -> Iterator[str]:
    """Yield family/name of all models."""
    if installed("torchvision"):
        import torchvision

        for name in torchvision.models.list_models():
            if not re.search(r"quantized|raft|ssd300", name):
                yield f"torchvision/{name}"
    if installed("timm"):
        yield from (f"timm/{name}" for name in _of_timm())
    yield from _zoo_keras.names()
    yield from (f"flax/{name}" for name in FLAX)


def _of_timm() -> Iterator[str]:
    """Yield of every file of timm the smallest models, by their names; the first ones first."""
    import timm

    def size(name: str) -> tuple[int, int, str]:
        rank = next((k for k, word in enumerate(SMALL) if word in name), len(SMALL))
        return rank, len(name), name

    files = [sorted(timm.list_models(module=module), key=size) for module in timm.list_modules()]
    for number in range(2):
        yield from (models[number] for models in files if number < len(models))


# PyTorch ------------------------------------------------------------------------------------------


_THIN: tuple[dict[str, Any], ...] = (
    {"img_size": 64, "depth": 2, "embed_dim": 96, "num_heads": 3},
    {"img_size": 64, "depths": (1, 1, 1, 1)},
    {"depths": (1, 1, 1, 1)},
)
"""Options that make some models of timm smaller; others do not take them."""


def build(family: str, name: str) -> tuple[Any, tuple[Any, ...]]:
    """Return a model of torchvision or timm in evaluation mode, and an image that it takes."""
    problem = ""
    thin = [(64, options) for options in _THIN] if family == "timm" else []
    for side, options in (*thin, (64, {"img_size": 64}), (64, {}), (96, {}), (224, {}), (256, {})):
        try:
            size = _size(family, name, options)
            if size > LARGEST:
                raise CannotBuildError(f"{size:,} parameters")
            torch.manual_seed(0)
            model = _made(family, name, options).eval()
        except CannotBuildError as large:
            problem = str(large)
            continue
        except Exception as wrong:  # whatever a constructor may raise
            problem = said(wrong)
            continue
        given = _images(family, name, model, side)
        wrong_run = runs(model, given)
        if wrong_run is None:
            return model, given
        problem = said(wrong_run)
    raise CannotBuildError(problem)


def _size(family: str, name: str, options: dict[str, Any]) -> int:
    """Return how many parameters a model has, without memory for them; 0 if that fails."""

    def emptied(module: Any, name: str, parameter: Any) -> Any:
        return torch.nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(emptied)
    try:  # all else has numbers, since widths and rates are read from tensors
        return sum(p.numel() for p in _made(family, name, options).parameters())
    except Exception:  # of what reads a parameter, and of options that it does not take
        return 0
    finally:
        handle.remove()


def _images(family: str, name: str, model: Any, side: int) -> tuple[Any, ...]:
    """Return pictures, a film, or for a detector that learns pictures and what is on them."""
    if family == "torchvision" and re.search(r"3d|mvit|s3d|r2plus1d|mc3", name):
        return (torch.randn(1, 3, 16, side, side),)
    if family == "torchvision" and re.search(DETECTORS, name):
        model.train()
        boxes = torch.tensor([[8.0, 8, 40, 48], [20.0, 4, 60, 30]])
        target = {
            "boxes": boxes,
            "labels": torch.tensor([1, 1]),
            # Both classes: where there is one, a step is enough to make the loss exactly 0.
            "masks": (torch.arange(side) < side // 2).byte().repeat(2, side, 1),
            "keypoints": torch.tensor([30.0, 25, 1]).repeat(2, 17, 1),
        }
        return [torch.rand(3, side, side) for _ in range(2)], [target, dict(target)]
    return (torch.randn(2, 3, side, side),)


def _made(family: str, name: str, options: dict[str, Any]) -> Any:
    if family == "timm":
        import timm

        return timm.create_model(name, pretrained=False, **options)
    import torchvision

    if options and name.startswith("mvit"):  # whose functions fix the size
        from torchvision.models.video import mvit

        whole, sides = mvit.MViT, {"spatial_size": (options["img_size"],) * 2}
        with mock.patch.object(mvit, "MViT", lambda **given: whole(**given | sides)):
            return torchvision.models.get_model(name, weights=None)
    option = {"image_size": options["img_size"]} if options and name.startswith("vit") else {}
    if options and not option:
        raise TypeError("no size of the image is asked for")
    if re.search(DETECTORS, name):
        option = {"min_size": 64, "max_size": 64} if "ssd" not in name else {}
    if "rcnn" in name:  # fewer regions: thousands are no other model
        option |= {"rpn_post_nms_top_n_train": 16, "box_batch_size_per_image": 16}
        option["rpn_pre_nms_top_n_train"] = 64
    if name.startswith("ssd"):
        option["topk_candidates"] = 2
    if re.search(f"{DETECTORS}|deeplab|fcn|lraspp", name):
        option["weights_backbone"] = None
    return torchvision.models.get_model(name, weights=None, **option)


# Flax ---------------------------------------------------------------------------------------------


def _mlp(nnx: Any, rngs: Any) -> Any:
    class Net(nnx.Module):  # type: ignore[misc, name-defined]  # what nnx.Module is, mypy cannot see
        def __init__(self) -> None:
            self.entry = nnx.Linear(6, 16, rngs=rngs)
            self.up = nnx.List([nnx.Linear(16, 32, rngs=rngs) for _ in range(3)])
            self.down = nnx.List([nnx.Linear(32, 16, rngs=rngs) for _ in range(3)])
            self.head = nnx.Linear(16, 4, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = self.entry(x)
            for up, down in zip(self.up, self.down, strict=True):
                x = x + down(nnx.gelu(up(x)))
            return self.head(x)

    return Net()


def _transformer(nnx: Any, rngs: Any) -> Any:
    class Net(nnx.Module):  # type: ignore[misc, name-defined]  # as above
        def __init__(self) -> None:
            self.entry = nnx.Linear(6, 16, rngs=rngs)
            self.norms = nnx.List([nnx.LayerNorm(16, rngs=rngs) for _ in range(4)])
            self.attend = nnx.List(
                [nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs) for _ in range(2)]
            )
            self.up = nnx.List([nnx.Linear(16, 32, rngs=rngs) for _ in range(2)])
            self.down = nnx.List([nnx.Linear(32, 16, rngs=rngs) for _ in range(2)])
            self.head = nnx.Linear(16, 4, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = self.entry(x)
            for k in range(2):
                x = x + self.attend[k](self.norms[2 * k](x))
                x = x + self.down[k](nnx.gelu(self.up[k](self.norms[2 * k + 1](x))))
            return self.head(x)

    return Net()


def _convolutions(nnx: Any, rngs: Any) -> Any:
    class Net(nnx.Module):  # type: ignore[misc, name-defined]  # as above
        def __init__(self) -> None:
            self.entry = nnx.Conv(3, 8, (3, 3), rngs=rngs)
            self.first = nnx.List([nnx.Conv(8, 8, (3, 3), rngs=rngs) for _ in range(2)])
            self.last = nnx.List([nnx.Conv(8, 8, (3, 3), rngs=rngs) for _ in range(2)])
            self.head = nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = self.entry(x)
            for first, last in zip(self.first, self.last, strict=True):
                x = x + last(nnx.relu(first(x)))
            return self.head(x.mean((1, 2)))

    return Net()


FLAX = {
    "residual_mlp": (_mlp, (3, 6), ("down.0", "down.1", "down.2")),
    "transformer": (_transformer, (2, 5, 6), ("attend.0.out", "attend.1.out", "down.0", "down.1")),
    "residual_convolutions": (_convolutions, (2, 8, 8, 3), ("last.0", "last.1")),
}


def flax(name: str) -> Row:
    """Measure one of the models above: the zero weights are those that its lines say."""
    import jax
    from flax import nnx

    import idinit_ref_jax as irj

    make, shape, ends = FLAX[name]
    model = make(nnx, nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), shape)
    new, report = irj.init(model, (x,))
    zeros = {path.rsplit(".", 1)[0] for path, role in report.roles.items() if role == "zero"}
    out = new(x)
    grads = nnx.grad(lambda net: (net(x) * jax.random.normal(jax.random.key(1), out.shape)).sum())(
        new
    )
    finite = all(bool(jax.numpy.isfinite(g).all()) for g in jax.tree.leaves(grads))
    row: Row = {
        "class": name,
        "inputs": ["x"],
        "missed": sorted(end for end in ends if end not in zeros),
        "false": sorted(end for end in zeros if end not in ends),
        "constant": int(bool((out[0] == out[1]).all())),
        "finite": int(finite and bool(jax.numpy.isfinite(out).all())),
        **{key: [] for key in ("vain", "effects", "dead", "dead_matrices")},
    }
    from docs.evidence._zoo_measure import is_alive, verdict

    row["alive"] = is_alive(row, len(report.roles))
    return {**row, **verdict(row)}
