"""The registry of formulations, estimators, closed forms and objectives.

A formulation is a choice of q(z,c|x). Comparison, training and documentation read this one
registry. An :class:`ObjectiveSpec` states which closed form an estimator computes for a
formulation, and how closely the two agree:

exact
    Both are equal, up to rounding in float64, for every z that the estimator draws.
in expectation
    Both have the same expectation, so that they agree up to Monte Carlo noise.
unsupported
    Pyro or this package refuses the combination; ``note`` gives the reason where Pyro gives none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, overload

from pyro.infer import (
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.elbo import ELBO
from torch import Tensor

from pyro_scale._validation import check_choice
from pyro_scale.objectives import closed_forms as forms
from pyro_scale.objectives.evaluation import ElboTerms, EvaluationPoint
from pyro_scale.objectives.trace_enum_mean_field_elbo import TraceEnumMeanField_ELBO
from pyro_scale.programs import (
    FORMULATIONS,
    Formulation,
    MixtureVAE,
    Programs,
    Treatment,
    build_programs,
)

__all__ = [
    "CLOSED_FORMS",
    "ESTIMATORS",
    "OBJECTIVES",
    "REGISTRY",
    "Agreement",
    "ClosedForm",
    "ObjectiveSpec",
    "ObjectiveTable",
    "Registration",
    "Registry",
    "resolve_objective",
    "to_markdown",
]

Agreement = Literal["exact", "in expectation", "unsupported"]
"""How closely an estimator and a closed form agree; the module's docstring defines the values."""

ClosedForm = Callable[[EvaluationPoint], Tensor | ElboTerms]
"""A function that computes a hand-derived bound per cell, in nats, at an evaluation point: its
five terms, or their sum of shape ``(..., n)``."""

ESTIMATORS: Mapping[str, type[ELBO]] = MappingProxyType(
    {
        "Trace_ELBO": Trace_ELBO,
        "TraceGraph_ELBO": TraceGraph_ELBO,
        "TraceEnum_ELBO": TraceEnum_ELBO,
        "TraceEnumMeanField_ELBO": TraceEnumMeanField_ELBO,
        "TraceMeanField_ELBO": TraceMeanField_ELBO,
        "RenyiELBO": RenyiELBO,
    }
)
"""The estimators by name; RenyiELBO is used with alpha = 0, where it is the IWAE bound."""


@dataclass(frozen=True)
class ObjectiveSpec:
    """An objective: a formulation (a choice of q(z,c|x)), an estimator, and its closed form.

    Attributes
    ----------
    formulation, estimator, c
        Name of the formulation, name of the estimator, and how the mixture component c is treated:
        ``"marginalized"``, ``"enumerated"`` or ``"sampled"``.
    closed_form
        Name of the closed form in :data:`CLOSED_FORMS`; empty if the combination is unsupported.
    value_agreement, gradient_agreement
        How closely value and gradient agree with those of the closed form.
    note
        Explanation of the agreement, or reason why the combination is unsupported.

    Examples
    --------
    >>> objective = resolve_objective("scale")
    >>> objective.supported, objective.n_particles
    (True, 1)
    """

    formulation: str
    estimator: str
    c: Treatment
    closed_form: str = ""
    value_agreement: Agreement = "unsupported"
    gradient_agreement: Agreement = "unsupported"
    note: str = ""

    @property
    def supported(self) -> bool:
        """Whether the estimator computes the formulation's objective and its gradient."""
        return self.value_agreement != "unsupported"

    @property
    def n_particles(self) -> int:
        """Number of samples per evaluation in a comparison: four for RenyiELBO, else one."""
        return 4 if self.estimator == "RenyiELBO" else 1


_SCORE = (
    "with alpha = 0, RenyiELBO omits the score-function term of a sampled c and the gradient of "
    "-log q(c) (see the review of pyro-ppl/pyro pull request 1450), so its gradient is biased "
    "where the importance weight depends on c (derivations, D07.2 and D07.3)"
)
_AT_Z = "the closed form evaluates z's log-densities at the sample, as the estimator does"

