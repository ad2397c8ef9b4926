"""The objectives: Pyro's estimators, the hand-derived closed forms, and the registry of both."""

from pyro_scale.objectives import terms
from pyro_scale.objectives.closed_forms import (
    collapsed,
    importance_weighted,
    mean_field,
    mean_field_at_z,
    scale,
)
from pyro_scale.objectives.estimators import Objective
from pyro_scale.objectives.evaluation import (
    NO_OFFSETS,
    SCALE_1_1_2_OFFSETS,
    ElboTerms,
    EvaluationPoint,
    NumericalOffsets,
    evaluate,
)
from pyro_scale.objectives.registration import register
from pyro_scale.objectives.registry import (
    CLOSED_FORMS,
    ESTIMATORS,
    OBJECTIVES,
    REGISTRY,
    Agreement,
    ClosedForm,
    ObjectiveSpec,
    ObjectiveTable,
    Registration,
    Registry,
    resolve_objective,
    to_markdown,
)
from pyro_scale.objectives.trace_enum_mean_field_elbo import TraceEnumMeanField_ELBO

__all__ = [
    "CLOSED_FORMS",
    "ESTIMATORS",
    "NO_OFFSETS",
    "OBJECTIVES",
    "REGISTRY",
    "SCALE_1_1_2_OFFSETS",
    "Agreement",
    "ClosedForm",
    "ElboTerms",
    "EvaluationPoint",
    "NumericalOffsets",
    "Objective",
    "ObjectiveSpec",
    "ObjectiveTable",
    "Registration",
    "Registry",
    "TraceEnumMeanField_ELBO",
    "collapsed",
    "evaluate",
    "importance_weighted",
    "mean_field",
    "mean_field_at_z",
    "register",
    "resolve_objective",
    "scale",
    "terms",
    "to_markdown",
]
