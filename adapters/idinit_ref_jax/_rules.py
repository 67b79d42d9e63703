"""Operations that move, add and combine tensors: what becomes of each kind of value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from ._axes import Atom, View
from ._notes import (
    CONSTANT,
    INTEGER,
    NUMBER,
    Cut,
    Fold,
    Made,
    Notes,
    Signal,
    Track,
    Value,
    is_floating,
)

__all__ = [
    "add", "add_up", "concatenate", "cut", "done_by", "dtype_of", "move", "multiply", "other",
    "pad", "result", "same", "scale", "scatter_add", "shape_of", "slice_", "split",
]  # fmt: skip

_PIECES = {"concatenate", "pad"}
_DONE = {
    "mul": "multiplied by", "div": "divided by", "add": "added to", "sub": "subtracted with",
    "select_n": "masked by", "dot_general": "multiplied as a matrix by",
}  # fmt: skip
_PRODUCTS = {"dot_general", "ragged_dot_general", "conv_general_dilated"}
_MOST = 4  # as many results are followed at once


def shape_of(var: Any) -> tuple[int, ...]:
    """Return the shape of a variable."""
    return tuple(getattr(var.aval, "shape", ()))


def dtype_of(var: Any) -> Any:
    """Return the dtype of a variable; that of a token, say, is no number's."""
    return getattr(var.aval, "dtype", jnp.dtype(bool))


def other(notes: Notes, eqn: JaxprEqn, given: list[Value]) -> list[Value]:
    """Walk an operation of which nothing is known but its inputs."""
    out = [result(notes, eqn.primitive.name, given, var) for var in eqn.outvars]
    if len(out) == 1 and isinstance(out[0], Made):
        shape, views = shape_of(eqn.outvars[0]), eqn.primitive.name in _PIECES
        made = Made({})
        for value, var in zip(given, eqn.invars, strict=True):
            if isinstance(value, Made) and eqn.primitive.name == "stack":
                at = eqn.params["axis"]
                made = made.join(
                    value.moved(
                        lambda view, at=at: replace(  # type: ignore[misc]  # no type in a default
                            view, axes=(*view.axes[:at], (), *view.axes[at:])
                        )
                    )
                )
            elif isinstance(value, Made):
                rest = [operand for operand in given if operand is not value]
                moved = value.moved(_spread(shape_of(var), shape)).noted(done_by(eqn, rest))
                made = made.join(value if views else moved)
        return [made]
    if len(out) == 1 and isinstance(out[0], Signal):
        signals = [value for value in given if isinstance(value, Signal)]
        halves = frozenset().union(*(signal.halves for signal in signals))
        return [replace(out[0], halves=halves, tracks=_faded(eqn, given))]
    return out


def done_by(eqn: JaxprEqn, rest: Sequence[Value]) -> Callable[[str], str]:
    """Return what an operation does to a parameter of one operand, given the other operands."""
    names = [name for value in rest if isinstance(value, Made) for name in value.parts]
    kind = eqn.primitive.name

    def done(name: str) -> str:
        if not rest or kind not in _DONE:
            return f"changed by {kind}"
        if name in names:
            return f"{_DONE[kind]} what is computed from it"
        if any(isinstance(value, Signal) for value in rest):
            return f"{_DONE[kind]} what is computed from the inputs"
        return f"{_DONE[kind]} {', '.join(names) or 'a constant array'}"

    return done


def result(notes: Notes, base: str, given: Sequence[Value], var: Any, kind: Any = "other") -> Value:
    """Return a value that depends on the given ones."""
    made = [value for value in given if isinstance(value, Made)]
    signals = [value for value in given if isinstance(value, Signal)]
    if not signals and INTEGER not in given:
        lost = Made({})
        for value in made:
            lost = lost.join(value.moved(lambda view: None))
        return lost if made else CONSTANT
    for signal in signals:
        signal.spend()
    node = None
    if is_floating(dtype_of(var)):
        kind = kind if signals else "input"
        names = [signal.node for signal in signals]
        node = notes.emit(kind, base, names, shape_of(var))
    for value in made:
        notes.use(value, "other", node)
    return INTEGER if node is None else Signal(node)


