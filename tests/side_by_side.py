"""Processes of one script that wait for each other, each with its own arguments."""

from __future__ import annotations

import os
import subprocess
import sys


def all_is_well(commands, **environment):
    """Run them at once; each must print that all is well, and none outlives the others."""
    running = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        for command in commands
    ]
    try:
        for process in running:
            out, said = process.communicate()
            assert out == "all is well\n", said[-3000:]
    finally:
        for process in running:
            process.kill()
            process.communicate()
