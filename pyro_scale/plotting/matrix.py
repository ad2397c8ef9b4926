"""The comparison as a table: formulations by estimators, coloured by the noise of the gradient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from pyro_scale.plotting.bars import image, quiet
from pyro_scale.plotting.saving import drawn
from pyro_scale.plotting.style import PALETTE
from pyro_scale.plotting.tables import ink

__all__ = ["matrix"]

_SIGNS = {"exact": "=", "in expectation": "≈"}
_LONGEST = 15  # letters that a place has room for
_FRAMES = {"FAILS": (PALETTE[3], "-"), "no power": (PALETTE[1], "--")}


def matrix(frame: pd.DataFrame, *, save: str | Path | None = None) -> Figure:
    """What every estimator computes on every formulation, and how noisy its gradient is.

    A place says which closed form it is: ``=`` at each draw, ``≈`` on average. Its colour is the
    gradient's variance; grey is a combination that Pyro, or we, refuse. A frame marks a row that
    fails, a dashed one a row without power.

    Parameters
    ----------
    frame
        ``Comparison.to_frame()``, one row per combination.
    save
        Write the figure to this ``.pdf``, ``.svg`` or ``.png``.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    >>> model = ps.SCALE(adata, n_components=2, n_latent=2, hidden=(8,))
    >>> table = ps.compare(model, n_cells=4, n_samples=2, formulations=["collapsed"])
    >>> matrix(table.to_frame()).axes[0].images[0].get_array().shape  # one row, six estimators
    (1, 6)
    """
    places = frame[["formulation", "c"]].astype(str).agg(" · ".join, axis=1)
    rows, columns = list(dict.fromkeys(places)), list(dict.fromkeys(frame["estimator"]))
    variance_re = np.full((len(rows), len(columns)), np.nan)
    words: dict[tuple[int, int], list[str]] = {}
    framed: dict[tuple[int, int], str] = {}
    for place, (_, of) in zip(places, frame.iterrows(), strict=True):
        if of["value_agreement"] == "unsupported":
            continue
        at = rows.index(place), columns.index(of["estimator"])
        variance_re[at] = of["gradient_variance"]
        name = of["twin"] if len(of["twin"]) <= _LONGEST else of["twin"].replace("_", "_\n", 1)
        words.setdefault(at, []).append(f"{_SIGNS[of['value_agreement']]} {name}")
        if of["verdict"] in _FRAMES and framed.get(at) != "FAILS":
            framed[at] = of["verdict"]
    low, high = _limits(variance_re)
    with drawn(save, 7, 0.32 * len(rows) + 1.5) as figure:
        axes = figure.subplots()
        shown = image(axes, np.clip(variance_re, low, high), low, high, "YlGnBu")
        shown.set_norm(LogNorm(low, high))
        inks = ink(to_rgba_array(shown.cmap(shown.norm(variance_re)).reshape(-1, 4)))
        for (row, column), lines in words.items():
            colour = inks[row * len(columns) + column]
            axes.text(
                column, row, "\n".join(lines), ha="center", va="center", fontsize=6, color=colour
            )
        for (row, column), verdict in framed.items():
            colour, dash = _FRAMES[verdict]
            corner = (column - 0.46, row - 0.46)
            axes.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, ec=colour, ls=dash, lw=1.5))
        for row in np.arange(1, len(rows)) - 0.5:
            axes.axhline(row, color="white", lw=1)
        for column in np.arange(1, len(columns)) - 0.5:
            axes.axvline(column, color="white", lw=1)
        names = [name.removesuffix("ELBO").strip("_") for name in columns]
        axes.set_xticks(range(len(columns)), [name.replace("Mean", "\nMean") for name in names])
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0)
        bar = figure.colorbar(shown, ax=axes, location="bottom", shrink=0.5, aspect=40, pad=0.02)
        bar.set_label("gradient variance, nats² per cell²")
        quiet(bar)
    return figure


def _limits(variance_re: NDArray[np.float64]) -> tuple[float, float]:
    """The least and the largest that is above zero; of the colours."""
    above = variance_re[np.isfinite(variance_re) & (variance_re > 0)]
    if not len(above):
        return 1.0, 10.0
    low, high = float(above.min()), float(above.max())
    return (low, high) if high > low else (low / 2, high * 2)
