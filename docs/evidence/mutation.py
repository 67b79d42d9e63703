"""Change arithmetic operators and numbers of the core, and see whether a test notices.

In an environment with the project and the tool, from the root of a checkout:

    pip install -c constraints.txt -e ".[dev]" cosmic-ray==8.7.0
    python -m docs.evidence.mutation run /tmp/mutation       # for hours; resumes
    python -m docs.evidence.mutation report /tmp/mutation    # writes mutation.json and mutation.md
    python -m docs.evidence.mutation render                  # writes the page from the old data

File names after the folder (``layout.py``) restrict a run to these files, so that two runs can go
side by side. The mutants of a file come in random order. So a run may stop at any time, and its
mutants are a fair sample. `again` in place of `run` tests the survivors once more, after tests were
added. The reasons in the page's last column are written by hand, and kept; `report` and `render`
fail if a survivor has none.

The checkout is never changed: the mutants live in a temporary copy of it.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import itertools
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

from docs.evidence._data import FOLDER, filled, load, save, table

ROOT = Path(__file__).resolve().parents[2]
CONFIG = tomllib.loads((FOLDER / "mutation.toml").read_text())["cosmic-ray"]
FILES, LIMIT = CONFIG["module-path"], int(CONFIG["timeout"])  # seconds of the processor
LIBRARIES = ["numpy", "hypothesis", "ml_dtypes", "array_api_strict", "dask.array", "jax", "torch"]
PYTEST = ["-qx", "-pno:cacheprovider", "-pno:xdist", "-oaddopts=", "--import-mode=importlib"]
PYTEST += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # Hypothesis is there already
# What takes longer to begin and to end than most mutants live.
PYTEST += [f"-pno:{name}" for name in ("unraisableexception", "anyio", "benchmark", "jaxtyping")]
LATE = (signal.SIGXCPU, signal.SIGKILL, signal.SIGALRM)
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
    """Return whether a node is neither in an annotation nor the `*` before keyword arguments."""
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
    """Return one of the tool's operators, restricted to arithmetic."""

    def mutation_positions(self, node):
        if node.parent is not None and is_arithmetic(node):
            yield from operator.mutation_positions(self, node)

    return type(operator.__name__, (operator,), {"mutation_positions": mutation_positions})


def augmented(old, new):
    """Return an operator for ``a += b`` and the like, which the tool lacks."""

    from cosmic_ray.operators.operator import Operator

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
    """Return all operators of the study by name."""
    from cosmic_ray.operators import (
        binary_operator_replacement,
        number_replacer,
        unary_operator_replacement,
    )

    found = [*binary_operator_replacement.operators(), number_replacer.NumberReplacer]
    found += [o for o in unary_operator_replacement.operators() if "Not" not in o.__name__]
    signs = list(binary_operator_replacement.BinaryOperators)
    return {op.__name__: op for op in map(restricted, found)} | {
        op.__name__: op for op in (augmented(a, b) for a in signs for b in signs if a is not b)
    }


def forked(commands, timeout=LIMIT):
    """Run each line of pytest's arguments in a fork of this process, until one fails.

    So a mutant does not wait for the libraries, which are imported once, here.
    """
    import pytest
    from cosmic_ray.work_item import TestOutcome

    for line in filter(None, map(str.strip, commands.splitlines())):
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(BaseException):  # or there would be two of this program
                os.setsid()
                with open(os.devnull, "w") as nowhere:
                    os.dup2(nowhere.fileno(), 1)
                    os.dup2(nowhere.fileno(), 2)
                resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
                resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))  # whatever else runs
                signal.alarm(20 * LIMIT)  # for what waits without end
                status = int(pytest.main([*PYTEST, *shlex.split(line)]))
            os._exit(status)
        try:
            _, status = os.waitpid(child, 0)
        except BaseException:  # stopped: the child, which has its own group, hears nothing of it
            os.killpg(child, signal.SIGKILL)
            raise
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in LATE:
            return TestOutcome.KILLED, "timeout"
        if status:
            return TestOutcome.KILLED, line
    return TestOutcome.SURVIVED, ""


def session(folder, path):
    """Return the file with the results for the present state of a file of the core."""
    digest = hashlib.sha256((ROOT / path).read_bytes()).hexdigest()
    return folder / f"{Path(path).stem}-{digest[:8]}.sqlite"


def run(folder, names, again):
    """Run the mutants that are left; the folder gets a session file for each file."""
    import cosmic_ray.mutating
    from cosmic_ray import commands, plugins
    from cosmic_ray.config import load_config
    from cosmic_ray.mutating import mutate_and_test
    from cosmic_ray.work_db import WorkDB, use_db
    from cosmic_ray.work_item import TestOutcome

    known = [Path(path).name for path in FILES]
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"{', '.join(unknown)}: not in the study, which is of {', '.join(known)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left behind
    config = load_config(str(FOLDER / "mutation.toml"))
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
        gc.collect()
        gc.freeze()  # else each fork would copy what the collector looks at
        sys.dont_write_bytecode = False
        outcome, said = forked(CONFIG["test-command"])
        if outcome is not TestOutcome.SURVIVED:
            sys.exit(f"the tests fail without any mutation: {said}")
        # The tests stay compiled; of two changes in one second Python would see the first alone.
        sys.dont_write_bytecode = True
        shutil.rmtree(copy / "idinit_ref" / "core" / "__pycache__", ignore_errors=True)
        for path in map(Path, FILES):
            if names and path.name not in names:
                continue
            with use_db(session(folder, path), WorkDB.Mode.create) as work:
                if not work.num_work_items:
                    commands.init([path], work, {})
                for item, result in work.completed_work_items if again else ():
                    if result.test_outcome == "survived":
                        result = mutate_and_test(item.mutations, CONFIG["test-command"], LIMIT)
                        work.set_result(item.job_id, result)
                commands.execute(work, config)