def same(notes: Notes, eqn: JaxprEqn, value: Value, source: Any, var: Any) -> Value:
    """Walk what changes no number, or only rounds it."""
    stops = eqn.primitive.name == "stop_gradient"
    if isinstance(value, Made) and stops:
        return Made({name: part._replace(stopped=True) for name, part in value.parts.items()})
    if isinstance(value, Signal) and (stops or not is_floating(dtype_of(var))):
        out = result(notes, eqn.primitive.name, [value], var)
        if isinstance(out, Signal):
            notes.stop(out)
        return out
    if value == INTEGER and is_floating(dtype_of(var)):
        start = notes.start("cast", shape_of(var))
        return replace(start, picks=dtype_of(source) == jnp.bool_)
    return value


def add(notes: Notes, eqn: JaxprEqn, given: list[Value]) -> list[Value]:
    """Walk an elementwise sum."""
    (a, b), (var,) = given, eqn.outvars
    if isinstance(a, Signal) and isinstance(b, Signal):
        tracks = a.fresh + b.fresh  # two results in one sum, as the gates of an LSTM
        if not len(a.fresh) == len(b.fresh) == 1:
            tracks = ()
            a.spend()
            b.spend()
        names = (a.narrow or a.node, b.narrow or b.node)
        node = notes.emit("add", "add", names, shape_of(var))
        return [Signal(node, tracks, a.halves | b.halves)]
    own = shape_of(eqn.invars[isinstance(a, Made)])
    if isinstance(a, Made):
        a, b = b, a
    is_even = own == shape_of(var)
    if is_even and isinstance(a, Signal) and isinstance(b, Made) and _is_bias(b, a.fresh):
        notes.use(b, "bias", a.node)
        return [replace(a, tracks=a.fresh)]
    out = other(notes, eqn, given)
    if isinstance(out[0], Made):
        parts = out[0].parts.items()
        return [Made({name: part._replace(added=True) for name, part in parts})]
    return out


def scatter_add(notes: Notes, eqn: JaxprEqn, given: list[Value]) -> list[Value]:
    """Walk a scatter-add: of one update as large as what it is added to, it is a sum."""
    whole, _, update = given
    window = eqn.params["dimension_numbers"].update_window_dims
    shape = shape_of(eqn.invars[0])
    is_full = shape == shape_of(eqn.invars[2]) and len(window) == len(shape)
    if is_full and isinstance(whole, Signal) and isinstance(update, Signal):
        return add(notes, eqn, [whole, update])
    return other(notes, eqn, given)


def scale(notes: Notes, eqn: JaxprEqn, given: list[Value]) -> list[Value]:
    """Walk a product with one number, a quotient by one, or a change of sign."""
    value, (var,) = given[0], eqn.outvars
    rest = given[1:]
    if eqn.primitive.name == "mul" and value == NUMBER:
        value, rest = rest[0], [value]
    if rest in ([], [NUMBER]) and shape_of(var) in (shape_of(at) for at in eqn.invars):
        if isinstance(value, Made):
            return [value]
        if isinstance(value, Signal):
            node = notes.emit("other", eqn.primitive.name, (value.node,), shape_of(var))
            return [replace(value, node=node, narrow=None, origin=None, picks=False)]
    out = other(notes, eqn, given)
    for at in (0, 1) if rest else ():
        made, by = given[at], given[1 - at]
        is_scaled = isinstance(by, Signal) and (by.is_number or not shape_of(eqn.invars[1 - at]))
        if is_scaled and isinstance(made, Made) and isinstance(out[0], Signal):
            # a norm by power iteration, say, from a state among the inputs
            return [replace(out[0], member=made.noted(done_by(eqn, [by])))]
    return out


def multiply(notes: Notes, eqn: JaxprEqn, given: list[Value]) -> list[Value]:
    """Walk an elementwise product: perhaps one half of a result gates the other."""
    a, b = given
    if isinstance(a, Signal) and isinstance(b, Signal):
        for operation, half in a.halves:
            if any(operation is of and half != rest for of, rest in b.halves):
                operation.gated = True
    return scale(notes, eqn, given)


def concatenate(notes: Notes, eqn: JaxprEqn, given: list[Value]) -> list[Value]:
    """Walk a concatenation. Parts that are put together again (rotary) were no blocks."""
    halves = {half for value in given if isinstance(value, Signal) for half in value.halves}
    for operation, half in halves:
        if any(operation is of and half != rest for of, rest in halves):
            operation.whole = True
    out, start, axis = other(notes, eqn, given), 0, eqn.params["dimension"]
    for value, var in zip(given, eqn.invars, strict=True):
        rest = [part for part in given if part is not value]
        if isinstance(value, Signal) and rest and isinstance(out[0], Signal):
            around = [part.origin for part in rest if isinstance(part, Signal)]
            if around == [value.node] * len(rest):  # padding, circular or by reflection
                by = [start * (at == axis) for at in range(len(shape_of(var)))]
                return [replace(out[0], shift=_shifted(value, by))]
        start += shape_of(var)[axis]
    return out


