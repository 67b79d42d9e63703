"""``idinit check``: the oracle from a shell, with the implementation in a process of its own.

So a crash, or a call that never comes back, is a finding like any other.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import IDInitError, OptionError, message
from ..files.whole import whole_file
from ._make import make_oracle
from ._report import OracleReport, Outcome

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from rich.console import Console

_IMPORT = 60.0  # seconds for the import of the implementation's module
_FIRST_CALL = 60.0  # seconds; it may load a framework
_GRACE = 5.0  # seconds beyond the budget, for what is not the implementation's
_SILENT = 2  # so often a child that no longer answers is replaced by another
_OPTIONS = ("conv", "taps", "wide", "form", "stride", "examples", "seed", "budget")
_LIKE = {"idi": ("transit",), "idiz": ("zero",), "both": ("transit", "zero"), None: None}
_STYLE = {"held": "green", "broken": "bold red", "untested": "dim"}


class _Failed(Exception):  # noqa: N818
    """The child process ended."""


class _Silent(_Failed):
    """The child process no longer answers."""


class _Request(NamedTuple):
    """What the child needs to make the oracle."""

    target: str
    options: Mapping[str, Any]
    path: str


def check(args: Namespace, console: Console) -> int:
    """Run the oracle on what the arguments name, print the verdicts, and write the files.

    Return 0 if all properties held, 1 if one is broken. OptionError if there is no such
    implementation, or the oracle cannot call it; OSError if a file cannot be written.
    """
    for path in (args.junit, args.json):
        if path is not None and not Path(path).resolve().parent.is_dir():
            should = "its folder should be there"
            raise OptionError(message("file", path, should, "make the folder first"))
        if path is not None and Path(path).is_dir():
            raise OptionError(message("file", path, "it is a folder", "name a file in it"))
    if args.json is not None and args.json == args.junit:
        should = "it should not be the file of the JUnit XML too"
        raise OptionError(message("--json", args.json, should, "name two files"))
    layout = None if args.layout == "none" else args.layout
    names = None if args.expect is None else [name.strip() for name in args.expect.split(",")]
    options = {"xp": args.framework, "layout": layout, "roles": _LIKE[args.like], "expect": names}
    options |= {name: getattr(args, name) for name in _OPTIONS}
    start = time.monotonic()
    about, report = _watch(_Request(args.target, options, os.getcwd()))
    seconds = time.monotonic() - start
    _print(report, about, seconds, console)
    if args.json is not None:
        with whole_file(Path(os.path.realpath(args.json))) as file:
            text = {**report.to_dict(), "implementation": args.target, "about": about}
            file.write(json.dumps(text, indent=2).encode() + b"\n")
    if args.junit is not None:
        with whole_file(Path(os.path.realpath(args.junit))) as file:
            file.write(report.junit().encode())
    return 0 if report.ok else 1


def _print(report: OracleReport, about: str, seconds: float, console: Console) -> None:
    from rich.text import Text

    told, _, rest = str(report).partition("\n")
    counts = told.removeprefix(f"{report.name}: ")
    text = f"{report.name}: {about}\n\n{rest}\n\n{counts} in {seconds:.1f} s"
    safe = Text(text.encode(console.encoding, "backslashreplace").decode(console.encoding))
    for verdict, style in _STYLE.items():
        safe.highlight_regex(rf"(?m)^  \w+ +{verdict}\b", style)
    console.print(safe, soft_wrap=True)


# The parent ------------------------------------------------------------------------------------


def _watch(request: _Request) -> tuple[str, OracleReport]:
    """Run the child, and again for the rest where it died; return what it is, and the report."""
    done: dict[str, Outcome] = {}
    name, about = request.target, ""
    order: tuple[str, ...] = ()
    diagnosis: tuple[str, ...] = ()
    silent = 0
    with _status() as status:
        while not order or len(done) < len(order):
            current = call = ""
            since = time.monotonic()
            try:
                for event, what in _events(request, tuple(done)):
                    if event == "ready":
                        name, order = what
                    elif event == "about":
                        about = what
                    elif event == "property":
                        current, call, since = what, "", time.monotonic()
                        status(f"{name}: {what}")
                    elif event == "call":
                        call = what
                    elif event == "outcome":
                        done[what.property] = what
                    elif event == "done":
                        diagnosis = what
            except _Failed as problem:
                if not order:
                    cure = "try to import it in Python"
                    should = f"importing it and looking at it should work, but {problem}"
                    raise OptionError(
                        message("implementation", request.target, should, cure)
                    ) from None
                if len(done) == len(order):
                    break  # all is known but the diagnosis
                text = f"{call} = {problem}, but should be an array  [{call}]"
                seconds = time.monotonic() - since
                for each in (current,) if current else order:  # the first call was the last
                    done[each] = Outcome(each, "broken", 1, seconds, text, call)
                silent += isinstance(problem, _Silent)
                if silent >= _SILENT:
                    why = f"not tried, after {silent} calls without an answer"
                    for each in order:
                        done.setdefault(each, Outcome(each, "untested", message=why))
    return about or f"called as {call}", OracleReport(
        name, tuple(done[each] for each in order), diagnosis
    )


def _events(request: _Request, done: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Start a child, and yield what it tells.

    `_Failed` if it ends before it is done, or falls silent; its own error if it sends one.
    """
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    # No daemon: the implementation may have processes of its own.
    child = context.Process(target=_child, args=(theirs, request, done), daemon=False)
    child.start()
    theirs.close()
    budget, limit, said, event = request.options["budget"], _IMPORT, _IMPORT, ""
    try:
        while event != "done":
            if not waits(pipe, limit):
                raise _Silent(f"no answer in {said:g} s")
            try:
                event, what = pipe.recv()
            except EOFError:
                child.join(_GRACE)
                raise _Failed(_ended(child.exitcode)) from None
            if event == "error":
                raise what
            if event == "ready":
                limit = said = max(_FIRST_CALL, budget)
            elif event == "about":
                limit, said = budget + _GRACE, budget
            yield event, what
    finally:
        child.kill()
        child.join(_GRACE)


