"""Initialization of the networks from the data and of the mixture from the encoder's means."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csr_matrix, lil_matrix
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from scipy.spatial.distance import cdist
from torch import Tensor

from pyro_scale.config import ModelConfig
from pyro_scale.data import CountMatrix, loader, sparse_cells
from pyro_scale.programs import BernoulliLikelihood, Lsi, MixturePrior, MixtureVAE

__all__ = [
    "Start",
    "build_vae",
    "choose_n_components",
    "components_from_means",
    "fit_lsi",
    "moments",
    "standard_normal_prior",
    "subsample_indices",
]

_CHUNK = 1024  # cells whose TF-IDF is computed at a time


def build_vae(counts: CountMatrix, config: ModelConfig) -> MixtureVAE:
    """Build the networks of a configuration and initialize them from the cells.

    With the default preset the encoder reads the latent semantic indexing (LSI) of the cells, and
    the Bernoulli likelihood has a term for sequencing depth. With either preset the decoder's bias
    starts at each peak's mean accessibility, on the scale of the decoder's output; this changes
    where training starts, not the model.

    Parameters
    ----------
    counts
        The training cells.
    config
        The configuration; ``n_components=None`` gives a mixture of one component.

    Examples
    --------
    >>> from pyro_scale.config import ModelConfig
    >>> vae = build_vae(counts, ModelConfig(3, 2, hidden=(8,), preset="plain"))
    >>> vae.n_peaks, vae.n_components, vae.n_latent
    (60, 3, 2)
    """
    lsi = None
    if not config.plain:
        lsi = fit_lsi(counts, config.n_lsi, config.seed, n_batches=config.n_batches)
    mean_log_depth = float(np.log(counts.depth).mean()) if config.has_depth_term else None
    vae = config.build_vae(counts.n_peaks, lsi=lsi, mean_log_depth=mean_log_depth)
    with torch.no_grad():
        vae.likelihood.peaks.bias.copy_(torch.from_numpy(_peak_bias(vae, counts)).float())
    return vae


def subsample_indices(max_cells: int, n_cells: int, seed: int) -> NDArray[np.intp]:
    """Return the sorted indices of at most ``max_cells`` of ``n_cells`` cells, chosen at random."""
    return np.sort(np.random.default_rng(seed).permutation(n_cells)[:max_cells])


def fit_lsi(
    counts: CountMatrix,
    n_directions: int,
    seed: int,
    *,
    n_batches: int = 1,
    max_cells: int = 20_000,
) -> Lsi:
    """Fit the latent semantic indexing (LSI) that the encoder reads: singular vectors of TF-IDF.

    The first singular vector, which correlates with sequencing depth, is left out. The result has
    fewer than ``n_directions`` directions if there are too few cells or peaks.

    Parameters
    ----------
    counts
        The cells.
    n_directions
        Number of directions, R.
    seed
        Seed of the randomized SVD and of the random choice of cells.
    n_batches
        Number of batches; the mean of each batch is subtracted from its cells.
    max_cells
        Largest number of cells that are decomposed. If there are more, as many are chosen at
        random, so that time and memory do not grow with the number of cells on disk.

    Examples
    --------
    >>> lsi = fit_lsi(counts, n_directions=5, seed=0)
    >>> lsi.directions_pr.shape
    torch.Size([60, 5])
    """
    from sklearn.preprocessing import normalize  # here, because it takes long to import
    from sklearn.utils.extmath import randomized_svd

    chosen = subsample_indices(max_cells, counts.n_cells, seed)
    rank = min(n_directions + 1, len(chosen), counts.n_peaks)
    lsi = Lsi(counts.n_peaks, max(1, rank - 1), n_batches)
    y = normalize(_tf_idf(lsi, counts[chosen]), copy=False)
    _, _, directions_rp = randomized_svd(y, rank, n_iter=7, random_state=seed)
    lsi.directions_pr.copy_(torch.from_numpy(directions_rp[min(1, rank - 1) :].T.copy()))
    for batch in range(n_batches if counts.batch is not None else 0):
        members = np.flatnonzero(counts.batch == batch)
        some = members[subsample_indices(max_cells, len(members), seed)]
        lsi.centre(sparse_cells(counts[some]))
    return lsi


def _tf_idf(lsi: Lsi, counts: CountMatrix) -> sparse.csr_matrix:
    """Return the TF-IDF, shape ``(n, p)``, and store the inverse document frequencies in ``lsi``.

    The matrix of ``counts`` is overwritten if it is in memory; pass a copy.
    """
    x = counts.read()
    idf_p = np.log1p(counts.n_cells / np.maximum(x.getnnz(0), 1))
    lsi.idf_p.copy_(torch.from_numpy(idf_p))
    counts = replace(counts, x=x)
    for start in range(0, counts.n_cells, _CHUNK):
        part = slice(start, min(start + _CHUNK, counts.n_cells))
        cells = sparse_cells(counts[part])
        entries = slice(x.indptr[part.start], x.indptr[part.stop])
        x.data[entries] = lsi.tf_idf(cells.x_np, cells.depth_n).values().numpy()
    return x


def _peak_bias(vae: MixtureVAE, counts: CountMatrix) -> NDArray[np.float64]:
    """Return the decoder bias that fits each peak's mean over cells, shape ``(p,)``.

    It is the logit of the fraction of cells with the peak open (Bernoulli likelihood), or the log
    of the peak's fraction of all counts (Poisson likelihood), with a pseudocount of one half.
    """
    total_p = np.full(counts.n_peaks, 0.5)
    for _, x in counts.chunks():
        total_p += np.asarray(x.sum(0), dtype=np.float64).ravel()
    if isinstance(vae.likelihood, BernoulliLikelihood):
        open_p = total_p / (counts.n_cells + 1)
        logit_p: NDArray[np.float64] = np.log(open_p) - np.log1p(-open_p)
        return logit_p
    log_p: NDArray[np.float64] = np.log(total_p / total_p.sum())
    return log_p


def standard_normal_prior(n_latent: int) -> MixturePrior:
    """Return the prior of the warm-up: N(0, I) as a mixture of one component, without gradients."""
    prior = MixturePrior(1, n_latent)
    prior.set_components(torch.ones(1), torch.zeros(1, n_latent), torch.ones(1, n_latent))
    return prior.requires_grad_(False)


logger = logging.getLogger(__name__)

_N_NEIGHBORS = 15
_MANY = 2_000  # cells, from which ARPACK's factorization takes long
_SEPARATED = 0.25  # largest mixing of two clusters that are kept apart


class Start(NamedTuple):
    """Initial weights, means and variances of the mixture.

    Attributes
    ----------
    pi_k, loc_kd, var_kd
        Tensors of shape ``(K,)``, ``(K, D)``, ``(K, D)``.
    """

    pi_k: Tensor
    loc_kd: Tensor
    var_kd: Tensor


@torch.inference_mode()
def moments(vae: MixtureVAE, counts: CountMatrix, batch_size: int = 512) -> tuple[Tensor, Tensor]:
    """Return mean and variance of q(z|x) of every cell, each ``(n, d)``, in the cells' order.

    Parameters
    ----------
    vae
        The model.
    counts
        The cells.
    batch_size
        Number of cells that are encoded at a time.

    Examples
    --------
    >>> loc_nd, var_nd = moments(model.vae, counts)
    >>> loc_nd.shape, var_nd.shape
    (torch.Size([40, 3]), torch.Size([40, 3]))
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
    """Initialize the components from clusters of the posterior means.

    Cells are clustered on the graph of their nearest neighbors (:func:`_neighbor_clusters`).
    Each component starts at the mean of a cluster, with the cluster's fraction of the cells as its
    weight. All components start with the same variance per dimension, pooled over the clusters: the
    mean squared distance to the cluster's mean plus the mean posterior variance. (The published
    SCALE fits a diagonal Gaussian mixture to one sample per cell from an untrained encoder, and
    discards its weights.)

    Parameters
    ----------
    loc_nd, var_nd
        Mean and variance of q(z|x) of every cell, shape ``(n, d)``.
    n_components
        Number of components, K; at most n.
    seed
        Seed of the clustering and of the random choice of cells.
    max_cells
        Largest number of cells that are clustered. If there are more, as many are chosen at
        random.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> loc_nd = torch.randn(90, 2, generator=generator)
    >>> loc_nd += 20 * torch.eye(3, 2)[torch.arange(90) % 3]
    >>> start = components_from_means(loc_nd, torch.ones(90, 2), n_components=3, seed=0)
    >>> start.pi_k, start.loc_kd.shape
    (tensor([0.3333, 0.3333, 0.3333]), torch.Size([3, 2]))
    """
    chosen = subsample_indices(max_cells, len(loc_nd), seed)
    loc_nd, var_nd = loc_nd[chosen], var_nd[chosen]
    means = loc_nd.double().cpu().numpy()
    labels = _neighbor_clusters(means, n_components, seed)
    member_kn = np.equal.outer(np.arange(n_components), labels)
    size_k = member_kn.sum(1)
    mean_kd = member_kn @ means / size_k.clip(1)[:, None]
    within_d = np.square(means - mean_kd[labels]).mean(0)
    var_d = torch.from_numpy(within_d) + var_nd.double().cpu().mean(0)
    logger.info("the mixture is initialized from clusters of %s cells", size_k.tolist())
    return Start(
        torch.from_numpy(size_k / len(means)).to(loc_nd),
        torch.from_numpy(mean_kd).to(loc_nd),
        var_d.expand(n_components, -1).to(loc_nd),
    )


