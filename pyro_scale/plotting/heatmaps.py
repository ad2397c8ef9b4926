"""Heat maps of cells sorted by group, of accessibility, correlations and imputed values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from pyro_scale.exceptions import DataError
from pyro_scale.plotting._anndata import (
    Groups,
    check_cells,
    chunks,
    column_groups,
    dense,
    is_sparse,
    matrix_of,
    number_of_cells,
    obsm_array,
    peak_positions,
    stratified,
)
from pyro_scale.plotting._figure import drawn
from pyro_scale.plotting._heatmap import (
    Part,
    bar_marks,
    bar_names,
    class_bar,
    colour_bar,
    image,
    legend_right,
    tighten,
)

__all__ = [
    "cell_correlation",
    "imputation",
    "peak_heatmap",
]

_MAX_PEAK_NAMES = 45
_PEAK_HEATMAP_WIDTH = 360  # points, about
_CORRELATION_WIDTH = 250
_IMPUTATION_WIDTH = 190  # of either heat map


def peak_heatmap(
    adata: AnnData,
    peaks: Sequence[str] | Mapping[str, Sequence[str]],
    *,
    groupby: str = "scale_cluster",
    label: str | None = None,
    layer: str | None = None,
    n_cells: int = 1000,
    seed: int = 0,
    standardize: bool = True,
    save: str | Path | None = None,
) -> Figure:
    """Plot a heat map of selected peaks x cells, with the cells sorted by group.

    Only the entries that are shown are made dense.

    Parameters
    ----------
    adata
        Accessibility, cells x peaks.
    peaks
        Peak names, or a dictionary of the peak names of each cluster (such as its most specific
        peaks).
    groupby
        Column of ``obs`` with the group of each cell; cells without a group come last.
    label
        Another column of ``obs``, which is shown as a second bar and by which the cells within a
        group are sorted.
    layer
        Layer to show. If None, ``X`` is shown.
    n_cells
        Maximum number of cells shown. If there are more, a random sample is drawn in which every
        group keeps its fraction of cells, and at least one cell.
    seed
        Seed of the random number generator that draws the cells.
    standardize
        If True, show each value as its distance from the peak's mean over the shown cells, in
        standard deviations; a constant peak is shown as zero.
    save
        Path of a ``.pdf``, ``.svg`` or ``.png`` file to write the figure to.

    Raises
    ------
    DataError
        If ``adata`` does not have a peak, a column or the layer.

    Examples
    --------
    >>> figure = ps.pl.peak_heatmap(adata, adata.var_names[:10], groupby="cell_type")
    >>> figure.axes[0].images[0].get_array().shape
    (10, 40)
    """
    check_cells(adata)
    by_cluster = (
        {str(key): list(some) for key, some in peaks.items()} if isinstance(peaks, Mapping) else {}
    )
    names = list(chain.from_iterable(by_cluster.values())) if by_cluster else peaks
    at = peak_positions(adata, names, "peaks")  # type: ignore[arg-type]  # checked there
    keys = [groupby] if label is None else [groupby, label]
    bars = [
        column_groups(adata, key, argument)
        for key, argument in zip(keys, ("groupby", "label"), strict=False)
    ]
    rows = stratified(bars[0].codes_n, n_cells, seed)
    if label is not None:  # within a group, sorted by label
        rows = rows[np.lexsort((bars[1].codes_n[rows], bars[0].codes_n[rows]))]
    values_pn = dense(matrix_of(adata, layer), rows, at).T.astype(np.float64)
    height = float(np.clip(0.12 * len(at) + 1.4, 2.6, 7))
    with drawn(save, 7, height) as figure:
        tighten(figure)
        grid = figure.add_gridspec(
            len(bars) + 1,
            2 if by_cluster else 1,
            height_ratios=[0.14] * len(bars) + [height - 1.2],
            width_ratios=[0.025, 1] if by_cluster else None,
        )
        heat = figure.add_subplot(grid[-1, -1])
        _heat(figure, heat, values_pn, standardize, "X" if layer is None else layer)
        heat.set_xlabel(number_of_cells(rows, adata))
        strips = [figure.add_subplot(grid[row, -1]) for row in range(len(bars))]
        legend: list[Part] = []
        for strip, key, groups in zip(strips, keys, bars, strict=True):
            codes = groups.codes_n[rows]
            class_bar(strip, groups.colours, codes, name=key)
            written = groups.names if legend else bar_marks(groups, codes, _PEAK_HEATMAP_WIDTH)
            legend.append((key, groups, groups.present(codes), written))
        side = figure.add_subplot(grid[-1, 0]) if by_cluster else heat
        if by_cluster or len(at) > _MAX_PEAK_NAMES:
            side.set_ylabel(f"{len(at)} peaks")
        else:
            heat.set_yticks(range(len(at)), list(names), fontsize=6)
            heat.tick_params(axis="y", length=0, pad=2)
        legend_right(figure, legend)
        bar_names(strips[0], legend[0][-1], bars[0].codes_n[rows])
        if by_cluster:
            _peak_strip(side, by_cluster, bars)
    return figure


def _heat(
    figure: Figure, ax: Axes, values_pn: NDArray[np.float64], standardize: bool, name: str
) -> None:
    if standardize:
        shown = image(ax, _standardized(values_pn), -3, 3, "RdBu_r")
        colour_bar(figure, shown, ax, f"{name}, s.d. from the peak's mean", "both")
    else:
        shown = image(ax, values_pn, 0, float(values_pn.max()) or 1.0, "Blues")
        colour_bar(figure, shown, ax, name)


def _standardized(values_pn: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = values_pn - values_pn.mean(1, keepdims=True)
    sd_p = values_pn.std(1, keepdims=True)
    constant = np.ptp(values_pn, axis=1, keepdims=True) == 0
    return np.where(constant, 0, centred / np.where(constant, 1, sd_p))


def _peak_strip(ax: Axes, by_cluster: Mapping[str, Sequence[str]], bars: Sequence[Groups]) -> None:
    """Draw a bar with the cluster of each peak, in the colour of the cells' group of that name."""
    known: dict[str, str] = {}
    for groups in reversed(bars):
        known.update(zip(groups.names, groups.colours, strict=True))
    codes = np.repeat(np.arange(len(by_cluster)), [len(names) for names in by_cluster.values()])
    class_bar(ax, [known.get(key, "0.6") for key in by_cluster], codes, along="y")
    bar_names(ax, list(by_cluster), codes, along="y")


