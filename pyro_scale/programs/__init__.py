"""What is believed: prior, networks, likelihood, the model, one guide per formulation."""

from pyro_scale.programs._program import Program
from pyro_scale.programs.cells import Cells
from pyro_scale.programs.formulations import FORMULATIONS, Formulation, Programs, Treatment, build
from pyro_scale.programs.guides import (
    AmortizedGuide,
    AuxiliaryGuide,
    LatentGuide,
    MeanFieldGuide,
    StructuredGuide,
)
from pyro_scale.programs.likelihood import BernoulliLikelihood, PoissonLikelihood
from pyro_scale.programs.models import AuxiliaryModel, CollapsedModel, MixtureModel
from pyro_scale.programs.networks import (
    Classifier,
    Encoder,
    Lsi,
    PeakLinear,
    PosteriorVariance,
)
from pyro_scale.programs.prior import MixturePrior
from pyro_scale.programs.vae import LikelihoodName, MixtureVAE

__all__ = [
    "FORMULATIONS",
    "AmortizedGuide",
    "AuxiliaryGuide",
    "AuxiliaryModel",
    "BernoulliLikelihood",
    "Cells",
    "Classifier",
    "CollapsedModel",
    "Encoder",
    "Formulation",
    "LatentGuide",
    "LikelihoodName",
    "Lsi",
    "MeanFieldGuide",
    "MixtureModel",
    "MixturePrior",
    "MixtureVAE",
    "PeakLinear",
    "PoissonLikelihood",
    "PosteriorVariance",
    "Program",
    "Programs",
    "StructuredGuide",
    "Treatment",
    "build",
]
