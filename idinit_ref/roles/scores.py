"""Internal: which nodes serve only as scores, gates or queries of others (section 6)."""

from __future__ import annotations

from .flow import GATES, Flow
from .graph import entries

__all__ = ["Scores"]

_LOGITS = {"move", "scale", "select", "shift"}
_MIXING = {"unknown", "product", "contract", "attention", "norm", "join"}


class Scores:
    """What the nodes of a flow serve, each a list of bool by number.

    Attributes
    ----------
    spent : list of bool
        Whether a node serves only as scores of a softmax, or as queries of a product.
    scores : list of bool
        Whether it serves only what is never 0: a softmax, an exp, a gate.
    asks : list of bool
        Whether it serves only queries or keys, through one weight.
    """

    def __init__(self, flow: Flow) -> None:
        self._flow, count = flow, len(flow.nodes)
        self.spent = [False] * count
        self._feeds = [False] * count  # is a weight operation or softmax, or leads to one
        self.scores = [False] * count
        self.asks = [False] * count
        hidden = [False] * count  # as a user, makes the scores of an additive attention
        logits, scores, queries = [False] * count, [False] * count, [False] * count  # as a user
        for number in reversed(range(count)):
            users, this, is_logit = flow.users[number], flow.nodes[number], False
            if this.kind == "parameter":
                continue
            is_first = this.kind == "weight" or this.does == "softmax"
            self._feeds[number] = is_first or any(map(self._feeds.__getitem__, users))
            if users and number not in flow.outputs:
                is_logit = all(map(logits.__getitem__, users))
                self.scores[number] = all(map(scores.__getitem__, users))
                self.spent[number] = is_logit or all(
                    self._is_summed(number, user) for user in users
                )
                self.spent[number] |= all(map(hidden.__getitem__, users))
                self.asks[number] = all(map(queries.__getitem__, users))
            may = this.kind == "add" or this.does in _LOGITS
            logits[number] = this.does == "softmax" or (is_logit and may)
            is_hidden = bool(users) and all(map(hidden.__getitem__, users))
            hidden[number] = (is_hidden and (may or this.does == "map")) or self._asks_once(number)
            scores[number] = self._is_score(number)
            is_query = self.spent if this.kind == "weight" else self.asks
            queries[number] = is_query[number] and this.kind != "add"

    def _is_score(self, user: int) -> bool:
        """Whether a node makes scores or gates of what it reads, over functions of each entry."""
        flow = self._flow
        node = flow.nodes[user]
        if node.vanishes == "never" and node.does in ("map", "softmax"):
            return user not in flow.outputs
        return self.scores[user] and node.kind != "weight" and node.does not in _MIXING

    def _asks_once(self, number: int) -> bool:
        """Whether a weight makes one score or gate, of other signals, of all that it reads.

        So does v in the additive attention `softmax(v tanh(q + k))`: q + k is a score, too.
        """
        flow = self._flow
        node = flow.nodes[number]
        if node.kind != "weight" or not self.scores[number] or len(node.weights) != 1:
            return False
        size = entries(flow.nodes[flow.at[node.weights[0]]]) * entries(node)
        if size != entries(flow.nodes[flow.args[number][0]]):
            return False
        seen, stack = {number}, [number]
        while stack:
            top = stack.pop()
            for user in flow.users[top]:
                is_own = all(flow.before.is_above(number, to) for to in flow.inputs[user])
                if flow.nodes[user].does in GATES and not is_own:
                    return True
                if user not in seen and flow.nodes[user].kind != "weight":
                    seen.add(user)
                    stack.append(user)
        return False

    def _is_summed(self, number: int, user: int) -> bool:
        flow = self._flow
        node = flow.nodes[user]
        if node.kind == "weight" or node.does == "softmax":
            return node.does == "softmax"
        kept = set(range(len(node.inputs))) - set(node.sums)
        if node.does == "attention" and isinstance(node.vanishes, tuple):
            kept &= set(node.vanishes)
        places = {place for place, to in enumerate(flow.args[user]) if to == number}
        is_query = not places & kept and self._feeds[user]  # else two towers are compared
        return is_query or self.spent[user]
