"""q(c|x): how undecided it is, and how many cells each component has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from scipy.special import xlogy

from pyro_scale.errors import DataError
from pyro_scale.plotting.cells import check_cells, obs_column, obsm_array
from pyro_scale.plotting.saving import on_axes
from pyro_scale.plotting.style import colour

__all__ = ["normalised_entropy", "occupancy", "responsibilities_of"]

_HINT = " model.to_anndata() writes q(c|x) there."


def responsibilities_of(adata: AnnData, key: str) -> NDArray[np.float64]:
    """``adata.obsm[key]``, checked to be probabilities."""
    q_nk = obsm_array(adata, key, "key", _HINT)
    if (q_nk < 0).any() or not np.allclose(q_nk.sum(1), 1, atol=1e-3):
        raise DataError(f"the rows of obsm[{key!r}] are not probabilities that sum to one.")
    return q_nk


def normalised_entropy(q_nk: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy of each row in units of log K: 0 is certain, 1 is uniform."""
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
    """The share of cells that each component has, beside the mean of q(c|x).

    Parameters
    ----------
    adata
        Cells with q(c|x), shape ``(n, k)``, in ``obsm[key]`` and the component of each in
        ``obs[cluster]``, categories ``"0"`` to ``"K-1"``.
    key, cluster
        Their names.
    weights
        The prior's weights, shape ``(k,)``, to be shown as ticks.
    ax
        Draw here; None: a new figure.
    save
        Write the figure to this ``.pdf``, ``.svg`` or ``.png``.

    Examples
    --------
    >>> import numpy as np
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    >>> adata.obsm["scale_responsibilities"] = np.eye(2)[np.arange(40) % 2]
    >>> adata.obs["scale_cluster"] = ["0", "1"] * 20
    >>> axes = ps.pl.occupancy(adata, weights=[0.4, 0.6])
    >>> [float(bar.get_height()) for bar in axes.patches]
    [0.5, 0.5]
    """
    check_cells(adata)
    q_nk = responsibilities_of(adata, key)
    k = np.arange(q_nk.shape[1])
    share_k = _shares(obs_column(adata, cluster, "cluster"), len(k))
    weights_k = None if weights is None else np.asarray(weights, dtype=np.float64)
    if weights_k is not None and weights_k.shape != k.shape:
        raise ValueError(f"weights has shape {weights_k.shape}; expected {k.shape}.")
    with on_axes(ax, save, (min(max(3.5, 0.6 + 0.2 * len(k)), 7), 2.6)) as ax:
        bars = [colour(int(code)) for code in k]
        ax.bar(k, share_k, color=bars, width=0.8, label="share of cells")
        mark: dict[str, Any] = {"ls": "", "color": "black", "clip_on": False}
        if weights_k is not None:
            ax.plot(k, weights_k, marker="_", ms=9, mew=1.5, label="weight π in the prior", **mark)
        mean_k = q_nk.mean(0)
        ax.plot(k, mean_k, marker="D", ms=3.2, mfc="white", mew=0.8, label="mean q(c|x)", **mark)
        ax.set(xlabel="component", ylabel="share", ylim=(0, None))
        ax.set_xlim(-0.6, len(k) - 0.4)
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        _legend(ax)
    return ax


def _legend(ax: Axes) -> None:
    """Above the bars, whose entry is grey because they have many colours."""
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


def _shares(column: pd.Series, n_components: int) -> NDArray[np.float64]:
    names = [str(k) for k in range(n_components)]
    codes = pd.Index(names).get_indexer(pd.Index([str(name) for name in column]))
    if (codes < 0).any():
        other = column[codes < 0].iloc[0]
        raise DataError(
            f"obs[{column.name!r}] has {other!r}; expected a component, '0' to '{names[-1]}'."
        )
    return np.bincount(codes, minlength=n_components) / len(codes)
