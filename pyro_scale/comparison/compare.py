"""Fill the matrix: every formulation x estimator against its closed form, in float64."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import pyro
import torch
from anndata import AnnData
from numpy.typing import NDArray
from torch import Tensor

from pyro_scale.comparison.evaluate import (
    draw,
    gradient_difference,
    refusal,
    twin_draw,
    twin_loss,
)
from pyro_scale.comparison.result import ComparedRow, Comparison
from pyro_scale.comparison.statistics import Projections, critical_z, z_scores
from pyro_scale.data import Counts, as_counts, dense_cells
from pyro_scale.objectives import TABLE, Objective, Row
from pyro_scale.programs import Cells, MixtureVAE

__all__ = ["Comparable", "compare", "prepare"]

logger = logging.getLogger(__name__)

TOLERANCE = 1e-9
"""Largest relative difference that "exact" allows, in float64."""
_N_VARIANCE = 20  # draws behind a gradient variance; exact rows need no others
_N_EXACT_GRADIENTS = 2


class Comparable(Protocol):
    """What ``compare`` and ``ladder`` need of a model; :class:`pyro_scale.SCALE` has it."""

    vae: MixtureVAE

    @property
    def is_trained(self) -> bool:
        """Whether its parameters are worth keeping."""

    def counts(self, adata: AnnData | None = None) -> Counts:
        """Checked cells in the model's order of peaks."""


def prepare(
    model: Comparable,
    adata_or_x: AnnData | NDArray[Any] | None,
    *,
    n_cells: int,
    seed: int,
    warmup_steps: int | None,
) -> tuple[MixtureVAE, Cells, int]:
    """A float64 copy of the parameters and a seeded subset of cells, warmed up if untrained.

    Returns
    -------
    tuple
        The copy (in eval mode, with a classifier), the cells, and the warm-up steps taken.
    """
    if n_cells < 1:
        raise ValueError(f"n_cells={n_cells} must be at least one.")
    if adata_or_x is None or isinstance(adata_or_x, AnnData):
        counts = model.counts(adata_or_x)
    else:
        x = AnnData(np.asarray(adata_or_x))
        if x.n_vars != model.vae.n_peaks:
            raise ValueError(
                f"the matrix has {x.n_vars} peaks, the model {model.vae.n_peaks}; give the "
                "model's peaks in the model's order, or an AnnData."
            )
        counts = as_counts(x, binary=not hasattr(model.vae.likelihood, "log_rate"))
    chosen = np.sort(np.random.default_rng(seed).permutation(counts.n_cells)[:n_cells])
    cells = dense_cells(counts[chosen], dtype=torch.float64)
    vae = copy.deepcopy(model.vae).cpu().double().requires_grad_(True)
    steps = (0 if model.is_trained else 30) if warmup_steps is None else warmup_steps
    _warm_up(vae, cells, steps)
    if vae.classifier is None:
        _add_classifier(vae, cells)
    return vae.eval(), cells, steps


def _warm_up(vae: MixtureVAE, cells: Cells, steps: int) -> None:
    """A few steps of Adam, then components that overlap, so that the formulations differ.

    The components are put at draws of z for as many cells, all with a quarter of the
    variance of z over the cells: then p(c|z) changes over q(z|x), which is where the bounds
    part.
    """
    objective = Objective(vae, "collapsed", "Trace_ELBO")
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        objective.backward(cells)
        optimizer.step()
    if steps == 0:
        return
    with torch.no_grad():
        loc_nd, var_nd = vae.encoder(cells)
        k = vae.n_components
        chosen = torch.arange(k) % cells.n_cells
        draws_kd = loc_nd[chosen] + var_nd[chosen].sqrt() * torch.randn_like(loc_nd[chosen])
        variance_d = loc_nd.var(0, correction=0) + var_nd.mean(0)
        weights_k = torch.linspace(1.0, 2.0, k, dtype=loc_nd.dtype)
        vae.prior.set_components(
            weights_k / weights_k.sum(), draws_kd, 0.25 * variance_d.expand(k, -1)
        )


def _add_classifier(vae: MixtureVAE, cells: Cells) -> None:
    """A fresh q(c|x) that is far from g* and from certainty: logits of unit spread."""
    vae.add_classifier()
    with torch.no_grad():
        logits_nk = vae.required_classifier.logits(vae.encoder.features(cells))
        spread = logits_nk.std(correction=0).clamp_min(1e-6)
        vae.required_classifier.logits.weight.div_(spread)


@torch.no_grad()
def _gaps(vae: MixtureVAE, cells: Cells, n_samples: int) -> dict[str, float]:
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


