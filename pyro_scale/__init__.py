"""SCALE for single-cell ATAC-seq as Pyro programs: every objective computed twice and compared.

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

from pyro_scale import analysis, data, pp
from pyro_scale.comparison import agreement, compare, ladder, nuts_latent
from pyro_scale.data import read, simulate
from pyro_scale.errors import (
    BusyError,
    CheckpointError,
    DataError,
    ModelFileError,
    NonFiniteError,
    NotTrainedError,
    OutOfMemory,
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
    "OutOfMemory",
    "agreement",
    "analysis",
    "compare",
    "data",
    "ladder",
    "nuts_latent",
    "pl",
    "pp",
    "read",
    "register",
    "simulate",
]

__version__ = version("pyro-scale")


def __getattr__(name: str) -> ModuleType:
    """``ps.pl`` with its first use: matplotlib takes long to import."""
    if name == "pl":
        return import_module("pyro_scale.plotting")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
