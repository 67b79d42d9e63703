"""R1 and R2 of the specification, measured on a model, and what its first steps do.

R1: where zeroing all weight operations after the source of a skip gives the skip, zeroing the
weights in role zero alone does so too. R2: with the other zero weights at 0, each changes to first
order the add that it ends.
"""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from array_api_compat import numpy as np_namespace
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from docs.evidence._zoo_flow import Add, Flow
from docs.evidence._zoo_tape import Tape
from idinit_ref.core.layout import split_axes

Row = dict[str, Any]


# Roles --------------------------------------------------------------------------------------------


def roles(
    model: nn.Module, given: Any, found: dict[str, str], parts: dict[str, Tensor] | None = None
) -> Row:
    """Measure R1 and R2 of the roles of a model's parameters.

    `parts` are the entries that have the role zero, as 1, for weights of which only some have.
    """
    learns = _learning(model, given)
    with torch.no_grad(), _in_steps():
        tape = Tape(model, given)
        with tape:
            model(**given) if isinstance(given, dict) else model(*given)
    flow = Flow(tape)
    zeros = {
        tape.parameters[name]: (parts or {}).get(name, torch.ones(()))
        for name, role in found.items()
        if role == "zero"
    }
    off = {slot for slot in tape.parameters.values() if _is_off(tape.leaves[slot])}
    wanted: dict[int, set[int]] = {}
    for add in (*flow.adds, *flow.others):
        wanted.setdefault(add.step, set()).add(add.skip)
        wanted.setdefault(add.reader, set()).add(add.branch)
    vanished: dict[tuple[int, int], bool] = {}  # of a step and what it reads
    finite: list[bool] = []

    def watch(step: int, args: list[Any]) -> None:
        for node in wanted.get(step, ()):
            operand = _operand(tape, step, node, args)
            vanished[step, node] = not bool(operand.any())
            finite.append(bool(operand.isfinite().all()))

    with torch.no_grad():
        for size in (1, 0.1, 0.01):  # a spline, say, is not defined for all that large weights give
            values = _random(tape, found, size)
            at_zero = values | {
                slot: values[slot] * (1 - zeros.get(slot, torch.ones(()))).to(values[slot].dtype)
                for slot in {*zeros, *off} & {*values}
            }
            finite.clear()
            tape.run(at_zero, watch=watch)
            if all(finite):
                break
        missed, true = [], []
        for add in flow.adds:
            if add.plain and _vanishes(tape, add, values, add.weights):
                true.append(add)
                learned = [k for k in add.weights if tape.nodes[k].weights & learns]
                # Weights that never learn are kept as they are, as frozen ones.
                if vanished[add.reader, add.branch] or not _vanishes(tape, add, values, learned):
                    continue
                missed.append(_told(tape, add))
        others = [
            add
            for add in flow.others
            if (add.plain and _vanishes(tape, add, values, add.weights))
            or (
                vanished[add.reader, add.branch] and not (add.plain or vanished[add.step, add.skip])
            )
        ]
    projections = [
        add
        for add in flow.adds
        if not add.plain and vanished[add.reader, add.branch] and not vanished[add.step, add.skip]
    ]
    untold = sorted(
        {
            _told(tape, add)
            for add in flow.adds
            if not add.plain
            and not vanished[add.reader, add.branch]
            and not vanished[add.step, add.skip]
        }
    )
    ending = [*true, *projections, *others]
    moved, idle = _moved(tape, ending, at_zero, values, zeros)
    ended = {name for add in ending for k in add.weights for name in tape.nodes[k].weights}
    read = {name for node in tape.nodes if 0 not in node.shape for name in node.weights}
    names = [name for name, role in found.items() if role == "zero"]
    empty = {name for node in tape.nodes for name in node.weights} - read  # of no rows, say
    return {
        "steps": len(tape.steps),
        "adds": len(true),
        "projections": len(projections),
        "zeros": len(names),
        "missed": missed,
        "vain": [
            name for name in names if name in ended and name not in moved and name not in idle
        ],
        "false": [name for name in names if name not in ended | empty],
        "idle": len(idle | empty.intersection(names)),
        "untold": untold,
    }


