"""The verbs of SCALE that write a model to disk and read it back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Self

import pandas as pd
from anndata import AnnData

from pyro_scale import checks, inference, saving
from pyro_scale.data import Counts
from pyro_scale.errors import DataError, ModelFileError, NonFiniteError
from pyro_scale.original import read_original
from pyro_scale.peak_results import PeakResults
from pyro_scale.programs import MixtureVAE

__all__ = ["StoredModel"]


class StoredModel(PeakResults):
    """A model that can be saved and read, its own or one of the published SCALE."""

    def _set(self, vae: MixtureVAE, counts: Counts, history: pd.DataFrame) -> None:
        self.vae, self._counts, self.history = vae, counts, history
        self.peak_names = counts.var_names

    def save(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Write weights (safetensors), configuration, peaks and history (JSON) to a folder.

        Raises
        ------
        FileExistsError
            If the folder has something in it and ``overwrite`` is false, or something that is
            not part of a saved model.
        """
        saving.save(
            checks.check_path("directory", directory),
            self.vae,
            self.configuration,
            self.peak_names,
            self.history,
            overwrite=overwrite,
        )

    @classmethod
    def load(cls, directory: str | Path, adata: AnnData) -> Self:
        """Read a model that :meth:`save` wrote, for the cells of ``adata``.

        Raises
        ------
        ModelFileError
            If the folder does not hold a model that this version understands.
        DataError
            If ``adata`` lacks peaks of the model.
        """
        saved = saving.load(checks.check_path("directory", directory))
        model = cls.__new__(cls)
        model.configuration, model.peak_names = saved.configuration, saved.peak_names
        model._set(saved.vae.eval(), model.counts(adata), saved.history)
        return model

    @classmethod
    def from_original(cls, path: str | Path, adata: AnnData, *, layer: str | None = None) -> Self:
        """Read a ``model.pt`` of the published SCALE, for the cells it was trained on or others.

        The latent means are those of SCALE's encoder. The file has no peak names: the peaks of
        ``adata`` are taken to be its peaks, in order. Counts are set to 0/1, as SCALE does.

        Parameters
        ----------
        path
            The file; only tensors are read from it, no code.
        adata, layer
            Cells x peaks, with the peaks that SCALE kept (its ``adata.h5ad``).

        Raises
        ------
        ModelFileError, DataError
            If the file does not hold a SCALE model, or one of another number of peaks.
        """
        configuration, vae = read_original(checks.check_path("path", path))
        model = cls.__new__(cls)
        model.configuration = replace(configuration, layer=layer)
        counts = model._read(adata)
        if counts.n_peaks != vae.n_peaks:
            raise DataError(
                f"{path} was trained on {vae.n_peaks} peaks and the cells have {counts.n_peaks}; "
                "give the adata.h5ad that SCALE wrote beside it, whose peaks are those it kept."
            )
        model._set(vae.eval(), counts, pd.DataFrame())
        try:
            elbo = inference.bound(vae, counts, "collapsed", 1, 256, 0).mean()
        except NonFiniteError as error:
            raise ModelFileError(f"{path}: its training failed: {error}") from error
        model.history = pd.DataFrame(
            {"phase": "SCALE", "kl_weight": 1.0, "elbo_train": float(elbo)},
            index=pd.Index([0], name="epoch"),
        )
        return model
