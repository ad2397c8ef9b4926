"""Cells in two dimensions, coloured by what is known of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_rgba_array
from numpy.typing import NDArray

from pyro_scale.errors import DataError
from pyro_scale.plotting.bars import quiet
from pyro_scale.plotting.cells import (
    Groups,
    check_cells,
    chunks,
    dense,
    groups_of,
    matrix_of,
    obsm_array,
    peak_positions,
)
from pyro_scale.plotting.labels import place_labels
from pyro_scale.plotting.legends import MOST_ENTRIES, category_legend, column_width, written_on
from pyro_scale.plotting.responsibilities import normalised_entropy, responsibilities_of
from pyro_scale.plotting.saving import on_axes
from pyro_scale.plotting.style import MISSING, PALETTE

__all__ = ["embedding", "responsibility_entropy"]

_MANY_POINTS = 2000
_MOST_LABELS = 30
_BASES = {"X_umap": "UMAP", "X_tsne": "t-SNE"}
_UNDECIDED = LinearSegmentedColormap.from_list(
    "undecided", ["#D8D8D8", "#E69F00", "#D55E00", "#7A2400", "#3A0F00"]
)  # luminance falls all the way
_HINT = ' Call adata.obsm["X_umap"] = ps.analysis.embed(adata.obsm["X_scale"]) first.'


def embedding(
    adata: AnnData,
    color: str | None = None,
    *,
    basis: str | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Scatter of the cells in two dimensions.

    Parameters
    ----------
    adata
        Cells with coordinates in ``obsm``.
    color
        A column of ``obs``: categories get a colour each and, up to 30, a label at their
        median; numbers are shown from low to high. Or the name of a peak: its accessibility in
        ``X``. None: all cells alike. Cells without a value are grey.
    basis
        Key of ``obsm`` (with or without ``X_``), its first two columns; None: ``X_umap``, or
        ``X_tsne``.
    ax
        Draw here; None: a new figure.
    save
        Write the figure to this ``.pdf``, ``.svg`` or ``.png``.

    Raises
    ------
    DataError
        If ``basis`` or ``color`` is not there.

    Examples
    --------
    >>> import numpy as np
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
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
    r"""How undecided the mixture is about each cell, on the embedding; such cells on top.

    .. math:: H_n = -\sum_k q(k \mid x_n) \log q(k \mid x_n) \,/\, \log K \in [0, 1]

    Zero for K = 1.

    Parameters
    ----------
    adata
        Cells with q(c|x), shape ``(n, k)``, in ``obsm[key]``.
    key
        Its name.
    basis, ax, save
        As in :func:`embedding`.

    Examples
    --------
    >>> import numpy as np
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    >>> adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(40, 2))
    >>> adata.obsm["scale_responsibilities"] = np.full((40, 2), 0.5)
    >>> ps.pl.responsibility_entropy(adata).get_title(loc="left")
    'Undecided cells (mean 1.00)'
    """
    check_cells(adata)
    xy, name = _coordinates(adata, basis)
    entropy_n = normalised_entropy(responsibilities_of(adata, key))
    with on_axes(ax, save) as ax:
        bar = "entropy / log K"
        _by_number(ax, xy, entropy_n, limits=(0, 1), cmap=_UNDECIDED, label=bar)
        _finish(ax, name, f"Undecided cells (mean {entropy_n.mean():.2f})")
    return ax


def _coordinates(adata: AnnData, basis: str | None) -> tuple[NDArray[np.float64], str]:
    if basis is None:
        basis = next((key for key in _BASES if key in adata.obsm), None)
        if basis is None:
            raise DataError(f"adata.obsm has neither of {', '.join(_BASES)}.{_HINT}")
    if basis not in adata.obsm and f"X_{basis}" in adata.obsm:
        basis = f"X_{basis}"
    xy = obsm_array(adata, basis, "basis", _HINT)
    if xy.shape[1] < 2:
        raise DataError(f"obsm[{basis!r}] has one dimension; a scatter needs two.")
    return xy[:, :2], _BASES.get(basis, basis.removeprefix("X_"))


def _colouring(adata: AnnData, color: str) -> Groups | NDArray[np.float64]:
    """Groups, or a number per cell that may be NaN."""
    if color in adata.obs:
        column = adata.obs[color]
        numeric = pd.api.types.is_numeric_dtype(column.dtype)
        if numeric and not pd.api.types.is_bool_dtype(column.dtype):
            values = column.to_numpy(dtype=np.float64, na_value=np.nan)
            return np.where(np.isfinite(values), values, np.nan)
        return groups_of(column)
    if color not in adata.var_names:
        columns = ", ".join(map(str, adata.obs.columns)) or "none"
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
    # In random order, so that no category lies on top; those without one lie below.
    order = np.random.default_rng(0).permutation(len(xy))
    below = np.array([shade == MISSING for shade in groups.colours])[codes_n[order]]
    order = np.concatenate([order[below], order[~below]])
    _points(ax, xy[order], color=to_rgba_array(groups.colours)[codes_n[order]])
    if labelled and len(present) <= _MOST_LABELS:
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
    """The largest on top; those without a value grey and below."""
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
