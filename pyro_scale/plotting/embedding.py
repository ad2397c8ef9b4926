"""Scatter plots of the cells on a two-dimensional embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_rgba_array
from numpy.typing import NDArray

from pyro_scale._validation import listed
from pyro_scale.exceptions import DataError
from pyro_scale.plotting._anndata import (
    Groups,
    check_cells,
    chunks,
    dense,
    groups_of,
    matrix_of,
    obsm_array,
    peak_positions,
)
from pyro_scale.plotting._figure import on_axes
from pyro_scale.plotting._heatmap import quiet
from pyro_scale.plotting._labels import (
    MOST_ENTRIES,
    category_legend,
    column_width,
    place_labels,
    written_on,
)
from pyro_scale.plotting._style import MISSING, PALETTE
from pyro_scale.plotting.clusters import normalised_entropy, responsibilities_of

__all__ = ["embedding", "responsibility_entropy"]

_MANY_POINTS = 2000  # above it, points are rasterized in vector files
_MAX_LABELS = 30
_BASES = {"X_umap": "UMAP", "X_tsne": "t-SNE"}
_ENTROPY_COLOURS = LinearSegmentedColormap.from_list(
    "entropy", ["#D8D8D8", "#E69F00", "#D55E00", "#7A2400", "#3A0F00"]
)  # luminance decreases monotonically
_HINT = ' Run adata.obsm["X_umap"] = ps.analysis.embed(adata.obsm["X_scale"]) first.'


def embedding(
    adata: AnnData,
    color: str | None = None,
    *,
    basis: str | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Plot the cells on a two-dimensional embedding.

    Parameters
    ----------
    adata
        Cells with an embedding in ``obsm``.
    color
        Column of ``obs``, or name of a peak whose accessibility in ``X`` is shown. Each category
        has its own colour and, for up to 30 categories, a label at the median of its cells; numbers
        are shown by a colour scale. Cells without a value are grey. If None, all cells have one
        colour.
    basis
        Key of ``obsm``, with or without ``X_``, whose first two columns are plotted. If None,
        ``X_umap``, or else ``X_tsne``.
    ax
        Axes to draw on. If None, a new figure is created.
    save
        Path of a ``.pdf``, ``.svg`` or ``.png`` file to write the figure to.

    Raises
    ------
    DataError
        If ``adata`` does not have ``basis`` or ``color``.

    Examples
    --------
    >>> import numpy as np
    >>> adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(40, 2))
    >>> axes = ps.pl.embedding(adata, "cell_type")
    >>> sum(len(dots.get_offsets()) for dots in axes.collections)
    40
    """
    check_cells(adata)
    xy, name = _coordinates(adata, basis)
    values = None if color is None else _colouring(adata, color)
    size = (column_width(values), 2.8)
    with on_axes(ax, save, size) as ax:
        if values is None:
            _points(ax, xy, color=PALETTE[0])
        elif isinstance(values, Groups):
            _by_group(ax, xy, values, labelled=color in adata.obs)
        else:
            _by_number(ax, xy, values)
        _finish(ax, name, _title(len(xy), color, values))
    return ax


