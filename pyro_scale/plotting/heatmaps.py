"""Chosen peaks of the cells in order of their groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pyro_scale.plotting.bars import (
    Part,
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
    column_groups,
    dense,
    matrix_of,
    number_of_cells,
    peak_positions,
    stratified,
)
from pyro_scale.plotting.saving import drawn

__all__ = ["peak_heatmap"]

_MOST_NAMES = 45
_WIDE = 360  # points that the heat map has, about


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
    """Chosen peaks x cells, the cells in order of their groups.

    Only these peaks of these cells are ever made dense.

    Parameters
    ----------
    adata
        Cells x peaks.
    peaks
        Names, or lists of names by cluster (such as the most specific peaks of each).
    groupby
        Column of ``obs`` that orders the cells; cells without a group come last.
    label
        A second column of ``obs``, shown as a second bar; it orders the cells inside a group.
    layer
        Read ``layers[layer]``; None: ``X``.
    n_cells, seed
        Where there are more cells, so many are drawn at random, each group by its share and
        none without a cell.
    standardize
        Show each peak in standard deviations from its mean over the shown cells; a constant
        peak is zero.
    save
        Write the figure to this ``.pdf``, ``.svg`` or ``.png``.

    Raises
    ------
    DataError
        If a peak, column or layer is not there.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
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
    if label is not None:  # inside a group in order of the label
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
            written = groups.names if legend else bar_marks(groups, codes, _WIDE)
            legend.append((key, groups, groups.present(codes), written))
        side = figure.add_subplot(grid[-1, 0]) if by_cluster else heat
        if by_cluster or len(at) > _MOST_NAMES:
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
    """The cluster that each peak was given for, in that cluster's colour if it has one."""
    known: dict[str, str] = {}
    for groups in reversed(bars):
        known.update(zip(groups.names, groups.colours, strict=True))
    codes = np.repeat(np.arange(len(by_cluster)), [len(names) for names in by_cluster.values()])
    class_bar(ax, [known.get(key, "0.6") for key in by_cluster], codes, along="y")
    bar_names(ax, list(by_cluster), codes, along="y")
