"""The training loop (Lightning), initialization, optimizers and callbacks.

Lightning takes long to import, so it is imported when a name that needs it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyro_scale.training.config import TrainingConfig, TrainingProgress, default_batch_size
from pyro_scale.training.initialization import (
    build_vae,
    choose_n_components,
    components_from_means,
    fit_lsi,
    moments,
)

if TYPE_CHECKING:
    from pyro_scale.training.module import TrainingModule
    from pyro_scale.training.trainer import fit

__all__ = [
    "TrainingConfig",
    "TrainingModule",
    "TrainingProgress",
    "build_vae",
    "choose_n_components",
    "components_from_means",
    "default_batch_size",
    "fit",
    "fit_lsi",
    "moments",
]

_NEEDS_LIGHTNING = {"TrainingModule": "module", "fit": "trainer"}


def __getattr__(name: str) -> Any:
    if name in _NEEDS_LIGHTNING:
        return getattr(import_module(f"{__name__}.{_NEEDS_LIGHTNING[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
