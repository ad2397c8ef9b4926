"""What the commands read: cells, filtered, and labels to score against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from anndata import AnnData

from pyro_scale import pp
from pyro_scale.cli.terminal import console
from pyro_scale.data import read
from pyro_scale.errors import DataError

__all__ = ["add_labels", "filtered", "read_cells"]


def read_cells(
    files: Sequence[str], *, peaks: str | None, batch_key: str | None, join: str = "inner"
) -> AnnData:
    """The cells of the files, as one AnnData."""
    if not files:
        raise ValueError("no file is given; for example: pyro-scale run cells.h5ad -k 8")
    path = files[0] if len(files) == 1 else list(files)
    adata = read(path, peaks=peaks, batch_key=batch_key or "batch", join=join)  # type: ignore[arg-type]  # checked there
    console.print(
        f"read {adata.n_obs} cells x {adata.n_vars} peaks from {', '.join(map(str, files))}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return adata


def filtered(
    adata: AnnData,
    *,
    layer: str | None,
    min_peaks: float,
    max_peaks: float | None,
    min_cells: float,
    max_cells: float | None,
    n_peaks: int | None,
) -> AnnData:
    """Cells, then peaks, then variable peaks, then cells that this has emptied."""
    least = min_peaks if min_peaks > 0 else 1  # an empty cell says nothing
    adata = pp.filter_cells(adata, min_peaks=least, max_peaks=max_peaks, layer=layer)
    adata = pp.filter_peaks(adata, min_cells=min_cells, max_cells=max_cells, layer=layer)
    if n_peaks is not None and n_peaks != -1:
        adata = pp.select_variable_peaks(adata, n_peaks, layer=layer)
    return pp.filter_cells(adata, min_peaks=1, layer=layer)


def add_labels(adata: AnnData, label: str | None) -> str | None:
    """The column of obs that holds known labels: named, or read from a table of cell and label."""
    if label is None or label in adata.obs:
        return label
    path = Path(label)
    if not path.is_file():
        raise DataError(
            f"--label {label!r} is not in obs; it has {', '.join(adata.obs) or 'no columns'}. A "
            "table with a cell's name and its label in every line will do as well, but there is no "
            "such file."
        )
    table = pd.read_csv(path, sep="," if ".csv" in path.suffixes else "\t", header=None, dtype=str)
    if table.shape[1] < 2:
        raise DataError(f"{path} has one column; expected a cell's name and its label.")
    of = table.drop_duplicates(0).set_index(0)[1]
    found = adata.obs_names.isin(of.index)
    if not found.all():
        raise DataError(
            f"{path} has no label for {int((~found).sum())} of {adata.n_obs} cells (the first is "
            f"{adata.obs_names[~found][0]!r}); every cell that the filters keep needs one."
        )
    key = "label" if "label" not in adata.obs else "scale_label"
    adata.obs[key] = pd.Categorical(of[adata.obs_names].to_numpy())
    return key