@contextlib.contextmanager
def _in_steps() -> Iterator[None]:
    """Let attention run in single steps, which all have derivatives, and not in one fused step."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _operand(tape: Tape, step: int, node: int, args: list[Any]) -> Tensor:
    """Return what an add reads of one of the two nodes that it sums."""
    given = args[0] if isinstance(args[0], list) else args  # a stack has one list
    operand: Tensor = given[tape.nodes[tape.steps[step].nodes[0]].inputs.index(node)]
    return operand


def _told(tape: Tape, add: Add) -> str:
    last = tape.nodes[max(add.weights)]
    return f"{add.where or 'the model'}: an add of {', '.join(sorted(last.weights))} and others"


def _learning(model: nn.Module, given: Any) -> set[str]:
    """Return the parameters to which the outputs have a gradient: none that is behind a detach."""
    grads, _ = _gradients(model, given)
    return {*grads} or {name for name, _ in model.named_parameters()}


def _random(tape: Tape, found: dict[str, str], size: float) -> dict[int, Tensor]:
    """Return weights drawn at random, biases and means 0, and nothing else that is all 0."""
    generator = torch.Generator().manual_seed(0)
    values = {}
    for name, slot in tape.parameters.items():
        old = tape.leaves[slot]
        if not old.is_floating_point():
            continue
        role = found.get(name, "keep")
        if role in ("transit", "zero"):
            fan = max(1, old.numel() // max(1, old.shape[0]))
            new = size * torch.randn(old.shape, generator=generator) / fan**0.5
        elif role == "bias" or _is_shift(name, old):
            new = torch.zeros(old.shape)
        elif not old.any():
            new = 0.5 + torch.rand(old.shape, generator=generator)
        else:
            new = old.detach().clone()
        values[slot] = new.to(old.dtype)
    for name, slot in tape.buffers.items():
        old = tape.leaves[slot]
        if old.is_floating_point() and re.search(r"(running_mean|bias)$", name):
            values[slot] = torch.zeros_like(old)
        elif old.is_floating_point() and old.dim() > 1 and not old.any():
            values[slot] = torch.randn(old.shape, generator=generator)  # a codebook, not yet filled
    return values


def _is_off(old: Tensor) -> bool:
    """Whether a scale is 0 already, as the model's authors start a branch."""
    return old.dim() < 2 and not old.any()


def _is_shift(name: str, tensor: Tensor) -> bool:
    return name.endswith(("bias", "beta")) and tensor.dim() == 1


def _vanishes(tape: Tape, add: Add, values: dict[int, Tensor], nodes: Iterable[int]) -> bool:
    """Whether the branch is zero once these weight operations after the source are.

    A skip that is zero itself, whatever the weights are, is none: the stream starts at the branch.
    """
    found = {}

    def watch(step: int, args: list[Any]) -> None:
        for reader, node in ((add.reader, add.branch), (add.step, add.skip)):
            if step == reader:
                found[node] = bool(_operand(tape, step, node, args).any())

    zeroed = {tape.nodes[k].step for k in nodes}
    needed = tape.above[add.node]
    tape.run(values, until=add.step, zeroed=zeroed, needed=needed, watch=watch)
    return found[add.skip] and not found[add.branch]