def _confusable(row: Row, gaps: dict[str, float]) -> float:
    """Nats per cell from the row's bound to the nearest other one."""
    if row.formulation == "amortized":
        return abs(gaps["mean_field - amortized"])
    named = {"mean_field": ("collapsed - mean_field", "mean_field - scale")}
    named["scale"] = ("mean_field - scale", "collapsed - scale")
    keys = named.get(row.twin, ("collapsed - mean_field", "collapsed - scale"))
    return min(abs(gaps[key]) for key in keys)


def _compare_row(
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
    values, twins, seconds, projected, norms = [], [], [], [], []
    worst_gradient = 0.0
    mean_gradient: dict[str, Tensor] = {}
    mean_square = 0.0
    for sample in range(n_draws):
        one = draw(vae, objective, cells)
        values.append(-one.loss / n)
        seconds.append(one.seconds)
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
    max_z = None
    if in_expectation:
        norm = np.max(norms, 0)
        rounding = TOLERANCE * np.maximum(norm, 1e-6 * norm.max())
        max_z = float(z_scores(np.array(projected), rounding).max())
    gradient_holds = worst_gradient <= TOLERANCE if max_z is None else max_z <= threshold
    noise = rounding_value if exact_value else threshold * paired_error
    powerful = _confusable(row, gaps) > (1000 * noise if exact_value else noise)
    holds: bool | None = bool(value_holds and gradient_holds)
    reason = row.note
    if holds and not powerful:
        holds = None
        reason = (
            f"no power: the nearest other bound is {_confusable(row, gaps):.2g} nats per cell "
            f"away, within the noise of {noise:.2g}"
        )
    elif not holds:
        which = [
            name for name, ok in (("value", value_holds), ("gradient", gradient_holds)) if not ok
        ]
        reason = f"{' and '.join(which)} differ from the closed form"
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


def compare(
    model: Comparable,
    adata_or_x: AnnData | NDArray[Any] | None = None,
    *,
    n_cells: int = 48,
    n_samples: int = 32,
    seed: int = 0,
    warmup_steps: int | None = None,
    progress: Callable[[Iterable[Row]], Iterable[Row]] = iter,
) -> Comparison:
    """Compute every objective twice, by Pyro's estimators and by closed form, side by side.

    The model itself is not changed: a float64 copy of its parameters is compared, on a seeded
    subset of cells, in eval mode.

    Parameters
    ----------
    model
        A :class:`pyro_scale.SCALE`; its own programs are compared.
    adata_or_x
        Cells, or a matrix with the model's peaks; None: the model's own cells.
    n_cells, n_samples, seed
        How many cells, and how many draws per row (exact rows take at most 20). More of
        either see smaller differences.
    warmup_steps
        Steps of Adam on these cells beforehand. None: 30 if the model is untrained (there,
        formulations hardly differ), otherwise none.
    progress
        Wraps the iteration over rows, to show how far it is.

    Returns
    -------
    Comparison
        One row per formulation x estimator, with ``.to_frame()``, ``.plot()``, ``.to_json()``.
        All values are in nats per cell.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=60, n_peaks=100, n_clusters=2, density=0.1, seed=0)
    >>> model = ps.SCALE(adata, n_components=3, n_latent=2, hidden=(16,), preset="plain")
    >>> table = ps.compare(model, n_cells=8, n_samples=20)
    >>> all(row.holds for row in table.rows if row.max_relative_gradient_difference is not None)
    True
    """
    if n_samples < 2:
        raise ValueError(f"n_samples={n_samples} must be at least two, for a standard error.")
    with torch.random.fork_rng(devices=[]), pyro.validation_enabled(True):
        torch.manual_seed(seed)
        vae, cells, steps = prepare(
            model, adata_or_x, n_cells=n_cells, seed=seed, warmup_steps=warmup_steps
        )
        gaps = _gaps(vae, cells, n_samples)
        projections = Projections(dict(vae.named_parameters()), torch.Generator().manual_seed(seed))
        n_parameters = len(projections.sides)
        statistical = sum(
            (row.value_agreement == "in expectation")
            + (row.gradient_agreement == "in expectation") * 3 * n_parameters
            for row in TABLE
        )
        threshold = critical_z(statistical, n_samples)
        rows = []
        for row in progress(TABLE):
            if row.supported:
                rows.append(_compare_row(vae, row, cells, n_samples, projections, threshold, gaps))
            else:
                rows.append(ComparedRow.unsupported(row, refusal(vae, row, cells)))
    settings = {
        "n_cells": cells.n_cells,
        "n_peaks": vae.n_peaks,
        "n_components": vae.n_components,
        "n_latent": vae.n_latent,
        "n_samples": n_samples,
        "seed": seed,
        "warmup_steps": steps,
        "tolerance": TOLERANCE,
        "critical_z": threshold,
        "dtype": "float64",
    }
    logger.info("compared with %s", settings)
    return Comparison(tuple(rows), gaps, settings)
