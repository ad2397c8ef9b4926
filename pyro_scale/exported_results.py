"""What a trained model says, in the forms that other tools read: AnnData, DataTree, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from pyro_scale import accessibility, checks, datatree, imputation, inference, saving
from pyro_scale.accessibility import Depth
from pyro_scale.peak_results import PeakResults

__all__ = ["ExportedResults"]


class ExportedResults(PeakResults):
    """The verbs of :class:`pyro_scale.SCALE` that give results away as a whole."""

    to_datatree = datatree.to_datatree  # its first argument is the model

    def to_anndata(
        self, adata: AnnData | None = None, *, imputed: bool = False, binary: bool = False
    ) -> AnnData:
        """A copy of ``adata`` (None: names and accessibility) with the results, documented keys.

        Where the model's own cells are on disk, None leaves accessibility out.

        ``obsm["X_scale"]`` the latent means, ``obsm["scale_responsibilities"]`` q(c|x),
        ``obs["scale_cluster"]`` its argmax, ``uns["scale"]`` the configuration, versions and seed.

        Parameters
        ----------
        adata
            Other cells; None: the training cells.
        imputed
            Add ``layers["scale_imputed"]``, expected accessibility at the cell's own depth (dense;
            refused above 2 GiB: then :meth:`impute` writes it to a file).
        binary
            Add ``layers["scale_imputed_binary"]`` (:meth:`get_binary_accessibility`), sparse.

        Examples
        --------
        >>> import pyro_scale as ps
        >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
        >>> model = ps.SCALE(adata, n_components=2, n_latent=3, hidden=(8,))
        >>> model.train(max_epochs=2, progress_bar=False)
        >>> result = model.to_anndata(adata)
        >>> result.obsm["X_scale"].shape, result.obs["scale_cluster"].shape
        ((40, 3), (40,))
        """
        checks.check_flag("imputed", imputed)
        checks.check_flag("binary", binary)
        counts = self._trained_counts(adata)
        if adata is None:
            obs, var = pd.DataFrame(index=counts.obs_names), pd.DataFrame(index=counts.var_names)
            result = AnnData(None if counts.on_disk else counts.read().copy(), obs=obs, var=var)
        else:
            result = adata.to_memory() if adata.isbacked else adata.copy()
        if (imputed or binary) and not result.var_names.equals(self.peak_names):
            result = result[:, self.peak_names].copy()  # layers have the model's peaks
        q_c_nk = self._responsibilities(counts)
        result.obsm["X_scale"] = inference.latent(self.vae, counts, True, 512, 0)
        result.obsm["scale_responsibilities"] = q_c_nk
        result.obs["scale_cluster"] = self._clusters(counts, q_c_nk)
        result.uns["scale"] = saving.description(self.configuration)
        if imputed:
            imputation.check_size(counts.n_cells, counts.n_peaks, "the imputed layer")
            parts = accessibility.expected(self.vae, counts, "observed")
            result.layers["scale_imputed"] = np.concatenate(list(parts))
        if binary:
            result.layers["scale_imputed_binary"] = self.get_binary_accessibility(adata)
        return result

    def get_binary_accessibility(
        self, adata: AnnData | None = None, *, depth: Depth = "observed"
    ) -> sparse.csr_matrix:
        """Imputed accessibility as 0/1, CSR of int8, shape ``(n_cells, n_peaks)``.

        One where expected accessibility is above the observed mean of the cell and above the
        observed mean of the peak (SCALE's rule).

        Parameters
        ----------
        adata
            Other cells; None: the training cells.
        depth
            As in :meth:`get_normalized_accessibility`.

        Examples
        --------
        >>> import pyro_scale as ps
        >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
        >>> model = ps.SCALE(adata, n_components=2, n_latent=3, hidden=(8,))
        >>> model.train(max_epochs=2, progress_bar=False)
        >>> model.get_binary_accessibility().shape
        (40, 60)
        """
        counts = self._trained_counts(adata)
        parts = list(imputation.binary_parts(self.vae, counts, depth))
        binary: sparse.csr_matrix = sparse.vstack(parts, format="csr")
        return binary

    def impute(
        self,
        path: str | Path,
        adata: AnnData | None = None,
        *,
        binary: bool = False,
        dtype: imputation.StoredAs = "float16",
        depth: Depth = "observed",
        overwrite: bool = False,
    ) -> None:
        """Write expected accessibility of every cell and peak to a ``.zarr`` or ``.h5ad`` file.

        A few cells at a time, so that memory does not grow with their number. The file is an
        AnnData with the same names, to be read with ``anndata.read_zarr(path)``, or
        ``anndata.read_h5ad(path, backed="r")`` where it is larger than memory. It appears when it
        is whole.

        Parameters
        ----------
        path
            Ends in ``.zarr`` or ``.h5ad``.
        adata
            Other cells; None: the training cells.
        binary
            Write 0/1 (sparse) by the rule of :meth:`get_binary_accessibility`.
        dtype
            ``"float32"``, ``"float16"`` or ``"uint8"``: then X is 255 times the probability,
            rounded, and ``uns["scale_imputed"]["divide_by"]`` is 255.
        depth
            As in :meth:`get_normalized_accessibility`.
        overwrite
            Replace what is there.

        Raises
        ------
        OSError
            If the disk has too little space; nothing is written.
        FileExistsError
            If ``path`` exists and ``overwrite`` is false.

        Examples
        --------
        >>> import tempfile, anndata
        >>> import pyro_scale as ps
        >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
        >>> model = ps.SCALE(adata, n_components=2, n_latent=3, hidden=(8,))
        >>> model.train(max_epochs=2, progress_bar=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.impute(f"{folder}/imputed.h5ad")
        ...     anndata.read_h5ad(f"{folder}/imputed.h5ad").shape
        (40, 60)
        """
        counts = self._trained_counts(adata)
        divide_by = 255 if dtype == "uint8" and not binary else 1
        imputation.imputed_file(
            checks.check_path("path", path),
            self.vae,
            counts,
            pd.DataFrame(index=counts.obs_names) if adata is None else adata.obs.copy(),
            pd.DataFrame(index=self.peak_names),
            {
                "scale": saving.description(self.configuration),
                "scale_imputed": {"binary": binary, "depth": depth, "divide_by": divide_by},
            },
            binary=binary,
            dtype=dtype,
            depth=depth,
            overwrite=overwrite,
        )
