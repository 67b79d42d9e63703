"""What an initialisation does to a network: moments, Jacobians, ranks, gradients, symmetry, gains.

The names here are public; the modules are inside.
"""

from .audit import Audit, Branch, Dead, Health, Layer
from .measures import (
    Correlation,
    Coverage,
    Estimate,
    IdentityGainWarning,
    Moments,
    Operator,
    RankOfChange,
    chi,
    feature_correlation,
    gaussian_gain,
    gradient_coverage,
    moments,
    rank_of_change,
    singular_values,
)

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
]