def _moved(
    tape: Tape,
    adds: list[Add],
    at_zero: dict[int, Tensor],
    values: dict[int, Tensor],
    zeros: dict[int, Tensor],
) -> tuple[set[str], set[str]]:
    """Return the zero weights that change an add to first order, and those that never could."""
    by_slot = {slot: name for name, slot in tape.parameters.items() if slot in zeros}
    found: list[set[str]] = []
    ends: set[str] = set()
    for start in (at_zero, values):
        left = set(by_slot.values()) - (found[0] if found else set())
        if not left:
            found.append(set())
            continue
        leaves = {
            slot: (t.clone().requires_grad_() if slot in zeros else t) for slot, t in start.items()
        }
        outs: dict[int, Tensor] = {}
        steps: dict[int, list[Add]] = {}
        for add in adds:
            steps.setdefault(add.reader, []).append(add)

        def watch(step: int, args: list[Any], outs: Any = outs, steps: Any = steps) -> None:
            for add in steps.get(step, ()):
                outs[id(add)] = _operand(tape, step, add.branch, args)

        with torch.enable_grad():
            tape.run(leaves, watch=watch)
            moved: set[str] = set()
            for add in adds:
                names = {n for k in add.weights for n in tape.nodes[k].weights}
                slots = [slot for slot, n in by_slot.items() if n in names and n in left - moved]
                ends |= {by_slot[slot] for slot in slots}
                branch = outs[id(add)]
                if not slots or not branch.requires_grad:
                    continue
                draw = torch.randn(branch.shape, generator=torch.Generator().manual_seed(1))
                grads = torch.autograd.grad(
                    (branch * draw.to(branch.dtype)).sum(),
                    [leaves[slot] for slot in slots],
                    allow_unused=True,
                    retain_graph=True,
                )
                moved |= {
                    by_slot[s]
                    for s, g in zip(slots, grads, strict=True)
                    if g is not None and (g * zeros[s]).any()
                }
        found.append(moved)
    found[0] |= _bent(tape, adds, at_zero, values, set(by_slot.values()) & ends - found[0])
    return found[0], ends - found[0] - found[1]


def _bent(
    tape: Tape,
    adds: list[Add],
    at_zero: dict[int, Tensor],
    values: dict[int, Tensor],
    names: set[str],
) -> set[str]:
    """Return the weights that change an add in proportion: ReLU has no derivative at 0."""
    found = set()
    for name in names:
        slot = tape.parameters[name]
        sums = {a.reader: a for a in adds if any(name in tape.nodes[k].weights for k in a.weights)}
        sizes: dict[int, list[float]] = {step: [] for step in sums}

        def watch(step: int, args: list[Any], sums: Any = sums, sizes: Any = sizes) -> None:
            if step in sums:
                branch = _operand(tape, step, sums[step].branch, args)
                sizes[step].append(float(branch.detach().double().norm()))

        with torch.no_grad():
            for by in (0, 1e-4, 2e-4):
                moved = at_zero[slot] + by * (values[slot] - at_zero[slot])
                tape.run(at_zero | {slot: moved}, watch=watch, double=True)
        if any(zero == 0 < one and 1.5 < two / one < 2.5 for zero, one, two in sizes.values()):
            found.add(name)
    return found


# The first steps ----------------------------------------------------------------------------------


def outputs(model: nn.Module, given: Any) -> list[Tensor]:
    """Return all floating results of a forward pass."""
    out = model(**given) if isinstance(given, dict) else model(*given)
    if hasattr(out, "to_tuple"):
        out = out.to_tuple()
    return [t for t in tree_flatten(out)[0] if isinstance(t, Tensor) and t.is_floating_point()]


