"""The settings of training, and checks of their values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from pyro_scale._validation import check_bool, check_int, check_number, check_seed

__all__ = ["TrainingConfig", "TrainingProgress", "default_batch_size"]

_MANY_CELLS = 10_000
_SWEEPS = 14


def default_batch_size(n_cells: int) -> int:
    """Return the default number of cells per minibatch: 128, or 512 from 10,000 cells on.

    Most of a training step's cost depends on the number of peaks and not on the number of cells, so
    large minibatches save time. With fewer than 10,000 cells an epoch would have fewer than twenty
    steps of 512 cells, which is too few (``tests/benchmarks/batches.py`` measures the effect on
    quality).

    Parameters
    ----------
    n_cells
        Number of training cells.

    Examples
    --------
    >>> default_batch_size(1_000), default_batch_size(20_000)
    (128, 512)
    """
    return 128 if n_cells < _MANY_CELLS else 512


@dataclass
class TrainingProgress:
    """What training has done so far, which is kept also if it is interrupted.

    Attributes
    ----------
    epochs
        One record per epoch: the rows of the history.
    mixture_started
        Whether the mixture has been initialized, by Newton sweeps or after the warm-up, or training
        goes on from a mixture. Until then it has its random initial parameters.
    n_components_table
        The rows of the table from which the number of components was chosen
        (:class:`pyro_scale.training.ComponentChoice`); none if it was given.

    Examples
    --------
    >>> from pyro_scale.training import fit
    >>> config, progress = TrainingConfig(max_epochs=2, warmup_epochs=1), TrainingProgress()
    >>> _ = fit(
    ...     model.vae,
    ...     counts,
    ...     model.config.objective,
    ...     config,
    ...     progress_bar=False,
    ...     progress=progress,
    ... )
    >>> len(progress.epochs), progress.mixture_started
    (2, True)
    """

    epochs: list[dict[str, Any]] = field(default_factory=list)
    mixture_started: bool = False
    n_components_table: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class TrainingConfig:
    """The settings of one training run.

    Attributes
    ----------
    max_epochs
        Number of passes over the training cells, warm-up included.
    newton_sweeps
        Number of Newton sweeps from which training starts
        (:func:`pyro_scale.training.newton_start`); they replace the weights of decoder, encoder and
        mixture. Zero: training starts from the current weights.
    warmup_epochs
        Number of epochs at the start in which the prior of z is N(0, I) instead of the mixture.
        After them the mixture is initialized from the encoder's means. If None, none after Newton
        sweeps and otherwise three fifths of ``max_epochs``.
    kl_warmup_epochs
        Number of epochs, at the start, over which the weight of the KL terms in the objective rises
        linearly to one. If None, zero without a warm-up, and otherwise 20, or a third of
        ``max_epochs`` if that is less.
    batch_size
        Number of cells per minibatch.
    lr
        Learning rate of Adam.
    decoder_precision
        Precision (1 / variance) of a zero-mean Gaussian prior on the decoder's weights, which are
        fitted by maximum a posteriori. The prior enters as Adam's ``weight_decay``, which is
        ``decoder_precision / n_cells`` for these weights and zero for all other parameters. Zero:
        no prior, as in the published model (``preset="plain"``).
    mask_rate
        Fraction of the peaks that are masked in the encoder's input, drawn anew in every step.
    gradient_clip
        Maximum norm of the gradient of the mean loss per cell.
    validation_size
        Fraction of the cells that are held out. Zero: none, and training does not stop early.
    early_stopping, patience
        Whether to stop early, and after how many epochs. If cells are held out, training stops
        after the warm-up when their ELBO has not risen for ``patience`` epochs, and the weights of
        the epoch with the highest ELBO are restored.
    n_particles
        Number of samples per evaluation of the objective.
    max_nan_retries
        How many times training may go back to the end of the last epoch and halve the learning
        rate when the loss or its gradient is not finite. If it happens once more, an error is
        raised.
    seed
        Seed of all random number generators that training uses.

    Examples
    --------
    >>> config = TrainingConfig.for_dataset(
    ...     2000, plain=False, max_epochs=None, early_stopping=False, lr=1e-3
    ... )
    >>> config.newton_sweeps, config.max_epochs, config.n_warmup
    (14, 20, 0)
    >>> config = TrainingConfig(max_epochs=300)
    >>> config.newton_sweeps, config.n_warmup, config.n_kl_warmup, config.kl_weight(0)
    (0, 180, 20, 0.05)
    """

    max_epochs: int = 300
    newton_sweeps: int = 0
    warmup_epochs: int | None = None
    kl_warmup_epochs: int | None = None
    batch_size: int = 128
    lr: float = 5e-3
    decoder_precision: float = 50.0
    mask_rate: float = 0.5
    gradient_clip: float = 10.0
    validation_size: float = 0.0
    early_stopping: bool = False
    patience: int = 30
    n_particles: int = 1
    max_nan_retries: int = 0
    seed: int = 0

    @classmethod
    def for_dataset(
        cls,
        n_cells: int,
        *,
        plain: bool,
        max_epochs: int | None,
        early_stopping: bool,
        with_sweeps: bool = True,
        is_trained: bool = False,
        **settings: Any,
    ) -> TrainingConfig:
        """Return the training settings: those given and, for the rest, defaults for the data.

        The defaults of ``max_epochs`` and ``batch_size`` depend on the number of cells. Training
        starts from Newton sweeps unless a warm-up is asked for, or from the current weights if the
        model has been trained.

        Parameters
        ----------
        n_cells
            Number of training cells.
        plain
            Whether the model is that of the SCALE paper (``preset="plain"``), which has a smaller
            default learning rate and no prior on the decoder's weights.
        with_sweeps
            Whether Newton sweeps are possible. Otherwise training starts with a warm-up, and takes
            more epochs.
        is_trained
            Whether the current weights come from training.
        max_epochs, early_stopping, settings
            As in :meth:`pyro_scale.SCALE.train`.

        Raises
        ------
        TypeError
            If the name of a setting is not known.
        """
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(settings) - set(known)):
            raise TypeError(
                f"train() has no setting {', '.join(map(repr, unknown))}; the settings are "
                f"{', '.join(known)}. Arguments of Lightning's Trainer go in trainer_kwargs."
            )
        defaults: dict[str, Any] = {}
        if settings.get("batch_size") is None:
            settings["batch_size"] = default_batch_size(n_cells)
        if settings.get("newton_sweeps") is None:
            asked = bool(settings.get("warmup_epochs"))
            settings["newton_sweeps"] = _SWEEPS if with_sweeps and not (asked or is_trained) else 0
        if is_trained and settings.get("warmup_epochs") is None:
            settings["warmup_epochs"] = 0
        has_start = is_trained or settings["newton_sweeps"] > 0
        if max_epochs is None and has_start:
            max_epochs = min(max(75_000 // n_cells, 5), 30 if plain else 20)
        elif max_epochs is None:
            max_epochs = min(max(1_000_000 // n_cells, 50), 300)
        if plain:
            # lr: the plain encoder's first layer reads every peak with 1024 units.
            # decoder_precision: depth is encoded in z and takes large weights to decode.
            defaults |= {"lr": 3e-4 if has_start else 1e-3, "decoder_precision": 0.0}
        if early_stopping:
            defaults |= {"validation_size": 0.1}
        return cls(max_epochs=max_epochs, early_stopping=early_stopping, **defaults | settings)

    def __post_init__(self) -> None:
        """Validate the fields."""
        for name in ("max_epochs", "batch_size", "patience", "n_particles"):
            check_int(name, getattr(self, name))
        for name in ("max_nan_retries", "newton_sweeps"):
            check_int(name, getattr(self, name), least=0)
        check_seed(self.seed)
        check_bool("early_stopping", self.early_stopping)
        for name in ("lr", "decoder_precision", "validation_size", "mask_rate"):
            check_number(name, getattr(self, name))
        for name in ("warmup_epochs", "kl_warmup_epochs"):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), least=0)
        if self.gradient_clip != math.inf:  # infinity stands for no clipping
            check_number("gradient_clip", self.gradient_clip)
        for name in ("lr", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r} must be above zero.")
        if not self.decoder_precision >= 0:
            raise ValueError(f"decoder_precision={self.decoder_precision} must not be negative.")
        for name, of in (("validation_size", "cells"), ("mask_rate", "peaks")):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is a fraction of the {of}: expected a number "
                    "from 0 to below 1."
                )
        if self.warmup_epochs is not None and self.warmup_epochs >= self.max_epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs} must be below max_epochs={self.max_epochs}."
            )

    @property
    def n_warmup(self) -> int:
        """Number of epochs with the N(0, I) prior."""
        if self.warmup_epochs is not None:
            return self.warmup_epochs
        return 0 if self.newton_sweeps else 3 * self.max_epochs // 5

    @property
    def n_kl_warmup(self) -> int:
        """Number of epochs over which the weight of the KL terms rises to one.

        It is one in the last of these epochs.
        """
        if self.kl_warmup_epochs is not None:
            return self.kl_warmup_epochs
        return min(20, self.max_epochs // 3) if self.n_warmup else 0

    def kl_weight(self, epoch: int) -> float:
        """Return the weight of the KL terms in ``epoch``; after the KL warm-up it is one."""
        if epoch >= self.n_kl_warmup:
            return 1.0
        return (epoch + 1) / self.n_kl_warmup
