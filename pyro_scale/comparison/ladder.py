r"""The ladder of bounds below log p(x), each gap computed twice.

.. math::
    \log p(x) - L_{str} &= KL(q(z|x) \,\|\, p(z|x)) \\
    L_{str} - L_{mf}(g^*) &= E_q KL(g^* \,\|\, \gamma(z)) \\
    L_{mf}(g^*) - L_{mf}(\bar g) &= KL(\bar g \,\|\, g^*) \\
    L_{mf}(\bar g) - E[L_{SCALE}] &= E_q KL(\gamma(z) \,\|\, \bar g)

The left sides are differences of bounds, the right sides divergences. They are integrated by
different rules (D <= 2) or over different draws (D > 2), so that their agreement says
something. See ``derivations/``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from torch import Tensor

from pyro_scale.comparison.ladder_integrals import Rungs, by_monte_carlo, by_quadrature
from pyro_scale.comparison.prepare import Comparable, prepare
from pyro_scale.one_at_a_time import one_at_a_time
from pyro_scale.programs import MixtureVAE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Ladder", "ladder"]

_GAPS = ("posterior", "optimal", "averaged", "scale")


@dataclass(frozen=True)
class Ladder:
    """The four gaps, per cell, in nats.

    Attributes
    ----------
    frame
        See :meth:`to_frame`.
    settings
        Method, sizes and seed.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    >>> model = ps.SCALE(adata, n_components=2, n_latent=2, hidden=(8,))
    >>> rungs = ps.ladder(model, n_cells=2)
    >>> rungs.to_frame().shape, rungs.summary().index.tolist()
    ((2, 17), ['gap_posterior', 'gap_optimal', 'gap_averaged', 'gap_scale'])
    >>> rungs.max_discrepancy < 1e-8
    True
    >>> figure = rungs.plot()
    """

    frame: pd.DataFrame
    settings: dict[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """One row per cell.

        ``log_px``; the bounds ``structured``, ``optimal``, ``averaged``, ``scale``; each gap
        as a difference of bounds (``gap_posterior``, ``gap_optimal``, ``gap_averaged``,
        ``gap_scale``) and as a divergence (``kl_...``); ``error_...``, the numerical error of
        their comparison: by quadrature, what the last doubling of the nodes changed; by Monte
        Carlo, the standard error of their difference. For D > 2 ``log_px`` is the
        importance-weighted bound, ``gap_posterior`` therefore a lower bound on average,
        ``kl_posterior`` not available, ``khat`` the Pareto shape of its weights, and
        ``doubling`` how much gap_averaged moved when the draws behind gbar were doubled.
        """
        return self.frame.copy()

    def summary(self) -> pd.DataFrame:
        """Mean, 95th percentile and largest of each gap over cells, by its less noisy side."""
        gaps = self._gaps()
        return pd.DataFrame(
            {"mean": gaps.mean(), "p95": gaps.quantile(0.95), "largest": gaps.max()}
        )

    def _gaps(self) -> pd.DataFrame:
        """The gaps, as divergences where there are any: by Monte Carlo the less noisy side."""
        gaps = {
            f"gap_{name}": self.frame[f"kl_{name}"].fillna(self.frame[f"gap_{name}"])
            for name in _GAPS
        }
        return pd.DataFrame(gaps)

    @property
    def max_discrepancy(self) -> float:
        """Largest |difference of bounds - divergence| over cells and gaps that have both."""
        differences = [
            (self.frame[f"gap_{name}"] - self.frame[f"kl_{name}"]).abs().max()
            for name in _GAPS
            if self.frame[f"kl_{name}"].notna().all()
        ]
        return float(max(differences))

    def plot(self) -> Figure:
        """The gaps as stacked bars, one per cell."""
        from pyro_scale.plotting import ladder as draw  # matplotlib takes long to import

        return draw(self._gaps())


@one_at_a_time()
def ladder(
    model: Comparable | MixtureVAE,
    adata_or_x: AnnData | NDArray[Any] | None = None,
    *,
    n_cells: int = 32,
    n_samples: int = 1000,
    seed: int = 0,
    warmup_steps: int | None = None,
) -> Ladder:
    """The ladder of bounds at a model's parameters.

    Parameters
    ----------
    model
        A :class:`pyro_scale.SCALE`, or a :class:`pyro_scale.programs.MixtureVAE` as it is; it is
        not changed.
    adata_or_x, n_cells, seed, warmup_steps
        As in :func:`pyro_scale.compare`.
    n_samples
        Draws of z per cell for D > 2.

    Returns
    -------
    Ladder
        Per cell: by quadrature with node doubling for D <= 2, by Monte Carlo with standard
        errors beyond.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    >>> model = ps.SCALE(adata, n_components=2, n_latent=2, hidden=(8,))
    >>> rungs = ps.ladder(model, n_cells=2)
    >>> rungs.frame.shape, rungs.max_discrepancy < 1e-8
    ((2, 17), True)
    """
    if n_samples < 100:
        raise ValueError(f"n_samples={n_samples} must be at least 100, for standard errors.")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPUs
        vae, cells, steps = prepare(
            model, adata_or_x, n_cells=n_cells, seed=seed, warmup_steps=warmup_steps
        )
        quadrature = vae.n_latent <= 2
        rungs = by_quadrature(vae, cells) if quadrature else by_monte_carlo(vae, cells, n_samples)
    settings = {
        "method": "quadrature" if quadrature else f"Monte Carlo, {n_samples} draws",
        "n_cells": cells.n_cells,
        "n_latent": vae.n_latent,
        "seed": seed,
        "warmup_steps": steps,
    }
    return Ladder(_to_frame(rungs), settings)


def _to_frame(rungs: Rungs) -> pd.DataFrame:
    columns: dict[str, Tensor] = {"log_px": rungs.log_px}
    columns |= dict(zip(("structured", *_GAPS[1:]), rungs.bounds, strict=True))
    upper = (rungs.log_px, *rungs.bounds[:-1])
    for name, above, below in zip(_GAPS, upper, rungs.bounds, strict=True):
        columns[f"gap_{name}"] = above - below
    for name, divergence, error in zip(_GAPS, rungs.divergences, rungs.errors, strict=True):
        columns[f"kl_{name}"], columns[f"error_{name}"] = divergence, error
    columns |= rungs.extra
    return pd.DataFrame({name: value.numpy() for name, value in columns.items()})
