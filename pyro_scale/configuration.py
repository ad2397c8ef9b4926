"""What a model is, as data: saved with it, and checked where it is given."""

from __future__ import annotations

import reprlib
from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any, Literal, get_args

from pyro_scale.checks import check_choice, check_seed, check_whole
from pyro_scale.objectives import Row, find_row
from pyro_scale.programs import LikelihoodName, PosteriorVariance, Treatment

__all__ = ["Configuration"]

Preset = Literal["default", "plain"]

_CHOICES = {
    "preset": get_args(Preset),
    "likelihood": get_args(LikelihoodName),
    "posterior_variance": get_args(PosteriorVariance),
}
_WIDEST = 2**20  # units of a layer, dimensions, components: more are not meant
_DEEPEST = 100  # layers


def _whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


@dataclass(frozen=True)
class Configuration:
    """The arguments of :class:`pyro_scale.SCALE`, checked."""

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
        """Refuse what cannot be meant."""
        self._check_words()
        if self.hidden is None:
            object.__setattr__(self, "hidden", (1024, 128) if self.plain else (128,))
        for name in ("n_components", "n_latent", "n_lsi"):
            value = getattr(self, name)
            if name == "n_components" and value is None:
                continue
            # As Python's own: numpy's integers are not JSON.
            object.__setattr__(self, name, check_whole(name, value, most=_WIDEST))
        for name in ("hidden", "decoder_hidden"):
            widths = getattr(self, name)
            if not isinstance(widths, (tuple, list)) or not all(
                _whole(width) and 1 <= width <= _WIDEST for width in widths
            ):
                raise ValueError(
                    f"{name}={reprlib.repr(widths)} must be a tuple of widths of at least one and "
                    f"at most {_WIDEST}, such as (64,)."
                )
            if len(widths) > _DEEPEST:
                raise ValueError(f"{name} has {len(widths)} layers; at most {_DEEPEST} are built.")
            object.__setattr__(self, name, tuple(int(width) for width in widths))
        object.__setattr__(self, "seed", check_seed(self.seed))
        row = self.row
        if self.n_components is None and row.formulation == "amortized":
            raise ValueError(
                "formulation='amortized' has a classifier of n_components classes: give "
                "n_components, None is for the other formulations."
            )

    def _check_words(self) -> None:
        """Types of all that is said in words, and the choices among which it is."""
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
                f"batches={reprlib.repr(self.batches)} must be names of batches that differ."
            )
        if self.batch_key is None:
            raise ValueError("batches are named, and no batch_key says where they are.")
        object.__setattr__(self, "batches", tuple(self.batches))  # a list in JSON

    @property
    def row(self) -> Row:
        """The row of the table that training follows."""
        return find_row(self.formulation, self.estimator, self.c)

    @property
    def plain(self) -> bool:
        """Whether the networks are those of the paper."""
        return self.preset == "plain"

    @property
    def binary(self) -> bool:
        """Whether counts are set to 0/1."""
        return self.likelihood == "bernoulli"

    @property
    def n_batches(self) -> int:
        """How many batches the decoder tells apart; one: it does not."""
        return max(1, len(self.batches or ()))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
