"""`idinit check`: what is wrong with an implementation, from a shell."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ElementTree

import pytest

from idinit_ref.commands import check as command
from idinit_ref.commands import cli
from idinit_ref.testing import PROPERTIES

MINE = """
import numpy as np, os, pathlib, time

print("printed at import")

def hangs():
    pathlib.Path("hangs").touch()

def good(shape):
    m, n = shape
    return np.array([[float(j == i % n) for j in range(n)] for i in range(m)]).reshape(shape)

def padded(shape):
    print("printed in a call")
    return np.eye(*shape)

def dies(shape):
    if shape[0] > shape[1]:
        os._exit(3)
    return good(shape)

def segfault(shape):
    import ctypes
    ctypes.string_at(0)

def spins(shape):
    if shape[0] > shape[1]:
        hangs()
    while shape[0] > shape[1]:
        pass
    return good(shape)

def sleeps(shape):
    if shape[0] > shape[1]:
        hangs()
        time.sleep(1000)
    return good(shape)

def exits(shape):
    raise SystemExit(0)

def raises(shape):
    raise ValueError("no\\nsuch thing \\x07")

def listed(shape):
    return good(shape).tolist()

def nan(shape):
    return good(shape) * np.nan

def untouched(tensor):
    return None

def star(*shape):
    return np.eye(*shape)

def held(shape):
    import re
    if shape[0] > shape[1]:
        hangs()
        re.match(r"(a+)+$", "a" * 60 + "b")  # holds the interpreter
    return good(shape)

def pools(shape):
    import multiprocessing
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(good, (shape,))

def keyed(key, shape, dtype=None):
    return good(shape)

def interrupts(shape):
    raise KeyboardInterrupt

def nothing(shape):
    return None

def two(m, n):
    return good((m, n))

number = 3
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "broken.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return tmp_path


@pytest.fixture(autouse=True)
def waits(here, monkeypatch):
    """The time is over when the implementation says that it hangs, and not before.

    So no verdict depends on the speed of the machine. It tells the parent of its call before.
    """
    said = here / "hangs"

    def wait(pipe, _):
        while not pipe.poll(0.02):
            if said.exists() and not pipe.poll(0):
                said.unlink()
                return False
        return True

    monkeypatch.setattr(command, "waits", wait)


@pytest.fixture
def check(capfd):
    def run(line):
        budget = [] if "--budget" in line else ["--budget", "1000"]  # no search ends by the clock
        status = cli.main(["check", *line.split(), *budget])
        return status, *capfd.readouterr()

    return run


def test_a_right_one(check, here, monkeypatch):
    monkeypatch.delenv("HYPOTHESIS_STORAGE_DIRECTORY", raising=False)
    status, out, _ = check("mine:good --examples 5")
    assert status == 0
    assert {path.name for path in here.iterdir()} <= {"mine.py", "broken.py", "__pycache__"}
    assert "broken" not in out.replace("0 broken", "")
    assert "printed" not in out


def test_a_wrong_one_and_its_files(check, here):
    status, out, _ = check("mine:padded --examples 8 --junit out.xml")
    assert status == 1
    assert "printed" not in out
    assert "exact: W[1, 0] = 0, but should be 1  [padded((2, 1))]" in out
    assert "zeros instead of copies" in out
    assert "    check_exact(padded, ir.plan((2, 1)))\n" in out
    verdicts = re.findall(r"(?m)^  \w+ +(held|broken|untested)\b", out)
    [suite] = ElementTree.parse(here / "out.xml").getroot()
    assert suite.get("tests") == str(len(PROPERTIES))
    assert suite.get("failures") == str(verdicts.count("broken"))
    assert suite.get("skipped") == str(verdicts.count("untested"))
    assert len(suite.findall("testcase/failure")) == verdicts.count("broken")
    summary = f"{verdicts.count('held')} held, {verdicts.count('broken')} broken"
    assert out.splitlines()[-1].startswith(summary)
    assert [p.name for p in here.glob("out*")] == ["out.xml"]


def test_json_holds_every_outcome(check):
    status, out, _ = check("mine:padded --examples 8 --json")
    found = json.loads(out)
    assert (status, found["ok"], found["implementation"]) == (1, False, "mine:padded")
    assert [o["property"] for o in found["outcomes"]] == list(PROPERTIES)
    assert {o["property"] for o in found["outcomes"] if o["verdict"] == "broken"} >= {"exact"}


