"""Results of a trained model: posterior, accessibility, imputation and differential tests."""

from pyro_scale.inference.accessibility import (
    Depth,
    decoder_weights,
    normalized_accessibility,
    peaks_by_dimension,
)
from pyro_scale.inference.annotation import annotate
from pyro_scale.inference.datatree import to_datatree
from pyro_scale.inference.differential import Mode, differential_accessibility
from pyro_scale.inference.imputation import StoredDtype, binary_accessibility, write_imputed
from pyro_scale.inference.posterior import Kind, Posterior

__all__ = [
    "Depth",
    "Kind",
    "Mode",
    "Posterior",
    "StoredDtype",
    "annotate",
    "binary_accessibility",
    "decoder_weights",
    "differential_accessibility",
    "normalized_accessibility",
    "peaks_by_dimension",
    "to_datatree",
    "write_imputed",
]
