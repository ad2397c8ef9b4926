"""Two dimensions for the eye, and the graph of neighbours they come from."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import numpy as np
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from pyro_scale.checks import (
    check_array,
    check_choice,
    check_number,
    check_seed,
    check_whole,
)

__all__ = [
    "EmbeddingMethod",
    "as_latent",
    "embed",
    "neighbor_graph",
    "scanpy_module",
    "threads_kept",
]

EmbeddingMethod = Literal["umap", "tsne"]

_FEWEST = 5  # cells that have enough neighbours for either method


def scanpy_module() -> Any:
    """Scanpy, which takes long to import and is an extra."""
    try:
        with warnings.catch_warnings():  # which its imports add filters to
            import scanpy
    except ImportError as error:
        raise ImportError(
            'this needs scanpy: pip install "pyro-scale[scanpy]" (t-SNE and k-means do without).'
        ) from error
    return scanpy


def as_latent(latent_nd: ArrayLike) -> NDArray[np.float32]:
    """Checked: a matrix of finite numbers."""
    z_nd = check_array("latent_nd", latent_nd, np.float32)
    if z_nd.ndim != 2 or 0 in z_nd.shape:
        raise ValueError(f"latent_nd has shape {z_nd.shape}; expected cells x dimensions.")
    if not np.isfinite(z_nd).all():
        raise ValueError(f"latent_nd has {int((~np.isfinite(z_nd)).sum())} NaN or infinities.")
    return z_nd


@contextmanager
def threads_kept() -> Iterator[None]:
    """Give every thread pool back as it was: numba, which UMAP runs on, resets torch's."""
    # Scikit-learn depends on it.
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=None):
        yield


def neighbor_graph(latent_nd: NDArray[np.float32], n_neighbors: int, seed: int) -> AnnData:
    """An AnnData that holds scanpy's graph of nearest neighbours, of fewer where cells are few."""
    check_whole("n_neighbors", n_neighbors, least=2)
    scanpy = scanpy_module()
    cells = AnnData(obsm={"latent": latent_nd})
    n_neighbors = min(n_neighbors, len(latent_nd) - 1)
    with threads_kept(), warnings.catch_warnings():
        scanpy.pp.neighbors(cells, n_neighbors, use_rep="latent", random_state=seed)
    return cells


def embed(
    latent_nd: ArrayLike,
    *,
    method: EmbeddingMethod = "umap",
    n_neighbors: int = 30,
    min_dist: float = 0.1,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Two dimensions for the eye, shape ``(n, 2)``; distances in them mean little.

    Parameters
    ----------
    latent_nd
        Latent means, shape ``(n, d)``.
    method
        ``"umap"`` by scanpy (``pip install "pyro-scale[scanpy]"``), or ``"tsne"`` by
        scikit-learn, started from the first principal components. Fewer than five cells: their
        first two dimensions.
    n_neighbors, min_dist
        Of UMAP: size of the neighbourhood (at most the other cells), and how close points lie.
    seed
        Of either method.

    Raises
    ------
    ValueError
        For another method, or latent means that are not a matrix of finite numbers.
    ImportError
        If UMAP is asked for without scanpy.

    References
    ----------
    McInnes, Healy & Melville 2018, arXiv:1802.03426; van der Maaten & Hinton 2008, JMLR 9:2579.

    Examples
    --------
    >>> import numpy as np
    >>> embed(np.eye(4, 3), method="tsne").shape
    (4, 2)
    """
    check_choice("method", method, get_args(EmbeddingMethod))
    check_whole("n_neighbors", n_neighbors, least=2)
    check_number("min_dist", min_dist, least=0, most=1)
    check_seed(seed)
    z_nd = as_latent(latent_nd)
    if len(z_nd) < _FEWEST:
        return np.pad(z_nd, ((0, 0), (0, 2)))[:, :2]
    if method == "tsne":
        from sklearn.manifold import TSNE  # here, because it takes long to import

        perplexity = min(30.0, (len(z_nd) - 1) / 3)
        init = "pca" if min(z_nd.shape) >= 2 else "random"
        tsne = TSNE(perplexity=perplexity, init=init, random_state=seed)
        with threads_kept():
            places_nd: NDArray[np.float32] = tsne.fit_transform(z_nd).astype(np.float32)
        return places_nd
    cells = neighbor_graph(z_nd, n_neighbors, seed)
    with threads_kept(), warnings.catch_warnings():
        # A fixed seed makes UMAP run on one thread, as it should.
        warnings.filterwarnings("ignore", message="n_jobs value", category=UserWarning)
        scanpy_module().tl.umap(cells, min_dist=min_dist, random_state=seed)
    return np.asarray(cells.obsm["X_umap"], dtype=np.float32)
