"""Transforms of the accessibility matrix: binarize, log1p, TF-IDF."""

from __future__ import annotations

import numpy as np
from anndata import AnnData

from pyro_scale.preprocessing._copies import in_memory, replaced

__all__ = ["binarize", "log_transform", "tf_idf"]


def binarize(adata: AnnData, *, layer: str | None = None, inplace: bool = False) -> AnnData:
    """Set every non-zero entry to one.

    (The published SCALE changes the user's matrix in place, without a message.)

    Parameters
    ----------
    adata
        Cells x peaks.
    layer
        Layer to transform; None transforms ``X``.
    inplace
        Whether to modify ``adata`` itself instead of a copy.

    Returns
    -------
    AnnData
        The transformed copy; ``adata`` itself if ``inplace``.

    Examples
    --------
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, density=0.2, counts=True, seed=0)
    >>> bool(adata.X.max() > 1), float(ps.pp.binarize(adata).X.max())
    (True, 1.0)
    """
    x = in_memory(adata, layer)
    x.data[:] = 1
    return replaced(adata, layer, x, inplace=inplace)


def log_transform(adata: AnnData, *, layer: str | None = None, inplace: bool = False) -> AnnData:
    """Replace every entry x by log(1 + x).

    The result is for other tools; the models of this package need counts.

    Parameters
    ----------
    adata
        Cells x peaks.
    layer
        Layer to transform; None transforms ``X``.
    inplace
        Whether to modify ``adata`` itself instead of a copy.

    Returns
    -------
    AnnData
        The transformed copy; ``adata`` itself if ``inplace``.

    Examples
    --------
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, density=0.2, counts=True, seed=0)
    >>> bool(abs(ps.pp.log_transform(adata).X - adata.X.log1p()).max() == 0)
    True
    """
    x = in_memory(adata, layer)
    return replaced(adata, layer, x.log1p(), inplace=inplace)


def tf_idf(adata: AnnData, *, layer: str | None = None, inplace: bool = False) -> AnnData:
    r"""Apply TF-IDF (term frequency-inverse document frequency), as in latent semantic indexing.

    .. math:: y_{np} = \log\big(1 + 10^4 \, \tfrac{x_{np}}{\sum_p x_{np}}
              \log(1 + N / N_p)\big), \quad N_p \text{ cells have peak } p \text{ open}

    Parameters
    ----------
    adata
        Cells x peaks.
    layer
        Layer to transform; None transforms ``X``.
    inplace
        Whether to modify ``adata`` itself instead of a copy.

    Returns
    -------
    AnnData
        The transformed copy; ``adata`` itself if ``inplace``.

    References
    ----------
    Cusanovich et al. 2015, doi:10.1126/science.aab1601; in this form Stuart et al. 2021,
    doi:10.1038/s41592-021-01282-5 (Signac).

    Examples
    --------
    >>> weighted = ps.pp.tf_idf(adata)
    >>> weighted.shape, weighted.X.nnz == adata.X.nnz
    ((40, 60), True)
    """
    x = in_memory(adata, layer)
    depth_n = np.maximum(np.asarray(x.sum(1), dtype=np.float64).ravel(), 1)
    idf_p = np.log1p(x.shape[0] / np.maximum(x.getnnz(0), 1))
    row = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
    x.data = np.log1p(1e4 * x.data / depth_n[row] * idf_p[x.indices]).astype(np.float32)
    return replaced(adata, layer, x, inplace=inplace)
