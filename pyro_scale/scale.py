"""The class SCALE: the verbs a user calls."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray

from pyro_scale import inference, saving
from pyro_scale.configuration import Configuration
from pyro_scale.data import Counts, as_counts
from pyro_scale.errors import DataError, NotTrainedError
from pyro_scale.programs import LikelihoodName, MixtureVAE, Treatment
from pyro_scale.training import TrainingPlan, build_vae, fit

__all__ = ["SCALE"]

logger = logging.getLogger(__name__)


class SCALE:
    """A variational auto-encoder with a Gaussian-mixture prior, for single-cell ATAC-seq.

    Parameters
    ----------
    adata
        Cells x peaks, counts or binary, sparse or dense. It is read, never changed.
    n_components
        K, the number of mixture components (cell clusters); at most the number of cells.
    n_latent
        D, the dimension of the latent space.
    formulation
        q(z,c|x): ``"collapsed"``, ``"model_enumerated"``, ``"structured"``, ``"mean_field"``,
        ``"amortized"`` or ``"scale"`` (:data:`pyro_scale.programs.FORMULATIONS`). The loss
        of the published SCALE, sample by sample, is ``formulation="structured",
        estimator="TraceEnumMeanField_ELBO"``.
    estimator
        The Pyro estimator that training uses; None: the formulation's default.
    c
        ``"enumerated"`` or ``"sampled"`` where there is a choice.
    likelihood
        ``"bernoulli"`` (counts are set to 0/1, on a copy) or ``"poisson"`` (counts, with the
        cell's depth as exposure).
    preset
        ``"default"``: TF-IDF input, layer normalisation, a depth term in the Bernoulli
        likelihood, decoder bias started at the peaks' accessibility. ``"plain"``: none of
        these, the model of the paper.
    hidden, decoder_hidden
        Widths of the hidden layers; SCALE's are (1024, 128) and none (a linear decoder).
    layer
        Read ``adata.layers[layer]`` instead of ``adata.X``.
    seed
        Of initialisation and training.

    Raises
    ------
    DataError, TypeError
        If the cells cannot be used (:func:`pyro_scale.data.as_counts`).
    ValueError
        For an argument out of range or a name that is not known.

    References
    ----------
    Xiong et al. 2019, *SCALE method for single-cell ATAC-seq analysis via latent feature
    extraction*, Nature Communications 10:4576, doi:10.1038/s41467-019-12630-7.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=60, n_peaks=200, n_clusters=2, density=0.1, seed=0)
    >>> model = ps.SCALE(adata, n_components=2, n_latent=2, hidden=(16,))
    >>> model.train(max_epochs=4, progress_bar=False)
    >>> model.get_latent_representation().shape
    (60, 2)
    """

    def __init__(
        self,
        adata: AnnData,
        n_components: int,
        n_latent: int = 10,
        *,
        formulation: str = "collapsed",
        estimator: str | None = None,
        c: Treatment | None = None,
        likelihood: LikelihoodName = "bernoulli",
        preset: Literal["default", "plain"] = "default",
        hidden: tuple[int, ...] = (1024, 128),
        decoder_hidden: tuple[int, ...] = (),
        layer: str | None = None,
        seed: int = 0,
    ) -> None:
        self.configuration = Configuration(
            n_components,
            n_latent,
            formulation,
            estimator,
            c,
            likelihood,
            preset,
            hidden,
            decoder_hidden,
            layer,
            seed,
        )
        counts = as_counts(adata, layer=layer, binary=self.configuration.binary)
        if n_components > counts.n_cells:
            raise ValueError(
                f"n_components={n_components} is more than the {counts.n_cells} cells; choose "
                "at most one component per cell."
            )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.configuration.seed)
            vae = build_vae(
                counts,
                self.configuration.n_components,
                self.configuration.n_latent,
                hidden=self.configuration.hidden,
                decoder_hidden=self.configuration.decoder_hidden,
                likelihood=likelihood,
                plain=preset == "plain",
                classifier=formulation == "amortized",
            )
        self._set(vae.eval(), counts, history=pd.DataFrame())

    def _set(self, vae: MixtureVAE, counts: Counts, history: pd.DataFrame) -> None:
        self.vae, self._counts, self.history = vae, counts, history
        self.peak_names = counts.var_names

    @property
    def is_trained(self) -> bool:
        """Whether ``train`` has been called (or a trained model loaded)."""
        return not self.history.empty

    def __repr__(self) -> str:
        state = f"{len(self.history)} epochs" if self.is_trained else "untrained"
        row = self.configuration.row
        return (
            f"SCALE({self._counts.n_cells} cells x {self._counts.n_peaks} peaks, "
            f"K={self.configuration.n_components}, D={self.configuration.n_latent}, "
            f"{row.formulation} by {row.estimator}, {self.configuration.likelihood}, {state})"
        )

    def train(
        self,
        max_epochs: int = 200,
        *,
        accelerator: str = "auto",
        devices: int | str = "auto",
        early_stopping: bool = True,
        batch_size: int = 128,
        progress_bar: bool = True,
        trainer_kwargs: dict[str, Any] | None = None,
        **plan_kwargs: Any,
    ) -> None:
        """Train on the cells given at construction, without labels.

        First the encoder and decoder under an N(0, I) prior, then the mixture, started from
        k-means on the encoder's means. Trains anew each time from the present weights.

        Parameters
        ----------
        max_epochs
            Passes over the training cells, warm-up included.
        accelerator, devices, trainer_kwargs
            As Lightning's Trainer.
        early_stopping
            Stop when the bound of held-out cells no longer rises, and keep the best weights.
        batch_size
            Cells per step.
        progress_bar
            Show one.
        plan_kwargs
            Further settings of :class:`pyro_scale.training.TrainingPlan`: ``warmup_epochs``,
            ``kl_warmup_epochs``, ``lr``, ``weight_decay``, ``gradient_clip``,
            ``validation_size``, ``patience``, ``n_particles``, ``seed``.
        """
        plan = TrainingPlan(
            max_epochs=max_epochs,
            early_stopping=early_stopping,
            batch_size=batch_size,
            **{"seed": self.configuration.seed, **plan_kwargs},
        )
        self.history = fit(
            self.vae,
            self._counts,
            self.configuration.row,
            plan,
            accelerator=accelerator,
            devices=devices,
            progress_bar=progress_bar,
            trainer_kwargs=trainer_kwargs,
        )

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
                    f"AnnData (the first is {missing[0]!r}); give cells with the same peaks."
                )
            extra = adata.n_vars - len(self.peak_names)
            logger.info("peaks matched by name: reordered, %d others left out.", extra)
            adata = adata[:, self.peak_names]
        return as_counts(adata, layer=self.configuration.layer, binary=self.configuration.binary)

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
        kind = kind or inference.own_kind(self.configuration.formulation)
        return inference.responsibilities(self.vae, counts, kind, n_samples, batch_size, seed)

    def get_cluster_assignments(self, adata: AnnData | None = None, **kwargs: Any) -> pd.Series:
        """The most probable component of each cell, as a categorical Series over obs_names.

        Categories are ``"0"`` to ``"K-1"``, whether or not a component has cells; further
        arguments are those of :meth:`get_responsibilities`.
        """
        counts = self._trained_counts(adata)
        codes = self.get_responsibilities(adata, **kwargs).argmax(1)
        names = [str(k) for k in range(self.configuration.n_components)]
        clusters = pd.Categorical([names[code] for code in codes], categories=names)
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
        bound = bound or ("amortized" if row.formulation == "amortized" else row.twin)
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

    def to_anndata(self, adata: AnnData | None = None) -> AnnData:
        """A copy of ``adata`` (None: names only) with the results under documented keys.

        ``obsm["X_scale"]`` the latent means, ``obsm["scale_responsibilities"]`` q(c|x),
        ``obs["scale_cluster"]`` its argmax, ``uns["scale"]`` the configuration and versions.
        """
        counts = self._trained_counts(adata)
        if adata is None:
            result = AnnData(counts.x.copy())
            result.obs_names, result.var_names = counts.obs_names, counts.var_names
        else:
            result = adata.copy()
        result.obsm["X_scale"] = self.get_latent_representation(adata)
        result.obsm["scale_responsibilities"] = self.get_responsibilities(adata)
        result.obs["scale_cluster"] = self.get_cluster_assignments(adata)
        result.uns["scale"] = saving.description(self.configuration)
        return result

    def save(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Write weights (safetensors), configuration, peaks and history (JSON) to a folder.

        Raises
        ------
        FileExistsError
            If the folder has something in it and ``overwrite`` is false, or something that is
            not part of a saved model.
        """
        saving.save(
            Path(directory),
            self.vae,
            self.configuration,
            self.peak_names,
            self.history,
            overwrite=overwrite,
        )

    @classmethod
    def load(cls, directory: str | Path, adata: AnnData) -> SCALE:
        """Read a model that :meth:`save` wrote, for the cells of ``adata``.

        Raises
        ------
        ModelFileError
            If the folder does not hold a model that this version understands.
        DataError
            If ``adata`` lacks some of the model's peaks.
        """
        saved = saving.load(Path(directory))
        model = cls.__new__(cls)
        model.configuration, model.peak_names = saved.configuration, saved.peak_names
        model._set(saved.vae.eval(), model.counts(adata), saved.history)
        return model
