"""Where training starts: networks from the data's margins, components from the encoder's means."""

from __future__ import annotations

import logging
import warnings
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array
from sklearn.cluster import KMeans, SpectralClustering
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import kneighbors_graph
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

from pyro_scale.data import Counts
from pyro_scale.programs import (
    BernoulliLikelihood,
    LikelihoodName,
    Lsi,
    MixturePrior,
    MixtureVAE,
)

__all__ = [
    "Start",
    "build_vae",
    "choose_n_components",
    "components_from_means",
    "lsi_of",
    "standard_normal_prior",
]

logger = logging.getLogger(__name__)

_NEIGHBOURS = 15


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
    n_lsi: int = 50,
    seed: int = 0,
) -> MixtureVAE:
    """The networks for these cells; the default ones start from the data's margins.

    Parameters
    ----------
    counts
        The training cells.
    n_components, n_latent, hidden, decoder_hidden, likelihood, classifier
        As in :class:`~pyro_scale.programs.MixtureVAE`.
    plain
        The networks of SCALE as published. Otherwise: the encoder reads LSI, layer
        normalisation, a depth term in the Bernoulli likelihood, and a decoder bias that starts
        at each peak's accessibility.
    n_lsi, seed
        As in :func:`lsi_of`.
    """
    vae = MixtureVAE(
        counts.n_peaks,
        n_components,
        n_latent,
        hidden=hidden,
        decoder_hidden=decoder_hidden,
        likelihood=likelihood,
        classifier=classifier,
        layer_norm=not plain,
        lsi=None if plain else lsi_of(counts, n_lsi, seed),
        mean_log_depth=None
        if plain or likelihood == "poisson"
        else float(np.log(counts.depth).mean()),
    )
    if not plain:
        with torch.no_grad():
            bias_p = torch.from_numpy(_peak_bias(vae, counts)).float()
            vae.likelihood.peaks.bias.copy_(bias_p)
    return vae


def _at_most(max_cells: int, n_cells: int, seed: int) -> NDArray[np.intp]:
    """Positions of so many cells, in order: all of them, or a random choice."""
    return np.sort(np.random.default_rng(seed).permutation(n_cells)[:max_cells])


def lsi_of(counts: Counts, n_directions: int, seed: int, *, max_cells: int = 20_000) -> Lsi:
    """The directions that the encoder reads: singular vectors of the cells' TF-IDF.

    The first one, which follows depth, is left out; ``n_directions`` shrinks to what the cells
    and peaks allow. Beyond ``max_cells`` cells a random choice of so many is decomposed.

    Parameters
    ----------
    counts
        The cells.
    n_directions
        R.
    seed
        Of the randomised SVD and of the choice of cells.
    max_cells
        Bounds time and memory.
    """
    counts = counts[_at_most(max_cells, counts.n_cells, seed)]
    idf_p = np.log1p(counts.n_cells / np.maximum(counts.x.getnnz(0), 1))
    tf = diags_array(1 / counts.depth.clip(1)) @ counts.x.astype(np.float64)
    y = csr_array(tf @ diags_array(idf_p))
    y.data = np.log1p(1e4 * y.data)
    length_n = np.sqrt(np.asarray((y * y).sum(1)).ravel()).clip(1e-12)
    rank = min(n_directions + 1, *y.shape)
    _, _, directions_rp = randomized_svd(
        diags_array(1 / length_n) @ y, rank, n_iter=7, random_state=seed
    )
    directions_pr = directions_rp[min(1, rank - 1) :].T
    lsi = Lsi(counts.n_peaks, directions_pr.shape[1])
    lsi.idf_p.copy_(torch.from_numpy(idf_p))
    lsi.directions_pr.copy_(torch.from_numpy(directions_pr.copy()))
    return lsi


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