# The first objective of a formulation is its default for training.
_OBJECTIVES = (
    ObjectiveSpec("collapsed", "Trace_ELBO", "marginalized", "collapsed", "exact", "exact"),
    ObjectiveSpec("collapsed", "TraceGraph_ELBO", "marginalized", "collapsed", "exact", "exact"),
    ObjectiveSpec("collapsed", "TraceEnum_ELBO", "marginalized", "collapsed", "exact", "exact"),
    ObjectiveSpec("collapsed", "TraceMeanField_ELBO", "marginalized", "collapsed", "exact", "exact",
        "no KL divergence is registered for a mixture, so the estimator uses the sample"),
    ObjectiveSpec("collapsed", "RenyiELBO", "marginalized", "importance_weighted",
        "exact", "exact"),
    ObjectiveSpec("model_enumerated", "TraceEnum_ELBO", "enumerated", "collapsed",
        "exact", "exact"),
    ObjectiveSpec("model_enumerated", "TraceEnumMeanField_ELBO", "enumerated", "mean_field",
        "exact", "exact",
        "z's log-densities are replaced by expectations: the optimal mean-field bound"),
    ObjectiveSpec("structured", "TraceEnum_ELBO", "enumerated", "collapsed", "exact", "exact"),
    ObjectiveSpec("structured", "TraceEnumMeanField_ELBO", "enumerated", "scale", "exact", "exact",
        "equal to SCALE's loss for every sample"),
    ObjectiveSpec("structured", "Trace_ELBO", "sampled", "collapsed", "exact", "in expectation"),
    ObjectiveSpec("structured", "TraceGraph_ELBO", "sampled", "collapsed",
        "exact", "in expectation"),
    ObjectiveSpec("structured", "TraceEnum_ELBO", "sampled", "collapsed",
        "exact", "in expectation"),
    ObjectiveSpec("structured", "RenyiELBO", "sampled", "importance_weighted",
        "exact", "in expectation"),
    ObjectiveSpec("mean_field", "TraceEnumMeanField_ELBO", "enumerated", "mean_field",
        "exact", "exact"),
    ObjectiveSpec("mean_field", "TraceEnum_ELBO", "enumerated", "mean_field",
        "in expectation", "in expectation"),
    ObjectiveSpec("mean_field", "TraceEnum_ELBO", "enumerated", "mean_field_at_z",
        "exact", "exact", _AT_Z),
    ObjectiveSpec("mean_field", "Trace_ELBO", "sampled", "mean_field",
        "in expectation", "in expectation"),
    ObjectiveSpec("mean_field", "TraceGraph_ELBO", "sampled", "mean_field",
        "in expectation", "in expectation"),
    ObjectiveSpec("mean_field", "TraceEnum_ELBO", "sampled", "mean_field",
        "in expectation", "in expectation"),
    ObjectiveSpec("amortized", "TraceEnumMeanField_ELBO", "enumerated", "amortized",
        "exact", "exact"),
    ObjectiveSpec("amortized", "TraceEnum_ELBO", "enumerated", "amortized",
        "in expectation", "in expectation"),
    ObjectiveSpec("amortized", "TraceEnum_ELBO", "enumerated", "amortized_at_z",
        "exact", "exact", _AT_Z),
    ObjectiveSpec("amortized", "Trace_ELBO", "sampled", "amortized",
        "in expectation", "in expectation"),
    ObjectiveSpec("amortized", "TraceGraph_ELBO", "sampled", "amortized",
        "in expectation", "in expectation"),
    ObjectiveSpec("amortized", "TraceEnum_ELBO", "sampled", "amortized",
        "in expectation", "in expectation"),
    ObjectiveSpec("scale", "TraceEnum_ELBO", "enumerated", "scale",
        "in expectation", "in expectation"),
    ObjectiveSpec("scale", "TraceEnumMeanField_ELBO", "enumerated", "scale",
        "in expectation", "in expectation"),
    ObjectiveSpec("scale", "Trace_ELBO", "sampled", "scale", "in expectation", "in expectation"),
    ObjectiveSpec("scale", "TraceGraph_ELBO", "sampled", "scale",
        "in expectation", "in expectation"),
    ObjectiveSpec("scale", "TraceEnum_ELBO", "sampled", "scale",
        "in expectation", "in expectation"),
    ObjectiveSpec("mean_field", "RenyiELBO", "sampled", note=_SCORE),
    ObjectiveSpec("amortized", "RenyiELBO", "sampled", note=_SCORE),
    ObjectiveSpec("scale", "RenyiELBO", "sampled", note=_SCORE),
)  # fmt: skip