def _gradients(model: nn.Module, given: Any) -> tuple[dict[str, Tensor], bool]:
    """Return the gradients of the parameters that have one, and whether all is finite."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(2)
    results = outputs(model, given)
    draws = torch.Generator().manual_seed(3)
    loss = sum(
        (t * torch.randn(t.shape, generator=draws).to(t.dtype)).sum()
        for t in results
        if t.requires_grad
    )
    if isinstance(loss, Tensor):  # a codebook's indices have no gradient
        loss.backward()
    finite = all(bool(t.isfinite().all()) for t in results)
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    finite &= all(bool(g.isfinite().all()) for g in grads.values())
    return grads, finite


def _dead(model: nn.Module, given: Any) -> tuple[set[str], bool]:
    """Return the parameters whose gradient is 0, and whether all is finite.

    Not those that have none: what a route has left out, as an expert without tokens, is not dead.
    """
    grads, finite = _gradients(model, given)
    return {name for name, g in grads.items() if not g.any()}, finite


def steps(model: nn.Module, given: Any) -> Row:
    """Return who has no gradient at the start and after one step of AdamW."""
    dead, finite = _dead(model, given)
    torch.optim.AdamW(model.parameters(), lr=1e-3).step()
    later, still = _dead(model, given)
    return {"dead": dead, "later": later, "finite": finite, "finite_later": still}


def other(given: Any, ids: bool = True) -> Any:
    """Return other inputs of the same form; without `ids` other numbers alone."""
    generator = torch.Generator().manual_seed(5)

    def changed(value: Any, name: str = "") -> Any:
        if not isinstance(value, Tensor) or "mask" in name or "grid" in name or "type" in name:
            return value
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            if name == "flattened_patches":  # which begin with their row and column
                noise[..., :2] = 0
            return value + noise
        changes = ids and "ids" in name
        return torch.where(value > 0, (value - 1).clamp(min=1), value) if changes else value

    if isinstance(given, dict):
        return {name: changed(value, name) for name, value in given.items()}
    return tree_map(changed, given)


def constant(model: nn.Module, given: Any) -> bool:
    """Whether the outputs are the same for other inputs, and have no gradient to them either.

    A branch may be smaller than what its skip's dtype resolves.
    """
    torch.manual_seed(4)
    with torch.no_grad():
        first = outputs(model, given)
        try:
            torch.manual_seed(4)
            second = outputs(model, other(given))
        except ValueError:  # a token marks the place of an image
            torch.manual_seed(4)
            second = outputs(model, other(given, ids=False))
    if any(
        a.shape != b.shape or not torch.equal(a, b) for a, b in zip(first, second, strict=False)
    ):
        return False
    leaves, spec = tree_flatten(given)
    floats = [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]
    twins = {id(x): x.detach().clone().requires_grad_() for x in floats}
    loss = sum(
        out.square().sum()
        for out in outputs(model, tree_unflatten([twins.get(id(x), x) for x in leaves], spec))
        if out.requires_grad
    )
    if not floats or not isinstance(loss, Tensor):
        return True
    found = torch.autograd.grad(loss, list(twins.values()), allow_unused=True)
    return not any(gradient is not None and gradient.any() for gradient in found)


def state(model: nn.Module) -> dict[str, Any]:
    """Return what `init_` has to leave alone."""
    return {
        "PyTorch's random numbers": torch.get_rng_state(),
        "NumPy's random numbers": np.random.get_state()[1].copy(),  # type: ignore[union-attr]
        "Python's random numbers": random.getstate(),
        "training flags": [module.training for module in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        **{f"buffer {name}": b.detach().clone() for name, b in model.named_buffers()},
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Name what is different."""

    def same(one: Any, two: Any) -> bool:
        if isinstance(one, Tensor):
            return (
                torch.equal(one.nan_to_num(), two.nan_to_num()) if one.shape == two.shape else False
            )
        return bool(np.array_equal(one, two)) if isinstance(one, np.ndarray) else bool(one == two)

    return [key for key in before if key not in after or not same(before[key], after[key])]


def judge(make: Callable[[], tuple[nn.Module, Any]]) -> Row:
    """Measure everything of one model; `make` makes it anew, with the same numbers."""
    import idinit_ref_torch as irt

    model, given = make()
    row: Row = {"parameters": sum(p.numel() for p in model.parameters())}
    before = state(model)
    try:
        report = irt.init_(model, given)
    except irt_errors() as problem:
        return {**row, "verdict": "refused", "why": " ".join(str(problem).split())[:300]}
    effects = changed(before, state(model))
    lost = [e.name for e in report.entries if e.role == "keep" and len(e.shape) > 1]
    row |= {"roles": dict(_counts(report)), "kept": len(lost), "effects": effects}
    row["constant"] = int(constant(model, given))
    ours = steps(model, given)
    fresh, given = make()
    row |= roles(fresh, given, *_as_held(fresh, report.roles, _parts(report)))
    if row["constant"]:
        row["constant"] = int(not constant(fresh, given))
    theirs = steps(fresh, given)
    shapes = {e.name: e.shape for e in report.entries}
    newly = sorted(ours["later"] - theirs["later"])
    row |= {
        "finite": int((ours["finite"] and ours["finite_later"]) or not theirs["finite"]),
        "dead_at_start": len(ours["dead"] - theirs["dead"]),
        "dead": newly,
        "dead_matrices": [name for name in newly if len(shapes[name]) > 1],
    }
    if row["dead_matrices"]:
        model, given = make()
        irt.init_(model, given)
        told = _explained(model, given)
        row["explained"] = [name for name in row["dead_matrices"] if name in told]
        row["dead_matrices"] = [name for name in row["dead_matrices"] if name not in told]
    row["alive"] = is_alive(row, len(shapes))
    return {**row, **verdict(row)}


