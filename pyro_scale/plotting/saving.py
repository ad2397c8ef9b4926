"""Where a figure is drawn, and how it is written: whole, or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_scale.plotting.style import style

__all__ = ["drawn", "on_axes", "root_figure"]

_KINDS = (".pdf", ".svg", ".png")


def _checked(save: str | Path | None) -> Path | None:
    """The path, if a figure can be written there; before the drawing, not after it."""
    if save is None:
        return None
    path = Path(save)
    if path.suffix.lower() not in _KINDS:
        raise ValueError(f"save={str(save)!r}: expected a name that ends in {', '.join(_KINDS)}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist; make it.")
    return path


def _write(figure: Figure, path: Path) -> None:
    """Write beside the path first, then move it there."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".figure-") as temporary:
        new = Path(temporary) / path.name
        # Without a layout engine (the caller's own figure) a legend outside would be cut off.
        box = None if figure.get_layout_engine() else "tight"
        figure.savefig(new, format=path.suffix[1:].lower(), bbox_inches=box)
        os.replace(new, path)


@contextmanager
def drawn(save: str | Path | None, width: float, height: float) -> Iterator[Figure]:
    """A figure of a size in inches, that pyplot does not know, to be drawn in our style.

    Written to ``save`` when the block is done.
    """
    path = _checked(save)
    with style():
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        if path is not None:
            _write(figure, path)


@contextmanager
def on_axes(
    ax: Axes | None, save: str | Path | None, size: tuple[float, float] = (3.5, 2.8)
) -> Iterator[Axes]:
    """The caller's axes, or new ones on a figure of ``size``; ``save`` gets the whole figure."""
    if ax is None:
        with drawn(save, *size) as figure:
            yield figure.subplots()
        return
    if not isinstance(ax, Axes):
        raise TypeError(f"ax is a {type(ax).__name__}; expected matplotlib Axes or None.")
    path = _checked(save)
    with style():
        yield ax
        if path is not None:
            _write(root_figure(ax), path)


def root_figure(ax: Axes) -> Figure:
    """The whole figure that the axes are in."""
    figure = ax.figure
    while not isinstance(figure, Figure):  # a subfigure
        figure = figure.figure
    return figure
