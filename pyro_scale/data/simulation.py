"""Simulation of single-cell ATAC-seq data with known clusters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from pyro_scale._validation import check_bool, check_int, check_number, check_seed

__all__ = ["simulate"]

_BLOCK = 1000  # cells that are drawn at a time, so that no dense N x P matrix is made
_FEW_OPEN = 10  # expected open peaks of a cell of low quality
_PROGRAM_FRACTION = 0.3  # of the peaks, that change along a cluster's continuous program


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
    n_groups: int | None = None,
    continuous_sd: float = 0.0,
    low_quality_fraction: float = 0.0,
    n_batches: int = 1,
    batch_sd: float = 0.5,
    batch_depth_sd: float = 0.5,
    counts: bool = False,
    seed: int = 0,
) -> AnnData:
    r"""Simulate cells whose clusters share a background and differ in marker peaks.

    Clusters can be nested in groups, vary continuously, and come from several batches; some cells
    can be of low quality.

    .. math::
        \pi &\sim \mathrm{Dirichlet}(\text{concentration}) \\
        a_p &\sim \mathrm{Gamma}(1)
            \quad\text{background accessibility of peak } p \\
        r_{kp} &= a_p\,\text{fold} \text{ for the markers of cluster } k
            \text{ and of its group}, \; a_p \text{ elsewhere} \\
        s_n &\sim \mathrm{LogNormal}(0, \text{depth\_sd}^2)
            \quad\text{sequencing depth of cell } n \\
        u_n &\sim N(0, 1), \; w_{kp} \sim N(0, \text{continuous\_sd}^2)
            \quad\text{position along the cluster's program, and the program} \\
        v_{bp} &\sim N(0, \text{batch\_sd}^2)
            \quad\text{shift of peak } p \text{ in batch } b \\
        x_{np} &\sim \mathrm{Poisson}\big(t\, s_n\, r_{c_n p}
            \exp(u_n w_{c_n p} + v_{b_n p})\big)

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
        more even cluster sizes. Every batch has fractions of its own.
    n_groups
        Number of groups in which the clusters are nested. Half of the markers then mark groups, and
        clusters of one group differ in the other half alone. None for clusters without groups.
    continuous_sd
        Standard deviation of the log accessibility of peaks along the continuous program of a
        cluster, which changes three tenths of the peaks. Zero for homogeneous clusters.
    low_quality_fraction
        Fraction of the cells that have about ten open peaks, in [0, 1).
    n_batches
        Number of batches, of about equal size.
    batch_sd
        Standard deviation of the shift of a peak's log accessibility in a batch, if there are
        several batches.
    batch_depth_sd
        Standard deviation of the shift of the log sequencing depth of a batch.
    counts
        Whether to return counts. If False, every positive count is set to one.
    seed
        Seed of numpy's random number generator; the same seed gives the same cells.

    Returns
    -------
    AnnData
        Cells x peaks, CSR, with the cluster and the depth :math:`s_n` in ``obs["cell_type"]`` and
        ``obs["depth_factor"]``, and the cluster or group that a peak marks in
        ``var["marker_of"]`` (empty for background peaks). If there are groups, several batches or
        cells of low quality, ``obs`` has the columns ``"group"``, ``"batch"`` and
        ``"low_quality"``.

    Raises
    ------
    ValueError
        If a size is below one, there are more clusters than cells or more groups than clusters,
        or another number is out of range.

    Examples
    --------
    >>> adata = simulate(n_cells=200, n_peaks=500, n_clusters=3, seed=1)
    >>> adata.shape, adata.obs["cell_type"].nunique()
    ((200, 500), 3)
    >>> adata = simulate(200, 500, 6, n_groups=2, continuous_sd=0.5, n_batches=2, seed=1)
    >>> adata.obs.columns.tolist()
    ['cell_type', 'depth_factor', 'group', 'batch']
    """
    sizes = {"n_cells": n_cells, "n_peaks": n_peaks, "n_clusters": n_clusters}
    sizes |= {"n_batches": n_batches} | ({} if n_groups is None else {"n_groups": n_groups})
    for name, size in sizes.items():
        check_int(name, size)
    if n_clusters > n_cells:
        raise ValueError(f"n_clusters={n_clusters} must be at most n_cells={n_cells}.")
    if n_groups is not None and n_groups > n_clusters:
        raise ValueError(f"n_groups={n_groups} must be at most n_clusters={n_clusters}.")
    fractions = {"density": density, "marker_fraction": marker_fraction}
    fractions |= {"low_quality_fraction": low_quality_fraction}
    positive = {"fold": fold, "concentration": concentration}
    deviations = {"depth_sd": depth_sd, "continuous_sd": continuous_sd}
    deviations |= {"batch_sd": batch_sd, "batch_depth_sd": batch_depth_sd}
    for name, number in (fractions | positive | deviations).items():
        check_number(name, number)
    check_bool("counts", counts)
    check_seed(seed)
    if not (0 < density < 1 and 0 <= marker_fraction <= 1 and 0 <= low_quality_fraction < 1):
        raise ValueError(
            f"density={density} must lie in (0, 1), marker_fraction={marker_fraction} in [0, 1], "
            f"and low_quality_fraction={low_quality_fraction} in [0, 1)."
        )
    for name, number in positive.items():
        if number <= 0:
            raise ValueError(f"{name}={number} must be positive.")
    for name, number in deviations.items():
        if number < 0:
            raise ValueError(f"{name}={number} must not be negative.")
    rng = np.random.default_rng(seed)
    (more,) = rng.spawn(1)  # of what is drawn only if asked for
    batch_n = np.arange(n_cells) * n_batches // n_cells
    fraction_bk = rng.dirichlet(np.full(n_clusters, concentration), size=n_batches)
    cluster_n = np.arange(n_cells)  # the first cells, one of each cluster
    for batch, fraction_k in enumerate(fraction_bk):
        drawn = np.flatnonzero((batch_n == batch) & (cluster_n >= n_clusters))
        cluster_n[drawn] = rng.choice(n_clusters, len(drawn), p=fraction_k)
    order = rng.permutation(n_cells)
    batch_n, cluster_n = batch_n[order], cluster_n[order]
    background_p = rng.gamma(1.0, size=n_peaks)
    markers = rng.permutation(n_peaks)[: int(marker_fraction * n_peaks)]
    names_k = np.array([f"type_{k + 1}" for k in range(n_clusters)])
    names_g = np.array([f"group_{g + 1}" for g in range(n_groups or 0)])
    group_k = np.arange(n_clusters) * (n_groups or 0) // n_clusters
    names = [*names_k, *names_g, ""]
    marks_p = np.full(n_peaks, len(names) - 1)  # index of what a peak marks
    n_of_groups = len(markers) // 2 if n_groups else 0
    marks_p[markers[n_of_groups:]] = np.arange(len(markers) - n_of_groups) % n_clusters
    marks_p[markers[:n_of_groups]] = n_clusters + np.arange(n_of_groups) % (n_groups or 1)
    is_marker_kp = marks_p == np.arange(n_clusters)[:, None]
    if n_groups:
        is_marker_kp |= marks_p == n_clusters + group_k[:, None]
    rate_kp = np.where(is_marker_kp, fold * background_p, background_p)
    depth_n = rng.lognormal(0.0, depth_sd, n_cells)
    position_n = more.standard_normal(n_cells)
    program_kp = more.standard_normal((n_clusters, n_peaks)) * continuous_sd
    program_kp *= more.random((n_clusters, n_peaks)) < _PROGRAM_FRACTION
    shift_bp = more.standard_normal((n_batches, n_peaks)) * (batch_sd if n_batches > 1 else 0.0)
    if n_batches > 1:
        depth_n *= more.lognormal(0.0, batch_depth_sd, n_batches)[batch_n]

    def rates(block: slice) -> NDArray[np.float64]:
        """Return the rates of some cells at time one, shape ``(n, p)``."""
        rate_np: NDArray[np.float64] = depth_n[block, None] * rate_kp[cluster_n[block]]
        if continuous_sd:
            rate_np *= np.exp(position_n[block, None] * program_kp[cluster_n[block]])
        if n_batches > 1:
            rate_np *= np.exp(shift_bp[batch_n[block]])
        return rate_np

    time = _time_for_density(density, rates)
    is_poor_n = more.random(n_cells) < low_quality_fraction
    rows = []
    for start in range(0, n_cells, _BLOCK):
        rate_np = time * rates(slice(start, start + _BLOCK))
        poor = is_poor_n[start : start + _BLOCK]
        rate_np[poor] *= _FEW_OPEN / rate_np[poor].sum(1, keepdims=True)
        rows.append(sparse.csr_matrix(rng.poisson(rate_np).astype(np.uint16)))
    x = sparse.vstack(rows, format="csr")
    empty = np.flatnonzero(np.diff(x.indptr) == 0)  # they get one open peak each
    opened = rng.choice(n_peaks, len(empty), p=background_p / background_p.sum())
    x = x + sparse.csr_matrix((np.ones(len(empty), np.uint16), (empty, opened)), shape=x.shape)
    if not counts:
        x.data = np.ones_like(x.data, dtype=np.uint8)
        x = x.astype(np.uint8)

    obs = {"cell_type": pd.Categorical(names_k[cluster_n]), "depth_factor": depth_n}
    if n_groups:
        obs["group"] = pd.Categorical(names_g[group_k[cluster_n]])
    if n_batches > 1:
        obs["batch"] = pd.Categorical(np.char.add("batch_", (batch_n + 1).astype(str)))
    if low_quality_fraction:
        obs["low_quality"] = is_poor_n
    start_p = 1_000_000 + 2_000 * np.arange(n_peaks)
    return AnnData(
        X=x,
        obs=pd.DataFrame(obs, index=[f"cell_{n + 1}" for n in range(n_cells)]),
        var=pd.DataFrame(
            {"marker_of": np.array(names)[marks_p]},
            index=[f"chr1_{s}_{s + 500}" for s in start_p],
        ),
    )


def _time_for_density(density: float, rates: Callable[[slice], NDArray[np.float64]]) -> float:
    """Return the factor t of :func:`simulate` that gives the expected ``density``.

    t is found by bisection, so that the mean of P(x > 0) = 1 - exp(-t r) over peaks and over
    200 cells is ``density``.
    """
    rate = rates(slice(0, 200))  # a random sample, as the cells were shuffled
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
