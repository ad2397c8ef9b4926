"""Matching of new cells to the peaks of a model."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from pyro_scale._validation import (
    check_adata,
    check_labels,
    check_matrix,
    named_layers,
    with_scipy_dtype,
)
from pyro_scale.data.backed import is_on_disk, load, view
from pyro_scale.data.peak_names import style_advice
from pyro_scale.exceptions import DataError

__all__ = ["match_peaks"]

logger = logging.getLogger(__name__)


def match_peaks(adata: AnnData, peak_names: pd.Index | list[str]) -> AnnData:
    """Select and order peaks by name as in a model, so that the model can be applied to new cells.

    Peaks of the model that the cells lack are filled with zeros, so that to the model they are
    closed; a warning gives their number. Peaks of the cells that the model lacks are left out, and
    their number is logged.

    Parameters
    ----------
    adata
        New cells x peaks; not modified.
    peak_names
        Names of the model's peaks, ``model.peak_names``.

    Returns
    -------
    AnnData
        New cells x the model's peaks, with CSR ``X`` and layers. If the cells are on disk and no
        peak is missing, a view, which leaves the matrix there.

    Raises
    ------
    DataError
        If names repeat, or the cells and the model share no peak.

    Examples
    --------
    >>> adata = ps.simulate(n_cells=50, n_peaks=200, seed=0)
    >>> match_peaks(adata[:, 50:], adata.var_names).shape
    (50, 200)
    """
    check_adata(adata)
    names = pd.Index(check_labels("peak_names", peak_names))
    for which, index in (("the cells", adata.var_names), ("the model", names)):
        if not index.is_unique:
            repeated = index[index.duplicated()]
            raise DataError(f"{which} have peak {repeated[0]!r} more than once; names must differ.")
    if not len(names) or not adata.n_vars:
        raise DataError(
            f"the model has {len(names)} peaks and the cells {adata.n_vars}; at least one of each "
            "is needed."
        )
    at = adata.var_names.get_indexer(names)
    found = at >= 0
    if not found.any():
        raise DataError(
            f"none of the model's {len(names)} peaks (the first is {names[0]!r}) is among the "
            f"{adata.n_vars} peaks of the cells (the first is {adata.var_names[0]!r}); names must "
            f"be identical to match. {style_advice(names, adata.var_names)}"
        )
    n_missing, n_unknown = int((~found).sum()), adata.n_vars - int(found.sum())
    if n_missing:
        logger.warning(
            "%d of the model's %d peaks (%.1f %%) are missing and filled with zeros.",
            n_missing,
            len(names),
            100 * n_missing / len(names),
        )
    if n_unknown:
        logger.info(
            "%d of %d peaks are not in the model and are left out.", n_unknown, adata.n_vars
        )
    if is_on_disk(adata):
        if not n_missing:
            return view(adata, slice(None), at)
        logger.info("the cells are read into memory, so that the missing peaks can be filled.")
    else:
        for where, x in (
            ("X", adata.X),
            *((f"layers[{k!r}]", x) for k, x in named_layers(adata).items()),
        ):
            check_matrix(x, where)
    part = view(adata, slice(None), at[found])
    part = load(part) if is_on_disk(adata) else part

    def to_model_peaks(x: Any) -> sparse.csr_matrix:
        coo = sparse.coo_matrix(with_scipy_dtype(x))
        column = np.flatnonzero(found)[coo.col]
        return sparse.csr_matrix((coo.data, (coo.row, column)), (adata.n_obs, len(names)))

    var = part.var.reindex(names)
    return AnnData(
        None if part.X is None else to_model_peaks(part.X),
        obs=part.obs.copy(),
        var=var,
        obsm={key: value.copy() for key, value in part.obsm.items()},
        layers={key: to_model_peaks(value) for key, value in named_layers(part).items()},
    )
