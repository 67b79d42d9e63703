"""The oracle: tests any implementation for the properties of the reference.

Needs the extra ``testing`` (Hypothesis). `make_oracle` binds all properties to a callable. Each
check is also a function of an implementation and a plan. The strategies draw weights.

Examples
--------
>>> import idinit_ref as ir
>>> make_oracle(ir.idi, expect=["transit", "rank"], examples=5).run().ok
True
"""

from __future__ import annotations

try:
    import hypothesis as _hypothesis
except ImportError as problem:
    raise ImportError(
        'idinit_ref.testing needs Hypothesis: pip install "idinit-ref[testing]"', name="hypothesis"
    ) from problem

from ._checks import (
    check_determinism,
    check_device,
    check_dtype,
    check_exact,
    check_groups,
    check_isometry,
    check_rank,
    check_reach,
    check_row_norm,
    check_underflow,
    check_units,
    check_zero_sums,
)
from ._make import make_oracle
from ._oracle import PROPERTIES, Oracle
from ._report import OracleReport, Outcome
from ._signals import (
    check_composition,
    check_image,
    check_layout,
    check_residual,
    check_transit,
    check_variance,
)
from ._strategies import conv_specs, dtypes, layouts, plans, weight_shapes
from ._subject import Violation

__all__ = [
    "PROPERTIES",
    "Oracle",
    "OracleReport",
    "Outcome",
    "Violation",
    "check_composition",
    "check_determinism",
    "check_device",
    "check_dtype",
    "check_exact",
    "check_groups",
    "check_image",
    "check_isometry",
    "check_layout",
    "check_rank",
    "check_reach",
    "check_residual",
    "check_row_norm",
    "check_transit",
    "check_underflow",
    "check_units",
    "check_variance",
    "check_zero_sums",
    "conv_specs",
    "dtypes",
    "layouts",
    "make_oracle",
    "plans",
    "weight_shapes",
]

del _hypothesis
