"""How alike the cells are, within and between groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from pyro_scale.errors import DataError
from pyro_scale.plotting.bars import (
    bar_marks,
    bar_names,
    class_bar,
    colour_bar,
    image,
    legend_right,
    tighten,
)
from pyro_scale.plotting.cells import (
    check_cells,
    column_groups,
    dense,
    is_sparse,
    matrix_of,
    number_of_cells,
    obsm_array,
    stratified,
)
from pyro_scale.plotting.saving import drawn

__all__ = ["cell_correlation"]


def cell_correlation(
    adata: AnnData,
    *,
    groupby: str = "scale_cluster",
    use_rep: str = "X_scale",
    n_cells: int = 1000,
    seed: int = 0,
    save: str | Path | None = None,
) -> Figure:
    """Pearson correlation of every two cells, in order of their groups.

    Inside a group the cells are in the order of average-linkage clustering.

    Parameters
    ----------
    adata
        Cells.
    groupby
        Column of ``obs``; cells without a group come last.
    use_rep
        Key of ``obsm``, or ``"X"`` (which stays sparse).
    n_cells, seed
        Where there are more cells, so many are drawn at random, each group by its share and
        none without a cell.
    save
        Write the figure to this ``.pdf``, ``.svg`` or ``.png``.

    Raises
    ------
    DataError
        If ``use_rep`` or ``groupby`` is not there, or ``use_rep`` has one dimension.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    >>> figure = ps.pl.cell_correlation(adata, groupby="cell_type", use_rep="X")
    >>> figure.axes[0].images[0].get_array().shape
    (40, 40)
    """
    check_cells(adata)
    groups = column_groups(adata, groupby, "groupby")
    rows = stratified(groups.codes_n, n_cells, seed)
    if use_rep == "X":
        matrix = matrix_of(adata, None)
        x_np: Any = matrix[rows] if is_sparse(matrix) else dense(matrix, rows)
    else:
        x_np = obsm_array(adata, use_rep, "use_rep")[rows]
    if x_np.shape[1] < 2:
        raise DataError(f"use_rep={use_rep!r} has one dimension; a correlation needs two.")
    r_nn = _correlation(x_np)
    codes = groups.codes_n[rows]
    order = _ordered_inside(r_nn, codes)
    r_nn, codes = r_nn[np.ix_(order, order)], codes[order]
    off = np.abs(r_nn[~np.eye(len(r_nn), dtype=bool)])
    high = float(np.quantile(off[np.isfinite(off)], 0.99)) if np.isfinite(off).any() else 1.0
    with drawn(save, 5.2, 5.0) as figure:
        tighten(figure)
        grid = figure.add_gridspec(2, 2, height_ratios=(0.03, 1), width_ratios=(0.03, 1))
        heat = figure.add_subplot(grid[1, 1])
        shown = image(heat, r_nn, -high, high, "RdBu_r")
        colour_bar(figure, shown, heat, f"correlation of {use_rep}", "both")
        top, left = figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 0])
        class_bar(top, groups.colours, codes)
        class_bar(left, groups.colours, codes, along="y")
        written = bar_marks(groups, codes, 250)
        heat.set_xlabel(number_of_cells(rows, adata))
        legend_right(figure, [(groupby, groups, groups.present(codes), written)])
        bar_names(top, written, codes)
        bar_names(left, written, codes, along="y")
    return figure


def _correlation(x_np: Any) -> NDArray[np.float64]:
    """Between rows; NaN where a row is constant."""
    n_columns = x_np.shape[1]
    if is_sparse(x_np):  # without subtracting the means, which would fill it
        x_np = x_np.astype(np.float64)
        mean_n = np.asarray(x_np.mean(1)).ravel()
        product = (x_np @ x_np.T).toarray() / n_columns
        covariance = product - np.outer(mean_n, mean_n)
        noise = 1e-12 * product.diagonal()
    else:
        x_np = x_np.astype(np.float64)
        centred = x_np - x_np.mean(1, keepdims=True)
        covariance = centred @ centred.T / n_columns
        noise = 1e-24 * (x_np**2).mean(1)
    variance = covariance.diagonal()
    sd_n = np.sqrt(np.where(variance > noise, variance, np.nan))
    r_nn: NDArray[np.float64] = np.clip(covariance / np.outer(sd_n, sd_n), -1, 1)
    return r_nn


def _ordered_inside(r_nn: NDArray[np.float64], codes: NDArray[np.intp]) -> NDArray[np.intp]:
    """The cells of each group, which are together, by average linkage of 1 - r."""
    parts = []
    for code in np.unique(codes):
        at = np.flatnonzero(codes == code)
        if len(at) > 2:
            distance = 1 - np.nan_to_num(r_nn[np.ix_(at, at)])
            np.fill_diagonal(distance, 0)
            at = at[leaves_list(linkage(squareform(distance, checks=False), "average"))]
        parts.append(at)
    return np.concatenate(parts)
