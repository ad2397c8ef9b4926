"""Creation of figures outside of pyplot, and their atomic writing to a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_scale._atomic import atomic_write
from pyro_scale._validation import check_path
from pyro_scale.plotting._style import style

__all__ = ["drawn", "on_axes", "root_figure"]

_KINDS = (".pdf", ".svg", ".png")


def _checked(save: str | Path | None) -> Path | None:
    """Check the extension and the folder of ``save`` before drawing starts; return its path."""
    if save is None:
        return None
    path = check_path("save", save)
    if path.suffix.lower() not in _KINDS:
        raise ValueError(f"save={str(save)!r}: expected a name that ends in {', '.join(_KINDS)}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist; make it.")
    return path


def _write(figure: Figure, path: Path) -> None:
    """Write a figure atomically."""
    with atomic_write(path) as new:
        # Without a layout engine (a caller's figure), legends outside of the axes would be cut off.
        box = None if figure.get_layout_engine() else "tight"
        figure.savefig(new, format=path.suffix[1:].lower(), bbox_inches=box)


@contextmanager
def drawn(save: str | Path | None, width: float, height: float) -> Iterator[Figure]:
    """Yield a new figure of the given size in inches, with the package's style.

    The figure is written to ``save`` when the block ends. pyplot does not manage it.
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
    """Yield ``ax``, or the axes of a new figure of ``size`` (in inches) if ``ax`` is None.

    The whole figure is written to ``save`` when the block ends.
    """
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
    """Return the top-level figure that contains the axes."""
    figure = ax.figure
    while not isinstance(figure, Figure):  # a SubFigure
        figure = figure.figure
    return figure
