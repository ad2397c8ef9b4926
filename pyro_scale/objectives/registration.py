"""Registration of formulations by users, and the checks of what they register."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import get_args

import torch

from pyro_scale._locking import exclusive
from pyro_scale.objectives.registry import (
    CLOSED_FORMS,
    ESTIMATORS,
    REGISTRY,
    Agreement,
    ClosedForm,
    ObjectiveSpec,
    Registration,
)
from pyro_scale.programs import ConditioningOfC, Formulation, MixtureVAE, Program, Treatment

__all__ = ["register"]


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
        REGISTRY._remove(earlier, kept=new_forms)
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
        given_or_not = {agreement != "unsupported" for agreement in agreements}
        if len(given_or_not | {bool(objective.closed_form)}) > 1:
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
