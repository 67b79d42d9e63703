"""The command ``idinit``: look at weights, write checkpoints, test initialisers.

This module has its arguments, signals and errors; the other modules are its commands.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar, get_args

from .. import __version__
from ..core.kernel import Taps
from ..core.noise import LoosenAt
from ..core.pattern import Form, Wide
from ..errors import IDInitError, OptionError, message
from ._terminal import Console, say, width

_Number = TypeVar("_Number", int, float)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``idinit`` with some arguments, by default those of the process.

    Return the exit status: 0; 2 after an error (one line on stderr); 1 if the reader of the output
    has closed it; 128 + the signal's number after SIGINT (Ctrl-C), SIGTERM or SIGHUP.

    >>> main(["--version"])  # doctest: +ELLIPSIS
    idinit ...
    0
    """
    try:
        with _signals():
            try:
                status = _run(argv)
            except SystemExit as stop:  # from argparse, after --help
                status = stop.code if isinstance(stop.code, int) else 1
            if sys.stdout is not None:  # None if the shell has closed it
                sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as stop:
        number = signal.Signals(stop.args[0] if stop.args else signal.SIGINT)
        return _fail(f"stopped by {number.name}; no unfinished file is left", 128 + number)
    except ImportError as problem:
        if "idinit-ref[" not in str(problem):
            raise
        return _fail(str(problem))
    except OSError as problem:
        said = problem.strerror or str(problem)
        if problem.filename:  # from Python itself
            cure = "name one that exists and that you may read or write"
            said = message("path", problem.filename, f"it cannot be used ({said})", cure)
        return _fail(said)
    except (IDInitError, UnicodeError) as problem:
        return _fail(str(problem))
    except MemoryError as problem:
        return _fail(str(problem) or "there is not enough memory")
    except RecursionError:
        return _fail("the input is nested too deeply")
    return status