def responsibility_entropy(
    adata: AnnData,
    *,
    key: str = "scale_responsibilities",
    basis: str | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    r"""Plot the normalized entropy of each cell's responsibilities on the embedding.

    .. math:: H_n = -\sum_k q(k \mid x_n) \log q(k \mid x_n) \,/\, \log K \in [0, 1]

    The entropy is zero for K = 1. Cells with a high entropy are drawn on top.

    Parameters
    ----------
    adata
        Cells with responsibilities and an embedding in ``obsm``.
    key
        Key of ``obsm`` with the responsibilities q(c|x), shape ``(n, k)``.
    basis
        Key of ``obsm``, with or without ``X_``, whose first two columns are plotted. If None,
        ``X_umap``, or else ``X_tsne``.
    ax
        Axes to draw on. If None, a new figure is created.
    save
        Path of a ``.pdf``, ``.svg`` or ``.png`` file to write the figure to.

    Examples
    --------
    >>> import numpy as np
    >>> adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(40, 2))
    >>> adata.obsm["scale_responsibilities"] = np.full((40, 2), 0.5)
    >>> ps.pl.responsibility_entropy(adata).get_title(loc="left")
    'Assignment entropy (mean 1.00)'
    """
    check_cells(adata)
    xy, name = _coordinates(adata, basis)
    entropy_n = normalised_entropy(responsibilities_of(adata, key))
    with on_axes(ax, save) as ax:
        bar = "entropy / log K"
        _by_number(ax, xy, entropy_n, limits=(0, 1), cmap=_ENTROPY_COLOURS, label=bar)
        _finish(ax, name, f"Assignment entropy (mean {entropy_n.mean():.2f})")
    return ax


def _coordinates(adata: AnnData, basis: str | None) -> tuple[NDArray[np.float64], str]:
    if basis is None:
        basis = next((key for key in _BASES if key in adata.obsm), None)
        if basis is None:
            raise DataError(f"adata.obsm has neither {' nor '.join(_BASES)}.{_HINT}")
    if basis not in adata.obsm and f"X_{basis}" in adata.obsm:
        basis = f"X_{basis}"
    xy = obsm_array(adata, basis, "basis", _HINT)
    if xy.shape[1] < 2:
        raise DataError(f"obsm[{basis!r}] has one dimension; a scatter needs two.")
    return xy[:, :2], _BASES.get(basis, basis.removeprefix("X_"))


def _colouring(adata: AnnData, color: str) -> Groups | NDArray[np.float64]:
    """Return the groups or the numbers by which the cells are coloured; a number may be NaN."""
    if color in adata.obs:
        column = adata.obs[color]
        numeric = pd.api.types.is_numeric_dtype(column.dtype)
        if numeric and not pd.api.types.is_bool_dtype(column.dtype):
            values = column.to_numpy(dtype=np.float64, na_value=np.nan)
            return np.where(np.isfinite(values), values, np.nan)
        return groups_of(column)
    if color not in adata.var_names:
        columns = listed(adata.obs.columns)
        raise DataError(
            f"color={color!r} is neither a column of adata.obs (the columns are: {columns}) nor "
            f"one of {adata.n_vars} peaks."
        )
    at = peak_positions(adata, [color], "color")
    matrix = matrix_of(adata, None)
    count_n = np.concatenate([dense(matrix, part, at)[:, 0] for part in chunks(adata.n_obs)])
    if np.isin(count_n, (0, 1)).all():
        return Groups(("closed", "open"), count_n.astype(np.intp), (MISSING, PALETTE[0]))
    return count_n.astype(np.float64)


def _points(ax: Axes, xy: NDArray[np.float64], **options: Any) -> Any:
    box = ax.get_window_extent()
    area = box.width * box.height * (72 / ax.figure.dpi) ** 2  # in points
    size = float(np.clip(0.12 * area / len(xy), 0.8, 20))
    x, y = xy.T
    return ax.scatter(x, y, s=size, lw=0, rasterized=len(xy) > _MANY_POINTS, **options)


def _by_group(ax: Axes, xy: NDArray[np.float64], groups: Groups, *, labelled: bool) -> None:
    codes_n, present = groups.codes_n, groups.present()
    # Cells are drawn in random order, so that no category covers others; grey cells come first.
    order = np.random.default_rng(0).permutation(len(xy))
    below = np.array([shade == MISSING for shade in groups.colours])[codes_n[order]]
    order = np.concatenate([order[below], order[~below]])
    _points(ax, xy[order], color=to_rgba_array(groups.colours)[codes_n[order]])
    if labelled and len(present) <= _MAX_LABELS:
        texts, written = [], written_on(ax, groups, present)
        for code in present:
            if groups.colours[code] == MISSING:
                continue
            x, y = np.median(xy[codes_n == code], axis=0)
            box = {
                "boxstyle": "round,pad=0.15",
                "fc": "white",
                "ec": groups.colours[code],
                "lw": 0.8,
                "alpha": 0.85,
            }
            texts.append(ax.text(x, y, written[code], ha="center", va="center", bbox=box, size=6.5))
        category_legend(ax, groups, present, written)
        place_labels(ax, texts)
    elif len(present) <= MOST_ENTRIES:
        category_legend(ax, groups, present, groups.names)


def _by_number(
    ax: Axes,
    xy: NDArray[np.float64],
    values: NDArray[np.float64],
    *,
    limits: tuple[float, float] | None = None,
    cmap: str | Colormap = "viridis",
    label: str = "",
) -> None:
    """Draw cells in increasing order of their value, above grey cells without a value."""
    known = np.isfinite(values)
    if not known.all():
        _points(ax, xy[~known], color=MISSING)
    if not known.any():
        return
    order = np.flatnonzero(known)[np.argsort(values[known], kind="stable")]
    low, high = limits or (values[order[0]], values[order[-1]])
    points = _points(ax, xy[order], c=values[order], cmap=cmap, vmin=low, vmax=high)
    bar = ax.figure.colorbar(points, ax=ax, shrink=0.7, aspect=15, pad=0.02)
    bar.set_label(label)
    quiet(bar)


def _title(n_cells: int, color: str | None, values: Groups | NDArray[np.float64] | None) -> str:
    if color is None:
        return f"{n_cells} cells"
    if isinstance(values, Groups) and len(values.present()) > MOST_ENTRIES:
        return f"{color} ({len(values.present())} categories)"
    return color


def _finish(ax: Axes, name: str, title: str) -> None:
    ax.set(xticks=[], yticks=[], xlabel=f"{name} 1", ylabel=f"{name} 2", title=title)
    ax.spines[:].set_visible(False)
