"""The loop (Lightning), initialisation and stopping."""

from pyro_scale.training.fit import fit
from pyro_scale.training.initialise import build_vae, lsi_of
from pyro_scale.training.mixture_start import choose_n_components, components_from_means
from pyro_scale.training.module import TrainingModule, moments
from pyro_scale.training.plan import TrainingPlan

__all__ = [
    "TrainingModule",
    "TrainingPlan",
    "build_vae",
    "choose_n_components",
    "components_from_means",
    "fit",
    "lsi_of",
    "moments",
]
