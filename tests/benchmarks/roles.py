"""Time the rule for roles over sizes that double, for many ways to write sums.

    python tests/benchmarks/roles.py              # graphs that are built directly: two minutes
    python tests/benchmarks/roles.py --torch      # also models that PyTorch traces: four minutes
    python tests/benchmarks/roles.py --only dense --largest 16000

Each line has the adds that were asked for (for concatenations, the tensors that are joined), the
edges of the graph, and processor seconds. The exponent is that of the time over the edges, from one
line to the next: 1 is linear. In a dense network each layer reads the sum of all earlier results.
"""

from __future__ import annotations

import argparse
import gc
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))
sys.path.append(str(Path(__file__).resolve().parents[2] / "adapters"))

from idinit_ref.roles import Graph, Node, explain_roles

SIZE = 8


class Program:
    """A graph that is written as a program; every method returns the name of its node."""

    def __init__(self) -> None:
        self.nodes = [Node("x", "input", shape=(2, SIZE))]

    def new(self, *args: Any, **more: Any) -> str:
        """Add a node with a name of its own."""
        name = f"n{len(self.nodes)}"
        self.nodes.append(Node(name, *args, **more))
        return name

    def weight(self, x: str) -> str:
        """Add a dense layer."""
        own = self.new("parameter", shape=(SIZE, SIZE), use="weight", options={"layout": "OI"})
        return self.new("weight", (x,), (2, SIZE), weights=(own,))

    def layer(self, x: str) -> str:
        """Add a dense layer and its activation."""
        return self.new("other", (self.weight(x),), (2, SIZE), does="map")

    def branch(self, x: str) -> str:
        """Add a normalised layer and a second one."""
        return self.weight(self.layer(self.new("other", (x,), (2, SIZE), does="norm")))

    def add(self, left: str, right: str) -> str:
        """Add a sum."""
        return self.new("add", (left, right), (2, SIZE))

    def sum(self, terms: Sequence[str]) -> str:
        """Add the first to the second, the third to that, and so on."""
        total = terms[0]
        for term in terms[1:]:
            total = self.add(total, term)
        return total

    def scale(self, x: str) -> str:
        """Add a multiple."""
        return self.new("other", (x,), (2, SIZE), does="scale")

    def gated(self, x: str, by: str) -> str:
        """Add a product with a gate, a sigmoid of a dense layer of another signal."""
        gate = self.new("other", (self.weight(by),), (2, SIZE), does="map", vanishes="never")
        return self.new("other", (x, gate), (2, SIZE), does="product", vanishes=(0, 1))

    def join(self, parts: Sequence[str]) -> str:
        """Add a concatenation."""
        return self.new("other", tuple(parts), (2, SIZE * len(parts)), does="join")

    def graph(self, *outputs: str) -> Graph:
        """Return the graph."""
        return Graph(self.nodes, outputs)


Pick = Callable[[Program, list[str]], str]
"""How a layer sums all earlier results."""


