"""Holding programs and closed forms side by side: the matrix, and the ladder of bounds."""

from pyro_scale.comparison.compare import compare
from pyro_scale.comparison.evaluate import Draw, draw, gradient_difference, twin_draw
from pyro_scale.comparison.gold import NutsResult, agreement, nuts_latent
from pyro_scale.comparison.ladder import Ladder, ladder
from pyro_scale.comparison.prepare import Comparable
from pyro_scale.comparison.result import ComparedRow, Comparison
from pyro_scale.comparison.statistics import critical_z

__all__ = [
    "Comparable",
    "ComparedRow",
    "Comparison",
    "Draw",
    "Ladder",
    "NutsResult",
    "agreement",
    "compare",
    "critical_z",
    "draw",
    "gradient_difference",
    "ladder",
    "nuts_latent",
    "twin_draw",
]
