"""Checks, before a long computation, that what will be written can be written."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anndata
import h5py
from anndata import AnnData
from anndata.io import write_elem

from pyro_scale._validation import named_layers
from pyro_scale.exceptions import DataError

__all__ = ["any_strings", "check_writable"]


@contextmanager
def any_strings() -> Iterator[None]:
    """Let anndata write columns of pandas' nullable strings, which it reads without asking."""
    with anndata.settings.override(allow_write_nullable_strings=True):
        yield


def check_writable(adata: AnnData, folder: Path) -> None:
    """Write all of an AnnData but its matrices to a temporary file in ``folder``.

    What an h5ad file cannot hold is therefore found before a model is trained, and not after.

    Raises
    ------
    DataError
        If something cannot be written; the message names it.
    """
    parts = {key: getattr(adata, key) for key in ("obs", "var", "obsm", "varm", "obsp", "varp")}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".scale-") as scratch, any_strings():
        try:
            AnnData(uns=adata.uns, **parts).write_h5ad(Path(scratch) / "parts.h5ad")
            with h5py.File(Path(scratch) / "layers.h5", "w") as file:
                for name, layer in named_layers(adata).items():
                    write_elem(file, name, layer[:1])
        except Exception as error:
            notes = " ".join(getattr(error, "__notes__", ()))
            raise DataError(
                "the cells cannot be written to an h5ad file, which holds the results "
                f"({' '.join(str(error).split())[:300]} {notes}); convert or delete this first."
            ) from error