def pad(notes: Notes, eqn: JaxprEqn, given: list[Value]) -> list[Value]:
    """Walk a padding."""
    (out,) = other(notes, eqn, given)
    if not isinstance(out, Signal) or not isinstance(given[0], Signal):
        return [out]
    config = eqn.params["padding_config"]
    shift = _shifted(given[0], [low for low, *_ in config], [1 + gap for *_, gap in config])
    tracks = given[0].fresh
    fold = Fold(tracks[0], shift) if len(tracks) == 1 and tracks[0].operation.space else None
    return [replace(out, shift=shift, fold=fold)]


def add_up(notes: Notes, eqn: JaxprEqn, given: list[Value]) -> list[Value]:
    """Walk a sum along axes: of the periods of a circle it moves where a convolution began."""
    (value,), (out,), (var,) = given, other(notes, eqn, given), eqn.outvars
    fold = value.fold if isinstance(value, Signal) else None
    if not isinstance(out, Signal) or fold is None or eqn.params["axes"] != (fold.axis,):
        return [out]
    operation, view = fold.track.operation, fold.track.view
    period, where = shape_of(var)[fold.axis], operation.space.index(fold.axis)
    by = (fold.low[fold.axis] + period // 2) % period - period // 2
    left = list(operation.left or ())
    left[where] += by
    operation.left = tuple(left)
    axes = list(view.axes)
    axes[fold.axis] = (Atom(-1, 1, period),)
    track = fold.track._replace(view=replace(view, axes=tuple(axes)))
    return [replace(out, tracks=(track,), fold=Fold(track, fold.low))]


def _folding(fold: Fold | None, old: Sequence[int], new: Sequence[int]) -> Fold | None:
    """Return the fold of a reshape that cuts one axis at a period."""
    if fold is None:
        return None
    for axis in fold.track.operation.space:
        if (*old[:axis], *old[axis + 1 :]) == (*new[:axis], *new[axis + 2 :]):
            return fold._replace(axis=axis)
    return None


def _shifted(
    signal: Signal, by: Sequence[int], times: Sequence[int] | None = None
) -> tuple[int, ...]:
    before = signal.shift or (0,) * len(by)
    places = zip(by, before, times or (1,) * len(by), strict=True)
    return tuple(int(step + old * gap) for step, old, gap in places)


def move(notes: Notes, eqn: JaxprEqn, given: list[Value]) -> list[Value]:
    """Walk what moves numbers, and computes none."""
    value, kind, params = given[0], eqn.primitive.name, eqn.params
    old, new = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])

    def moved(view: View) -> View | None:
        if kind == "transpose":
            return view.transpose(params["permutation"])
        if kind == "broadcast_in_dim":
            return view.broadcast(new, params["broadcast_dimensions"], old)
        if kind == "rev":
            return view.flip(params["dimensions"])
        if kind == "reshape" and params.get("dimensions"):
            order = params["dimensions"]
            return view.transpose(order).reshape([old[axis] for axis in order], new)
        return view.reshape(old, new)

    if isinstance(value, Made):
        return [value.moved(moved)]
    if not isinstance(value, Signal):
        return [value]
    views = [(track, moved(track.view)) for track in value.tracks]
    for track, view in views:
        is_lost = view is None and not (track.is_part or track.is_faded)
        track.operation.whole |= is_lost
    tracks = tuple(track._replace(view=view) for track, view in views if view is not None)
    node, narrow = value.node, None
    if kind in ("rev", "transpose") or old != new:
        node = notes.emit("other", kind, (node,), new)
    if kind == "broadcast_in_dim":
        spread = [size for size in old if size != 1] != [size for size in new if size != 1]
        narrow = value.node if spread else value.narrow
        value = replace(value, is_number=value.is_number or prod(old) == 1)
    origin = (value.origin or value.node) if kind == "rev" else None
    fold = _folding(value.fold, old, new) if kind == "reshape" else None
    new_value = replace(value, node=node, tracks=tracks, narrow=narrow, origin=origin, shift=())
    new_value = replace(new_value, fold=fold)
    return [replace(new_value, member=value.member.moved(moved) if value.member else None)]


