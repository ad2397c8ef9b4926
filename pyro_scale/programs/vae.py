"""The parameters that the models and guides share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from pyro_scale._validation import check_choice
from pyro_scale.programs.batch import CellBatch
from pyro_scale.programs.likelihoods import BernoulliLikelihood, PoissonLikelihood
from pyro_scale.programs.networks import Classifier, Encoder, Lsi, PosteriorVariance
from pyro_scale.programs.prior import MixturePrior

__all__ = ["LikelihoodName", "MixtureVAE"]

LikelihoodName = Literal["bernoulli", "poisson"]
"""Bernoulli likelihood for 0/1 accessibility, or Poisson likelihood for counts."""


class MixtureVAE(nn.Module):
    """The parameters of the VAE: prior, encoder, likelihood and, optionally, classifier.

    The Pyro models and guides read these parameters
    (:func:`pyro_scale.programs.build_programs`). Programs that share one ``MixtureVAE`` can be
    compared at the same parameters. Its ``state_dict`` holds every parameter once.

    Parameters
    ----------
    n_peaks, n_components, n_latent
        Numbers of peaks (P), of mixture components (K) and of latent dimensions (D).
    hidden
        Widths of the encoder's hidden layers; (1024, 128) in SCALE.
    decoder_hidden
        Widths of the decoder's hidden layers; none in SCALE (a linear decoder).
    likelihood
        ``"bernoulli"`` or ``"poisson"``.
    layer_norm
        Whether the encoder's hidden layers are normalized.
    lsi
        Transform to the LSI coordinates that the encoder reads. With None the encoder reads the
        accessibility itself, as in SCALE.
    n_batches
        Number of batches. The decoder is conditioned on the batch if there is more than one.
    mean_log_depth
        Mean log depth of the training cells. The logits of the Bernoulli likelihood depend on the
        difference between a cell's log depth and this value; with None they do not depend on
        depth, as in SCALE. The Poisson likelihood ignores it and always uses the depth as its
        exposure.
    classifier
        Whether to add the classifier network q(c|x), which the formulation ``"amortized"`` needs.
    posterior_variance
        Function that maps the encoder's output to the variance of q(z|x), as in :class:`Encoder`.

    Examples
    --------
    >>> vae.n_peaks, vae.n_components, vae.n_latent
    (30, 3, 2)
    >>> loc_nd, var_nd = vae.encoder(cells)
    >>> vae.prior.log_responsibilities(loc_nd).shape, vae.likelihood.mean(loc_nd, cells).shape
    (torch.Size([5, 3]), torch.Size([5, 30]))
    >>> vae.add_classifier()
    >>> vae.required_classifier, vae.log_q_c(cells).shape
    (Classifier(
      (logits): Linear(in_features=8, out_features=3, bias=True)
    ), torch.Size([5, 3]))
    >>> other = vae.with_prior(MixturePrior(4, 2)).with_encoder(vae.encoder)
    >>> other.n_components, other.likelihood is vae.likelihood
    (4, True)
    """

    def __init__(
        self,
        n_peaks: int,
        n_components: int,
        n_latent: int = 10,
        *,
        hidden: Sequence[int] = (1024, 128),
        decoder_hidden: Sequence[int] = (),
        likelihood: LikelihoodName = "bernoulli",
        layer_norm: bool = False,
        lsi: Lsi | None = None,
        n_batches: int = 1,
        mean_log_depth: float | None = None,
        classifier: bool = False,
        posterior_variance: PosteriorVariance = "softplus",
    ) -> None:
        super().__init__()
        check_choice("likelihood", likelihood, get_args(LikelihoodName))
        self.prior = MixturePrior(n_components, n_latent)
        self.encoder = Encoder(
            n_peaks,
            n_latent,
            hidden,
            layer_norm=layer_norm,
            lsi=lsi,
            posterior_variance=posterior_variance,
        )
        self.likelihood: BernoulliLikelihood | PoissonLikelihood
        if likelihood == "bernoulli":
            self.likelihood = BernoulliLikelihood(
                n_peaks,
                n_latent,
                decoder_hidden,
                n_batches=n_batches,
                mean_log_depth=mean_log_depth,
            )
        else:
            self.likelihood = PoissonLikelihood(n_peaks, n_latent, decoder_hidden, n_batches)
        self.classifier: Classifier | None = None
        if classifier:
            self.add_classifier()

    @property
    def n_peaks(self) -> int:
        """P, the number of peaks."""
        return self.likelihood.peaks.out_features

    @property
    def n_latent(self) -> int:
        """D, the dimension of the latent space."""
        return self.prior.loc_kd.shape[1]

    @property
    def n_components(self) -> int:
        """K, the number of mixture components."""
        return self.prior.n_components

    def with_prior(self, prior: MixturePrior) -> MixtureVAE:
        """Return a model with the same networks (shared, not copied) and another ``prior``."""
        other = copy.copy(self)
        other._modules = {**self._modules, "prior": prior}
        return other

    def with_encoder(self, encoder: nn.Module) -> MixtureVAE:
        """Return a model with the same prior and decoder (shared, not copied) and another q(z|x).

        Parameters
        ----------
        encoder
            Module that maps a :class:`CellBatch` to the mean and variance of q(z|x), each of shape
            ``(n, d)``. Its ``q_z(loc_nd, var_nd)`` returns the distribution, as
            :meth:`Encoder.q_z` does.
        """
        other = copy.copy(self)
        other._modules = {**self._modules, "encoder": encoder}
        return other

    def add_classifier(self) -> None:
        """Add a newly initialized classifier q(c|x), on the encoder's device and in its dtype."""
        head = self.encoder.loc
        self.classifier = Classifier(head.in_features, self.n_components).to(head.weight)

    @property
    def required_classifier(self) -> Classifier:
        """The classifier q(c|x).

        Raises
        ------
        ValueError
            If the model has no classifier, or the prior has another number of components.
        """
        if self.classifier is None:
            raise ValueError(
                "This model has no classifier q(c|x): build it with formulation='amortized'."
            )
        n_outputs = self.classifier.logits.out_features
        if n_outputs != self.n_components:
            raise ValueError(
                f"the classifier q(c|x) has {n_outputs} components, the prior has "
                f"{self.n_components}: give n_components for a model with a classifier."
            )
        return self.classifier

    def log_q_c(self, cells: CellBatch) -> Tensor:
        """Return log q(c|x) of ``cells`` from the classifier, shape ``(n, k)``."""
        log_q_c_nk: Tensor = self.required_classifier(self.encoder.features(cells))
        return log_q_c_nk
