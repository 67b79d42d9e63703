"""``idinit check``: the oracle from a shell, with the implementation in a separate process.

So a crash, or a call that never returns, is a finding like any other.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import re
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import IDInitError, OptionError, message
from ..files.whole import whole_file
from ..testing import OracleReport, Outcome, make_oracle
from ..testing._frameworks import framework
from ._terminal import Console, plain, print_json, rewrite

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_IMPORT = 60.0  # seconds for the import of the implementation's module
_FIRST_CALL = 60.0  # seconds; the call may load a framework
_GRACE = 5.0  # seconds beyond the budget, for work outside the implementation
_SILENT = 2  # the most children that are replaced because they do not answer
_OPTIONS = ("conv", "taps", "wide", "form", "stride", "examples", "seed", "budget")
_LIKE = {"idi": ("transit",), "idiz": ("zero",), "both": ("transit", "zero"), None: None}
_STYLE = {"held": ("green",), "broken": ("bold", "red"), "untested": ("dim",)}


class _Failed(Exception):  # noqa: N818
    """The child process ended."""


class _Silent(_Failed):
    """The child process no longer answers."""


class _Request(NamedTuple):
    """The data with which the child makes the oracle."""

    target: str
    options: Mapping[str, Any]
    path: str
    scratch: str


def run(args: Namespace, console: Console) -> int:
    """Run the oracle on the named implementation, and print the verdicts.

    Return 0 if all properties held, 1 if one is broken. Raises an OptionError if the implementation
    does not exist or cannot be called, an OSError if the file of --junit cannot be written.
    """
    if args.junit is not None and not Path(args.junit).resolve().parent.is_dir():
        should = "its folder should exist"
        raise OptionError(message("junit", args.junit, should, "make the folder first"))
    if args.junit is not None and Path(args.junit).is_dir():
        should = "it should not be a folder"
        raise OptionError(message("junit", args.junit, should, "name a file in it"))
    layout = None if args.layout == "none" else args.layout
    names = None if args.expect is None else [name.strip() for name in args.expect.split(",")]
    options = {"xp": args.framework, "layout": layout, "roles": _LIKE[args.like], "expect": names}
    options |= {name: getattr(args, name) for name in _OPTIONS}
    start = time.monotonic()
    with TemporaryDirectory() as scratch:
        about, report = _watch(_Request(args.target, options, os.getcwd(), scratch))
    seconds = time.monotonic() - start
    if args.json:
        about_it = {"implementation": args.target, "about": about}
        print_json(console, report.to_dict() | about_it)
    else:
        _print(report, about, seconds, console)
    if args.junit is not None:
        with whole_file(Path(os.path.realpath(args.junit))) as file:
            file.write(report.junit().encode())
    return 0 if report.ok else 1


def _print(report: OracleReport, about: str, seconds: float, console: Console) -> None:
    first, _, rest = str(report).partition("\n")
    counts = first.removeprefix(f"{report.name}: ")
    text = f"{report.name}: {about}\n\n{rest}\n\n{counts} in {seconds:.1f} s"
    for line in text.split("\n"):
        safe = plain(line, console.encoding)
        if match := re.match(r"  \w+ +(held|broken|untested)\b", safe):
            safe = console.style(match[0], *_STYLE[match[1]]) + safe[match.end() :]
        console.print(safe)


# The parent ------------------------------------------------------------------------------------


def _watch(request: _Request) -> tuple[str, OracleReport]:
    """Run the child, and another for the rest if it dies; return a description and the report."""
    done: dict[str, Outcome] = {}
    name, about = request.target, ""
    order: tuple[str, ...] = ()
    diagnosis: tuple[str, ...] = ()
    silent = 0
    try:
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
                        rewrite(f"{name}: {what}")
                    elif event == "call":
                        call = what
                    elif event == "outcome":
                        done[what.property] = what
                    elif event == "done":
                        diagnosis = what
            except _Failed as problem:
                if not order:
                    cure = "try to import it in Python"
                    should = f"its import and inspection should work, but {problem}"
                    raise OptionError(
                        message("implementation", request.target, should, cure)
                    ) from None
                if len(done) == len(order):
                    break  # only the diagnosis is missing
                text = f"{call} = {problem}, but should be an array  [{call}]"
                seconds = time.monotonic() - since
                for prop in (current,) if current else order:  # the first call was the last
                    done[prop] = Outcome(prop, "broken", 1, seconds, text, call)
                silent += isinstance(problem, _Silent)
                if silent >= _SILENT:
                    why = f"not tried, after {silent} calls without an answer"
                    for prop in order:
                        done.setdefault(prop, Outcome(prop, "untested", message=why))
    finally:
        rewrite("")
    outcomes = tuple(done[prop] for prop in order)
    return about or f"called as {call}", OracleReport(name, outcomes, diagnosis)


def _events(request: _Request, done: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Start a child, and yield its events.

    Raises `_Failed` if the child ends early or no longer answers, or the error that it sends.
    """
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    # Not a daemon: the implementation may start processes.
    child = context.Process(target=_child, args=(theirs, request, done), daemon=False)
    child.start()
    theirs.close()
    budget, limit, stated, event = request.options["budget"], _IMPORT, _IMPORT, ""
    try:
        while event != "done":
            if not waits(pipe, limit):
                raise _Silent(f"no answer in {stated:g} s")
            try:
                event, what = pipe.recv()
            except EOFError:
                child.join(_GRACE)
                raise _Failed(_exit_text(child.exitcode)) from None
            if event == "error":
                raise what
            if event == "ready":
                limit = stated = max(_FIRST_CALL, budget)
            elif event == "about":
                limit, stated = budget + _GRACE, budget
            yield event, what
    finally:
        child.kill()
        child.join(_GRACE)


