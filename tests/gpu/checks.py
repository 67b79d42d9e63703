"""What should hold on a GPU as it does on the CPU: one function each, told only where to run.

What is expected is made by NumPy, on the CPU; and the table of digests, which no code of the core
had a part in, says what that should be. Every comparison is of all bits.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

import digests
import idinit_ref as ir
import idinit_ref_jax as irj
import idinit_ref_torch as irt
from gpu.places import Place
from idinit_ref.errors import RoundingError

TABLE = json.loads(digests.PATH.read_text())
MORE = [
    ((0, 4), "transit", {}),
    ((1, 1), "zero", {}),
    ((300, 200), "transit", {"gain": 0.3}),
    ((129, 257), "zero", {"eps": 0.5}),
    ((64, 200), "transit", {"wide": "fold_rms"}),
    ((96, 40), "zero", {"blocks": (64, 16, 16), "eps": 0.25}),
    ((24, 8, 3, 3), "zero", {"eps": 0.5}),
    ((24, 4, 3, 3), "transit", {"groups": 6}),
    ((32, 1, 3, 3), "transit", {"groups": 32}),
    ((32, 4, 3, 3), "transit", {"taps": "center"}),
    ((24, 8, 3, 3), "zero", {"eps": 0.5, "taps": "channel_major"}),
    ((20, 6, 3, 3), "transit", {"taps": "diagonal", "tap": (0, 2)}),
    ((8, 6, 4, 4), "transit", {"layout": "IOHW", "stride": (2, 2)}),
    ((5, 8, 6), "zero", {"layout": "WIO", "stride": (-2,), "eps": 0.5}),
    ((6, 40), "zero", {"form": "shifted", "eps": 0.5}),
    ((3, 3, 16, 24), "zero", {"layout": "HWIO", "taps": "spatial_major", "eps": 0.125}),
    ((8, 6, 2, 3, 3), "transit", {"taps": "center", "tap": (0, 1, 2)}),
    ((33, 18), "transit", {"loosen": 0.25, "seed": 3}),
    ((33, 18), "transit", {"loosen": 0.25, "loosen_at": "entries", "seed": 3}),
]
WEIGHTS = [*digests.CASES, *MORE]
NUMPY = ["float64", "float32", "float16", "complex64", "complex128"]
DTYPES = [*NUMPY, "bfloat16", "float8_e4m3fn", "float8_e5m2"]
RANK = {2: "OI", 3: "OIW", 4: "OIHW", 5: "OIDHW"}
CHECKS: dict[str, list[Callable[[Place], None]]] = {"torch": [], "jax": [], "cupy": []}


def of(*frameworks: str) -> Callable[[Any], Any]:
    """Note a check of some frameworks."""

    def note(check: Any) -> Any:
        for framework in frameworks:
            CHECKS[framework].append(check)
        return check

    return note


# What is compared ---------------------------------------------------------------------------


def on_cpu(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name) if hasattr(ml_dtypes, name) else name)


def names(place: Place) -> list[str]:
    """The dtypes that a framework has: CuPy's are NumPy's own."""
    if place.framework == "jax" and not place.gpu:
        return ["float32", "bfloat16", "float8_e4m3fn"]
    return NUMPY if place.framework == "cupy" else DTYPES


def some(cases: Any, place: Place) -> list[Any]:
    """JAX compiles for each shape and dtype: the CPU, which proves only the checks, has some."""
    few = place.framework == "jax" and not place.gpu
    return [*cases][4::5] if few else [*cases]


def expected(plan: ir.Plan, dtype: str) -> np.ndarray | None:
    """The weight as NumPy has it, or None where the dtype has no room for its entries."""
    try:
        return plan.build(dtype=on_cpu(dtype))
    except RoundingError:
        return None


def raw(place: Place, array: Any) -> bytes:
    """The bits of an array, in row-major order; it must lie where the place says."""
    place.wait()
    if place.framework == "torch":
        assert array.device == place.device, (array.device, place)
        flat = torch.empty(array.numel(), dtype=array.dtype)
        flat.view(array.shape).copy_(array.detach())
        return flat.view(torch.uint8).numpy().tobytes()
    if place.framework == "jax":
        assert array.devices() == {place.device}, (array.devices(), place)
        return np.asarray(array).tobytes()
    if place.gpu:
        assert array.device == place.device, (array.device, place)
        array = place.xp.asnumpy(array)
    return np.ascontiguousarray(array).tobytes()


def same(place: Place, array: Any, want: np.ndarray, what: object) -> None:
    """The same shape, dtype and bits."""
    assert tuple(array.shape) == want.shape, (place, what)
    assert str(array.dtype).removeprefix("torch.") == want.dtype.name, (place, what)
    assert raw(place, array) == np.ascontiguousarray(want).tobytes(), (place, what)


def each(place: Place) -> Iterator[tuple[ir.Plan, str, np.ndarray | None, tuple[Any, ...]]]:
    """Every weight in every dtype: the plan, the dtype, what is expected, and what to call it."""
    for shape, role, options in some(WEIGHTS, place):
        plan = ir.plan(shape, role, **options)
        for dtype in names(place):
            yield plan, dtype, expected(plan, dtype), (shape, role, options, dtype)


# All frameworks -----------------------------------------------------------------------------


@of("torch", "jax", "cupy")
def build_gives_the_bits(place: Place) -> None:
    """`Plan.build`, `ir.idi` and `ir.idiz` with a namespace, a dtype and a device."""
    for plan, dtype, want, what in each(place):
        to = getattr(place.xp, dtype)
        if want is None:
            with pytest.raises(RoundingError):
                plan.build(place.xp, to, place.device)
            continue
        same(place, plan.build(place.xp, to, place.device), want, what)
        shape, role, options, _ = what
        if dtype != "float32":
            continue
        verb = {"transit": ir.idi, "zero": ir.idiz}[role]
        array = verb(shape, **options, xp=place.xp, dtype=to, device=place.device)
        same(place, array, want, what)


@of("torch", "jax", "cupy")
def build_gives_the_digests(place: Place) -> None:
    """The table of SHA-256, made without the core."""
    for (case, row), dtype in itertools.product(some(TABLE.items(), place), digests.DTYPES):
        if dtype not in names(place):
            continue
        shape, role, options = next(c for c in digests.CASES if digests.name(c) == case)
        to = getattr(place.xp, dtype)
        array = ir.plan(shape, role, **options).build(place.xp, to, place.device)
        found = digests.digest(np.frombuffer(raw(place, array), np.uint8))
        assert found == row[dtype], (place, case, dtype)


@of("torch", "jax", "cupy")
def blocks_are_parts_of_the_whole(place: Place) -> None:
    for plan, dtype, want, what in each(place):
        if want is None or dtype not in ("float32", "bfloat16", "complex128"):
            continue
        for index in cuts(plan.shape):
            part = plan.block(index, place.xp, getattr(place.xp, dtype), place.device)
            same(place, part, want[index], (*what, index))


def cuts(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """A corner, the middle, and nothing."""
    yield tuple(slice(0, (size + 1) // 2) for size in shape)
    yield tuple(slice(size // 3, size - size // 4) for size in shape)
    yield tuple(slice(size // 2, size // 2) for size in shape)


@of("torch", "cupy")
def write_fills_the_memory_of_others(place: Place) -> None:
    """Flat memory; memory stored the other way round; the part that a shard is."""
    for plan, dtype, want, what in each(place):
        if want is None:
            continue
        device = {"device": place.device} if place.framework == "torch" else {}
        plans = [(None, want), *((index, want[index]) for index in cuts(plan.shape))]
        for index, part in plans:
            to = getattr(place.xp, dtype)
            flat = place.xp.zeros(part.size, dtype=to, **device)
            plan.write(flat, index=index)
            same(place, flat, part.reshape(-1), (*what, index))
            flat[:] = 0
            back = part.transpose()
            steps = np.cumprod([1, *part.shape[:-1]]).tolist()
            plan.write(flat, tuple(steps), index)
            same(place, flat, np.ascontiguousarray(back).reshape(-1), (*what, index, "turned"))


# PyTorch ------------------------------------------------------------------------------------


def fill(tensor: torch.Tensor, role: str, options: dict[str, Any]) -> torch.Tensor:
    return {"transit": irt.idi_, "zero": irt.idiz_}[role](tensor, **options)


def memories(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Tensors of all 1s that lie differently in memory, each with all of the memory about it."""

    def ones(sizes: tuple[int, ...]) -> torch.Tensor:
        return torch.ones(sizes, dtype=torch.float32, device=device).to(dtype)

    whole = ones(shape)
    yield whole, whole
    turned = ones(shape[::-1])
    yield turned.permute(*reversed(range(len(shape)))), turned
    wide = ones(tuple(2 * size + 3 for size in shape))
    yield wide[tuple(slice(1, 1 + 2 * size, 2) for size in shape)], wide
    if len(shape) in (4, 5):
        order = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        last = ones(shape).to(memory_format=order)
        yield last, last


