"""The command in this process, without a terminal and 80 columns wide."""

from __future__ import annotations

import pytest

from idinit_ref.commands import cli


@pytest.fixture
def plain(monkeypatch):
    """No terminal, 80 columns."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def idinit(capsys, plain):
    """Run the command: (status, stdout, stderr)."""

    def run(line):
        status = cli.main(line.split() if isinstance(line, str) else line)
        return status, *capsys.readouterr()

    return run