def described(mutation, diff):
    """Return a survivor as the page names it: the line's number, the line, and the change."""
    row, column = mutation.start_pos
    line = (ROOT / mutation.module_path).read_text().splitlines()[row - 1]
    token = line[column : mutation.end_pos[1]]
    new = re.search(r"^\+(?!\+\+ )(.*)", diff, re.MULTILINE)[1]
    rest = len(line) - mutation.end_pos[1]
    change = f"{token} to {new[column : len(new) - rest].strip() or 'nothing'}"
    if line.count(token) > 1:
        change += f" (no. {line[:column].count(token) + 1})"
    return row, line.strip(), change


def measured(folder):
    """Return the results of all sessions."""
    from cosmic_ray.work_db import WorkDB, use_db

    dirty = ["git", "status", "--porcelain", "--", *FILES]
    if changed := subprocess.run(
        dirty, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout:
        sys.exit(f"not committed, so that no page could say what was measured:\n{changed}")
    log = ["git", "log", "-1", "--format=%h", "--", *FILES]
    commit = subprocess.run(log, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    rows, survivors = [], []
    for path in map(Path, FILES):
        if not session(folder, path).exists():
            sys.exit(f"{path.name}, as it is now, has not been run: begin with run")
        with use_db(session(folder, path), WorkDB.Mode.open) as work:
            done, possible = work.completed_work_items, work.num_work_items
        outcomes = Counter(
            str(result.test_outcome).rpartition(".")[2].lower() for _, result in done
        )
        if strange := outcomes.keys() - {"killed", "survived"}:
            sys.exit(f"{path.name}: {', '.join(strange)}, which says nothing; delete its session")
        if not done:
            sys.exit(f"{path.name}: nothing has been run; go on with run")
        rows.append(
            {
                "file": path.name,
                "possible": possible,
                "mutants": len(done),
                "survivors": outcomes["survived"],
                "late": sum(result.output == "timeout" for _, result in done),
            }
        )
        lived = (pair for pair in done if pair[1].test_outcome == "survived")
        found = sorted(described(item.mutations[0], result.diff) for item, result in lived)
        survivors += [
            {"file": path.name, "number": number, "line": line, "change": change}
            for number, line, change in found
        ]
    return {
        "date": f"{date.today()}",
        "commit": commit.strip(),
        "limit": LIMIT,
        "memory": MEMORY,
        "rows": rows,
        "survivors": survivors,
    }


def reasons(text):
    """Return the reasons of a page, by survivor."""
    found = {}
    for row in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)][1:-1]
        if len(cells) >= 4 and re.fullmatch(r"\w+\.py:\d+", cells[0]):
            line, changes = (cell[1:-1].replace("\\|", "|") for cell in cells[1:3])
            why = " | ".join(cells[3:]).replace("\\|", "|")
            file = cells[0].partition(":")[0]
            found |= {(file, line, change): why for change in changes.split(", ")}
    return found


def page(data: dict[str, Any], known: dict[tuple[str, str, str], str]) -> str:
    """Return mutation.md, with the reasons that are known."""
    counts = [key for key in data["rows"][0] if key != "file"]
    total = {key: sum(row[key] for row in data["rows"]) for key in counts}
    files = []
    for row in (*data["rows"], {"file": "all", **total}):
        killed = row["mutants"] - row["survivors"]
        share = f"{killed / row['mutants']:.1%}"
        numbers = (row["possible"], row["mutants"], killed, row["late"], row["survivors"])
        files.append([row["file"], *numbers, share])

    def place(row):
        why = known.get((row["file"], row["line"], row["change"]), "")
        return f"{row['file']}:{row['number']}", row["line"], why

    lived = []
    for (where, line, why), group in itertools.groupby(data["survivors"], place):
        changes = ", ".join(row["change"] for row in group)
        lived.append(
            [where, *(cell.replace("|", "\\|") for cell in (f"`{line}`", f"`{changes}`", why))]
        )
    part = f"{total['mutants']} of the {total['possible']} possible mutants were tried, drawn at "
    part += "random in each file."
    head = ["file", "possible", "tried", "killed", "of these by the time limit", "survivors"]
    return filled(
        "mutation",
        tried=part if total["mutants"] < total["possible"] else "All possible mutants were tried.",
        table=table([*head, "killed"], files),
        commit=data["commit"],
        date=data["date"],
        memory=data["memory"] // 10**9,
        limit=data["limit"],
        survivors=table(["place", "line", "change", "why no test can tell"], lived).rstrip(),
    )


def write(data):
    """Write data and page; return whether every survivor has a reason."""
    known = reasons((FOLDER / "mutation.md").read_text())
    save("mutation", data, page(data, known))
    bare = [
        row for row in data["survivors"] if not known.get((row["file"], row["line"], row["change"]))
    ]
    for row in bare:
        print(f"no reason: {row['file']}:{row['number']} {row['line']}: {row['change']}")
    return not bare


def main():
    try:
        command(sys.argv[1:])
    except ModuleNotFoundError as problem:
        sys.exit(f"{problem}: pip install -c constraints.txt -e '.[dev]' cosmic-ray==8.7.0")


def command(arguments):
    match arguments:
        case ["run" | "again" as what, folder, *names]:
            run(Path(folder).resolve(), names, what == "again")
        case ["report", folder]:
            sys.exit(0 if write(measured(Path(folder))) else 1)
        case ["render"]:
            sys.exit(0 if write(load("mutation")) else 1)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
