"""The training loop (Lightning), initialization, optimizers and callbacks.

Lightning takes long to import, so it is imported when a name that needs it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyro_scale.training.clustering import (
    ComponentChoice,
    choose_n_components,
    components_from_means,
)
from pyro_scale.training.config import TrainingConfig, TrainingProgress, default_batch_size
from pyro_scale.training.initialization import (
    build_vae,
    fit_lsi,
    half_means,
    moments,
)
from pyro_scale.training.newton import GaussianPosterior, NewtonSweeps
from pyro_scale.training.start import (
    components_from_posteriors,
    fit_encoder,
    newton_start,
    reason_against_sweeps,
)

if TYPE_CHECKING:
    from pyro_scale.training.module import TrainingModule
    from pyro_scale.training.trainer import fit

__all__ = [
    "ComponentChoice",
    "GaussianPosterior",
    "NewtonSweeps",
    "TrainingConfig",
    "TrainingModule",
    "TrainingProgress",
    "build_vae",
    "choose_n_components",
    "components_from_means",
    "components_from_posteriors",
    "default_batch_size",
    "fit",
    "fit_encoder",
    "fit_lsi",
    "half_means",
    "moments",
    "newton_start",
    "reason_against_sweeps",
]

_NEEDS_LIGHTNING = {"TrainingModule": "module", "fit": "trainer"}


def __getattr__(name: str) -> Any:
    if name in _NEEDS_LIGHTNING:
        return getattr(import_module(f"{__name__}.{_NEEDS_LIGHTNING[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
