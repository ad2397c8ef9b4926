"""Compare the estimators of every formulation, a choice of q(z,c|x), with their closed forms."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from anndata import AnnData
from numpy.typing import NDArray

from pyro_scale._locking import exclusive
from pyro_scale._validation import check_int, check_seed
from pyro_scale.comparison.estimates import unsupported_reason
from pyro_scale.comparison.results import ComparedRow, Comparison
from pyro_scale.comparison.verdicts import (
    TOLERANCE,
    Projections,
    bound_gaps,
    check_agreement,
    critical_z,
    registered_bound_gaps,
)
from pyro_scale.config import ModelLike
from pyro_scale.data import CountMatrix, dense_cells
from pyro_scale.exceptions import NonFiniteError
from pyro_scale.objectives import OBJECTIVES, REGISTRY, Objective, ObjectiveSpec
from pyro_scale.programs import CellBatch, MixtureVAE, rsample

__all__ = [
    "compare",
    "prepare",
]


@exclusive()
def compare(
    model: ModelLike | MixtureVAE,
    adata_or_x: AnnData | NDArray[Any] | None = None,
    *,
    n_cells: int = 48,
    n_samples: int = 24,
    seed: int = 0,
    warmup_steps: int | None = None,
    formulations: Sequence[str] | None = None,
    progress: Callable[[Iterable[ObjectiveSpec]], Iterable[ObjectiveSpec]] = iter,
) -> Comparison:
    """Compare every objective's estimate by Pyro with its closed form, in value and gradient.

    An objective is the ELBO (or a related bound) of a formulation, a choice of q(z,c|x), under one
    of Pyro's estimators. The model is not changed: the comparison uses a float64 copy of its
    parameters, in eval mode, and a random subset of cells.

    Parameters
    ----------
    model
        A :class:`pyro_scale.SCALE` or a :class:`pyro_scale.programs.MixtureVAE`, whose programs
        are compared.
    adata_or_x
        Cells to compare on, as an AnnData or as a matrix of the model's peaks, shape ``(n, p)``.
        If None, the cells that a SCALE was constructed with; a MixtureVAE has no cells.
    n_cells
        Number of cells in the random subset. More cells reveal smaller differences.
    n_samples
        Number of draws per objective; objectives with an exact gradient use at most 10. More
        draws reveal smaller differences.
    seed
        Seed of the random number generators that choose the cells and draw the samples.
    warmup_steps
        Number of Adam steps on these cells before the comparison. If None, 30 for an untrained
        SCALE, at whose initial parameters the bounds of the formulations hardly differ; else 0.
    formulations
        Names of the formulations to compare; if None, all, including those added by
        :func:`pyro_scale.register`.
    progress
        Function that wraps the iteration over the objectives, for example to show a progress bar.

    Returns
    -------
    Comparison
        One row per objective, with ``.to_frame()``, ``.plot()`` and ``.to_json()``. All values
        are in nats per cell.

    Raises
    ------
    ValueError
        If ``n_samples`` or ``n_cells`` is too small, a formulation is unknown, or the peaks do not
        match.
    NonFiniteError
        If the warm-up steps lead to parameters that are not finite.

    Examples
    --------
    >>> table = ps.compare(model, n_cells=8, n_samples=2, formulations=["collapsed"])
    >>> [row.estimator for row in table.rows if row.holds]
    ['Trace_ELBO', 'TraceGraph_ELBO', 'TraceEnum_ELBO', 'TraceMeanField_ELBO', 'RenyiELBO']
    """
    check_int("n_samples", n_samples, least=2)  # for a standard error
    chosen = _select_objectives(formulations)
    with torch.random.fork_rng(devices=[]), pyro.validation_enabled(True):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPUs
        vae, cells, steps = prepare(
            model, adata_or_x, n_cells=n_cells, seed=seed, warmup_steps=warmup_steps
        )
        for name in dict.fromkeys(objective.formulation for objective in chosen):
            REGISTRY.build(vae, name)  # adds the parameters of a registered formulation
        gaps = bound_gaps(vae, cells, n_samples)
        # Forked, so that registered formulations do not change the draws of the other objectives.
        with torch.random.fork_rng(devices=[]):
            gaps |= registered_bound_gaps(vae, chosen, cells, n_samples)
        projections = Projections(dict(vae.named_parameters()), torch.Generator().manual_seed(seed))
        statistical = sum(
            (objective.value_agreement == "in expectation")
            + (objective.gradient_agreement == "in expectation") * projections.n_tests
            for objective in chosen
        )
        threshold = critical_z(statistical, n_samples)
        rows = []
        for objective in progress(chosen):
            if not objective.supported:
                reason = unsupported_reason(vae, objective, cells)
                rows.append(ComparedRow.unsupported(objective, reason))
                continue
            try:
                rows.append(
                    check_agreement(vae, objective, cells, n_samples, projections, threshold, gaps)
                )
            except Exception as error:
                error.add_note(
                    f"in the objective {objective.formulation}, {objective.estimator}, "
                    f"c {objective.c}"
                )
                raise
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
    return Comparison(tuple(rows), gaps, settings)


def _select_objectives(formulations: Sequence[str] | None) -> list[ObjectiveSpec]:
    if formulations is None:
        return list(OBJECTIVES)
    names = [formulations] if isinstance(formulations, str) else list(formulations)
    unknown = [name for name in names if name not in REGISTRY.formulations]
    if unknown or not names:
        raise ValueError(
            f"formulations={formulations!r}: expected some of "
            f"{', '.join(REGISTRY.formulations)}; a formulation of your own is known once the file "
            "that registers it is imported (pyro_scale.register)."
        )
    return [objective for objective in OBJECTIVES if objective.formulation in names]


def prepare(
    model: ModelLike | MixtureVAE,
    adata_or_x: AnnData | NDArray[Any] | None,
    *,
    n_cells: int,
    seed: int,
    warmup_steps: int | None,
) -> tuple[MixtureVAE, CellBatch, int]:
    """Copy the model's parameters to float64, choose the cells, and take the warm-up steps.

    The arguments are those of :func:`compare`.

    Returns
    -------
    tuple
        The copy of the MixtureVAE (in eval mode, with a classifier), the cells, and the number of
        warm-up steps taken.
    """
    check_int("n_cells", n_cells)
    check_seed(seed)
    if warmup_steps is not None:
        check_int("warmup_steps", warmup_steps, least=0)
    counts = _counts(model, adata_or_x)
    chosen = np.sort(np.random.default_rng(seed).permutation(counts.n_cells)[:n_cells])
    cells = dense_cells(counts[chosen], dtype=torch.float64)
    vae = copy.deepcopy(model if isinstance(model, MixtureVAE) else model.vae)
    vae = vae.cpu().double().requires_grad_(True)
    if warmup_steps is None:
        warmup_steps = 0 if isinstance(model, MixtureVAE) or model.is_trained else 30
    if warmup_steps:
        _warm_up(vae, cells, warmup_steps)
    if vae.classifier is None:
        _add_classifier(vae, cells)
    return vae.eval(), cells, warmup_steps


def _counts(
    model: ModelLike | MixtureVAE, adata_or_x: AnnData | NDArray[Any] | None
) -> CountMatrix:
    """Return the counts of ``adata_or_x``, or of the cells that the model holds if it is None."""
    if not isinstance(model, MixtureVAE):
        if adata_or_x is None or isinstance(adata_or_x, AnnData):
            return model.counts(adata_or_x)
        model = model.vae
    if adata_or_x is None:
        raise ValueError("a MixtureVAE has no cells of its own: give an AnnData or a matrix.")
    x = adata_or_x if isinstance(adata_or_x, AnnData) else AnnData(np.asarray(adata_or_x))
    if x.n_vars != model.n_peaks:
        raise ValueError(
            f"the matrix has {x.n_vars} peaks, the model {model.n_peaks}: give the model's peaks "
            "in the model's order."
        )
    return CountMatrix.from_anndata(x, binary=model.likelihood.binary)


def _warm_up(vae: MixtureVAE, cells: CellBatch, steps: int) -> None:
    """Take some steps of Adam, then make the components overlap, so that the bounds differ.

    The mean of each component is set to a draw of z of one cell, and all component variances to a
    quarter of the variance of z over the cells. p(c|z) then varies over q(z|x), which makes the
    bounds of the formulations differ.
    """
    objective = Objective(vae, "collapsed", "Trace_ELBO")
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    with pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Encountered (NaN|.*inf)")  # see below
        for _ in range(steps):
            optimizer.zero_grad()
            objective.backward(cells)
            optimizer.step()
    if not all(parameter.isfinite().all() for parameter in vae.parameters()):
        raise NonFiniteError(
            f"{steps} warm-up steps of Adam on {cells.n_cells} cells led to parameters that are "
            "not finite (the counts are too large for an untrained model): train the model first, "
            "or give warmup_steps=0."
        )
    with torch.no_grad():
        loc_nd, var_nd = vae.encoder(cells)
        k = vae.n_components
        chosen = torch.arange(k) % cells.n_cells
        noise_kd = torch.randn_like(loc_nd[chosen])
        draws_kd = rsample(loc_nd[chosen], var_nd[chosen], noise_kd)
        variance_d = loc_nd.var(0, correction=0) + var_nd.mean(0)
        weights_k = torch.linspace(1.0, 2.0, k, dtype=loc_nd.dtype)
        vae.prior.set_components(
            weights_k / weights_k.sum(), draws_kd, 0.25 * variance_d.expand(k, -1)
        )


def _add_classifier(vae: MixtureVAE, cells: CellBatch) -> None:
    """Add an untrained classifier q(c|x) whose logits have unit variance.

    Its q(c|x) is neither near the optimal g*(c|x) nor saturated at 0 and 1.
    """
    vae.add_classifier()
    with torch.no_grad():
        logits_nk = vae.required_classifier.logits(vae.encoder.features(cells))
        sd = logits_nk.std(correction=0).clamp_min(1e-6)
        vae.required_classifier.logits.weight.div_(sd)
