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
from typing import Literal, get_args, overload

import torch
from pyro.infer import (
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.elbo import ELBO
from torch import Tensor

from pyro_scale._locking import exclusive
from pyro_scale.objectives import closed_forms as forms
from pyro_scale.objectives.evaluation import ElboTerms, EvaluationPoint
from pyro_scale.objectives.trace_enum_mean_field_elbo import TraceEnumMeanField_ELBO
from pyro_scale.programs import (
    FORMULATIONS,
    ConditioningOfC,
    Formulation,
    MixtureVAE,
    Program,
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
    "register",
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
    "-log q(c) (pyro-ppl/pyro issue 1222), so its gradient is biased where the importance weight "
    "depends on c (derivations, D07.2 and D07.3)"
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
        registration = Registration(formulation, objectives, tuple(closed_forms))
        self._formulations[formulation.name] = formulation
        self._closed_forms |= {n: _as_tensor(n, form) for n, form in closed_forms.items()}
        self._registrations[formulation.name] = registration
        self._listed += objectives
        self._table = self._fill()
        return registration

    def _remove(self, registration: Registration) -> None:
        name = registration.formulation.name
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
    >>> registration = register(mine, [spec])
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
            _check_closed_forms_unused(self, kept=())
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
    if estimator is not None and estimator not in ESTIMATORS:
        raise ValueError(
            f"estimator={estimator!r} is not known; choose one of {', '.join(ESTIMATORS)}."
        )
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


def register(
    formulation: Formulation,
    objectives: Iterable[ObjectiveSpec],
    closed_forms: Mapping[str, ClosedForm] | None = None,
    *,
    replace: bool = False,
) -> Registration:
    """Register a formulation (a choice of q(z,c|x)) with its objectives and closed forms.

    For the rest of the process, ``pyro_scale.compare`` compares its programs with its closed forms,
    ``pyro_scale.SCALE(adata, formulation=name)`` trains it, and ``model.get_elbo(bound=...)``
    evaluates its closed forms. In every formulation, q(z|x) is the encoder's Gaussian.

    Parameters
    ----------
    formulation
        The formulation: its name, a description of q(z,c|x), the ways in which the mixture
        component c can be treated (``"marginalized"``, ``"enumerated"``, ``"sampled"``), and a
        function that builds its programs. The distribution of c is taken from the guide unless
        ``log_q_c`` is given.
    objectives
        One objective per supported combination of estimator and treatment of c; the first supported
        objective is the default for training. Combinations that are not listed are unsupported, and
        ``compare`` reports the reason that Pyro gives.
    closed_forms
        New closed forms by name, each a function of an
        :class:`~pyro_scale.objectives.EvaluationPoint` that returns the bound per cell, as
        :class:`~pyro_scale.objectives.ElboTerms` or as a tensor of shape ``(..., n)``. An objective
        may also name an existing closed form.
    replace
        Whether to replace a formulation that was *registered* under this name before, for example
        by an earlier run of the same notebook cell.

    Returns
    -------
    Registration
        Handle of the registration: ``remove()`` or leaving ``with register(...):`` undoes it.

    Raises
    ------
    TypeError
        If ``formulation``, an objective, a closed form or the result of ``build`` has the wrong
        type.
    ValueError
        If the name is taken, or if an objective belongs to another formulation, is listed twice, or
        names an unknown estimator, treatment of c or closed form. In these cases nothing is
        registered.

    Examples
    --------
    A uniform q(c|x) is a poor choice, but its ELBO is a lower bound of log p(x) nevertheless.

    >>> import pyro, pyro.distributions as dist
    >>> from pyro_scale.objectives import ObjectiveSpec, ElboTerms, terms
    >>> from pyro_scale.programs import MixtureModel
    >>> from pyro_scale.programs.formulations import Formulation, Program, Programs
    >>> class FlatGuide(Program):
    ...     def forward(self, cells, kl_weight=1.0):
    ...         encoder, k = self.vae.encoder, self.vae.n_components
    ...         with pyro.plate("cells", cells.n_cells), pyro.poutine.scale(scale=kl_weight):
    ...             z = pyro.sample("z", encoder.q_z(*encoder(cells)))
    ...             flat = dist.Categorical(logits=z.new_zeros(len(z), k))
    ...             pyro.sample("c", flat, infer={"enumerate": "parallel"})
    >>> def flat(at):
    ...     k = len(at.log_pi_k)
    ...     minus_log_q_z_n = -terms.log_q_z(at.z_nd, at.loc_nd, at.var_nd)
    ...     log_k_n = torch.full_like(at.log_lik_n, k).log()
    ...     log_p_z_n = at.log_p_z_given_c_nk.mean(-1)
    ...     return ElboTerms(at.log_lik_n, log_p_z_n, at.log_pi_k.mean(), minus_log_q_z_n, log_k_n)
    >>> formulation = Formulation(
    ...     "flat", "q(z|x) / K", ("enumerated",),
    ...     lambda vae, _: Programs(MixtureModel(vae), FlatGuide(vae)),
    ... )
    >>> objective = ObjectiveSpec("flat", "TraceEnum_ELBO", "enumerated", "flat", "exact", "exact")
    >>> with ps.register(formulation, [objective], {"flat": flat}):
    ...     table = ps.compare(model, formulations=["flat"])
    >>> [(row.estimator, row.status) for row in table.rows if row.supported]
    [('TraceEnum_ELBO', 'holds')]
    """
    _check_formulation(formulation)
    name = formulation.name
    earlier = REGISTRY._registrations.get(name)
    if name in REGISTRY.formulations and (earlier is None or not replace):
        raise ValueError(
            f"formulation {name!r} is one of the package's own: choose another name."
            if earlier is None
            else f"formulation {name!r} is registered already: replace=True replaces it."
        )
    new_forms = dict(closed_forms or {})
    listed = tuple(objectives)
    _check_closed_forms(name, new_forms, earlier)
    _check_objectives(formulation, listed, new_forms, earlier)
    _check_programs(formulation)
    if earlier is not None:
        _check_closed_forms_unused(earlier, kept=new_forms)
        REGISTRY._remove(earlier)
    return REGISTRY._add(formulation, listed, new_forms)


def _check_formulation(formulation: Formulation) -> None:
    if not isinstance(formulation, Formulation):
        raise TypeError(
            f"formulation is a {type(formulation).__name__}: expected a "
            "pyro_scale.programs.Formulation(name, posterior, treatments, build)."
        )
    name, treatments = formulation.name, formulation.treatments
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"name={name!r}: expected an identifier such as 'tempered'.")
    for field in ("build", "log_q_c"):
        function = getattr(formulation, field)
        if not (callable(function) or (function is None and field == "log_q_c")):
            raise TypeError(
                f"{field} of {name!r} is a {type(function).__name__}: expected a function."
            )
    known = get_args(Treatment)
    if isinstance(treatments, str) or not treatments or set(treatments) - set(known):
        raise ValueError(
            f"treatments={treatments!r} of {name!r}: expected a tuple of {', '.join(known)}, the "
            "preferred one first."
        )
    if formulation.c_given not in (choices := get_args(ConditioningOfC)):
        raise ValueError(
            f"c_given={formulation.c_given!r} of {name!r}: expected one of "
            f"{', '.join(map(repr, choices))}."
        )


def _check_closed_forms(
    name: str, new_forms: Mapping[str, ClosedForm], earlier: Registration | None
) -> None:
    replaced = () if earlier is None else earlier.closed_forms
    for form_name, form in new_forms.items():
        if form_name in CLOSED_FORMS and form_name not in replaced:
            raise ValueError(
                f"closed form {form_name!r} of {name!r} exists already: if it is the same, only "
                "name it in the objectives; else choose another name."
            )
        if not callable(form):
            raise TypeError(
                f"closed form {form_name!r} is a {type(form).__name__}: expected a function of an "
                "EvaluationPoint."
            )


def _check_objectives(
    formulation: Formulation,
    objectives: tuple[ObjectiveSpec, ...],
    new_forms: Mapping[str, ClosedForm],
    earlier: Registration | None,
) -> None:
    name = formulation.name
    replaced = () if earlier is None else earlier.closed_forms
    known: dict[str, tuple[str, ...]] = {
        "estimator": tuple(ESTIMATORS),
        "c": formulation.treatments,
        "value_agreement": get_args(Agreement),
        "gradient_agreement": get_args(Agreement),
        "closed_form": ("", *(form for form in CLOSED_FORMS if form not in replaced), *new_forms),
    }
    seen = set()
    for objective in objectives:
        if not isinstance(objective, ObjectiveSpec):
            raise TypeError(
                f"an objective of {name!r} is a {type(objective).__name__}: expected a "
                "pyro_scale.objectives.ObjectiveSpec."
            )
        if objective.formulation != name:
            raise ValueError(
                f"{objective} is an objective of {objective.formulation!r}, not of {name!r}."
            )
        for field, values in known.items():
            if (given := getattr(objective, field)) not in values:
                raise ValueError(
                    f"an objective of {name!r} has {field}={given!r}; choose one of "
                    f"{', '.join(filter(None, values))}."
                )
        agreements = (objective.value_agreement, objective.gradient_agreement)
        if set(agreements) != {"unsupported"} and (
            "unsupported" in agreements or not objective.closed_form
        ):
            raise ValueError(
                f"{objective} is supported in part: give a closed_form, a value_agreement and a "
                "gradient_agreement, or none of the three."
            )
        if (cell := (objective.estimator, objective.c, objective.closed_form)) in seen:
            raise ValueError(f"{objective} is listed twice.")
        seen.add(cell)
    if not any(objective.supported for objective in objectives):
        raise ValueError(
            f"{name!r} has no supported objective: at least one is needed to compare or train it."
        )
    if unused := sorted(set(new_forms) - {objective.closed_form for objective in objectives}):
        raise ValueError(f"no objective of {name!r} uses its closed form {unused[0]!r}.")


@exclusive()
def _check_programs(formulation: Formulation) -> None:
    """Build the programs for every treatment of c, over a small MixtureVAE; check their types."""
    with torch.random.fork_rng(devices=[]):
        for treatment in formulation.treatments:
            vae = MixtureVAE(n_peaks=4, n_components=2, n_latent=2, hidden=(3,))
            if formulation.needs_classifier:
                vae.add_classifier()
            built = formulation.build(vae, treatment == "enumerated")
            pair = isinstance(built, tuple) and len(built) == 2
            if not pair or not all(isinstance(program, Program) for program in built):
                raise TypeError(
                    f"build of {formulation.name!r} returned {built!r}: expected "
                    "Programs(model, guide), each a pyro_scale.programs.formulations.Program."
                )


def _check_closed_forms_unused(old: Registration, kept: Iterable[str]) -> None:
    lost = set(old.closed_forms).difference(kept)
    for objective in OBJECTIVES.listed:
        if objective.closed_form in lost and objective.formulation != old.formulation.name:
            raise ValueError(
                f"closed form {objective.closed_form!r} of {old.formulation.name!r} is used by an "
                f"objective of {objective.formulation!r}: remove that formulation first."
            )
