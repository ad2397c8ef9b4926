"""Figures of training: its history, and the choice of the number of components."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pyro_scale.plotting._figure import on_axes
from pyro_scale.plotting._style import PALETTE

__all__ = ["history", "n_components"]


def history(
    history: pd.DataFrame, *, ax: Axes | None = None, save: str | Path | None = None
) -> Axes:
    """Plot the objective and the ELBO over epochs, and the start of the mixture phase.

    The objective is the ELBO of the training cells plus the log prior density of the decoder's
    weights, which are maximized together.

    Parameters
    ----------
    history
        ``model.history``, one row per epoch, with columns ``elbo_train``, ``phase`` and
        optionally ``objective`` and ``elbo_validation``.
    ax
        Axes to draw on. If None, a new figure is created.
    save
        Path of a ``.pdf``, ``.svg`` or ``.png`` file to write the figure to.

    Raises
    ------
    ValueError
        If the history is empty or lacks a column.

    Examples
    --------
    >>> epochs = {"elbo_train": [-90.0, -80.0, -75.0], "phase": ["warm-up", "warm-up", "mixture"]}
    >>> axes = history(pd.DataFrame(epochs))
    >>> len(axes.lines)  # the ELBO and the start of the mixture phase
    2
    """
    if not isinstance(history, pd.DataFrame):
        raise TypeError(f"history is a {type(history).__name__}; expected model.history.")
    if history.empty:
        raise ValueError("the history is empty: call model.train() first.")
    missing = [name for name in ("elbo_train", "phase") if name not in history]
    if missing:
        raise ValueError(
            f"history has no column {', '.join(missing)}; it has {', '.join(map(str, history))}."
        )
    curves = {"elbo_train": ("ELBO, training cells", PALETTE[0], "-")}
    if "objective" in history and not (history["objective"] == history["elbo_train"]).all():
        curves["objective"] = ("objective", "0.2", "-.")
    if "elbo_validation" in history:
        curves["elbo_validation"] = ("ELBO, held-out cells", PALETTE[3], "--")
    with on_axes(ax, save, (3.5, 2.4)) as ax:
        marker = "o" if len(history) == 1 else ""
        for name, (label, shade, dash) in curves.items():
            ax.plot(
                history.index, history[name], dash, marker=marker, color=shade, lw=1.2, label=label
            )
        started = history.index[history["phase"] == "mixture"]
        if len(started) < len(history):
            for first in started[:1]:
                ax.axvline(first, color="0.6", lw=0.8, ls=":", label="mixture starts")
        values = history[list(curves)].to_numpy(dtype=np.float64)
        values = values[np.isfinite(values)]
        if len(values):  # the lowest values, of the first epochs, would compress the rest
            low, high = np.quantile(values, [0.08, 1.0])
            margin = 0.05 * max(high - low, 1e-6)
            ax.set_ylim(low - margin, high + margin)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(xlabel="epoch", ylabel="nats per cell", title="Training")
        ax.legend(loc="lower right")
    return ax


_SHADES = {"valley": PALETTE[3], "silhouette": PALETTE[2], "stability": PALETTE[0]}


def n_components(
    table: pd.DataFrame,
    *,
    chosen: int | None = None,
    limit: float = 0.85,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Plot what the number of mixture components, K, was chosen from.

    ``valley`` is the lowest density between the two clusters that are separated least, relative to
    the lower of their peaks; the largest K at or below ``limit`` is chosen. If clusters overlap so
    much that there is no valley, the K with the largest ``silhouette`` of k-means clusters is
    (:func:`pyro_scale.training.choose_n_components`). ``stability`` is the agreement (adjusted Rand
    index) of the clusters of either half of every cell's peaks.

    Parameters
    ----------
    table
        ``model.n_components_table``, one row per number of components, shape ``(k_max, 3)``.
    chosen
        The number to mark, such as ``model.config.n_components``.
    limit
        The shallowest valley of two clusters that are kept apart, which is drawn as a dashed line.
    ax
        Axes to draw on. If None, a new figure is created.
    save
        Path of a ``.pdf``, ``.svg`` or ``.png`` file to write the figure to.

    Raises
    ------
    ValueError
        If the table is empty or lacks a column.

    Examples
    --------
    >>> columns = {"valley": [0.0, 0.1, 0.4, 1.0], "silhouette": [np.nan, 0.3, 0.4, 0.2]}
    >>> columns["stability"] = [1.0, 0.99, 0.97, 0.6]
    >>> table = pd.DataFrame(columns, index=pd.RangeIndex(1, 5, name="n_components"))
    >>> axes = n_components(table, chosen=3)
    >>> len(axes.lines)  # valley, silhouette, stability, the limit and the chosen number
    5
    """
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"table is a {type(table).__name__}; expected model.n_components_table.")
    if table.empty:
        raise ValueError(
            "the table is empty: it is made if training chooses the number of components "
            "(n_components=None)."
        )
    missing = [name for name in _SHADES if name not in table]
    if missing:
        raise ValueError(
            f"table has no column {', '.join(missing)}; it has {', '.join(map(str, table))}."
        )
    with on_axes(ax, save, (3.5, 2.4)) as ax:
        for name, shade in _SHADES.items():
            if table[name].notna().any():
                ax.plot(table.index, table[name], "o-", color=shade, ms=3, lw=1.2, label=name)
        ax.axhline(limit, color="0.6", lw=0.8, ls="--")
        if chosen is not None:
            ax.axvline(chosen, color="0.6", lw=0.8, ls=":", label=f"K = {chosen}")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(xlabel="number of components, K", ylim=(-0.03, 1.06), title="Choice of K")
        ax.legend(loc="best")
    return ax
