"""Judge a row of the table: evaluate it many times, and say whether it holds."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from pyro_scale.comparison.evaluate import draw, gradient_difference, twin_draw, twin_loss
from pyro_scale.comparison.result import ComparedRow
from pyro_scale.comparison.statistics import Projections, z_scores
from pyro_scale.objectives import TWINS, Objective, Row, evaluate
from pyro_scale.programs import Cells, MixtureVAE

__all__ = ["TOLERANCE", "bound_gaps", "judge", "registered_gaps"]

TOLERANCE = 1e-9
"""Largest relative difference that "exact" allows, in float64."""
_N_VARIANCE = 10  # draws behind a gradient variance; exact rows need no others
_N_EXACT_GRADIENTS = 2
_UNSEEN = 1000.0  # gradients at a value of c that was never drawn, over those at the ones that were
_BOUNDS = ("collapsed", "mean_field", "scale", "mean_field_at_z", "importance_weighted")


@torch.no_grad()
def bound_gaps(vae: MixtureVAE, cells: Cells, n_samples: int) -> dict[str, float]:
    """Differences between the bounds, in nats per cell, averaged over draws of z ~ q(z|x).

    As divergences, which are exactly zero where the bounds coincide: E KL(g* || gamma),
    E KL(gamma || g*) and KL(q(c|x) || g*).
    """
    loc_nd, var_nd = vae.encoder(cells)
    z_snd = loc_nd + var_nd.sqrt() * torch.randn(n_samples, *loc_nd.shape, dtype=loc_nd.dtype)
    prior = vae.prior
    log_gamma_snk = prior.log_responsibilities(z_snd)
    log_g_star_nk = prior.log_optimal_q_c(loc_nd, var_nd)
    log_q_c_nk = vae.log_q_c(cells)

    def kl(log_p: Tensor, log_q: Tensor) -> float:
        return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())

    collapsed_mean_field = kl(log_g_star_nk, log_gamma_snk)
    mean_field_scale = kl(log_gamma_snk, log_g_star_nk)
    return {
        "collapsed - mean_field": collapsed_mean_field,
        "mean_field - scale": mean_field_scale,
        "collapsed - scale": collapsed_mean_field + mean_field_scale,
        "mean_field - amortized": kl(log_q_c_nk, log_g_star_nk),
    }


@torch.no_grad()
def registered_gaps(
    vae: MixtureVAE, rows: Iterable[Row], cells: Cells, n_samples: int
) -> dict[str, float]:
    """How far registered bounds are from those of the package, in nats per cell.

    Over draws of z that both see: of the means, less two standard errors (``"a - b"``: what it
    surely is), and of one draw (``"a - b, one draw"``: what an exact row is told apart by).
    """
    loc_nd, var_nd = moments = vae.encoder(cells)
    apart = {row.twin: row.n_particles for row in rows if row.twin and row.twin not in _BOUNDS}
    differences: dict[str, list[float]] = {}
    for _ in range(n_samples):
        for name, n_particles in apart.items():
            shape = loc_nd.shape if n_particles == 1 else (n_particles, *loc_nd.shape)
            z_nd = loc_nd + var_nd.sqrt() * torch.randn(shape, dtype=loc_nd.dtype)
            at = evaluate(vae, cells, z_nd, moments=moments)
            value = float(TWINS[name](at, None).mean())
            for other in _BOUNDS[:3]:
                differences.setdefault(f"{name} - {other}", []).append(
                    value - float(TWINS[other](at, None).mean())
                )
    gaps = {}
    for pair, values in differences.items():
        mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(n_samples)
        gaps[pair] = math.copysign(max(0.0, abs(mean) - 2 * error), mean)
        gaps[f"{pair}, one draw"] = float(np.mean(np.abs(values)))
    return gaps


def _confusable(row: Row, gaps: dict[str, float]) -> float:
    """Nats per cell from the row's bound to the nearest other one."""
    if row.twin not in _BOUNDS:
        one = ", one draw" if row.value_agreement == "exact" else ""
        return min(abs(gaps[f"{row.twin} - {other}{one}"]) for other in _BOUNDS[:3])
    if row.formulation == "amortized":
        return abs(gaps["mean_field - amortized"])
    named = {"mean_field": ("collapsed - mean_field", "mean_field - scale")}
    named["scale"] = ("mean_field - scale", "collapsed - scale")
    keys = named.get(row.twin, ("collapsed - mean_field", "collapsed - scale"))
    return min(abs(gaps[key]) for key in keys)


def _unseen(discrete: list[tuple[Tensor, Tensor]]) -> float:
    """How probable, summed over cells, the values of c are that were never drawn.

    Their gradients are missing from every mean over draws, and from its standard error.
    """
    drawn_sm, probability_sm = (torch.stack(part) for part in zip(*discrete, strict=True))
    return float(probability_sm.mean(0)[~drawn_sm.any(0)].sum())


