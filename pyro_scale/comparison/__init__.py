"""Comparison of estimators with closed forms, the ladder of bounds, and NUTS as a reference."""

from pyro_scale.comparison.compare import compare
from pyro_scale.comparison.estimates import (
    Estimate,
    estimate_objective,
    evaluate_closed_form,
    gradient_difference,
)
from pyro_scale.comparison.ladder import Ladder, ladder
from pyro_scale.comparison.nuts import NutsResult, compare_to_nuts, sample_latent_nuts
from pyro_scale.comparison.results import ComparedRow, Comparison
from pyro_scale.comparison.verdicts import critical_z

__all__ = [
    "ComparedRow",
    "Comparison",
    "Estimate",
    "Ladder",
    "NutsResult",
    "compare",
    "compare_to_nuts",
    "critical_z",
    "estimate_objective",
    "evaluate_closed_form",
    "gradient_difference",
    "ladder",
    "sample_latent_nuts",
]
