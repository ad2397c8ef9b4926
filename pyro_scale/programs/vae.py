"""The parameters that every program shares."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from pyro_scale.programs.cells import Cells
from pyro_scale.programs.likelihood import BernoulliLikelihood, PoissonLikelihood
from pyro_scale.programs.networks import Classifier, Encoder, Lsi, PosteriorVariance
from pyro_scale.programs.prior import MixturePrior

__all__ = ["LikelihoodName", "MixtureVAE"]

LikelihoodName = Literal["bernoulli", "poisson"]
"""0/1, or counts."""


class MixtureVAE(nn.Module):
    """Prior, encoder, likelihood and (optionally) classifier: parameters, no inference.

    Models and guides are programs over these parameters (:func:`pyro_scale.programs.build`);
    several programs may share one ``MixtureVAE``, which is how they are compared. Its
    ``state_dict`` holds every parameter once.

    Parameters
    ----------
    n_peaks, n_components, n_latent
        P, K and D.
    hidden
        Widths of the encoder's hidden layers; SCALE has (1024, 128).
    decoder_hidden
        Widths of the decoder's hidden layers; SCALE has none (a linear decoder).
    likelihood
        ``"bernoulli"`` or ``"poisson"``.
    layer_norm
        Normalise the encoder's hidden layers.
    lsi
        The encoder reads these coordinates of the cells. None: it reads the accessibility
        itself, as SCALE does.
    n_batches
        Number of batches that the decoder is conditioned on; one: it is not.
    mean_log_depth
        Centre of the Bernoulli depth term; None leaves the term out, as SCALE does. The
        Poisson likelihood always has the depth as its exposure.
    classifier
        Add q(c|x), which the amortized formulation needs.
    posterior_variance
        As in :class:`Encoder`.

    Examples
    --------
    >>> import torch
    >>> vae = MixtureVAE(n_peaks=30, n_components=3, n_latent=2, hidden=(8,))
    >>> vae.n_peaks, vae.n_components, vae.n_latent
    (30, 3, 2)
    >>> cells = Cells.from_counts((torch.rand(5, 30) < 0.2).float())
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
        elif likelihood == "poisson":
            self.likelihood = PoissonLikelihood(n_peaks, n_latent, decoder_hidden, n_batches)
        else:
            raise ValueError(
                f"likelihood={likelihood!r} is not known; choose 'bernoulli' or 'poisson'."
            )
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
        """The same networks (shared, not copied) under another ``prior``."""
        other = copy.copy(self)
        other._modules = {**self._modules, "prior": prior}
        return other

    def with_encoder(self, encoder: nn.Module) -> MixtureVAE:
        """The same prior and decoder (shared, not copied) under another q(z|x).

        Parameters
        ----------
        encoder
            Called with :class:`Cells`, it returns mean and variance of q(z|x), each ``(n, d)``;
            its ``q_z(loc_nd, var_nd)`` is the distribution (:meth:`Encoder.q_z`).
        """
        other = copy.copy(self)
        other._modules = {**self._modules, "encoder": encoder}
        return other

    def add_classifier(self) -> None:
        """Give the model a fresh q(c|x), on the device and in the dtype of its encoder."""
        head = self.encoder.loc
        self.classifier = Classifier(head.in_features, self.n_components).to(head.weight)

    @property
    def required_classifier(self) -> Classifier:
        """The classifier q(c|x), or a ValueError that says how to have one."""
        if self.classifier is None:
            raise ValueError(
                "This model has no classifier q(c|x): build it with formulation='amortized'."
            )
        n_outputs = self.classifier.logits.out_features
        if n_outputs != self.n_components:
            raise ValueError(
                f"the classifier q(c|x) has {n_outputs} components and the prior "
                f"{self.n_components}: with a classifier, give n_components."
            )
        return self.classifier

    def log_q_c(self, cells: Cells) -> Tensor:
        """log q(c|x) of ``cells`` by the classifier, shape ``(n, k)``."""
        log_q_c_nk: Tensor = self.required_classifier(self.encoder.features(cells))
        return log_q_c_nk
