"""Fill the matrix: every formulation x estimator against its closed form, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyro
import torch
from anndata import AnnData
from numpy.typing import NDArray

from pyro_scale.comparison.evaluate import refusal
from pyro_scale.comparison.judge import TOLERANCE, bound_gaps, judge, registered_gaps
from pyro_scale.comparison.prepare import Comparable, prepare
from pyro_scale.comparison.result import ComparedRow, Comparison
from pyro_scale.comparison.statistics import Projections, critical_z
from pyro_scale.objectives import TABLE, Row
from pyro_scale.one_at_a_time import one_at_a_time
from pyro_scale.programs import FORMULATIONS, MixtureVAE

__all__ = ["compare"]


@one_at_a_time()
def compare(
    model: Comparable | MixtureVAE,
    adata_or_x: AnnData | NDArray[Any] | None = None,
    *,
    n_cells: int = 48,
    n_samples: int = 24,
    seed: int = 0,
    warmup_steps: int | None = None,
    formulations: Sequence[str] | None = None,
    progress: Callable[[Iterable[Row]], Iterable[Row]] = iter,
) -> Comparison:
    """Compute every objective twice, by Pyro's estimators and by closed form, side by side.

    The model itself is not changed: a float64 copy of its parameters is compared, on a seeded
    subset of cells, in eval mode.

    Parameters
    ----------
    model
        A :class:`pyro_scale.SCALE`, whose own programs are compared; or a
        :class:`pyro_scale.programs.MixtureVAE`, as it is.
    adata_or_x
        Cells, or a matrix with the model's peaks; None: the model's own cells (a MixtureVAE has
        none).
    n_cells, n_samples, seed
        How many cells, and how many draws per row (exact rows take at most 10). More of
        either see smaller differences.
    warmup_steps
        Steps of Adam on these cells beforehand. None: 30 if the model is untrained (there,
        formulations hardly differ), otherwise none.
    formulations
        Only these formulations; None: all, those that :func:`pyro_scale.register` added too.
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
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    >>> model = ps.SCALE(adata, n_components=3, n_latent=2, hidden=(8,), preset="plain")
    >>> table = ps.compare(model, n_cells=8, n_samples=2, formulations=["collapsed"])
    >>> [row.estimator for row in table.rows if row.holds]
    ['Trace_ELBO', 'TraceGraph_ELBO', 'TraceEnum_ELBO', 'TraceMeanField_ELBO', 'RenyiELBO']
    """
    if n_samples < 2:
        raise ValueError(f"n_samples={n_samples} must be at least two, for a standard error.")
    chosen = _rows(formulations)
    with torch.random.fork_rng(devices=[]), pyro.validation_enabled(True):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPUs
        vae, cells, steps = prepare(
            model, adata_or_x, n_cells=n_cells, seed=seed, warmup_steps=warmup_steps
        )
        gaps = bound_gaps(vae, cells, n_samples)
        with torch.random.fork_rng(devices=[]):  # the other rows' draws stay what they were
            gaps |= registered_gaps(vae, chosen, cells, n_samples)
        projections = Projections(dict(vae.named_parameters()), torch.Generator().manual_seed(seed))
        n_parameters = len(projections.sides)
        statistical = sum(
            (row.value_agreement == "in expectation")
            + (row.gradient_agreement == "in expectation") * 3 * n_parameters
            for row in chosen
        )
        threshold = critical_z(statistical, n_samples)
        rows = []
        for row in progress(chosen):
            if not row.supported:
                rows.append(ComparedRow.unsupported(row, refusal(vae, row, cells)))
                continue
            try:
                rows.append(judge(vae, row, cells, n_samples, projections, threshold, gaps))
            except Exception as error:
                error.add_note(f"in the row {row.formulation}, {row.estimator}, c {row.c}")
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


def _rows(formulations: Sequence[str] | None) -> list[Row]:
    if formulations is None:
        return list(TABLE)
    names = [formulations] if isinstance(formulations, str) else list(formulations)
    unknown = [name for name in names if name not in FORMULATIONS]
    if unknown or not names:
        raise ValueError(
            f"formulations={formulations!r}: expected some of {', '.join(FORMULATIONS)}; one of "
            "your own is there once its file is imported (pyro_scale.register)."
        )
    return [row for row in TABLE if row.formulation in names]
