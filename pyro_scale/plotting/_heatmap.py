"""Parts of heat maps: the image, group bars with names, colour bars and the legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from numpy.typing import NDArray

from pyro_scale.plotting._anndata import Groups
from pyro_scale.plotting._labels import CHARACTER, entry, marks, spread

__all__ = [
    "Part",
    "bar_marks",
    "bar_names",
    "class_bar",
    "colour_bar",
    "image",
    "legend_right",
    "quiet",
    "tighten",
]

_SIZE = 7.0
_HEADING = Patch(alpha=0)

Part = tuple[str, Groups, Sequence[int], Sequence[str]]
"""Part of a legend: its heading, the groups, the codes of those to list, and each group's mark.

A mark is the text that stands for a group in the figure, its name or a number.
"""


def tighten(figure: Figure) -> None:
    """Reduce the padding between a heat map and its bars."""
    figure.set_layout_engine("constrained", h_pad=0.02, w_pad=0.02, hspace=0, wspace=0)


def image(ax: Axes, values: NDArray[np.floating], low: float, high: float, cmap: str) -> AxesImage:
    """Draw a heat map without ticks, as a bitmap also in vector files."""
    colours = mpl.colormaps[cmap].with_extremes(bad="0.85")
    shown = ax.imshow(
        values, aspect="auto", interpolation="nearest", cmap=colours, vmin=low, vmax=high
    )
    _bare(ax)
    return shown


def _bare(ax: Axes) -> None:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def class_bar(
    ax: Axes,
    colours: Sequence[str],
    codes: NDArray[np.intp],
    *,
    along: Literal["x", "y"] = "x",
    name: str = "",
) -> None:
    """Draw a bar in which each cell has the colour of its group."""
    strip = to_rgba_array(colours)[codes]
    strip = strip[None] if along == "x" else strip[:, None]
    ax.imshow(strip, aspect="auto", interpolation="nearest")
    _bare(ax)
    if name:
        ax.set_yticks([0], [name], fontsize=6)
        ax.tick_params(axis="y", length=0, pad=2, left=False, labelleft=False, labelright=True)


def bar_marks(groups: Groups, codes: NDArray[np.intp], points: float) -> list[str]:
    """Return the names of the groups if all fit along a bar, otherwise numbers.

    ``points`` is the approximate length of the bar in points.
    """
    return marks(groups, points / len(np.unique(codes)) - 3, _SIZE)


def bar_names(
    ax: Axes, names: Sequence[str], codes: NDArray[np.intp], *, along: Literal["x", "y"] = "x"
) -> None:
    """Write each group's name at the middle of its part of the bar, without overlaps.

    The layout of the figure must have been computed before. If there is no room for all names, only
    every second (third, ...) group is named.
    """
    box = ax.get_window_extent()
    points = (box.width if along == "x" else box.height) * 72 / ax.figure.dpi
    starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
    middles = (starts + np.r_[starts[1:], len(codes)] - 1) / 2
    shown = [names[code] for code in codes[starts]]
    widest = CHARACTER * _SIZE * max(map(len, shown))
    flat = along == "y" or (widest + 3) * len(shown) < points
    gap = (widest + 3 if flat and along == "x" else _SIZE + 1.5) * len(codes) / points
    every = max(1, int(np.ceil(gap * len(shown) / (len(codes) + gap))))
    shown = shown[::every]
    places = spread(middles[::every], gap, 0, len(codes) - 1)
    if along == "x":
        ax.set_xticks(places, shown, rotation=0 if flat else 90, fontsize=_SIZE)
        ax.tick_params(axis="x", top=False, bottom=False, labeltop=True, labelbottom=False, pad=1)
    else:
        ax.set_yticks(places, shown, fontsize=_SIZE)
        ax.tick_params(axis="y", length=0, pad=2)


def legend_right(figure: Figure, parts: Sequence[Part]) -> None:
    """Draw one legend on the right of the axes, with a heading for the groups of each bar."""
    handles, names, headings = [], list[str](), []
    for title, groups, present, written in parts:
        headings.append(len(names))
        handles.append(_HEADING)
        names.append(title)
        for code in present:
            handles.append(Patch(color=groups.colours[code], lw=0))
            names.append(entry(groups.names[code], written[code]))
    rows = max(int(figure.get_figheight() * 72 / 11) - 2, 8)
    legend = figure.legend(
        handles,
        names,
        loc="outside right upper",
        ncols=-(-len(names) // rows),
        handlelength=0.9,
        handleheight=0.9,
        handletextpad=0.4,
        columnspacing=0.8,
        labelspacing=0.35,
    )
    for at in headings:
        legend.get_texts()[at].set_fontweight("bold")
    figure.draw_without_rendering()  # runs the layout, so that the sizes of the axes are final


def quiet(bar: Colorbar) -> None:
    """Remove a colour bar's frame, shorten its ticks, and rasterize it to avoid lines in PDFs."""
    bar.ax.spines["outline"].set_visible(False)
    bar.ax.tick_params(length=2)
    if bar.solids is not None:
        bar.solids.set_rasterized(True)


def colour_bar(
    figure: Figure,
    shown: AxesImage,
    ax: Axes,
    label: str,
    extend: Literal["neither", "both", "max"] = "neither",
) -> None:
    """Draw a short horizontal colour bar below the heat map."""
    bar = figure.colorbar(
        shown, ax=ax, location="bottom", shrink=0.5, aspect=25, pad=0.02, extend=extend
    )
    bar.set_label(label)
    quiet(bar)
