"""The command ``idinit``: look at weights, write checkpoints. Needs the extra ``cli`` (rich).

Here are its arguments, its signals and its errors; the modules beside it do the work.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, get_args

from .. import __version__
from ..core.kernel import Taps
from ..core.noise import LoosenAt
from ..core.pattern import Form, Role, Wide
from ..errors import IDInitError
from ._terminal import say

_WIDTH = 40  # the least width; a narrower terminal breaks the lines itself


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``idinit`` with some arguments, those of the process if left out.

    Return the exit status: 0, 2 for an error (one line on stderr), 1 where the reader of the
    output went away, and 128 + its number after SIGINT (Ctrl-C), SIGTERM or SIGHUP.

    >>> main(["--version"])  # doctest: +ELLIPSIS
    idinit ...
    0
    """
    try:
        with _signals():
            try:
                status = _run(argv)
            except SystemExit as stop:  # of argparse, and of rich where the pipe is broken
                status = stop.code if isinstance(stop.code, int) else 1
            if sys.stdout is not None:  # None where the shell closed it
                sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as stop:
        number = signal.Signals(stop.args[0] if stop.args else signal.SIGINT)
        return _fail(f"stopped by {number.name}; no unfinished file is left", 128 + number)
    except ImportError as problem:
        if (problem.name or "").partition(".")[0] == "rich":
            return _fail('it needs rich: pip install "idinit-ref[cli]"')
        if "idinit-ref[" not in str(problem):
            raise
        return _fail(str(problem))
    except OSError as problem:
        where = f"{problem.filename}: " if problem.filename else ""
        return _fail(where + (problem.strerror or str(problem)))
    except (IDInitError, UnicodeError) as problem:
        return _fail(str(problem))
    except MemoryError:
        return _fail("the memory is not enough for this")
    except RecursionError:
        return _fail("the input is nested too deeply")
    return status


