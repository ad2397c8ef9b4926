"""The figure that the command line's ``run`` writes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from pyro_scale.analysis.embedding import EmbeddingMethod, embed
from pyro_scale.plotting.cells import check_cells, column_groups, obsm_array
from pyro_scale.plotting.responsibilities import occupancy
from pyro_scale.plotting.saving import drawn
from pyro_scale.plotting.scatter import embedding, responsibility_entropy
from pyro_scale.plotting.training import history as draw_history

__all__ = ["run"]

_MOST_CELLS = 5000


def run(
    adata: AnnData,
    *,
    history: pd.DataFrame,
    weights: ArrayLike | None = None,
    cluster: str = "scale_cluster",
    seed: int = 0,
    save: str | Path | None = None,
) -> Figure:
    """Cells by cluster and by certainty, the components' sizes, and the course of training.

    Parameters
    ----------
    adata
        ``model.to_anndata()``; it is not changed. If ``obsm`` has no ``X_umap`` or ``X_tsne``,
        one is computed of ``X_scale``: UMAP, or t-SNE where scanpy is not installed.
    history
        ``model.history``.
    weights
        The mixture's weights, shape ``(k,)``.
    cluster
        Column of ``obs`` that the first panel shows; the sizes are always the mixture's.
    seed
        Of the embedding, and of the choice of 5,000 cells where there are more.
    save
        Write the figure to this ``.pdf``, ``.svg`` or ``.png``.

    Examples
    --------
    >>> import numpy as np
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    >>> model = ps.SCALE(adata, n_components=2, n_latent=2, hidden=(8,))
    >>> model.train(max_epochs=2, progress_bar=False)
    >>> result = model.to_anndata()
    >>> result.obsm["X_umap"] = result.obsm["X_scale"]
    >>> figure = ps.pl.run(result, history=model.history)
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
        method: EmbeddingMethod = "umap" if importlib.util.find_spec("scanpy") else "tsne"
        cells.obsm[f"X_{method}"] = embed(latent_nd, method=method, seed=seed)
    with drawn(save, 7, 5.6) as figure:
        # By rows, so that a wide legend above does not narrow the panel below it.
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
