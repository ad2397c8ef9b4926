"""Figures of the comparison and of the ladder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pyro_scale.plotting.saving import drawn
from pyro_scale.plotting.style import PALETTE

__all__ = ["comparison", "ladder"]

_COLOURS = {
    "holds": PALETTE[2],
    "no power": PALETTE[1],
    "FAILS": PALETTE[3],
}


def comparison(frame: pd.DataFrame, *, save: str | Path | None = None) -> Figure:
    """Bounds with Monte Carlo errors beside their closed forms, and gradient variances.

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
    >>> len(comparison(table.to_frame()).axes)
    2
    """
    rows = frame[frame["value_agreement"] != "unsupported"].iloc[::-1]
    y = np.arange(len(rows))
    names = rows[["formulation", "c", "estimator", "twin"]].astype(str).to_numpy()
    labels = [
        f"{formulation} · {c} · {estimator.removesuffix('_ELBO')}"
        + (" (at z)" if twin == "mean_field_at_z" else "")
        for formulation, c, estimator, twin in names
    ]
    with drawn(save, 7, 0.16 * len(rows) + 1.3) as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        for verdict, colour in _COLOURS.items():
            at = (rows["verdict"] == verdict).to_numpy()
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
                label=f"Pyro estimator, ± 2 s.e. ({verdict})",
            )
            right.barh(y[at], some["gradient_variance"], color=colour, height=0.6)
        left.plot(rows["twin_value"], y, "k|", ms=10, label="closed form, same draws")
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
    """The gaps below log p(x) as stacked bars, one per cell, in order of the total.

    Parameters
    ----------
    frame
        One row per cell, in nats: columns ``gap_posterior``, ``gap_optimal``, ``gap_averaged``,
        ``gap_scale``.
    save
        Write the figure to this ``.pdf``, ``.svg`` or ``.png``.

    Examples
    --------
    >>> names = ["gap_posterior", "gap_optimal", "gap_averaged", "gap_scale"]
    >>> figure = ladder(pd.DataFrame([[1.0, 0.3, 0.1, 0.2], [0.5, 0.1, 0.0, 0.1]], columns=names))
    >>> len(figure.axes[0].patches)  # a bar per cell and gap
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
