"""What each PyTorch operation is: dense, a lookup, a move, a gate, or anything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from ._dense import DENSE
from ._geometry import Span, follow, groups_of
from ._record import Call, Data, Dense, Made, Recorder, Root, Signal, is_floating

__all__ = ["note"]

_aten = torch.ops.aten

# Of the tensors given to these only the shape, dtype or device counts.
_FRESH = {
    *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"),
    *("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "randint_like"),
}
_COPIES = {"clone", "_to_copy", "copy", "lift_fresh", "alias", "detach"}
_FAITHFUL = _COPIES | {
    "fake_quantize_per_tensor_affine_cachemask",
    "fake_quantize_per_channel_affine_cachemask",
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
}
_AS_VIEWS: Mapping[str, Callable[..., Any]] = {
    "_unsafe_view": _aten.view.default,
    "unsafe_split": _aten.split.Tensor,
    "unsafe_split_with_sizes": _aten.split_with_sizes.default,
    "_reshape_alias": lambda self, size, _: _aten.view.default(self, size),
}
_CUTS = {
    *("slice", "select", "split", "split_with_sizes", "unbind", "narrow", "chunk"),
    *("unsafe_split", "unsafe_split_with_sizes"),
}
_RESHAPES = {"view", "_unsafe_view", "_reshape_alias"}
_IDENTITIES = _COPIES | _RESHAPES | {"expand"}  # where the shape stays
_LOOKUPS = {"index", "index_select", "gather", "take"}
_PADS = {
    "constant_pad_nd",
    *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)),
}


def note(recorder: Recorder, call: Call) -> None:
    """Write down one operation that has run."""
    if call.name in _FRESH:
        return
    states = [recorder.state(tensor) for tensor in call.given]
    for state in states:
        if isinstance(state, Made):
            recorder.used.update(state.names)
    handler = _HANDLERS.get(call.name)
    if handler is None and call.is_view:
        handler = _move
    if handler is None or not handler(recorder, call):
        _generic(recorder, call)


# Lookups, moves, and the rest ---------------------------------------------------------------


def _embedding(recorder: Recorder, call: Call) -> bool:
    table, ids = call.args[:2]
    state = recorder.state(table)
    if not isinstance(state, Made):
        return False
    recorder.tables.update(state.names)
    if recorder.state(ids) is None:
        for out in filter(is_floating, call.results):
            recorder.set(out, Made(state.names, how=call.name))
    else:
        out = call.results[0]
        recorder.start(out, recorder.path or "embedding")
    return True


def _look_up(recorder: Recorder, call: Call) -> bool:
    table, out = call.args[0], call.results[0]
    state = recorder.state(table)
    if not isinstance(state, Made) or any(
        isinstance(recorder.state(tensor), Signal) for tensor in call.given
    ):
        return False
    by_data = any(isinstance(recorder.state(tensor), Data) for tensor in call.given)
    parts = state.parts if all(s.dim() == out.dim() for _, s in state.parts) else ()
    how = state.how if parts else call.name
    recorder.set(out, Made(state.names, parts, how, True, state.by_data or by_data))
    return True


def _move(recorder: Recorder, call: Call) -> bool:
    """Write a view or a copy of one tensor."""
    state = recorder.state(call.given[0]) if len(call.given) == 1 else None
    if isinstance(state, Made):
        _move_made(recorder, call, state)
    elif isinstance(state, Signal) and is_floating(call.results[0]):
        _move_signal(recorder, call, state)
    else:
        return False
    return True


def _move_made(recorder: Recorder, call: Call, state: Made) -> None:
    if state.groups or not state.parts:
        for out in call.results:
            recorder.finish(call, out, Made(state.names, how=state.how or call.name))
        return
    parts = [(name, _moved(call, seen)) for name, seen in state.parts]
    if call.name in _RESHAPES and len(parts) == 1 and parts[0][1] is None:
        with torch._C._DisableTorchDispatch():
            part = state.parts[0][0], state.parts[0][1].squeeze()
        groups = groups_of(part[1].shape, call.results[0].shape)
        if groups:  # axes are joined that do not lie side by side
            recorder.set(call.results[0], state._replace(parts=(part,), groups=groups))
            return
    for at, out in enumerate(call.results):
        views = tuple((name, seen[at]) for name, seen in parts if seen is not None)
        is_known = len(views) == len(parts)
        how = state.how or ("" if is_known else call.name)
        recorder.finish(call, out, state._replace(parts=views if is_known else (), how=how))


def _move_signal(recorder: Recorder, call: Call, state: Signal) -> None:
    roots = [(root, _moved(call, root.seen)) for root in state.roots]
    kept = [(root, new) for root, new in roots if new is not None]
    if len(kept) < len(roots):
        recorder.take([state])
        kept = []
    # The move that ends a layer: what the layer returns is its result, with its axes.
    is_last = bool(recorder.last and recorder.last.item is state.item)
    for at, out in enumerate(call.results):
        new_roots = tuple(_cut(call, root, new[at], is_last) for root, new in kept)
        if call.name in _IDENTITIES and is_last:
            state.item.shape = tuple(map(int, out.shape))
        is_same = call.name in _IDENTITIES and state.item.shape == tuple(out.shape)
        item = state.item if is_same else recorder.item("other", call.name, [state], out)
        left = state.left if is_same and call.name in _COPIES else ()
        recorder.finish(call, out, Signal(item, new_roots, left=left))


def _cut(call: Call, root: Root, new: Tensor, is_last: bool) -> Root:
    """Return a moved result, and note which of its outputs are cut off.

    What is cut inside of a single head, as rotary embeddings do, makes no matrix of its own.
    """
    dense, seen, is_head = root
    if call.name in _RESHAPES and not is_last and seen.dim():
        is_head = is_head or new.shape[-2:] == (1, seen.shape[-1])
    if call.name in _CUTS and not is_head:
        whole, part = dense.rows(seen), dense.rows(new)
        if whole and part and part != whole:
            dense.cuts.add((whole, part))
    return Root(dense, new, is_head)


def _moved(call: Call, seen: Tensor) -> list[Tensor] | None:
    """Return a shadow after a view or a copy, one for each result."""
    if call.name in _COPIES:
        return [seen]
    new = follow(_AS_VIEWS.get(call.name, call.func), seen, call.args, call.kwargs)
    return None if new is None else [new] if isinstance(new, Tensor) else list(new)


def _join(recorder: Recorder, call: Call) -> bool:
    """Write a concatenation of parameters; of anything else it is nothing special."""
    states = [recorder.state(tensor) for tensor in call.given]
    made = [state for state in states if isinstance(state, Made) and state.parts]
    if len(made) < len(states) or any(state.groups or state.how for state in made):
        return False
    names = tuple(dict.fromkeys(name for state in made for name in state.names))
    recorder.set(call.results[0], Made(names, tuple(p for state in made for p in state.parts)))
    return True


def _faithful(recorder: Recorder, call: Call) -> bool:
    state = recorder.state(call.args[0])
    if not isinstance(state, Made):
        return False
    recorder.set(call.results[0], state)
    return True


def _pad(recorder: Recorder, call: Call) -> bool:
    state = recorder.state(call.args[0])
    if not isinstance(state, Signal):
        return False
    recorder.take([state])
    pairs = zip_longest(call.args[1][::2], state.left, fillvalue=0)
    total = tuple(new + before for new, before in pairs)
    item = recorder.item("other", "pad", [state], call.results[0])
    recorder.finish(call, call.results[0], Signal(item, left=total))
    return True


def _glu(recorder: Recorder, call: Call) -> bool:
    state = recorder.state(call.args[0])
    if isinstance(state, Signal):
        axis = call.args[1] if len(call.args) > 1 else -1
        for dense, seen, _ in state.roots:
            with torch._C._DisableTorchDispatch():
                halves = [dense.rows(half) for half in seen.chunk(2, axis)]
            whole = dense.rows(seen)
            if whole and all(halves):
                dense.cuts.update((whole, half) for half in halves if half)
                dense.gated = True
        item = recorder.item("other", "glu", [state], call.results[0])
        recorder.finish(call, call.results[0], Signal(item))
    return isinstance(state, Signal)


def _times(recorder: Recorder, call: Call) -> bool:
    """Write a product: by a number it leaves a result packed, of two halves it is a gate.

    A parameter that is scaled by a number, as an equalised learning rate does, keeps its role.
    """
    states = [recorder.state(tensor) for tensor in call.given]
    signals = [state for state in states if isinstance(state, Signal)]
    made = [state for state in states if isinstance(state, Made)]
    pairs = list(zip(call.given, states, strict=True))
    if len(made) == 1 and not signals and not made[0].lookup and call.name != "clamp":
        is_scaled = all(t.numel() == 1 and s is None for t, s in pairs if s is not made[0])
        is_first = call.name == "mul" or recorder.state(call.args[0]) is made[0]
        if is_scaled and is_first and not call.kwargs:
            recorder.finish(call, call.results[0], made[0])
            return True
    numbers = all(t.numel() == 1 and s is None for t, s in pairs if not isinstance(s, Signal))
    if len(signals) == 1 and signals[0].roots and numbers:
        item = recorder.item("other", call.name, signals, call.results[0])
        recorder.finish(call, call.results[0], Signal(item, signals[0].roots))
        return True
    halves = [_halves(signal) for signal in signals]
    if len(halves) == 2:
        for dense, span in halves[0]:
            if any(dense is other and span != part for other, part in halves[1]):
                dense.gated = True
    return False


def _halves(signal: Signal) -> list[tuple[Dense, Span]]:
    if signal.half is not None:
        return [signal.half]
    pairs = [(dense, dense.rows(seen)) for dense, seen, _ in signal.roots]
    return [(dense, rows) for dense, rows in pairs if rows is not None]


def _generic(recorder: Recorder, call: Call) -> None:
    states = [recorder.settled(tensor) for tensor in call.given]
    signals = [state for state in states if isinstance(state, Signal)]
    made = [state for state in states if isinstance(state, Made)]
    names = tuple(dict.fromkeys(name for state in made for name in state.names))
    how = next((state.how for state in made if state.how), call.name)
    if signals or any(isinstance(state, Data) for state in states):
        recorder.others.update(names)
    recorder.take(signals)
    unique = list({id(signal.item): signal for signal in signals}.values())
    first: Signal | None = None
    for out in call.results:
        if not is_floating(out):
            if signals or any(isinstance(state, Data) for state in states):
                recorder.finish(call, out, Data())
            elif names:
                recorder.finish(call, out, Made(names, how=how))
        elif first is not None:  # the statistics of a normalisation, say
            recorder.finish(call, out, first)
        elif signals:
            item = recorder.item("other", call.name, unique, out)
            half = None
            if len(signals) == 1 and len(halves := _halves(signals[0])) == 1:
                half = halves[0] if item.shape == signals[0].item.shape else None
            first = Signal(item, half=half)
            recorder.finish(call, out, first)
        elif any(isinstance(state, Data) for state in states):
            recorder.finish(call, out, Signal(recorder.item("input", call.name, (), out)))
        elif names:  # entry by entry, say: then it is stored as its parameter is
            parts = [part for state in made for part in state.parts]
            parts = [(name, seen) for name, seen in parts if seen.shape == out.shape]
            recorder.finish(call, out, Made(names, tuple(parts), how))


_HANDLERS: dict[str, Callable[[Recorder, Call], bool]] = {
    **DENSE,
    **dict.fromkeys(("embedding", "_embedding_bag", "_embedding_bag_forward_only"), _embedding),
    **dict.fromkeys(_LOOKUPS, _look_up),
    **dict.fromkeys((*_COPIES, *_AS_VIEWS), _move),
    "cat": _join,
    **dict.fromkeys(_FAITHFUL - _COPIES, _faithful),
    **dict.fromkeys(_PADS, _pad),
    "glu": _glu,
    **dict.fromkeys(("mul", "div", "clamp"), _times),
}
