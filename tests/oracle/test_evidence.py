"""The page of verdicts is what its command writes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from idinit_ref.testing import PROPERTIES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "evidence"
PAGE = (FOLDER / "oracle.md").read_text()


def test_the_page_has_every_property_and_every_implementation():
    titles = re.findall(r'Known\(\s*"([^"]+)"', (FOLDER / "oracle.py").read_text())
    assert len(titles) == 17
    assert re.findall(r"^## (.+)$", PAGE, re.MULTILINE) == titles
    assert f"| implementation | {' | '.join(PROPERTIES)} |" in PAGE
    row = rf"^\| ([^|]+?) \|(?: (?:yes|\*\*no\*\*)? ?\|){{{len(PROPERTIES)}}}$"
    rows = re.findall(row, PAGE, re.MULTILINE)
    assert [title.replace(" | ", "") for title in rows] == titles


@pytest.mark.nightly
def test_the_command_writes_the_page():
    """Needs the extra `evidence`; it fails, and is not skipped, without."""
    command = [sys.executable, "-W", "ignore", "-m", "docs.evidence.oracle", "--check"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
