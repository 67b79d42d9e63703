"""An identical convolution degrades; fusing space into the channels repairs it, in some orders."""

from __future__ import annotations

import inspect
import math
import statistics
from collections.abc import Iterator
from itertools import islice
from typing import Any, get_args

import torch
from torch import Tensor, nn

import idinit_ref
import idinit_ref_torch as irt
from docs.evidence import _nets, _study, _training
from docs.evidence._data import filled
from docs.evidence._study import Row, Verdict
from idinit_ref.core.kernel import Taps

TITLE = "How a kernel becomes a matrix"
CLAIM = (
    "An identical convolution, which places the identity at one tap, degrades; flattening space "
    "and channels together repairs it [P]."
)
HERE = "The texts leave the order of the columns open, so the claim is tested for four orders."
FUSED = ("outward", "diagonal", "channel_major", "spatial_major")
ORDERS = ("outward", "diagonal", "center", "channel_major", "spatial_major")
STARTS = ("default", *ORDERS)
NETS = ("plain", "strided", "average BN", "average", "flattened", "flattened BN", "U-Net")
WIDTHS = (16, 64, 128)
RATES = {
    16: (0.0003, 0.001, 0.003, 0.01, 0.03),
    64: (0.0001, 0.0003, 0.001, 0.003, 0.01),
    128: (0.0001, 0.0003, 0.001, 0.003, 0.01),
}
TUNE, SEEDS = (100,), (0, 1, 2, 3, 4)
STEPS, SIZE = 120, 16
NOISE = {"U-Net": 0.5}
PARTS = (  # nets, width, starts: in this order, each net complete before the next begins
    (NETS, 16, STARTS),
    (NETS[:-1], 64, ("outward", "diagonal")),
    (NETS[:-1], 64, ("default", "center")),
    (NETS[:-1], 64, ("channel_major", "spatial_major")),
    (NETS[-1:], 64, STARTS),
    (NETS, 128, ("outward", "diagonal")),
    (NETS, 128, ("default", "center")),
    (NETS, 128, ("channel_major", "spatial_major")),
)
QUICK = ((("plain", "strided"), 16, ("outward", "channel_major")),)


def cells(quick: bool, rows: list[Row]) -> list[Row]:
    found = []
    for nets, width, starts in QUICK if quick else PARTS:
        for net in nets:
            steps = 60 if quick else STEPS
            rates, seeds = (RATES[width][2:3], SEEDS[:2]) if quick else (RATES[width], SEEDS)
            settings = [{"net": net, "width": width, "taps": t, "steps": steps} for t in starts]
            found += _study.swept(settings, rates, rows, tune=TUNE, seeds=seeds, score="score")
            known = sum(len(_study.pick(rows, **setting)) for setting in settings)
            if known < len(settings) * (len(rates) + len(seeds)):
                return found
    return found


# The nets -----------------------------------------------------------------------------------------


def _conv(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.ReLU()]


def _plain(width: int, *, strided: bool = False) -> nn.Sequential:
    """Return eight convolutions with ReLU; strided: two halve the image and double the channels."""
    layers, inputs = _conv(1, width), width
    for number in range(1, 8):
        stride = 2 if strided and number in (3, 6) else 1
        layers += _conv(inputs, inputs * stride, stride)
        inputs *= stride
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * inputs, 10))


def _residual(width: int, *, norm: bool, average: bool) -> nn.Sequential:
    """Return a residual net of four blocks, the last two of twice the width on half the image."""
    body = _nets.resnet(4, width, norm=norm, stages=2)[:-3]
    pool = [nn.AdaptiveAvgPool2d(1)] if average else []
    head = nn.Linear(2 * width * (1 if average else 16), 10)
    return nn.Sequential(*body, *pool, nn.Flatten(), head)