def _run(argv: Sequence[str] | None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = _parser(argv).parse_args(argv)
    if args.command is None:
        sys.stderr.write(_FIRST)
        return 2
    from rich.console import Console

    console = Console(highlight=False, emoji=False)
    if console.width < _WIDTH:
        console.width = _WIDTH
    status: int | None = _command(args.command)(args, console)
    return status or 0


def _command(name: str) -> Any:
    """Return what runs a command; check is with the oracle, since it needs Hypothesis."""
    if name == "check":
        from ..testing._command import check

        return check
    return importlib.import_module(f".{name}", __package__).run


def _fail(text: str, status: int = 2) -> int:
    say(text)
    return status


@contextmanager
def _signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end the work as Ctrl-C does, so that it can clean up.

    What is ignored (under nohup) or has the caller's own handler stays as it is.
    """
    before: dict[int, Any] = {}

    def stop(number: int, _: object) -> NoReturn:
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # a terminal that closes may send two
        raise KeyboardInterrupt(number)

    try:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows lacks the last
                number = getattr(signal, name, None)
                usual = signal.SIG_DFL, signal.default_int_handler
                if number is not None and signal.getsignal(number) in usual:
                    before[number] = signal.getsignal(number)
                    signal.signal(number, stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Parser(argparse.ArgumentParser):
    """Errors in one line, like all the others; -1e-6 and -inf are numbers, not options."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._negative_number_matcher = re.compile(r"-(\.?\d|inf|nan)")  # argparse's lacks them

    def error(self, message: str) -> NoReturn:
        raise SystemExit(_fail(f"{message} (see {self.prog} --help)"))


_TASKS = """\
look at a weight
  show      print a weight and what holds for it

write a checkpoint
  presets   list the models that are known by name
  rules     show which rule knows which name
  export    write a model's weights into a checkpoint

look into checkpoints
  inspect   say what every tensor of a checkpoint is
  diff      compare two checkpoints

test an initialiser
  check     run the reference's properties against an implementation

`idinit COMMAND --help` shows the options of a command.
"""

_FIRST = """\
idinit needs a command. Three to begin with:

  idinit show 6 4                                      a weight, and what holds for it
  idinit export --preset gpt2 --out gpt2.safetensors   a model's weights in a file
  idinit check torch.nn.init:eye_ --expect transit     a test of an initialiser

`idinit --help` lists all commands.
"""


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser, with the options of the command that is asked for."""
    parser = _Parser(
        prog="idinit",
        usage="idinit [-h] [--version] COMMAND ...",
        description="IDInit: look at its weights, write checkpoints, test initialisers.",
        epilog=_TASKS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"idinit {__version__}")
    commands = parser.add_subparsers(
        prog="idinit", metavar="COMMAND", dest="command", help=argparse.SUPPRESS
    )
    everyone = {add.__name__[1:]: add for add in _COMMANDS}
    asked = next((argument for argument in argv if argument in everyone), None)
    for add in _COMMANDS if asked is None else (everyone[asked],):  # the others would take time
        add(commands)
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", default=False, help="print JSON")


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        should = f"{text!r}, but it should be whole numbers with commas between; write 2,2"
        raise argparse.ArgumentTypeError(should) from None


def _show(commands: Any) -> None:
    show = commands.add_parser(
        "show", help="print a weight and what holds for it", argument_default=argparse.SUPPRESS
    )
    add = show.add_argument
    add("size", type=int, nargs="+", metavar="SIZE", help="the shape, e.g. 8 2 3 3")
    add("--role", choices=get_args(Role), help="transit (the default) or zero")
    add("--layout", help="a letter for each axis: O, I, D H W; others are batches")
    add("--gain", type=float, help="tau of IDI (default 1)")
    add("--eps", type=float, help="eps of IDIZ (default 1e-06)")
    add("--wide", choices=get_args(Wide), help="what IDI does with a wide matrix")
    add("--form", choices=get_args(Form), help="what IDIZ does with a wide matrix")
    add("--taps", choices=get_args(Taps), help="how a kernel becomes a matrix (default outward)")
    add("--tap", type=_integers, metavar="I,J", help="the identity tap (default (k - 1) // 2)")
    add("--stride", type=_integers, metavar="S,S", help="of a transposed kernel: it has phases")
    add("--groups", type=int, metavar="N")
    add("--transposed", action="store_true", help="I holds all inputs of all groups")
    add("--blocks", type=_integers, metavar="M,M", help="cut the outputs")
    add("--loosen", type=float, metavar="S", help="add noise of this deviation")
    add("--loosen-at", choices=get_args(LoosenAt), help="where that noise goes")
    add("--seed", type=int, metavar="K", help="of that noise")
    add("--dtype", default="float64", help="round into it first (default float64)")
    add("--plot", metavar="FILE", help="draw it, too, into FILE.svg or FILE.png (needs matplotlib)")
    add("--force", action="store_true", default=False, help="replace FILE if it is there")
    _add_json(show)


def _presets(commands: Any) -> None:
    _add_json(commands.add_parser("presets", help="list the models that are known by name"))


def _add_source(parser: argparse.ArgumentParser) -> None:
    """Add where names and shapes come from, and whose rules say what they are."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--preset", metavar="NAME", help="a model of: idinit presets")
    source.add_argument("--manifest", metavar="FILE.json", help="names with shapes, as JSON")
    source.add_argument(
        "--from", dest="checkpoint", metavar="CHECKPOINT", help="the header of a file or a folder"
    )
    parser.add_argument(
        "--rule",
        dest="rules",
        action="append",
        default=[],
        metavar="REGEX=ROLE[,OPTION=VALUE...]",
        help="transit, zero, bias or keep, before the known rules; may be given often",
    )


def _rules(commands: Any) -> None:
    rules = commands.add_parser("rules", help="show which rule knows which name")
    _add_source(rules)
    rules.add_argument("--strict", action="store_true", help="a name that none knows is an error")
    _add_json(rules)


