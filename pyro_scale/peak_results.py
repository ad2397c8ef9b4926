"""What a trained model says of peaks: imputed and differential accessibility, decoder weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from pyro_scale import accessibility, checks, datatree, groups, imputation, inference, saving
from pyro_scale.accessibility import Depth, Mode
from pyro_scale.errors import DataError
from pyro_scale.results import Results

__all__ = ["PeakResults"]


class PeakResults(Results):
    """The verbs of :class:`pyro_scale.SCALE` about peaks, in the order of ``peak_names``."""

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

    def get_normalized_accessibility(
        self,
        adata: AnnData | None = None,
        *,
        peaks: Sequence[str] | None = None,
        depth: Depth = "typical",
    ) -> pd.DataFrame:
        """Expected accessibility, cells x peaks: probabilities, or Poisson rates.

        At the mean of q(z|x).

        Parameters
        ----------
        adata
            Other cells; None: the training cells.
        peaks
            Names of some peaks; None: all.
        depth
            ``"typical"``: at one depth for all cells (the mean log depth of the training cells;
            with Poisson, the mean depth of these cells). ``"observed"``: at the cell's own. The
            plain model has no depth to set.

        Raises
        ------
        ValueError
            For a name that is not a peak of the model, or if the result would take more than
            2 GiB: then :meth:`impute` writes it to a file.
        """
        counts = self._trained_counts(adata)
        at = slice(None) if peaks is None else self._positions(peaks)
        names = self.peak_names[at]
        imputation.check_size(counts.n_cells, len(names), "the accessibility")
        parts = [part[:, at] for part in accessibility.expected(self.vae, counts, depth)]
        return pd.DataFrame(np.concatenate(parts), index=counts.obs_names, columns=names)

    def _positions(self, peaks: Sequence[str]) -> NDArray[np.intp]:
        names = [peaks] if isinstance(peaks, str) else checks.check_labels("peaks", peaks).tolist()
        at = self.peak_names.get_indexer(pd.Index(names))
        unknown = [name for name, place in zip(names, at, strict=True) if place < 0]
        if unknown or not names:
            raise DataError(
                f"{len(unknown)} of {len(names)} peaks are not the model's"
                + (f" (the first is {unknown[0]!r})" if unknown else "")
                + f"; its peaks are named like {self.peak_names[0]!r} (model.peak_names)."
            )
        return at

    def get_binary_accessibility(
        self, adata: AnnData | None = None, *, depth: Depth = "observed"
    ) -> sparse.csr_matrix:
        """Imputed accessibility as 0/1, CSR of int8, shape ``(n_cells, n_peaks)``.

        One where expected accessibility is above the observed mean of the cell and above the
        observed mean of the peak (SCALE's rule).
        """
        counts = self._trained_counts(adata)
        return sparse.vstack(list(imputation.binary_parts(self.vae, counts, depth)), format="csr")

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

    def differential_accessibility(
        self,
        adata: AnnData | None = None,
        groupby: str | Sequence[object] | None = None,
        group1: str | Sequence[str] | None = None,
        group2: str | None = None,
        *,
        idx1: ArrayLike | None = None,
        idx2: ArrayLike | None = None,
        mode: Mode = "change",
        delta: float = 0.05,
        fdr_target: float = 0.05,
        n_samples: int = 5000,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Peaks whose accessibility differs between two groups of cells, as in PeakVI.

        Accessibility is compared at typical depth, over pairs of cells and draws of z.

        Parameters
        ----------
        adata
            Other cells; None: the training cells.
        groupby
            Column of ``adata.obs``, or one entry per cell (such as
            :meth:`get_cluster_assignments`). None: the mixture's clusters, or ``idx1``, ``idx2``.
        group1, group2
            Groups to compare: ``group1`` one or several (None: each), with ``group2`` (None: all
            other cells).
        idx1, idx2
            Instead of groups: masks or positions of cells; ``idx2=None``: all others.
        mode
            ``"change"``: the probability that accessibility differs by ``delta`` or more;
            ``"vanilla"``: that it is larger in the first group.
        delta
            A difference that matters.
        fdr_target
            Expected share of false discoveries among ``is_da_fdr``.
        n_samples, seed
            Number of pairs that are drawn.

        Returns
        -------
        DataFrame
            A row per peak with ``prob_da``, ``is_da_fdr``, ``bayes_factor``, ``effect_size``
            (``est_prob2 - est_prob1``), ``emp_effect``, ``est_prob1``, ``est_prob2``,
            ``emp_prob1``, ``emp_prob2``; for groups also ``comparison``, ``group1``, ``group2``,
            one comparison below the other.

        References
        ----------
        Ashuach et al. 2022, *PeakVI*, doi:10.1016/j.crmeth.2022.100182; Boyeau et al. 2019,
        doi:10.1101/794289.
        """
        counts = self._trained_counts(adata)
        checks.check_choice("mode", mode, get_args(Mode))
        checks.check_number("delta", delta, least=0)
        checks.check_number("fdr_target", fdr_target, least=0, most=1)
        checks.check_whole("n_samples", n_samples, most=10**7)
        checks.check_seed(seed)
        if idx1 is not None:
            pairs = [groups.by_position(counts, idx1, idx2)]
        else:
            of = list(self.get_cluster_assignments(adata)) if groupby is None else groupby
            pairs = groups.by_name(counts, adata, of, group1, group2)
        tables = []
        for pair in pairs:
            first, second = (counts[np.flatnonzero(part)] for part in (pair.first, pair.second))
            found = accessibility.compare_groups(
                self.vae, first, second, mode=mode, delta=delta, n_samples=n_samples, seed=seed
            )
            table = accessibility.table_of(found, first, second, fdr_target)
            if pair.names is not None:
                one, other = pair.names
                table = table.assign(comparison=f"{one} vs {other}", group1=one, group2=other)
            tables.append(table)
        return pd.concat(tables)

    def get_decoder_weights(self) -> pd.DataFrame:
        """The weight of every latent dimension in a peak's logit, peaks x dimensions.

        Raises
        ------
        ValueError
            If the decoder has hidden layers: then no single weight says it.
        """
        if self.configuration.decoder_hidden:
            raise ValueError(
                f"the decoder has hidden layers {self.configuration.decoder_hidden}: only a linear "
                "decoder (the default) has one weight per peak and dimension."
            )
        weights = self.vae.likelihood.peaks.weight.detach().cpu().numpy()
        names = [str(d) for d in range(self.vae.n_latent)]
        return pd.DataFrame(weights[:, : len(names)], index=self.peak_names, columns=names)

    def get_peaks_by_dimension(
        self, *, kind: Literal["both", "pos", "neg"] = "both", cutoff: float = 2.5
    ) -> dict[str, pd.Index]:
        """Peaks whose decoder weight stands out, for each latent dimension.

        Those more than ``cutoff`` standard deviations from the dimension's mean weight, on both
        sides, above (``"pos"``) or below (``"neg"``), as in SCALE; for any number of dimensions.
        """
        checks.check_choice("kind", kind, ("both", "pos", "neg"))
        checks.check_number("cutoff", cutoff)
        weights = self.get_decoder_weights()
        scores = (weights - weights.mean()) / weights.std(ddof=0)
        far = scores.abs() if kind == "both" else scores if kind == "pos" else -scores
        return {str(name): self.peak_names[(far[name] > cutoff).to_numpy()] for name in far}
