"""The table of formulations x estimators, as data.

Comparison, training and the README read this one table. A row says which closed form a Pyro
estimator computes on a formulation's programs, and how closely the two agree:

exact
    Per sample, in float64, at the z of the estimator's own trace.
in expectation
    Up to Monte Carlo noise.
unsupported
    Pyro, or we, refuse; ``note`` says why where the library itself is silent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, overload

from torch import Tensor

from pyro_scale.objectives import closed_forms
from pyro_scale.objectives.estimators import ESTIMATORS
from pyro_scale.objectives.point import Point
from pyro_scale.programs import FORMULATIONS, Treatment

__all__ = ["TABLE", "TWINS", "Agreement", "Row", "Table", "find_row", "to_markdown"]

Agreement = Literal["exact", "in expectation", "unsupported"]
"""How closely an estimator and a closed form agree; see above."""

TWINS: dict[str, Callable[[Point, Tensor | None], Tensor]] = {
    "collapsed": lambda at, _: closed_forms.collapsed(at).total(),
    "importance_weighted": lambda at, _: closed_forms.importance_weighted(at),
    "mean_field": lambda at, log_q_c_nk: closed_forms.mean_field(at, log_q_c_nk).total(),
    "mean_field_at_z": lambda at, log_q_c_nk: closed_forms.mean_field_at_z(at, log_q_c_nk).total(),
    "scale": lambda at, _: closed_forms.scale(at).total(),
}
"""Closed forms by name: (point, log q(c|x) of the classifier or None for g*) -> per-cell bound."""


@dataclass(frozen=True)
class Row:
    """One way of computing one objective.

    Attributes
    ----------
    formulation, estimator, c
        Which programs, under which estimator, and what becomes of c.
    twin
        Name of the closed form in :data:`TWINS`; empty where unsupported.
    value_agreement, gradient_agreement
        How closely value and gradient agree with the twin's.
    note
        Why, where it is not obvious.

    Examples
    --------
    >>> row = Row("scale", "TraceEnum_ELBO", "enumerated", "scale", *["in expectation"] * 2)
    >>> row.supported, row.n_particles
    (True, 1)
    """

    formulation: str
    estimator: str
    c: Treatment
    twin: str = ""
    value_agreement: Agreement = "unsupported"
    gradient_agreement: Agreement = "unsupported"
    note: str = ""

    @property
    def supported(self) -> bool:
        """Whether the estimator computes this formulation's objective, gradient included."""
        return self.value_agreement != "unsupported"

    @property
    def n_particles(self) -> int:
        """Samples per evaluation that the comparison uses: several for IWAE, else one."""
        return 4 if self.estimator == "RenyiELBO" else 1


_SCORE = (
    "at alpha = 0 RenyiELBO leaves out the score-function term of a sampled c and the gradient "
    "of -log q(c) (see pyro-ppl/pyro issue 1222): where the weight depends on c, its gradient is "
    "biased (derivations, D07.2 and D07.3)"
)
_AT_Z = "exact per sample against the twin that keeps z's log-densities sampled"

# The first row of a formulation is its default for training.
_SUPPORTED = (
    Row("collapsed", "Trace_ELBO", "collapsed", "collapsed", "exact", "exact"),
    Row("collapsed", "TraceGraph_ELBO", "collapsed", "collapsed", "exact", "exact"),
    Row("collapsed", "TraceEnum_ELBO", "collapsed", "collapsed", "exact", "exact"),
    Row("collapsed", "TraceMeanField_ELBO", "collapsed", "collapsed", "exact", "exact",
        "no KL is registered for a mixture, so it falls back on sampling"),
    Row("collapsed", "RenyiELBO", "collapsed", "importance_weighted", "exact", "exact"),
    Row("model_enumerated", "TraceEnum_ELBO", "enumerated", "collapsed", "exact", "exact"),
    Row("model_enumerated", "TraceEnumMeanField_ELBO", "enumerated", "mean_field",
        "exact", "exact", "both log-densities replaced: the optimal mean-field bound"),
    Row("structured", "TraceEnum_ELBO", "enumerated", "collapsed", "exact", "exact"),
    Row("structured", "TraceEnumMeanField_ELBO", "enumerated", "scale", "exact", "exact",
        "SCALE's loss, sample by sample"),
    Row("structured", "Trace_ELBO", "sampled", "collapsed", "exact", "in expectation"),
    Row("structured", "TraceGraph_ELBO", "sampled", "collapsed", "exact", "in expectation"),
    Row("structured", "TraceEnum_ELBO", "sampled", "collapsed", "exact", "in expectation"),
    Row("structured", "RenyiELBO", "sampled", "importance_weighted", "exact", "in expectation"),
    Row("mean_field", "TraceEnumMeanField_ELBO", "enumerated", "mean_field", "exact", "exact"),
    Row("mean_field", "TraceEnum_ELBO", "enumerated", "mean_field",
        "in expectation", "in expectation"),
    Row("mean_field", "TraceEnum_ELBO", "enumerated", "mean_field_at_z", "exact", "exact", _AT_Z),
    Row("mean_field", "Trace_ELBO", "sampled", "mean_field", "in expectation", "in expectation"),
    Row("mean_field", "TraceGraph_ELBO", "sampled", "mean_field",
        "in expectation", "in expectation"),
    Row("mean_field", "TraceEnum_ELBO", "sampled", "mean_field",
        "in expectation", "in expectation"),
    Row("amortized", "TraceEnumMeanField_ELBO", "enumerated", "mean_field", "exact", "exact"),
    Row("amortized", "TraceEnum_ELBO", "enumerated", "mean_field",
        "in expectation", "in expectation"),
    Row("amortized", "TraceEnum_ELBO", "enumerated", "mean_field_at_z", "exact", "exact", _AT_Z),
    Row("amortized", "Trace_ELBO", "sampled", "mean_field", "in expectation", "in expectation"),
    Row("amortized", "TraceGraph_ELBO", "sampled", "mean_field",
        "in expectation", "in expectation"),
    Row("amortized", "TraceEnum_ELBO", "sampled", "mean_field",
        "in expectation", "in expectation"),
    Row("scale", "TraceEnum_ELBO", "enumerated", "scale", "in expectation", "in expectation"),
    Row("scale", "TraceEnumMeanField_ELBO", "enumerated", "scale",
        "in expectation", "in expectation"),
    Row("scale", "Trace_ELBO", "sampled", "scale", "in expectation", "in expectation"),
    Row("scale", "TraceGraph_ELBO", "sampled", "scale", "in expectation", "in expectation"),
    Row("scale", "TraceEnum_ELBO", "sampled", "scale", "in expectation", "in expectation"),
    Row("mean_field", "RenyiELBO", "sampled", note=_SCORE),
    Row("amortized", "RenyiELBO", "sampled", note=_SCORE),
    Row("scale", "RenyiELBO", "sampled", note=_SCORE),
)  # fmt: skip


