"""The generative model and its variational guides as Pyro programs."""

from pyro_scale.programs.batch import CellBatch
from pyro_scale.programs.formulations import (
    FORMULATIONS,
    ConditioningOfC,
    Formulation,
    Programs,
    Treatment,
    build_programs,
)
from pyro_scale.programs.guides import (
    AmortizedGuide,
    AuxiliaryGuide,
    LatentGuide,
    MeanFieldGuide,
    StructuredGuide,
)
from pyro_scale.programs.likelihoods import BernoulliLikelihood, PoissonLikelihood
from pyro_scale.programs.models import AuxiliaryModel, CollapsedModel, MixtureModel, Program
from pyro_scale.programs.networks import (
    Classifier,
    Encoder,
    Lsi,
    PeakLinear,
    PosteriorVariance,
    rsample,
)
from pyro_scale.programs.prior import MixturePrior
from pyro_scale.programs.vae import LikelihoodName, MixtureVAE

__all__ = [
    "FORMULATIONS",
    "AmortizedGuide",
    "AuxiliaryGuide",
    "AuxiliaryModel",
    "BernoulliLikelihood",
    "CellBatch",
    "Classifier",
    "CollapsedModel",
    "ConditioningOfC",
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
    "build_programs",
    "rsample",
]