def cell_correlation(
    adata: AnnData,
    *,
    groupby: str = "scale_cluster",
    use_rep: str = "X_scale",
    n_cells: int = 1000,
    seed: int = 0,
    save: str | Path | None = None,
) -> Figure:
    """Plot the Pearson correlation of all pairs of cells, with the cells sorted by group.

    Within a group the cells are ordered by average-linkage clustering.

    Parameters
    ----------
    adata
        Cells with a representation in ``obsm`` or accessibility in ``X``.
    groupby
        Column of ``obs`` with the group of each cell; cells without a group come last.
    use_rep
        Key of ``obsm`` with the representation to correlate, or ``"X"`` for the accessibility,
        which is not made dense if it is sparse.
    n_cells
        Maximum number of cells shown. If there are more, a random sample is drawn in which every
        group keeps its fraction of cells, and at least one cell.
    seed
        Seed of the random number generator that draws the cells.
    save
        Path of a ``.pdf``, ``.svg`` or ``.png`` file to write the figure to.

    Raises
    ------
    DataError
        If ``adata`` does not have ``use_rep`` or ``groupby``, or ``use_rep`` has one dimension.

    Examples
    --------
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
        raise DataError(f"use_rep={use_rep!r} has one dimension; a correlation needs at least two.")
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
        written = bar_marks(groups, codes, _CORRELATION_WIDTH)
        heat.set_xlabel(number_of_cells(rows, adata))
        legend_right(figure, [(groupby, groups, groups.present(codes), written)])
        bar_names(top, written, codes)
        bar_names(left, written, codes, along="y")
    return figure


def _correlation(x_np: Any) -> NDArray[np.float64]:
    """Return the Pearson correlation of all pairs of rows; NaN where a row is constant."""
    n_columns = x_np.shape[1]
    if is_sparse(x_np):  # subtracting the means would make it dense
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
    """Return the order of the cells in which those of a group are sorted by average linkage.

    The cells are sorted by group already. The distance of two cells is 1 - r.
    """
    parts = []
    for code in np.unique(codes):
        at = np.flatnonzero(codes == code)
        if len(at) > 2:
            distance = 1 - np.nan_to_num(r_nn[np.ix_(at, at)])
            np.fill_diagonal(distance, 0)
            at = at[leaves_list(linkage(squareform(distance, checks=False), "average"))]
        parts.append(at)
    return np.concatenate(parts)


_HINT = " model.get_normalized_accessibility(adata) computes imputed accessibility."


def imputation(
    adata: AnnData,
    peaks: Sequence[str] | None = None,
    *,
    layer: str = "scale_imputed",
    groupby: str = "scale_cluster",
    n_peaks: int = 50,
    n_cells: int = 300,
    seed: int = 0,
    save: str | Path | None = None,
) -> Figure:
    """Plot observed and imputed accessibility side by side, for the same cells and peaks.

    Parameters
    ----------
    adata
        Observed accessibility in ``X`` and imputed in a layer, cells x peaks.
    peaks
        Peak names. If None, the ``n_peaks`` peaks whose mean in the imputed layer varies most
        between groups are shown, ordered by the group where the mean is largest.
    layer
        Layer with the imputed accessibility.
    groupby
        Column of ``obs`` with the group of each cell; cells without a group come last.
    n_peaks
        Number of peaks shown if ``peaks`` is None.
    n_cells
        Maximum number of cells shown. If there are more, a random sample is drawn in which every
        group keeps its fraction of cells, and at least one cell.
    seed
        Seed of the random number generator that draws the cells.
    save
        Path of a ``.pdf``, ``.svg`` or ``.png`` file to write the figure to.

    Raises
    ------
    DataError
        If ``adata`` does not have the layer, a peak or the column.

    Examples
    --------
    >>> adata.layers["smoothed"] = adata.X @ (0.9 * adata.X.T @ adata.X).tanh()
    >>> figure = ps.pl.imputation(adata, layer="smoothed", groupby="cell_type", n_peaks=10)
    >>> len(figure.axes)  # two heat maps with their colour bars and group bars
    6
    """
    check_cells(adata)
    groups = column_groups(adata, groupby, "groupby")
    imputed, observed = matrix_of(adata, layer, _HINT), matrix_of(adata, None)
    if n_peaks < 1:
        raise ValueError(f"n_peaks={n_peaks} must be at least one.")
    if peaks is None:
        at = _most_variable(imputed, groups, n_peaks)
    else:
        at = peak_positions(adata, peaks, "peaks")
    rows = stratified(groups.codes_n, n_cells, seed)
    codes = groups.codes_n[rows]
    written = bar_marks(groups, codes, _IMPUTATION_WIDTH)
    height = float(np.clip(0.06 * len(at) + 1.6, 3.0, 6.5))
    with drawn(save, 7, height) as figure:
        tighten(figure)
        grid = figure.add_gridspec(2, 2, height_ratios=(0.14, height - 1.2), wspace=0.03)
        tops = [figure.add_subplot(grid[0, side]) for side in (0, 1)]
        heats = [figure.add_subplot(grid[1, side]) for side in (0, 1)]
        for top, heat, name, matrix in zip(
            tops, heats, ("observed", "imputed"), (observed, imputed), strict=True
        ):
            values_pn = dense(matrix, rows, at).T
            shown = image(heat, values_pn, 0, float(values_pn.max()) or 1.0, "Blues")
            colour_bar(figure, shown, heat, f"{name} accessibility")
            heat.set_xlabel(number_of_cells(rows, adata))
            class_bar(top, groups.colours, codes)
            top.set_title(name.capitalize())
        heats[0].set_ylabel(f"{len(at)} peaks")
        legend_right(figure, [(groupby, groups, groups.present(codes), written)])
        for top in tops:
            bar_names(top, written, codes)
    return figure


def _most_variable(matrix: Any, groups: Groups, n_peaks: int) -> NDArray[np.intp]:
    """Return the positions of the peaks whose means in the groups have the largest variance.

    If there is one group only, the variance over its cells is used.
    """
    codes_n, present = groups.codes_n, groups.present()
    sum_gp = np.zeros((len(present), matrix.shape[1]))
    square_p = np.zeros(matrix.shape[1])
    for part in chunks(len(codes_n)):
        block_np = dense(matrix, part)
        member_gn = (codes_n[part] == np.array(present)[:, None]).astype(np.float32)
        sum_gp += member_gn @ block_np
        square_p += np.einsum("np,np->p", block_np, block_np)
    mean_gp = sum_gp / np.bincount(codes_n)[present][:, None]
    spread_p = mean_gp.var(0)
    if len(present) == 1:
        spread_p = square_p / len(codes_n) - mean_gp[0] ** 2
    top = np.argsort(-spread_p, kind="stable")[:n_peaks]
    order = np.lexsort((-mean_gp.max(0)[top], mean_gp.argmax(0)[top]))
    return top[order]
