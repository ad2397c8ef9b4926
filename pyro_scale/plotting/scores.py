"""Scores of several methods over a setting that varies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pyro_scale.plotting.cells import groups_of
from pyro_scale.plotting.saving import on_axes
from pyro_scale.plotting.style import colour

__all__ = ["metrics"]

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
    """A score against a setting (such as the fraction of corrupted entries), a line per method.

    Mean over repeats, and one standard deviation on either side.

    Parameters
    ----------
    frame
        One row per method, setting and repeat, shape ``(n, 3)`` or wider.
    x, y, hue
        Columns of the setting (numbers, or categories in their order), the score and the method.
    ax
        Draw here; None: a new figure.
    save
        Write the figure to this ``.pdf``, ``.svg`` or ``.png``.

    Raises
    ------
    ValueError
        If a column is missing, or the score is not a number anywhere.

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
