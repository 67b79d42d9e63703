"""What importing the reference loads, and what it promises to export."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import idinit_ref

pytestmark = pytest.mark.every

HEAVY = [
    "torch", "jax", "flax", "equinox", "tensorflow", "keras", "hypothesis", "pytest",
    "safetensors", "rich", "ml_dtypes", "scipy", "dask", "cupy", "transformers", "h5py",
    "matplotlib",
]  # fmt: skip
PROBE = "import sys; {first}import idinit_ref; print([m for m in {heavy} if m in sys.modules])"


def loaded(first=""):
    """The heavy modules that are loaded after `import idinit_ref` in a fresh process."""
    code = PROBE.format(first=first, heavy=HEAVY)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_importing_the_reference_loads_no_framework():
    assert loaded() == "[]"


def test_that_proof_can_fail():
    assert loaded("import rich; ") == "['rich']"


def test_using_the_reference_loads_no_framework():
    assert loaded("import idinit_ref as ir; ir.idiz((4, 2, 3, 3)); ir.idi((3, 3), loosen=1); ") == (
        "[]"
    )


@pytest.mark.parametrize(
    ("name", "names"),
    [
        (
            "idinit_ref",
            [
                "Graph", "Node", "Plan", "Report", "Role", "__version__", "errors", "idi", "idiz",
                "infer_roles", "plan", "save",
            ],
        ),
        (
            "idinit_ref.errors",
            [
                "CheckpointError", "DTypeError", "GraphError", "IDInitError", "IndexingError",
                "LayoutError", "OptionError", "OptionTypeError", "RoundingError", "ShapeError",
                "message", "prefixed", "printable",
            ],
        ),
        (
            "idinit_ref_torch",
            [
                "audit", "idi_", "idi_layer_", "idiz_", "idiz_layer_", "init_", "jacobian",
                "layer_plans", "plans", "trace",
            ],
        ),
        (
            "idinit_ref_jax",
            [
                "audit", "idi", "idi_layer_", "idiz", "idiz_layer_", "init", "jacobian",
                "layer_plans", "plans", "trace",
            ],
        ),
        (
            "idinit_ref_tensorflow",
            [
                "IDI", "IDIZ", "audit", "idi_", "idi_layer_", "idiz_", "idiz_layer_", "init_",
                "jacobian", "layer_plans", "plans", "trace",
            ],
        ),
    ],
)  # fmt: skip
def test_public_names(name, names):
    module = importlib.import_module(name)
    assert sorted(module.__all__) == sorted(names)
    for public in names:
        assert getattr(module, public) is not None


def modules():
    found = ["idinit_ref", "idinit_ref_torch", "idinit_ref_jax", "idinit_ref_tensorflow"]
    for package in list(found):
        path = importlib.import_module(package).__path__
        found += [at.name for at in pkgutil.walk_packages(path, package + ".")]
    return found


@pytest.mark.parametrize("name", modules())
def test_every_public_name_of_a_module_is_listed_and_every_listed_name_exists(name):
    """A module inside need not list any: there what has no underscore is for its room."""
    module = importlib.import_module(name)
    if name.rsplit(".", 1)[-1].startswith("_"):
        return
    if not hasattr(module, "__all__"):
        assert not hasattr(module, "__path__"), "a package lists what it shows"
        return
    defined = {
        public
        for public, value in vars(module).items()
        if not public.startswith("_") and getattr(value, "__module__", None) == name
    }
    assert defined <= set(module.__all__)
    assert all(hasattr(module, public) for public in module.__all__)


@pytest.mark.parametrize(
    ("package", "framework", "extra"),
    [
        ("idinit_ref_torch", "torch", "torch"),
        ("idinit_ref_jax", "jax", "jax"),
        ("idinit_ref_tensorflow", "keras", "tensorflow"),
    ],
)
def test_a_missing_framework_is_named_with_the_extra(package, framework, extra):
    code = f"import sys; sys.modules[{framework!r}] = None; import {package}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "ImportError" in run.stderr
    assert f'pip install "idinit-ref[{extra}]"' in run.stderr


def test_version():
    from importlib.metadata import version

    assert version("idinit-ref") == idinit_ref.__version__
