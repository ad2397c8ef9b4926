"""Annotation of a copy of the cells' AnnData with the results of a trained model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from pyro_scale._validation import check_bool
from pyro_scale.data.backed import load
from pyro_scale.inference.accessibility import check_size, expected
from pyro_scale.inference.imputation import binary_accessibility
from pyro_scale.inference.posterior import Posterior

__all__ = ["annotate"]


def annotate(
    posterior: Posterior,
    adata: AnnData | None,
    uns: dict[str, Any],
    *,
    imputed: bool,
    binary: bool,
) -> AnnData:
    """Return a copy of ``adata`` with the latent means, responsibilities and clusters of its cells.

    The keys are those of :meth:`pyro_scale.SCALE.to_anndata`; ``uns`` is stored as
    ``uns["scale"]``. If ``adata`` is None, the result has only the names of cells and peaks and, if
    they are in memory, the counts.
    """
    check_bool("imputed", imputed)
    check_bool("binary", binary)
    vae, counts = posterior.vae, posterior.counts
    if imputed:
        check_size(counts.n_cells, counts.n_peaks, "the imputed layer")
    if adata is None:
        obs, var = pd.DataFrame(index=counts.obs_names), pd.DataFrame(index=counts.var_names)
        result = AnnData(None if counts.is_backed else counts.read().copy(), obs=obs, var=var)
    else:
        result = load(adata)
    if (imputed or binary) and not result.var_names.equals(counts.var_names):
        result = result[:, counts.var_names].copy()  # the layers have the model's peaks
    q_c_nk = posterior.responsibilities()
    result.obsm["X_scale"] = posterior.latent()
    result.obsm["scale_responsibilities"] = q_c_nk
    result.obs["scale_cluster"] = posterior.clusters(q_c_nk)
    result.uns["scale"] = uns
    if imputed:
        result.layers["scale_imputed"] = np.concatenate(list(expected(vae, counts, "observed")))
    if binary:
        result.layers["scale_imputed_binary"] = binary_accessibility(vae, counts, "observed")
    return result
