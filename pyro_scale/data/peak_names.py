"""Peak names, which are regions of a genome, such as ``chr1:100-200``, and their notations."""

from __future__ import annotations

import re
from typing import Literal, get_args

import numpy as np
import pandas as pd

from pyro_scale.exceptions import DataError

__all__ = [
    "NOT_PEAKS",
    "PEAK_STYLES",
    "PeakStyle",
    "formatted",
    "in_style",
    "looks_like_genes",
    "looks_like_peaks",
    "style_advice",
]

PeakStyle = Literal["chr:start-end", "chr-start-end", "chr_start_end", "chr.start.end"]
"""Notation of a peak's name: that of 10x, Signac, BED files read by this package, or R."""
PEAK_STYLES: dict[str, str] = {style: style[3] + style[9] for style in get_args(PeakStyle)}
"""The two separators of each notation."""

NOT_PEAKS = frozenset(
    {
        *("Gene Expression", "Antibody Capture", "CRISPR Guide Capture", "Multiplexing Capture"),
        *("Antigen Capture", "Custom"),
    }
)
"""Types of features, as Cell Ranger names them, that are no peaks."""

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


_GENE = re.compile(r"ENS[A-Z]{0,4}G\d{6,}")


def looks_like_genes(names: pd.Index) -> bool:
    """Return whether more than half of the names are Ensembl ids of genes.

    Examples
    --------
    >>> looks_like_genes(pd.Index(["ENSG00000243485", "ENSMUSG00000051951"]))
    True
    """
    return bool(np.mean([_GENE.match(name) is not None for name in names]) > 0.5)


# A dot separates only after chr, because ids such as AL627309.1 have one.
_PARTS = re.compile(
    r"(.+):(\d+)[\-_](\d+)|(.+)-(\d+)-(\d+)|(.+)_(\d+)_(\d+)|(chr.+)\.(\d+)\.(\d+)", re.IGNORECASE
)


def formatted(names: pd.Index, style: str) -> pd.Index:
    """Return the names in a notation of :data:`PEAK_STYLES`; names of no region are kept.

    Examples
    --------
    >>> names = pd.Index(["chr1:100-200", "chr1-300-400", "chrUn_KI270742v1_5_9", "chrX.1.2", "a"])
    >>> formatted(names, "chr:start-end").tolist()
    ['chr1:100-200', 'chr1:300-400', 'chrUn_KI270742v1:5-9', 'chrX:1-2', 'a']
    >>> formatted(pd.Index(["NC_000001.11", "AL627309.1.5"]), "chr:start-end").tolist()
    ['NC_000001.11', 'AL627309.1.5']
    """
    first, second = tuple(PEAK_STYLES[style])

    def one(name: str) -> str:
        found = _PARTS.fullmatch(name)
        if found is None:
            return name
        chromosome, start, end = (part for part in found.groups() if part is not None)
        return f"{chromosome}{first}{start}{second}{end}"

    return pd.Index([one(str(name)) for name in names], dtype=object)


def in_style(names: pd.Index, style: str) -> pd.Index:
    """Return the names in a notation; raise DataError if two peaks would have the same name.

    Examples
    --------
    >>> in_style(pd.Index(["chr1_1_2", "a"]), "chr:start-end").tolist()
    ['chr1:1-2', 'a']
    """
    new = formatted(names, style)
    if new.nunique() < names.nunique():
        raise DataError(
            f"in the notation {style}, two peaks would be named {new[new.duplicated()][0]!r}; "
            "remove one of them first."
        )
    return new


def style_advice(wanted: pd.Index, found: pd.Index) -> str:
    """Return what to do if ``found`` has names of ``wanted`` in another notation, else nothing.

    Examples
    --------
    >>> style_advice(pd.Index(["chr1:100-200"]), pd.Index(["chr1_100_200", "chr1_5_9"]))
    'The notations differ: pyro_scale.pp.format_peak_names(adata, "chr:start-end") first.'
    >>> style_advice(pd.Index(["chr1:100-200"]), pd.Index(["chr2_100_200"]))
    ''
    """
    for style in PEAK_STYLES:
        if wanted.equals(formatted(wanted, style)):
            if wanted.isin(formatted(found, style)).sum() > wanted.isin(found).sum():
                return (
                    "The notations differ: pyro_scale.pp.format_peak_names(adata, "
                    f'"{style}") first.'
                )
            break
    return ""
