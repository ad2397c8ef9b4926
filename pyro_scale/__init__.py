"""SCALE for single-cell ATAC-seq as Pyro programs, with closed forms of every objective.

>>> import pyro_scale as ps
>>> adata = ps.simulate(n_cells=60, n_peaks=200, n_clusters=2, density=0.1, seed=0)
>>> model = ps.SCALE(adata, n_components=2, n_latent=2, hidden=(16,))
>>> model
SCALE(60 cells x 200 peaks, K=2, D=2, collapsed by Trace_ELBO, bernoulli, untrained)
"""

from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING

from pyro_scale import analysis, data
from pyro_scale import preprocessing as pp
from pyro_scale.comparison import compare, compare_to_nuts, ladder, sample_latent_nuts
from pyro_scale.data import read, simulate
from pyro_scale.exceptions import (
    BusyError,
    CheckpointError,
    DataError,
    ModelFileError,
    NonFiniteError,
    NotTrainedError,
    OutOfMemoryError,
)
from pyro_scale.objectives import register
from pyro_scale.scale import SCALE

if TYPE_CHECKING:
    from pyro_scale import plotting as pl

__all__ = [
    "SCALE",
    "BusyError",
    "CheckpointError",
    "DataError",
    "ModelFileError",
    "NonFiniteError",
    "NotTrainedError",
    "OutOfMemoryError",
    "analysis",
    "compare",
    "compare_to_nuts",
    "data",
    "ladder",
    "pl",
    "pp",
    "read",
    "register",
    "sample_latent_nuts",
    "simulate",
]

__version__ = version("pyro-scale")


def __getattr__(name: str) -> ModuleType:
    """Import ``ps.pl`` on first use, because matplotlib is slow to import."""
    if name == "pl":
        return import_module("pyro_scale.plotting")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
