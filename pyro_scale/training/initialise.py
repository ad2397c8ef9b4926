"""Where training starts: networks from the data's margins, components from the encoder's means."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from torch import Tensor

from pyro_scale.data import Counts
from pyro_scale.programs import BernoulliLikelihood, LikelihoodName, MixturePrior, MixtureVAE

__all__ = ["Start", "build_vae", "components_from_means", "standard_normal_prior"]

logger = logging.getLogger(__name__)


def build_vae(
    counts: Counts,
    n_components: int,
    n_latent: int,
    *,
    hidden: tuple[int, ...],
    decoder_hidden: tuple[int, ...],
    likelihood: LikelihoodName,
    plain: bool,
    classifier: bool,
) -> MixtureVAE:
    """The networks for these cells; the default ones start from the data's margins.

    Parameters
    ----------
    counts
        The training cells.
    n_components, n_latent, hidden, decoder_hidden, likelihood, classifier
        As in :class:`~pyro_scale.programs.MixtureVAE`.
    plain
        The networks of SCALE as published. Otherwise: TF-IDF input, layer normalisation, a
        depth term in the Bernoulli likelihood, and a decoder bias that starts at each
        peak's accessibility.
    """
    n_cells_p = counts.x.getnnz(0)
    idf_p = np.log1p(counts.n_cells / np.maximum(n_cells_p, 1))
    vae = MixtureVAE(
        counts.n_peaks,
        n_components,
        n_latent,
        hidden=hidden,
        decoder_hidden=decoder_hidden,
        likelihood=likelihood,
        classifier=classifier,
        layer_norm=not plain,
        idf_p=None if plain else torch.from_numpy(idf_p).float(),
        mean_log_depth=None
        if plain or likelihood == "poisson"
        else float(np.log(counts.depth).mean()),
    )
    if not plain:
        with torch.no_grad():
            bias_p = torch.from_numpy(_peak_bias(vae, counts)).float()
            vae.likelihood.peaks.bias.copy_(bias_p)
    return vae


def _peak_bias(vae: MixtureVAE, counts: Counts) -> NDArray[np.float64]:
    """What the decoder would say of a peak if every cell were alike, half a count smoothed in."""
    total_p = np.asarray(counts.x.sum(0), dtype=np.float64).ravel() + 0.5
    if isinstance(vae.likelihood, BernoulliLikelihood):
        open_p = total_p / (counts.n_cells + 1)
        return np.log(open_p) - np.log1p(-open_p)
    return np.log(total_p / total_p.sum())


def standard_normal_prior(n_latent: int) -> MixturePrior:
    """N(0, I) as a mixture of one component, its parameters fixed: the warm-up's prior."""
    prior = MixturePrior(1, n_latent)
    prior.set_components(torch.ones(1), torch.zeros(1, n_latent), torch.ones(1, n_latent))
    return prior.requires_grad_(False)


class Start(NamedTuple):
    """Weights, means and variances to start the mixture from.

    Attributes
    ----------
    pi_k, loc_kd, var_kd
        Tensors of shape ``(K,)``, ``(K, D)``, ``(K, D)``.
    """

    pi_k: Tensor
    loc_kd: Tensor
    var_kd: Tensor


def components_from_means(loc_nd: Tensor, var_nd: Tensor, n_components: int, seed: int) -> Start:
    """Components from k-means on the posterior means, weights included.

    Each component starts at a centre, with the share of cells it attracts as its weight. All
    start with one variance per dimension, pooled over the clusters: the mean squared
    distance to the centre plus the mean posterior variance. (The original fits a free
    diagonal mixture to one sample per cell from an untrained encoder, and drops its weights.)

    Parameters
    ----------
    loc_nd, var_nd
        Mean and variance of q(z|x) of every cell, shape ``(n, d)``.
    n_components
        K; at most n.
    seed
        Of k-means, which is restarted 20 times and keeps the tightest result.
    """
    means = loc_nd.double().cpu().numpy()
    kmeans = KMeans(n_components, n_init=20, random_state=seed).fit(means)
    share_k = np.bincount(kmeans.labels_, minlength=n_components) / len(means)
    spread_d = np.square(means - kmeans.cluster_centers_[kmeans.labels_]).mean(0)
    var_d = torch.from_numpy(spread_d) + var_nd.double().cpu().mean(0)
    logger.info("mixture started from k-means: shares %s", np.round(share_k, 3))
    return Start(
        torch.from_numpy(share_k).to(loc_nd),
        torch.from_numpy(kmeans.cluster_centers_).to(loc_nd),
        var_d.expand(n_components, -1).to(loc_nd),
    )
