"""Observed and imputed accessibility side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from matplotlib.figure import Figure
from numpy.typing import NDArray

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
    Groups,
    check_cells,
    chunks,
    column_groups,
    dense,
    matrix_of,
    number_of_cells,
    peak_positions,
    stratified,
)
from pyro_scale.plotting.saving import drawn

__all__ = ["imputation"]

_WIDE = 190  # points that either heat map has, about
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
    """Observed and imputed accessibility side by side, the same cells and peaks in one order.

    Parameters
    ----------
    adata
        Cells x peaks, observed in ``X``.
    peaks
        Names. None: the ``n_peaks`` whose mean in the imputed layer varies most between groups,
        ordered by the group where it is largest.
    layer
        The imputed accessibility, in ``layers``.
    groupby
        Column of ``obs`` that orders the cells; cells without a group come last.
    n_peaks, n_cells, seed
        How much is shown; the cells as in :func:`peak_heatmap`.
    save
        Write the figure to this ``.pdf``, ``.svg`` or ``.png``.

    Raises
    ------
    DataError
        If the layer, a peak or the column is not there.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    >>> adata.layers["smoothed"] = adata.X @ (0.9 * adata.X.T @ adata.X).tanh()
    >>> figure = ps.pl.imputation(adata, layer="smoothed", groupby="cell_type", n_peaks=10)
    >>> len(figure.axes)  # two heat maps, their colour bars and the cells' groups
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
    written = bar_marks(groups, codes, _WIDE)
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
    """Peaks by the variance of their group means (of the cells, if there is one group)."""
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
