"""Exact and statistical tests of whether an objective agrees with its closed form."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from pyro_scale.comparison.estimates import (
    closed_form_loss,
    estimate_objective,
    evaluate_closed_form,
    gradient_difference,
)
from pyro_scale.comparison.results import ComparedRow
from pyro_scale.objectives import CLOSED_FORMS, Objective, ObjectiveSpec, evaluate, terms
from pyro_scale.programs import CellBatch, MixtureVAE, rsample

__all__ = [
    "FAILURE_RATE",
    "TOLERANCE",
    "Projections",
    "bound_gaps",
    "check_agreement",
    "critical_z",
    "registered_bound_gaps",
    "z_scores",
]

TOLERANCE = 1e-9
"""Largest relative difference, in float64, at which value or gradient count as exactly equal."""
_N_VARIANCE = 10  # draws for the gradient variance; exact objectives need no more
_N_EXACT_GRADIENTS = 2
# Assumed bound on the gradient at a value of c that was never drawn, relative to the largest norm.
_UNDRAWN_GRADIENT = 1000.0
_PACKAGE_BOUNDS = tuple(CLOSED_FORMS)  # read at import, before any formulation is registered
_REFERENCE_BOUNDS = ("collapsed", "mean_field", "scale")


@torch.no_grad()
def bound_gaps(vae: MixtureVAE, cells: CellBatch, n_samples: int) -> dict[str, float]:
    """Estimate the differences between the package's bounds, in nats per cell, over z ~ q(z|x).

    The differences are computed as the divergences E KL(g* || gamma), E KL(gamma || g*) and
    KL(q(c|x) || g*), which are exactly zero where the bounds coincide. Here gamma = p(c|z), g* is
    the optimal q(c|x) among those independent of z, and q(c|x) is the classifier's.
    """
    loc_nd, var_nd = vae.encoder(cells)
    noise_snd = torch.randn(n_samples, *loc_nd.shape, dtype=loc_nd.dtype)
    z_snd = rsample(loc_nd, var_nd, noise_snd)
    prior = vae.prior
    log_gamma_snk = prior.log_responsibilities(z_snd)
    log_g_star_nk = prior.log_optimal_q_c(loc_nd, var_nd)
    log_q_c_nk = vae.log_q_c(cells)

    def kl(log_p: Tensor, log_q: Tensor) -> float:
        return float(terms.kl_categorical(log_p, log_q).mean())

    collapsed_mean_field = kl(log_g_star_nk, log_gamma_snk)
    mean_field_scale = kl(log_gamma_snk, log_g_star_nk)
    return {
        "collapsed - mean_field": collapsed_mean_field,
        "mean_field - scale": mean_field_scale,
        "collapsed - scale": collapsed_mean_field + mean_field_scale,
        "mean_field - amortized": kl(log_q_c_nk, log_g_star_nk),
    }


@torch.no_grad()
def registered_bound_gaps(
    vae: MixtureVAE, specs: Iterable[ObjectiveSpec], cells: CellBatch, n_samples: int
) -> dict[str, float]:
    """Estimate the differences between registered bounds and the package's, in nats per cell.

    Both bounds of a pair are evaluated at the same draws of z. The entry ``"a - b"`` is the
    difference of their means, reduced in magnitude by two standard errors. The entry
    ``"a - b, one draw"`` is the mean absolute difference at a single draw; it is used for
    objectives whose value must equal the closed form at every draw.
    """
    loc_nd, var_nd = moments = vae.encoder(cells)
    particles = {
        spec.closed_form: spec.n_particles
        for spec in specs
        if spec.closed_form and spec.closed_form not in _PACKAGE_BOUNDS
    }
    differences: dict[str, list[float]] = {}
    for _ in range(n_samples):
        for name, n_particles in particles.items():
            shape = loc_nd.shape if n_particles == 1 else (n_particles, *loc_nd.shape)
            z_nd = rsample(loc_nd, var_nd, torch.randn(shape, dtype=loc_nd.dtype))
            at = evaluate(vae, cells, z_nd, moments=moments)
            value = float(CLOSED_FORMS[name](at).mean())
            for other in _REFERENCE_BOUNDS:
                differences.setdefault(f"{name} - {other}", []).append(
                    value - float(CLOSED_FORMS[other](at).mean())
                )
    gaps = {}
    for pair, values in differences.items():
        mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(n_samples)
        gaps[pair] = math.copysign(max(0.0, abs(mean) - 2 * error), mean)
        gaps[f"{pair}, one draw"] = float(np.mean(np.abs(values)))
    return gaps


def _nearest_gap(spec: ObjectiveSpec, gaps: dict[str, float]) -> float:
    """Return the difference between the objective's bound and the nearest other, nats per cell."""
    if spec.closed_form not in _PACKAGE_BOUNDS:
        one = ", one draw" if spec.value_agreement == "exact" else ""
        return min(abs(gaps[f"{spec.closed_form} - {other}{one}"]) for other in _REFERENCE_BOUNDS)
    named: dict[str, tuple[str, ...]] = {
        "mean_field": ("collapsed - mean_field", "mean_field - scale"),
        "mean_field_at_z": ("collapsed - mean_field", "mean_field - scale"),
        "amortized": ("mean_field - amortized",),
        "amortized_at_z": ("mean_field - amortized",),
        "scale": ("mean_field - scale", "collapsed - scale"),
    }
    keys = named.get(spec.closed_form, ("collapsed - mean_field", "collapsed - scale"))
    return min(abs(gaps[key]) for key in keys)


