"""A whole model: what becomes of each of its parameters, decided from its graph (spec section 6).

No framework is known here: the adapters trace, ask `decide`, and write what the `Report` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from .errors import GraphError, IDInitError, OptionError, OptionTypeError, message
from .graph import Graph, Inferred, Node, explain_roles
from .kernel import Taps
from .layout import DEFAULT_LAYOUTS, SPATIAL
from .options import choice
from .pattern import Form, Wide
from .plan import Plan, either
from .rules import Kind

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Entry", "Head", "Override", "Report", "decide"]

Head = Literal["transit", "zero", "keep"]
Override = Kind | Mapping[str, Any]
"""A role, or options of `idinit_ref.plan`, `role` among them."""

_STORED = ("layout", "groups", "transposed", "stride", "blocks", "tap")
_CHOSEN = ("role", "gain", "eps", "wide", "form", "taps", "loosen", "loosen_at", "seed")
_REASONS = 2  # that are told of a weight that is used often
_STYLES = {"transit": "green", "zero": "bold yellow", "bias": "cyan", "keep": "dim"}


@dataclass(frozen=True)
class Entry:
    """One parameter of a model, and what becomes of it.

    Parameters
    ----------
    name : str
        Its name in the model.
    shape : tuple of int
        As it is stored; what `decide` alone returns has the graph's, that of the matrix.
    role : {"transit", "zero", "bias", "keep"}
        IDI, IDIZ, zeros, or left as it is.
    why : str
        The reason.
    plan : Plan, optional
        Of a weight in role "transit" or "zero".
    axes : str
        Where a weight has several axes of inputs, or of outputs: a letter for each stored axis.
        Those of one letter count as one axis of the plan, in row-major order, so that the plan has
        the shape of the matrix; "" where it has the stored shape.
    parted : tuple of int, optional
        The sizes of these axes where a stored axis holds several of them: a reshape of it gives
        the stored shape.
    """

    name: str
    shape: tuple[int, ...]
    role: Kind
    why: str
    plan: Plan | None = None
    axes: str = ""
    parted: tuple[int, ...] | None = None

    def stored(
        self, shape: Sequence[int], letters: str, parted: Sequence[int] | None = None
    ) -> Entry:
        """Return the entry of a parameter that is stored in this shape.

        Parameters
        ----------
        shape : sequence of int
            The stored shape.
        letters : str
            A letter for each axis, as `idinit_ref.layout.merge_axes` joins them for the plan;
            "" if they are not known.
        parted : sequence of int, optional
            The sizes of these axes, if not those of the stored ones.

        Returns
        -------
        Entry

        Examples
        --------
        >>> key = Entry("key.kernel", (8, 8), "transit", "", Plan((8, 8), layout="IO"))
        >>> key = key.stored((8, 2, 4), "IOO")
        >>> key.shape, key.axes, key.plan.shape
        ((8, 2, 4), 'IOO', (8, 8))
        """
        shape, parts = tuple(shape), tuple(shape if parted is None else parted)
        if self.plan is None or (parts == shape and len(set(letters)) == len(letters)):
            return replace(self, shape=shape, axes="", parted=None)
        named = dict(zip(dict.fromkeys(letters), self.plan.layout, strict=True))  # by an override
        axes = "".join(named[letter] for letter in letters)
        return replace(self, shape=shape, axes=axes, parted=None if parts == shape else parts)

    def to_dict(self) -> dict[str, Any]:
        """Return all but the name in numbers, strings and lists, for JSON.

        ``axes`` and ``parted`` are there only if they say something.

        >>> Entry("b", (2,), "bias", "bias").to_dict()
        {'shape': [2], 'role': 'bias', 'why': 'bias', 'plan': None}
        """
        found: dict[str, Any] = {"shape": list(self.shape), "role": self.role, "why": self.why}
        if self.axes:
            found["axes"] = self.axes
        if self.parted is not None:
            found["parted"] = list(self.parted)
        return found | {"plan": None if self.plan is None else _options(self.plan)}


@dataclass(frozen=True)
class Report:
    """What becomes of every parameter of a model; nothing is skipped in silence.

    Parameters
    ----------
    entries : tuple of Entry
        One for each parameter, in the model's order.

    Examples
    --------
    >>> print(Report((Entry("proj.weight", (2, 4), "zero", "last of its branch"),)))
    name         shape   role  why
    proj.weight  (2, 4)  zero  last of its branch
    1 parameter: 0 transit, 1 zero, 0 bias, 0 keep
    """

    entries: tuple[Entry, ...]

    @property
    def plans(self) -> dict[str, Plan]:
        """The plan of every weight, by name.

        Examples
        --------
        >>> proj = Entry("proj.weight", (2, 4), "zero", "", Plan((2, 4), "zero"))
        >>> Report((proj, Entry("proj.bias", (2,), "bias", "bias"))).plans["proj.weight"].role
        'zero'
        """
        return {entry.name: entry.plan for entry in self.entries if entry.plan is not None}

    @property
    def roles(self) -> dict[str, Kind]:
        """The role of every parameter, by name.

        Examples
        --------
        >>> Report((Entry("proj.bias", (2,), "bias", "bias"),)).roles
        {'proj.bias': 'bias'}
        """
        return {entry.name: entry.role for entry in self.entries}

    @property
    def summary(self) -> str:
        """One line: how many parameters have which role.

        Examples
        --------
        >>> Report((Entry("proj.bias", (2,), "bias", "bias"),)).summary
        '1 parameter: 0 transit, 0 zero, 1 bias, 0 keep'
        """
        roles = list(self.roles.values())
        counts = ", ".join(f"{roles.count(role)} {role}" for role in get_args(Kind))
        return f"{len(roles)} parameter{'s' * (len(roles) != 1)}: {counts}"

    def _rows(self) -> list[tuple[str, str, str, str]]:
        return [(entry.name, str(entry.shape), entry.role, entry.why) for entry in self.entries]

    def __str__(self) -> str:
        rows = [("name", "shape", "role", "why"), *self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join([*map(str.ljust, row[:3], widths), row[3]]).rstrip() for row in rows]
        return "\n".join([*lines, self.summary])

    def __rich__(self) -> Table:
        """Return the table in colour, for ``rich.print(report)``."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, caption=self.summary, caption_justify="left")
        for head in ("name", "shape", "role", "why"):
            table.add_column(head, overflow="fold")
        for name, shape, role, why in self._rows():
            table.add_row(Text(name), Text(shape), Text(role, _STYLES[role]), Text(why))
        return table

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the report by parameter name, in numbers, strings and lists, for JSON.

        It is a manifest for ``idinit export``, too.

        Returns
        -------
        dict of str to dict
            Of every parameter its shape, role, reason, and the options of its plan, or None.

        Examples
        --------
        >>> Report((Entry("b", (2,), "bias", "bias"),)).to_dict()
        {'b': {'shape': [2], 'role': 'bias', 'why': 'bias', 'plan': None}}
        """
        return {entry.name: entry.to_dict() for entry in self.entries}


def _options(plan: Plan) -> dict[str, Any]:
    names = [field.name for field in fields(plan) if field.init]
    found = {name: getattr(plan, name) for name in names if name not in ("shape", "role")}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}


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
