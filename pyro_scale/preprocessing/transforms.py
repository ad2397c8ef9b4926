"""Transforms of the accessibility matrix: binarize, fragments, log1p, TF-IDF; peak names."""

from __future__ import annotations

import logging

import numpy as np
from anndata import AnnData

from pyro_scale._validation import check_adata, check_bool, check_choice, listed
from pyro_scale.data.backed import load
from pyro_scale.data.peak_names import PEAK_STYLES, PeakStyle, formatted, in_style
from pyro_scale.exceptions import DataError
from pyro_scale.preprocessing._copies import in_memory, replaced

__all__ = ["binarize", "format_peak_names", "log_transform", "reads_to_fragments", "tf_idf"]

logger = logging.getLogger(__name__)


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


def reads_to_fragments(
    adata: AnnData, *, layer: str | None = None, inplace: bool = False
) -> AnnData:
    """Convert counts of reads to counts of fragments: half of each count, rounded up.

    Each of the two ends of a fragment is a read, so counts of reads are mostly even, which a
    Poisson likelihood cannot fit. Counts of fragments are close to Poisson.

    Parameters
    ----------
    adata
        Cells x peaks, counts of reads (as in the matrices of Cell Ranger ATAC).
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
    Martens et al. 2024, *Modeling fragment counts improves single-cell ATAC-seq analysis*, Nature
    Methods 21:28-31, doi:10.1038/s41592-023-02112-6.

    Examples
    --------
    >>> reads = adata.copy()
    >>> reads.X.data[:4] = [1, 2, 3, 4]
    >>> ps.pp.reads_to_fragments(reads).X.data[:4].tolist()
    [1.0, 1.0, 2.0, 2.0]
    """
    x = in_memory(adata, layer)
    x.data = np.ceil(x.data / 2)
    return replaced(adata, layer, x, inplace=inplace)


def format_peak_names(
    adata: AnnData, peak_style: PeakStyle = "chr:start-end", *, inplace: bool = False
) -> AnnData:
    """Bring the names of the peaks to one notation.

    Tools write a region of a genome as ``chr1:100-200`` (10x), ``chr1-100-200`` (Signac),
    ``chr1_100_200`` or, after R's ``make.names``, ``chr1.100.200``. Peaks are matched by name, so
    the cells of two tools can be joined only in one notation.

    Parameters
    ----------
    adata
        Cells x peaks.
    peak_style
        ``"chr:start-end"``, ``"chr-start-end"``, ``"chr_start_end"`` or ``"chr.start.end"``.
    inplace
        Whether to modify ``adata`` itself instead of a copy.

    Returns
    -------
    AnnData
        The copy with the new names; ``adata`` itself if ``inplace``.

    Raises
    ------
    DataError
        If no name is a region of a genome, or two peaks would have the same name.

    Examples
    --------
    >>> cells = adata.copy()
    >>> cells.var_names = [f"chr1_{100 * peak}_{100 * peak + 50}" for peak in range(60)]
    >>> ps.pp.format_peak_names(cells).var_names[1]
    'chr1:100-150'
    """
    check_adata(adata)
    check_choice("peak_style", peak_style, PEAK_STYLES)
    check_bool("inplace", inplace)
    names = in_style(adata.var_names, peak_style)
    other = next(style for style in PEAK_STYLES if style != peak_style)
    n_regions = int((names != formatted(adata.var_names, other)).sum())
    if not n_regions:
        raise DataError(
            f"no peak is named like a region of a genome (the first is {adata.var_names[0]!r}); "
            f"expected one of {listed(PEAK_STYLES)}."
        )
    logger.info("%d of %d peak names are brought to %s", n_regions, len(names), peak_style)
    result = adata if inplace else load(adata)
    result.var_names = names
    return result


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
