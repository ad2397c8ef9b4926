"""Clusters of the posterior means: the first components, and the choice of their number."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, lil_matrix
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from scipy.spatial.distance import cdist
from torch import Tensor

from pyro_scale.training.initialization import subsample_indices

__all__ = ["ComponentChoice", "Start", "choose_n_components", "components_from_means"]

logger = logging.getLogger(__name__)

_N_NEIGHBORS = 15
_MANY = 2_000  # cells, from which ARPACK's factorization takes long
_DEEP = 0.5  # of the median depth; cells with less lie between the clusters
_SHALLOWEST = 0.85  # valley of two clusters that are kept apart
_N_SPLITS, _SHRINKAGE = 6, 0.5
_SHALLOW = 0.65  # valley, of which there may be more that are not seen, if the clusters overlap
_UNSTABLE = 0.85  # agreement of the halves of the peaks, if little is known of each cell
_OVERLAPPING = 0.3  # silhouette of clusters that overlap
_MORE_THAN_ONE = 1.25  # times the silhouette of one Gaussian
_MANY_PAIRS = 1_500  # cells, of whose distances the silhouette is computed
_FEWEST = 3  # cells of each cluster, from which a direction is estimated
_N_POINTS = 60  # at which the density is computed


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


class ComponentChoice(NamedTuple):
    """A number of mixture components, and what speaks for it.

    Attributes
    ----------
    n_components
        The number that is chosen, K.
    table
        One row per number of clusters (index ``n_components``, from one). ``valley``: the lowest
        density between two clusters relative to the lower of their peaks, of the two clusters
        that are separated least; one without a valley. ``silhouette``: the mean silhouette of
        clusters by k-means. ``stability``: the adjusted Rand index of the clusters to which the
        two halves of every cell's peaks are assigned; NaN if unknown.

    Examples
    --------
    >>> means = torch.randn(200, 2) + 9 * torch.eye(2)[torch.arange(200) % 2]
    >>> choice = choose_n_components(means, seed=0)
    >>> choice.table.index.tolist() == list(range(1, 14)), choice.n_components in choice.table.index
    (True, True)
    """

    n_components: int
    table: pd.DataFrame


def choose_n_components(
    loc_nd: Tensor,
    seed: int,
    *,
    depth_n: Sequence[float] | NDArray[np.floating] | None = None,
    half_means: tuple[Tensor, Tensor] | None = None,
    max_components: int = 20,
    max_cells: int = 5_000,
) -> ComponentChoice:
    r"""Choose the number of components, K: the clusters that a valley of the density separates.

    The graph of the cells' nearest neighbors is cut into many clusters
    (:func:`_neighbor_clusters`). Two clusters are one if the density of their cells, along the
    line that discriminates them best (Fisher's linear discriminant), has no valley: if the lowest
    density between their medians is more than 0.85 of the lower of their two peaks. Among such
    pairs the one that is mixed most is merged, again and again; K is the number of clusters when
    no such pair is left. Two clusters i and j with :math:`n_i` and :math:`n_j` cells are mixed by

    .. math:: \frac{e_{ij}}{e_{ii} + e_{ij} + e_{jj}} \Big/
              \frac{2 \, n_i n_j}{(n_i + n_j)^2},

    the fraction of the edges among their cells that join the two, over the fraction that is
    expected if the labels of these cells are shuffled. Clusters that no edge joins are separated.

    The line is fitted to one half of the cells and the density is computed from the other, since
    among few cells there is always a direction that separates them. A cloud that is cut has no
    valley, however long it is; many edges join its parts or few. Cells of little depth, whose
    posterior means lie between the clusters, are left out.

    If little is known of each cell, clusters overlap so much that no valley separates them. K is
    then the number of k-means clusters with the largest mean silhouette (Rousseeuw 1987), if that
    is larger. Little is known if no valley is found, or if the shallowest is above 0.65 and the two
    halves of every cell's peaks are assigned to the same clusters with an adjusted Rand index below
    0.85. The largest silhouette also has to be below 0.3, but 1.25 times that of cells drawn from
    one Gaussian with the same covariance. (In simulations that ratio was 0.97 to 1.06 for cells of
    one type, continuous or not, and 1.2 to 3.6 for overlapping types.)

    (Modularity, the usual criterion, cannot exceed one half for two clusters of equal size, and
    rises if a homogeneous cluster of a sparse graph is cut. ``estimate_k`` of the published SCALE
    counts Tracy-Widom-significant components of a matrix that is not Gaussian.)

    Parameters
    ----------
    loc_nd
        Posterior mean of z of every cell, shape ``(n, d)``.
    seed
        Seed of the clustering, of the halves and of the random choice of cells.
    depth_n
        Sequencing depth of every cell, shape ``(n,)``. Cells with less than half the median are
        left out. None to use all cells.
    half_means
        Posterior means of z from either half of every cell's peaks, each of shape ``(n, d)``, from
        which the stability is computed.
    max_components
        Number of clusters that are merged; less if there are fewer than 15 cells per cluster.
    max_cells
        Largest number of cells that are clustered. If there are more, as many are chosen at
        random.

    References
    ----------
    Hennig 2010, *Methods for merging Gaussian mixture components*,
    doi:10.1007/s11634-010-0058-3 (clusters are merged unless a valley separates them).
    Rousseeuw 1987, *Silhouettes*, doi:10.1016/0377-0427(87)90125-7.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> loc_nd = torch.randn(300, 2, generator=generator)
    >>> loc_nd += 20 * torch.eye(3, 2)[torch.arange(300) % 3]
    >>> choice = choose_n_components(loc_nd, seed=0)
    >>> choice.n_components, choice.table.columns.tolist()
    (3, ['valley', 'silhouette', 'stability'])
    """
    chosen = np.arange(len(loc_nd))
    if depth_n is not None:
        chosen = np.flatnonzero(np.asarray(depth_n) >= _DEEP * np.median(np.asarray(depth_n)))
    chosen = chosen[subsample_indices(max_cells, len(chosen), seed)]
    means = loc_nd[chosen].double().cpu().numpy()
    largest = max(1, min(max_components, len(means) // _N_NEIGHBORS))
    labels = _neighbor_clusters(means, largest, seed) if largest > 1 else np.zeros(len(means), int)
    found = list(_merged(means, labels, seed))
    stability = [np.nan] * len(found)
    if half_means is not None and largest > 1:
        halves = [half[chosen].double().cpu().numpy() for half in half_means]
        stability = _stability(means, halves, [merged for _, _, merged in found])
    table = pd.DataFrame(
        {"valley": [valley for _, valley, _ in found], "stability": stability},
        index=pd.Index([k for k, _, _ in found], name="n_components"),
    ).sort_index()
    table.insert(1, "silhouette", _silhouettes(means, table.index.to_numpy(), seed))
    n_components = _chosen(table, means, seed)
    logger.info(
        "chose n_components=%d from the shallowest valley of the density and the silhouette of "
        "each number of clusters: %s",
        n_components,
        ", ".join(
            f"{k}: {valley:.2f} {silhouette:.2f}"
            for k, valley, silhouette in table[["valley", "silhouette"]].iloc[1:].itertuples()
        ),
    )
    return ComponentChoice(n_components, table)


def _chosen(table: pd.DataFrame, means: NDArray[np.float64], seed: int) -> int:
    """Return the number of components by the rule of :func:`choose_n_components`."""
    numbers = table.index.to_numpy()
    valley, silhouette = table["valley"].to_numpy(), table["silhouette"].to_numpy()
    by_valley = int(numbers[valley <= _SHALLOWEST].max())
    if len(numbers) == 1 or np.isnan(silhouette).all() or np.nanmax(silhouette) >= _OVERLAPPING:
        return by_valley
    row = table.loc[by_valley]
    if by_valley > 1 and not (row["valley"] > _SHALLOW and row["stability"] < _UNSTABLE):
        return by_valley
    factor = np.linalg.cholesky(np.cov(means.T) + 1e-9 * np.eye(means.shape[1]))
    one_cloud = np.random.default_rng(seed).standard_normal(means.shape) @ factor.T
    of_one = np.nanmax(_silhouettes(one_cloud, numbers, seed))
    if np.nanmax(silhouette) <= _MORE_THAN_ONE * of_one:
        return by_valley
    return max(by_valley, int(numbers[np.nanargmax(silhouette)]))


def _silhouettes(
    means: NDArray[np.float64], numbers: Sequence[int] | NDArray[np.integer], seed: int
) -> list[float]:
    """Return the mean silhouette of k-means clusters for each of ``numbers``; NaN for one."""
    from sklearn.metrics import silhouette_score

    means = means[subsample_indices(_MANY_PAIRS, len(means), seed)]
    scores = []
    for k in numbers:
        labels = _kmeans(means, int(k), seed, n_init=3)
        is_defined = 1 < len(np.unique(labels)) < len(means)
        scores.append(float(silhouette_score(means, labels)) if is_defined else np.nan)
    return scores


def _kmeans(means: NDArray[np.float64], k: int, seed: int, *, n_init: int) -> NDArray[np.intp]:
    """Cluster by k-means; with fewer distinct means than clusters, some clusters stay empty."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=ConvergenceWarning)
        labels: NDArray[np.intp] = KMeans(k, n_init=n_init, random_state=seed).fit_predict(means)
    return labels


def _merged(
    means: NDArray[np.float64], labels: NDArray[np.intp], seed: int
) -> Iterator[tuple[int, float, NDArray[np.intp]]]:
    """Merge clusters again and again; yield their number, the shallowest valley and the labels.

    The pair that is mixed most is merged, among those without a valley, and, once there are none,
    among those with the shallowest.
    """
    halves = np.random.default_rng(seed).random((_N_SPLITS, len(means))).argsort(1) % 2 == 0
    labels = np.unique(labels, return_inverse=True)[1]
    graph = _neighbor_graph(means) if labels.any() else None  # of several clusters
    valleys: dict[tuple[int, int], float] = {}
    while graph is not None and len(clusters := np.unique(labels)) > 1:
        mixing_kk = _mixing(graph, labels)
        pairs = {}
        for a, b in zip(*np.triu_indices(len(clusters), 1), strict=True):
            pair = (int(clusters[a]), int(clusters[b]))
            if pair not in valleys and mixing_kk[a, b] > 0:
                valleys[pair] = _valley(means, labels == pair[0], labels == pair[1], halves)
            pairs[pair] = (valleys.get(pair, 0.0), mixing_kk[a, b])
        shallowest = max(valley for valley, _ in pairs.values())
        yield len(clusters), shallowest, labels
        least = min(shallowest, np.nextafter(_SHALLOWEST, 1.0))
        kept, lost = max(
            (pair for pair, (valley, _) in pairs.items() if valley >= least),
            key=lambda pair: pairs[pair][1],
        )
        labels = np.where(labels == lost, kept, labels)
        valleys = {p: v for p, v in valleys.items() if not {kept, lost} & set(p)}
    yield 1, 0.0, labels


def _neighbor_graph(means: NDArray[np.float64]) -> csr_matrix:
    """Return the symmetric graph of nearest neighbors.

    Fewer than fifteen neighbors if there are few cells: more than a small cluster has would have to
    come from elsewhere.
    """
    from sklearn.neighbors import kneighbors_graph  # here: scikit-learn takes long to import

    n_neighbors = min(_N_NEIGHBORS, max(3, len(means) // 10), len(means) - 1)
    graph = kneighbors_graph(means, n_neighbors)
    return csr_matrix(graph.maximum(graph.T))


def _mixing(graph: csr_matrix, labels: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return how much each two clusters are mixed, ``(k, k)`` (:func:`choose_n_components`)."""
    member_nk = np.equal.outer(labels, np.unique(labels)).astype(float)
    size_k, edges_kk = member_nk.sum(0), member_nk.T @ (graph @ member_nk)
    within_k = edges_kk.diagonal()
    joining_kk = edges_kk + edges_kk.T
    total_kk = np.add.outer(within_k, within_k) + joining_kk
    expected_kk = 2 * np.multiply.outer(size_k, size_k) / np.add.outer(size_k, size_k) ** 2
    mixing_kk: NDArray[np.float64] = joining_kk / np.maximum(total_kk, 1) / expected_kk
    return mixing_kk


def _valley(
    means: NDArray[np.float64],
    is_one: NDArray[np.bool_],
    is_other: NDArray[np.bool_],
    halves: NDArray[np.bool_],
) -> float:
    """Return the lowest density between two clusters, relative to the lower of their peaks.

    ``halves`` are splits of the cells into two halves, ``(splits, n)``; the result is the mean over
    splits. It is one if a cluster has too few cells for a direction, or the halves do not agree on
    it.
    """
    return float(np.mean([_valley_of_split(means, is_one, is_other, half) for half in halves]))


def _valley_of_split(
    means: NDArray[np.float64],
    is_one: NDArray[np.bool_],
    is_other: NDArray[np.bool_],
    half: NDArray[np.bool_],
) -> float:
    # Positions along the line, from 0 (median of the one) to 1 (of the other).
    one: list[NDArray[np.float64]] = []
    other: list[NDArray[np.float64]] = []
    for fitted, held_out in ((half, ~half), (~half, half)):
        parts = means[is_one & fitted], means[is_other & fitted]
        if min(map(len, parts)) < _FEWEST:
            return 1.0
        direction = _discriminant(*parts)
        start, end = (np.median(part @ direction) for part in parts)
        if end <= start:
            return 1.0
        for positions, members in ((one, is_one), (other, is_other)):
            positions.append((means[members & held_out] @ direction - start) / (end - start))
    x, y = np.concatenate(one), np.concatenate(other)
    start, end = np.median(x), np.median(y)
    if end <= start:
        return 1.0
    variance = (x.var() * len(x) + y.var() * len(y)) / (len(x) + len(y))
    bandwidth = max(np.sqrt(variance) * min(len(x), len(y)) ** -0.2, 1e-12)  # Scott's rule
    at = np.linspace(start, end, _N_POINTS)
    density = np.exp(-np.square((at[:, None] - np.concatenate([x, y])) / bandwidth) / 2).sum(1)
    lowest = int(density.argmin())
    lower_peak = min(density[: lowest + 1].max(), density[lowest:].max())
    return float(density[lowest] / max(lower_peak, 1e-300))


def _discriminant(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Fisher's linear discriminant, with a covariance shrunk to a multiple of I."""
    deviations = np.concatenate([one - one.mean(0), other - other.mean(0)])
    covariance = deviations.T @ deviations / len(deviations)
    n_latent = len(covariance)
    sphere = np.eye(n_latent) * max(np.trace(covariance) / n_latent, 1e-12)
    shrunk = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * sphere
    direction: NDArray[np.float64] = np.linalg.solve(shrunk, other.mean(0) - one.mean(0))
    return direction


def _stability(
    means: NDArray[np.float64],
    halves: Sequence[NDArray[np.float64]],
    labelings: Sequence[NDArray[np.intp]],
) -> list[float]:
    """Return, for each labeling of the cells, whether both halves of a cell get the same label.

    Either half is assigned to the label that most of its neighbors among the other cells' ``means``
    have; the agreement is the adjusted Rand index, and one for a single cluster.
    """
    from sklearn.metrics import adjusted_rand_score
    from sklearn.neighbors import NearestNeighbors

    n_neighbors = min(_N_NEIGHBORS, len(means) - 1)
    index = NearestNeighbors(n_neighbors=n_neighbors + 1).fit(means)
    neighbors = []
    for half in halves:
        found = index.kneighbors(half, return_distance=False)
        is_itself = found == np.arange(len(means))[:, None]
        is_itself[:, -1] |= ~is_itself.any(1)  # else the farthest is left out
        neighbors.append(found[~is_itself].reshape(len(means), n_neighbors))
    agreement = []
    for labels in labelings:
        codes = np.unique(labels, return_inverse=True)[1]
        one, other = (np.eye(codes.max() + 1)[codes][near].sum(1).argmax(1) for near in neighbors)
        agreement.append(float(adjusted_rand_score(one, other)))
    return agreement


def _neighbor_clusters(means: NDArray[np.float64], k: int, seed: int) -> NDArray[np.intp]:
    """Cluster cells by normalized cuts of the 15-nearest-neighbor graph.

    Cuts of a graph find clusters of any shape and are robust to outlying cells, which become
    clusters of their own in k-means (Yu and Shi 2003, doi:10.1109/ICCV.2003.1238361). k-means is
    used if there are too few cells for a graph, or if a cut leaves a cluster empty.
    """
    from sklearn.cluster import SpectralClustering
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
    return _kmeans(means, k, seed, n_init=20)


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
