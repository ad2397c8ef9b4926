"""What a comparison found."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pyro_scale.objectives import Agreement, Row
from pyro_scale.programs import Treatment

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ComparedRow", "Comparison"]


@dataclass(frozen=True)
class ComparedRow:
    """A row of the table with what was measured; values in nats per cell.

    Attributes
    ----------
    formulation, estimator, c, twin, value_agreement, gradient_agreement
        As in :class:`pyro_scale.objectives.Row`.
    value, value_standard_error, twin_value
        Mean over the draws of the estimator's bound, its Monte Carlo error, and the closed
        form's mean over the same draws.
    difference
        Exact rows: the largest |value - twin| over the draws. Others: the mean difference.
    standard_error
        Of the mean difference.
    max_relative_gradient_difference
        Where the gradient is exact: the largest over every named parameter.
    max_gradient_z
        Where it agrees in expectation: the largest z-score over random projections.
    gradient_variance
        Trace of the covariance of the estimator's gradient of the mean bound per cell.
    seconds
        Median time of one evaluation, value and gradient.
    holds
        Whether the row agrees as the table says; None where it is not supported, or where
        formulations differ too little here for agreement to mean anything, or values of c that
        were never drawn may explain the difference (no power).
    reason
        Why not, or a remark.

    Examples
    --------
    >>> from pyro_scale.objectives import TABLE
    >>> row = ComparedRow.unsupported(TABLE[7], "refused")
    >>> row.supported, row.verdict
    (False, 'unsupported')
    """

    formulation: str
    estimator: str
    c: Treatment
    twin: str
    value_agreement: Agreement
    gradient_agreement: Agreement
    value: float | None = None
    value_standard_error: float | None = None
    twin_value: float | None = None
    difference: float | None = None
    standard_error: float | None = None
    max_relative_gradient_difference: float | None = None
    max_gradient_z: float | None = None
    gradient_variance: float | None = None
    seconds: float | None = None
    holds: bool | None = None
    reason: str = ""

    @classmethod
    def unsupported(cls, row: Row, reason: str) -> ComparedRow:
        """A combination ``row`` that the library, or we, refuse for a ``reason``."""
        return cls(
            row.formulation,
            row.estimator,
            row.c,
            row.twin,
            row.value_agreement,
            row.gradient_agreement,
            reason=reason,
        )

    @property
    def supported(self) -> bool:
        """Whether the combination computes the formulation's objective."""
        return self.value_agreement != "unsupported"

    @property
    def verdict(self) -> str:
        """``"holds"``, ``"FAILS"``, ``"no power"`` or ``"unsupported"``."""
        if not self.supported:
            return "unsupported"
        return {True: "holds", False: "FAILS", None: "no power"}[self.holds]


@dataclass(frozen=True)
class Comparison:
    """The matrix, filled.

    Attributes
    ----------
    rows
        Every formulation x treatment of c x estimator.
    gaps
        Differences between formulations at the compared parameters, in nats per cell.
    settings
        Sizes, seed, tolerance and threshold.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    >>> model = ps.SCALE(adata, n_components=2, n_latent=2, hidden=(8,))
    >>> table = ps.compare(model, n_cells=4, n_samples=2, formulations=["collapsed"])
    >>> table.to_frame().shape, list(table.gaps)[:1], "rows" in table.to_json()
    ((6, 18), ['collapsed - mean_field'], True)
    >>> figure = table.plot()
    """

    rows: tuple[ComparedRow, ...]
    gaps: dict[str, float]
    settings: dict[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """One row per combination, with a column ``verdict``."""
        frame = pd.DataFrame([asdict(row) for row in self.rows])
        frame["verdict"] = [row.verdict for row in self.rows]
        return frame

    def to_json(self, path: str | Path | None = None) -> str:
        """Rows, gaps and settings as JSON; written to ``path`` if one is given."""
        content = {
            "rows": [
                {
                    key: None if isinstance(v, float) and not math.isfinite(v) else v
                    for key, v in {**asdict(row), "verdict": row.verdict}.items()
                }
                for row in self.rows
            ],
            "gaps": self.gaps,
            "settings": self.settings,
        }
        text = json.dumps(content, indent=2, allow_nan=False)
        if path is not None:
            Path(path).write_text(text + "\n")
        return text

    def plot(self) -> Figure:
        """Values with errors, and gradient variance, of every supported row."""
        from pyro_scale.plotting import comparison as draw  # matplotlib takes long to import

        return draw(self.to_frame())