def slice_(notes: Notes, eqn: JaxprEqn, given: list[Value]) -> list[Value]:
    """Walk a slice with fixed ends."""
    params, old = eqn.params, shape_of(eqn.invars[0])
    steps = params["strides"] or (1,) * len(old)
    spans = list(zip(params["start_indices"], params["limit_indices"], steps, strict=True))
    return [cut(notes, given[0], spans, old, eqn, eqn.outvars[0])]


def split(notes: Notes, eqn: JaxprEqn, given: list[Value]) -> list[Value]:
    """Walk a split along one axis."""
    axis, old = eqn.params["axis"], shape_of(eqn.invars[0])
    ends = pairwise(accumulate(map(int, eqn.params["sizes"]), initial=0))
    return [
        cut(
            notes,
            given[0],
            [(*span, 1) if at == axis else (0, size, 1) for at, size in enumerate(old)],
            old,
            eqn,
            var,
        )
        for span, var in zip(ends, eqn.outvars, strict=True)
    ]


def cut(
    notes: Notes,
    value: Value,
    spans: Sequence[tuple[int, int, int]],
    old: Sequence[int],
    eqn: JaxprEqn,
    var: Any,
) -> Value:
    parted = [axis for axis, size in enumerate(old) if spans[axis] != (0, size, 1)]

    def moved(view: View) -> View | None:
        new: View | None = view
        for axis in parted:
            new = None if new is None else new.slice(axis, *spans[axis])
        return new

    if isinstance(value, Made):
        return value.moved(moved)
    if not isinstance(value, Signal):
        return value
    tracks, halves = [], set(value.halves)
    for track in value.tracks:
        view, own = moved(track.view), track.operation
        touched = [at for at in parted if any(atom.axis >= 0 for atom in track.view.axes[at])]
        if touched and not (track.is_part or track.is_faded):
            place = None if view is None else _place(track.view, view, touched)
            if place is None:
                own.whole = True
            else:
                own.cuts.add(place)
                halves.add((own, place))
        if view is not None:
            is_part = track.is_part or bool(touched)
            tracks.append(track._replace(view=view, is_part=is_part))
    node = notes.emit("other", eqn.primitive.name, (value.node,), shape_of(var))
    return Signal(node, tuple(tracks), frozenset(halves), origin=value.node)


def _place(old: View, new: View, touched: list[int]) -> Cut | None:
    """Return which part of the outputs a slice takes, or None where it is no block."""
    if len(touched) != 1 or not new.axes[touched[0]]:
        return None
    atom = new.axes[touched[0]][0]
    inner = old.axes[touched[0]][1:]
    run = atom.size * atom.step
    slower = any(
        other.axis == atom.axis and abs(other.step) > atom.step
        for axis in old.axes
        for other in axis
        if other != old.axes[touched[0]][0]
    )
    plain = atom.step > 0 and all(other.axis == atom.axis for other in inner)
    return (atom.axis, atom.start, atom.start + run) if plain and not slower else None


def _spread(old: Sequence[int], new: Sequence[int]) -> Callable[[View], View | None]:
    """Return what an elementwise operation does to the axes of an operand."""
    fits = len(old) == len(new) and all(a in (1, b) for a, b in zip(old, new, strict=True))
    return lambda view: view.broadcast(new, range(len(new)), old) if fits else None


def _faded(eqn: JaxprEqn, given: Sequence[Value]) -> tuple[Track, ...]:
    """Return whose axes the result of an elementwise operation still has."""
    if eqn.primitive.name in _PRODUCTS:
        return ()
    shape = shape_of(eqn.outvars[0])
    pairs = zip(given, eqn.invars, strict=True)
    tracks = [
        track._replace(is_faded=True)
        for value, var in pairs
        if isinstance(value, Signal) and shape_of(var) == shape
        for track in value.tracks
    ]
    return tuple(tracks) if len(tracks) <= _MOST else ()


def _is_bias(made: Made, tracks: Sequence[Track]) -> bool:
    """Whether what is added to the result of a weight varies along its outputs alone."""
    for part in made.parts.values():
        if part.view is None:
            return False
        for axis, atoms in enumerate(part.view.axes):
            if any(atom.axis >= 0 and atom.size > 1 for atom in atoms) and not all(
                track.view.axes[axis] and all(at.axis >= 0 for at in track.view.axes[axis])
                for track in tracks
            ):
                return False
    return bool(tracks)
