"""Concatenation of the cells of several files, which logs the peaks that they do not share."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata
from anndata import AnnData

from pyro_scale._validation import listed, named_layers
from pyro_scale.data.peak_names import PEAK_STYLES, formatted
from pyro_scale.data.readers.paths import modality_of, stem_and_kind
from pyro_scale.exceptions import DataError

__all__ = ["concatenate", "names_of_files"]

logger = logging.getLogger(__name__)

_ANY_STYLE = "chr:start-end"  # in which names of all notations are compared


def names_of_files(paths: Sequence[Path]) -> list[str]:
    """Return a distinct name for each file.

    These are the files' own names, without extensions, if all differ. Otherwise they are the names
    of the folders at the nearest level at which these all differ, and if there is no such level,
    the files' names with a number.

    Examples
    --------
    >>> names_of_files([Path("a/cells.h5ad"), Path("a/more.csv.gz")])
    ['cells', 'more']
    >>> names_of_files([Path("s1/outs/peaks.h5"), Path("s2/outs/peaks.h5")])
    ['s1', 's2']
    """
    files = [modality_of(path)[0].absolute() for path in paths]
    stems = [_stem(file) for file in files]
    folders = zip(*([parent.name for parent in file.parents] for file in files), strict=False)
    for names in (stems, *map(list, folders)):
        if len(set(names)) == len(names):
            return names
    return [f"{stem}-{number}" for number, stem in enumerate(stems, start=1)]


def _stem(file: Path) -> str:
    return file.name if file.is_dir() and file.suffix != ".zarr" else stem_and_kind(file)[0]


def concatenate(
    parts: Sequence[AnnData], names: Sequence[str], *, join: str, batch_key: str
) -> AnnData:
    """Concatenate the cells of all parts, and write the name of each part to ``obs[batch_key]``.

    Parameters
    ----------
    parts
        AnnData objects of cells x peaks, CSR.
    names
        Names of the parts, all different.
    join
        ``"inner"`` keeps the peaks that all parts have; ``"outer"`` keeps the peaks of any part and
        fills missing ones with zeros.
    batch_key
        Column of ``obs`` to write the names to.

    Raises
    ------
    DataError
        If a part has no ``X`` or has a peak twice, an inner join leaves no peak, or the parts write
        the same peaks in different notations.
    """
    for part, name in zip(parts, names, strict=True):
        if part.X is None:
            raise DataError(f"{name} has no X, only layers; set adata.X and write it again.")
        if not part.var_names.is_unique:
            repeated = part.var_names[part.var_names.duplicated()][0]
            raise DataError(
                f"{name} has peak {repeated!r} more than once, so its peaks cannot be matched "
                "to the others'; call adata.var_names_make_unique() and write it again."
            )
        if batch_key in part.obs:
            logger.warning(
                "obs[%r] of %s is replaced by the file's name; give another batch_key to keep it.",
                batch_key,
                name,
            )
    counted = Counter(cell for part in parts for cell in set(part.obs_names))
    n_clashes = sum(files > 1 for files in counted.values())
    if n_clashes:
        logger.info(
            '%d cell names occur in several files; all cells are renamed to "cell-%s".',
            n_clashes,
            batch_key,
        )
    _check_notations(parts, names, join)
    with warnings.catch_warnings():  # _report_losses says it for all parts of an AnnData
        warnings.filterwarnings("ignore", message="Only some AnnData objects have `.raw`")
        result = anndata.concat(
            dict(zip(names, parts, strict=True)),
            join=join,
            label=batch_key,
            merge="same",
            uns_merge="same",
            index_unique="-" if n_clashes else None,
        )
    if not result.n_vars:
        raise DataError(
            f"the files have no peak in common ({_firsts(parts, names)}); names must be identical "
            'to match. Count all cells over one set of peaks, or give join="outer".'
        )
    for part, name in zip(parts, names, strict=True):
        _report(part.n_vars, result.n_vars, name, join)
        _report_losses(part, result, name)
    if result.var_names.str.isdigit().all():
        logger.warning(
            "the peaks of all files are named by numbers (the first is %r), so they are matched by "
            "their number: make sure that the files have the same peaks in the same order.",
            result.var_names[0],
        )
    return result


def _firsts(parts: Sequence[AnnData], names: Sequence[str]) -> str:
    """Return the first peak of each part, for a message."""
    firsts = [next(iter(part.var_names), None) for part in parts]
    pairs = [f"{peak!r} in {name}" for peak, name in zip(firsts, names, strict=True)]
    return f"the first is {listed(pairs)}"


def _check_notations(parts: Sequence[AnnData], names: Sequence[str], join: str) -> None:
    """Raise an error if a part has no peak in common with the first, except in another notation."""
    first = parts[0].var_names
    for part in parts[1:]:
        if len(first.intersection(part.var_names)):
            continue
        same = [formatted(index, _ANY_STYLE) for index in (first, part.var_names)]
        n_same = len(same[0].intersection(same[1]))
        if n_same:
            raise DataError(
                f"the files write the same peaks in different notations ({_firsts(parts, names)}); "
                f'give peak_style="{_ANY_STYLE}" (--peak-style on the command line), or another of '
                f"{listed(PEAK_STYLES)}, to bring them to one."
            )
        if join == "outer":
            logger.warning(
                "the files have no peak in common (%s): every cell is closed in all peaks of the "
                "other files, and clusters will tell the files apart.",
                _firsts(parts, names),
            )
            return


def _report_losses(part: AnnData, joined: AnnData, name: str) -> None:
    """Log what this part has besides its matrix and the joined cells do not."""
    lost: dict[str, list[Any]] = {
        key: [one for one in getattr(part, key) if one not in getattr(joined, key)]
        for key in ("obs", "var", "obsm", "varm", "obsp", "uns")
    }
    lost["layers"] = [layer for layer in named_layers(part) if layer not in joined.layers]
    lost["raw"] = ["raw"] if part.raw is not None and joined.raw is None else []
    words = [f"{key} ({listed(each)})" for key, each in lost.items() if each]
    if words:
        logger.warning(
            "%s: left out, as not every file has it, its values differ, or it is of one file's "
            "cells alone (obsp): %s.",
            name,
            ", ".join(words),
        )


def _report(n_own: int, n_joined: int, name: str, join: str) -> None:
    differ = abs(n_own - n_joined)
    if not differ:
        return
    if join == "inner":
        logger.warning(
            "%s: %d of %d peaks (%.1f %%) are not in every file and are left out; "
            'join="outer" keeps them.',
            name,
            differ,
            n_own,
            100 * differ / n_own,
        )
    else:
        logger.warning(
            "%s: %d of %d peaks (%.1f %%) are not in this file and are filled with zeros.",
            name,
            differ,
            n_joined,
            100 * differ / n_joined,
        )