def _undrawn_probability(discrete: list[tuple[Tensor, Tensor]]) -> float:
    """Return the total probability, summed over cells, of the values of c that were never drawn.

    The gradients at these values are missing from the mean over draws and from its standard error.
    """
    drawn_sm, probability_sm = (torch.stack(part) for part in zip(*discrete, strict=True))
    return float(probability_sm.mean(0)[~drawn_sm.any(0)].sum())


def check_agreement(
    vae: MixtureVAE,
    spec: ObjectiveSpec,
    cells: CellBatch,
    n_samples: int,
    projections: Projections,
    threshold: float,
    gaps: dict[str, float],
) -> ComparedRow:
    """Compare a supported objective with its closed form over up to ``n_samples`` draws.

    Parameters
    ----------
    vae
        The networks and the prior, in float64 and in eval mode.
    spec
        The objective.
    cells
        The cells to compare on.
    n_samples
        Number of draws; at most 10 are used if the gradient is exact.
    projections
        Random directions on which gradients that agree in expectation are compared.
    threshold
        Critical z-score (:func:`critical_z`) of statistical comparisons.
    gaps
        Differences between the bounds (:func:`bound_gaps`, :func:`registered_bound_gaps`).
        Agreement is informative only if they exceed the noise of the comparison.
    """
    objective = Objective(
        vae, spec.formulation, spec.estimator, spec.c, n_particles=spec.n_particles
    )
    n = cells.n_cells
    in_expectation = spec.gradient_agreement == "in expectation"
    n_variance = min(n_samples, _N_VARIANCE)
    n_draws = n_samples if in_expectation else n_variance
    values, closed_forms, seconds, projected, norms, discrete = [], [], [], [], [], []
    worst_gradient = 0.0
    mean_gradient: dict[str, Tensor] = {}
    mean_square = 0.0
    for sample in range(n_draws):
        estimate = estimate_objective(vae, objective, cells)
        values.append(-estimate.loss / n)
        seconds.append(estimate.seconds)
        discrete.append((estimate.drawn_m, estimate.probability_m))
        if sample < n_variance:
            for name, gradient in estimate.gradients.items():
                total = mean_gradient.setdefault(name, torch.zeros_like(gradient))
                total.add_(gradient, alpha=1 / n_variance)
                mean_square += float(torch.linalg.vector_norm(gradient)) ** 2 / n_variance
        if in_expectation or sample < _N_EXACT_GRADIENTS:
            closed_form, gradients = evaluate_closed_form(vae, spec, cells, estimate.z_nd)
            if in_expectation:
                projected.append(projections(estimate.gradients) - projections(gradients))
                if sample < _N_EXACT_GRADIENTS:
                    norms.append(projections.norms(gradients))
            else:
                different = gradient_difference(estimate.gradients, gradients)
                worst_gradient = max(worst_gradient, different)
        else:
            with torch.no_grad():
                closed_form = float(closed_form_loss(vae, spec, cells, estimate.z_nd))
        closed_forms.append(-closed_form / n)

    value, closed_form_value = np.array(values), np.array(closed_forms)
    squared_mean = sum(float(g.square().sum()) for g in mean_gradient.values())
    variance = max(0.0, (mean_square - squared_mean) * n_variance / (n_variance - 1)) / n**2
    paired_error = float((value - closed_form_value).std(ddof=1)) / math.sqrt(n_draws)
    exact_value = spec.value_agreement == "exact"
    largest = float(np.abs(value - closed_form_value).max())
    rounding_value = TOLERANCE * float(np.abs(closed_form_value).max())
    value_holds = (
        largest <= rounding_value
        if exact_value
        else float(z_scores(value - closed_form_value, rounding_value)) <= threshold
    )
    max_z, undrawn, confirmed = None, _undrawn_probability(discrete), True
    if in_expectation:
        norm = np.max(norms, 0)
        rounding = TOLERANCE * np.maximum(norm, 1e-6 * norm.max())
        z_i = z_scores(np.array(projected), rounding)
        max_z = float(z_i.max())
        beyond = np.abs(np.mean(projected, 0)) > _UNDRAWN_GRADIENT * undrawn * norm.max()
        confirmed = bool((beyond & (z_i > threshold)).any())
    # Importance weights are exponentials of log weights, whose rounding error the loss bounds.
    weight_rounding = np.finfo(float).eps * n * np.abs(value).max() if spec.n_particles > 1 else 0.0
    tolerance = max(TOLERANCE, weight_rounding)
    gradient_holds = worst_gradient <= tolerance if max_z is None else max_z <= threshold
    noise = rounding_value if exact_value else threshold * paired_error
    powerful = _nearest_gap(spec, gaps) > (1000 * noise if exact_value else noise)
    failed = [name for name, ok in (("value", value_holds), ("gradient", gradient_holds)) if not ok]
    holds: bool | None = not failed
    reason = spec.note
    if failed == ["gradient"] and not confirmed:
        holds = None
        reason = (
            f"no power: values of c with a total probability of {undrawn:.2g} were never drawn, "
            "which may explain the difference of the gradients"
        )
    elif failed:
        verb = "differs" if len(failed) == 1 else "differ"
        reason = f"{' and '.join(failed)} {verb} from the closed form"
    elif not powerful:
        holds = None
        reason = (
            f"no power: the nearest other bound differs by {_nearest_gap(spec, gaps):.2g} nats per "
            f"cell, too little to be told apart at a noise of {noise:.2g}"
        )
    return ComparedRow(
        formulation=spec.formulation,
        estimator=spec.estimator,
        c=spec.c,
        closed_form=spec.closed_form,
        value_agreement=spec.value_agreement,
        gradient_agreement=spec.gradient_agreement,
        value=float(value.mean()),
        value_standard_error=float(value.std(ddof=1)) / math.sqrt(n_draws),
        closed_form_value=float(closed_form_value.mean()),
        difference=largest if exact_value else float((value - closed_form_value).mean()),
        standard_error=paired_error,
        max_relative_gradient_difference=None if in_expectation else worst_gradient,
        max_gradient_z=max_z,
        gradient_variance=variance,
        seconds=float(np.median(seconds)),
        holds=holds,
        reason=reason,
    )