def choose_n_components(
    loc_nd: Tensor, seed: int, *, max_components: int = 20, max_cells: int = 5_000
) -> int:
    r"""Choose the number of components, K, by merging clusters that are not separated.

    The graph of the cells' nearest neighbors is cut into many clusters
    (:func:`_neighbor_clusters`), and the two clusters that are mixed most are merged, again and
    again. K is the largest number of clusters of which no two are mixed by more than a quarter. Two
    clusters i and j with :math:`n_i` and :math:`n_j` cells are mixed by

    .. math:: \frac{e_{ij}}{e_{ii} + e_{ij} + e_{jj}} \Big/
              \frac{2 \, n_i n_j}{(n_i + n_j)^2},

    the fraction of the edges among their cells that join the two, over the fraction that is
    expected if the labels of these cells are shuffled. It is one for labels at random and zero for
    separated clusters; for simulated clusters that had been cut in two it was 0.26 to 0.6. A
    cluster that is much longer in one direction than in the others is cut, because few edges join
    its ends.

    (Modularity, the usual criterion, cannot exceed one half for two clusters of equal size, and
    rises if a homogeneous cluster of a sparse graph is cut. ``estimate_k`` of the published SCALE
    counts Tracy-Widom-significant components of a matrix that is not Gaussian.)

    Parameters
    ----------
    loc_nd
        Posterior mean of z of every cell, shape ``(n, d)``.
    seed
        Seed of the clustering and of the random choice of cells.
    max_components
        Number of clusters that are merged; less if there are fewer than 15 cells per cluster.
    max_cells
        Largest number of cells that are clustered. If there are more, as many are chosen at
        random.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> loc_nd = torch.randn(90, 2, generator=generator)
    >>> loc_nd += 20 * torch.eye(3, 2)[torch.arange(90) % 3]
    >>> choose_n_components(loc_nd, seed=0)
    3
    """
    means = loc_nd[subsample_indices(max_cells, len(loc_nd), seed)].double().cpu().numpy()
    largest = min(max_components, len(means) // _N_NEIGHBORS)
    if largest < 2:
        return 1
    from sklearn.neighbors import kneighbors_graph  # here: scikit-learn takes long to import

    # Fewer neighbors than a small cluster has cells: others would have to come from elsewhere.
    graph = kneighbors_graph(means, min(_N_NEIGHBORS, max(3, len(means) // 10)))
    graph = graph.maximum(graph.T)
    mixing = _mixing_of_merged(graph, _neighbor_clusters(means, largest, seed))
    chosen = max(k for k, mixed in mixing.items() if mixed <= _SEPARATED)
    table = ", ".join(f"{k}: {mixed:.2f}" for k, mixed in sorted(mixing.items()) if k > 1)
    logger.info(
        "chose n_components=%d; for each K, how much the most mixed two clusters are mixed: %s",
        chosen,
        table,
    )
    return chosen


def _mixing_of_merged(graph: csr_matrix, labels: NDArray[np.intp]) -> dict[int, float]:
    """Merge the two most mixed clusters again and again; return the largest mixing at each K.

    ``graph`` is the symmetric graph of neighbors. The mixing of one cluster is zero.
    """
    member_nk = np.equal.outer(labels, np.unique(labels)).astype(float)
    size_k, edges_kk = member_nk.sum(0), member_nk.T @ (graph @ member_nk)
    found = {1: 0.0}
    while len(size_k) > 1:
        within_k = edges_kk.diagonal()
        joining_kk = edges_kk + edges_kk.T
        total_kk = np.add.outer(within_k, within_k) + joining_kk
        sizes_kk = np.add.outer(size_k, size_k)
        expected_kk = 2 * np.multiply.outer(size_k, size_k) / sizes_kk**2
        mixing_kk = joining_kk / np.maximum(total_kk, 1) / expected_kk
        np.fill_diagonal(mixing_kk, -1.0)
        i, j = np.unravel_index(mixing_kk.argmax(), mixing_kk.shape)
        found[len(size_k)] = float(mixing_kk[i, j])
        merge = np.eye(len(size_k))
        merge[j, i] = 1
        merge = np.delete(merge, j, axis=1)  # of old clusters into new ones
        size_k, edges_kk = size_k @ merge, merge.T @ edges_kk @ merge
    return found


def _neighbor_clusters(means: NDArray[np.float64], k: int, seed: int) -> NDArray[np.intp]:
    """Cluster cells by normalized cuts of the 15-nearest-neighbor graph.

    Cuts of a graph find clusters of any shape and are robust to outlying cells, which become
    clusters of their own in k-means (Yu and Shi 2003, doi:10.1109/ICCV.2003.1238361). k-means is
    used if there are too few cells for a graph, or if a cut leaves a cluster empty.
    """
    from sklearn.cluster import KMeans, SpectralClustering
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neighbors import kneighbors_graph

    if k > 1 and len(means) >= 5 * k and len(means) > _N_NEIGHBORS:
        graph = kneighbors_graph(means, _N_NEIGHBORS, include_self=True)
        # ARPACK factorizes the graph's matrix, which takes a minute for 15,000 cells.
        solver = "arpack" if len(means) < _MANY else "lobpcg"
        labels: NDArray[np.intp] = SpectralClustering(
            k,
            affinity="precomputed",
            assign_labels="discretize",
            eigen_solver=solver,
            random_state=seed,
        ).fit_predict(_joined((graph + graph.T) / 2, means))
        if len(np.unique(labels)) == k:
            return labels
    with warnings.catch_warnings():  # with fewer distinct means than clusters, some stay empty
        warnings.filterwarnings("ignore", category=ConvergenceWarning)
        labels = KMeans(k, n_init=20, random_state=seed).fit(means).labels_
    return labels


def _joined(graph: csr_matrix, means: NDArray[np.float64]) -> csr_matrix:
    """Join the connected components of a graph by the edges of their minimum spanning tree.

    Spectral clustering needs the eigenvectors of the largest eigenvalue, one. That eigenvalue is
    repeated as often as there are connected components, and ARPACK may miss eigenvectors of a
    repeated eigenvalue (scipy before 1.17 does).
    """
    n_parts, part_n = connected_components(graph, directed=False)
    if n_parts == 1:
        return csr_matrix(graph)
    cells = [np.flatnonzero(part_n == part) for part in range(n_parts)]
    part_means = np.stack([means[members].mean(0) for members in cells])
    tree = minimum_spanning_tree(1 + cdist(part_means, part_means)).tocoo()  # zero is no edge
    links = lil_matrix(graph.shape)
    for one, other in zip(tree.row, tree.col, strict=True):
        nearest = [
            cells[here][cdist(means[cells[here]], part_means[[there]]).argmin()]
            for here, there in ((one, other), (other, one))
        ]
        links[nearest[0], nearest[1]] = links[nearest[1], nearest[0]] = 1.0
    return csr_matrix(graph + links)
