"""The class SCALE: the verbs a user calls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from anndata import AnnData

from pyro_scale import checks
from pyro_scale.configuration import Configuration
from pyro_scale.data import batch_names
from pyro_scale.one_at_a_time import one_at_a_time
from pyro_scale.programs import LikelihoodName, Treatment
from pyro_scale.stored import StoredModel
from pyro_scale.training import TrainingPlan, build_vae

__all__ = ["SCALE"]


class SCALE(StoredModel):
    """A variational auto-encoder with a Gaussian-mixture prior, for single-cell ATAC-seq.

    Parameters
    ----------
    adata
        Cells x peaks, counts or binary, sparse or dense. It is read, never changed.
    n_components
        K, the number of mixture components (cell clusters); at most the number of cells. None:
        ``train`` chooses it, by the modularity of clusters of the encoder's means
        (:func:`pyro_scale.training.choose_n_components`).
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
        ``"default"``: the encoder reads latent semantic indexing, layer normalisation, a depth
        term in the Bernoulli likelihood.
        ``"plain"``: none of these, the model of the paper.
    hidden, decoder_hidden
        Widths of the hidden layers. None: (128,) on LSI, and SCALE's (1024, 128) in the plain
        model; the decoder is linear, as SCALE's.
    n_lsi
        Directions of the latent semantic indexing that the default encoder reads.
    layer
        Read ``adata.layers[layer]`` instead of ``adata.X``.
    batch_key
        Column of ``adata.obs`` that names each cell's batch. The decoder is conditioned on it,
        in the programs and in the closed forms, so that z need not tell batches apart.
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
            n_lsi,
            layer,
            batch_key,
            None,
            seed,
        )
        counts = self._read(adata)
        if batch_key is not None:
            self.configuration = replace(self.configuration, batches=batch_names(adata, batch_key))
        if (n_components or 1) > counts.n_cells:
            raise ValueError(
                f"n_components={n_components} is more than the {counts.n_cells} cells; choose "
                "at most one component per cell."
            )
        with one_at_a_time(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.configuration.seed)
            vae = build_vae(
                counts,
                self.configuration.n_components or 1,
                self.configuration.n_latent,
                hidden=self.configuration.hidden or (),
                decoder_hidden=self.configuration.decoder_hidden,
                likelihood=likelihood,
                plain=self.configuration.plain,
                classifier=formulation == "amortized",
                n_batches=self.configuration.n_batches,
                n_lsi=self.configuration.n_lsi,
                seed=self.configuration.seed,
            )
        self._set(vae.eval(), counts, history=pd.DataFrame())

    def __repr__(self) -> str:
        state = f"{len(self.history)} epochs" if self.is_trained else "untrained"
        row, k = self.configuration.row, self.configuration.n_components or "to be chosen"
        return (
            f"SCALE({self._counts.n_cells} cells x {self._counts.n_peaks} peaks, "
            f"K={k}, D={self.configuration.n_latent}, "
            f"{row.formulation} by {row.estimator}, {self.configuration.likelihood}, {state})"
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
        **plan_kwargs: Any,
    ) -> None:
        """Train on the cells given at construction, without labels.

        First the encoder and decoder under an N(0, I) prior, then the mixture, started from
        a clustering of the encoder's means. Trains anew each time from the present weights.
        Ctrl-C leaves a model with the weights and the history up to then. With ``checkpoint``, what
        was killed goes on when the same call is made again, and on the CPU ends with the weights it
        would have had.

        Parameters
        ----------
        max_epochs
            Passes over the training cells, warm-up included. None: a million divided by the
            number of cells, but at least 50 and at most 300.
        accelerator, devices, trainer_kwargs
            As Lightning's Trainer.
        early_stopping
            Hold out a tenth of the cells (or ``validation_size``), stop when their bound no
            longer rises, and keep the best weights. Otherwise training runs to its end on all
            cells, which clusters better: components go on sharpening after that bound peaks.
        batch_size
            Cells per step. None: 128, or 512 from ten thousand cells on.
        progress_bar
            Show one.
        checkpoint, checkpoint_seconds
            A file that the state of training is kept in after an epoch, if so many seconds have
            passed since the last time, and after the last epoch. If it is there when training
            starts, training goes on from it. It is replaced whole: a killed process leaves the
            last good one.
        plan_kwargs
            Further settings of :class:`pyro_scale.training.TrainingPlan`: ``warmup_epochs``,
            ``kl_warmup_epochs``, ``lr``, ``decoder_precision``, ``hidden_share``,
            ``gradient_clip``, ``validation_size``, ``patience``, ``n_particles``, ``back_offs``,
            ``seed``.

        Raises
        ------
        CheckpointError
            If the checkpoint is of other cells or settings, or not one.
        NonFiniteError
            If the loss or its gradient is no longer a number.

        Examples
        --------
        >>> import pyro_scale as ps
        >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
        >>> model = ps.SCALE(adata, n_components=2, n_latent=3, hidden=(8,))
        >>> model.train(max_epochs=3, batch_size=20, lr=1e-3, progress_bar=False)
        >>> model.history.shape
        (3, 3)
        """
        plan = TrainingPlan.of(
            self._counts.n_cells,
            plain=self.configuration.plain,
            max_epochs=max_epochs,
            early_stopping=early_stopping,
            batch_size=batch_size,
            **{"seed": self.configuration.seed, **plan_kwargs},
        )
        if checkpoint is not None:
            checkpoint = checks.check_path("checkpoint", checkpoint).resolve()
            if not checkpoint.parent.is_dir():
                raise FileNotFoundError(
                    f"{checkpoint.parent}, for the checkpoint, is not a folder."
                )
        from pyro_scale.training.loop import fit  # here, because Lightning takes long to import

        epochs: list[dict[str, Any]] = []
        try:
            fit(
                self.vae,
                self._counts,
                self.configuration.row,
                plan,
                accelerator=accelerator,
                devices=devices,
                progress_bar=progress_bar,
                choose_k=self.configuration.n_components is None,
                trainer_kwargs=trainer_kwargs,
                history=epochs,
                checkpoint=checkpoint,
                checkpoint_seconds=checkpoint_seconds,
            )
        finally:  # interrupted or not, the history is that of the weights
            if epochs:
                self.history = pd.DataFrame(epochs).set_index("epoch")
            k = self.vae.n_components if epochs else self.configuration.n_components
            if k != 1 or len(epochs) > plan.n_warmup:  # chosen
                self.configuration = replace(self.configuration, n_components=k)
