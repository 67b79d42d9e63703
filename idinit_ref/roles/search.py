"""The role of every weight in a computation, from the ends of residual branches (section 6)."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping
from typing import NamedTuple, get_args

from ..core.options import choice
from ..core.pattern import Role
from ..errors import GraphError, OptionTypeError, message
from .adds import Adds, Branch
from .bundles import Bundle, bits
from .ends import Vanishing
from .flow import Flow
from .graph import Graph, Node, function_of, without_unread
from .notes import Note, merged
from .packed import Rows, unpacked
from .void import find_void

__all__ = ["Found", "Inferred", "explain_parts", "explain_roles", "infer_roles"]


_NAMED = 2  # the most reasons for a weight, of branches with many ends


class Inferred(NamedTuple):
    """The role of a weight, the reasons, and whether it is the last before an output.

    The role of a packed weight is "zero" if that of any block is; `decide` has that of each block.
    Of branches that end in many weights, `why` names two for each; `more` is the number of others.
    """

    role: Role
    why: tuple[str, ...]
    head: bool = False
    more: int = 0


class Found(dict[str, Inferred]):
    """The role of every weight by its name, with notes for the user.

    Attributes
    ----------
    notes : tuple of Note
        Notes of kind "tie", "gate", "endless", "pyramid" or "norm", in the order of the graph.

    Examples
    --------
    >>> Found().notes
    ()
    """

    notes: tuple[Note, ...] = ()


def infer_roles(graph: Graph, *, overrides: Mapping[str, Role] | None = None) -> dict[str, Role]:
    """Find the role of every weight from the computation (spec section 6).

    A residual add is an elementwise sum of a skip and a branch that come from one source. The ends
    of the branch, the weights with which it vanishes to first order, are "zero". All other weights
    are "transit".

    The skip either holds no weight, or it is a projection. Then all paths between source and add
    lead to the add, and the skip is a residual sum itself or has fewer weights on its longest path.
    A tie stays "transit", and so do a branch without ends, a branch with a gated skip, and a level
    of a pyramid.

    The cost is nearly linear in the nodes of the graph.

    Parameters
    ----------
    graph : Graph
        A computation, from an adapter's `trace`.
    overrides : mapping of str to {"transit", "zero"}, optional
        Roles that replace the result, by the name of the weight.

    Returns
    -------
    dict of str to {"transit", "zero"}
        Every weight, in the order of the graph. :func:`idinit_ref.roles.explain_roles` also gives
        the reasons.

    Raises
    ------
    GraphError
        If an override names no weight of the graph.

    Examples
    --------
    >>> from idinit_ref import Graph, Node
    >>> infer_roles(Graph([
    ...     Node("x", "input", shape=(2, 4)),
    ...     Node("w1", "parameter", shape=(8, 4), use="weight"),
    ...     Node("w2", "parameter", shape=(4, 8), use="weight"),
    ...     Node("h", "weight", ("x",), (2, 8), weights=("w1",)),
    ...     Node("relu", "other", ("h",), (2, 8), does="map"),
    ...     Node("f", "weight", ("relu",), (2, 4), weights=("w2",)),
    ...     Node("y", "add", ("x", "f"), (2, 4)),
    ... ]))
    {'w1': 'transit', 'w2': 'zero'}
    """
    given: object = graph
    if not isinstance(given, Graph):
        raise OptionTypeError(
            message("graph", given, "it should be a Graph", "use ir.Graph(nodes)")
        )
    roles = {name: found.role for name, found in explain_roles(graph).items()}
    for name, role in (overrides or {}).items():
        choice("overrides", role, get_args(Role))
        if name not in roles:
            raise GraphError(
                message(
                    "overrides",
                    name,
                    f"the graph's weights are {', '.join(roles) or 'none'}",
                    "name one of them",
                )
            )
        roles[name] = role
    return roles


def explain_roles(graph: Graph) -> Found:
    """Find the role of every weight, with the reasons.

    Parameters
    ----------
    graph : Graph
        A computation.

    Returns
    -------
    Found
        A dict of str to Inferred: every weight, in the order of the graph. A weight with several
        uses is "zero" if it ends a branch in one of them, and has a reason for each. The `notes`
        name branches that do not vanish, and sums of several branches.

    Examples
    --------
    >>> from idinit_ref import Graph, Node
    >>> explain_roles(Graph([
    ...     Node("x", "input", shape=(2, 4)),
    ...     Node("w", "parameter", shape=(4, 4), use="weight"),
    ...     Node("h", "weight", ("x",), (2, 4), weights=("w",)),
    ...     Node("y", "add", ("x", "h"), (2, 4)),
    ... ]))["w"].why
    ('last of the branch h, which y adds to x',)
    """
    graph = without_unread(graph)
    parts = unpacked(graph)
    each = explain_parts(parts.graph)
    found = Found()
    for name in graph.weights:
        blocks = parts.blocks.get(name)
        found[name] = each[name] if blocks is None else _joined(blocks, each)
    found.notes = parts.named(each.notes)
    return found


def explain_parts(graph: Graph) -> Found:
    """Return the role of every weight as a whole, as in a graph without packed weights."""
    search, found = _Search(graph), Found()
    uses = search.flow.uses
    for name in graph.weights:
        why = [text for at in uses[name] for text in search.why(at)]
        zero = bool(why)
        if zero and any(at not in search.claims for at in uses[name]):
            why.append("used elsewhere too, where it would be transit")
        if not zero:
            why = [text for at in uses[name] for text in search.tied.get(at, ())]
        head = any(at in search.heads for at in uses[name])
        role: Role = "zero" if zero else "transit"
        more = sum(search.more(at) for at in uses[name]) if zero else 0
        found[name] = Inferred(role, tuple(dict.fromkeys(why)), head, more)
    found.notes = merged(search.notes())
    return found


def _joined(blocks: Mapping[Rows, str | None], each: Mapping[str, Inferred]) -> Inferred:
    """Return the role of a packed weight: "zero" if it is that of any block."""
    found = [each[name] for name in blocks.values() if name is not None]
    ends = [one for one in found if one.role == "zero"]
    why = dict.fromkeys(text for one in ends or found for text in one.why)
    head, more = all(one.head for one in found), sum(one.more for one in ends)
    return Inferred("zero" if ends else "transit", tuple(why), head, more)


class _Search:
    """The roles of a graph's weight operations, from its residual adds."""

    def __init__(self, graph: Graph) -> None:
        self.flow = Flow(graph)
        self.adds = Adds(self.flow)
        self.claims: dict[int, list[Branch]] = {}  # by weight operation: the branches it ends
        self._full = 0  # a bit for each operation with as many branches as are named
        self._more: list[int] = []  # a bit each, of the digits of how many are not named
        for branch in self.adds.branches:
            if not branch.how:
                self._claim(branch)
        self._free_idle()
        self._ahead, self._order = self._depths()
        self.tied: dict[int, list[str]] = {}
        self._ties = list(self._find_ties())
        self.heads = self._find_heads()

    def _claim(self, branch: Branch) -> None:
        """Add a branch to the claims on its ends; of a bundle only the first ones are named."""
        ends, rest = branch.ends.weights, 0
        if isinstance(ends, Bundle):
            every = ends.mask << ends.low
            rest = every & self._full
        for end in bits(every ^ rest) if isinstance(ends, Bundle) else ends:
            claims = self.claims.setdefault(end, [])
            claims.append(branch)
            if len(claims) == _NAMED:
                self._full |= 1 << end
        for place, digit in enumerate(self._more):
            self._more[place], rest = digit ^ rest, digit & rest
            if not rest:
                break
        self._more += [rest] if rest else []

    def more(self, operation: int) -> int:
        """Return how many branches end in a weight operation besides those that are named."""
        is_zero = operation in self.claims
        digits = [digit >> operation & 1 for digit in self._more] if is_zero else []
        return sum(digit << place for place, digit in enumerate(digits))

    def _free_idle(self) -> None:
        """Drop weights whose inputs are zero already: they need not be zero, too (R2)."""
        flow = self.flow
        zero = flow.alike(self.claims)
        void = find_void(flow, zero)
        idle: dict[tuple[str, ...], list[int]] = {}  # by weights: their operations on zeros
        for at in self.claims:
            if all(void[to] for to in flow.args[at]):
                idle.setdefault(flow.nodes[at].weights, []).append(at)
        for operations in idle.values():
            own = flow.alike(operations[:1])
            others = void if len(own) == 1 else find_void(flow, zero - own)
            for at in operations:
                if all(others[to] for to in flow.args[at]):
                    del self.claims[at]

    def name(self, node: int) -> str:
        """Return the name of a node."""
        return self.flow.nodes[node].name

    def why(self, operation: int) -> Iterator[str]:
        """Yield the reasons why a weight operation is zero."""
        for add, _, branch, sources, *_ in self.claims.get(operation, ()):
            to = self.name(max(sources))
            text = f"last of the branch {self.name(branch)}, which {self.name(add)} adds to {to}"
            before = min((self._order[at] for at in self.flow.inputs[operation]), default=0)
            depth = 1 + self._ahead[operation] + before
            yield text + (f" (depth {depth}: inside another branch)" if depth > 1 else "")

    def _depths(self) -> tuple[list[int], list[int]]:
        """Return the least number of zero weights from a node to an output, and before it."""
        flow, zero = self.flow, self.claims
        count = len(flow.nodes)
        ahead, order = [0] * count, [0] * count
        for number in range(count):
            node, inputs = flow.nodes[number], flow.inputs[number]
            if node.kind == "parameter":
                continue
            if node.kind == "weight":
                order[number] = max([order[to] for to in inputs]) if inputs else 0
                order[number] += number in zero
            elif isinstance(node.vanishes, tuple):
                order[number] = sum(order[flow.args[number][at]] for at in node.vanishes)
            elif node.vanishes == "all":
                order[number] = min([order[to] for to in inputs], default=0)
        for number in reversed(range(count)):
            if flow.users[number] and number not in flow.outputs:
                ahead[number] = min([ahead[user] + (user in zero) for user in flow.users[number]])
        return ahead, order

    # Ties -----------------------------------------------------------------------------------

    def _find_ties(self) -> Iterator[tuple[Note, str, Hashable]]:
        """Yield a note for each sum of branches that no enclosing residual add resolves."""
        flow, ties = self.flow, self.adds.ties
        within: dict[int, int] = {}  # by tie: the number of branches it adds up
        inner: set[int] = set()
        for add in ties:
            within[add] = 2
            for side in flow.args[add]:
                while flow.nodes[side].does in ("move", "scale") and flow.inputs[side]:
                    side = flow.inputs[side][0]
                if side in ties:
                    inner.add(side)
                    within[add] += within[side] - 1
        vanishing = Vanishing(flow) if len(inner) < len(ties) else None
        for add, source in ties.items():
            if add in inner or self._ahead[add] or vanishing is None:
                continue
            ends = vanishing.ends(add, (source,)).weights or tuple(flow.nearest(add))
            open_ = [end for end in ends if end not in self.claims]
            if len(self._weights(open_)) < 2:
                continue  # no role of one weight alone makes one of the branches small
            count = "two" if within[add] == 2 else str(within[add])
            for end in open_:
                text = f"a tie: {self.name(add)} adds {count} branches"
                self.tied.setdefault(end, []).append(text)
            weights = self._weights(open_)
            says = (
                f"so the signal grows up to {within[add]}-fold; give all but one the role zero by "
            )
            says += "overrides if it should not"
            for side in flow.args[add]:
                blocker = vanishing.ends(side, (source,)).blocker
                if blocker is not None and not vanishing.is_ended(side):  # as the noise of a VAE
                    says = f"and no role makes the branch of {self.name(blocker)} small"
            text = (
                f"{self.name(add)} adds {count} branches of {self.name(source)}, and none of them "
            )
            note = Note("tie", weights, f"{text}is a skip: all are transit, {says}")
            yield note, self.name(add), (weights, count)

    def _weights(self, operations: Collection[int]) -> tuple[str, ...]:
        names = (name for at in operations for name in self.flow.nodes[at].weights)
        return tuple(dict.fromkeys(names))

    # Notes ----------------------------------------------------------------------------------

    def notes(self) -> Iterator[tuple[Note, str, Hashable]]:
        """Yield the notes on the residual adds, each with its add and what it says of any add."""
        for branch in self.adds.branches:
            yield from self._note(branch)
        yield from self._ties

    def _note(self, branch: Branch) -> Iterator[tuple[Note, str, Hashable]]:
        if not (branch.how or branch.ends.norms) and branch.ends.blocker is None:
            return
        add, what = self.name(branch.add), self.name(branch.branch)
        weights = self._weights(branch.ends.weights)
        names, says = weights or (add,), weights
        if branch.how == "gated":
            kind = "gate"
            text = (
                f"{add} adds {what} to {self.name(branch.skip)}, a skip that is multiplied by what "
                "is computed from its own source: no weight alone makes the sum the skip, so none "
                "is zero"
            )
        elif branch.how == "pyramid":
            kind = "pyramid"
            text = (
                f"{add} adds {what}, which leaves the resolution and returns by upsampling: a "
                "level of a pyramid, transit; give it the role zero by overrides if it is a branch"
            )
        elif branch.ends.blocker is not None:
            blocker = self.flow.nodes[branch.ends.blocker]
            why = self._blocked(branch, blocker)
            kind, names = "endless", (add,)
            text = f"no weight makes the branch {what} of {add} vanish, so none is zero: "
            text += why.format(blocker.name)
            is_given = blocker.kind in ("input", "parameter")
            says = (why, *blocker.weights, blocker.name if is_given else function_of(blocker))
        else:
            norms = ", ".join(self.name(at) for at in branch.ends.norms)
            kind = "norm"
            text = (
                f"the branch {what} of {add} ends in a normalisation ({norms}), which magnifies "
                "what its zero weight gives: eps becomes up to eps / sqrt(e), e that of the norm"
            )
        yield Note(kind, names, text), add, says

    def _blocked(self, branch: Branch, node: Node) -> str:
        """Return why a node ends the search for the ends of a branch, with {} for its name."""
        if branch.ends.blocker in branch.sources:
            return "it holds its source itself, besides what it computes from it"
        if node.kind in ("input", "parameter"):
            return "{} enters it over no weight"
        if node.does == "unknown":
            return "it is not known what {} is at 0"
        if node.vanishes == "never":
            return "{} is not 0 where its inputs are"
        if node.kind == "weight":
            return "{} reads what vanishes with its own weight: nothing is linear"
        squares = node.does == "product" if node.vanishes == "all" else bool(node.vanishes)
        if node.sums and not squares:
            return "{} sums over the outputs of the weights before it"
        return "{} vanishes to second order only, as its factors vanish together"

    # Heads ----------------------------------------------------------------------------------

    def _find_heads(self) -> set[int]:
        """Find the heads: weights with a returned result, without a weight or residual add between.

        A weight that also feeds another weight is not a head: its result is a hidden state.
        """
        flow = self.flow
        feeds: set[int] = set()  # nodes from which a weight operation is computed
        for number in reversed(range(len(flow.nodes))):
            if flow.nodes[number].kind == "weight" or number in feeds:
                feeds.update(flow.args[number])
        found: set[int] = set()
        seen = set(flow.outputs)
        stack = list(flow.outputs)
        while stack:
            node = stack.pop()
            if flow.nodes[node].kind == "weight":
                found |= {node} - feeds
            elif node not in self.adds.residual:
                new = [to for to in flow.args[node] if to not in seen]
                seen.update(new)
                stack += new
        return found
