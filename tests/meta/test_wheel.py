"""What is installed: four packages with their types and data, and nothing else."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from hatchling.build import build_wheel

from idinit_ref.files import presets

ROOT = Path(__file__).parents[2]


def test_the_wheel(tmp_path):
    here = Path.cwd()
    os.chdir(ROOT)
    try:
        name = build_wheel(str(tmp_path))
    finally:
        os.chdir(here)
    with zipfile.ZipFile(tmp_path / name) as wheel:
        files = set(wheel.namelist())
        [metadata] = [f for f in files if f.endswith("METADATA")]
        about = wheel.read(metadata).decode()
    packages = ["idinit_ref", "idinit_ref_jax", "idinit_ref_tensorflow", "idinit_ref_torch"]
    tops = {file.split("/")[0] for file in files if ".dist-info" not in file}
    assert sorted(tops) == packages
    assert {f"{package}/py.typed" for package in packages} <= files
    assert {f"idinit_ref/files/presets/{preset}.json" for preset in presets.names()} <= files
    always = [line for line in about.splitlines() if line.startswith("Requires-Dist")]
    always = sorted(line.split()[1].split(">")[0] for line in always if "extra ==" not in line)
    assert always == ["array-api-compat", "numpy"]
