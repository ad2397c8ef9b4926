"""Where the mixture starts: K and its components from the encoder's means."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, lil_matrix
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans, SpectralClustering
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import kneighbors_graph
from torch import Tensor

from pyro_scale.data import Counts, loader
from pyro_scale.programs import MixtureVAE
from pyro_scale.training.initialise import at_most

__all__ = ["Start", "choose_n_components", "components_from_means", "moments"]

logger = logging.getLogger(__name__)

_NEIGHBOURS = 15


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


@torch.inference_mode()
def moments(vae: MixtureVAE, counts: Counts, batch_size: int = 512) -> tuple[Tensor, Tensor]:
    """Mean and variance of q(z|x) of every cell, each ``(n, d)``, in the cells' order.

    Parameters
    ----------
    vae
        The parameters.
    counts
        The cells.
    batch_size
        Cells at a time.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    >>> counts = ps.data.as_counts(adata)
    >>> loc_nd, var_nd = moments(MixtureVAE(60, n_components=2, n_latent=2, hidden=(8,)), counts)
    >>> loc_nd.shape, var_nd.shape
    (torch.Size([40, 2]), torch.Size([40, 2]))
    """
    was_training = vae.training
    vae.eval()
    head = vae.encoder.loc.weight
    pairs = [vae.encoder(cells.to(head)) for cells in loader(counts, batch_size)]
    vae.train(was_training)
    return torch.cat([loc for loc, _ in pairs]), torch.cat([var for _, var in pairs])


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

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> loc_nd = torch.randn(90, 2, generator=generator)
    >>> loc_nd += 20 * torch.eye(3, 2)[torch.arange(90) % 3]
    >>> start = components_from_means(loc_nd, torch.ones(90, 2), n_components=3, seed=0)
    >>> start.pi_k, start.loc_kd.shape
    (tensor([0.3333, 0.3333, 0.3333]), torch.Size([3, 2]))
    """
    chosen = at_most(max_cells, len(loc_nd), seed)
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
    r"""K by the modularity of the cuts that the mixture would start from.

    For each K the graph of the cells' nearest neighbours is cut into K clusters
    (:func:`_neighbour_clusters`). Modularity is the share of its edges that lie within
    clusters, less what chance would put there. K grows from two until modularity has not risen
    for five values of K in a row; the best is taken, or one where a single Gaussian describes
    the means better than two and than K, by the Bayesian information criterion.

    (That criterion alone counts Gaussians, not clusters: 12 or 13 for 10 clusters that are not
    Gaussian. The silhouette takes two for cells whose types are nested. The original's
    ``estimate_k`` counts Tracy-Widom-significant components of a matrix that is not Gaussian.)

    Parameters
    ----------
    loc_nd
        Mean of q(z|x) of every cell, shape ``(n, d)``.
    seed
        Of the clustering and of the choice of cells.
    max_components
        The largest K tried; fewer where there are not five cells for each.
    max_cells
        Beyond so many cells a random choice of them is looked at.

    References
    ----------
    Newman and Girvan 2004, doi:10.1103/PhysRevE.69.026113 (modularity); Fraley and Raftery
    2002, doi:10.1198/016214502760047131 (BIC).

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> loc_nd = torch.randn(90, 2, generator=generator)
    >>> loc_nd += 20 * torch.eye(3, 2)[torch.arange(90) % 3]
    >>> choose_n_components(loc_nd, seed=0, max_components=4)
    3
    """
    means = loc_nd[at_most(max_cells, len(loc_nd), seed)].double().cpu().numpy()
    largest = min(max_components, len(means) // 5)
    if largest < 2 or len(means) <= _NEIGHBOURS:
        return 1
    graph = kneighbors_graph(means, _NEIGHBOURS)
    graph = graph.maximum(graph.T)
    scores: list[float] = []
    for k in range(2, largest + 1):
        scores.append(_modularity(graph, _neighbour_clusters(means, k, seed)))
        if len(scores) - np.argmax(scores) > 5:
            break
    chosen = int(np.argmax(scores)) + 2
    one, *more = (
        GaussianMixture(k, covariance_type="diag", n_init=3, reg_covar=1e-3, random_state=seed)
        .fit(means)
        .bic(means)
        for k in (1, 2, chosen)
    )
    if one <= min(more):
        chosen = 1
    logger.info("n_components=%d, by the modularity of 2 to %d clusters", chosen, len(scores) + 1)
    return chosen


def _modularity(graph: csr_matrix, labels: NDArray[np.intp]) -> float:
    """Share of the edges within clusters less the share expected of random edges."""
    member_nk = np.equal.outer(labels, np.arange(labels.max() + 1)).astype(float)
    edges_kk = member_nk.T @ (graph @ member_nk) / graph.sum()
    return float(np.trace(edges_kk) - np.square(edges_kk.sum(1)).sum())


def _neighbour_clusters(means: NDArray[np.float64], k: int, seed: int) -> NDArray[np.intp]:
    """Normalised cuts of the 15-nearest-neighbour graph into k clusters, none empty.

    A graph follows clusters of any shape and is not led by outlying cells, which take whole
    clusters of k-means for themselves (Yu and Shi 2003, doi:10.1109/ICCV.2003.1238361). Too few
    cells for a graph, or a cut that leaves a cluster empty: k-means.
    """
    if k > 1 and len(means) >= 5 * k and len(means) > _NEIGHBOURS:
        graph = kneighbors_graph(means, _NEIGHBOURS, include_self=True)
        labels: NDArray[np.intp] = SpectralClustering(
            k, affinity="precomputed", assign_labels="discretize", random_state=seed
        ).fit_predict(_joined((graph + graph.T) / 2, means))
        if len(np.unique(labels)) == k:
            return labels
    labels = KMeans(k, n_init=20, random_state=seed).fit(means).labels_
    return labels


def _joined(graph: csr_matrix, means: NDArray[np.float64]) -> csr_matrix:
    """A graph of one piece: its pieces linked by single edges along their shortest spanning tree.

    Pieces that nothing links share the eigenvalue one, and ARPACK may miss eigenvectors of an
    eigenvalue that comes several times (scipy before 1.17 does).
    """
    n_pieces, piece_n = connected_components(graph, directed=False)
    if n_pieces == 1:
        return csr_matrix(graph)
    cells = [np.flatnonzero(piece_n == piece) for piece in range(n_pieces)]
    centres = np.stack([means[each].mean(0) for each in cells])
    tree = minimum_spanning_tree(1 + cdist(centres, centres)).tocoo()  # zero would be no edge
    link = lil_matrix(graph.shape)
    for one, other in zip(tree.row, tree.col, strict=True):
        nearest = [
            cells[here][cdist(means[cells[here]], centres[[there]]).argmin()]
            for here, there in ((one, other), (other, one))
        ]
        link[nearest[0], nearest[1]] = link[nearest[1], nearest[0]] = 1.0
    return csr_matrix(graph + link)
