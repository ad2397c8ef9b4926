"""Recognition of peak names, which are regions of a genome, such as ``chr1:100-200``."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

__all__ = ["looks_like_peaks"]

_REGION = re.compile(
    r"\S+:\d+-\d+"  # any chromosome, in the notation of 10x
    r"|chr[\w.]+?[:_-]\d+[-_]\d+\b"
    # Ensembl chromosomes and scaffolds; three digits, because 1_12_34 may be a well of a plate
    r"|(\d{1,2}[LR]?|[XYMWZ]|MT|[A-Z]{2}_?\d{6,}(\.\d+)?)[:_-]\d{3,}[-_]\d{3,}\b",
    re.IGNORECASE,
)


def looks_like_peaks(names: pd.Index) -> bool:
    """Return whether more than half of the names denote regions of a genome.

    Examples
    --------
    >>> looks_like_peaks(pd.Index(["chr1:100-200", "chrX_5_9", "KI270726.1-1000-1500"]))
    True
    >>> looks_like_peaks(pd.Index(["AAACGAAAGC-1", "plate_1_12", "A1"]))
    False
    """
    return bool(np.mean([_REGION.match(name) is not None for name in names]) > 0.5)