def components_from_means(
    loc_nd: Tensor, var_nd: Tensor, n_components: int, seed: int, *, max_cells: int = 20_000
) -> Start:
    """Components from a clustering of the posterior means, weights included.

    Cells are clustered on the graph of their nearest neighbours (:func:`_neighbour_clusters`).
    Each component starts at the mean of a cluster, with its share of cells as its weight. All
    start with one variance per dimension, pooled over the clusters: the mean squared distance
    to the cluster's mean plus the mean posterior variance. (The original fits a free diagonal
    mixture to one sample per cell from an untrained encoder, and drops its weights.)

    Parameters
    ----------
    loc_nd, var_nd
        Mean and variance of q(z|x) of every cell, shape ``(n, d)``.
    n_components
        K; at most n.
    seed
        Of what is random in the clustering.
    max_cells
        Beyond so many cells a random choice of them is clustered.
    """
    chosen = _at_most(max_cells, len(loc_nd), seed)
    loc_nd, var_nd = loc_nd[chosen], var_nd[chosen]
    means = loc_nd.double().cpu().numpy()
    labels = _neighbour_clusters(means, n_components, seed)
    member_kn = np.equal.outer(np.arange(n_components), labels)
    size_k = member_kn.sum(1)
    centre_kd = member_kn @ means / size_k.clip(1)[:, None]
    spread_d = np.square(means - centre_kd[labels]).mean(0)
    var_d = torch.from_numpy(spread_d) + var_nd.double().cpu().mean(0)
    logger.info("the mixture starts with components of %s cells", size_k.tolist())
    return Start(
        torch.from_numpy(size_k / len(means)).to(loc_nd),
        torch.from_numpy(centre_kd).to(loc_nd),
        var_d.expand(n_components, -1).to(loc_nd),
    )


def choose_n_components(
    loc_nd: Tensor, seed: int, *, max_components: int = 30, max_cells: int = 5_000
) -> int:
    """K by the Bayesian information criterion of a diagonal Gaussian mixture of posterior means.

    K grows from one until the criterion has not fallen for five values of K in a row. The
    prior that K is for is such a mixture. (The original's ``estimate_k`` counts the
    Tracy-Widom-significant components of a matrix that is not Gaussian.)

    Parameters
    ----------
    loc_nd
        Mean of q(z|x) of every cell, shape ``(n, d)``.
    seed
        Of the mixtures' k-means starts and of the choice of cells.
    max_components
        The largest K tried; fewer where there are not five cells for each.
    max_cells
        Beyond so many cells a random choice of them is looked at.

    References
    ----------
    Schwarz 1978, doi:10.1214/aos/1176344136; Fraley and Raftery 2002,
    doi:10.1198/016214502760047131.
    """
    means = loc_nd.double().cpu().numpy()
    means = np.random.default_rng(seed).permutation(means)[:max_cells]
    criterion: list[float] = []
    for k in range(1, max(1, min(max_components, len(means) // 5)) + 1):
        mixture = GaussianMixture(
            k, covariance_type="diag", n_init=3, reg_covar=1e-3, random_state=seed
        )
        criterion.append(mixture.fit(means).bic(means) if len(means) > 1 else 0.0)
        if k - np.argmin(criterion) > 5:
            break
    chosen = int(np.argmin(criterion)) + 1
    logger.info("n_components=%d, the lowest BIC of 1 to %d", chosen, len(criterion))
    return chosen


def _neighbour_clusters(means: NDArray[np.float64], k: int, seed: int) -> NDArray[np.intp]:
    """Normalised cuts of the 15-nearest-neighbour graph into k clusters, none empty.

    A graph follows clusters of any shape and is not led by outlying cells, which take whole
    clusters of k-means for themselves (Yu and Shi 2003, doi:10.1109/ICCV.2003.1238361). Too few
    cells for a graph, or a cut that leaves a cluster empty: k-means.
    """
    if k > 1 and len(means) >= 5 * k and len(means) > _NEIGHBOURS:
        graph = kneighbors_graph(means, _NEIGHBOURS, include_self=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Graph is not fully connected")
            labels = SpectralClustering(
                k, affinity="precomputed", assign_labels="discretize", random_state=seed
            ).fit_predict((graph + graph.T) / 2)
        if len(np.unique(labels)) == k:
            return labels
    return KMeans(k, n_init=20, random_state=seed).fit(means).labels_
