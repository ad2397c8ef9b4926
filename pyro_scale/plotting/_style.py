"""The matplotlib style and colours that all figures share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl
from cycler import cycler

__all__ = ["CATEGORIES", "MISSING", "PALETTE", "colour", "style"]

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
"""The eight colours of Okabe and Ito, which colour-blind readers can tell apart."""

CATEGORIES = (
    *PALETTE[:6],
    "#7F7F7F",
    "#8B4513",
    "#332288",
    "#AAAA00",
    "#882255",
    "#44AA99",
)
"""Twelve colours for categories: six of :data:`PALETTE` and six more."""

MISSING = "#D0D0D0"
"""Grey of cells without a category or value."""


def colour(code: int) -> str:
    """Return the colour of the category with number ``code``; colours repeat after twelve."""
    return CATEGORIES[code % len(CATEGORIES)]


@contextmanager
def style() -> Iterator[None]:
    """Apply the package's matplotlib rcParams inside a ``with`` block and restore them after it.

    Font sizes are chosen for figures that are printed at their own width, 3.5 inches for a text
    column of a journal page and 7 for the whole page.

    Examples
    --------
    >>> with style():
    ...     mpl.rcParams["font.size"]
    8.0
    """
    with mpl.rc_context(
        {
            "font.size": 8,
            "axes.titlesize": 9,
            "axes.titlelocation": "left",
            "axes.labelsize": 8,
            "xtick.labelsize": 7,
            "ytick.labelsize": 7,
            "legend.fontsize": 7,
            "legend.title_fontsize": 8,
            "axes.linewidth": 0.6,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": cycler(color=PALETTE),
            "legend.frameon": False,
            "savefig.dpi": 300,
            "svg.fonttype": "none",
            "pdf.fonttype": 42,
            "ps.fonttype": 42,
        }
    ):
        yield
