"""Change every arithmetic operator and number of the core, and see whether a test notices.

In an environment with the project and the tool, from the root of a checkout:

    pip install -c constraints.txt -e ".[dev]" cosmic-ray==8.7.0
    python docs/evidence/mutation.py run /tmp/mutation           # an hour or so; resumes
    python docs/evidence/mutation.py report /tmp/mutation        # figures, and a check of the page

File names after the folder (``layout.py``) are a part of the work, so that two runs can go side by
side. `again` in place of `run` tests the survivors once more, after tests were added. `report`
fails if a survivor has no row with a reason in mutation.md, or a row has no survivor.

The checkout is never changed: the mutants live in a temporary copy of it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import cosmic_ray.mutating
import pytest
from cosmic_ray import commands, plugins
from cosmic_ray.config import load_config
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.operators import (
    binary_operator_replacement,
    number_replacer,
    unary_operator_replacement,
)
from cosmic_ray.operators.operator import Operator
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "evidence" / "mutation.md"
CONFIG = load_config(str(ROOT / "docs" / "evidence" / "mutation.toml"))
LIBRARIES = ["numpy", "hypothesis", "ml_dtypes", "array_api_strict", "dask.array", "jax", "torch"]
PYTEST = ["-qx", "-pno:cacheprovider", "-pno:xdist", "-oaddopts=", "--import-mode=importlib"]
PYTEST += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # Hypothesis is there already
MEMORY = 16_000_000_000  # bytes; it stops mutants that ask for a weight without end
# The same examples in every run, none kept, and no search for the shortest one.
PROFILE = """
from hypothesis import Phase
settings.register_profile(
    "mutation", derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
)
settings.load_profile("mutation")
"""


def is_arithmetic(node):
    """Whether a node is neither in a type annotation nor the `*` before keyword arguments."""
    if node.parent.type == "parameters":
        return False
    while node.parent is not None:
        up = node.parent
        if up.type == "tfpdef" or (up.type == "annassign" and node is up.children[1]):
            return False
        if up.type == "funcdef" and node is up.annotation:
            return False
        node = up
    return True


def restricted(operator):
    """One of the tool's operators, for arithmetic alone."""

    def mutation_positions(self, node):
        if node.parent is not None and is_arithmetic(node):
            yield from operator.mutation_positions(self, node)

    return type(operator.__name__, (operator,), {"mutation_positions": mutation_positions})


def augmented(old, new):
    """``a += b`` and its like, which the tool has no operator for."""

    class Augmented(Operator):
        def mutation_positions(self, node):
            if node.type == "operator" and node.value == old.value + "=":
                yield node.start_pos, node.end_pos

        def mutate(self, node, index):
            node.value = new.value + "="
            return node

        @classmethod
        def examples(cls):
            return ()

    Augmented.__name__ = f"Augmented_{old.name}_{new.name}"
    return Augmented


def arithmetic():
    """All operators of the study by name."""
    found = [*binary_operator_replacement.operators(), number_replacer.NumberReplacer]
    found += [o for o in unary_operator_replacement.operators() if "Not" not in o.__name__]
    signs = list(binary_operator_replacement.BinaryOperators)
    return {op.__name__: op for op in map(restricted, found)} | {
        op.__name__: op for op in (augmented(a, b) for a in signs for b in signs if a is not b)
    }


