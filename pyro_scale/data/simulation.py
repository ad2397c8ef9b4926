"""Simulation of single-cell ATAC-seq data with known clusters."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from pyro_scale._validation import check_bool, check_int, check_number, check_seed

__all__ = ["simulate"]


def simulate(
    n_cells: int = 1000,
    n_peaks: int = 5000,
    n_clusters: int = 5,
    *,
    density: float = 0.03,
    depth_sd: float = 0.4,
    marker_fraction: float = 0.3,
    fold: float = 4.0,
    concentration: float = 10.0,
    counts: bool = False,
    seed: int = 0,
) -> AnnData:
    r"""Simulate cells whose clusters share a background and differ in marker peaks.

    .. math::
        \pi &\sim \mathrm{Dirichlet}(\text{concentration}) \\
        a_p &\sim \mathrm{Gamma}(1)
            \quad\text{background accessibility of peak } p \\
        r_{kp} &= a_p\,\text{fold} \text{ for the markers of cluster } k, \; a_p
            \text{ elsewhere} \\
        s_n &\sim \mathrm{LogNormal}(0, \text{depth\_sd}^2)
            \quad\text{sequencing depth of cell } n \\
        x_{np} &\sim \mathrm{Poisson}(s_n\, r_{c_n p}\, t)

    where *t* is chosen so that the expected fraction of non-zero entries is ``density``.

    Parameters
    ----------
    n_cells, n_peaks, n_clusters
        Numbers of cells, peaks and clusters. Every cluster has at least one cell.
    density
        Expected fraction of non-zero entries, in (0, 1); 0.01 to 0.05 in scATAC-seq data.
    depth_sd
        Standard deviation of the logarithm of the sequencing depth.
    marker_fraction
        Fraction of the peaks that are markers, divided evenly among the clusters.
    fold
        Ratio of a marker's accessibility in its own cluster to that in the others.
    concentration
        Concentration of the Dirichlet distribution of the cluster fractions; larger values give
        more even cluster sizes.
    counts
        Whether to return counts. If False, every positive count is set to one.
    seed
        Seed of numpy's random number generator; the same seed gives the same cells.

    Returns
    -------
    AnnData
        Cells x peaks, CSR, with the cluster and the depth :math:`s_n` in ``obs["cell_type"]`` and
        ``obs["depth_factor"]``, and the cluster that a peak marks in ``var["marker_of"]`` (empty
        for background peaks).

    Raises
    ------
    ValueError
        If a size is below one, there are more clusters than cells, or another number is out of
        range.

    Examples
    --------
    >>> adata = simulate(n_cells=200, n_peaks=500, n_clusters=3, seed=1)
    >>> adata.shape, adata.obs["cell_type"].nunique()
    ((200, 500), 3)
    """
    sizes = {"n_cells": n_cells, "n_peaks": n_peaks, "n_clusters": n_clusters}
    for name, size in sizes.items():
        check_int(name, size)
    if n_clusters > n_cells:
        raise ValueError(f"n_clusters={n_clusters} must be at most n_cells={n_cells}.")
    numbers = {"density": density, "marker_fraction": marker_fraction, "fold": fold}
    numbers |= {"concentration": concentration, "depth_sd": depth_sd}
    for name, number in numbers.items():
        check_number(name, number)
    check_bool("counts", counts)
    check_seed(seed)
    if not (0 < density < 1 and 0 <= marker_fraction <= 1):
        raise ValueError(
            f"density={density} must lie in (0, 1) and marker_fraction={marker_fraction} in [0, 1]."
        )
    if not (fold > 0 and concentration > 0 and depth_sd >= 0):
        raise ValueError(
            f"fold={fold} and concentration={concentration} must be positive, and "
            f"depth_sd={depth_sd} must not be negative."
        )
    rng = np.random.default_rng(seed)
    fraction_k = rng.dirichlet(np.full(n_clusters, concentration))
    cluster_n = np.concatenate(
        [np.arange(n_clusters), rng.choice(n_clusters, n_cells - n_clusters, p=fraction_k)]
    )
    rng.shuffle(cluster_n)
    background_p = rng.gamma(1.0, size=n_peaks)
    n_markers = int(marker_fraction * n_peaks)
    marker_of_p = np.full(n_peaks, -1)
    marker_of_p[rng.permutation(n_peaks)[:n_markers]] = np.arange(n_markers) % n_clusters
    rate_kp = np.where(
        marker_of_p == np.arange(n_clusters)[:, None], fold * background_p, background_p
    )
    depth_n = rng.lognormal(0.0, depth_sd, n_cells)
    time = _time_for_density(density, rate_kp, cluster_n, depth_n)

    rows = []
    for start in range(0, n_cells, 1000):  # in blocks, so that no dense N x P matrix is made
        block = slice(start, start + 1000)
        rate_np = time * depth_n[block, None] * rate_kp[cluster_n[block]]
        rows.append(sparse.csr_matrix(rng.poisson(rate_np).astype(np.uint16)))
    x = sparse.vstack(rows, format="csr")
    empty = np.flatnonzero(np.diff(x.indptr) == 0)  # they get one open peak each
    opened = rng.choice(n_peaks, len(empty), p=background_p / background_p.sum())
    x = x + sparse.csr_matrix((np.ones(len(empty), np.uint16), (empty, opened)), shape=x.shape)
    if not counts:
        x.data = np.ones_like(x.data, dtype=np.uint8)
        x = x.astype(np.uint8)

    names_k = np.array([f"type_{k + 1}" for k in range(n_clusters)])
    start_p = 1_000_000 + 2_000 * np.arange(n_peaks)
    return AnnData(
        X=x,
        obs=pd.DataFrame(
            {"cell_type": pd.Categorical(names_k[cluster_n]), "depth_factor": depth_n},
            index=[f"cell_{n + 1}" for n in range(n_cells)],
        ),
        var=pd.DataFrame(
            {"marker_of": [names_k[k] if k >= 0 else "" for k in marker_of_p]},
            index=[f"chr1_{s}_{s + 500}" for s in start_p],
        ),
    )


def _time_for_density(
    density: float, rate_kp: np.ndarray, cluster_n: np.ndarray, depth_n: np.ndarray
) -> float:
    """Return the factor t of :func:`simulate` that gives the expected ``density``.

    t is found by bisection, so that the mean of P(x > 0) = 1 - exp(-t s r) over peaks and over
    200 cells is ``density``.
    """
    sample = slice(0, 200)  # a random sample, as the clusters were shuffled
    rate = depth_n[sample, None] * rate_kp[cluster_n[sample]]
    low, high = 0.0, 1.0
    while np.mean(-np.expm1(-high * rate)) < density:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        if np.mean(-np.expm1(-middle * rate)) < density:
            low = middle
        else:
            high = middle
    return high
