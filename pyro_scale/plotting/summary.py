"""Summary figure of a trained model, as written by the command line's ``run``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from pyro_scale.analysis.embedding import default_embedding, embed
from pyro_scale.plotting._anndata import check_cells, column_groups, obsm_array
from pyro_scale.plotting._figure import drawn
from pyro_scale.plotting.clusters import occupancy
from pyro_scale.plotting.embedding import embedding, responsibility_entropy
from pyro_scale.plotting.training import history as draw_history

__all__ = ["summary"]

_MOST_CELLS = 5000


def summary(
    adata: AnnData,
    *,
    history: pd.DataFrame,
    weights: ArrayLike | None = None,
    cluster: str = "scale_cluster",
    seed: int = 0,
    save: str | Path | None = None,
) -> Figure:
    """Plot clusters and assignment entropy of the cells, component sizes and the training history.

    Parameters
    ----------
    adata
        Result of ``model.to_anndata()``; it is not changed. If ``obsm`` has neither ``X_umap`` nor
        ``X_tsne``, an embedding of ``X_scale`` is computed: UMAP, or t-SNE if scanpy is not
        installed.
    history
        ``model.history``, one row per epoch.
    weights
        Mixture weights of the prior, shape ``(k,)``.
    cluster
        Column of ``obs`` that colours the first panel; the panel of component sizes always shows
        the clusters of the mixture.
    seed
        Seed of the random number generators that compute the embedding and choose the 5,000 cells
        it shows if there are more.
    save
        Path of a ``.pdf``, ``.svg`` or ``.png`` file to write the figure to.

    Examples
    --------
    >>> result = model.to_anndata()
    >>> result.obsm["X_umap"] = result.obsm["X_scale"]
    >>> figure = ps.pl.summary(result, history=model.history)
    >>> len(figure.axes)  # four panels and a colour bar
    5
    """
    check_cells(adata)
    column_groups(adata, cluster, "cluster")
    rng = np.random.default_rng(seed)
    shown = np.sort(rng.permutation(adata.n_obs)[:_MOST_CELLS])
    keys = ["scale_responsibilities", *(key for key in ("X_umap", "X_tsne") if key in adata.obsm)]
    cells = AnnData(
        obs=adata.obs[[cluster]].iloc[shown],
        obsm={key: obsm_array(adata, key, "obsm")[shown] for key in keys},
    )
    if len(keys) == 1:
        latent_nd = obsm_array(adata, "X_scale", "obsm")[shown]
        method = default_embedding()
        cells.obsm[f"X_{method}"] = embed(latent_nd, method=method, seed=seed)
    with drawn(save, 7, 5.6) as figure:
        # One subfigure per row, so that a wide legend above does not narrow the panels below.
        apart = {"gridspec_kw": {"wspace": 0.08}}
        above, below = figure.subfigures(2, 1, height_ratios=(3, 2))
        (by_cluster, by_entropy), (sizes, epochs) = (
            above.subplots(1, 2, **apart),
            below.subplots(1, 2),
        )
        embedding(cells, cluster, ax=by_cluster)
        subset = "" if len(shown) == adata.n_obs else f", {len(shown)} shown"
        what = "Mixture clusters" if cluster == "scale_cluster" else cluster
        by_cluster.set_title(f"{what} of {adata.n_obs} cells{subset}")
        responsibility_entropy(cells, ax=by_entropy)
        occupancy(adata, weights=weights, ax=sizes)
        draw_history(history, ax=epochs)
    return figure