def forked(commands, timeout):
    """Run each line of pytest's arguments in a fork of this process, until one fails.

    So a mutant does not wait for the libraries, which are imported once, here.
    """
    for line in filter(None, map(str.strip, commands.splitlines())):
        child = os.fork()
        if child == 0:
            os.setsid()
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            status = 1
            with contextlib.suppress(BaseException):
                status = int(pytest.main([*PYTEST, *shlex.split(line)]))
            os._exit(status)
        end = time.monotonic() + timeout
        while not (done := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > end:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return TestOutcome.KILLED, "timeout"
            time.sleep(0.01)
        if done[1]:
            return TestOutcome.KILLED, line
    return TestOutcome.SURVIVED, ""


def run(folder, names, again):
    """Run what is left of the work on some files; a session file for each in the folder."""
    plugins.OPERATOR_PROVIDERS.clear()
    plugins.OPERATOR_PROVIDERS["arithmetic"] = arithmetic()
    cosmic_ray.mutating.run_tests = forked
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        with open(copy / "tests" / "conftest.py", "a") as conftest:
            conftest.write(PROFILE)
        sys.path.insert(0, str(copy))
        os.chdir(copy)
        for library in LIBRARIES:
            importlib.import_module(library)
        sys.dont_write_bytecode = False
        test = CONFIG.test_command, CONFIG.timeout
        outcome, said = forked(*test)
        if outcome is not TestOutcome.SURVIVED:
            sys.exit(f"the tests fail without any mutation: {said}")
        # The tests stay compiled; of two changes in one second Python would see the first alone.
        sys.dont_write_bytecode = True
        shutil.rmtree(copy / "idinit_ref" / "__pycache__", ignore_errors=True)
        for path in map(Path, CONFIG["module-path"]):
            if names and path.name not in names:
                continue
            with use_db(folder / f"{path.stem}.sqlite", WorkDB.Mode.create) as work:
                if not work.num_work_items:
                    commands.init([path], work, {})
                for item, result in work.completed_work_items if again else ():
                    if result.test_outcome == "survived":
                        result = mutate_and_test(item.mutations, *test)
                        work.set_result(item.job_id, result)
                commands.execute(work, CONFIG)


def described(mutation, diff):
    """A survivor as the page names it: file, line of code, and what became of what."""
    row, column = mutation.start_pos
    line = (ROOT / mutation.module_path).read_text().splitlines()[row - 1]
    token = line[column : mutation.end_pos[1]]
    new = re.search(r"^\+(?!\+\+ )(.*)", diff, re.MULTILINE)[1]
    rest = len(line) - mutation.end_pos[1]
    change = f"{token} to {new[column : len(new) - rest].strip() or 'nothing'}"
    if line.count(token) > 1:
        change += f" (no. {line[:column].count(token) + 1})"
    line, change = (text.replace("|", "\\|") for text in (line.strip(), change))
    return mutation.module_path.name, line, change


def rows():
    """The rows of the page's table of survivors."""
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)][1:-1]
        if len(cells) == 4 and cells[0].endswith(".py") and cells[1].startswith("`"):
            for change in cells[2].split(", "):
                yield (cells[0], cells[1].strip("`"), change.strip("`")), cells[3]


def report(folder):
    """Print the figures; return whether survivors and reasons agree."""
    survivors, totals = Counter(), Counter()
    print("| file | mutants | killed | of these by the time limit | survivors | rate |")
    print("|---|---|---|---|---|---|")

    def show(name, work, killed, late):
        rate = f"{killed / work:.1%}"
        print(f"| {name} | {work} | {killed} | {late} | {work - killed} | {rate} |")

    for path in map(Path, CONFIG["module-path"]):
        with use_db(folder / f"{path.stem}.sqlite", WorkDB.Mode.open) as work:
            done = work.completed_work_items
            if len(done) != work.num_work_items:
                sys.exit(f"{path.name}: {len(done)} of {work.num_work_items} done; go on with run")
        killed = sum(result.test_outcome == "killed" for _, result in done)
        late = sum(result.output == "timeout" for _, result in done)
        for item, result in done:
            if result.test_outcome != "killed":
                survivors[described(item.mutations[0], result.diff)] += 1
        show(path.name, len(done), killed, late)
        totals.update(work=len(done), killed=killed, late=late)
    show("all", **totals)
    reasons = dict(rows()) if PAGE.exists() else {}
    for key in sorted(survivors.keys() - reasons.keys()):
        print(f"no reason: {key} x {survivors[key]}")
    for key in sorted(reasons.keys() - survivors.keys()):
        print(f"no survivor: {key}")
    return survivors.keys() == reasons.keys() and all(reasons.values())


def main():
    match sys.argv[1:]:
        case ["run" | "again" as what, folder, *names]:
            run(Path(folder).resolve(), names, what == "again")
        case ["report", folder]:
            sys.exit(0 if report(Path(folder)) else 1)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