def _tree(net: Program, terms: list[str]) -> str:
    while len(terms) > 1:
        pairs = [terms[at : at + 2] for at in range(0, len(terms), 2)]
        terms = [net.add(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return terms[0]


def _shuffled(net: Program, terms: list[str]) -> str:
    order = random.Random(len(net.nodes)).sample(terms, len(terms))
    return net.sum(order)


def _weighted(net: Program, terms: list[str]) -> str:
    return net.sum([net.scale(term) for term in terms])


def _gated(net: Program, terms: list[str]) -> str:
    return net.sum([net.gated(term, terms[-1]) for term in terms])


def _gated_shuffled(net: Program, terms: list[str]) -> str:
    return _shuffled(net, [net.gated(term, terms[-1]) for term in terms])


def dense(pick: Pick, branch: bool = False, onto: bool = False) -> Callable[[int], Graph]:
    """Return networks of about n adds whose layers each read a sum of all earlier results.

    A layer is a branch, or is added onto the last result.
    """

    def make(n: int) -> Graph:
        net = Program()
        results = ["x"]
        for _ in range(max(math.isqrt(2 * n), 2)):
            h = pick(net, list(results)) if len(results) > 1 else results[0]
            new = net.branch(h) if branch or onto else net.layer(h)
            results.append(net.add(results[-1], new) if onto else new)
        return net.graph(net.weight(results[-1]))

    return make


def blocks(n: int) -> Graph:
    """Return residual blocks, one after the other."""
    net, x = Program(), "x"
    for _ in range(n):
        x = net.add(x, net.weight(net.layer(x)))
    return net.graph(x)


def first_again(n: int) -> Graph:
    """Return residual blocks that each add the input again."""
    net, x = Program(), "x"
    for _ in range(n // 2):
        x = net.add(net.add(x, net.branch(x)), "x")
    return net.graph(x)


def first_inside(n: int) -> Graph:
    """Return residual blocks that each read the input again, too."""
    net, x = Program(), "x"
    for _ in range(n // 2):
        x = net.add(x, net.branch(net.add(x, "x")))
    return net.graph(x)


def onto_the_start(n: int) -> Graph:
    """Return x + (x + (x + ... layer(x)))."""
    net = Program()
    y = net.branch("x")
    for _ in range(n):
        y = net.add("x", y)
    return net.graph(net.weight(y))


def reversible(n: int) -> Graph:
    """Return RevNet's blocks, whose two streams are joined at the end."""
    net = Program()
    one = two = "x"
    for _ in range(n // 2):
        one = net.add(one, net.branch(two))
        two = net.add(two, net.branch(one))
    return net.graph(net.join([one, two]))


def u_net(joined: bool) -> Callable[[int], Graph]:
    """Return a way down, and a way up that adds or joins what was there."""

    def make(n: int) -> Graph:
        net, x, ways = Program(), "x", []
        for _ in range(n // 3):
            x = net.add(x, net.branch(x))
            ways.append(x)
            x = net.layer(x)
        for way in reversed(ways):
            x = net.layer(x)
            x = net.layer(net.join([way, x]) if joined else net.add(way, x))
            x = net.add(x, net.branch(x))
        return net.graph(x)

    return make


def dense_net(n: int) -> Graph:
    """Return layers that read a concatenation of all earlier results; n is all that they read."""
    net, results = Program(), ["x"]
    for _ in range(math.isqrt(2 * n)):
        results.append(net.layer(net.join(results)))
    return net.graph(net.join(results))


def halves(n: int) -> Graph:
    """Return layers that are added to a sum, each with the layer half as far from the start."""
    net, total, layers = Program(), "x", ["x"]
    for _ in range(n // 2):
        layers.append(net.weight(net.scale(total)))
        total = net.add(net.add(layers[-1], total), layers[len(layers) // 2])
    return net.graph(total)


def projections(n: int) -> Graph:
    """Return blocks with a weight on the skip."""
    net, x = Program(), "x"
    for _ in range(n):
        x = net.add(net.weight(x), net.branch(x))
    return net.graph(x)


def nested(n: int) -> Graph:
    """Return projections inside each other: f(x) = w(x) + g(f(h(x)))."""
    net, skips, x = Program(), list[str](), "x"
    for _ in range(n):
        skips.append(net.weight(x))
        x = net.layer(x)
    for skip in reversed(skips):
        x = net.add(skip, net.layer(net.layer(x)))
    return net.graph(net.weight(x))


def fused(n: int) -> Graph:
    """Return stages of four streams, each of which then is a sum of layers of all four (HRNet)."""
    net = Program()
    streams = [net.layer("x") for _ in range(4)]
    for _ in range(n // 16):
        streams = [net.add(x, net.branch(x)) for x in streams]
        streams = [net.sum([x if x == own else net.weight(x) for x in streams]) for own in streams]
    return net.graph(net.join(streams))


def all_layers(net: Program, count: int, residual: bool = True) -> list[str]:
    """Add blocks, or plain layers, one after the other, and return the input and their results."""
    results = ["x"]
    for _ in range(count):
        last = results[-1]
        results.append(net.add(last, net.branch(last)) if residual else net.layer(last))
    return results


def knowledge(residual: bool) -> Callable[[int], Graph]:
    """Return layers that are all summed behind the last one, the newest first."""

    def make(n: int) -> Graph:
        net = Program()
        results = all_layers(net, n // 2, residual)
        return net.graph(net.weight(net.sum(results[::-1])))

    return make


def long_skips(n: int) -> Graph:
    """Return blocks, and as many that each add what was there, the newest first."""
    net = Program()
    results = all_layers(net, n // 3)
    x = results[-1]
    for result in reversed(results[1:]):
        x = net.add(net.add(x, net.branch(x)), result)
    return net.graph(x)


def losses(n: int) -> Graph:
    """Return blocks with a head each, whose results are summed."""
    net = Program()
    return net.graph(net.sum([net.weight(x) for x in all_layers(net, n // 2)]))


def twice(n: int) -> Graph:
    """Return layers that are added to one sum twice: at once, and when all are there."""
    net, total, layers = Program(), "x", []
    for _ in range(n // 2):
        layers.append(net.layer(total))
        total = net.add(total, layers[-1])
    return net.graph(net.weight(net.sum([total, *layers])))


def recurrent(n: int) -> Graph:
    """Return the sum of the states of a recurrent layer, the first ones first."""
    net = Program()
    names = [net.new("parameter", shape=(SIZE, SIZE), use="weight") for _ in "wu"]
    states: list[str] = []
    for _ in range(n // 2):
        reads = [net.new("other", ("x",), (2, SIZE), does="select"), *states[-1:]]
        own = [
            net.new("weight", (x,), (2, SIZE), weights=(name,))
            for x, name in zip(reads, names, strict=False)
        ]
        states.append(net.new("other", (net.sum(own),), (2, SIZE), does="map"))
    return net.graph(net.weight(net.scale(net.sum(states))))


def grid(n: int) -> Graph:
    """Return rows of sums, each of the sum above and a layer of the one to the left."""
    net, size = Program(), max(math.isqrt(n), 2)
    row = all_layers(net, size, False)
    for _ in range(size):
        new = [net.layer(row[0])]
        for above in row[1:]:
            new.append(net.add(above, net.weight(new[-1])))
        row = new
    return net.graph(row[-1])


def experts(n: int) -> Graph:
    """Return residual blocks whose branches are sums of 64 experts, each by its gate."""
    net, x = Program(), "x"
    for _ in range(max(n // 64, 1)):
        logits = net.weight(x)
        gate = net.new("other", (logits,), (2, SIZE), does="softmax", vanishes="never")
        terms = []
        for _ in range(64):
            own = net.new("other", (gate,), (2, 1), does="select")
            pair = net.weight(net.layer(x)), own
            terms.append(net.new("other", pair, (2, SIZE), does="product", vanishes=(0, 1)))
        x = net.add(x, net.sum(terms))
    return net.graph(x)


SHAPES: dict[str, Callable[[int], Graph]] = {
    "residual blocks": blocks,
    "dense, oldest first": dense(lambda net, terms: net.sum(terms)),
    "dense, newest first": dense(lambda net, terms: net.sum(terms[::-1])),
    "dense, in random order": dense(_shuffled),
    "dense, by a tree": dense(_tree),
    "dense, multiples, newest first": dense(lambda net, terms: _weighted(net, terms[::-1])),
    "dense, multiples, oldest first": dense(_weighted),
    "dense, branches, newest first": dense(lambda net, terms: net.sum(terms[::-1]), True),
    "dense, branches, in random order": dense(_shuffled, True),
    "dense, multiples, onto the stream": dense(_weighted, onto=True),
    "dense, gated": dense(_gated),
    "dense, gated, onto the stream": dense(_gated, onto=True),
    "dense, gated, onto the stream, in random order": dense(_gated_shuffled, onto=True),
    "all layers, newest first": knowledge(False),
    "all residual blocks, newest first": knowledge(True),
    "blocks with long skips": long_skips,
    "a sum of losses": losses,
    "layers twice in one sum": halves,
    "layers twice in one sum, much later": twice,
    "a grid of sums": grid,
    "a mean of recurrent states": recurrent,
    "concatenations": dense_net,
    "the input again behind each block": first_again,
    "the input again inside each block": first_inside,
    "x + (x + (x + ...))": onto_the_start,
    "RevNet": reversible,
    "U-Net, added": u_net(False),
    "U-Net, joined": u_net(True),
    "projections": projections,
    "projections inside each other": nested,
    "HRNet": fused,
    "64 experts": experts,
}


# Models that PyTorch traces -------------------------------------------------------------------

TORCH: dict[str, Callable[[Any, list[Any], Any], Any]] = {
    "oldest first": lambda torch, r, w: sum(r[1:], start=r[0]),
    "newest first": lambda torch, r, w: sum(r[-2::-1], start=r[-1]),
    "sum(list)": lambda torch, r, w: sum(r),
    "stack(...).sum(0)": lambda torch, r, w: torch.stack(r).sum(0),
    "with learned weights, newest first": lambda torch, r, w: sum(
        a * b for a, b in zip(w, r[::-1], strict=False)
    ),
    "cat": lambda torch, r, w: torch.cat(r, -1),
}


def traced(how: str) -> Callable[[int], tuple[Any, Any]]:
    """Return dense models of about n adds, and their inputs."""

    def make(n: int) -> tuple[Any, Any]:
        import torch

        count, mix = max(math.isqrt(2 * n), 2), TORCH[how]

        class Model(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                widths = [SIZE * (k + 1) if how == "cat" else SIZE for k in range(count)]
                self.layers = torch.nn.ModuleList(torch.nn.Linear(width, SIZE) for width in widths)
                self.scales = torch.nn.Parameter(torch.ones(count, count + 1))

            def forward(self, x: Any) -> Any:
                results = [x]
                for layer, scales in zip(self.layers, self.scales, strict=True):
                    results.append(torch.tanh(layer(mix(torch, results, scales))))
                return results[-1]

        return Model(), torch.ones(2, SIZE)

    return make


# Times ----------------------------------------------------------------------------------------


def seconds(run: Callable[[], Any], tries: int = 3) -> float:
    """Return the least processor time of a call."""
    found = []
    for _ in range(tries):
        gc.collect()
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
        if found[0] > 5:
            break
    return min(found)


def direct(n: int, make: Callable[[int], Graph]) -> tuple[int, dict[str, float]]:
    """Return the edges of a graph, and the seconds of the rule."""
    graph = make(n)
    edges = sum(len(node.inputs) for node in graph.nodes)
    return edges, {"rule": seconds(lambda: explain_roles(graph))}


def by_torch(n: int, make: Callable[[int], tuple[Any, Any]]) -> tuple[int, dict[str, float]]:
    """Return the edges of a model's graph, and the seconds of trace, rule, and all of `init_`."""
    import idinit_ref_torch as irt

    model, inputs = make(n)
    edges, took = direct(n, lambda _: irt.trace(model, inputs))
    start = seconds(lambda: irt.trace(model, inputs))
    whole = seconds(lambda: irt.init_(model, inputs), 1)
    return edges, {"trace": start, **took, "init_": whole}


def measured(
    measure: Callable[[int], tuple[int, dict[str, float]]], largest: int, limit: float
) -> Iterator[str]:
    """Yield sizes, times and exponents; the last line is the first that takes too long."""
    before: tuple[int, dict[str, float]] | None = None
    for n in (largest // 8, largest // 4, largest // 2, largest):
        edges, took = measure(n)
        text = f"{n:7} {edges:8}"
        for name, time_ in took.items():
            text += f"   {name} {time_:7.3f} s"
            if before:
                exponent = math.log(time_ / before[1][name]) / math.log(edges / before[0])
                text += f" ({exponent:.2f})"
        yield text
        before = edges, took
        if max(took.values()) > limit:
            return


def main() -> None:
    """Print all times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a part of the names of what is timed")
    parser.add_argument("--largest", type=int, default=8000, help="the most adds")
    parser.add_argument("--limit", type=float, default=10, help="seconds, for smaller sizes only")
    parser.add_argument("--torch", action="store_true", help="trace models, too")
    args = parser.parse_args()
    rows = {name: partial(direct, make=make) for name, make in SHAPES.items()}
    if args.torch:
        rows |= {f"PyTorch, {how}": partial(by_torch, make=traced(how)) for how in TORCH}
    if not any(args.only in name for name in rows):
        parser.error(
            f"--only {args.only!r} names nothing; it should be a part of {', '.join(rows)}"
        )
    for name, measure in rows.items():
        if args.only in name:
            print(name)
            for line in measured(measure, args.largest, args.limit):
                print(line, flush=True)
    for name in ("residual blocks",) if args.only in "residual blocks" else ():
        _, took = direct(10_000, SHAPES[name])
        print(f"10,000 {name}: {took['rule']:.2f} s")


if __name__ == "__main__":
    main()