def judge(
    vae: MixtureVAE,
    row: Row,
    cells: Cells,
    n_samples: int,
    projections: Projections,
    threshold: float,
    gaps: dict[str, float],
) -> ComparedRow:
    """Evaluate one supported row ``n_samples`` times and judge it."""
    objective = Objective(vae, row.formulation, row.estimator, row.c, n_particles=row.n_particles)
    n = cells.n_cells
    in_expectation = row.gradient_agreement == "in expectation"
    n_variance = min(n_samples, _N_VARIANCE)
    n_draws = n_samples if in_expectation else n_variance
    values, twins, seconds, projected, norms, discrete = [], [], [], [], [], []
    worst_gradient = 0.0
    mean_gradient: dict[str, Tensor] = {}
    mean_square = 0.0
    for sample in range(n_draws):
        one = draw(vae, objective, cells)
        values.append(-one.loss / n)
        seconds.append(one.seconds)
        discrete.append((one.drawn_m, one.probability_m))
        if sample < n_variance:
            for name, gradient in one.gradients.items():
                total = mean_gradient.setdefault(name, torch.zeros_like(gradient))
                total.add_(gradient, alpha=1 / n_variance)
                mean_square += float(torch.linalg.vector_norm(gradient)) ** 2 / n_variance
        if in_expectation or sample < _N_EXACT_GRADIENTS:
            twin, gradients = twin_draw(vae, row, cells, one.z_nd)
            if in_expectation:
                projected.append(projections(one.gradients) - projections(gradients))
                if sample < _N_EXACT_GRADIENTS:
                    norms.append(projections.norms(gradients))
            else:
                different = gradient_difference(one.gradients, gradients)
                worst_gradient = max(worst_gradient, different)
        else:
            with torch.no_grad():
                twin = float(twin_loss(vae, row, cells, one.z_nd))
        twins.append(-twin / n)

    value, twin_value = np.array(values), np.array(twins)
    squared_mean = sum(float(g.square().sum()) for g in mean_gradient.values())
    variance = max(0.0, (mean_square - squared_mean) * n_variance / (n_variance - 1)) / n**2
    paired_error = float((value - twin_value).std(ddof=1)) / math.sqrt(n_draws)
    exact_value = row.value_agreement == "exact"
    largest = float(np.abs(value - twin_value).max())
    rounding_value = TOLERANCE * float(np.abs(twin_value).max())
    value_holds = (
        largest <= rounding_value
        if exact_value
        else float(z_scores(value - twin_value, rounding_value)) <= threshold
    )
    max_z, unseen, confirmed = None, _unseen(discrete), True
    if in_expectation:
        norm = np.max(norms, 0)
        rounding = TOLERANCE * np.maximum(norm, 1e-6 * norm.max())
        z_i = z_scores(np.array(projected), rounding)
        max_z = float(z_i.max())
        beyond = np.abs(np.mean(projected, 0)) > _UNSEEN * unseen * norm.max()
        confirmed = bool((beyond & (z_i > threshold)).any())
    # Particles' weights are exponentials of sums as large as the loss: they have its rounding.
    of_weights = np.finfo(float).eps * n * np.abs(value).max() if row.n_particles > 1 else 0.0
    tolerance = max(TOLERANCE, of_weights)
    gradient_holds = worst_gradient <= tolerance if max_z is None else max_z <= threshold
    noise = rounding_value if exact_value else threshold * paired_error
    powerful = _confusable(row, gaps) > (1000 * noise if exact_value else noise)
    failed = [name for name, ok in (("value", value_holds), ("gradient", gradient_holds)) if not ok]
    holds: bool | None = not failed
    reason = row.note
    if failed == ["gradient"] and not confirmed:
        holds = None
        reason = (
            f"no power: values of c that q(c|x) gives {unseen:.2g} together were never drawn, and "
            "may be all that the mean over draws lacks"
        )
    elif failed:
        reason = f"{' and '.join(failed)} differ from the closed form"
    elif not powerful:
        holds = None
        reason = (
            f"no power: the nearest other bound is {_confusable(row, gaps):.2g} nats per cell "
            f"away, within the noise of {noise:.2g}"
        )
    return ComparedRow(
        formulation=row.formulation,
        estimator=row.estimator,
        c=row.c,
        twin=row.twin,
        value_agreement=row.value_agreement,
        gradient_agreement=row.gradient_agreement,
        value=float(value.mean()),
        value_standard_error=float(value.std(ddof=1)) / math.sqrt(n_draws),
        twin_value=float(twin_value.mean()),
        difference=largest if exact_value else float((value - twin_value).mean()),
        standard_error=paired_error,
        max_relative_gradient_difference=None if in_expectation else worst_gradient,
        max_gradient_z=max_z,
        gradient_variance=variance,
        seconds=float(np.median(seconds)),
        holds=holds,
        reason=reason,
    )