def test_the_snippet_repeats_it(check, here):
    _, out, _ = check("mine:padded --expect rank,transit --examples 8")
    [at] = [i for i, line in enumerate(out.splitlines()) if line.startswith("transit: ")]
    code = textwrap.dedent("\n".join(out.splitlines()[at + 1 : at + 4]))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert out.splitlines()[at].removeprefix("transit: ") in run.stderr


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("dies", "the process ended with exit status 3"),
        ("spins", "no answer in 1000 s"),
        ("segfault", "the process was ended by SIGSEGV"),
        ("raises", "raised ValueError: no"),
        *(
            pytest.param(*each, marks=pytest.mark.nightly)
            for each in (
                ("sleeps", "no answer in 1000 s"),
                ("interrupts", "raised KeyboardInterrupt"),
                ("exits", "raised SystemExit: 0"),
                ("listed", "an instance of list"),
                ("nothing", "an instance of NoneType"),
                ("nan", "W[0, 0] = nan, but should be finite"),
                ("star", "the first call failed"),
                ("untouched", "the array passed in is unchanged"),
            )
        ),
    ],
)
def test_what_goes_wrong_is_a_finding(check, name, says):
    line = f"mine:{name} --expect exact,rank --budget 1000 --junit out.xml"
    status, out, _ = check(line)
    assert status == 1
    assert says in out
    assert "0 held, 2 broken" in out
    assert "Traceback" not in out
    ElementTree.parse("out.xml")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("mine", "it should be package.module:function"),
        ("nowhere:idi", "module nowhere is not found"),
        ("broken:idi", "importing broken should not raise ZeroDivisionError"),
        ("mine:goood", "has no 'goood'; name another, as good"),
        ("mine:number", "it should be callable; give f(shape)"),
        ("mine:two", "does not know what to pass for 'n'"),
        ("mine:good --expect wrong", "it should be one of 'exact', 'row_norm'"),
        ("mine:good --expect groups", "it takes no groups="),
        ("mine:good --layout OO", "'O' appears twice"),
        ("mine:good --conv OI", "it should have spatial letters"),
        ("mine:good --like both", "good has no parameter role"),
        ("mine:good --framework nowhere", "framework = 'nowhere', but it should be an array name"),
        ("mine:good --framework json", "framework = 'json', but it should be an array namespace"),
        ("mine:good --framework foo.bar", "framework = 'foo.bar', but it should be an array name"),
        ("mine:good --budget 0", "it should be seconds > 0"),
        ("mine:good --examples 0", "it should be an integer >= 1"),
        ("mine:good --junit nowhere/out.xml", "its folder should exist"),
        ("mine:good --junit /", "it should not be a folder; name a file"),
        ("./mine.py:good", "in its folder, write mine:good"),
        ("mine:good --budget inf", "from 0.01 to 100000"),
    ],
)
@pytest.mark.cases(4)
def test_a_wrong_question_gets_one_line(check, line, says):
    status, out, err = check(line)
    assert (status, out) == (2, "")
    [said] = [line for line in err.splitlines() if "printed" not in line]
    assert said.startswith("idinit: ")
    assert says in said


def test_calls_that_hold_the_interpreter(check):
    """After two of them the rest is not tried: it would take as long again."""
    status, out, _ = check("mine:held --expect exact,transit,rank,isometry --budget 1000")
    assert status == 1
    assert "0 held, 2 broken, 2 untested" in out
    assert "no answer in" in out


def test_an_implementation_with_processes_of_its_own(check):
    assert check("mine:pools --expect rank --examples 3 --budget 60")[0] == 0


def test_a_key_without_jax(here):
    code = (
        "import sys; sys.modules['jax'] = None; "
        "from idinit_ref.testing import make_oracle; import mine; make_oracle(mine.keyed)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "idinit-ref[jax]"' in run.stderr


def test_spaces_between_the_names_of_properties(check):
    from shlex import split

    assert cli.main(split("check mine:good --expect 'rank, exact' --examples 3")) == 0


@pytest.mark.nightly
def test_idiz_by_name(check):
    assert check("idinit_ref:idiz --examples 2")[0] == 0
    status, out, _ = check("mine:good --like idiz --examples 5")
    assert status == 1
    assert "IDIZ: IDI, not IDIZ" in out


@pytest.mark.nightly
def test_through_the_shell_in_a_narrow_pipe(here):
    """The real process; ASCII and 40 columns."""
    command = [
        sys.executable,
        "-c",
        "from idinit_ref.commands.cli import main; raise SystemExit(main())",
    ]
    run = subprocess.run(
        [*command, "check", "mine:padded", "--examples", "5"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "40"},
        check=False,
    )
    assert run.returncode == 1
    assert b"broken" in run.stdout
    assert b"\x1b[" not in run.stdout
    assert b"Traceback" not in run.stderr