def _explained(model: nn.Module, given: Any) -> set[str]:
    """Return the parameters of which an audit says what they wait for, and that it will move."""
    import idinit_ref_torch as irt

    try:
        return {one.name for one in irt.audit(model, given, steps=3).dead if one.wakes}
    except irt_errors():  # of what runs in training alone
        return set()


def is_alive(row: Row, tensors: int) -> int:
    """Whether the output depends on the input, and nearly all parameters have a gradient."""
    return int(bool(row["finite"]) and not row["constant"] and len(row["dead"]) < tensors / 10)


def _parts(report: Any) -> dict[str, Tensor]:
    """Return which entries have the role zero, as 1, in weights with several roles."""
    found = {}
    for entry in report.entries:
        if entry.plan is not None and not isinstance(entry.plan.role, str):
            plan = entry.plan
            held = np.zeros(plan.shape)
            for place, role in plan.parts:
                held[place] = role == "zero"
            axes = entry.axes or plan.layout
            held = split_axes(np_namespace, held, entry.parted or entry.shape, axes)
            found[entry.name] = torch.from_numpy(held.reshape(entry.shape).copy())
    return found


def _as_held(
    model: nn.Module, found: dict[str, str], parts: dict[str, Tensor]
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return roles in which a zero weight under weight norm has magnitude 0, as it is written.

    So have the entries of a weight of which only parts are zero.
    """
    names, held = {id(p): name for name, p in model.named_parameters()}, dict(found)
    parts = dict(parts)
    for module in model.modules():
        own, steps_of = module._parameters, getattr(module, "parametrizations", {})
        pairs = [(own.get(f"{key[:-2]}_g"), v) for key, v in own.items() if key.endswith("_v")]
        pairs += [
            (steps.original0, steps.original1)
            for steps in steps_of.values()
            if type(steps[0]).__name__ == "_WeightNorm"
        ]
        for g, v in pairs:
            if g is not None and held.get(names.get(id(v), "")) == "zero":
                held |= {names[id(g)]: "zero", names[id(v)]: "transit"}
                if names[id(v)] in parts:
                    summed = [axis for axis, size in enumerate(g.shape) if size == 1]
                    parts[names[id(g)]] = parts.pop(names[id(v)]).amax(summed, keepdim=True)
    return held, parts


def irt_errors() -> tuple[type[Exception], ...]:
    """Return what `init_` may raise."""
    from idinit_ref.errors import IDInitError

    return (IDInitError,)


def _counts(report: Any) -> Iterator[tuple[str, int]]:
    held = list(report.roles.values())
    yield from ((role, held.count(role)) for role in ("transit", "zero", "bias", "keep"))


def verdict(row: Row) -> Row:
    """Say whether a model is right, and if not why."""
    faults = []
    for key, words in (
        ("missed", "branches that the zero weights do not end (R1)"),
        ("vain", "zero weights that change nothing to first order (R2)"),
        ("false", "zero weights that end no residual add"),
        ("dead_matrices", "matrices without gradient after a step"),
        ("effects", "side effects"),
    ):
        if row[key]:
            faults.append(f"{len(row[key])} {words}: {row[key][0]}")
    if row["constant"]:
        faults.append("the output does not depend on the input")
    if not row["finite"]:
        faults.append("not finite")
    return {"verdict": "wrong" if faults else "right", "why": "; ".join(faults)}
