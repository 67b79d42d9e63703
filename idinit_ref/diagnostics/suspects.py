"""Internal: weights without a gradient, though a weight behind them sends one back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.text import some
from .audit import Dead
from .signals import Signals

LEAST = 0.01
"""The least part of the terms of a gradient that counts as more than rounding."""

_Vector = NDArray[Any]


def suspects(
    flow: Signals,
    dead: tuple[Dead, ...],
    values: Mapping[str, Any],
    gradients: Mapping[str, Any],
    host: Callable[[Any], Any],
) -> tuple[dict[str, Dead], set[str]]:
    """Return the weights whose gradient is stopped on the way to a weight that sends one back.

    Returns also the names of those to which the weights behind them send none.

    A weight W with gradient G, of results y = W x, gives its input the gradient g = W' dy. Here
    G = dy x', so that W' G u = g (x' u) for a vector u: it is 0 if g is, as where W is 0 or its
    terms cancel. What is before it is no suspect. Else it may also be that W does not read the
    suspects; then they wake after a step.

    `values` and `gradients` are the trained parameters, which `host` turns to arrays of NumPy.
    """
    sent: dict[str, tuple[_Vector, _Vector] | None] = {}
    found, hidden = {}, set[str]()
    for one in dead:
        start, between, readers = flow.way(one.name) if one.wakes else ([], [], [])
        groups: dict[Any, list[tuple[_Vector, _Vector]]] = {}
        for reader in readers:
            if reader not in sent:
                sent[reader] = _sent(flow, reader, values, gradients, host)
            if (terms := sent[reader]) is not None:
                key = flow.nodes[reader].inputs, len(terms[0])
                groups.setdefault(key, []).append(terms)
        is_more = any(_is_more(group) for group in groups.values())
        is_weight = any(flow.nodes[node].kind == "weight" for node in start)
        if not is_more and readers and all(sent[reader] for reader in readers):
            hidden.add(one.name)
        elif is_more and (is_weight or one.name in flow.record.blocks):
            own = flow.record.own if flow.record.own.isdisjoint(start) else set[str]()
            by = [name for name in between if name in own]
            kind = ", a function with a gradient of its own" if by else ""
            by = by or between or start
            why = f"no gradient passes {some(by)}{kind}: {some(readers)} sends one back"
            found[one.name] = one._replace(behind=by[-1], why=why, wakes=False)
    return found, hidden


def _sent(
    flow: Signals,
    reader: str,
    values: Mapping[str, Any],
    gradients: Mapping[str, Any],
    host: Callable[[Any], Any],
) -> tuple[_Vector, _Vector] | None:
    """Return W' G u of a weight operation, and the sum of the sizes of its terms; or None."""
    (name, *more) = flow.nodes[reader].weights
    options = flow.nodes[name].options
    letters = str(options.get("layout") or "")
    others = {*letters} - {"O", "I", "D", "H", "W"}
    if more or name not in gradients or "O" not in letters or others or options.get("groups"):
        return None
    pair = host(values[name]), host(gradients[name])
    if any(x is None or np.ndim(x) != len(letters) for x in pair):
        return None
    axes = sorted(range(len(letters)), key=lambda axis: letters[axis] != "O")
    rows = np.prod([np.shape(pair[0])[k] for k in axes[: letters.count("O")]], dtype=int)
    weight, gradient = (
        np.transpose(np.asarray(x, np.float32), axes).reshape(rows, -1) for x in pair
    )
    draw = np.random.Generator(np.random.Philox(key=0))
    given = gradient @ draw.standard_normal(gradient.shape[1], np.float32)
    return given @ weight, np.abs(given) @ np.abs(weight)


def _is_more(group: list[tuple[_Vector, _Vector]]) -> bool:
    """Whether the sum of some terms is more than their rounding errors."""
    total, size = (sum(terms[k] for terms in group) for k in (0, 1))
    return bool(np.max(np.abs(total)) > LEAST * np.max(size))