def _fill(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Every cell of the matrix, in the order of FORMULATIONS; what is not listed is refused."""
    table = []
    for formulation in FORMULATIONS.values():
        for c in formulation.treatments:
            for estimator in ESTIMATORS:
                cell = (formulation.name, estimator, c)
                listed = [row for row in rows if (row.formulation, row.estimator, row.c) == cell]
                table += listed or [Row(*cell)]
    return tuple(table)


class Table(Sequence[Row]):
    """Every formulation x treatment of c x estimator, as it now stands.

    A sequence that is read; :func:`pyro_scale.register` adds to it.

    Parameters
    ----------
    listed
        The rows that are supported, or refused for a reason of ours.

    Examples
    --------
    >>> len(TABLE), sum(row.supported for row in TABLE)
    (62, 30)
    """

    def __init__(self, listed: tuple[Row, ...]) -> None:
        self._set(listed)

    def _set(self, listed: tuple[Row, ...]) -> None:
        self.listed, self._rows = listed, _fill(listed)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Row]: ...
    def __getitem__(self, at: int | slice) -> Row | Sequence[Row]:
        """A row, or some."""
        return self._rows[at]

    def __len__(self) -> int:
        """How many combinations there are."""
        return len(self._rows)


TABLE = Table(_SUPPORTED)
"""Every formulation x treatment of c x estimator."""


def find_row(formulation: str, estimator: str | None = None, c: Treatment | None = None) -> Row:
    """The row that a user means, for training.

    Parameters
    ----------
    formulation
        A name in :data:`pyro_scale.programs.FORMULATIONS`.
    estimator
        A name in :data:`pyro_scale.objectives.ESTIMATORS`; None: the formulation's default.
    c
        What becomes of c; None: the first way that the estimator supports.

    Raises
    ------
    ValueError
        For an unknown name, or a combination that is not supported.

    Examples
    --------
    >>> find_row("collapsed").estimator
    'Trace_ELBO'
    >>> find_row("structured", "Trace_ELBO").c
    'sampled'
    """
    if formulation not in FORMULATIONS:
        raise ValueError(
            f"formulation={formulation!r} is not known; choose one of {', '.join(FORMULATIONS)}, "
            "or import the file that registers it (pyro_scale.register)."
        )
    if estimator is not None and estimator not in ESTIMATORS:
        raise ValueError(
            f"estimator={estimator!r} is not known; choose one of {', '.join(ESTIMATORS)}."
        )
    rows = [row for row in TABLE.listed if row.formulation == formulation and row.supported]
    for row in rows:
        if estimator in (None, row.estimator) and c in (None, row.c):
            return row
    options = ", ".join(dict.fromkeys(f"{row.estimator} (c {row.c})" for row in rows))
    raise ValueError(
        f"formulation={formulation!r} cannot be trained by estimator={estimator!r} with c={c!r}; "
        f"it can by {options}."
    )


def to_markdown() -> str:
    r"""The supported rows as a Markdown table (the README's).

    Examples
    --------
    >>> print(to_markdown().splitlines()[2][:68])
    | collapsed | q(z\|x), mixture prior on z | collapsed | Trace_ELBO |
    """
    lines = [
        "| formulation | q(z,c\\|x) | c | Pyro estimator | closed form | value | gradient |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in TABLE:
        if row.supported:
            posterior = FORMULATIONS[row.formulation].posterior.replace("|", "\\|")
            lines.append(
                f"| {row.formulation} | {posterior} | {row.c} | {row.estimator} | `{row.twin}` "
                f"| {row.value_agreement} | {row.gradient_agreement} |"
            )
    return "\n".join(lines)
