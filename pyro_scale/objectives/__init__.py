"""How a program becomes a loss: Pyro's estimators, the closed forms, and the table of both."""

from pyro_scale.objectives import terms
from pyro_scale.objectives.closed_forms import (
    collapsed,
    importance_weighted,
    mean_field,
    mean_field_at_z,
    scale,
)
from pyro_scale.objectives.estimators import ESTIMATORS, Objective
from pyro_scale.objectives.point import (
    EXACT,
    PUBLISHED,
    Constants,
    Point,
    Terms,
    evaluate,
)
from pyro_scale.objectives.register import ClosedForm, Registration, register
from pyro_scale.objectives.table import TABLE, TWINS, Agreement, Row, Table, find_row, to_markdown
from pyro_scale.objectives.trace_enum_mean_field_elbo import TraceEnumMeanField_ELBO

__all__ = [
    "ESTIMATORS",
    "EXACT",
    "PUBLISHED",
    "TABLE",
    "TWINS",
    "Agreement",
    "ClosedForm",
    "Constants",
    "Objective",
    "Point",
    "Registration",
    "Row",
    "Table",
    "Terms",
    "TraceEnumMeanField_ELBO",
    "collapsed",
    "evaluate",
    "find_row",
    "importance_weighted",
    "mean_field",
    "mean_field_at_z",
    "register",
    "scale",
    "terms",
    "to_markdown",
]
