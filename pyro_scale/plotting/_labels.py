"""Labels that do not overlap, and legends; numbers replace names that do not fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.text import Text
from numpy.typing import ArrayLike, NDArray

from pyro_scale.plotting._anndata import Groups
from pyro_scale.plotting._figure import root_figure
from pyro_scale.plotting._style import MISSING

__all__ = [
    "CHARACTER",
    "MOST_ENTRIES",
    "category_legend",
    "column_width",
    "entry",
    "marks",
    "place_labels",
    "spread",
    "written_on",
]

CHARACTER = 0.62
"""Mean width of a character, in units of the font size."""

_PAD = 2.5  # points around a label


def marks(groups: Groups, room: float, size: float) -> list[str]:
    """Return the text that marks each group: its name, or numbers from 1 if names do not fit.

    ``room`` is the length available for the longest name, and ``size`` the font size, both in
    points. Names of at most three characters are always kept, so that the group named "0" is never
    marked 1. The text is empty for the grey group of cells without a category.
    """
    grey = [shade == MISSING for shade in groups.colours]
    longest = max(len(name) * (not g) for name, g in zip(groups.names, grey, strict=True))
    kept = longest <= 3 or longest * CHARACTER * size <= room
    return ["" if grey[k] else name if kept else str(k + 1) for k, name in enumerate(groups.names)]


def entry(name: str, mark: str) -> str:
    """Return the legend's text for a group: its number, if it is marked by one, and its name."""
    return name if mark in ("", name) else f"{mark}  {name}"


def place_labels(ax: Axes, texts: Sequence[Text]) -> None:
    """Move labels by small steps until they do not overlap, and keep them inside the axes."""
    if not texts:
        return
    figure = root_figure(ax)
    figure.draw_without_rendering()  # runs the layout, so that sizes in pixels are final
    pad = _PAD * figure.dpi / 72
    boxes = [text.get_window_extent() for text in texts]
    centre = np.array([[(b.x0 + b.x1) / 2, (b.y0 + b.y1) / 2] for b in boxes])
    half = np.array([[b.width / 2 + pad, b.height / 2 + pad] for b in boxes])
    inside = ax.get_window_extent()
    low, high = inside.min + half, np.maximum(inside.max - half, inside.min + half)
    first, second = np.triu_indices(len(texts), 1)
    for _ in range(300):
        apart = centre[second] - centre[first]
        over = half[first] + half[second] - np.abs(apart)
        hit = np.flatnonzero((over > 0.01).all(1))
        if not len(hit):
            break
        axis = over[hit].argmin(1)  # along the direction of the smaller overlap
        sign = np.where(apart[hit, axis] < 0, -1.0, 1.0)
        push = np.zeros_like(centre)
        step = 0.5 * sign * over[hit, axis]
        np.add.at(push, (second[hit], axis), step)
        np.add.at(push, (first[hit], axis), -step)
        centre = np.clip(centre + 0.6 * push, low, high)
    for text, place in zip(texts, ax.transData.inverted().transform(centre), strict=True):
        text.set_position(place)


def spread(places: ArrayLike, gap: float, low: float, high: float) -> NDArray[np.float64]:
    """Move ascending positions until they are at least ``gap`` apart within [low, high].

    If there is too little room for that, the positions are spaced evenly.

    Examples
    --------
    >>> spread([0.0, 0.1, 5.0], gap=1.0, low=0.0, high=6.0)
    array([0., 1., 5.])
    """
    moved = np.array(places, dtype=np.float64)
    n = len(moved)
    gap = min(gap, (high - low) / max(n - 1, 1))
    steps = gap * np.arange(n)
    up = np.maximum.accumulate(np.maximum(moved, low) - steps) + steps
    top = high - gap * np.arange(n)[::-1]
    spread_out: NDArray[np.float64] = np.minimum(up, np.minimum.accumulate(top[::-1])[::-1])
    return spread_out


MOST_ENTRIES = 60
"""Maximum number of categories in a legend; a figure with more categories has no legend."""


def written_on(ax: Axes, groups: Groups, present: list[int]) -> list[str]:
    """Return the names of the groups, or numbers if names would cover over a fifth of the axes."""
    box = ax.get_window_extent()
    area = box.width * box.height * (72 / ax.figure.dpi) ** 2
    return marks(groups, 0.2 * area / (len(present) * 12), 6.5)


def category_legend(ax: Axes, groups: Groups, present: list[int], written: Sequence[str]) -> None:
    """Draw a legend right of the axes, with a dot and a name for each category in ``present``.

    ``written`` is the text that marks each group in the figure, its name or a number.
    """
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
    """Return the width in inches of a figure whose cells are coloured by ``values``.

    It is 3.5, the width of a text column of a journal page, or up to 7 if the legend of the groups
    needs more room.
    """
    if not isinstance(values, Groups):
        return 3.5
    present = values.present()
    longest = max(len(values.names[code]) for code in present) + 3
    columns = -(-len(present) // _legend_rows(2.2)) if len(present) <= MOST_ENTRIES else 0
    return float(np.clip(2.6 + columns * (0.2 + longest * CHARACTER * 7 / 72), 3.5, 7))