_CLOSED_FORMS: dict[str, ClosedForm] = {
    "collapsed": forms.collapsed,
    "importance_weighted": forms.importance_weighted,
    "mean_field": forms.mean_field,
    "mean_field_at_z": forms.mean_field_at_z,
    "amortized": lambda at: forms.mean_field(at, at.log_q_c_nk),
    "amortized_at_z": lambda at: forms.mean_field_at_z(at, at.log_q_c_nk),
    "scale": forms.scale,
}


class ObjectiveTable(Sequence[ObjectiveSpec]):
    """A read-only sequence of the objectives of all formulations, supported or not.

    The objectives are ordered by formulation, by treatment of the mixture component c
    (``"marginalized"``, ``"enumerated"`` or ``"sampled"``) and by estimator. Every combination of a
    formulation, one of its treatments and an estimator occurs at least once; combinations that the
    registry does not list are unsupported. The sequence reflects changes of the registry.

    Parameters
    ----------
    registry
        Registry whose formulations, estimators and objectives are combined.

    Examples
    --------
    >>> len(OBJECTIVES), sum(objective.supported for objective in OBJECTIVES)
    (62, 30)
    >>> len(OBJECTIVES.listed)
    33
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    @property
    def listed(self) -> tuple[ObjectiveSpec, ...]:
        """The objectives that the registry lists: supported, or unsupported with a ``note``."""
        return self._registry._listed

    @overload
    def __getitem__(self, at: int) -> ObjectiveSpec: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[ObjectiveSpec]: ...
    def __getitem__(self, at: int | slice) -> ObjectiveSpec | Sequence[ObjectiveSpec]:
        """Return the objective at a position, or the objectives of a slice."""
        return self._registry._table[at]

    def __len__(self) -> int:
        """Return the number of objectives, supported and unsupported."""
        return len(self._registry._table)


class Registry:
    """Formulations, estimators and closed forms by name, and the objectives they form.

    Attributes
    ----------
    formulations, estimators, closed_forms
        Read-only mappings from a name to the formulation (a choice of q(z,c|x)), to the class of
        the estimator, and to the closed form. A closed form is a function of an
        :class:`EvaluationPoint` that returns the bound per cell, in nats, shape ``(..., n)``.
    objectives
        The objectives of all formulations, supported or not (:class:`ObjectiveTable`).

    Examples
    --------
    >>> REGISTRY.formulation("structured").posterior
    'q(z|x) p(c|z)'
    >>> type(REGISTRY.build(vae, "structured").guide).__name__
    'StructuredGuide'
    """

    def __init__(self) -> None:
        self._formulations: dict[str, Formulation] = dict(FORMULATIONS)
        self._closed_forms = {n: _as_tensor(n, form) for n, form in _CLOSED_FORMS.items()}
        self._listed: tuple[ObjectiveSpec, ...] = _OBJECTIVES
        self._registrations: dict[str, Registration] = {}
        self.formulations: Mapping[str, Formulation] = MappingProxyType(self._formulations)
        self.estimators = ESTIMATORS
        self.closed_forms = MappingProxyType(self._closed_forms)
        self._table = self._fill()
        self.objectives = ObjectiveTable(self)

    def formulation(self, name: str) -> Formulation:
        """Return the formulation called ``name``; if there is none, raise a ValueError."""
        if name not in self._formulations:
            raise ValueError(
                f"formulation={name!r} is not known; choose one of "
                f"{', '.join(self._formulations)}, or import the file that registers it "
                "(pyro_scale.register)."
            )
        return self._formulations[name]

    def build(
        self, vae: MixtureVAE, formulation: str, treatment: Treatment | None = None
    ) -> Programs:
        """Build the model and the guide of a formulation, a choice of q(z,c|x).

        Parameters
        ----------
        vae
            The networks and the prior.
        formulation
            A name in ``formulations``.
        treatment
            How the mixture component c is treated: ``"marginalized"``, ``"enumerated"`` or
            ``"sampled"``. If None, the first treatment that the formulation supports
            (:func:`pyro_scale.programs.build_programs`).
        """
        return build_programs(vae, self.formulation(formulation), treatment)

    def _fill(self) -> tuple[ObjectiveSpec, ...]:
        """Return the objectives of every combination; unlisted combinations are unsupported."""
        listed: dict[tuple[str, str, Treatment], list[ObjectiveSpec]] = {}
        for each in self._listed:
            listed.setdefault((each.formulation, each.estimator, each.c), []).append(each)
        cells = [
            (formulation.name, estimator, c)
            for formulation in self._formulations.values()
            for c in formulation.treatments
            for estimator in self.estimators
        ]
        return tuple(spec for cell in cells for spec in listed.get(cell, [ObjectiveSpec(*cell)]))

    def _add(
        self,
        formulation: Formulation,
        objectives: tuple[ObjectiveSpec, ...],
        closed_forms: Mapping[str, ClosedForm],
    ) -> Registration:
        """Add a formulation that ``register`` has checked."""
        registration = Registration(formulation, objectives, tuple(closed_forms))
        self._formulations[formulation.name] = formulation
        self._closed_forms |= {n: _as_tensor(n, form) for n, form in closed_forms.items()}
        self._registrations[formulation.name] = registration
        self._listed += objectives
        self._table = self._fill()
        return registration

    def _remove(self, registration: Registration, kept: Iterable[str] = ()) -> None:
        """Remove a formulation and its closed forms, of which ``kept`` are about to be replaced."""
        name = registration.formulation.name
        lost = set(registration.closed_forms).difference(kept)
        for each in self._listed:
            if each.closed_form in lost and each.formulation != name:
                raise ValueError(
                    f"closed form {each.closed_form!r} of {name!r} is used by an objective of "
                    f"{each.formulation!r}: remove that formulation first."
                )
        del self._formulations[name], self._registrations[name]
        for closed_form in registration.closed_forms:
            del self._closed_forms[closed_form]
        self._listed = tuple(each for each in self._listed if each.formulation != name)
        self._table = self._fill()


def _as_tensor(name: str, form: ClosedForm) -> Callable[[EvaluationPoint], Tensor]:
    """Return a function that evaluates a closed form, sums its terms and checks the shape."""

    def evaluate(at: EvaluationPoint) -> Tensor:
        value = form(at)
        value_n = value.total() if isinstance(value, ElboTerms) else value
        n = at.log_lik_n.shape[-1]
        if not isinstance(value_n, Tensor) or value_n.shape[-1:] != (n,):
            got = tuple(value_n.shape) if isinstance(value_n, Tensor) else type(value_n).__name__
            raise ValueError(
                f"closed form {name!r} returned {got} for {n} cells: expected ElboTerms, or a "
                "tensor whose last dimension holds one bound per cell."
            )
        return value_n

    return evaluate


class Registration:
    """Handle of a registered formulation, a choice of q(z,c|x); it can remove the formulation.

    The formulation is removed by ``remove()``, or at the end of a ``with`` block.

    Attributes
    ----------
    formulation, objectives, closed_forms
        The formulation, its objectives, and the names of its closed forms.

    Examples
    --------
    >>> mine = FORMULATIONS["collapsed"]._replace(name="mine")
    >>> spec = ObjectiveSpec("mine", "Trace_ELBO", "marginalized", "collapsed", "exact", "exact")
    >>> registration = ps.register(mine, [spec])
    >>> registration
    Registration('mine', 1 supported objectives)
    >>> registration.remove()
    """

    def __init__(
        self,
        formulation: Formulation,
        objectives: tuple[ObjectiveSpec, ...],
        closed_forms: tuple[str, ...],
    ) -> None:
        self.formulation, self.objectives = formulation, objectives
        self.closed_forms = closed_forms

    def remove(self) -> None:
        """Remove the formulation, its objectives and its closed forms from the registry.

        Calling it again does nothing.

        Raises
        ------
        ValueError
            If an objective of another formulation uses one of the closed forms.
        """
        if REGISTRY._registrations.get(self.formulation.name) is self:
            REGISTRY._remove(self)

    def __enter__(self) -> Registration:
        """Keep the formulation registered for the duration of the ``with`` block."""
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        supported = sum(objective.supported for objective in self.objectives)
        return f"Registration({self.formulation.name!r}, {supported} supported objectives)"


REGISTRY = Registry()
"""The registry of this process."""

OBJECTIVES = REGISTRY.objectives
"""The objectives of all formulations, supported or not (:class:`ObjectiveTable`)."""

CLOSED_FORMS: Mapping[str, Callable[[EvaluationPoint], Tensor]] = REGISTRY.closed_forms
"""The closed forms by name, each a function of an :class:`EvaluationPoint` that returns the bound
per cell, in nats, shape ``(..., n)``."""


def resolve_objective(
    formulation: str, estimator: str | None = None, c: Treatment | None = None
) -> ObjectiveSpec:
    """Return the objective that training uses for a formulation, a choice of q(z,c|x).

    It is the first supported objective of the formulation that matches the arguments ``estimator``
    and ``c``, as far as they are given.

    Parameters
    ----------
    formulation
        Name of the formulation, one of ``REGISTRY.formulations``.
    estimator
        Name of the estimator, one of :data:`ESTIMATORS`; None matches every estimator.
    c
        How the latent variable c, the mixture component, is treated: ``"marginalized"`` (summed out
        by the mixture density), ``"enumerated"`` (summed over by Pyro) or ``"sampled"``. None
        matches every treatment.

    Returns
    -------
    ObjectiveSpec
        The objective.

    Raises
    ------
    ValueError
        If a name is unknown or the combination is not supported.

    Examples
    --------
    >>> resolve_objective("collapsed").estimator
    'Trace_ELBO'
    >>> resolve_objective("structured", "Trace_ELBO").c
    'sampled'
    """
    REGISTRY.formulation(formulation)
    if estimator is not None:
        check_choice("estimator", estimator, ESTIMATORS)
    supported = [o for o in OBJECTIVES.listed if o.formulation == formulation and o.supported]
    for objective in supported:
        if estimator in (None, objective.estimator) and c in (None, objective.c):
            return objective
    options = ", ".join(dict.fromkeys(f"{o.estimator} (c {o.c})" for o in supported))
    raise ValueError(
        f"formulation={formulation!r} cannot be trained by estimator={estimator!r} with c={c!r}; "
        f"choose one of {options}."
    )


def to_markdown() -> str:
    r"""Return the supported objectives as a Markdown table, as in the README.

    Examples
    --------
    >>> print(to_markdown().splitlines()[2][:71])
    | collapsed | q(z\|x), mixture prior on z | marginalized | Trace_ELBO |
    """
    lines = [
        "| formulation | q(z,c\\|x) | c | Pyro estimator | closed form | value | gradient |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in OBJECTIVES:
        if each.supported:
            posterior = REGISTRY.formulations[each.formulation].posterior.replace("|", "\\|")
            lines.append(
                f"| {each.formulation} | {posterior} | {each.c} | {each.estimator} | "
                f"`{each.closed_form}` | {each.value_agreement} | {each.gradient_agreement} |"
            )
    return "\n".join(lines)