def _run(argv: Sequence[str] | None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args, unknown = _parser(argv).parse_known_args(argv)
    if unknown:
        prog = f"idinit {args.command}" if args.command else "idinit"
        cure = f"see {prog} --help"
        raise OptionError(message("arguments", " ".join(unknown), f"{prog} takes none such", cure))
    if args.command is None:
        if sys.stderr is not None:  # None if the shell has closed it
            sys.stderr.write(_FIRST)
        return 2
    command = importlib.import_module(f".{args.command}", __package__)
    status: int | None = command.run(args, Console())
    return status or 0


def _fail(text: str, status: int = 2) -> int:
    say(text)
    return status


@contextmanager
def _signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does, so that files are cleaned up.

    A signal that is ignored (under nohup), or has a handler of the caller, is left alone.
    """
    before: dict[int, Any] = {}

    def stop(number: int, _: object) -> NoReturn:
        for other in before:
            signal.signal(other, signal.SIG_IGN)  # a terminal that closes may send two
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
    """Says errors like the rest; reads -1e-6 and -inf as numbers, not options."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, formatter_class=_formatter, allow_abbrev=False)
        self._negative_number_matcher = re.compile(r"-(\.?\d|inf|nan)")  # more than argparse's

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Raise for a value that is not one of an option's choices, or for an unknown command."""
        if action.choices is not None and value not in action.choices:
            should = f"it should be one of {', '.join(action.choices)}"
            raise argparse.ArgumentError(action, f"{value!r}, but {should}; pick one")

    def error(self, message: str) -> NoReturn:
        ours = f"arguments = None, but {message}"
        for words, form in _ERRORS:
            if match := re.fullmatch(words, message):
                ours = match.expand(form)
        raise OptionError(f"{ours} (see {self.prog} --help)")


_ERRORS = (  # argparse's words, and ours
    (r"argument -*(\S+): (.*, but .*)", r"\1 = \2"),
    (r"argument (-*(\S+)): expected .*", r"\2 = None, but it needs a value; write \1=VALUE"),
    (r"argument -*(\S+): ignored .* ('.*')", r"\1 = \2, but it takes no value; leave it out"),
    (r"argument (\S+): not .* (\S+)", r"\1 and \2 are given, but only one may be; leave one out"),
    (r"the following .* required: -*(.*)", r"\1 = None, but it is required; write it"),
    (r"one of the arguments (.*) is required", r"\1 = None, but one is required; write one"),
)


def _formatter(prog: str) -> argparse.HelpFormatter:
    """Wrap at the terminal's width, without argparse's import of shutil, which is slow."""
    return argparse.RawDescriptionHelpFormatter(prog, width=width() - 2)


_TASKS = """\
look at a weight
  show      print a weight and its properties

write a checkpoint
  presets   list the models that are known by name
  rules     show the role of each name, and its rule
  export    write a model's weights into a checkpoint

look into checkpoints
  inspect   recognise every tensor of a checkpoint
  diff      compare two checkpoints

test an initialiser
  check     run the reference's properties against an implementation

`idinit COMMAND --help` shows the options of a command.
"""

_FIRST = """\
idinit needs a command. Three to begin with:

  idinit show 6 4                                      a weight, and its properties
  idinit export --preset gpt2 --out gpt2.safetensors   a model's weights in a file
  idinit check torch.nn.init:eye_ --expect transit     a test of an initialiser

`idinit --help` lists all commands.
"""


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser, with the options of only the command in `argv`."""
    parser = _Parser(
        prog="idinit",
        usage="idinit [-h] [--version] COMMAND ...",
        description="IDInit: look at its weights, write checkpoints, test initialisers.",
        epilog=_TASKS,
    )
    parser.add_argument("--version", action="version", version=f"idinit {__version__}")
    commands = parser.add_subparsers(
        prog="idinit", metavar="COMMAND", dest="command", help=argparse.SUPPRESS
    )
    everyone = {add.__name__[1:]: add for add in _COMMANDS}
    asked = next((argument for argument in argv if argument[:1] != "-"), "")
    for add in (everyone[asked],) if asked in everyone else _COMMANDS:  # all of them take time
        add(commands)
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", default=False, help="print JSON")


def _reader(kind: type[_Number], should: str) -> Callable[[str], _Number]:
    """Return a reader of numbers whose error says what a number should be."""

    def read(text: str) -> _Number:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}, but it should be {should}") from None

    return read


_integer = _reader(int, "an integer; write a whole number, e.g. 8")
_number = _reader(float, "a number; write a decimal, e.g. 0.5 or 1e-6")


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        should = f"{text!r}, but it should be integers separated by commas; write 2,2"
        raise argparse.ArgumentTypeError(should) from None


def _roles(text: str) -> str | tuple[str, ...]:
    roles = tuple(text.split(","))
    return roles if len(roles) > 1 else text


def _show(commands: Any) -> None:
    show = commands.add_parser(
        "show", help="print a weight and its properties", argument_default=argparse.SUPPRESS
    )
    add = show.add_argument
    add("size", type=_integer, nargs="+", metavar="SIZE", help="the shape, e.g. 8 2 3 3")
    add("--role", type=_roles, help="transit (the default) or zero; of blocks: transit,zero")
    add("--layout", help="a letter for each axis: O, I, D H W; others are batches")
    add("--gain", type=_number, help="tau of IDI (default 1)")
    add("--eps", type=_number, help="eps of IDIZ (default 1e-06)")
    add("--wide", choices=get_args(Wide), help="how IDI fills a wide matrix")
    add("--form", choices=get_args(Form), help="how IDIZ fills a wide matrix")
    add("--taps", choices=get_args(Taps), help="how a kernel becomes a matrix (default outward)")
    add("--tap", type=_integers, metavar="I,J", help="the identity tap (default (k - 1) // 2)")
    add("--stride", type=_integers, metavar="S,S", help="of a transposed kernel: it has phases")
    add("--groups", type=_integer, metavar="N", help="the number of groups")
    add("--transposed", action="store_true", help="axis I has the inputs of all groups")
    add("--blocks", type=_integers, metavar="M,M", help="the sizes of blocks of outputs")
    add("--loosen", type=_number, metavar="S", help="add noise with this standard deviation")
    add("--loosen-at", choices=get_args(LoosenAt), help="the entries that get noise")
    add("--seed", type=_integer, metavar="K", help="the seed of the noise")
    add("--dtype", default="float64", help="round into this dtype (default float64)")
    add("--plot", metavar="FILE", help="also draw it into FILE.svg or FILE.png (needs matplotlib)")
    add("--force", action="store_true", default=False, help="replace an existing FILE")
    _add_json(show)


def _presets(commands: Any) -> None:
    _add_json(commands.add_parser("presets", help="list the models that are known by name"))


def _add_source(parser: argparse.ArgumentParser) -> None:
    """Add the options for the source of names and shapes, and for the caller's rules."""
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
    rules = commands.add_parser("rules", help="show the role of each name, and its rule")
    _add_source(rules)
    rules.add_argument("--strict", action="store_true", help="an unknown name is an error")
    _add_json(rules)


def _export(commands: Any) -> None:
    from ..files.bits import FLOATS

    export = commands.add_parser(
        "export",
        help="write a model's weights into a checkpoint",
        description="Write IDI, IDIZ and zero biases; copy or fill other tensors on request.",
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
    add("--gain", type=_number, default=1.0, help="tau of IDI (default 1)")
    add("--eps", type=_number, default=1e-6, help="eps of IDIZ (default 1e-06)")
    add("--wide", choices=get_args(Wide), default="truncate", help="how IDI fills wide matrices")
    add("--keep-from", metavar="CHECKPOINT", help="copy tensors that IDInit does not define")
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
    add("--strict", action="store_true", help="a tensor that would be left out is an error")
    add("--dry-run", action="store_true", help="print what would be written")
    add("--force", action="store_true", help="replace existing files")
    _add_json(export)


def _inspect(commands: Any) -> None:
    inspect = commands.add_parser(
        "inspect",
        help="recognise every tensor of a checkpoint",
        description="Exit status: 0; 1 if a digest or a plan in the file is wrong; 2 after an "
        "error.",
    )
    inspect.add_argument("file", metavar="CHECKPOINT")
    inspect.add_argument(
        "--lenient", action="store_true", help="report unreadable parts, and continue (status 1)"
    )
    _add_json(inspect)


def _diff(commands: Any) -> None:
    diff = commands.add_parser(
        "diff",
        help="compare two checkpoints",
        description="Exit status: 0 if they are equal; 1 if they differ; 2 after an error.",
    )
    diff.add_argument("a", metavar="A")
    diff.add_argument("b", metavar="B")
    diff.add_argument("--dialect", metavar="NAME", help="the dialect of B, if A is PyTorch's")
    _add_json(diff)


def _check(commands: Any) -> None:
    check = commands.add_parser(
        "check",
        help="run the reference's properties against an implementation",
        description="Test an initialiser with gain 1 or eps 1e-6, and with the options it accepts.",
    )
    add = check.add_argument
    add("target", metavar="package.module:function", help="also a module in this folder")
    add("--like", choices=("idi", "idiz", "both"), help="the reference to compare with")
    add("--layout", default="OI", help="the layout of its matrices (default OI), or none")
    add("--conv", metavar="LAYOUT", help="the layout of its kernels, such as OIHW: tests them too")
    add("--taps", choices=get_args(Taps), default="outward", help="default outward")
    add("--wide", choices=get_args(Wide), default="truncate")
    add("--form", choices=get_args(Form), default="pair", help="default pair")
    add("--stride", type=_integers, metavar="S,S", help="test kernels of transposed convolutions")
    add("--framework", metavar="NAME", help="numpy, torch, jax, tensorflow, ...")
    add("--expect", metavar="A,B", help="test only these properties, e.g. transit,rank")
    add("--examples", type=_integer, default=50, metavar="N", help="for each property (default 50)")
    add("--seed", type=_integer, default=0, metavar="K", help="the seed of the examples")
    add(
        "--budget",
        type=_number,
        default=3.0,
        metavar="SECONDS",
        help="the limit for each property, and for one call (default 3)",
    )
    add("--junit", metavar="FILE", help="also write JUnit XML")
    _add_json(check)


_COMMANDS = (_show, _presets, _rules, _export, _inspect, _diff, _check)


if __name__ == "__main__":
    sys.exit(main())