def waits(pipe: Connection, seconds: float) -> bool:
    """Wait for an event of a child, and return whether it came in time."""
    return pipe.poll(seconds)


def _exit_text(code: int | None) -> str:
    """Return an exit code in words."""
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"the process was ended by {signal.Signals(-code).name}"
    return f"the process ended with exit status {code}"


# The child -------------------------------------------------------------------------------------


def _child(pipe: Connection, request: _Request, done: tuple[str, ...]) -> None:
    """Run the oracle, and send all events to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    os.dup2(2, 1)  # prints of the implementation go to stderr, not into the table
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", request.scratch)  # not this folder

    def tell(event: str, what: Any) -> None:
        with suppress(BrokenPipeError):
            pipe.send((event, what))

    try:
        sys.path.insert(0, request.path)
        implementation, source = _find(request.target)
        options = dict(request.options)
        if options["xp"] is not None:
            framework(options["xp"], "framework")  # an error names the option of the command
        oracle = make_oracle(implementation, **options, source=source)
        tell("ready", (oracle.name, oracle.properties))
        tell("done", oracle.run(tell, skip=done).diagnosis)
    except (IDInitError, ImportError) as problem:
        tell("error", problem)
    pipe.close()
    os._exit(0)  # threads of the implementation may still run


def _find(target: str) -> tuple[Any, tuple[str, str]]:
    """Return the object of ``package.module:function``, and both parts of the name."""
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
            cure = "check its name and the current directory, or install it"
            raise _unknown(target, f"module {name} is not found", cure) from problem
        should = f"importing {name} should not raise {type(problem).__name__}: {problem}"
        raise _unknown(target, should, "correct the module, or name another") from problem
    for part in path.split("."):
        try:
            named = getattr(named, part)
        except AttributeError:
            names = [n for n, v in vars(named).items() if n[0] != "_" and callable(v)]
            defined = [n for n in names if getattr(vars(named)[n], "__module__", name) == name]
            near = get_close_matches(part, defined or names) or (defined or names)[:8]
            kind = "object"
            if isinstance(named, ModuleType):
                kind = f"module ({getattr(named, '__file__', None) or 'built in'})"
            cure = f"name another, as {', '.join(near)}" if near else "name another module"
            raise _unknown(target, f"the {kind} has no {part!r}", cure) from None
    return named, (name, path)


def _unknown(target: str, should: str, cure: str) -> OptionError:
    return OptionError(message("implementation", target, should, cure))
