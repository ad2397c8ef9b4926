"""The configuration of a model, and the protocol of the models that comparisons accept."""

from __future__ import annotations

import reprlib
from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any, Literal, Protocol, get_args

from anndata import AnnData

from pyro_scale._validation import check_choice, check_int, check_seed
from pyro_scale.data import CountMatrix
from pyro_scale.objectives import REGISTRY, ObjectiveSpec, resolve_objective
from pyro_scale.programs import LikelihoodName, Lsi, MixtureVAE, PosteriorVariance, Treatment

__all__ = ["ModelConfig", "ModelLike"]

Preset = Literal["default", "plain"]

_CHOICES = {
    "preset": get_args(Preset),
    "likelihood": get_args(LikelihoodName),
    "posterior_variance": get_args(PosteriorVariance),
}
_MAX_WIDTH = 2**20  # of a layer, and largest n_latent, n_components and n_lsi: more is a mistake
_MAX_LAYERS = 100


def _is_int(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


@dataclass(frozen=True)
class ModelConfig:
    """The validated arguments of :class:`pyro_scale.SCALE`, and two more fields.

    ``batches`` are the names of the batches in the training data. ``posterior_variance`` is the
    function, ``"softplus"`` or ``"exp"``, that maps the encoder's output to the variance of q(z|x).
    """

    n_components: int | None = None
    n_latent: int = 10
    formulation: str = "collapsed"
    estimator: str | None = None
    c: Treatment | None = None
    likelihood: LikelihoodName = "bernoulli"
    preset: Preset = "default"
    hidden: tuple[int, ...] | None = None
    decoder_hidden: tuple[int, ...] = ()
    n_lsi: int = 50
    layer: str | None = None
    batch_key: str | None = None
    batches: tuple[str, ...] | None = None
    seed: int = 0
    posterior_variance: PosteriorVariance = "softplus"

    def __post_init__(self) -> None:
        """Validate the fields."""
        self._check_strings()
        if self.hidden is None:
            object.__setattr__(self, "hidden", (1024, 128) if self.plain else (128,))
        for name in ("n_components", "n_latent", "n_lsi"):
            value = getattr(self, name)
            if name == "n_components" and value is None:
                continue
            # Python integers, because numpy's cannot be written as JSON.
            object.__setattr__(self, name, check_int(name, value, most=_MAX_WIDTH))
        for name in ("hidden", "decoder_hidden"):
            widths = getattr(self, name)
            if not isinstance(widths, (tuple, list)) or not all(
                _is_int(width) and 1 <= width <= _MAX_WIDTH for width in widths
            ):
                raise ValueError(
                    f"{name}={reprlib.repr(widths)} must be a tuple of widths of at least one and "
                    f"at most {_MAX_WIDTH}, such as (64,)."
                )
            if len(widths) > _MAX_LAYERS:
                raise ValueError(
                    f"{name} has {len(widths)} layers; at most {_MAX_LAYERS} are allowed."
                )
            object.__setattr__(self, name, tuple(int(width) for width in widths))
        object.__setattr__(self, "seed", check_seed(self.seed))
        objective = self.objective
        needs_classifier = REGISTRY.formulation(objective.formulation).needs_classifier
        if self.n_components is None and needs_classifier:
            raise ValueError(
                f"formulation={self.formulation!r} has a classifier with n_components classes: "
                "give n_components; only the other formulations allow None."
            )

    def _check_strings(self) -> None:
        """Validate the fields that are strings."""
        for name in ("formulation", "likelihood", "preset", "posterior_variance"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name}={reprlib.repr(getattr(self, name))} must be a string.")
        for name in ("estimator", "c", "layer", "batch_key"):
            if not isinstance(getattr(self, name), str | None):
                raise TypeError(
                    f"{name}={reprlib.repr(getattr(self, name))} must be a string, or None."
                )
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        if self.batches is None:
            return
        if (
            not isinstance(self.batches, (tuple, list))
            or not all(isinstance(batch, str) for batch in self.batches)
            or not 0 < len(self.batches) == len(set(self.batches))
        ):
            raise TypeError(
                f"batches={reprlib.repr(self.batches)} must be a tuple of distinct batch names."
            )
        if self.batch_key is None:
            raise ValueError(
                "batches are given without batch_key, the column of obs that has them."
            )
        object.__setattr__(self, "batches", tuple(self.batches))  # JSON has lists only

    @property
    def objective(self) -> ObjectiveSpec:
        """The objective that training uses."""
        return resolve_objective(self.formulation, self.estimator, self.c)

    @property
    def plain(self) -> bool:
        """Whether the model is the plain model of the paper."""
        return self.preset == "plain"

    @property
    def binary(self) -> bool:
        """Whether counts are set to 0/1."""
        return self.likelihood == "bernoulli"

    @property
    def n_batches(self) -> int:
        """Number of batches that the decoder is conditioned on; 1 without a batch key."""
        return max(1, len(self.batches or ()))

    @property
    def has_depth_term(self) -> bool:
        """Whether the likelihood has a term for the cell's sequencing depth."""
        return self.binary and not self.plain

    def build_vae(
        self, n_peaks: int, *, lsi: Lsi | None = None, mean_log_depth: float | None = None
    ) -> MixtureVAE:
        """Build the networks and the prior, at their initial parameters.

        Parameters
        ----------
        n_peaks
            Number of peaks.
        lsi
            The latent semantic indexing that the encoder reads, with the default preset.
        mean_log_depth
            Mean log depth of the training cells, if the likelihood has a term for depth.
        """
        return MixtureVAE(
            n_peaks,
            self.n_components or 1,
            self.n_latent,
            hidden=self.hidden or (),
            decoder_hidden=self.decoder_hidden,
            likelihood=self.likelihood,
            layer_norm=not self.plain,
            lsi=lsi,
            n_batches=self.n_batches,
            mean_log_depth=mean_log_depth,
            classifier=REGISTRY.formulation(self.formulation).needs_classifier,
            posterior_variance=self.posterior_variance,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary that can be written as JSON."""
        return asdict(self)


class ModelLike(Protocol):
    """Protocol of the models that ``compare``, ``ladder`` and ``sample_latent_nuts`` accept.

    :class:`pyro_scale.SCALE` satisfies it.

    Attributes
    ----------
    vae
        The networks and parameters.

    Examples
    --------
    >>> untrained: ModelLike = ps.SCALE(adata, n_components=2, n_latent=2, hidden=(8,))
    >>> untrained.is_trained, untrained.counts().n_cells
    (False, 40)
    """

    vae: MixtureVAE

    @property
    def is_trained(self) -> bool:
        """Whether the parameters come from training."""

    def counts(self, adata: AnnData | None = None) -> CountMatrix:
        """Return the validated cells of ``adata``, with the peaks in the order of the model.

        If ``adata`` is None, return the cells that the model holds.
        """
