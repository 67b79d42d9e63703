"""A whole model: what becomes of each of its parameters, decided from its graph (spec section 6).

No framework is known here: the adapters trace, ask `decide`, and write what the `Report` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Literal, cast, get_args

from ..core.kernel import Taps
from ..core.layout import DEFAULT_LAYOUTS, SPATIAL
from ..core.options import choice
from ..core.pattern import Form, Wide
from ..core.plan import Plan, either
from ..errors import GraphError, IDInitError, OptionError, OptionTypeError, message
from .graph import Graph, Node
from .names import Kind
from .report import Entry, Report
from .search import Inferred, explain_roles

__all__ = ["Head", "Override", "decide"]

Head = Literal["transit", "zero", "keep"]
Override = Kind | Mapping[str, Any]
"""A role, or options of `idinit_ref.plan`, `role` among them."""

_STORED = ("layout", "groups", "transposed", "stride", "blocks", "tap")
_CHOSEN = ("role", "gain", "eps", "wide", "form", "taps", "loosen", "loosen_at", "seed")
_REASONS = 2  # that are told of a weight that is used often


def decide(
    graph: Graph,
    *,
    gain: float = 1.0,
    eps: float = 1e-6,
    wide: Wide = "truncate",
    form: Form = "pair",
    taps: Taps | None = "outward",
    head: Head = "transit",
    embeddings: Literal["keep", "transit"] = "keep",
    overrides: Mapping[str, Override] | None = None,
) -> Report:
    """Decide what becomes of every parameter of a traced model (spec section 6).

    Parameters
    ----------
    graph : Graph
        Of the model, from an adapter's `trace`.
    gain : float
        tau of the weights in role "transit".
    eps : float
        Of the weights in role "zero".
    wide : {"truncate", "fold_rms", "fold_mean"}
        What is done where a transit weight has more columns than rows.
    form : {"pair", "shifted"}
        How the entries of a wide zero weight are spread.
    taps : {"outward", "diagonal", "center", "channel_major", "spatial_major"}
        How a kernel becomes a matrix (section 3). The first three start at the layer's identity
        tap, and in each phase of a transposed convolution. None is "outward".
    head : {"transit", "zero", "keep"}
        What becomes of the weights whose result the model returns, unless they end a branch.
    embeddings : {"keep", "transit"}
        What becomes of embedding tables, and of heads that are tied to them.
    overrides : mapping of str to role or options, optional
        Patterns of names as the shell has them (``"*.gate.weight"``), each with a role
        ("transit", "zero", "bias" for zeros, "keep") or with options of `idinit_ref.plan`
        (``{"role": "transit", "gain": 0.5}``). All that fit apply, a later one over an earlier.

    Returns
    -------
    Report
        Every parameter, with its plan if it is a weight.

    Raises
    ------
    GraphError
        If the model has no parameters.
    OptionError, OptionTypeError, ShapeError, LayoutError
        If an option does not fit, or an override fits no parameter.

    Examples
    --------
    >>> from idinit_ref import Node
    >>> graph = Graph([
    ...     Node("x", "input", shape=(2, 4)),
    ...     Node("w", "parameter", shape=(4, 4), use="weight"),
    ...     Node("b", "parameter", shape=(4,), use="bias"),
    ...     Node("h", "weight", ("x",), (2, 4), weights=("w",)),
    ...     Node("y", "add", ("x", "h"), (2, 4)),
    ... ], ["y"])
    >>> print(decide(graph))
    name  shape   role  why
    w     (4, 4)  zero  last of the branch h, which y adds to x
    b     (4,)    bias  bias
    2 parameters: 0 transit, 1 zero, 1 bias, 0 keep
    >>> decide(graph, overrides={"w": "keep"}).roles
    {'w': 'keep', 'b': 'bias'}
    """
    choice("head", head, get_args(Head))
    choice("embeddings", embeddings, ("keep", "transit"))
    taps = "outward" if taps is None else taps
    choice("taps", taps, get_args(Taps))
    general: dict[str, Any] = {"gain": gain, "eps": eps, "wide": wide, "form": form}
    either((0, 0), "transit", **general)
    if not graph.parameters:
        raise GraphError(
            message("parameters", (), "the model should have some", "pass the whole model")
        )
    chosen = _chosen(graph.parameters, overrides or {})
    inferred = explain_roles(graph)
    entries = []
    for name in graph.parameters:
        node = graph.by_name[name]
        role, why = _role(node, inferred.get(name), head, embeddings)
        options = {**general, "taps": taps}
        used = []
        for pattern, given in chosen[name]:
            if "role" in given:
                why = f"override {pattern!r} (it would be {role}: {why})"
                role = given["role"]
            else:
                used.append(f"; options of override {pattern!r}")
            options |= given
        if role in ("transit", "zero"):
            why += "".join(used)
        options.pop("role", None)
        try:
            plan = _plan(node, role, options) if role in ("transit", "zero") else None
        except IDInitError as problem:
            raise type(problem)(f"of parameter {name!r}: {problem}") from problem
        entries.append(Entry(name, tuple(node.shape or ()), role, why, plan))
    return Report(tuple(entries))


def _chosen(
    names: tuple[str, ...], overrides: Mapping[str, Override]
) -> dict[str, list[tuple[str, Mapping[str, Any]]]]:
    """Return the overrides of every parameter, or raise for one that is none or fits nothing."""
    if not isinstance(overrides, Mapping):
        raise OptionTypeError(
            message("overrides", overrides, "it should be a dict by name patterns", "e.g. {'*': …}")
        )
    chosen: dict[str, list[tuple[str, Mapping[str, Any]]]] = {name: [] for name in names}
    for pattern, given in overrides.items():
        label = f"overrides[{pattern!r}]"
        key: object = pattern
        if not isinstance(key, str):
            should = "its keys should be names or patterns of names"
            raise OptionTypeError(message("overrides", key, should, "write them as strings"))
        options = {"role": given} if isinstance(given, str) else given
        if not isinstance(options, Mapping):
            raise OptionTypeError(
                message(label, given, "it should be a role or a dict of options", "e.g. 'keep'")
            )
        for key in options:
            choice(label, key, (*_CHOSEN, *_STORED))
        if "role" in options:
            choice(label, options["role"], get_args(Kind))
        fit = [name for name in names if name == pattern or fnmatchcase(name, pattern)]
        if not fit:
            near = get_close_matches(pattern, names, 3, 0.0)
            raise OptionError(
                message(
                    "overrides",
                    pattern,
                    f"it fits no parameter; the nearest are {', '.join(near)}",
                    "name a parameter, or write a pattern with * for any letters",
                )
            )
        for name in fit:
            chosen[name].append((pattern, options))
    return chosen


def _role(node: Node, inferred: Inferred | None, head: Head, embeddings: str) -> tuple[Kind, str]:
    """Return the role of a parameter where no override speaks, and the reason."""
    if node.note:
        return "keep", node.note
    if node.use == "embedding":
        tied = ", and the head that is tied to it" if inferred else ""
        return cast("Kind", embeddings), f"embedding{tied}"
    if node.use == "bias":
        return "bias", "bias"
    if inferred is None:
        return "keep", "neither weight nor bias: IDInit does not define it"
    if node.shape is not None and len(node.shape) < 2:
        return "keep", "a vector, which is no matrix of a layer"
    more = len(inferred.why) - _REASONS
    why = "; ".join(inferred.why[:_REASONS]) + (f"; and {more} more" if more > 0 else "")
    if inferred.head and inferred.role == "transit":
        return head, "the head" + (f"; {why}" if why else "")
    return inferred.role, why or "weight; no residual branch ends with it"


def _plan(node: Node, role: Kind, options: Mapping[str, Any]) -> Plan:
    stored = {key: value for key, value in node.options.items() if key in _STORED}
    if node.use == "embedding" and not stored:
        stored = {"layout": "IO"}  # a row for each input
    shape = tuple(node.shape or ())
    letters = options.get("layout") or stored.get("layout") or DEFAULT_LAYOUTS.get(len(shape), "")
    if not any(c in SPATIAL for c in letters):  # a matrix has no taps
        stored = {key: value for key, value in stored.items() if key not in ("tap", "stride")}
        options = {key: value for key, value in options.items() if key != "taps"}
    tap = options.get("tap")
    plan = either(shape, cast("Literal['transit', 'zero']", role), **{**stored, **options})
    return plan if tap is None else replace(plan, tap=tap)  # a corner order refuses one
