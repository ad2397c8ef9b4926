"""The class SCALE: a model with its training, results, exports and files."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from pyro_scale import _validation as validation
from pyro_scale import inference, serialization
from pyro_scale._locking import exclusive
from pyro_scale.config import ModelConfig
from pyro_scale.data import CountMatrix, batch_names
from pyro_scale.data.backed import is_on_disk, view
from pyro_scale.data.counts import warn_of_reads
from pyro_scale.data.peak_names import style_advice
from pyro_scale.exceptions import (
    BusyError,
    DataError,
    ModelFileError,
    NonFiniteError,
    NotTrainedError,
)
from pyro_scale.inference import Depth, Kind, Mode, Posterior, StoredDtype
from pyro_scale.objectives import REGISTRY
from pyro_scale.programs import LikelihoodName, MixtureVAE, Treatment
from pyro_scale.serialization import ModelState
from pyro_scale.training import (
    TrainingConfig,
    TrainingProgress,
    build_vae,
    components_from_means,
    moments,
    reason_against_sweeps,
)

if TYPE_CHECKING:
    from xarray import DataTree

__all__ = ["SCALE"]

logger = logging.getLogger(__name__)


class SCALE:
    """A variational autoencoder with a Gaussian-mixture prior for single-cell ATAC-seq.

    Parameters
    ----------
    adata
        Cells x peaks, counts or binary, sparse or dense. It is not modified.
    n_components
        K, the number of mixture components (cell clusters), at most the number of cells. If None,
        :meth:`train` clusters the cells' posterior means and merges clusters that are not separated
        (:func:`pyro_scale.training.choose_n_components`); :meth:`set_n_components` sets another K
        afterwards.
    n_latent
        D, the dimension of the latent space.
    formulation
        Name of the formulation, a choice of the variational posterior q(z,c|x):
        ``"collapsed"``, ``"model_enumerated"``, ``"structured"``, ``"mean_field"``,
        ``"amortized"`` or ``"scale"`` (:data:`pyro_scale.programs.FORMULATIONS`), or a
        formulation that was added by :func:`pyro_scale.register`. With
        ``formulation="structured", estimator="TraceEnumMeanField_ELBO"`` the loss equals that of
        the published SCALE for every sample of z.
    estimator
        Name of the Pyro estimator of the ELBO that training uses; None for the formulation's
        default.
    c
        How the mixture component c is treated: ``"marginalized"``, ``"enumerated"`` or
        ``"sampled"``. Few formulations support more than one of these; None for the default.
    likelihood
        ``"bernoulli"`` (counts are set to 0/1, on a copy) or ``"poisson"`` (counts, with the
        cell's depth as exposure).
    preset
        ``"default"``: the encoder reads latent semantic indexing (LSI) and uses layer
        normalization, and the logits of the Bernoulli likelihood depend on the cell's depth.
        ``"plain"``: the model of the paper, without these.
    hidden, decoder_hidden
        Widths of the hidden layers of the encoder and the decoder. By default the encoder has
        (128,), or SCALE's (1024, 128) in the plain model, and the decoder is linear, as in SCALE.
    n_lsi
        Number of LSI components that the default encoder reads.
    layer
        Layer of ``adata`` to read instead of ``adata.X``.
    batch_key
        Column of ``adata.obs`` that names each cell's batch. The decoder is conditioned on the
        batch, in the programs and in the closed forms, so that z need not encode it.
    seed
        Seed of the initialization and, unless :meth:`train` is given another, of training.

    Attributes
    ----------
    config
        The validated arguments (:class:`pyro_scale.config.ModelConfig`).
    vae
        The networks and parameters (:class:`pyro_scale.programs.MixtureVAE`).
    peak_names
        Names of the model's peaks, in the order of the model.
    history
        One row per epoch of the last training: phase, KL weight, and bounds in nats per cell.
    n_components_table
        What K was chosen from, one row per number of components: ``valley``, the lowest density
        between the two clusters that are separated least, relative to the lower of their peaks;
        ``silhouette``, the mean silhouette of k-means clusters; and ``stability``, the agreement of
        the clusters of either half of every cell's peaks
        (:class:`pyro_scale.training.ComponentChoice`). Empty if K was given.
    is_trained
        Whether the parameters come from :meth:`train` or were loaded from a trained model. A model
        whose training was interrupted before the mixture was started is not trained.

    Raises
    ------
    DataError, TypeError
        If the cells cannot be used (:meth:`pyro_scale.data.CountMatrix.from_anndata`).
    ValueError
        If an argument is out of range or a name is unknown.

    References
    ----------
    Xiong et al. 2019, *SCALE method for single-cell ATAC-seq analysis via latent feature
    extraction*, Nature Communications 10:4576, doi:10.1038/s41467-019-12630-7.

    Examples
    --------
    >>> adata = ps.simulate(n_cells=60, n_peaks=200, n_clusters=2, density=0.1, seed=0)
    >>> model = ps.SCALE(adata, n_components=2, n_latent=2, hidden=(16,))
    >>> model.train(max_epochs=4, progress_bar=False)
    >>> model.get_latent_representation().shape
    (60, 2)
    """

    config: ModelConfig
    vae: MixtureVAE
    peak_names: pd.Index
    history: pd.DataFrame
    n_components_table: pd.DataFrame
    is_trained: bool
    _counts: CountMatrix
    _training_thread: int | None
    _k_is_open: bool  # whether training is to choose K
    _k_is_chosen: bool  # whether a mixture of the K that was chosen has been trained

    def __init__(
        self,
        adata: AnnData,
        n_components: int | None = None,
        n_latent: int = 10,
        *,
        formulation: str = "collapsed",
        estimator: str | None = None,
        c: Treatment | None = None,
        likelihood: LikelihoodName = "bernoulli",
        preset: Literal["default", "plain"] = "default",
        hidden: tuple[int, ...] | None = None,
        decoder_hidden: tuple[int, ...] = (),
        n_lsi: int = 50,
        layer: str | None = None,
        batch_key: str | None = None,
        seed: int = 0,
    ) -> None:
        self.config = ModelConfig(
            n_components=n_components,
            n_latent=n_latent,
            formulation=formulation,
            estimator=estimator,
            c=c,
            likelihood=likelihood,
            preset=preset,
            hidden=hidden,
            decoder_hidden=decoder_hidden,
            n_lsi=n_lsi,
            layer=layer,
            batch_key=batch_key,
            seed=seed,
        )
        counts = self._read(adata)
        if not self.config.binary:
            warn_of_reads(counts)
        if batch_key is not None:
            self.config = replace(self.config, batches=batch_names(adata, batch_key))
        if (n_components or 1) > counts.n_cells:
            raise ValueError(
                f"n_components={n_components} is more than the {counts.n_cells} cells; choose "
                "at most one component per cell."
            )
        with exclusive(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.config.seed)
            vae = build_vae(counts, self.config)
            REGISTRY.build(vae, formulation)  # adds the parameters of a registered formulation
        self.vae, self._counts = vae.eval(), counts
        self.peak_names, self.history = counts.var_names, pd.DataFrame()
        self.n_components_table = pd.DataFrame()
        self.is_trained, self._training_thread = False, None
        self._k_is_open, self._k_is_chosen = n_components is None, False

    def __repr__(self) -> str:
        state = "trained" if self.is_trained else "untrained"
        state = state if self.history.empty else f"{len(self.history)} epochs"
        objective, k = self.config.objective, self.config.n_components or "to be chosen"
        return (
            f"SCALE({self._counts.n_cells} cells x {self._counts.n_peaks} peaks, "
            f"K={k}, D={self.config.n_latent}, {objective.formulation} by {objective.estimator}, "
            f"{self.config.likelihood}, {state})"
        )

    def train(
        self,
        max_epochs: int | None = None,
        *,
        accelerator: str = "auto",
        devices: int | str = "auto",
        early_stopping: bool = False,
        batch_size: int | None = None,
        progress_bar: bool = True,
        checkpoint: str | Path | None = None,
        checkpoint_seconds: float = 60.0,
        trainer_kwargs: dict[str, Any] | None = None,
        **training_kwargs: Any,
    ) -> None:
        """Train on the cells given at construction, without labels.

        Training starts from Newton sweeps, which fit the decoder and the posteriors of the cells,
        from which the mixture and the encoder are initialized
        (:func:`pyro_scale.training.newton_start`); then everything is trained on the objective by
        Adam. A decoder with hidden layers, and fewer than 20 cells per latent dimension, start
        instead with a warm-up, in which Adam trains encoder and decoder under an N(0, I) prior. A
        call on a trained model goes on from its weights, with a new optimizer.

        After Ctrl-C the model keeps the weights and the history up to then; it is trained if the
        mixture had been started. With ``checkpoint``, repeating an interrupted call resumes it,
        also after a limit of time (``trainer_kwargs={"max_time": ...}``); on the CPU the weights
        are those of an uninterrupted run, bit by bit.

        Parameters
        ----------
        max_epochs
            Number of passes of Adam over the training cells, warm-up included. If None, 75,000
            divided by the number of cells, but at least 5 and at most 20 (30 for
            ``preset="plain"``); with a warm-up, a million divided by the number of cells, but at
            least 50 and at most 300.
        accelerator, devices
            Passed to Lightning's Trainer. ``devices="auto"`` is one device, or the processes that
            torchrun or srun has started, which train one model together.
        early_stopping
            Hold out a tenth of the cells (or the fraction ``validation_size``), stop when their
            ELBO no longer rises, and keep the best weights. Without early stopping, training uses
            all cells for all epochs. This gives better clusters, because the components become
            sharper even after the ELBO of held-out cells has begun to fall.
        batch_size
            Cells per minibatch. If None, 128, or 512 for ten thousand cells or more.
        progress_bar
            Whether to show a progress bar.
        checkpoint
            File for the state of training. If it exists when training starts, training resumes
            from it. It is replaced atomically: a killed process leaves the last complete one.
        checkpoint_seconds
            Minimum time in seconds between two checkpoints. A checkpoint is written at the end of
            an epoch if this time has passed, and always after the last epoch.
        trainer_kwargs
            Further keyword arguments of Lightning's Trainer.
        training_kwargs
            Further settings of :class:`pyro_scale.training.TrainingConfig`: ``newton_sweeps``,
            ``warmup_epochs``, ``kl_warmup_epochs``, ``lr``, ``decoder_precision``, ``mask_rate``,
            ``gradient_clip``, ``validation_size``, ``patience``, ``n_particles``,
            ``max_nan_retries``, ``seed``.

        Raises
        ------
        CheckpointError
            If the checkpoint belongs to other cells or settings, or the file is not a checkpoint.
        NonFiniteError
            If the loss or its gradient is not finite.

        Examples
        --------
        >>> model.train(max_epochs=3, batch_size=20, lr=1e-3, progress_bar=False)
        >>> model.history.shape
        (3, 4)
        """
        from pyro_scale.training.callbacks import goes_on  # here: Lightning is slow to import
        from pyro_scale.training.trainer import fit

        if checkpoint is not None:
            checkpoint = validation.check_path("checkpoint", checkpoint).resolve()
            if not checkpoint.parent.is_dir():
                raise FileNotFoundError(
                    f"checkpoint={str(checkpoint)!r}: {checkpoint.parent} is not a folder."
                )
        resumes = checkpoint is not None and checkpoint.exists()
        progress = TrainingProgress()
        with exclusive(), self._in_training():
            # A run that is repeated to resume has the defaults of its first call.
            is_trained = goes_on(checkpoint) if checkpoint and resumes else self.is_trained
            config = self._training_config(
                is_trained,
                max_epochs=max_epochs,
                early_stopping=early_stopping,
                batch_size=batch_size,
                **training_kwargs,
            )
            try:
                fit(
                    self.vae,
                    self._counts,
                    self.config.objective,
                    config,
                    accelerator=accelerator,
                    devices=devices,
                    progress_bar=progress_bar,
                    choose_k=self._chooses_k(config, resumes=resumes),
                    trainer_kwargs=trainer_kwargs,
                    progress=progress,
                    checkpoint=checkpoint,
                    checkpoint_seconds=checkpoint_seconds,
                )
            finally:  # after an interruption, too, the history must describe the weights
                if progress.epochs:
                    self.history = pd.DataFrame(progress.epochs).set_index("epoch")
                    self.is_trained = progress.mixture_started
                    if progress.n_components_table:
                        self.n_components_table = _table(progress.n_components_table)
                    if progress.mixture_started:  # K may have been chosen
                        self.config = replace(self.config, n_components=self.vae.n_components)
                        trained = len(progress.epochs) > config.n_warmup
                        self._k_is_chosen = self._k_is_chosen or trained

    def set_n_components(self, n_components: int) -> None:
        """Replace the mixture by one of another number of components, K.

        The new mixture is initialized from clusters of the cells' posterior means
        (:func:`pyro_scale.training.components_from_means`). Encoder and decoder are not changed, so
        that the latent representation remains the same. :meth:`train` then goes on from there, in
        a few epochs. Clusters can be read before, except those of a classifier
        (``formulation="amortized"``), which is initialized anew.

        Parameters
        ----------
        n_components
            K, at most the number of cells; :attr:`n_components_table` helps to choose it.

        Raises
        ------
        NotTrainedError
            If the model is not trained.

        Examples
        --------
        >>> model.set_n_components(3)
        >>> model.train(max_epochs=2, progress_bar=False)
        >>> model.get_responsibilities().shape
        (40, 3)
        """
        validation.check_int("n_components", n_components)
        counts = self._trained_counts(None)
        if n_components > counts.n_cells:
            raise ValueError(
                f"n_components={n_components} is more than the {counts.n_cells} cells; choose "
                "at most one component per cell."
            )
        with exclusive(), self._in_training():
            loc_nd, var_nd = moments(self.vae, counts)
            start = components_from_means(loc_nd, var_nd, n_components, self.config.seed)
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(self.config.seed)
                self.vae.prior.resize(n_components)
                if self.vae.classifier is not None:
                    self.vae.add_classifier()
            self.vae.prior.set_components(*start)
            self.config = replace(self.config, n_components=n_components)
            self._k_is_open = False

    def _training_config(self, is_trained: bool, **settings: Any) -> TrainingConfig:
        """Return the settings of a training, and log why there are no Newton sweeps."""
        n_cells = self._counts.n_cells
        reason = None if is_trained else reason_against_sweeps(self.vae, n_cells)
        config = TrainingConfig.for_dataset(
            n_cells,
            plain=self.config.plain,
            with_sweeps=reason is None,
            is_trained=is_trained,
            **{"seed": self.config.seed, **settings},
        )
        if reason is not None and config.newton_sweeps == 0:
            logger.info(
                "training starts with a warm-up of %d epochs and without Newton sweeps, because %s",
                config.n_warmup,
                reason,
            )
        return config

    def _chooses_k(self, config: TrainingConfig, *, resumes: bool) -> bool:
        """Return whether training is to choose K: if it is open, and not chosen or not for good.

        A training that resumes is the one that chooses K, or has chosen it.
        """
        if not self._k_is_open or resumes:
            return self._k_is_open
        has_k = self.config.n_components is not None and config.n_warmup == 0
        return not (self._k_is_chosen or has_k)

    @contextmanager
    def _in_training(self) -> Iterator[None]:
        """Mark the model as being trained by this thread; other threads get a BusyError."""
        before, self._training_thread = self._training_thread, threading.get_ident()
        try:
            yield
        finally:
            self._training_thread = before

    def _check_not_training(self) -> None:
        if self._training_thread not in (None, threading.get_ident()):
            raise BusyError(
                "this model is being trained by another thread: wait until its train() is done, or "
                "use a copy of the model that was saved before."
            )

    def _trained_counts(self, adata: AnnData | None) -> CountMatrix:
        """Return the counts of ``adata``; raise if the model is untrained or is being trained."""
        if not self.is_trained:
            stopped = (
                f": training was stopped after {len(self.history)} epochs, within its warm-up, "
                "before the mixture was started"
            )
            raise NotTrainedError(
                f"the model is not trained{'' if self.history.empty else stopped}: call "
                f"model.train(){' first' if self.history.empty else ' again'}."
            )
        self._check_not_training()
        return self.counts(adata)

    def _posterior(
        self, adata: AnnData | None, *, batch_size: int = 512, seed: int = 0
    ) -> Posterior:
        counts = self._trained_counts(adata)
        formulation = REGISTRY.formulation(self.config.formulation)
        return Posterior(self.vae, counts, formulation, batch_size=batch_size, seed=seed)

    def _read(self, adata: AnnData) -> CountMatrix:
        """Validate the cells and read them with the layer, likelihood and batches of the model."""
        return CountMatrix.from_anndata(
            adata,
            layer=self.config.layer,
            binary=self.config.binary,
            batch_key=self.config.batch_key,
            batches=self.config.batches,
        )

    def counts(self, adata: AnnData | None = None) -> CountMatrix:
        """Return the cells of ``adata``, validated, with the peaks in the order of the model.

        If ``adata`` is None, return the cells that the model was constructed with.

        Returns
        -------
        CountMatrix
            The counts ``x``, shape ``(n_cells, n_peaks)``, with the names of cells and peaks.

        Raises
        ------
        DataError
            If a peak of the model is missing from ``adata``.

        Examples
        --------
        >>> model.counts().x.shape
        (40, 60)
        """
        if adata is None:
            return self._counts
        named = isinstance(adata, AnnData) and adata.var_names.is_unique  # else _read raises
        if named and not adata.var_names.equals(self.peak_names):
            missing = self.peak_names.difference(adata.var_names)
            if len(missing):
                advice = style_advice(self.peak_names, adata.var_names) or (
                    "Give cells with the same peaks, or fill them with "
                    "pyro_scale.preprocessing.match_peaks(adata, model.peak_names)."
                )
                raise DataError(
                    f"{len(missing)} of the model's {len(self.peak_names)} peaks are not in the "
                    f"AnnData (the first is {missing[0]!r}, and its first is "
                    f"{adata.var_names[0] if adata.n_vars else None!r}). {advice}"
                )
            if not is_on_disk(adata):
                layer = self.config.layer
                x = adata.X if layer is None else adata.layers.get(layer)
                validation.check_matrix(x, "the matrix")
            extra = adata.n_vars - len(self.peak_names)
            logger.info("peaks matched by name: reordered, %d others left out.", extra)
            at = adata.var_names.get_indexer(self.peak_names)
            adata = view(adata, slice(None), at)
        return self._read(adata)

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        *,
        give_mean: bool = True,
        batch_size: int = 512,
        seed: int = 0,
    ) -> NDArray[np.float32]:
        """Return the latent representation z of each cell, shape ``(n_cells, n_latent)``.

        Rows are in the order of ``obs_names``.

        Parameters
        ----------
        adata
            The cells; None for the training cells.
        give_mean
            Return the mean of q(z|x); if False, one draw from q(z|x).
        batch_size
            Number of cells that are evaluated at a time.
        seed
            Seed of the random number generator that draws z, if ``give_mean`` is False. The draw
            of a cell depends only on the seed and the cell's name.

        Examples
        --------
        >>> model.get_latent_representation().shape
        (40, 3)
        """
        posterior = self._posterior(adata, batch_size=batch_size, seed=seed)
        return posterior.latent(give_mean=give_mean)

    def get_responsibilities(
        self,
        adata: AnnData | None = None,
        *,
        kind: Kind | None = None,
        n_samples: int = 100,
        batch_size: int = 512,
        seed: int = 0,
    ) -> NDArray[np.float32]:
        """Return q(c|x), the component probabilities, shape ``(n_cells, n_components)``.

        Parameters
        ----------
        adata
            The cells; None for the training cells.
        kind
            Which q(c|x) to return. ``"averaged"``: gbar = E_q(z|x)[p(c|z)], estimated from draws
            of z. ``"optimal"``: g*, which maximizes the ELBO among those q(c|x) that are
            independent of z. ``"at_mean"``: p(c|z) at the mean of q(z|x). ``"amortized"``: the
            output of the classifier network. If None, the q(c|x) that belongs to the model's
            formulation.
        n_samples
            Number of draws of z per cell over which q(c|x) is averaged, if it is an average.
        batch_size
            Number of cells that are evaluated at a time.
        seed
            Seed of the random number generator that draws z. The draws of a cell depend only on
            the seed and the cell's name.

        Examples
        --------
        >>> model.get_responsibilities(kind="optimal").shape
        (40, 2)
        """
        posterior = self._posterior(adata, batch_size=batch_size, seed=seed)
        return posterior.responsibilities(kind, n_samples=n_samples)

    def get_cluster_assignments(
        self,
        adata: AnnData | None = None,
        *,
        kind: Kind | None = None,
        n_samples: int = 100,
        batch_size: int = 512,
        seed: int = 0,
    ) -> pd.Series:
        """Return the most probable component of each cell, a categorical Series over obs_names.

        The categories are ``"0"`` to ``"K-1"``, including components without cells.

        Parameters
        ----------
        adata
            The cells; None for the training cells.
        kind, n_samples, batch_size, seed
            As in :meth:`get_responsibilities`.

        Examples
        --------
        >>> clusters = model.get_cluster_assignments()
        >>> clusters.shape, clusters.cat.categories.tolist()
        ((40,), ['0', '1'])
        """
        posterior = self._posterior(adata, batch_size=batch_size, seed=seed)
        return posterior.clusters(posterior.responsibilities(kind, n_samples=n_samples))

    def get_elbo(
        self,
        adata: AnnData | None = None,
        *,
        bound: str | None = None,
        n_mc_samples: int = 20,
        batch_size: int = 256,
        seed: int = 0,
    ) -> pd.Series:
        """Return a lower bound of log p(x) per cell, in nats, as a Series named after the bound.

        Parameters
        ----------
        adata
            The cells; None for the training cells.
        bound
            Name of the bound, a closed form in :data:`pyro_scale.objectives.CLOSED_FORMS`:
            ``"collapsed"``, the bound with c summed out; ``"mean_field"``, the bound with the
            optimal q(c|x) among those independent of z; ``"amortized"``, the bound with the
            classifier's q(c|x); ``"scale"``, minus the loss of SCALE; or another. If None, the
            bound that the model is trained with.
        n_mc_samples
            Number of draws of z per cell over which the bound is averaged.
        batch_size
            Number of cells that are evaluated at a time.
        seed
            Seed of the random number generator that draws z. The draws of a cell depend only on
            the seed and the cell's name.

        Examples
        --------
        >>> elbo = model.get_elbo(bound="scale", n_mc_samples=5)
        >>> elbo.shape, elbo.name
        ((40,), 'scale')
        """
        posterior = self._posterior(adata, batch_size=batch_size, seed=seed)
        name = self.config.objective.closed_form if bound is None else bound
        return posterior.bound(name, n_samples=n_mc_samples)

    def get_marginal_ll(
        self,
        adata: AnnData | None = None,
        *,
        n_mc_samples: int = 1000,
        batch_size: int = 64,
        seed: int = 0,
    ) -> pd.Series:
        """Return an importance-weighted estimate of log p(x) per cell, in nats.

        The estimate is ``log mean_s p(x, z_s) / q(z_s|x)`` over ``n_mc_samples`` draws z_s from
        q(z|x). Its expectation is a lower bound of log p(x) (Burda et al. 2016).

        Parameters
        ----------
        adata
            The cells; None for the training cells.
        n_mc_samples
            Number of draws of z per cell.
        batch_size
            Number of cells that are evaluated at a time.
        seed
            Seed of the random number generator that draws z. The draws of a cell depend only on
            the seed and the cell's name.

        Examples
        --------
        >>> model.get_marginal_ll(n_mc_samples=20).shape
        (40,)
        """
        posterior = self._posterior(adata, batch_size=batch_size, seed=seed)
        return posterior.bound("importance_weighted", n_samples=n_mc_samples)

    def get_pareto_k(
        self,
        adata: AnnData | None = None,
        *,
        n_samples: int = 1000,
        batch_size: int = 64,
        seed: int = 0,
    ) -> pd.Series:
        """Return the Pareto k-hat of each cell's importance weights, a diagnostic of q(z|x).

        If k-hat of a cell is above 0.7, q(z|x) misses part of the true posterior p(z|x), and the
        cell's :meth:`get_marginal_ll` is not reliable
        (:func:`pyro_scale.analysis.diagnostics.pareto_k`).

        Parameters
        ----------
        adata
            The cells; None for the training cells.
        n_samples
            Number of draws of z per cell, at least 25; with 1000 the standard error of k-hat is
            0.11 to 0.15.
        batch_size
            Number of cells that are evaluated at a time.
        seed
            Seed of the random number generator that draws z. The draws of a cell depend only on
            the seed and the cell's name.

        Examples
        --------
        >>> model.get_pareto_k(n_samples=50).shape
        (40,)
        """
        posterior = self._posterior(adata, batch_size=batch_size, seed=seed)
        return posterior.pareto_k(n_samples=n_samples)

    def get_normalized_accessibility(
        self,
        adata: AnnData | None = None,
        *,
        peaks: Sequence[str] | None = None,
        depth: Depth = "typical",
    ) -> pd.DataFrame:
        """Return the expected accessibility, cells x peaks: probabilities, or Poisson rates.

        This is the mean of p(x|z), with z at the mean of q(z|x).

        Parameters
        ----------
        adata
            The cells; None for the training cells.
        peaks
            Names of the peaks to return; None for all.
        depth
            Sequencing depth at which accessibility is computed. ``"typical"``: the same depth for
            all cells, which is the depth with the mean log depth of the training cells or, with
            the Poisson likelihood, the mean depth of the cells given here. ``"observed"``: each
            cell's own depth. The plain Bernoulli model does not depend on depth.

        Raises
        ------
        ValueError
            If a name is not a peak of the model, or the result would take more than 2 GiB
            (:meth:`impute` writes it to a file instead).

        Examples
        --------
        >>> model.get_normalized_accessibility(peaks=adata.var_names[:5]).shape
        (40, 5)
        """
        counts = self._trained_counts(adata)
        return inference.normalized_accessibility(self.vae, counts, peaks=peaks, depth=depth)

    def differential_accessibility(
        self,
        adata: AnnData | None = None,
        groupby: str | Sequence[object] | None = None,
        group1: str | Sequence[str] | None = None,
        group2: str | None = None,
        *,
        idx1: ArrayLike | None = None,
        idx2: ArrayLike | None = None,
        mode: Mode = "change",
        delta: float = 0.05,
        fdr_target: float = 0.05,
        n_samples: int = 5000,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Test every peak for differential accessibility between groups of cells, as in PeakVI.

        The test draws random pairs of one cell from either group, draws z of each cell from
        q(z|x), and compares the expected accessibility E[x|z] of the two cells at the same
        (typical) depth.

        Parameters
        ----------
        adata
            The cells; None for the training cells.
        groupby
            Column of ``adata.obs``, or one label per cell (such as
            :meth:`get_cluster_assignments`). If ``groupby`` and ``idx1`` are None, the groups are
            the clusters of the mixture.
        group1
            Label of the first group. Several labels are compared one after the other; None for
            every label.
        group2
            Label of the second group; None for all other cells.
        idx1, idx2
            Boolean masks or positions of the cells of two groups, instead of ``groupby``;
            ``idx2=None`` stands for all other cells.
        mode
            Definition of ``prob_da``: with ``"change"``, the probability that accessibility
            differs by ``delta`` or more; with ``"vanilla"``, the probability that it is larger in
            the first group.
        delta
            Smallest difference in accessibility that counts as a change.
        fdr_target
            Largest expected fraction of false discoveries among the peaks with ``is_da_fdr``.
        n_samples
            Number of random pairs of cells, at most a million.
        seed
            Seed of the random number generators that choose the pairs of cells and draw z.

        Returns
        -------
        DataFrame
            One row per peak, with the columns ``prob_da``, the probability of differential
            accessibility; ``is_da_fdr``, whether the peak is among those selected at
            ``fdr_target``; ``bayes_factor``, the log odds of ``prob_da``; ``est_prob1`` and
            ``est_prob2``, the mean expected accessibility in each group, and ``effect_size``,
            ``est_prob2 - est_prob1``; ``emp_prob1`` and ``emp_prob2``, the fraction of cells in
            each group in which the peak is open, and ``emp_effect``, ``emp_prob2 - emp_prob1``.
            If groups are given by label, the columns ``comparison``, ``group1`` and ``group2``
            name the two groups, and the rows of the comparisons follow one another.

        References
        ----------
        Ashuach et al. 2022, *PeakVI*, doi:10.1016/j.crmeth.2022.100182; Boyeau et al. 2019,
        doi:10.1101/794289.

        Examples
        --------
        >>> found = model.differential_accessibility(adata, "cell_type", "type_1", n_samples=9)
        >>> found.shape, found["comparison"].iloc[0]
        ((60, 12), 'type_1 vs rest')
        """
        posterior = self._posterior(adata)
        if groupby is None and idx1 is None:
            groupby = list(posterior.clusters(posterior.responsibilities()))
        return inference.differential_accessibility(
            self.vae,
            posterior.counts,
            obs=None if adata is None else adata.obs,
            groupby=groupby,
            group1=group1,
            group2=group2,
            idx1=idx1,
            idx2=idx2,
            mode=mode,
            delta=delta,
            fdr_target=fdr_target,
            n_samples=n_samples,
            seed=seed,
        )

    def get_decoder_weights(self) -> pd.DataFrame:
        """Return the decoder's weights, peaks x latent dimensions.

        A weight is the change of the peak's linear predictor (its logit, for Bernoulli) with the
        latent dimension.

        Raises
        ------
        ValueError
            If the decoder has hidden layers. Only a linear decoder has one weight per peak and
            latent dimension.

        Examples
        --------
        >>> model.get_decoder_weights().shape
        (60, 3)
        """
        return inference.decoder_weights(self.vae, self.peak_names)

    def get_peaks_by_dimension(
        self, *, kind: Literal["both", "pos", "neg"] = "both", cutoff: float = 2.5
    ) -> dict[str, pd.Index]:
        """Return, for each latent dimension, the peaks whose decoder weight is an outlier.

        The rule is that of SCALE: a peak is selected if its weight lies more than ``cutoff``
        standard deviations from the mean weight of the dimension.

        Parameters
        ----------
        kind
            Which deviations are selected: those above the mean (``"pos"``), those below the mean
            (``"neg"``), or ``"both"``.
        cutoff
            Smallest deviation from the mean weight, in standard deviations.

        Examples
        --------
        >>> list(model.get_peaks_by_dimension(cutoff=2.0))
        ['0', '1', '2']
        """
        return inference.peaks_by_dimension(self.get_decoder_weights(), kind=kind, cutoff=cutoff)

    def to_anndata(
        self, adata: AnnData | None = None, *, imputed: bool = False, binary: bool = False
    ) -> AnnData:
        """Return a copy of ``adata`` with the results.

        The results are the mean of q(z|x) in ``obsm["X_scale"]``, q(c|x) in
        ``obsm["scale_responsibilities"]``, the most probable component in
        ``obs["scale_cluster"]``, and the configuration, versions and seed in ``uns["scale"]``.

        Parameters
        ----------
        adata
            The cells. If None, the result has the names and counts of the training cells but none
            of their other annotations; counts that are on disk are not copied.
        imputed
            Add ``layers["scale_imputed"]``, the expected accessibility at each cell's own depth.
            The matrix is dense; if it would take more than 2 GiB, an error is raised, and
            :meth:`impute` can write it to a file instead.
        binary
            Add ``layers["scale_imputed_binary"]``, the sparse matrix that
            :meth:`get_binary_accessibility` returns.

        Examples
        --------
        >>> result = model.to_anndata(adata)
        >>> result.obsm["X_scale"].shape, result.obs["scale_cluster"].shape
        ((40, 3), (40,))
        """
        posterior = self._posterior(adata)
        uns = serialization.description(self.config)
        return inference.annotate(posterior, adata, uns, imputed=imputed, binary=binary)

    def to_datatree(
        self,
        adata: AnnData | None = None,
        *,
        n_cells: int | None = 200,
        n_samples: int = 100,
        n_peaks: int | None = 1000,
        predictive: bool = True,
        seed: int = 0,
    ) -> DataTree:
        """Return draws from the variational posterior and the predicted data, as an ArviZ DataTree.

        The coordinates of ``cell`` and ``peak`` are the names in obs and var; ``latent`` and
        ``component`` count from zero. The draws are independent. R-hat and the effective sample
        size, which diagnose Markov chains, are therefore not informative; the Pareto k-hat of
        ``log_weight`` shows how well q(z|x) approximates p(z|x).

        Parameters
        ----------
        adata
            The cells; None for the training cells.
        n_cells, n_peaks
            Largest number of cells, and largest number of peaks in ``accessibility``. If the data
            have more, a random subset is used, in the original order; None for all. The
            ``attrs`` of the DataTree state how many cells and peaks were used.
        n_samples
            Number of draws per cell.
        predictive
            Whether to draw data from p(x|z) too. This takes ``n_samples`` x cells x peaks random
            numbers, which are drawn in blocks; only the statistics of the draws are kept.
        seed
            Seed of the random number generators that choose the cells and peaks and draw z, c and
            the data.

        Returns
        -------
        DataTree
            Four groups; the dimensions of each variable are given in parentheses.
            ``posterior``: draws ``z`` from q(z|x) (chain, draw, cell, latent); draws of the
            component ``c`` (chain, draw, cell); and ``q_c``, the probabilities from which c was
            drawn (chain, draw, cell, component). These are q(c|x) or, where the formulation makes
            c depend on z or on an auxiliary draw from q(z|x), q(c|.) at that draw.
            ``sample_stats``: ``log_weight`` = log p(x, z) - log q(z|x) (chain, draw, cell), in
            nats, with c summed out.
            ``posterior_predictive``: ``n_open`` (chain, draw, cell), the number of open peaks of a
            cell, and ``accessibility`` (chain, draw, peak), the mean of x over the cells. The data
            are drawn at the depth and batch of each cell.
            ``observed_data``: the same statistics of the data.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        ValueError
            If ``n_cells``, ``n_peaks`` or ``n_samples`` is less than one.

        References
        ----------
        The groups follow the InferenceData schema, https://python.arviz.org.

        Examples
        --------
        >>> tree = model.to_datatree(n_cells=20, n_samples=50)
        >>> dict(tree["posterior"].sizes)
        {'chain': 1, 'draw': 50, 'cell': 20, 'latent': 3, 'component': 2}
        """
        posterior = self._posterior(adata, seed=seed)
        return inference.to_datatree(
            posterior,
            n_cells=n_cells,
            n_samples=n_samples,
            n_peaks=n_peaks,
            predictive=predictive,
        )

    def get_binary_accessibility(
        self, adata: AnnData | None = None, *, depth: Depth = "observed"
    ) -> sparse.csr_matrix:
        """Return imputed accessibility as a 0/1 CSR matrix, int8, shape ``(n_cells, n_peaks)``.

        An entry is 1 where the expected accessibility exceeds both the observed mean of the cell
        and the observed mean of the peak, as in SCALE.

        Parameters
        ----------
        adata
            The cells; None for the training cells.
        depth
            Depth of the expected accessibility, as in :meth:`get_normalized_accessibility`.

        Examples
        --------
        >>> model.get_binary_accessibility().shape
        (40, 60)
        """
        counts = self._trained_counts(adata)
        return inference.binary_accessibility(self.vae, counts, depth)

    def impute(
        self,
        path: str | Path,
        adata: AnnData | None = None,
        *,
        binary: bool = False,
        dtype: StoredDtype = "float16",
        depth: Depth = "observed",
        overwrite: bool = False,
    ) -> None:
        """Write expected accessibility of every cell and peak to a ``.zarr`` or ``.h5ad`` file.

        Cells are decoded a few at a time, so memory does not grow with their number. The file is
        an AnnData with the names of the cells and peaks; read it with ``anndata.read_zarr(path)``
        or ``anndata.read_h5ad(path)``, with ``backed="r"`` if it is larger than memory. The write
        is atomic.

        Parameters
        ----------
        path
            Path of the file, which ends in ``.zarr`` or ``.h5ad``.
        adata
            The cells; None for the training cells.
        binary
            Write the sparse 0/1 matrix that :meth:`get_binary_accessibility` returns.
        dtype
            Data type of X in the file: ``"float32"``, ``"float16"`` or ``"uint8"``. With
            ``"uint8"``, X is 255 times the probability, rounded, and
            ``uns["scale_imputed"]["divide_by"]`` is 255.
        depth
            Depth of the expected accessibility, as in :meth:`get_normalized_accessibility`.
        overwrite
            Replace an existing file.

        Raises
        ------
        OSError
            If the disk has too little space. Nothing is written then.
        FileExistsError
            If ``path`` exists and ``overwrite`` is false.

        Examples
        --------
        >>> import tempfile, anndata
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.impute(f"{folder}/imputed.h5ad")
        ...     anndata.read_h5ad(f"{folder}/imputed.h5ad").shape
        (40, 60)
        """
        inference.write_imputed(
            validation.check_path("path", path),
            self.vae,
            self._trained_counts(adata),
            obs=None if adata is None else adata.obs,
            uns={"scale": serialization.description(self.config)},
            binary=binary,
            dtype=dtype,
            depth=depth,
            overwrite=overwrite,
        )

    def save(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Save weights (safetensors), configuration, peaks and history (JSON) to a folder.

        Parameters
        ----------
        directory
            Folder to write to; it is created if it does not exist.
        overwrite
            Replace a model that is in the folder.

        Raises
        ------
        FileExistsError
            If the folder is not empty and ``overwrite`` is False, or it contains files that are
            not part of a saved model.
        BusyError
            If another thread is training the model.

        Examples
        --------
        >>> import os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(f"{folder}/model")
        ...     sorted(os.listdir(f"{folder}/model"))
        ['model.json', 'weights.safetensors']
        """
        self._check_not_training()
        state = ModelState(
            self.config,
            self.vae,
            self.peak_names,
            self.history,
            self.is_trained,
            self.n_components_table,
        )
        serialization.save(
            validation.check_path("directory", directory), state, overwrite=overwrite
        )

    @classmethod
    def load(
        cls, directory: str | Path, adata: AnnData, *, map_location: str | torch.device = "cpu"
    ) -> Self:
        """Load a model that :meth:`save` wrote, with the cells of ``adata``.

        Parameters
        ----------
        directory
            Folder of the saved model.
        adata
            Cells x peaks, with at least the model's peaks.
        map_location
            Device on which the model is evaluated. The files store no device, so a model that was
            trained and saved on a GPU can be loaded on any device.

        Raises
        ------
        ModelFileError
            If the folder does not contain a model that this version can read.
        DataError
            If ``adata`` lacks peaks of the model.
        ValueError
            If the device is not available.

        Examples
        --------
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(folder)
        ...     ps.SCALE.load(folder, adata)
        SCALE(40 cells x 60 peaks, K=2, D=3, collapsed by Trace_ELBO, bernoulli, 2 epochs)
        """
        _check_cells(adata, "load")
        device = validation.check_device("map_location", map_location)
        with torch.inference_mode(mode=False):  # whose tensors cannot be trained
            state = serialization.load(validation.check_path("directory", directory))
            return cls._from_state(state, adata, device)

    @classmethod
    def from_original(
        cls,
        path: str | Path,
        adata: AnnData,
        *,
        layer: str | None = None,
        map_location: str | torch.device = "cpu",
    ) -> Self:
        """Load a ``model.pt`` of the published SCALE, with its training cells or other cells.

        The latent means are those of SCALE's encoder. The file has no peak names, so ``adata``
        must have the peaks that SCALE was trained on, in the same order. Counts are set to 0/1,
        as in SCALE.

        Parameters
        ----------
        path
            Path of ``model.pt``. Only tensors are read from it; code in it is not executed.
        adata
            Cells x peaks, with the peaks that SCALE kept (its ``adata.h5ad``).
        layer
            Layer of ``adata`` to read instead of ``adata.X``.
        map_location
            Device for the model, as in :meth:`load`.

        Raises
        ------
        ModelFileError
            If the file does not contain a SCALE model.
        DataError
            If ``adata`` has another number of peaks than the model.
        ValueError
            If the device is not available.

        Examples
        --------
        >>> import tempfile, torch
        >>> shapes = {"pi": (2,), "mu_c": (3, 2), "var_c": (3, 2)}
        >>> layers = {"encoder.hidden.0": (8, 60), "decoder.reconstruction": (60, 3)}
        >>> layers |= {"encoder.sample.mu": (3, 8), "encoder.sample.log_var": (3, 8)}
        >>> for layer, shape in layers.items():
        ...     shapes |= {f"{layer}.weight": shape, f"{layer}.bias": shape[:1]}
        >>> weights = {name: torch.full(shape, 0.5) for name, shape in shapes.items()}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(weights, f"{folder}/model.pt")  # as SCALE writes it
        ...     model = ps.SCALE.from_original(f"{folder}/model.pt", adata)
        >>> model.get_latent_representation().shape
        (40, 3)
        """
        _check_cells(adata, "from_original")
        device = validation.check_device("map_location", map_location)
        path = validation.check_path("path", path)
        with torch.inference_mode(mode=False):  # whose tensors cannot be trained
            state = serialization.load_original(path, adata, layer=layer)
            model = cls._from_state(state, adata, device)
        try:
            model.get_latent_representation()
        except NonFiniteError as error:
            raise ModelFileError(f"{path}: its training failed: {error}") from error
        return model

    @classmethod
    def _from_state(cls, state: ModelState, adata: AnnData, device: torch.device) -> Self:
        """Build a model from a loaded state and the cells of ``adata``."""
        model = cls.__new__(cls)
        model.config, model.peak_names = state.config, state.peak_names
        model._counts = model.counts(adata)
        model.vae, model.history = state.vae.to(device).eval(), state.history
        model.n_components_table = state.n_components_table
        model.is_trained, model._training_thread = state.is_trained, None
        model._k_is_open, model._k_is_chosen = state.config.n_components is None, False
        return model


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows).set_index("n_components")


def _check_cells(adata: AnnData, method: str) -> None:
    """Raise TypeError if no cells are given, as scvi-tools allows for models saved with them."""
    if adata is None:
        raise TypeError(
            f"{method} needs the cells: a saved model holds none. Give an AnnData of cells x "
            "peaks, such as that which the model was trained on."
        )
    validation.check_adata(adata)
