"""One style for all figures, applied for the length of a drawing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl
from cycler import cycler

__all__ = ["CATEGORIES", "MISSING", "PALETTE", "colour", "style"]

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
"""Okabe and Ito's colours, which people with colour blindness can tell apart."""

CATEGORIES = (
    *PALETTE[:6],
    "#7F7F7F",
    "#8B4513",
    "#332288",
    "#AAAA00",
    "#882255",
    "#44AA99",
)
"""Twelve colours for categories: six of Okabe and Ito's, and six more."""

MISSING = "#D0D0D0"
"""Cells without a category or value."""


def colour(code: int) -> str:
    """The colour of a category; the twelve repeat, so more categories need labels."""
    return CATEGORIES[code % len(CATEGORIES)]


@contextmanager
def style() -> Iterator[None]:
    """Set matplotlib's parameters inside the block, and give the caller's back.

    Sizes are those of a figure printed at its own width: 3.5 inches for a column, 7 for a page.

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
