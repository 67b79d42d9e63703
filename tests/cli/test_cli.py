"""The command `idinit` itself: its arguments, signals, pipes, terminals, and errors in one line."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import idinit_ref as ir
from idinit_ref.commands import cli
from idinit_ref.commands.cli import main
from idinit_ref.files import presets

pytestmark = pytest.mark.every

COMMANDS = [add.__name__[1:] for add in cli._COMMANDS]

ROOT = Path(__file__).parents[2]
RUN = [sys.executable, "-c", "from idinit_ref.commands.cli import main; raise SystemExit(main())"]


@pytest.mark.parametrize(("line", "status"), [("show 2 2", 0), ("show 2 -2", 2)])
def test_python_m_runs_it_too(line, status, idinit):
    command = [sys.executable, "-m", "idinit_ref.commands.cli", *line.split()]
    run = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "80"}
    )
    assert (run.returncode, run.stdout, run.stderr) == (status, *idinit(line)[1:])


@pytest.mark.parametrize(("columns", "encoding"), [(5, "utf-8"), (20, "latin-1"), (80, "ascii")])
def test_narrow_terminals_and_other_encodings(columns, encoding):
    code = (
        "import sys; "
        "from idinit_ref.commands.cli import main; [main(a.split()) for a in sys.argv[1:]]"
    )
    lines = ["show 3 2", "show 90 90 --role zero", "presets"]
    env = os.environ | {"COLUMNS": str(columns), "PYTHONIOENCODING": encoding}
    run = subprocess.run([sys.executable, "-c", code, *lines], capture_output=True, env=env)
    assert (run.returncode, run.stderr) == (0, b"")
    assert "positive" in run.stdout.decode(encoding)


@pytest.mark.parametrize("columns", [0, 10, 39])
def test_a_width_that_cannot_be_is_40(columns, idinit, monkeypatch):
    found = []
    for width in (columns, 40):
        monkeypatch.setenv("COLUMNS", str(width))
        found.append([idinit(line) for line in ("presets", "show 4 4", "show 50 50")])
    assert found[0] == found[1]
    assert max(len(line) for line in found[0][2][1].splitlines() if "│" in line) <= 40


# How it fails ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("show 3 -3", "shape = (3, -3), but every axis should be an integer >= 0"),
        ("show 3", "shape = (3,), but without a layout it should have 2 to 5 axes"),
        ("show 3 3 --gain nan", "gain = nan, but it should be finite and not 0"),
        ("show 3 3 --gain -inf", "gain = -inf, but it should be finite and not 0"),
        ("show 3 99999999999999999999999", "shape = (3, 99999999999999999999999), but every axis"),
        ("show 3 3 --eps 1", "eps = 1.0, but IDI (role 'transit') has no such option"),
        ("show 3 3 --blocks 1,1", "blocks = (1, 1), but the sizes should add up"),
        ("show 3 3 --layout OX", "layout = 'OX', but for shape (3, 3) the letter 'I'"),
        ("show 3 3 --dtype int8", "dtype = 'int8', but it should be a real floating or complex"),
        ("show 3 3 --role zero --dtype float8_e4m3fn", "eps = 1e-06, but it rounds to 0"),
        ("show", "SIZE = None, but it is required; write it (see idinit show --help)"),
        ("show 3 x", "SIZE = 'x', but it should be an integer; write a whole number"),
        ("show 3 3 --gain x", "gain = 'x', but it should be a number; write a decimal"),
        ("show 3 3 --tap 1;1", "tap = '1;1', but it should be integers"),
        ("show 3 3 --gain", "gain = None, but it needs a value; write --gain=VALUE"),
        ("show 3 3 --json=1", "json = '1', but it takes no value; leave it out"),
        (
            "show 3 3 --foo 1",
            "arguments = '--foo 1', but idinit show takes none such; see idinit s",
        ),
        ("show 3 3 --rol zero", "arguments = '--rol zero', but idinit show takes none such"),
        ("presets gpt2", "arguments = 'gpt2', but idinit presets takes none such; see idinit pre"),
        ("--foo", "arguments = '--foo', but idinit takes none such; see idinit --help"),
        ("shw 3 3", "COMMAND = 'shw', but it should be one of show, presets, rules, export, insp"),
        ("shw diff", "COMMAND = 'shw', but it should be one of show, presets, rules, export, insp"),
        ("diff a.npz", "B = None, but it is required; write it (see idinit diff --help)"),
        ("rules", "--preset --manifest --from = None, but one is required; write one (see idinit"),
        ("rules --preset gpt2 --from a", "--from and --preset are given, but only one may be"),
        ("export --preset gpt2", "out = None, but it is required; write it (see idinit export"),
        ("export --preset gpt --out a.safetensors", "did you mean 'gpt2'?"),
        ("export --preset gpt2 --out a.bin", "path = 'a.bin', but its suffix should be"),
        (["export", "--preset", "gpt2", "--out", ""], "path = '', but its suffix should be .safet"),
        ("export --preset gpt2 --out gone/a.safetensors", "No such file or directory"),
        (
            "export --preset gpt2 --out a.npz --dtype int8",
            "dtype = 'int8', but it should be one of",
        ),
        (
            "export --preset gpt2 --out a.safetensors --dtype float8_e5m2",
            "eps = 1e-06, but it rounds to 0 in float8_e5m2",
        ),
    ],
)
def test_errors_are_one_line_and_status_2(line, text, idinit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = idinit(line)
    assert (status, out) == (2, "")
    assert err.startswith("idinit: ")
    assert err.count("\n") == 1
    assert text in err
    assert list(tmp_path.iterdir()) == []


def actions(command):
    """The arguments of a command."""
    return cli._parser([command])._subparsers._group_actions[0].choices[command]._actions


@pytest.mark.parametrize(
    ("command", "option", "words"),
    [
        pytest.param(command, each.option_strings[0], each.choices, id=f"{command} {each.dest}")
        for command in COMMANDS
        for each in actions(command)
        if each.choices is not None
    ],
)
def test_a_wrong_word_gets_the_value_the_words_and_a_cure(command, option, words, idinit):
    status, out, err = idinit([command, option, "fold"])
    assert (status, out) == (2, "")
    assert err == (
        f"idinit: {option[2:]} = 'fold', but it should be one of {', '.join(words)}; pick one "
        f"(see idinit {command} --help)\n"
    )


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_the_documentation_is_one(page):
    for line in re.findall(r"^idinit (.*)$", page.read_text(), re.MULTILINE):
        arguments = shlex.split(line, comments=True)
        assert cli._parser(arguments).parse_args(arguments).command


def test_version_and_help(idinit):
    assert idinit("--version") == (0, f"idinit {ir.__version__}\n", "")
    for line in ("--help", *(f"{command} --help" for command in COMMANDS)):
        status, out, err = idinit(line)
        assert (status, err) == (0, "")
        assert out.startswith("usage: idinit")


def test_show_imports_nothing_that_it_does_not_need():
    """It should cost little more than NumPy itself."""
    slow = (
        "argparse", "rich", "shutil", "json", "decimal", "difflib", "matplotlib", "hypothesis",
        "idinit_ref.roles", "idinit_ref.files", "idinit_ref.testing",
    )  # fmt: skip
    code = (
        "import sys; from idinit_ref.commands.cli import main; main(['show', '8', '8']); "
        f"print(*[name for name in {slow} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "argparse", "argparse is there, so the others would show"


def test_a_broken_installation_is_no_mistake_of_the_user(monkeypatch):
    def broken(*_):
        raise ImportError("no", name="numpy.linalg")

    monkeypatch.setattr(cli, "_run", broken)
    with pytest.raises(ImportError, match="no"):
        cli.main([])


def test_the_installed_command():
    command = os.path.join(os.path.dirname(sys.executable), "idinit")
    run = subprocess.run([command, "show", "2", "3"], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert "1 · ·" in run.stdout


@pytest.mark.parametrize(
    "words", [["show", "30", "30"], ["presets"], ["rules", "--preset", "gpt2"]]
)
def test_a_broken_pipe_is_quiet(words):
    run = subprocess.Popen([*RUN, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run.stdout.close()
    err = run.stderr.read()
    run.stderr.close()
    assert (run.wait(), err) == (1, b"")


@pytest.mark.parametrize(
    ("number", "usual"),
    [("SIGINT", "default_int_handler"), ("SIGTERM", "SIG_DFL"), ("SIGHUP", "SIG_DFL")],
)
def test_a_stopped_export_leaves_no_file(number, usual, tmp_path):
    """A real signal while the file is being written."""
    code = f"import signal; signal.signal(signal.{number}, signal.{usual}); {RUN[2]}"
    words = ["export", "--preset", "llama-3-8b", "--out", str(tmp_path / "l.safetensors")]
    run = subprocess.Popen([RUN[0], "-c", code, *words], stderr=subprocess.PIPE, text=True)
    while not any(path.stat().st_size for path in tmp_path.iterdir()):
        assert run.poll() is None
        time.sleep(0.02)
    (part,) = tmp_path.iterdir()
    assert re.fullmatch(r"l\.safetensors\.part-[0-9a-f]+", part.name)
    run.send_signal(getattr(signal, number))
    _, err = run.communicate()
    assert run.returncode == 128 + getattr(signal, number)
    lines = [line for line in err.splitlines() if " GB" not in line]
    assert lines == [f"idinit: stopped by {number}; no unfinished file is left"]
    assert list(tmp_path.iterdir()) == []


def test_signals_are_the_callers_again_and_what_it_handles_or_ignores_stays(monkeypatch):
    during = {}

    def run(_):
        during.update({number: signal.getsignal(number) for number in numbers})
        signal.raise_signal(signal.SIGTERM)

    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    handlers = (signal.SIG_DFL, signal.SIG_IGN, lambda *_: None)
    before = [signal.signal(n, handler) for n, handler in zip(numbers, handlers, strict=True)]
    monkeypatch.setattr(cli, "_run", run)
    try:
        assert cli.main([]) == 128 + signal.SIGTERM
        assert [signal.getsignal(number) for number in numbers] == list(handlers)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert [
        during[number] is handler for number, handler in zip(numbers, handlers, strict=True)
    ] == [False, True, True]


def test_it_runs_in_a_thread_too(capsys):
    with concurrent.futures.ThreadPoolExecutor() as pool:
        assert pool.submit(cli.main, ["show", "2", "3"]).result() == 0
    assert "1 · ·" in capsys.readouterr().out


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
@pytest.mark.parametrize(
    ("words", "status", "text"),
    [("show 10 4", 0, ""), ("presets", 0, ""), ("show 3 -3", 2, "idinit: shape = (3, -3), but")],
)
@pytest.mark.cases(2)
def test_a_closed_output_is_quiet(closed, words, status, text):
    line = ["sh", "-c", f'exec "$@" {closed}', "sh", *RUN, *words.split()]
    run = subprocess.run(line, stderr=subprocess.PIPE, text=True)
    assert run.returncode == status
    assert run.stderr.startswith("" if "2" in closed else text)
    assert run.stderr.count("\n") == (text != "" and "2" not in closed)


def test_an_error_of_the_system_names_its_file(idinit, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "/x/y")

    monkeypatch.setattr(presets, "load", refuse)
    status, _, err = idinit("export --preset gpt2 --out /x/y")
    assert status == 2
    assert err.startswith("idinit: path = '/x/y', but it cannot be used (Permission denied); name")


def test_without_a_command_three_examples_are_shown(capsys):
    assert main([]) == 2
    said = capsys.readouterr().err
    examples = [line for line in said.splitlines() if line.startswith("  idinit ")]
    assert len(examples) == 3
    assert {example.split()[1] for example in examples} == {"show", "export", "check"}


def test_without_a_command_and_without_stderr_it_only_fails(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert main([]) == 2


def test_the_help_groups_all_commands_by_task(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    listed = re.findall(r"^  ([a-z]+)   +[a-z]", said, re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)


def test_every_command_prints_json(capsys, tmp_path):
    weights = str(tmp_path / "a.npz")
    np.savez(weights, w=ir.idi((3, 2)))
    manifest = tmp_path / "m.json"
    manifest.write_text(json.dumps({"fc1.weight": [3, 2], "fc2.weight": [2, 3]}))
    source = ["--manifest", str(manifest), "--rule", "fc=transit"]
    asked = {
        "show": ["5", "3", "--role", "zero"],
        "presets": [],
        "rules": source,
        "export": [*source, "--out", str(tmp_path / "out.npz")],
        "inspect": [weights],
        "diff": [weights, weights],
    }
    assert {*asked} == {*COMMANDS} - {"check"}  # in test_check.py
    found = {}
    for command, arguments in asked.items():
        assert main([command, *arguments, "--json"]) == 0, command
        found[command] = json.loads(capsys.readouterr().out)
    shown = np.zeros((5, 3))
    for i, j, value in found["show"]["matrices"][0]["entries"]:
        shown[i, j] = value
    assert_array_equal(shown, ir.idiz((5, 3)))
    assert found["presets"]["gpt2"]["parameters"] == 124_439_808
    assert {name: each["role"] for name, each in found["rules"].items()} == {
        name: each["role"] for name, each in found["export"]["tensors"].items()
    }
    assert (tmp_path / "out.npz").stat().st_size == found["export"]["files"][0]["bytes"]
