"""What speed.py measured, drawn."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

VARIED = ("peaks", "density", "cells", "components")


def draw(table: pd.DataFrame, path: Path) -> None:
    """Cells per second against the number of peaks, a panel per batch size; and against the rest.

    A panel that varies one setting has the most frequent value of every other.
    """
    panels: list[tuple[str, pd.DataFrame, str]] = []
    usual = {name: table[name].mode()[0] for name in (*VARIED, "batch")}
    for name in VARIED:
        same = [table[other] == usual[other] for other in VARIED if other != name]
        part = table[np.logical_and.reduce(same)]
        for batch, of_batch in part.groupby("batch"):
            if len(set(of_batch[name])) > 1 or name == "peaks":
                panels.append((name, of_batch, f"batch {batch}"))
    methods = list(dict.fromkeys(table["method"]))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(1.5 + 3 * len(panels), 3.4), sharey=True, layout="constrained"
    )
    for axis, (name, part, title) in zip(np.atleast_1d(axes), panels, strict=True):
        for method, rows in part.groupby("method", sort=False):
            mine, rows = str(method).startswith("p"), rows.sort_values(name)
            axis.plot(
                rows[name],
                rows["cells_per_second"],
                "o-" if mine else "s--",
                color=f"C{methods.index(method)}",
                label=method,
                lw=2 if mine else 1,
                ms=4,
            )
        axis.set(xscale="log", yscale="log", title=title, xlabel=name)
        measured = sorted(set(part[name]))
        axis.set_xticks(measured, [f"{value:,g}" for value in measured], rotation=30)
        axis.minorticks_off()
        axis.grid(lw=0.3)
    np.atleast_1d(axes)[0].set_ylabel("cells per second")
    figure.legend(
        *np.atleast_1d(axes)[0].get_legend_handles_labels(), loc="outside right upper", fontsize=7
    )
    figure.savefig(path, dpi=150)
