"""Measures of an initialisation: moments, Jacobians, ranks, gradients, symmetry, gains.

The names here are public; the modules are internal.
"""

from .audit import Audit, Branch, Dead, Health, Layer
from .gaussian import IdentityGainWarning, gaussian_gain
from .measures import (
    Correlation,
    Coverage,
    Moments,
    RankOfChange,
    feature_correlation,
    gradient_coverage,
    moments,
    rank_of_change,
)
from .spectrum import Estimate, Operator, chi, singular_values, stable_rank

__all__ = [
    "Audit",
    "Branch",
    "Correlation",
    "Coverage",
    "Dead",
    "Estimate",
    "Health",
    "IdentityGainWarning",
    "Layer",
    "Moments",
    "Operator",
    "RankOfChange",
    "chi",
    "feature_correlation",
    "gaussian_gain",
    "gradient_coverage",
    "moments",
    "rank_of_change",
    "singular_values",
    "stable_rank",
]
