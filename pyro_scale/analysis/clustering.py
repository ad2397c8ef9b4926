"""k-means and Leiden clusters of the latent means, as alternatives to the mixture's clusters."""

from __future__ import annotations

import warnings
from importlib import import_module

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from pyro_scale._validation import check_int, check_number, check_seed
from pyro_scale.analysis.embedding import (
    as_latent,
    neighbor_graph,
    scanpy_module,
    threads_kept,
)

__all__ = ["kmeans_clusters", "leiden_clusters"]


def _categorical(codes: NDArray[np.intp], n_clusters: int) -> pd.Categorical:
    names = [str(k) for k in range(n_clusters)]
    return pd.Categorical([names[code] for code in codes], categories=names)


def kmeans_clusters(latent_nd: ArrayLike, n_clusters: int, *, seed: int = 0) -> pd.Categorical:
    """Cluster latent means by k-means, with the best of 20 random starts, as in SCALE.

    Parameters
    ----------
    latent_nd
        Latent means, shape ``(n, d)``.
    n_clusters
        Number of clusters K, at most the number of cells.
    seed
        Seed of the random number generator that draws the initial centers.

    Returns
    -------
    Categorical
        Cluster of each cell, shape ``(n,)``, with the categories ``"0"`` to ``"K-1"``.

    Examples
    --------
    >>> list(kmeans_clusters([[0.0], [0.1], [5.0]], 2).codes) in ([0, 0, 1], [1, 1, 0])
    True
    """
    z_nd = as_latent(latent_nd)
    n_clusters, seed = check_int("n_clusters", n_clusters), check_seed(seed)
    if n_clusters > len(z_nd):
        raise ValueError(
            f"n_clusters={n_clusters} for {len(z_nd)} cells; expected 1 to {len(z_nd)}."
        )
    from sklearn.cluster import KMeans  # imported here because it is slow

    with threads_kept(), warnings.catch_warnings():
        # Empty clusters are allowed: there may be fewer distinct cells than clusters.
        warnings.filterwarnings("ignore", message="Number of distinct clusters")
        codes = KMeans(n_clusters, n_init=20, random_state=seed).fit_predict(z_nd)
    return _categorical(codes, n_clusters)


def leiden_clusters(
    latent_nd: ArrayLike, *, resolution: float = 1.0, n_neighbors: int = 30, seed: int = 0
) -> pd.Categorical:
    """Cluster latent means by Leiden on their nearest-neighbor graph, with scanpy and igraph.

    Parameters
    ----------
    latent_nd
        Latent means, shape ``(n, d)``, of at least three cells.
    resolution
        Resolution parameter of Leiden, positive; a larger value gives more clusters.
    n_neighbors
        Number of nearest neighbors per cell; reduced to the number of other cells if larger.
    seed
        Seed of the random number generators of the neighbor search and of Leiden.

    Returns
    -------
    Categorical
        Cluster of each cell, shape ``(n,)``, with the categories ``"0"`` (the largest cluster) to
        ``"K-1"``.

    Raises
    ------
    ImportError
        If scanpy or igraph is missing: ``pip install "pyro-scale[scanpy]"``.

    References
    ----------
    Traag, Waltman & van Eck 2019, doi:10.1038/s41598-019-41695-z.

    Examples
    --------
    >>> import numpy as np
    >>> z_nd = np.random.default_rng(0).normal(size=(40, 2)) + 9 * (np.arange(40) % 2)[:, None]
    >>> clusters = leiden_clusters(z_nd, resolution=0.1, n_neighbors=10)
    >>> len(clusters), clusters.categories.tolist()
    (40, ['0', '1'])
    """
    z_nd = as_latent(latent_nd)
    if len(z_nd) < 3:
        raise ValueError(
            f"{len(z_nd)} cells are too few for a neighbor graph; expected at least three."
        )
    if check_number("resolution", resolution) <= 0:
        raise ValueError(f"resolution={resolution} must be positive.")
    check_seed(seed)
    scanpy = scanpy_module()
    try:
        import_module("igraph")  # scanpy calls it
    except ImportError as error:
        raise ImportError('Leiden needs igraph: pip install "pyro-scale[scanpy]".') from error
    cells = neighbor_graph(z_nd, n_neighbors, seed)
    with threads_kept(), warnings.catch_warnings():
        scanpy.tl.leiden(
            cells,
            resolution=resolution,
            flavor="igraph",
            n_iterations=2,
            directed=False,
            random_state=seed,
        )
    codes = cells.obs["leiden"].astype(int).to_numpy(dtype=np.intp)
    return _categorical(codes, int(codes.max()) + 1)