FAILURE_RATE = 2e-5
"""Probability that a comparison rejects at least one of its equalities although all are true."""


def critical_z(n_assertions: int, n_samples: int, *, failure_rate: float = FAILURE_RATE) -> float:
    """Return the threshold that the z-scores of all assertions exceed at a given failure rate.

    An assertion states that a mean difference is zero. The failure rate is divided equally over the
    assertions (Bonferroni). The threshold is a quantile of Student's t distribution, because the
    standard errors are estimated.

    Parameters
    ----------
    n_assertions
        Number of two-sided z-scores that are compared with the threshold.
    n_samples
        Number of draws behind each standard error, at least two.
    failure_rate
        Probability that at least one z-score exceeds the threshold although all equalities are
        true.

    Examples
    --------
    >>> round(critical_z(1, 10**9, failure_rate=0.05), 2)
    1.96
    """
    tail = failure_rate / (2 * max(1, n_assertions))
    return float(stats.t.isf(tail, n_samples - 1))


def z_scores(
    differences: NDArray[np.float64], resolution: NDArray[np.float64] | float = 0.0
) -> NDArray[np.float64]:
    """Return abs(mean) / standard error of the differences over draws, one score per column.

    Parameters
    ----------
    differences
        Differences with expectation zero under the null hypothesis: one row per draw and one column
        per quantity tested. A vector holds the draws of one quantity and gives one score.
    resolution
        Size of rounding errors, one value or one per column. The score is 0 if the differences of
        all draws are at most this large in absolute value. A larger difference that is the same in
        every draw has an infinite score.
    """
    mean = differences.mean(0)
    error = differences.std(0, ddof=1) / np.sqrt(len(differences))
    rounding = np.abs(differences).max(0) <= resolution
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(rounding, 0.0, np.abs(mean) / error)


