"""Small heat maps: clusters against labels, latent dimensions against clusters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm, to_rgba_array
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from pyro_scale.analysis.latent_specificity import latent_specificity
from pyro_scale.errors import DataError
from pyro_scale.plotting.bars import image, quiet
from pyro_scale.plotting.cells import Groups, check_cells, column_groups, groups_of, obsm_array
from pyro_scale.plotting.labels import CHARACTER
from pyro_scale.plotting.saving import on_axes, root_figure

__all__ = ["confusion_matrix", "feature_specificity", "ink"]

_MOST_ANNOTATED = 25
_MOST_TICKS = 60
_SMALLEST_TEXT = 4.5


def confusion_matrix(
    labels: Sequence[Any],
    clusters: Sequence[Any],
    *,
    normalize: Literal["labels", "clusters"] | None = "labels",
    match: bool = True,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Cells by label (rows) and cluster (columns).

    Parameters
    ----------
    labels, clusters
        One entry per cell; cells without either are left out, and the figure says so.
    normalize
        ``"labels"``: each row in per cent of the label's cells. ``"clusters"``: each column in
        per cent of the cluster's. None: numbers of cells.
    match
        Order the clusters so that those which share most cells with a label, one to one
        (Hungarian method), lie on the diagonal. Numbers of both may differ; what is left over
        comes last.
    ax
        Draw here; None: a new figure.
    save
        Write the figure to this ``.pdf``, ``.svg`` or ``.png``.

    References
    ----------
    Kuhn 1955, doi:10.1002/nav.3800020109.

    Examples
    --------
    >>> axes = confusion_matrix(["a", "a", "b"], [1, 1, 0])
    >>> [text.get_text() for text in axes.get_xticklabels()]
    ['1', '0']
    """
    if normalize not in ("labels", "clusters", None):
        raise ValueError(f"normalize={normalize!r}: choose 'labels', 'clusters' or None.")
    count_lk, rows, columns, n_missing = _crosstab(labels, clusters)
    if match:
        order = _matched(count_lk)
        count_lk, columns = count_lk[:, order], [columns[k] for k in order]
    total = {"labels": count_lk.sum(1)[:, None], "clusters": count_lk.sum(0), None: 1.0}[normalize]
    values_lk = count_lk / total * (1 if normalize is None else 100)
    what = "cells" if normalize is None else f"% of the {normalize[:-1]}'s cells"
    size = (_length(columns, rows, 1.2), _length(rows, columns, 0.6))
    with on_axes(ax, save, size) as ax:
        shown = image(
            ax, values_lk, 0, 100 if normalize else max(float(values_lk.max()), 1), "Blues"
        )
        _ticks(ax, "y", rows)
        _ticks(ax, "x", columns)
        ax.set(xlabel="cluster", ylabel="label")
        if n_missing:
            ax.set_title(f"{n_missing} cells without label or cluster left out")
        _bar(ax, shown, what)
        if max(values_lk.shape) <= _MOST_ANNOTATED:
            _annotate(ax, shown, values_lk, count_lk)
    return ax


def _crosstab(
    labels: Sequence[Any], clusters: Sequence[Any]
) -> tuple[NDArray[np.int64], list[str], list[str], int]:
    if len(labels) != len(clusters):
        raise ValueError(f"{len(labels)} labels and {len(clusters)} clusters: expected one each.")
    first, second = pd.Series(list(labels)), pd.Series(list(clusters))
    known = (first.notna() & second.notna()).to_numpy()
    if not known.any():
        raise ValueError(f"none of {len(known)} cells has both a label and a cluster.")
    parts: list[Groups] = []
    for values, series in ((labels, first), (clusters, second)):
        kind = getattr(values, "dtype", None)
        series = series.astype(kind) if isinstance(kind, pd.CategoricalDtype) else series
        parts.append(groups_of(series[known]))
    size = tuple(len(part.names) for part in parts)
    count_lk = np.zeros(size, dtype=np.int64)
    np.add.at(count_lk, (parts[0].codes_n, parts[1].codes_n), 1)
    used = [np.flatnonzero(count_lk.sum(axis)) for axis in (1, 0)]
    names = [[part.names[at] for at in some] for part, some in zip(parts, used, strict=True)]
    return count_lk[np.ix_(*used)], names[0], names[1], int((~known).sum())


def _matched(count_lk: NDArray[np.int64]) -> list[int]:
    """Matched clusters in order of their labels; the others by the label they lie in."""
    _, matched = linear_sum_assignment(count_lk, maximize=True)  # rows ascend
    others = np.setdiff1d(np.arange(count_lk.shape[1]), matched)
    others = others[np.argsort(count_lk.argmax(0)[others], kind="stable")]
    return [int(k) for k in (*matched, *others)]


def _length(along: Sequence[str], across: Sequence[str], rest: float) -> float:
    """Inches for the cells of one side, and for the names written beside them."""
    beside = max(map(len, across)) * CHARACTER * 7 / 72
    return float(np.clip(rest + beside + 0.24 * len(along), 2.4, 7))


