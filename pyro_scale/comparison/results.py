"""Results of a comparison: one row per objective, as a table, JSON or figure."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pyro_scale._validation import check_path
from pyro_scale.objectives import Agreement, ObjectiveSpec
from pyro_scale.programs import Treatment

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ComparedRow", "Comparison"]


@dataclass(frozen=True)
class ComparedRow:
    """The comparison of one objective's estimator with its closed form, in nats per cell.

    Attributes
    ----------
    formulation, estimator, c, closed_form, value_agreement, gradient_agreement
        Fields of the :class:`pyro_scale.objectives.ObjectiveSpec`: the formulation (a choice of
        q(z,c|x)), the estimator, how the mixture component c is treated, the closed form, and how
        closely value and gradient should agree with it.
    value, value_standard_error
        Mean of the estimator's bound over the draws, and its Monte Carlo standard error.
    closed_form_value
        Mean of the closed form over the same draws.
    difference
        Difference between the estimator's bound and the closed form: the largest absolute
        difference over the draws if ``value_agreement`` is ``"exact"``, else the mean difference.
    standard_error
        Standard error of the mean difference.
    max_relative_gradient_difference
        Largest relative difference of the gradients over all named parameters, if
        ``gradient_agreement`` is ``"exact"``.
    max_gradient_z
        Largest z-score of the gradients' difference over random projections, if
        ``gradient_agreement`` is ``"in expectation"``.
    gradient_variance
        Trace of the covariance of the estimator's gradient of the mean bound per cell.
    seconds
        Median time of one evaluation of value and gradient.
    holds
        Whether value and gradient agree with the closed form as ``value_agreement`` and
        ``gradient_agreement`` state. None if the objective is unsupported or the comparison has no
        power. It has no power if another bound is so close that agreement is not informative, or
        if values of c that were never drawn may explain a difference of the gradients.
    reason
        Explanation of the result, or the objective's note.

    Examples
    --------
    >>> from pyro_scale.objectives import OBJECTIVES
    >>> row = ComparedRow.unsupported(OBJECTIVES[7], "Pyro rejects it")
    >>> row.supported, row.status
    (False, 'unsupported')
    """

    formulation: str
    estimator: str
    c: Treatment
    closed_form: str
    value_agreement: Agreement
    gradient_agreement: Agreement
    value: float | None = None
    value_standard_error: float | None = None
    closed_form_value: float | None = None
    difference: float | None = None
    standard_error: float | None = None
    max_relative_gradient_difference: float | None = None
    max_gradient_z: float | None = None
    gradient_variance: float | None = None
    seconds: float | None = None
    holds: bool | None = None
    reason: str = ""

    @classmethod
    def unsupported(cls, objective: ObjectiveSpec, reason: str) -> ComparedRow:
        """Make the row of an unsupported ``objective``, with the ``reason``."""
        return cls(
            objective.formulation,
            objective.estimator,
            objective.c,
            objective.closed_form,
            objective.value_agreement,
            objective.gradient_agreement,
            reason=reason,
        )

    @property
    def supported(self) -> bool:
        """Whether the estimator computes the formulation's objective and its gradient."""
        return self.value_agreement != "unsupported"

    @property
    def status(self) -> str:
        """Result of the comparison: ``"holds"``, ``"FAILS"``, ``"no power"`` or ``"unsupported"``.

        ``"no power"`` is the status of a supported objective whose ``holds`` is None.
        """
        if not self.supported:
            return "unsupported"
        return {True: "holds", False: "FAILS", None: "no power"}[self.holds]


@dataclass(frozen=True)
class Comparison:
    """All rows of a comparison, with its settings.

    Attributes
    ----------
    rows
        One :class:`ComparedRow` per objective, that is, per combination of formulation (a choice
        of q(z,c|x)), treatment of the mixture component c (``"marginalized"``, ``"enumerated"`` or
        ``"sampled"``), estimator and closed form.
    gaps
        Differences between the bounds at the compared parameters, by name, in nats per cell.
    settings
        Numbers of cells, peaks, components, latent dimensions and draws, the seed, the tolerance
        and the critical z-score of the comparison.

    Examples
    --------
    >>> table = ps.compare(model, n_cells=4, n_samples=2, formulations=["collapsed"])
    >>> table.to_frame().shape, list(table.gaps)[:1], "rows" in table.to_json()
    ((6, 18), ['collapsed - mean_field'], True)
    >>> figure = table.plot()
    """

    rows: tuple[ComparedRow, ...]
    gaps: dict[str, float]
    settings: dict[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """Return a data frame with one row per objective and a column ``status``."""
        frame = pd.DataFrame([asdict(row) for row in self.rows])
        frame["status"] = [row.status for row in self.rows]
        return frame

    def to_json(self, path: str | Path | None = None) -> str:
        """Return rows, gaps and settings as JSON, and write them to ``path`` if it is given."""
        content = {
            "rows": [
                {
                    key: None if isinstance(v, float) and not math.isfinite(v) else v
                    for key, v in {**asdict(row), "status": row.status}.items()
                }
                for row in self.rows
            ],
            "gaps": self.gaps,
            "settings": self.settings,
        }
        text = json.dumps(content, indent=2, allow_nan=False)
        if path is not None:
            check_path("path", path).write_text(text + "\n")
        return text

    def plot(self) -> Figure:
        """Plot value, standard error and gradient variance of every supported objective."""
        from pyro_scale.plotting import comparison as draw  # matplotlib takes long to import

        return draw(self.to_frame())
