"""What a trained model says of cells: the verbs that read and do not write."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from pyro_scale import inference
from pyro_scale.checks import check_sound
from pyro_scale.configuration import Configuration
from pyro_scale.data import Counts, as_counts
from pyro_scale.errors import DataError, NotTrainedError
from pyro_scale.programs import MixtureVAE

__all__ = ["Results"]

logger = logging.getLogger(__name__)


class Results:
    """The verbs of :class:`pyro_scale.SCALE` that ask; every array is aligned to obs_names.

    Attributes
    ----------
    vae
        The parameters.
    configuration
        What the model is.
    peak_names
        The model's peaks, in its order.
    history
        One row per epoch of training; empty before it.
    """

    vae: MixtureVAE
    configuration: Configuration
    peak_names: pd.Index
    history: pd.DataFrame
    _counts: Counts

    @property
    def is_trained(self) -> bool:
        """Whether ``train`` has been called (or a trained model loaded)."""
        return not self.history.empty

    def counts(self, adata: AnnData | None = None) -> Counts:
        """The checked cells of ``adata``, peaks in the model's order; None: the model's own.

        Raises
        ------
        DataError
            If a peak of the model is missing from ``adata``.
        """
        if adata is None:
            return self._counts
        named = isinstance(adata, AnnData) and adata.var_names.is_unique  # else as_counts refuses
        if named and not adata.var_names.equals(self.peak_names):
            missing = self.peak_names.difference(adata.var_names)
            if len(missing):
                raise DataError(
                    f"{len(missing)} of the model's {len(self.peak_names)} peaks are not in the "
                    f"AnnData (the first is {missing[0]!r}); give cells with the same peaks, or "
                    "fill them with pyro_scale.pp.match_peaks(adata, model.peak_names)."
                )
            layer = self.configuration.layer
            check_sound(adata.X if layer is None else adata.layers.get(layer), "the matrix")
            extra = adata.n_vars - len(self.peak_names)
            logger.info("peaks matched by name: reordered, %d others left out.", extra)
            adata = adata[:, self.peak_names]
        return self._read(adata)

    def _read(self, adata: AnnData) -> Counts:
        """The cells, read as this model is configured."""
        configuration = self.configuration
        return as_counts(
            adata,
            layer=configuration.layer,
            binary=configuration.binary,
            batch_key=configuration.batch_key,
            batches=configuration.batches,
        )

    def _trained_counts(self, adata: AnnData | None) -> Counts:
        if not self.is_trained:
            raise NotTrainedError("the model is not trained: call model.train() first.")
        return self.counts(adata)

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        *,
        give_mean: bool = True,
        batch_size: int = 512,
        seed: int = 0,
    ) -> NDArray[np.float32]:
        """The cells in latent space, shape ``(n_cells, n_latent)``, in the order of obs_names.

        The mean of q(z|x); with ``give_mean=False`` one sample of it, reproducible by ``seed``.
        """
        counts = self._trained_counts(adata)
        return inference.latent(self.vae, counts, give_mean, batch_size, seed)

    def get_responsibilities(
        self,
        adata: AnnData | None = None,
        *,
        kind: inference.Kind | None = None,
        n_samples: int = 100,
        batch_size: int = 512,
        seed: int = 0,
    ) -> NDArray[np.float32]:
        """q(c|x), the probability of each component, shape ``(n_cells, n_components)``.

        Parameters
        ----------
        adata
            Other cells; None: the training cells.
        kind
            ``"averaged"``: gbar = E_q(z|x)[p(c|z)], by ``n_samples`` draws. ``"optimal"``: g*,
            the best q(c|x) that does not see z. ``"at_mean"``: p(c|z) at the mean of q(z|x).
            ``"amortized"``: the classifier's. None: the formulation's own q(c|x).
        n_samples, seed
            Of ``"averaged"``.
        batch_size
            Cells at a time.
        """
        counts = self._trained_counts(adata)
        return self._responsibilities(counts, kind, n_samples, batch_size, seed)

    def _responsibilities(
        self,
        counts: Counts,
        kind: inference.Kind | None = None,
        n_samples: int = 100,
        batch_size: int = 512,
        seed: int = 0,
    ) -> NDArray[np.float32]:
        kind = inference.own_kind(self.configuration.formulation) if kind is None else kind
        return inference.responsibilities(self.vae, counts, kind, n_samples, batch_size, seed)

    def get_cluster_assignments(self, adata: AnnData | None = None, **kwargs: Any) -> pd.Series:
        """The most probable component of each cell, as a categorical Series over obs_names.

        Categories are ``"0"`` to ``"K-1"``, whether or not a component has cells; further
        arguments are those of :meth:`get_responsibilities`.
        """
        counts = self._trained_counts(adata)
        return self._clusters(counts, self._responsibilities(counts, **kwargs))

    def _clusters(self, counts: Counts, q_c_nk: NDArray[np.float32]) -> pd.Series:
        names = pd.Index([str(k) for k in range(self.vae.n_components)])
        clusters = pd.Categorical(names[q_c_nk.argmax(1)], categories=names)
        return pd.Series(clusters, index=counts.obs_names, name="scale_cluster")

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
        """
        counts = self._trained_counts(adata)
        values = inference.pareto_k(self.vae, counts, n_samples, batch_size, seed)
        return pd.Series(values, index=counts.obs_names, name="pareto_k")
