"""README and docs: every block runs, every name that they mention exists."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

import idinit_ref as ir
from idinit_ref.commands import cli
from idinit_ref.files.translating import translate

ROOT = Path(__file__).parents[2]
MADE = re.compile("/_(made|build)/")
PAGES = [page for page in (ROOT / "docs").rglob("*.md") if not MADE.search(str(page))]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(PAGES)]
LONG = [  # their blocks take many seconds
    ROOT / "docs" / f"{name}.md"
    for name in ("guides/jax", "guides/pytorch", "models", "oracle", "export", "ten_minutes")
]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))


def fences(page, tags=("python",)):
    """The tag and the text of the fenced blocks with one of these tags, in turn."""
    found = re.findall(
        r"^```([\w{}]*)[^\n]*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL
    )
    return [(tag, text) for tag, text in found if tag in tags]


def blocks(page):
    return [text for _, text in fences(page)]


# What the commands of the pages are given; a preset is planned and not written: up to 16 GB.
MLP = [f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
STAND_INS = {
    "model/model": ["proj_o.weight", "gate", *MLP],
    "gpt2/model": MLP,
    "old/model": MLP,
    "gpt2": MLP,
    "b/model": ["up.weight", "up.bias"],
    "a": ["up.weight", "up.bias"],
    "model": ["up.weight"],
}
pytestmark = pytest.mark.every

MODULE = """
import numpy as np
import idinit_ref as ir

idi = my_idi = ir.idi

def my_kernels(shape):
    return ir.idiz(shape, layout="OI" if len(shape) == 2 else "HWIO")
"""
STATUS = {"diff": {0, 1}, "check": {0, 1}, "rules": {0, 2}}  # an answer, here no failure


def command(line):
    """Run a line of the command in this folder."""
    words = shlex.split(line, comments=True)[1:]
    if "--preset" in words and words[0] == "export":
        words += ["--dry-run", "--force"]
    if words[0] == "check":
        words += ["--examples", "5"]
    assert cli.main(words) in STATUS.get(words[0], {0}), line


def run_lines(text):
    for line in text.splitlines():
        if line.startswith("idinit "):
            command(line)
        else:  # installs, and what the rest of the tests is
            assert re.match(r"(pip install|python3? -m|python \w+/|\.venv/bin/) ?", line), line


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # TensorFlow's own
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.nightly if page in LONG else []) for page in PAGES],
    ids=lambda p: p.name,
)
def test_blocks_run(page, tmp_path, monkeypatch, capsys):
    """All blocks of a page in turn, as a reader would paste them; commands in the same folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, tensors in STAND_INS.items():
        target = Path(f"{name}.safetensors")
        target.parent.mkdir(exist_ok=True)
        ir.save(target, {t: np.eye(8)[: 8 if "weight" in t else 1].squeeze() for t in tensors})
    ir.save("b.weights.h5", translate({"up.weight": np.eye(8), "up.bias": np.zeros(8)}, "keras"))
    Path("mymodule.py").write_text(MODULE)
    Path("new").mkdir()
    names: dict[str, object] = {}
    said = ""
    for number, (tag, text) in enumerate(fences(page, ("python", "", "output"))):
        said += capsys.readouterr().out
        if tag == "output":
            assert {*text.splitlines()} <= {*said.splitlines()}
        elif tag == "python":
            exec(compile(text, f"{page.name}:block {number}", "exec"), names)
        else:
            run_lines(text)


INSTALLED = {"torch": "torch", "jax": "jax", "tensorflow": "keras tensorflow"}
ITSELF = {"numpy", "idinit_ref", "idinit_ref_torch", "idinit_ref_jax", "idinit_ref_tensorflow"}


@pytest.mark.parametrize("page", ["index.md", *(f"guides/{p.name}" for p in GUIDES)])
def test_the_line_before_a_block_installs_what_it_imports(page):
    """Of the start page the line nearest above; of a guide its first."""
    held: set[str] = set()
    for tag, text in fences(ROOT / "docs" / page, ("python", "")):
        if not tag:
            found = re.fullmatch(r'pip install -c constraints.txt "\.\[(.*)\]"(.*)\n', text)
            assert found, f'it should be one line, pip install -c constraints.txt ".[...]": {text}'
            extras, rest = found.groups()
            held = {
                name for extra in extras.split(",") for name in INSTALLED.get(extra, "").split()
            }
            held |= {name.replace("scikit-learn", "sklearn") for name in rest.split()}
            continue
        asked = re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)
        assert {*asked} <= held | ITSELF | {*sys.stdlib_module_names}, text


def test_the_readme_has_an_example():
    assert len(blocks(ROOT / "README.md")) >= 3


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_names_of_the_code_exist(page):
    for dotted in re.findall(
        r"(?:`|^\.\. auto\w+:: )(idinit_ref\w*(?:\.\w+)+)(?:`|$)", page.read_text(), re.M
    ):
        parts = dotted.split(".")
        for split in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:split]))
            except ModuleNotFoundError:
                continue
            for name in parts[split:]:
                assert hasattr(found, name), f"{dotted} is not there"
                found = getattr(found, name)
            break


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_inside_the_repository_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        if not target.startswith("_made/"):  # those come when the site is built
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_tests_that_are_named_exist(page):
    for path, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text()):
        assert f"def {name}(" in (ROOT / path).read_text() if name else (ROOT / path).exists()


def test_the_readme_has_exactly_two_set_up_lines():
    lines = re.findall(r"^python3 -m venv .*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(lines) == 2
    assert "idinit export" in lines[0]
    assert all(word in lines[1] for word in ("pytest", "mypy", "ruff check", "ruff format"))
    assert "grep -m 1 '^python3 .*pytest' README.md" in (ROOT / ".ci" / "run").read_text()
