"""Concatenation of the cells of several files, which logs the peaks that they do not share."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import anndata
from anndata import AnnData

from pyro_scale.data.readers.paths import modality_of, stem_and_kind
from pyro_scale.exceptions import DataError

__all__ = ["concatenate", "names_of_files"]

logger = logging.getLogger(__name__)


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
        If a part has no ``X`` or has a peak twice, or an inner join leaves no peak.
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
    result = anndata.concat(
        dict(zip(names, parts, strict=True)),
        join=join,
        label=batch_key,
        merge="same",
        index_unique="-" if n_clashes else None,
    )
    if not result.n_vars:
        firsts = [next(iter(part.var_names), None) for part in parts]
        first = ", ".join(f"{p!r} in {n}" for p, n in zip(firsts, names, strict=True))
        raise DataError(
            f"the files have no peak in common (the first is {first}); names must be identical "
            'to match. Count all cells over one set of peaks, or give join="outer".'
        )
    for part, name in zip(parts, names, strict=True):
        _report(part.n_vars, result.n_vars, name, join)
    return result


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
