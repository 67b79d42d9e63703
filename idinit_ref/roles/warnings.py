"""The warnings on kept matrices, copied units, magnified branches, faint outputs and old zeros."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from math import lcm

from ..core.plan import Plan
from ..core.text import some
from ..errors import GraphError, message
from .graph import ROOTS, Graph, Node, function_of
from .notes import Note
from .report import Entry
from .values import Values

__all__ = ["copies", "faint", "kept", "magnified", "norm_ends", "overwritten"]

_REACH = 64  # the most nodes in which a norm is searched for
_MOST = 64  # the most weights of an output that are told


def kept(
    graph: Graph,
    entries: Collection[Entry],
    chosen: Collection[str],
    strict: bool,
    last: Collection[str] = (),
) -> tuple[Note, ...]:
    """Warn of used matrices that are kept without an override; with `strict` raise.

    Parameters
    ----------
    graph : Graph
        The graph of the model.
    entries : collection of Entry
        The entries of all parameters.
    chosen : collection of str
        The parameters whose role the user chose.
    strict : bool
        Whether such matrices are an error.
    last : collection of str
        The weights that end residual branches and would be zero.

    Returns
    -------
    tuple of Note
        One note of kind "kept", or none.

    Raises
    ------
    GraphError
        If there are such matrices and `strict` is set.
    """
    found = [
        entry
        for entry in entries
        if entry.role == "keep"
        and entry.name not in chosen
        and (len(entry.shape) > 1 or "flat" in graph.by_name[entry.name].options)
        and _is_used(graph.by_name[entry.name])
    ]
    if not found:
        return ()
    names = tuple(entry.name for entry in found)
    first = f"{found[0].name!r}: {found[0].why}"
    if strict:
        should = f"no used matrix should be kept without an override; {first}"
        cure = "give them roles with overrides, 'keep' among them, or leave out strict"
        raise GraphError(message("kept matrices", some(names), should, cure))
    plural = "matrices that the computation uses are" if len(names) > 1 else "used matrix is"
    text = f"{len(names)} {plural} kept without an override; {first}"
    ends = [name for name in names if name in last]
    text += f"; the residual branches that end with {some(ends)} do not start small" if ends else ""
    return (Note("kept", names, text),)


def _is_used(node: Node) -> bool:
    """Whether a kept parameter is a weight, or enters an unknown operation."""
    frozen = node.note.startswith("frozen")  # by its owner's choice
    is_told = node.note.startswith(("it is not known", "it makes the kernel"))
    return not frozen and (node.use == "weight" or is_told)


def overwritten(entries: Collection[Entry], chosen: Collection[str], values: Values) -> list[Note]:
    """Warn of matrices that are exactly 0, perhaps on purpose, and become transit."""
    names = tuple(
        entry.name
        for entry in entries
        if entry.role == "transit" and entry.name not in chosen and values.is_zero(entry.name)
    )
    text = "exactly 0 before, and transit now; if the zeros are meant, override with 'keep'"
    return [Note("overwritten", names, text)] if names else []


def faint(graph: Graph, zero: Collection[str]) -> list[Note]:
    """Warn, once, of outputs of the model that vanish with the weights in role zero.

    A weight may end a branch and be the only way to an output, too, as where one matrix makes the
    next residual and a skip to the output.
    """
    ends: dict[str, dict[str, None]] = {}  # of each node that vanishes: the zero weights behind it
    void = set[str]()  # vanishes for any weights
    for node in graph.nodes:
        if node.kind in ("input", "parameter") or node.vanishes == "never":
            continue
        own = dict.fromkeys(name for name in node.weights if name in zero)
        if own:
            ends[node.name] = own
            continue
        args, few = node.inputs, node.vanishes
        factors = args if isinstance(few, str) else [args[at] for at in few]
        gone = [name for name in factors if name in ends or name in void]
        if len(gone) == len(factors) or (gone and not isinstance(few, str)):
            weights = (name for to in gone for name in ends.get(to, ()))
            behind = dict.fromkeys(islice(weights, _MOST))
            if behind:
                ends[node.name] = behind
            else:
                void.add(node.name)
    found = [name for name in graph.outputs if name in ends]
    names = tuple(dict.fromkeys(name for to in found for name in ends[to]))
    text = (
        f"all that {some(found)} gives passes weights in role zero ({some(names)}), so it starts "
        "at almost 0; override these with 'transit' if it should not"
    )
    return [Note("faint", names, text)] if found else []


# Hidden units that stay copies (T11) ------------------------------------------------------------


def copies(graph: Graph, plans: Mapping[str, Plan]) -> list[Note]:
    """Warn, once, of hidden units whose rows before and columns after them are equal.

    They have equal gradients, so they stay equal (T11).
    """
    found: dict[str, tuple[int, int]] = {}
    for node in graph.nodes:
        after = [plans[name] for name in node.weights if name in plans]
        if len(after) != 1 or len(node.weights) != 1:
            continue
        before = _feeding(graph, node, plans)
        sizes = [_matrix(plan) for plan in before.values()]
        units, behind = {size[0] for size in sizes if size}, _matrix(after[0])
        if None in sizes or not behind or units != {behind[1]}:
            continue
        rows = lcm(*(plan.axes.widths[0] for plan in before.values()))
        count = _equal(after[0], *behind, rows)
        if count:
            found |= {name: (count, behind[1]) for name in before if name not in found}
    if not found:
        return []
    count, units_ = max(found.values())
    text = (
        f"up to {count} of {units_} hidden units start as copies of others and stay so, unless "
        "something random parts them: dropout, or loosen= by an override (T11)"
    )
    return [Note("copies", tuple(found), text)]


def _feeding(graph: Graph, node: Node, plans: Mapping[str, Plan]) -> dict[str, Plan]:
    """Return the weights before a weight, through elementwise functions and products.

    Empty if one of them is not transit, or another operation comes between.
    """
    found: dict[str, Plan] = {}
    stack, seen = list(node.inputs), set(node.inputs)
    while stack:
        at = graph.by_name[stack.pop()]
        found |= {name: plans[name] for name in at.weights if name in plans}
        if at.kind == "weight" and all(name in found for name in at.weights):
            continue
        if at.kind != "other" or at.does not in ("", "mix", "map", "product", "scale", "move"):
            return {}
        new = [name for name in at.inputs if name not in seen]
        seen.update(new)
        stack += new
    return found if all(plan.role == "transit" for plan in found.values()) else {}


def _matrix(plan: Plan) -> tuple[int, int] | None:
    """Return the size of a plan's one matrix without noise; None if it has several."""
    if plan.loosen or len(plan.matrices) != 1 or plan.matrices[0][2] != 1:
        return None
    return plan.matrices[0][:2] if len(plan.shape) == 2 else None


