"""The legend of a scatter's categories, beside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from pyro_scale.plotting.cells import Groups
from pyro_scale.plotting.labels import CHARACTER, entry, marks

__all__ = ["MOST_ENTRIES", "category_legend", "column_width", "written_on"]

MOST_ENTRIES = 60
"""More categories have no legend."""


def written_on(ax: Axes, groups: Groups, present: list[int]) -> list[str]:
    """Names, or numbers if the names would cover more than a fifth of the axes."""
    box = ax.get_window_extent()
    area = box.width * box.height * (72 / ax.figure.dpi) ** 2
    return marks(groups, 0.2 * area / (len(present) * 12), 6.5)


def category_legend(ax: Axes, groups: Groups, present: list[int], written: Sequence[str]) -> None:
    """A dot and a name for each category that has cells, in columns outside on the right."""
    handles = [
        Line2D([], [], ls="", marker="o", ms=4.5, mew=0, color=groups.colours[code])
        for code in present
    ]
    rows = _legend_rows(ax.get_window_extent().height / ax.figure.dpi)
    ax.legend(
        handles,
        [entry(groups.names[code], written[code]) for code in present],
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        ncols=-(-len(present) // rows),
        handletextpad=0.1,
        columnspacing=0.8,
        borderpad=0,
    )


def _legend_rows(height: float) -> int:
    return max(int(height * 72 / 11), 4)


def column_width(values: Groups | NDArray[np.float64] | None) -> float:
    """Inches: a column, or more if the legend would leave too little of it."""
    if not isinstance(values, Groups):
        return 3.5
    present = values.present()
    longest = max(len(values.names[code]) for code in present) + 3
    columns = -(-len(present) // _legend_rows(2.2)) if len(present) <= MOST_ENTRIES else 0
    return float(np.clip(2.6 + columns * (0.2 + longest * CHARACTER * 7 / 72), 3.5, 7))
