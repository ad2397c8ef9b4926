"""Two-dimensional embeddings for plotting (UMAP, t-SNE) and the nearest-neighbor graph."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal, get_args

import numpy as np
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from pyro_scale._validation import (
    check_array,
    check_choice,
    check_int,
    check_number,
    check_seed,
)

__all__ = [
    "EmbeddingMethod",
    "as_latent",
    "default_embedding",
    "embed",
    "neighbor_graph",
    "scanpy_module",
    "threads_kept",
]

EmbeddingMethod = Literal["umap", "tsne"]

_MIN_CELLS = 5  # with fewer, neither method has enough neighbors


def scanpy_module() -> Any:
    """Import scanpy, an optional dependency that is slow to import."""
    try:
        with warnings.catch_warnings():  # its imports add warning filters
            import scanpy
    except ImportError as error:
        raise ImportError(
            'this needs scanpy: pip install "pyro-scale[scanpy]" (t-SNE and k-means do not).'
        ) from error
    return scanpy


def default_embedding() -> EmbeddingMethod:
    """Return the embedding that is used if none is named: UMAP if scanpy is installed, or t-SNE."""
    return "umap" if find_spec("scanpy") else "tsne"


def as_latent(latent_nd: ArrayLike) -> NDArray[np.float32]:
    """Return the latent means as a float32 matrix; raise ValueError unless all are finite."""
    z_nd = check_array("latent_nd", latent_nd, np.float32)
    if z_nd.ndim != 2 or 0 in z_nd.shape:
        raise ValueError(f"latent_nd has shape {z_nd.shape}; expected cells x dimensions.")
    if not np.isfinite(z_nd).all():
        raise ValueError(f"latent_nd has {int((~np.isfinite(z_nd)).sum())} NaN or infinities.")
    return z_nd


@contextmanager
def threads_kept() -> Iterator[None]:
    """Restore the number of threads on exit, because Numba, which UMAP uses, changes torch's."""
    from threadpoolctl import threadpool_limits  # a dependency of scikit-learn

    with threadpool_limits(limits=None):
        yield


def neighbor_graph(latent_nd: NDArray[np.float32], n_neighbors: int, seed: int) -> AnnData:
    """Return an AnnData with scanpy's graph of at most ``n_neighbors`` nearest neighbors."""
    check_int("n_neighbors", n_neighbors, least=2)
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
    """Embed latent means in two dimensions for plotting.

    Distances in the embedding are not meaningful.

    Parameters
    ----------
    latent_nd
        Latent means, shape ``(n, d)``.
    method
        ``"umap"`` by scanpy (``pip install "pyro-scale[scanpy]"``), or ``"tsne"`` by
        scikit-learn, initialized with the first principal components. For fewer than five cells
        either method returns the first two latent dimensions.
    n_neighbors
        Number of nearest neighbors per cell in UMAP; reduced to the number of other cells if
        larger.
    min_dist
        Minimum distance between points in UMAP's embedding, from 0 to 1.
    seed
        Seed of the random number generator of either method.

    Returns
    -------
    ndarray
        Coordinates, shape ``(n, 2)``.

    Raises
    ------
    ValueError
        If ``method`` is not known, or the latent means are not a matrix of finite numbers.
    ImportError
        If ``method`` is ``"umap"`` and scanpy is not installed.

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
    check_int("n_neighbors", n_neighbors, least=2)
    check_number("min_dist", min_dist, least=0, most=1)
    check_seed(seed)
    z_nd = as_latent(latent_nd)
    # t-SNE divides by the standard deviation of its start, and crashes the interpreter if it is 0.
    if len(z_nd) < _MIN_CELLS or not np.ptp(z_nd, axis=0).any():
        return np.pad(z_nd, ((0, 0), (0, 2)))[:, :2]
    if method == "tsne":
        from sklearn.manifold import TSNE  # imported here because it is slow

        perplexity = min(30.0, (len(z_nd) - 1) / 3)
        init = "pca" if min(z_nd.shape) >= 2 else "random"
        tsne = TSNE(perplexity=perplexity, init=init, random_state=seed)
        with threads_kept():
            xy_n2: NDArray[np.float32] = tsne.fit_transform(z_nd).astype(np.float32)
        return xy_n2
    cells = neighbor_graph(z_nd, n_neighbors, seed)
    with threads_kept(), warnings.catch_warnings():
        # UMAP warns that a fixed seed makes it run on one thread, which is intended.
        warnings.filterwarnings("ignore", message="n_jobs value", category=UserWarning)
        scanpy_module().tl.umap(cells, min_dist=min_dist, random_state=seed)
    return np.asarray(cells.obsm["X_umap"], dtype=np.float32)