@of("torch")
def tensors_are_filled_wherever_they_lie(place: Place) -> None:
    """In place, with nothing written beside it; and nothing at all where an entry has no room."""
    for plan, dtype, want, what in each(place):
        _, role, options, _ = what
        for tensor, memory in memories(plan.shape, getattr(torch, dtype), place.device):
            before = memory.clone()
            strides, address = tensor.stride(), tensor.data_ptr()
            if want is None:
                with pytest.raises(RoundingError):
                    fill(tensor, role, options)
            else:
                assert fill(tensor, role, options) is tensor
                same(place, tensor, want, (*what, strides))
                assert (tensor.stride(), tensor.data_ptr()) == (strides, address)
                at = tensor.storage_offset()
                before.as_strided(tensor.shape, strides, at).copy_(tensor)
            assert raw(place, memory) == raw(place, before), (place, what, strides)


@of("torch")
def parameters_keep_what_they_are(place: Place) -> None:
    """A parameter's fill is no step of autograd, and takes no random number."""
    weight = nn.Parameter(torch.empty(8, 8, device=place.device))
    states = [torch.get_rng_state(), torch.cuda.get_rng_state() if place.gpu else None]
    irt.idi_(weight)
    assert weight.requires_grad
    assert weight.grad_fn is None
    assert torch.equal(torch.get_rng_state(), states[0])
    if place.gpu:
        assert torch.equal(torch.cuda.get_rng_state(), states[1])


