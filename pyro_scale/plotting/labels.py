"""Text that keeps off other text, and numbers where there is no room for names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Text
from numpy.typing import ArrayLike, NDArray

from pyro_scale.plotting.cells import Groups
from pyro_scale.plotting.saving import root_figure
from pyro_scale.plotting.style import MISSING

__all__ = ["CHARACTER", "entry", "marks", "place_labels", "spread"]

CHARACTER = 0.62
"""Mean width of a character, in units of the font size."""

_PAD = 2.5  # points around a label


def marks(groups: Groups, room: float, size: float) -> list[str]:
    """What to write on the plot: the names, or numbers from 1 if the longest exceeds ``room``.

    Both room and font size are in points. Names as short as a number are kept, so that "0" is
    never called 1. Nothing is written for cells without a group, which are grey.
    """
    grey = [shade == MISSING for shade in groups.colours]
    longest = max(len(name) * (not g) for name, g in zip(groups.names, grey, strict=True))
    kept = longest <= 3 or longest * CHARACTER * size <= room
    return ["" if grey[k] else name if kept else str(k + 1) for k, name in enumerate(groups.names)]


def entry(name: str, mark: str) -> str:
    """A name in the legend, after its number if it has one."""
    return name if mark in ("", name) else f"{mark}  {name}"


def place_labels(ax: Axes, texts: Sequence[Text]) -> None:
    """Move labels apart, as little as need be, and into the axes."""
    if not texts:
        return
    figure = root_figure(ax)
    figure.draw_without_rendering()  # lays out, so that sizes in pixels are true
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
        axis = over[hit].argmin(1)  # along the shorter way out
        sign = np.where(apart[hit, axis] < 0, -1.0, 1.0)
        push = np.zeros_like(centre)
        step = 0.5 * sign * over[hit, axis]
        np.add.at(push, (second[hit], axis), step)
        np.add.at(push, (first[hit], axis), -step)
        centre = np.clip(centre + 0.6 * push, low, high)
    for text, place in zip(texts, ax.transData.inverted().transform(centre), strict=True):
        text.set_position(place)


def spread(places: ArrayLike, gap: float, low: float, high: float) -> NDArray[np.float64]:
    """Ascending places moved to be ``gap`` apart within [low, high], if there is room.

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
