"""The verbs of SCALE that write a model to disk and read it back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Self

import pandas as pd
import torch
from anndata import AnnData

from pyro_scale import checks, inference, saving
from pyro_scale.data import Counts
from pyro_scale.errors import DataError, ModelFileError, NonFiniteError
from pyro_scale.exported_results import ExportedResults
from pyro_scale.one_at_a_time import refuse_while_trained
from pyro_scale.original import read_original
from pyro_scale.programs import MixtureVAE

__all__ = ["StoredModel"]


class StoredModel(ExportedResults):
    """A model that can be saved and read, its own or one of the published SCALE."""

    def _set(self, vae: MixtureVAE, counts: Counts, history: pd.DataFrame) -> None:
        self.vae, self._counts, self.history = vae, counts, history
        self.peak_names = counts.var_names

    def save(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Write weights (safetensors), configuration, peaks and history (JSON) to a folder.

        Parameters
        ----------
        directory
            The folder, made if it is not there.
        overwrite
            Replace the model that is in it.

        Raises
        ------
        FileExistsError
            If the folder has something in it and ``overwrite`` is false, or something that is
            not part of a saved model.
        BusyError
            If another thread is training the model.

        Examples
        --------
        >>> import os, tempfile
        >>> import pyro_scale as ps
        >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
        >>> model = ps.SCALE(adata, n_components=2, n_latent=3, hidden=(8,))
        >>> model.train(max_epochs=2, progress_bar=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(f"{folder}/model")
        ...     sorted(os.listdir(f"{folder}/model"))
        ['history.json', 'model.json', 'peaks.json', 'weights.safetensors']
        """
        refuse_while_trained(self.vae)
        saving.save(
            checks.check_path("directory", directory),
            self.vae,
            self.configuration,
            self.peak_names,
            self.history,
            overwrite=overwrite,
        )

    @classmethod
    def load(
        cls, directory: str | Path, adata: AnnData, *, map_location: str | torch.device = "cpu"
    ) -> Self:
        """Read a model that :meth:`save` wrote, for the cells of ``adata``.

        Parameters
        ----------
        directory
            The folder.
        adata
            Cells x peaks, with at least the model's peaks.
        map_location
            The device that the model is put on and answers from. Files carry no device: a model
            that was trained and saved on a GPU loads anywhere.

        Raises
        ------
        ModelFileError
            If the folder does not hold a model that this version understands.
        DataError
            If ``adata`` lacks peaks of the model.
        ValueError
            If there is no such device here.

        Examples
        --------
        >>> import tempfile
        >>> import pyro_scale as ps
        >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
        >>> model = ps.SCALE(adata, n_components=2, n_latent=3, hidden=(8,))
        >>> model.train(max_epochs=2, progress_bar=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(folder)
        ...     ps.SCALE.load(folder, adata)
        SCALE(40 cells x 60 peaks, K=2, D=3, collapsed by Trace_ELBO, bernoulli, 2 epochs)
        """
        device = checks.check_device("map_location", map_location)
        saved = saving.load(checks.check_path("directory", directory))
        model = cls.__new__(cls)
        model.configuration, model.peak_names = saved.configuration, saved.peak_names
        model._set(saved.vae.to(device).eval(), model.counts(adata), saved.history)
        return model

    @classmethod
    def from_original(
        cls,
        path: str | Path,
        adata: AnnData,
        *,
        layer: str | None = None,
        map_location: str | torch.device = "cpu",
    ) -> Self:
        """Read a ``model.pt`` of the published SCALE, for the cells it was trained on or others.

        The latent means are those of SCALE's encoder. The file has no peak names: the peaks of
        ``adata`` are taken to be its peaks, in order. Counts are set to 0/1, as SCALE does.

        Parameters
        ----------
        path
            The file; only tensors are read from it, no code.
        adata, layer
            Cells x peaks, with the peaks that SCALE kept (its ``adata.h5ad``).
        map_location
            The device that the model is put on, as in :meth:`load`.

        Raises
        ------
        ModelFileError, DataError
            If the file does not hold a SCALE model, or one of another number of peaks.
        ValueError
            If there is no such device here.

        Examples
        --------
        >>> import tempfile, torch
        >>> import pyro_scale as ps
        >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
        >>> shapes = {"pi": (2,), "mu_c": (3, 2), "var_c": (3, 2)}
        >>> layers = {"encoder.hidden.0": (8, 60), "decoder.reconstruction": (60, 3)}
        >>> layers |= {"encoder.sample.mu": (3, 8), "encoder.sample.log_var": (3, 8)}
        >>> for layer, shape in layers.items():
        ...     shapes |= {f"{layer}.weight": shape, f"{layer}.bias": shape[:1]}
        >>> weights = {name: torch.full(shape, 0.5) for name, shape in shapes.items()}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(weights, f"{folder}/model.pt")  # as SCALE writes it
        ...     model = ps.SCALE.from_original(f"{folder}/model.pt", adata)
        >>> model.get_latent_representation().shape
        (40, 3)
        """
        device = checks.check_device("map_location", map_location)
        configuration, vae = read_original(checks.check_path("path", path))
        model = cls.__new__(cls)
        model.configuration = replace(configuration, layer=layer)
        counts = model._read(adata)
        if counts.n_peaks != vae.n_peaks:
            raise DataError(
                f"{path} was trained on {vae.n_peaks} peaks and the cells have {counts.n_peaks}; "
                "give the adata.h5ad that SCALE wrote beside it, whose peaks are those it kept."
            )
        model._set(vae.to(device).eval(), counts, pd.DataFrame())
        try:
            elbo = inference.bound(vae, counts, "collapsed", 1, 256, 0).mean()
        except NonFiniteError as error:
            raise ModelFileError(f"{path}: its training failed: {error}") from error
        model.history = pd.DataFrame(
            {"phase": "SCALE", "kl_weight": 1.0, "elbo_train": float(elbo)},
            index=pd.Index([0], name="epoch"),
        )
        return model
