"""What a trained model says of its own objective: bounds per cell, and how good q(z|x) is."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from pyro_scale import inference
from pyro_scale.results import Results

__all__ = ["BoundResults"]


class BoundResults(Results):
    """The verbs of :class:`pyro_scale.SCALE` that bound or judge; a Series over obs_names each."""

    def get_elbo(
        self,
        adata: AnnData | None = None,
        *,
        bound: str | None = None,
        n_mc_samples: int = 20,
        batch_size: int = 256,
        seed: int = 0,
    ) -> pd.Series:
        """A lower bound of log p(x) per cell, in nats: a Series that carries the bound's name.

        Parameters
        ----------
        adata
            Other cells; None: the training cells.
        bound
            A closed form: ``"collapsed"`` (L_str), ``"mean_field"`` (L_mf at g*),
            ``"amortized"`` (L_mf at the classifier's q(c|x)) or ``"scale"``. None: the bound of
            the model's own formulation.
        n_mc_samples
            Draws of z that are averaged.
        batch_size, seed
            Cells at a time; seed of the draws.

        Examples
        --------
        >>> import pyro_scale as ps
        >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
        >>> model = ps.SCALE(adata, n_components=2, n_latent=3, hidden=(8,))
        >>> model.train(max_epochs=2, progress_bar=False)
        >>> elbo = model.get_elbo(bound="scale", n_mc_samples=5)
        >>> elbo.shape, elbo.name
        ((40,), 'scale')
        """
        counts = self._trained_counts(adata)
        row = self.configuration.row
        if bound is None:
            bound = "amortized" if row.formulation == "amortized" else row.twin
        values = inference.bound(self.vae, counts, bound, n_mc_samples, batch_size, seed)
        return pd.Series(values, index=counts.obs_names, name=bound)

    def get_marginal_ll(
        self,
        adata: AnnData | None = None,
        *,
        n_mc_samples: int = 1000,
        batch_size: int = 64,
        seed: int = 0,
    ) -> pd.Series:
        """Importance-weighted estimate of log p(x) per cell, in nats (a lower bound on average).

        ``log mean_s p(x, z_s) / q(z_s|x)`` over ``n_mc_samples`` draws (Burda et al. 2016).

        Parameters
        ----------
        adata
            Other cells; None: the training cells.
        n_mc_samples
            Draws of z per cell.
        batch_size, seed
            Cells at a time; seed of the draws.

        Examples
        --------
        >>> import pyro_scale as ps
        >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
        >>> model = ps.SCALE(adata, n_components=2, n_latent=3, hidden=(8,))
        >>> model.train(max_epochs=2, progress_bar=False)
        >>> model.get_marginal_ll(n_mc_samples=20).shape
        (40,)
        """
        counts = self._trained_counts(adata)
        values = inference.bound(
            self.vae, counts, "importance_weighted", n_mc_samples, batch_size, seed
        )
        return pd.Series(values, index=counts.obs_names, name="importance_weighted")

    def get_pareto_k(
        self,
        adata: AnnData | None = None,
        *,
        n_samples: int = 1000,
        batch_size: int = 64,
        seed: int = 0,
    ) -> pd.Series:
        """How far q(z|x) of each cell can be trusted: k-hat of its importance weights.

        Above 0.7, q misses some of p(z|x), and :meth:`get_marginal_ll` of that cell is not to be
        relied on (:func:`pyro_scale.analysis.diagnostics.pareto_k`).

        Parameters
        ----------
        adata
            Other cells; None: the training cells.
        n_samples
            Draws of z per cell, at least 25; the estimate's own standard error is 0.11 to 0.15
            at 1000.
        batch_size, seed
            Cells at a time; seed of the draws.

        Examples
        --------
        >>> import pyro_scale as ps
        >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
        >>> model = ps.SCALE(adata, n_components=2, n_latent=3, hidden=(8,))
        >>> model.train(max_epochs=2, progress_bar=False)
        >>> model.get_pareto_k(n_samples=50).shape
        (40,)
        """
        counts = self._trained_counts(adata)
        values = inference.pareto_k(self.vae, counts, n_samples, batch_size, seed)
        return pd.Series(values, index=counts.obs_names, name="pareto_k")
