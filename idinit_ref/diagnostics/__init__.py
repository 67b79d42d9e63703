"""What an initialisation does to a network: moments, Jacobians, ranks, gradients, symmetry, gains.

The names here are public; the modules are inside.
"""

from .measures import (
    Change,
    Correlation,
    Coverage,
    Estimate,
    IdentityGainWarning,
    Moments,
    Operator,
    chi,
    feature_correlation,
    gaussian_gain,
    gradient_coverage,
    moments,
    rank_of_change,
    singular_values,
)

__all__ = [
    "Change",
    "Correlation",
    "Coverage",
    "Estimate",
    "IdentityGainWarning",
    "Moments",
    "Operator",
    "chi",
    "feature_correlation",
    "gaussian_gain",
    "gradient_coverage",
    "moments",
    "rank_of_change",
    "singular_values",
]