@of("torch")
def another_stream_fills(place: Place) -> None:
    """What a stream was asked to fill is filled there: after its earlier work, before later."""
    for (shape, role, options), dtype in itertools.product(WEIGHTS, ("float32", "bfloat16")):
        tensor = torch.ones(shape, dtype=getattr(torch, dtype), device=place.device)
        with place.aside():
            tensor.fill_(9)
            fill(tensor, role, options)
        want = expected(ir.plan(shape, role, **options), dtype)
        same(place, tensor, want, (shape, role, options, dtype))


@of("torch")
def a_captured_fill_is_replayed(place: Place) -> None:
    """A CUDA graph of fills brings the bits back after the memory was overwritten.

    Not of loosened weights, whose noise comes from the host, row by row.
    """
    for dtype in ("float32", "float16", "bfloat16", "float8_e5m2", "complex64"):
        made = []
        for shape, role, options in WEIGHTS:
            want = expected(ir.plan(shape, role, **options), dtype)
            if want is None or "loosen" in options:
                continue
            for tensor, _ in memories(shape, getattr(torch, dtype), place.device):
                made.append((tensor, role, options, want))

        def work(made: list[Any] = made) -> None:
            for tensor, role, options, _ in made:
                fill(tensor, role, options)

        replay = place.capture(work)
        for _ in "ab":
            for tensor, *_ in made:
                tensor.fill_(1)
            replay()
            for tensor, role, options, want in made:
                same(place, tensor, want, (role, options, dtype, tensor.stride()))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


@of("torch")
def a_model_is_initialised(place: Place) -> None:
    """`init_` decides and writes the same, and leaves every parameter where it is."""
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))

    def model(device: Any) -> nn.Module:
        stem = nn.Conv2d(3, 6, 5, device="cpu")
        return nn.Sequential(stem, nn.Flatten(), Block(), Block(), nn.Linear(6, 2)).to(device)

    here, there = model("cpu"), model(place.device)
    told = irt.init_(here, x)
    held = {name: tensor.data_ptr() for name, tensor in there.named_parameters()}
    assert str(irt.init_(there, x.to(place.device))) == str(told)
    for (name, tensor), want in zip(there.named_parameters(), here.parameters(), strict=True):
        assert tensor.data_ptr() == held[name]
        same(place, tensor, want.detach().numpy(), name)
    # The sums of a GPU have another order, and perhaps fewer bits: no comparison of all bits.
    out = there(x.to(place.device)).detach().cpu()
    assert torch.allclose(out, here(x).detach(), atol=1e-2)


