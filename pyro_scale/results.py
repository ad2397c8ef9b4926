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
from pyro_scale.one_at_a_time import refuse_while_trained
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
        """Whether ``train`` has been called (or a trained model loaded).

        Examples
        --------
        >>> import pyro_scale as ps
        >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
        >>> model = ps.SCALE(adata, n_components=2, n_latent=3, hidden=(8,))
        >>> model.is_trained
        False
        """
        return not self.history.empty

    def counts(self, adata: AnnData | None = None) -> Counts:
        """The checked cells of ``adata``, peaks in the model's order; None: the model's own.

        Returns
        -------
        Counts
            Its matrix has shape ``(n_cells, n_peaks)``.

        Raises
        ------
        DataError
            If a peak of the model is missing from ``adata``.

        Examples
        --------
        >>> import pyro_scale as ps
        >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
        >>> model = ps.SCALE(adata, n_components=2, n_latent=3, hidden=(8,))
        >>> model.counts().x.shape
        (40, 60)
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
        refuse_while_trained(self.vae)
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

        Parameters
        ----------
        adata
            Other cells; None: the training cells.
        give_mean
            The mean of q(z|x); False: one sample of it.
        batch_size, seed
            Cells at a time; seed of the sample.

        Examples
        --------
        >>> import pyro_scale as ps
        >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
        >>> model = ps.SCALE(adata, n_components=2, n_latent=3, hidden=(8,))
        >>> model.train(max_epochs=2, progress_bar=False)
        >>> model.get_latent_representation().shape
        (40, 3)
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

        Examples
        --------
        >>> import pyro_scale as ps
        >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
        >>> model = ps.SCALE(adata, n_components=2, n_latent=3, hidden=(8,))
        >>> model.train(max_epochs=2, progress_bar=False)
        >>> model.get_responsibilities(kind="optimal").shape
        (40, 2)
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

        Categories are ``"0"`` to ``"K-1"``, whether or not a component has cells.

        Parameters
        ----------
        adata
            Other cells; None: the training cells.
        kwargs
            As of :meth:`get_responsibilities`.

        Examples
        --------
        >>> import pyro_scale as ps
        >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
        >>> model = ps.SCALE(adata, n_components=2, n_latent=3, hidden=(8,))
        >>> model.train(max_epochs=2, progress_bar=False)
        >>> clusters = model.get_cluster_assignments()
        >>> clusters.shape, clusters.cat.categories.tolist()
        ((40,), ['0', '1'])
        """
        counts = self._trained_counts(adata)
        return self._clusters(counts, self._responsibilities(counts, **kwargs))

    def _clusters(self, counts: Counts, q_c_nk: NDArray[np.float32]) -> pd.Series:
        names = pd.Index([str(k) for k in range(self.vae.n_components)])
        clusters = pd.Categorical(names[q_c_nk.argmax(1)], categories=names)
        return pd.Series(clusters, index=counts.obs_names, name="scale_cluster")
