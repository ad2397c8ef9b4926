"""Figure of the training history."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pyro_scale.plotting._figure import on_axes
from pyro_scale.plotting._style import PALETTE

__all__ = ["history"]


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