def waits(pipe: Connection, seconds: float) -> bool:
    """Wait for what a child tells, and return whether it came in time."""
    return pipe.poll(seconds)


def _ended(code: int | None) -> str:
    """Return what an exit code says."""
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"the process was ended by {signal.Signals(-code).name}"
    return f"the process ended with exit status {code}"


@contextmanager
def _status() -> Iterator[Callable[[str], None]]:
    """Show on stderr what is being checked, if somebody looks."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status("starting") as status:
        yield status.update


# The child -------------------------------------------------------------------------------------


def _child(pipe: Connection, request: _Request, done: tuple[str, ...]) -> None:
    """Make the oracle, and tell the parent of everything."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    os.dup2(2, 1)  # what the implementation prints does not belong into the table

    def tell(event: str, what: Any) -> None:
        with suppress(BrokenPipeError):
            pipe.send((event, what))

    try:
        sys.path.insert(0, request.path)
        implementation, source = _find(request.target)
        options = dict(request.options)
        oracle = make_oracle(implementation, **options, source=source)
        tell("ready", (oracle.name, oracle.properties))
        tell("done", oracle.run(tell, skip=done).diagnosis)
    except (IDInitError, ImportError) as problem:
        tell("error", problem)
    pipe.close()
    os._exit(0)  # threads of the implementation may still be at work


def _find(target: str) -> tuple[Any, tuple[str, str]]:
    """Return what ``package.module:function`` names, and both its parts."""
    name, colon, path = target.partition(":")
    if not name or not colon or not path:
        cure = "write the module, a colon, and the function, e.g. torch.nn.init:eye_"
        raise _unknown(target, "it should be package.module:function", cure)
    if "/" in name or name.endswith(".py"):
        cure = f"in its folder, write {Path(name).with_suffix('').name}:{path}"
        raise _unknown(target, "it should name a module, not a file", cure)
    try:
        named: Any = importlib.import_module(name)
    except (Exception, SystemExit) as problem:
        if isinstance(problem, ModuleNotFoundError) and f"{name}.".startswith(f"{problem.name}."):
            cure = "look at its name and at the current directory, or install it"
            raise _unknown(target, f"module {name} is not found", cure) from problem
        said = f"importing {name} raised {type(problem).__name__}: {problem}"
        raise _unknown(target, said, "it should import without an error") from problem
    for part in path.split("."):
        try:
            named = getattr(named, part)
        except AttributeError:
            names = [n for n, v in vars(named).items() if n[0] != "_" and callable(v)]
            own = [n for n in names if getattr(vars(named)[n], "__module__", name) == name]
            near = get_close_matches(part, own or names) or (own or names)[:8]
            kind = "object"
            if isinstance(named, ModuleType):
                kind = f"module ({getattr(named, '__file__', None) or 'built in'})"
            cure = f"it has {', '.join(near)}" if near else "it has no public names"
            raise _unknown(target, f"the {kind} has no {part!r}", cure) from None
    return named, (name, path)


def _unknown(target: str, should: str, cure: str) -> OptionError:
    return OptionError(message("implementation", target, should, cure))
