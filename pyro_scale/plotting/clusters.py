"""Figures of clusters: confusion matrix, latent dimensions, component sizes and scores."""

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
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import xlogy

from pyro_scale.analysis.specificity import latent_specificity
from pyro_scale.exceptions import DataError
from pyro_scale.plotting._anndata import (
    Groups,
    check_cells,
    column_groups,
    groups_of,
    obs_column,
    obsm_array,
)
from pyro_scale.plotting._figure import on_axes, root_figure
from pyro_scale.plotting._heatmap import image, quiet
from pyro_scale.plotting._labels import CHARACTER
from pyro_scale.plotting._style import colour

__all__ = [
    "confusion_matrix",
    "feature_specificity",
    "ink",
    "metrics",
    "normalised_entropy",
    "occupancy",
    "responsibilities_of",
]

_MAX_ANNOTATED = 25
_MAX_TICKS = 60
_MIN_FONT_SIZE = 4.5


def confusion_matrix(
    labels: Sequence[Any],
    clusters: Sequence[Any],
    *,
    normalize: Literal["labels", "clusters"] | None = "labels",
    match: bool = True,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Plot the confusion matrix of labels (rows) and clusters (columns).

    Parameters
    ----------
    labels, clusters
        Labels and clusters of the cells: one entry per cell. Cells without a label or a cluster are
        left out; the title gives their number.
    normalize
        ``"labels"`` shows each row in per cent of the label's cells, ``"clusters"`` each column in
        per cent of the cluster's cells, and None the numbers of cells.
    match
        If True, match clusters to labels one to one so that most cells agree (Hungarian algorithm),
        and order the clusters so that the matched pairs lie on the diagonal. Unmatched
        clusters come last.
    ax
        Axes to draw on. If None, a new figure is created.
    save
        Path of a ``.pdf``, ``.svg`` or ``.png`` file to write the figure to.

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
        if max(values_lk.shape) <= _MAX_ANNOTATED:
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
    """Return the order of the clusters in which matched clusters follow the order of the labels.

    The other clusters come last, ordered by their most common label.
    """
    _, matched = linear_sum_assignment(count_lk, maximize=True)  # rows ascend
    others = np.setdiff1d(np.arange(count_lk.shape[1]), matched)
    others = others[np.argsort(count_lk.argmax(0)[others], kind="stable")]
    return [int(k) for k in (*matched, *others)]


def _length(along: Sequence[str], across: Sequence[str], rest: float) -> float:
    """Return the length in inches of one side of a heat map, with the names beside it.

    ``along`` are the names along this side, ``across`` those along the other side, and ``rest`` is
    the length of everything else.
    """
    beside = max(map(len, across)) * CHARACTER * 7 / 72
    return float(np.clip(rest + beside + 0.24 * len(along), 2.4, 7))


def _ticks(ax: Axes, along: Literal["x", "y"], names: Sequence[str]) -> None:
    every = -(-len(names) // _MAX_TICKS)
    at, shown = range(0, len(names), every), list(names)[::every]
    size = 7 if len(shown) <= _MAX_ANNOTATED else 5
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
    """Write the rounded value into every non-zero entry, in black or white for contrast."""
    root_figure(ax).draw_without_rendering()  # runs the layout: the size of ax is final
    text_lk = [[f"{value:.0f}" for value in row] for row in values_lk]
    longest = max(len(text) for row in text_lk for text in row)
    box = ax.get_window_extent()
    points = 72 / ax.figure.dpi
    width = box.width * points / values_lk.shape[1]
    height = box.height * points / values_lk.shape[0]
    size = min(7.0, (width - 1) / (0.65 * longest), height / 1.3)
    if size < _MIN_FONT_SIZE:
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
    """Return black or white for each background colour, whichever has the higher WCAG contrast."""
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
    """Plot how specific each latent dimension is to each group, as -log10 p of F tests.

    Each test compares a group with all other cells in one latent dimension.

    Parameters
    ----------
    adata
        Cells with latent means in ``obsm``.
    groupby
        Column of ``obs`` with the group of each cell; cells without a group are left out.
    use_rep
        Key of ``obsm`` with the latent means, shape ``(n, d)``.
    ax
        Axes to draw on. If None, a new figure is created.
    save
        Path of a ``.pdf``, ``.svg`` or ``.png`` file to write the figure to.

    See Also
    --------
    pyro_scale.analysis.latent_specificity : Computes the p values.

    Examples
    --------
    >>> import numpy as np
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
    codes_n = np.where(column.isna(), -1, groups.codes_n).astype(np.intp)
    p_dk = latent_specificity(
        z_nd, pd.Series(pd.Categorical.from_codes(codes_n, pd.Index(categories)))
    )
    smallest = np.finfo(np.float64).tiny
    values_dk = -np.log10(np.clip(p_dk.to_numpy(), smallest, 1))
    capped = bool((p_dk.to_numpy() < smallest).any())
    dims, names = [str(d) for d in p_dk.index], list(p_dk.columns)
    size = (_length(names, dims, 1.2), _length(dims, names, 0.6))
    with on_axes(ax, save, size) as ax:
        high = max(float(values_dk.max()), 1.0)
        shown = image(ax, values_dk, 0, high, "viridis")
        shown.set_norm(PowerNorm(0.5, 0, high))  # linear colours would show the largest value alone
        _ticks(ax, "y", dims)
        _ticks(ax, "x", names)
        ax.set(xlabel=groupby, ylabel=f"dimension of {use_rep}")
        limit = f", capped at {-np.log10(smallest):.0f}" if capped else ""
        _bar(ax, shown, f"−log₁₀ p, group against the rest{limit}")
    return ax


_HINT = " model.to_anndata() writes q(c|x) there."


def responsibilities_of(adata: AnnData, key: str) -> NDArray[np.float64]:
    """Return ``adata.obsm[key]``, or raise DataError if its rows are not probabilities."""
    q_nk = obsm_array(adata, key, "key", _HINT)
    if (q_nk < 0).any() or not np.allclose(q_nk.sum(1), 1, atol=1e-3):
        raise DataError(f"the rows of obsm[{key!r}] are not probabilities that sum to one.")
    return q_nk


def normalised_entropy(q_nk: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy of each row divided by log K, from 0 (certain) to 1 (uniform)."""
    most = np.log(max(q_nk.shape[1], 2))
    entropy_n: NDArray[np.float64] = np.clip(-xlogy(q_nk, q_nk).sum(1) / most, 0, 1)
    return entropy_n


def occupancy(
    adata: AnnData,
    *,
    key: str = "scale_responsibilities",
    cluster: str = "scale_cluster",
    weights: ArrayLike | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Plot the fraction of cells assigned to each component, and the mean of q(c|x).

    Parameters
    ----------
    adata
        Cells with responsibilities and clusters, as returned by ``model.to_anndata()``.
    key
        Key of ``obsm`` with the responsibilities q(c|x), shape ``(n, k)``.
    cluster
        Column of ``obs`` with the component of each cell, ``"0"`` to ``"K-1"``.
    weights
        Mixture weights of the prior, shape ``(k,)``, shown as ticks. If None, they are not shown.
    ax
        Axes to draw on. If None, a new figure is created.
    save
        Path of a ``.pdf``, ``.svg`` or ``.png`` file to write the figure to.

    Examples
    --------
    >>> import numpy as np
    >>> adata.obsm["scale_responsibilities"] = np.eye(2)[np.arange(40) % 2]
    >>> adata.obs["scale_cluster"] = ["0", "1"] * 20
    >>> axes = ps.pl.occupancy(adata, weights=[0.4, 0.6])
    >>> [float(bar.get_height()) for bar in axes.patches]
    [0.5, 0.5]
    """
    check_cells(adata)
    q_nk = responsibilities_of(adata, key)
    k = np.arange(q_nk.shape[1])
    fraction_k = _fractions(obs_column(adata, cluster, "cluster"), len(k))
    weights_k = None if weights is None else np.asarray(weights, dtype=np.float64)
    if weights_k is not None and weights_k.shape != k.shape:
        raise ValueError(f"weights has shape {weights_k.shape}; expected {k.shape}.")
    with on_axes(ax, save, (min(max(3.5, 0.6 + 0.2 * len(k)), 7), 2.6)) as ax:
        bars = [colour(int(code)) for code in k]
        ax.bar(k, fraction_k, color=bars, width=0.8, label="fraction of cells")
        mark: dict[str, Any] = {"ls": "", "color": "black", "clip_on": False}
        if weights_k is not None:
            ax.plot(k, weights_k, marker="_", ms=9, mew=1.5, label="weight π in the prior", **mark)
        mean_k = q_nk.mean(0)
        ax.plot(k, mean_k, marker="D", ms=3.2, mfc="white", mew=0.8, label="mean q(c|x)", **mark)
        ax.set(xlabel="component", ylabel="fraction", ylim=(0, None))
        ax.set_xlim(-0.6, len(k) - 0.4)
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        _legend(ax)
    return ax


def _legend(ax: Axes) -> None:
    """Draw the legend above the bars; their entry is grey, because the bars have many colours."""
    handles, names = ax.get_legend_handles_labels()
    handles.insert(0, handles.pop())
    names.insert(0, names.pop())
    legend = ax.legend(
        handles,
        names,
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=3,
        handlelength=1.0,
        handletextpad=0.4,
        columnspacing=0.9,
        borderaxespad=0.1,
    )
    for patch in legend.get_patches():
        patch.set_facecolor("0.5")


def _fractions(column: pd.Series, n_components: int) -> NDArray[np.float64]:
    names = [str(k) for k in range(n_components)]
    codes = pd.Index(names).get_indexer(pd.Index([str(name) for name in column]))
    if (codes < 0).any():
        other = column[codes < 0].iloc[0]
        raise DataError(
            f"obs[{column.name!r}] has {other!r}; expected a component, '0' to '{names[-1]}'."
        )
    return np.bincount(codes, minlength=n_components) / len(codes)


_MARKERS = "osD^vP"


def metrics(
    frame: pd.DataFrame,
    *,
    x: str,
    y: str = "ari",
    hue: str = "method",
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Plot a score against a setting, such as the fraction of corrupted entries, per method.

    Lines show the mean over repeats, bands one standard deviation on either side.

    Parameters
    ----------
    frame
        One row per method, setting and repeat, shape ``(n, 3)`` or wider.
    x
        Column of the setting, with numbers, or with categories, which keep their order.
    y
        Column of the score.
    hue
        Column of the method; each method has a line.
    ax
        Axes to draw on. If None, a new figure is created.
    save
        Path of a ``.pdf``, ``.svg`` or ``.png`` file to write the figure to.

    Raises
    ------
    ValueError
        If a column is missing, the score is not numeric, or every row has a missing value.

    Examples
    --------
    >>> runs = {"corrupted": [0.0, 0.0, 0.1, 0.1], "ari": [0.9, 1.0, 0.8, 0.7]}
    >>> axes = metrics(pd.DataFrame(runs).assign(method="SCALE"), x="corrupted")
    >>> axes.lines[0].get_ydata()
    array([0.95, 0.75])
    """
    missing = [name for name in (x, y, hue) if name not in frame]
    if missing:
        raise ValueError(
            f"frame has no column {', '.join(map(repr, missing))}; it has "
            f"{', '.join(map(str, frame.columns))}."
        )
    if not pd.api.types.is_numeric_dtype(frame[y].dtype):
        raise ValueError(f"y={y!r} holds {frame[y].dtype}; expected numbers.")
    frame = frame[[x, y, hue]].dropna()
    if frame.empty:
        raise ValueError(f"no row has {x!r}, {y!r} and {hue!r}.")
    names = frame[hue]
    if not isinstance(names.dtype, pd.CategoricalDtype):  # in order of appearance
        names = names.astype(pd.CategoricalDtype(list(dict.fromkeys(names))))
    methods = groups_of(names)
    numeric = pd.api.types.is_numeric_dtype(frame[x].dtype)
    settings = groups_of(frame[x])
    at_n = frame[x].to_numpy(dtype=np.float64) if numeric else settings.codes_n.astype(np.float64)
    with on_axes(ax, save, (3.5, 2.4)) as ax:
        repeated = False
        for code in methods.present():
            score = frame[y].to_numpy(dtype=np.float64)[methods.codes_n == code]
            by = pd.Series(score).groupby(at_n[methods.codes_n == code])
            mean, sd = by.mean(), by.std()
            ax.plot(
                mean.index,
                mean,
                marker=_MARKERS[code % len(_MARKERS)],
                ms=3.5,
                lw=1.2,
                color=colour(code),
                label=methods.names[code],
            )
            if sd.notna().any():
                repeated = True
                sd = sd.fillna(0)
                ax.fill_between(
                    mean.index, mean - sd, mean + sd, color=colour(code), alpha=0.2, lw=0
                )
        if not numeric:
            ax.set_xticks(range(len(settings.names)), settings.names)
        name = y.upper() if y in ("ari", "nmi") else y
        ax.set(xlabel=x, ylabel=f"{name}, mean ± s.d." if repeated else name)
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title=hue, alignment="left")
    return ax
