"""What batch_key removes of a batch, and what of the types remains, beside Harmony and PeakVI.

The leukemia's cells have two patients and two populations; simulated batches shift every peak, the
depth and the composition. Removal: how often a linear classifier tells the batch from the latent
space (five-fold cross-validation; chance is the share of the largest batch), and iLISI (scib-
metrics; 1 is mixed). Conservation: the adjusted Rand index of the clusters with the type. Needs
harmonypy, scib-metrics and scvi-tools.

    PYRO_SCALE_DATA=... python tests/benchmarks/batch_effects.py
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from peers import TfidfSvd, kmeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import pyro_scale as ps

SIMULATED = {
    "2 types, 2 batches": {"n_cells": 600, "n_clusters": 2, "n_peaks": 8_000, "density": 0.05},
    "5 types, 3 batches": {"n_cells": 1_500, "n_clusters": 5, "n_batches": 3, "n_peaks": 10_000},
    "8 types, 4 strong batches": {
        **{"n_cells": 2_500, "n_clusters": 8, "n_batches": 4, "n_peaks": 8_000},
        **{"batch_sd": 0.8, "fold": 3.0},
    },
    "4 continuous types, 2 strong batches of other composition": {
        **{"n_cells": 1_000, "n_clusters": 4, "n_peaks": 15_000, "batch_sd": 1.0},
        **{"concentration": 1.5, "continuous_sd": 0.5},
    },
}


def simulated(name: str, seed: int):
    """Cells with types and batches."""
    options = {"n_batches": 2, "concentration": 3.0, "seed": seed} | SIMULATED[name]
    adata = ps.simulate(**options)
    adata.obs["type"] = adata.obs["cell_type"]
    return ps.pp.filter_peaks(adata, min_cells=0.01)


def leukemia():
    """Leukemia stem cells and blasts of two patients."""
    from quality import read

    adata = read(Path(os.environ["PYRO_SCALE_DATA"]), "leukemia_aml_su070_su353")
    adata.obs["type"], adata.obs["batch"] = adata.obs["population"], adata.obs["patient"]
    return adata


def ours(batch_key, preset="default"):
    """Latent space and clusters of the mixture."""

    def fit(adata, k, seed):
        model = ps.SCALE(adata, k, batch_key=batch_key, preset=preset, seed=seed)
        model.train(progress_bar=False)
        return model.get_latent_representation(), model.get_cluster_assignments().to_numpy()

    return fit


def harmony(adata, k, seed):
    """Harmony on ten LSI coordinates."""
    import harmonypy

    adata = adata.copy()
    adata.X = (adata.X > 0).astype(float)
    latent = TfidfSvd(adata, k, seed).latent
    corrected = np.asarray(
        harmonypy.run_harmony(latent, adata.obs, "batch", verbose=False, random_state=seed).Z_corr
    )
    corrected = corrected if len(corrected) == len(latent) else corrected.T
    return corrected, kmeans(corrected, k, seed)


def peakvi(adata, k, seed):
    """PeakVI with the batch as its covariate."""
    import scvi

    scvi.settings.seed = seed
    cells = adata.copy()
    cells.X = (cells.X > 0).astype(np.float32)
    scvi.model.PEAKVI.setup_anndata(cells, batch_key="batch")
    model = scvi.model.PEAKVI(cells, n_latent=10)
    with contextlib.redirect_stdout(io.StringIO()):
        model.train(enable_progress_bar=False, accelerator="cpu")
    latent = model.get_latent_representation()
    return latent, kmeans(latent, k, seed)


METHODS = {
    "no batch_key": ours(None),
    "batch_key": ours("batch"),
    "plain, no batch_key": ours(None, "plain"),
    "plain, batch_key": ours("batch", "plain"),
    "Harmony on LSI, k-means": harmony,
    "PeakVI, k-means": peakvi,
}


def scores(latent, clusters, adata, seed) -> dict[str, float]:
    """Removal and conservation."""
    import scib_metrics

    batch, types = (adata.obs[column].astype(str).to_numpy() for column in ("batch", "type"))
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2_000))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    neighbors = scib_metrics.nearest_neighbors.pynndescent(latent, n_neighbors=90, random_state=0)
    return {
        "chance": pd.Series(batch).value_counts(normalize=True).max(),
        "batch accuracy": cross_val_score(classifier, latent, batch, cv=folds).mean(),
        "iLISI": float(scib_metrics.ilisi_knn(neighbors, batch)),
        "ARI": adjusted_rand_score(types, clusters),
    }


def main() -> None:
    """Run every method on every set."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=range(3))
    parser.add_argument("--output", type=Path, default=Path("batch_effects.csv"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows = []
    for data in ("leukemia", *SIMULATED):
        for seed in options.seeds:
            adata = leukemia() if data == "leukemia" else simulated(data, seed)
            for method in options.methods:
                latent, clusters = METHODS[method](adata, adata.obs["type"].nunique(), seed)
                row = {"data": data, "method": method, "seed": seed}
                rows.append(row | scores(latent, clusters, adata, seed))
                pd.DataFrame(rows).to_csv(options.output, index=False)
    table = pd.DataFrame(rows).groupby(["data", "method"], sort=False).mean()
    print(table.drop(columns="seed").round(3).to_string())


if __name__ == "__main__":
    main()
