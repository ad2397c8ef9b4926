"""The loop (Lightning), initialisation and stopping.

Lightning and scikit-learn, which take long to import, come with the first thing that needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyro_scale.training.initialise import build_vae, lsi_of
from pyro_scale.training.plan import TrainingPlan, default_batch_size

if TYPE_CHECKING:
    from pyro_scale.training.loop import fit
    from pyro_scale.training.mixture_start import (
        choose_n_components,
        components_from_means,
        moments,
    )
    from pyro_scale.training.module import TrainingModule

__all__ = [
    "TrainingModule",
    "TrainingPlan",
    "build_vae",
    "choose_n_components",
    "components_from_means",
    "default_batch_size",
    "fit",
    "lsi_of",
    "moments",
]

_LATER = {
    "TrainingModule": "module",
    "choose_n_components": "mixture_start",
    "components_from_means": "mixture_start",
    "fit": "loop",
    "moments": "mixture_start",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