def _ticks(ax: Axes, along: Literal["x", "y"], names: Sequence[str]) -> None:
    every = -(-len(names) // _MOST_TICKS)
    at, shown = range(0, len(names), every), list(names)[::every]
    size = 7 if len(shown) <= _MOST_ANNOTATED else 5
    ax.tick_params(length=0, pad=2)
    if along == "y":
        ax.set_yticks(at, shown, fontsize=size)
    else:
        long = max(map(len, shown)) > 2
        ax.set_xticks(at, shown, fontsize=size, rotation=90 if long else 0)


def _bar(ax: Axes, shown: AxesImage, label: str) -> None:
    bar = ax.figure.colorbar(shown, ax=ax, shrink=0.8, aspect=20, pad=0.02)
    bar.set_label(label)
    quiet(bar)


def _annotate(
    ax: Axes, shown: AxesImage, values_lk: NDArray[np.float64], count_lk: NDArray[np.int64]
) -> None:
    """The rounded value in every cell of the map that has cells; dark on light, and reverse."""
    root_figure(ax).draw_without_rendering()  # lays out, so that the axes' size is true
    text_lk = [[f"{value:.0f}" for value in row] for row in values_lk]
    longest = max(len(text) for row in text_lk for text in row)
    box = ax.get_window_extent()
    points = 72 / ax.figure.dpi
    width = box.width * points / values_lk.shape[1]
    height = box.height * points / values_lk.shape[0]
    size = min(7.0, (width - 1) / (0.65 * longest), height / 1.3)
    if size < _SMALLEST_TEXT:
        return
    ink_lk = ink(to_rgba_array(shown.cmap(shown.norm(values_lk)).reshape(-1, 4)))
    for at, (row, column) in enumerate(np.ndindex(values_lk.shape)):
        if count_lk[row, column]:
            ax.text(
                column,
                row,
                text_lk[row][column],
                ha="center",
                va="center",
                fontsize=size,
                color=ink_lk[at],
            )


def ink(rgba: NDArray[np.float64]) -> list[str]:
    """Black or white, whichever has more contrast by WCAG's relative luminance."""
    rgb = rgba[:, :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ (0.2126, 0.7152, 0.0722)
    return ["black" if (x + 0.05) ** 2 > 1.05 * 0.05 else "white" for x in luminance]


def feature_specificity(
    adata: AnnData,
    *,
    groupby: str = "scale_cluster",
    use_rep: str = "X_scale",
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Which latent dimensions tell a group from all other cells: -log10 p of an F test.

    Parameters
    ----------
    adata
        Cells.
    groupby
        Column of ``obs``; cells without a group are left out.
    use_rep
        Key of ``obsm``, any number of dimensions.
    ax
        Draw here; None: a new figure.
    save
        Write the figure to this ``.pdf``, ``.svg`` or ``.png``.

    See Also
    --------
    pyro_scale.analysis.latent_specificity : The p values.

    Examples
    --------
    >>> import numpy as np
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    >>> adata.obsm["X_scale"] = np.random.default_rng(0).normal(size=(40, 3))
    >>> axes = ps.pl.feature_specificity(adata, groupby="cell_type")
    >>> axes.images[0].get_array().shape
    (3, 2)
    """
    check_cells(adata)
    groups = column_groups(adata, groupby, "groupby")
    z_nd = obsm_array(adata, use_rep, "use_rep")
    column = adata.obs[groupby]
    if column.isna().all():
        raise DataError(f"no cell has a value in obs[{groupby!r}].")
    categories = list(groups.names[: len(groups.names) - bool(column.isna().any())])
    named = pd.Series(np.array(groups.names, object)[groups.codes_n]).where(column.notna().array)
    p_dk = latent_specificity(z_nd, named.astype(pd.CategoricalDtype(categories)))
    smallest = np.finfo(np.float64).tiny
    values_dk = -np.log10(np.clip(p_dk.to_numpy(), smallest, 1))
    capped = bool((p_dk.to_numpy() < smallest).any())
    dims, names = [str(d) for d in p_dk.index], list(p_dk.columns)
    size = (_length(names, dims, 1.2), _length(dims, names, 0.6))
    with on_axes(ax, save, size) as ax:
        high = max(float(values_dk.max()), 1.0)
        shown = image(ax, values_dk, 0, high, "viridis")
        shown.set_norm(PowerNorm(0.5, 0, high))  # else the strongest leaves the others dark
        _ticks(ax, "y", dims)
        _ticks(ax, "x", names)
        ax.set(xlabel=groupby, ylabel=f"dimension of {use_rep}")
        limit = f", capped at {-np.log10(smallest):.0f}" if capped else ""
        _bar(ax, shown, f"−log₁₀ p, group against the rest{limit}")
    return ax
