"""Figures of the comparison of objectives and of the gaps between bounds and log p(x)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from pyro_scale.plotting._figure import drawn
from pyro_scale.plotting._heatmap import image, quiet
from pyro_scale.plotting._style import PALETTE
from pyro_scale.plotting.clusters import ink

__all__ = [
    "comparison",
    "ladder",
    "objective_matrix",
]

_COLOURS = {
    "holds": PALETTE[2],
    "no power": PALETTE[1],
    "FAILS": PALETTE[3],
}


def comparison(frame: pd.DataFrame, *, save: str | Path | None = None) -> Figure:
    """Plot each estimator's bound beside its closed form, and the variance of its gradient.

    A row of the figure is a formulation, a choice of q(z,c|x), with a treatment of the mixture
    component c (``"marginalized"``, ``"enumerated"`` or ``"sampled"``) and an estimator. Its colour
    is the result of the comparison with the closed form (``status`` in ``frame``).

    Parameters
    ----------
    frame
        Result of ``Comparison.to_frame()``, shape ``(n_objectives, n_columns)``.
    save
        Path of a ``.pdf``, ``.svg`` or ``.png`` file to write the figure to.

    Examples
    --------
    >>> table = ps.compare(model, n_cells=4, n_samples=2, formulations=["collapsed"])
    >>> len(comparison(table.to_frame()).axes)
    2
    """
    rows = frame[frame["value_agreement"] != "unsupported"].iloc[::-1]
    y = np.arange(len(rows))
    names = rows[["formulation", "c", "estimator", "closed_form"]].astype(str).to_numpy()
    labels = [
        f"{formulation} · {c} · {estimator.removesuffix('_ELBO')}"
        + (" (at z)" if str(closed_form).endswith("_at_z") else "")
        for formulation, c, estimator, closed_form in names
    ]
    with drawn(save, 7, 0.16 * len(rows) + 1.3) as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        for status, colour in _COLOURS.items():
            at = (rows["status"] == status).to_numpy()
            if not at.any():
                continue
            some = rows[at]
            left.errorbar(
                some["value"],
                y[at],
                xerr=2 * some["value_standard_error"],
                fmt="o",
                ms=4,
                color=colour,
                label=f"Pyro estimator, ± 2 s.e. ({status})",
            )
            right.barh(y[at], some["gradient_variance"], color=colour, height=0.6)
        left.plot(rows["closed_form_value"], y, "k|", ms=10, label="closed form, same draws")
        left.set(xlabel="bound, nats per cell", yticks=y, yticklabels=labels)
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4)
        right.set(xscale="log", xlabel="gradient variance,\nnats² per cell²")
        formulations = rows["formulation"].to_numpy()
        borders = np.flatnonzero(formulations[1:] != formulations[:-1]) + 0.5
        for axes in (left, right):
            axes.grid(axis="y", lw=0.3, color="0.88")
            axes.hlines(borders, 0, 1, transform=axes.get_yaxis_transform(), color="0.6", lw=0.8)
            axes.set_axisbelow(True)
            axes.set_ylim(-0.6, len(rows) - 0.4)
    return figure


def ladder(frame: pd.DataFrame, *, save: str | Path | None = None) -> Figure:
    """Plot the gaps between log p(x) and the bounds as stacked bars, one per cell, sorted by total.

    Parameters
    ----------
    frame
        One row per cell, with columns ``gap_posterior``, ``gap_optimal``, ``gap_averaged`` and
        ``gap_scale`` in nats, as in the result of :func:`pyro_scale.comparison.ladder`.
    save
        Path of a ``.pdf``, ``.svg`` or ``.png`` file to write the figure to.

    Examples
    --------
    >>> names = ["gap_posterior", "gap_optimal", "gap_averaged", "gap_scale"]
    >>> figure = ladder(pd.DataFrame([[1.0, 0.3, 0.1, 0.2], [0.5, 0.1, 0.0, 0.1]], columns=names))
    >>> len(figure.axes[0].patches)  # one bar per cell and gap
    8
    """
    gaps = [
        ("gap_posterior", "log p(x) − L_str = KL(q(z|x) ‖ p(z|x))"),
        ("gap_optimal", "L_str − L_mf(g*) = E KL(g* ‖ γ)"),
        ("gap_averaged", "L_mf(g*) − L_mf(ḡ) = KL(ḡ ‖ g*)"),
        ("gap_scale", "L_mf(ḡ) − L_SCALE = E KL(γ ‖ ḡ)"),
    ]
    rows = frame.loc[frame[[name for name, _ in gaps]].sum(axis=1).sort_values().index]
    x = np.arange(len(rows))
    with drawn(save, 5, 3.4) as figure:
        axes = figure.subplots()
        bottom = np.zeros(len(rows))
        for (name, label), colour in zip(gaps, PALETTE, strict=False):
            height = rows[name].clip(lower=0).to_numpy()
            axes.bar(x, height, bottom=bottom, width=0.9, color=colour, label=label)
            bottom += height
        axes.set(xlabel=f"{len(rows)} cells, by total gap", ylabel="nats below log p(x)", xticks=[])
        handles, names = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], names[::-1], loc="lower left", bbox_to_anchor=(0, 1))
        axes.set_ylim(0, 1.05 * max(float(bottom.max()), 1e-12))
    return figure


_SIGNS = {"exact": "=", "in expectation": "≈"}
_MAX_LINE = 15  # characters that fit into an entry of the matrix
_FRAMES = {"FAILS": (PALETTE[3], "-"), "no power": (PALETTE[1], "--")}


def objective_matrix(frame: pd.DataFrame, *, save: str | Path | None = None) -> Figure:
    """Plot which closed-form bound each estimator estimates, and the variance of its gradient.

    A row of the figure is a formulation, a choice of q(z,c|x), with a treatment of the mixture
    component c (``"marginalized"``, ``"enumerated"`` or ``"sampled"``); a column is an estimator.
    An entry names the bound, known in closed form, that the estimator estimates. The sign before
    the name is ``=`` if their values are equal at each draw, and ``≈`` if they are equal in
    expectation. The colour of an entry is the variance of the estimator's gradient. Grey entries
    are combinations that Pyro or this package does not support.

    A frame shows the result of the numerical comparison with the closed form. A solid frame means
    that the estimator does not agree with it. A dashed frame means that the comparison has no
    power: for these cells and draws, agreement or disagreement would not be informative. Entries
    without a frame agree.

    Parameters
    ----------
    frame
        Result of ``Comparison.to_frame()``, shape ``(n_objectives, n_columns)``.
    save
        Path of a ``.pdf``, ``.svg`` or ``.png`` file to write the figure to.

    Examples
    --------
    >>> table = ps.compare(model, n_cells=4, n_samples=2, formulations=["collapsed"])
    >>> axes = objective_matrix(table.to_frame()).axes[0]
    >>> axes.images[0].get_array().shape  # one formulation, six estimators
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
        name = (
            of["closed_form"]
            if len(of["closed_form"]) <= _MAX_LINE
            else of["closed_form"].replace("_", "_\n", 1)
        )
        words.setdefault(at, []).append(f"{_SIGNS[of['value_agreement']]} {name}")
        if of["status"] in _FRAMES and framed.get(at) != "FAILS":
            framed[at] = of["status"]
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
        for (row, column), status in framed.items():
            colour, dash = _FRAMES[status]
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
    """Return the limits of the colour scale: the smallest and largest positive variance."""
    above = variance_re[np.isfinite(variance_re) & (variance_re > 0)]
    if not len(above):
        return 1.0, 10.0
    low, high = float(above.min()), float(above.max())
    return (low, high) if high > low else (low / 2, high * 2)
