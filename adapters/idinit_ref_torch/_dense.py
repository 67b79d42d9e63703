"""Dense operations, convolutions, and what is added to their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from torch import Tensor, nn

from idinit_ref.graph import Kind

from ._geometry import axes_of, shadow, spell
from ._layers import is_layer, taps_of
from ._record import Call, Data, Dense, Item, Made, Recorder, Root, Signal, State, Use

__all__ = ["DENSE"]

_PRODUCTS = {  # the letters of the first and the second operand, where it is the weight
    "mm": ("OI", "IO"),
    "mv": ("OI", "I"),
    "dot": ("I", "I"),
    "bmm": ("EOI", "EIO"),
    "linear": ("", "OI"),
    "_grouped_mm": ("", "EIO"),
    "grouped_mm_fallback": ("", "EIO"),
}
_SUMS = {"addmm": "mm", "addmv": "mv", "baddbmm": "bmm"}


def _product(recorder: Recorder, call: Call) -> bool:
    a, b = call.args[:2]
    bias = call.args[2] if call.name == "linear" and len(call.args) > 2 else None
    made = _dense(recorder, call.name, a, b, call.results[0])
    if made is not None and bias is not None:
        made = _plus(recorder, made, bias, call.results[0])
    return _done(recorder, call, made)


def _sum_product(recorder: Recorder, call: Call) -> bool:
    base, a, b = call.args[:3]
    made = _dense(recorder, _SUMS[call.name], a, b, call.results[0])
    if made is not None:
        made = _plus(recorder, made, base, call.results[0])
    return _done(recorder, call, made)


def _convolution(recorder: Recorder, call: Call) -> bool:
    data, weight, bias, strides, padding, dilation, transposed, _, groups = call.args[:9]
    spatial = "DHW"[-(weight.dim() - 2) :]
    axes = len(spatial)
    steps, pads, spread = (
        list(given) * (axes if len(given) == 1 else 1) for given in (strides, padding, dilation)
    )
    state = recorder.state(data)
    extra = state.left if isinstance(state, Signal) else ()
    before = [*extra[:axes], *[0] * (axes - len(extra))][::-1]
    if transposed:  # which crops its result by its padding
        before = [-step * more for step, more in zip(steps, before, strict=True)]
    left = [pad + more for pad, more in zip(pads, before, strict=True)]
    options = {
        "groups": groups,
        "transposed": transposed,
        **taps_of(left, spread, weight.shape[2:], steps if transposed else None),
    }
    letters = ("IO" if transposed else "OI") + spatial
    made = _dense(recorder, letters, data, weight, call.results[0], options)
    if made is not None and bias is not None:
        made = _plus(recorder, made, bias, call.results[0])
    return _done(recorder, call, made)


def _dense(
    recorder: Recorder,
    kind: str,
    a: Tensor,
    b: Tensor,
    out: Tensor,
    options: Mapping[str, Any] | None = None,
) -> Signal | None:
    """Write a dense operation; None if it is none, but a product of two signals, say."""
    first, second = _PRODUCTS.get(kind, ("", kind))
    states = recorder.state(a), recorder.state(b)
    data: Signal
    weight: Made
    if isinstance(states[0], Signal) and isinstance(states[1], Made):
        data, weight, letters = states[0], states[1], second
    elif isinstance(states[1], Signal) and isinstance(states[0], Made) and first:
        data, weight, letters = states[1], states[0], first
    elif (
        kind not in ("dot", "mv")  # of vectors: a spectral norm's, which no layer computes with
        and isinstance(states[1], Made)
        and _is_layers_own(recorder, states[0], states[1])
    ):
        data, weight, letters = recorder.start(a, recorder.says("input")), states[1], second
        if isinstance(states[0], Made):
            recorder.others.update(states[0].names)
    else:
        return None
    operand = b if weight is states[1] else a
    if len(letters) != operand.dim():
        return None
    recorder.take([data])
    names = tuple(n for n in weight.names if n in recorder.floating) or weight.names
    spelt = letters
    if weight.groups:
        spelt = spell(letters, weight.groups, weight.parts[0][1].stride())
    item = recorder.new(_name(recorder, names[0], kind), "weight", [data], out, names)
    dense = _outputs(item, letters, operand, out, options)
    if len(weight.parts) == 1 and len(names) == 1:  # a stack of outputs repeats its matrix's
        axes = axes_of(weight.parts[0][1], spelt, recorder.shapes[names[0]])
        size = recorder.shapes[names[0]][axes.layout.index("O")] if axes else 0
        if size and dense.outputs > size and not options:
            dense.stacks, dense.outputs = dense.outputs // size, size
    for name in names:
        seen = [shape for part, shape in weight.parts if part == name]
        use = Use(dense, seen[0] if len(seen) == 1 else None, spelt, options or {}, weight.how)
        recorder.uses.setdefault(name, []).append(use)
    recorder.last = dense
    return Signal(item, (Root(dense, shadow(out.shape)),))


def _outputs(
    item: Item, letters: str, operand: Tensor, out: Tensor, options: Mapping[str, Any] | None
) -> Dense:
    """Say where the outputs of a dense operation lie in its result."""
    sizes = dict(zip(letters, operand.shape, strict=True))
    if options is not None:
        outputs = sizes["O"] * (options["groups"] if options["transposed"] else 1)
        stride = prod(out.shape[-(operand.dim() - 2) :])
        return Dense(item, outputs, stride, is_kernel=True)
    by_rows = letters.endswith("OI") and len(letters) == out.dim() and letters != "OI"
    by_rows = by_rows or (letters == "OI" and out.dim() == 2 and out.shape[0] == sizes["O"])
    stride = out.shape[-1] if by_rows and out.dim() > 1 else 1
    return Dense(item, sizes.get("O", 1), max(stride, 1), sizes.get("E", 1))


def _is_layers_own(recorder: Recorder, data: State, weight: Made) -> bool:
    """Whether a known layer applies its weight to something that is made of no data.

    Learned queries and initial states of recurrent layers start a signal there.
    """
    is_own = is_layer(recorder.module) and all(recorder.own(name) for name in weight.names)
    return is_own and not isinstance(data, (Data, Signal))


def _name(recorder: Recorder, weight: str, kind: str) -> str:
    """Name an operation after its layer, or else after its weight."""
    module = recorder.module
    if module and recorder.path and recorder.own(weight) and len(module._parameters) <= 2:
        return recorder.path
    owner, _, local = weight.rpartition(".")
    if local == "weight" and owner:
        return owner
    return f"{owner}: {local}" if owner else f"{kind} with {local}"


def _done(recorder: Recorder, call: Call, made: Signal | None) -> bool:
    if made is None:
        return False
    recorder.finish(call, call.results[0], made)
    return True


# Adds ---------------------------------------------------------------------------------------


def _add(recorder: Recorder, call: Call) -> bool:
    if len(call.given) != 2:
        return False
    a, b = call.given
    x, y = recorder.state(a), recorder.state(b)
    if not isinstance(x, Signal):
        a, b, x, y = b, a, y, x
    if not isinstance(x, Signal) or isinstance(y, Data):
        return False
    return _done(recorder, call, _plus(recorder, x, b, call.results[0]))


def _plus(recorder: Recorder, x: Signal, tensor: Tensor, out: Tensor) -> Signal:
    """Add a tensor to a signal: a bias, another signal, or anything else."""
    state = recorder.state(tensor)
    if isinstance(state, Made) and _may_be_bias(x, state, tensor):
        recorder.biases.update(state.names)
        return x
    y = recorder.settled(tensor)
    if isinstance(y, Signal):
        # In a recurrent layer it is one dense operation on the input and the state together.
        kind: Kind = "other" if isinstance(recorder.module, (nn.RNNBase, nn.RNNCellBase)) else "add"
        roots: tuple[Root, ...] = ()
        if x.roots and y.roots and x.item.shape == y.item.shape == tuple(out.shape):
            roots = (*x.roots, *y.roots)
        else:
            recorder.take([x, y])
        return Signal(recorder.item(kind, "add", [x, y], out), roots)
    if isinstance(y, Made):
        recorder.others.update(y.names)
    recorder.take([x])
    return Signal(recorder.item("other", "add", [x], out))


def _may_be_bias(x: Signal, state: Made, tensor: Tensor) -> bool:
    """Whether a tensor holds one number for each output of the dense operation it is added to."""
    if state.how:
        return False
    places = tensor.shape[-1] if state.lookup and tensor.dim() else _places(tensor)
    for dense, seen, _ in x.roots:
        rows = dense.rows(seen)
        length = dense.outputs if rows is None else rows.stop - rows.start
        if places in (length, length * dense.stacks):
            return True
    return False


def _places(tensor: Tensor) -> int:
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return prod(size for size, stride in pairs if stride)


DENSE: dict[str, Callable[[Recorder, Call], bool]] = {
    **dict.fromkeys(_PRODUCTS, _product),
    **dict.fromkeys(_SUMS, _sum_product),
    "convolution": _convolution,
    "add": _add,
}