class UNet(nn.Module):
    """Three levels of two convolutions, transposed ones upwards, and concatenation."""

    def __init__(self, width: int) -> None:
        super().__init__()

        def two(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(*_conv(inputs, outputs), *_conv(outputs, outputs))

        one, half, quarter = width, 2 * width, 4 * width
        self.down1, self.down2, self.middle = two(1, one), two(one, half), two(half, quarter)
        self.pool = nn.MaxPool2d(2)
        self.up2, self.out2 = nn.ConvTranspose2d(quarter, half, 2, 2), two(quarter, half)
        self.up1, self.out1 = nn.ConvTranspose2d(half, one, 2, 2), two(half, one)
        self.head = nn.Conv2d(one, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(self.pool(first))
        up = self.up2(self.middle(self.pool(second)))
        up = self.up1(self.out2(torch.cat([up, second], 1)))
        return self.head(self.out1(torch.cat([up, first], 1)))


def _net(net: str, width: int) -> nn.Module:
    if net == "U-Net":
        return UNet(width)
    if net in ("plain", "strided"):
        return _plain(width, strided=net == "strided")
    return _residual(width, norm="BN" in net, average="average" in net)


# Measuring ----------------------------------------------------------------------------------------


def _task(net: str, images: Tensor, labels: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of noisy images with their labels; for the U-Net images with a hole, and ink.

    The hole is a square of 4 x 4 that is 0; what is asked for is where the whole image has ink.
    """
    noise = torch.Generator().manual_seed(seed)
    for x, y in _training.batches(images, labels, SIZE, 1000, seed):
        yield _seen(net, x, y, noise)


def _seen(net: str, x: Tensor, y: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    seen = x + NOISE.get(net, 0.25) * torch.randn(x.shape, generator=noise)
    if net != "U-Net":
        return seen, y
    corners = torch.randint(0, 5, (len(x), 2, 1), generator=noise)
    row, column = (((torch.arange(8) - corner) // 4 == 0) for corner in corners.unbind(1))
    return seen * ~(row[:, None, :, None] & column[:, None, None, :]), (x[:, 0] > 0).long()


@torch.no_grad()
def _score(net: str, model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the accuracy; of the U-Net the intersection of ink found and true, over the union."""
    if net != "U-Net":
        return _training.accuracy(model, x, y)
    seen, true = _seen(net, x, y, torch.Generator().manual_seed(0))
    model.eval()
    ink, true = model(seen).argmax(1) == 1, true == 1
    return ((ink & true).sum() / (ink | true).sum()).item()


def measure(net: str, width: int, taps: str, steps: int, rate: float, seed: int) -> Row:
    """Train on all training images; to tune a rate, on three quarters of them, half as long.

    The other quarter judges the rate.
    """
    torch.manual_seed(seed)
    x, y, judge, labels = _training.digits()
    if seed in TUNE:
        x, y, judge, labels = x[360:], y[360:], x[:360], y[:360]
        steps //= 2
    model = _net(net, width)
    if taps != "default":
        irt.init_(model, x[:2], taps=taps)
    with torch.no_grad():
        out = model(x[:64])
    optimiser = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    data = islice(_task(net, x, y, seed), steps)
    silent, made = 1.0, 0
    for made, _ in enumerate(_training.train(model, data, optimiser, schedule=schedule), 1):
        if made == 2:  # gradients after one step
            silent = _study.mean(float(not p.grad.any()) for p in model.parameters())
    finite = made == steps
    return {
        "score": _score(net, model, judge, labels) if finite else 0.0,
        "diverged": int(not finite),
        "constant": int(torch.equal(out, out[:1].expand_as(out))),
        "silent": silent,
    }


# What the data say --------------------------------------------------------------------------------


def _places(rows: list[Row], *starts: str) -> list[tuple[str, int]]:
    """Return each net and width, once, where all of these starts were measured."""
    found = dict.fromkeys((row["net"], row["width"]) for row in rows)
    return [place for place in found if all(_scores(rows, place, taps) for taps in starts)]


def _scores(rows: list[Row], place: tuple[str, int], taps: str) -> list[float]:
    net, width = place
    known = _study.judged(rows, SEEDS, net=net, width=width, taps=taps)
    return [row["score"] for row in known]


def _ahead(rows: list[Row], one: str, other: str) -> list[tuple[str, int]]:
    """Return where one is better by more than two standard errors of the difference."""
    return [
        place
        for place in _places(rows, one, other)
        if _study.stands(*(_scores(rows, place, taps) for taps in (one, other))) == "ahead of"
    ]


def _mean(rows: list[Row], taps: str, places: list[tuple[str, int]]) -> float:
    return _study.mean(_study.mean(_scores(rows, place, taps)) for place in places)


def _label(place: tuple[str, int]) -> str:
    return f"{place[0]}, {place[1]}"


def _default(rows: list[Row]) -> str:
    """Return which of outward and diagonal the rule prefers: by counts and means, or outward."""
    won, lost = (len(_ahead(rows, *pair)) for pair in (FUSED[:2], FUSED[1::-1]))
    outward, diagonal = (_mean(rows, taps, _places(rows, *FUSED[:2])) for taps in FUSED[:2])
    return "diagonal" if lost > won and diagonal > outward else "outward"


def _stays(rows: list[Row]) -> bool:
    """Return whether diagonal wins anywhere against outward."""
    return bool(_ahead(rows, "diagonal", "outward"))


def _beside_center(rows: list[Row]) -> dict[str, tuple[int, int, int]]:
    """Return for each flattening: nets where it is ahead, where it is behind, and all nets."""
    found = {}
    for taps in FUSED:
        if size := len(_places(rows, taps, "center")):
            won, lost = (_ahead(rows, *pair) for pair in ((taps, "center"), ("center", taps)))
            found[taps] = len(won), len(lost), size
    return found


def verdict(rows: list[Row]) -> Verdict:
    counts = _beside_center(rows)
    if not counts:  # the quick run
        means = (f"{taps} {_mean(rows, taps, _places(rows)):.2f}" for taps in QUICK[0][2])
        return Verdict("holds in small for outward", f"mean score: {', '.join(means)}")
    figure = "ahead of center by two standard errors, and behind: " + ", ".join(
        f"{taps} in {won} and {lost} of {size} nets" for taps, (won, lost, size) in counts.items()
    )
    won, lost = (_ahead(rows, *pair) for pair in (FUSED[:2], FUSED[1::-1]))
    figure += f"; outward is ahead of diagonal in {len(won)} nets and behind in {len(lost)}"
    good = [taps for taps, (won, lost, size) in counts.items() if won > size / 2 and not lost]
    if len(good) == len(FUSED):
        return Verdict("holds", figure)
    if good:
        return Verdict(f"holds when the order is {' or '.join(good)}", figure)
    return Verdict("does not hold", figure)


def _missing(rows: list[Row]) -> str:
    """Name the nets and starts that were left out."""
    gaps = [
        f"{net}, {width}: {', '.join(lacking)}"
        for width in WIDTHS
        for net in NETS
        if (lacking := [taps for taps in STARTS if not _scores(rows, (net, width), taps)])
        and len(lacking) < len(STARTS)
    ]
    whole = [
        _label((net, width))
        for width in WIDTHS
        for net in NETS
        if not any(_scores(rows, (net, width), taps) for taps in STARTS)
    ]
    said = []
    if whole:
        said.append("; ".join(whole))
    if gaps:
        said.append(f"of some nets these starts: {'; '.join(gaps)}")
    return f"Left out, to save time: {'; and '.join(said)}." if said else "Nothing was left out."


def page(rows: list[Row]) -> str:
    places = _places(rows)
    starts = [taps for taps in STARTS if any(_scores(rows, place, taps) for place in places)]
    orders = [taps for taps in starts if taps != "default"]
    say = lambda found: "; ".join(map(_label, found)) or "none"  # noqa: E731

    def line(place: tuple[str, int], show: Any) -> tuple[str, ...]:
        net, width = place
        known = (_study.pick(rows, net=net, width=width, taps=taps) for taps in starts)
        return (_label(place), *(show(found) if found else "" for found in known))

    def judged(found: list[Row]) -> list[Row]:
        return _study.judged(found, SEEDS)

    def swept(found: list[Row]) -> str:
        rate = judged(found)[0]["rate"]
        tuned = (row for row in found if row["seed"] in TUNE)
        parts = (
            f"**{row['score']:.2f}**" if row["rate"] == rate else f"{row['score']:.2f}"
            for row in tuned
        )
        return " ".join(parts)

    scores = [
        line(place, lambda found: _study.spread(row["score"] for row in judged(found)))
        for place in places
    ]
    silent = [
        line(
            place,
            lambda found: (
                f"{_study.mean(row['silent'] for row in judged(found)):.2f}"
                + (", constant" if all(row["constant"] for row in judged(found)) else "")
            ),
        )
        for place in places
    ]
    sweep = [line(place, swept) for place in places]
    pairs = [
        (
            one,
            *(
                ""
                if one == other
                else f"{len(_ahead(rows, one, other))} of {len(_places(rows, one, other))}"
                for other in starts
            ),
        )
        for one in starts
    ]
    diverged = sum(row["diverged"] for row in rows)
    rates = "; ".join(
        f"width {width}: {', '.join(f'{rate:g}' for rate in RATES[width])}" for width in WIDTHS
    )
    return filled(
        "convolution",
        steps=STEPS,
        size=SIZE,
        rates=rates,
        diverged=diverged,
        count=len(rows),
        missing=_missing(rows),
        scores=_study.table(("net, width", *starts), scores),
        chance=_chance(),
        pairs=_study.table(("", *starts), pairs),
        decision=_decision(rows, say) if set(FUSED[:2]) <= set(orders) else "",
        silent=_study.table(("net, width", *starts), silent),
        blind=_blind(rows),
        sweep=_study.table(("net, width", *starts), sweep),
    )


def _blind(rows: list[Row]) -> str:
    """Name the cases in which no rate was above chance when the rate was chosen."""
    best: dict[str, float] = {}
    for row in rows:
        if row["seed"] in TUNE:
            name = f"{_label((row['net'], row['width']))}, {row['taps']}"
            best[name] = max(best.get(name, 0.0), row["score"])
    return "; ".join(name for name, score in best.items() if score < 0.15) or "nowhere"


def _chance() -> float:
    """Return the score of ink everywhere, on the images that judge."""
    judge = _training.digits()[2]
    return (judge > 0).float().mean().item()


def _decision(rows: list[Row], say: Any) -> str:
    """Return the section that decides between outward and diagonal."""
    both = _places(rows, *FUSED[:2])
    won, lost = (_ahead(rows, *pair) for pair in (FUSED[:2], FUSED[1::-1]))
    means = [_mean(rows, taps, both) for taps in FUSED[:2]]
    by = "by counts and means" if _default(rows) == "diagonal" else _why(won, lost, means)
    runs = [_scores(rows, place, taps) for place in both for taps in FUSED[:2]]
    error = math.sqrt(sum(statistics.variance(run) / len(run) for run in runs)) / len(both)
    lowest = [_study.mean(map(min, runs[start::2])) for start in (0, 1)]
    above = [
        [
            place
            for place, *pair in zip(both, runs[::2], runs[1::2], strict=True)
            if min(pair[first]) > max(pair[1 - first])
        ]
        for first in (0, 1)
    ]
    spreads = [_study.mean(map(statistics.stdev, runs[start::2])) for start in (0, 1)]
    others = "\n".join(
        f"* diagonal than {other} in: {say(_ahead(rows, 'diagonal', other))}."
        for other in STARTS
        if other not in FUSED[:2]
    )
    return filled(
        "convolution_order",
        won=say(won),
        lost=say(lost),
        others=others,
        nets=len(both),
        means=means,
        error=error,
        spreads=spreads,
        better=_default(rows),
        by=by,
        default=_has(),
        ahead=len(lost),
        chance=len(both) / 24,
        fate="it stays" if _stays(rows) else "it goes",
        above=[say(places) for places in above],
        lowest=lowest,
    )


def _has() -> str:
    """Return the order that is the package's default."""
    return str(inspect.signature(idinit_ref.plan).parameters["taps"].default)


def _why(won: list[Any], lost: list[Any], means: list[float]) -> str:
    """Return the reasons for outward: counts, means, both, or that it is the simpler one."""
    reasons = ["counts"] * (len(won) > len(lost)) + ["means"] * (means[0] > means[1])
    return f"by {' and '.join(reasons)}" if reasons else "the simpler of two that are level"


def draw(rows: list[Row], figure: Any) -> None:
    places = _places(rows)
    widths = list(dict.fromkeys(width for _, width in places))
    panels = figure.subplots(len(widths), 1, squeeze=False)[:, 0]
    for axes, width in zip(panels, widths, strict=True):
        here = [place for place in places if place[1] == width]
        for number, taps in enumerate(STARTS):
            for spot, place in enumerate(here):
                if values := _scores(rows, place, taps):
                    axes.bar(
                        spot + (number - 2.5) * 0.14,
                        _study.mean(values),
                        0.13,
                        yerr=float(torch.tensor(values).std()),
                        error_kw={"linewidth": 0.7},
                        color=f"C{number}",
                        label=None if spot else taps,
                    )
        axes.set_xticks(range(len(here)), [net for net, _ in here], fontsize=8)
        axes.set_xlim(-0.5, len(NETS) - 0.5)
        axes.set_ylabel(f"score, width {width}")
    panels[0].legend(ncols=6, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1))


def check(rows: list[Row]) -> None:
    for net in ("plain", "strided"):  # the image moves out of sight but where its tap stays
        outward, corner = (_mean(rows, taps, [(net, 16)]) for taps in ("outward", "channel_major"))
        assert outward > corner + 0.2
    assert _mean(rows, "channel_major", [("strided", 16)]) < 0.2  # chance
    if any(row["taps"] == "diagonal" for row in rows):  # what choices.md says
        won, lost, size = _beside_center(rows)["outward"]
        assert (won, lost) == (size, 0)
        assert _default(rows) == "diagonal"
        chains = {net: net in ("plain", "strided") for net in NETS}  # nets without skips
        assert all(chains[net] for net, _ in _ahead(rows, "outward", "diagonal"))
        assert not any(chains[net] for net, _ in _ahead(rows, "diagonal", "outward"))
        assert _stays(rows) == ("diagonal" in get_args(Taps))


if __name__ == "__main__":
    _study.main("convolution")
