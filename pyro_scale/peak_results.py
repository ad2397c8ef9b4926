"""What a trained model says of peaks: expected and differential accessibility, decoder weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from pyro_scale import accessibility, checks, groups, imputation
from pyro_scale.accessibility import Depth, Mode
from pyro_scale.bound_results import BoundResults
from pyro_scale.errors import DataError

__all__ = ["PeakResults"]


class PeakResults(BoundResults):
    """The verbs of :class:`pyro_scale.SCALE` about peaks, in the order of ``peak_names``."""

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

        Examples
        --------
        >>> import pyro_scale as ps
        >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
        >>> model = ps.SCALE(adata, n_components=2, n_latent=3, hidden=(8,))
        >>> model.train(max_epochs=2, progress_bar=False)
        >>> model.get_normalized_accessibility(peaks=adata.var_names[:5]).shape
        (40, 5)
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
            Number of pairs that are drawn, at most a million.

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

        Examples
        --------
        >>> import pyro_scale as ps
        >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
        >>> model = ps.SCALE(adata, n_components=2, n_latent=3, hidden=(8,))
        >>> model.train(max_epochs=2, progress_bar=False)
        >>> found = model.differential_accessibility(adata, "cell_type", "type_1", n_samples=9)
        >>> found.shape, found["comparison"].iloc[0]
        ((60, 12), 'type_1 vs rest')
        """
        counts = self._trained_counts(adata)
        checks.check_choice("mode", mode, get_args(Mode))
        checks.check_number("delta", delta, least=0)
        checks.check_number("fdr_target", fdr_target, least=0, most=1)
        checks.check_whole("n_samples", n_samples, most=10**6)
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

        Examples
        --------
        >>> import pyro_scale as ps
        >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
        >>> model = ps.SCALE(adata, n_components=2, n_latent=3, hidden=(8,))
        >>> model.get_decoder_weights().shape
        (60, 3)
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
        """Peaks whose decoder weight stands out, for each latent dimension, as in SCALE.

        Parameters
        ----------
        kind
            ``"both"`` sides of the dimension's mean weight, above (``"pos"``) or below (``"neg"``).
        cutoff
            How far, in standard deviations.

        Examples
        --------
        >>> import pyro_scale as ps
        >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
        >>> model = ps.SCALE(adata, n_components=2, n_latent=3, hidden=(8,))
        >>> list(model.get_peaks_by_dimension(cutoff=2.0))
        ['0', '1', '2']
        """
        checks.check_choice("kind", kind, ("both", "pos", "neg"))
        checks.check_number("cutoff", cutoff)
        weights = self.get_decoder_weights()
        scores = (weights - weights.mean()) / weights.std(ddof=0)
        far = scores.abs() if kind == "both" else scores if kind == "pos" else -scores
        return {str(name): self.peak_names[(far[name] > cutoff).to_numpy()] for name in far}