class Projections:
    """Projections of gradients on a few fixed random directions per parameter.

    A test of millions of coordinates one by one would need a threshold so high that it had no
    power. A random projection differs if any coordinate differs, so that few tests suffice. The
    gradient of a matrix is multiplied by a Gaussian vector on each side, which reads it only once.

    Parameters
    ----------
    parameters
        Named tensors with the shapes, dtypes and devices of the gradients.
    generator
        Random number generator that draws the directions.
    n_directions
        Number of directions per parameter.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], generator: torch.Generator, n_directions: int = 3
    ) -> None:
        self.sides: dict[str, tuple[Tensor, Tensor]] = {}
        for name, value in parameters.items():
            rows, columns = _as_matrix(value).shape
            left = torch.randn(rows, n_directions, generator=generator, dtype=value.dtype)
            right = torch.randn(columns, n_directions, generator=generator, dtype=value.dtype)
            self.sides[name] = (
                left.to(value.device) / rows**0.5,
                right.to(value.device) / columns**0.5,
            )

    @property
    def n_tests(self) -> int:
        """Number of projections of all parameters together, each of which is tested."""
        return sum(left.shape[1] for left, _ in self.sides.values())

    def __call__(self, gradients: Mapping[str, Tensor]) -> NDArray[np.float64]:
        """Project the gradients; the result has shape ``(n_parameters * n_directions,)``."""
        parts = [
            (left * (_as_matrix(gradients[name]) @ right)).sum(0)
            for name, (left, right) in self.sides.items()
        ]
        return torch.cat(parts).cpu().numpy()

    def norms(self, gradients: Mapping[str, Tensor]) -> NDArray[np.float64]:
        """Return the norm of each parameter's gradient, repeated for each of its directions.

        The result has shape ``(n_parameters * n_directions,)``.
        """
        parts = [
            torch.linalg.vector_norm(gradients[name]).expand(left.shape[1])
            for name, (left, _) in self.sides.items()
        ]
        return torch.cat(parts).cpu().numpy()


def _as_matrix(value: Tensor) -> Tensor:
    return value if value.ndim == 2 else value.reshape(-1, 1)