def _equal(after: Plan, m: int, n: int, rows: int) -> int:
    """Return the number of n units that repeat another one, in their rows and columns.

    Two units have equal rows if their distance is a multiple of `rows`.

    >>> from ..core.weights import plan
    >>> _equal(plan((4, 16), "zero"), 4, 16, 4)  # 3m of n = 4m differ
    4
    """
    if after.role == "zero" and after.form == "shifted" and n >= 2 * m:
        return max(n - m * lcm(2, m), 0) if rows == m else 0
    if after.role == "transit" and after.wide != "truncate":
        return max(n - lcm(m, rows), 0)
    alike = n - (2 * m if after.role == "zero" else m)  # units whose columns are zeros
    return max(alike - rows, 0)


# Norms at the end of a branch -------------------------------------------------------------------


def norm_ends(graph: Graph, zero: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return the norms that end a residual branch after zero weights, by weight.

    Parameters
    ----------
    graph : Graph
        The graph of the model; norms are known by their `does`.
    zero : collection of str
        The weights in role "zero".

    Returns
    -------
    dict of str to tuple of str
        The names of these nodes by weight. A weight is left out if one of its operations is not
        followed by a norm and then an add.

    Examples
    --------
    >>> graph = Graph([
    ...     Node("x", "input", shape=(2, 4)),
    ...     Node("w", "parameter", shape=(4, 4), use="weight"),
    ...     Node("h", "weight", ("x",), (2, 4), weights=("w",)),
    ...     Node("post", "other", ("h",), (2, 4), does="norm"),
    ...     Node("y", "add", ("x", "post"), (2, 4)),
    ... ])
    >>> norm_ends(graph, ["w"])
    {'w': ('post',)}
    """
    users: dict[str, list[Node]] = {}
    uses: dict[str, list[Node]] = {name: [] for name in zero}
    for node in graph.nodes:
        for name in node.inputs:
            users.setdefault(name, []).append(node)
        for name in set(node.weights) & uses.keys():
            uses[name].append(node)
    found: dict[str, tuple[str, ...]] = {}
    for weight, own in uses.items():
        norms = [_normed(op, users) for op in own]
        if norms and all(norms):
            found[weight] = tuple(dict.fromkeys(name for ends in norms for name in ends))
    return found


def _normed(node: Node, users: Mapping[str, Sequence[Node]]) -> list[str]:
    """Return the nodes from a norm of a weight's result to the add; none without a norm.

    A norm that is written out is computed from the result alone, with a square root.
    """
    alone: dict[str, bool] = {node.name: False}  # nodes computed from the result alone: normed?
    order, adds, last = [node], dict[str, Node](), dict[str, None]()
    stack = [node.name]
    while stack and len(alone) < _REACH:
        for user in users.get(stack.pop(), ()):
            if user.name in alone or user.kind == "weight":
                continue
            if all(name in alone for name in user.inputs):
                alone[user.name] = _is_root(user) or any(alone[name] for name in user.inputs)
                order.append(user)
                stack.append(user.name)
            elif user.kind == "add":
                adds[user.name] = user
    for add in (add for name, add in adds.items() if name not in alone):
        ends = [name for name in add.inputs if name in alone]
        if not all(alone[name] for name in ends):
            return []
        last |= dict.fromkeys(ends)
    first = (at for at in order if not alone[at.name] and at.does == "scale")
    before = [at.name for at in first if last and _is_passed(at, order, last)]
    return [*before, *(name for name in alone if alone[name])] if last else []


def _is_root(node: Node) -> bool:
    return node.does == "norm" or function_of(node) in ROOTS


def _is_passed(scale: Node, order: Iterable[Node], last: Collection[str]) -> bool:
    """Whether a branch vanishes with what is scaled before a norm, as g * h / norm(h) does.

    No root of the norm is computed from that, or the norm would undo the scale.
    """
    after, zero = {scale.name}, {scale.name}
    for node in order:
        if after.isdisjoint(node.inputs):
            continue
        after.add(node.name)
        here = [name in zero for name in node.inputs]
        if _is_root(node):
            return False
        if isinstance(node.vanishes, tuple):
            is_zero = any(here[place] for place in node.vanishes)
        else:
            is_zero = node.vanishes == "all" and all(here)
        zero |= {node.name} if is_zero else set()
    return zero.issuperset(last)


def magnified(names: Sequence[str], eps: float, norms: str) -> list[Note]:
    """Warn, once, of zero weights whose eps a norm magnifies."""
    cure = "norms='zero' scales it by eps"
    if norms == "zero":
        cure = "norms='zero' finds no scale of it in which branches alone end"
    text = (
        f"a norm ends these branches and divides by the size of their eps = {eps:g}: they add "
        f"up to eps/sqrt(e), e the norm's own epsilon (1e-3 of 1e-6); {cure}"
    )
    return [Note("norm", tuple(names), text)] if names else []
