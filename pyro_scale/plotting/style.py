"""One style for all figures, applied for the length of a drawing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl
from cycler import cycler

__all__ = ["CATEGORIES", "PALETTE", "style"]

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


@contextmanager
def style() -> Iterator[None]:
    """Set matplotlib's parameters inside the block, and give the caller's back."""
    with mpl.rc_context(
        {
            "font.size": 9,
            "axes.titlesize": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": cycler(color=PALETTE),
            "legend.frameon": False,
            "savefig.dpi": 150,
            "svg.fonttype": "none",
            "pdf.fonttype": 42,
        }
    ):
        yield