# JAX ----------------------------------------------------------------------------------------


def initializer(role: str, options: dict[str, Any], shape: tuple[int, ...]) -> Any:
    return {"transit": irj.idi, "zero": irj.idiz}[role](**{"layout": RANK[len(shape)], **options})


@of("jax")
def initializers_give_the_bits(place: Place) -> None:
    """Eager, on the default device."""
    import jax

    with place.default():
        for plan, dtype, want, what in each(place):
            shape, role, options, _ = what
            init = initializer(role, options, plan.shape)
            if want is None:
                with pytest.raises(RoundingError):
                    init(None, shape, getattr(jax.numpy, dtype))
            else:
                same(place, init(None, shape, getattr(jax.numpy, dtype)), want, what)


@of("jax")
def compiled_initializers_give_the_bits(place: Place) -> None:
    """Under jit: one program for each dtype, with all weights."""
    import jax

    found: dict[str, list[Any]] = {}
    for plan, dtype, want, what in each(place):
        if want is not None:
            found.setdefault(dtype, []).append((plan, want, what))
    for dtype, weights in found.items():

        def make(dtype: str = dtype, weights: list[Any] = weights) -> list[jax.Array]:
            return [
                initializer(role, options, shape)(None, shape, getattr(jax.numpy, dtype))
                for _, _, (shape, role, options, _) in weights
            ]

        with place.default():
            made = jax.jit(make)()
        for array, (_, want, what) in zip(made, weights, strict=True):
            same(place, array, want, (*what, "jit"))


@of("jax")
def a_sharding_of_one_device_is_kept(place: Place) -> None:
    """`out_sharding`, eager and under jit."""
    import jax
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    kinds = (AxisType.Auto, AxisType.Explicit)
    for kind, (shape, role, options) in itertools.product(kinds, WEIGHTS[:6]):
        mesh = Mesh(np.array([place.device]), ("x",), axis_types=(kind,))
        to = NamedSharding(mesh, PartitionSpec("x"))
        init = initializer(role, options, shape)
        want = expected(ir.plan(shape, role, **options), "float32")

        def make(init: Any = init, shape: Any = shape, to: Any = to) -> jax.Array:
            return init(None, shape, jax.numpy.float32, to)

        with jax.set_mesh(mesh):
            for array in (make(), jax.jit(make)()):
                same(place, array, want, (shape, role, options, kind))
                assert array.sharding.is_equivalent_to(to, len(shape))


# CuPy ---------------------------------------------------------------------------------------


@of("cupy")
def another_stream_writes(place: Place) -> None:
    """As `another_stream_fills`, into CuPy's memory."""
    for shape, role, options in WEIGHTS:
        plan = ir.plan(shape, role, **options)
        want = expected(plan, "float32").reshape(-1)
        flat = place.xp.ones(want.size, dtype="float32")
        with place.aside():
            flat[:] = 9
            flat[:] = 0
            plan.write(flat)
        same(place, flat, want, (shape, role, options))


@of("cupy")
def a_captured_write_is_replayed(place: Place) -> None:
    """As `a_captured_fill_is_replayed`, into CuPy's memory."""
    for dtype in ("float32", "float16", "complex64"):
        made = []
        for shape, role, options in WEIGHTS:
            if "loosen" not in options and 0 not in shape:
                plan = ir.plan(shape, role, **options)
                want = expected(plan, dtype).reshape(-1)
                made.append((place.xp.ones(want.size, dtype=dtype), plan, want))

        def work(made: list[Any] = made) -> None:
            for flat, plan, _ in made:
                flat[:] = 0
                plan.write(flat)

        replay = place.capture(work)
        for _ in "ab":
            for flat, *_ in made:
                flat[:] = 1
            replay()
            for flat, plan, want in made:
                same(place, flat, want, (plan, dtype))