def _export(commands: Any) -> None:
    from ..files.bits import FLOATS

    export = commands.add_parser(
        "export",
        help="write a model's weights into a checkpoint",
        description="Write IDI, IDIZ and zero biases; copy or fill the rest where asked to.",
    )
    _add_source(export)
    add = export.add_argument
    add(
        "--out",
        required=True,
        metavar="FILE",
        help=".safetensors, .npz, .weights.h5, .distcp or .orbax",
    )
    add("--dtype", choices=FLOATS, default="float32", help="default float32")
    add("--gain", type=float, default=1.0, help="tau of IDI (default 1)")
    add("--eps", type=float, default=1e-6, help="eps of IDIZ (default 1e-06)")
    add("--wide", choices=get_args(Wide), default="truncate", help="what IDI does if wide")
    add("--keep-from", metavar="CHECKPOINT", help="copy what IDInit does not define from it")
    add(
        "--fill",
        dest="fills",
        action="append",
        default=[],
        metavar="PATTERN=RULE",
        help="zeros, ones, identity, constant:V or normal:STD[:SEED]; may be given often",
    )
    add("--dialect", metavar="NAME", help="torch, flax, linen, keras, or a FILE.json")
    add("--shard-size", metavar="SIZE", help="the most bytes of a shard: 5GB, 500MiB, ...")
    add("--digests", action="store_true", help="store a SHA-256 of each tensor")
    add("--strict", action="store_true", help="nothing may be left out")
    add("--dry-run", action="store_true", help="say what would be written")
    add("--force", action="store_true", help="replace files that are there")
    _add_json(export)


def _inspect(commands: Any) -> None:
    inspect = commands.add_parser(
        "inspect",
        help="say what every tensor of a checkpoint is",
        description="Exit status: 0, or 1 if a digest or a claim of the file is wrong, 2 for an "
        "error.",
    )
    inspect.add_argument("file", metavar="CHECKPOINT")
    inspect.add_argument(
        "--lenient", action="store_true", help="name what cannot be read, and go on (status 1)"
    )
    _add_json(inspect)


def _diff(commands: Any) -> None:
    diff = commands.add_parser(
        "diff",
        help="compare two checkpoints",
        description="Exit status: 0 if they are equal, 1 if they differ, 2 for an error.",
    )
    diff.add_argument("a", metavar="A")
    diff.add_argument("b", metavar="B")
    diff.add_argument("--dialect", metavar="NAME", help="that of B, where A has PyTorch's names")
    _add_json(diff)


def _check(commands: Any) -> None:
    check = commands.add_parser(
        "check",
        help="run the reference's properties against an implementation",
        description="Test an initialiser, with gain 1 or eps 1e-6, and with the options it takes.",
    )
    add = check.add_argument
    add("target", metavar="package.module:function", help="modules here are found")
    add("--like", choices=("idi", "idiz", "both"), help="what it should be")
    add("--layout", default="OI", help="of its matrices (default OI), or none")
    add("--conv", metavar="LAYOUT", help="of its kernels, OIHW say: tests them too")
    add("--taps", choices=get_args(Taps), default="outward", help="default outward")
    add("--wide", choices=get_args(Wide), default="truncate")
    add("--form", choices=get_args(Form), default="pair", help="default pair")
    add("--stride", type=_integers, metavar="S,S", help="kernels are for a transposed convolution")
    add("--framework", metavar="NAME", help="numpy, torch, jax, tensorflow, ...")
    add("--expect", metavar="A,B", help="these properties alone, e.g. transit,rank")
    add("--examples", type=int, default=50, metavar="N", help="of each (default 50)")
    add("--seed", type=int, default=0, metavar="K", help="of the examples")
    add(
        "--budget",
        type=float,
        default=3.0,
        metavar="SECONDS",
        help="for each property, and the most for one call (default 3)",
    )
    add("--junit", metavar="FILE", help="write JUnit XML")
    add("--json", metavar="FILE", help="write JSON")


_COMMANDS = (_show, _presets, _rules, _export, _inspect, _diff, _check)


if __name__ == "__main__":
    sys.exit(main())
