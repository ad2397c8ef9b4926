"""Clusters, held-out likelihood and imputation of pyro_scale and its peers on labelled cells.

    pip install -e ".[bench]"
    PYRO_SCALE_DATA=... python tests/benchmarks/quality.py --output quality

Every method gets the same cells and peaks, the number of classes, and no label. Results are
appended to ``quality.csv`` as they come; what is there already is not run again. The table is
printed at the end and drawn in ``quality.png``.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import peers
import scipy.sparse as sp
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import average_precision_score

import pyro_scale as ps
from pyro_scale.analysis import cluster_scores
from pyro_scale.data import dense_cells

FILES = ("forebrain_half", "schep_12_lines_600", "leukemia_aml_su070_su353")
HIDDEN_ONES = 0.1


class PyroScale:
    """Ours: any options of SCALE."""

    def __init__(self, adata, k, seed, **options):
        self.model = ps.SCALE(adata, k, seed=seed, **options)
        self.model.train(progress_bar=False)

    def clusters(self, k, seed):
        latent = self.model.get_latent_representation()
        kmeans = KMeans(k, n_init=20, random_state=seed).fit_predict(latent)
        return {"mixture": self.model.get_cluster_assignments().to_numpy(), "k-means": kmeans}

    def held_out(self, adata, n_draws):
        return self.model.get_marginal_ll(adata, n_mc_samples=n_draws).to_numpy()

    def imputed(self, adata):
        vae, cells = self.model.vae, dense_cells(self.model.counts(adata))
        with torch.inference_mode():
            return vae.likelihood.mean(vae.encoder(cells)[0], cells).numpy()


def ours(**options) -> Callable:
    """A method of the benchmark from options of SCALE."""
    return lambda adata, k, seed: PyroScale(adata, k, seed, **options)


METHODS: dict[str, Callable] = {
    "pyro_scale": ours(),
    "pyro_scale mean field": ours(formulation="mean_field"),
    "pyro_scale SCALE's loss": ours(formulation="structured", estimator="TraceEnumMeanField_ELBO"),
    "pyro_scale plain": ours(preset="plain"),
    "TF-IDF + SVD": peers.TfidfSvd,
    "SnapATAC2": peers.SnapAtac2,
    "PeakVI": peers.PeakVi,
    "SCALE 1.1.2": peers.OriginalScale,
}


def read(folder: Path, name: str) -> ad.AnnData:
    """Binary cells with at least a tenth of the median depth, peaks open in 1 % of them."""
    adata = ad.read_h5ad(folder / f"{name}.h5ad")
    x = sp.csr_matrix(adata.X)
    adata.X = sp.csr_matrix((np.ones_like(x.data, dtype=np.float32), x.indices, x.indptr), x.shape)
    depth = adata.X.getnnz(1)
    adata = ps.pp.filter_cells(adata, min_peaks=int(np.ceil(0.1 * np.median(depth))))
    return ps.pp.filter_peaks(adata, min_cells=0.01)


def mask_peaks(adata: ad.AnnData, seed: int) -> tuple[ad.AnnData, np.ndarray]:
    """A copy with a share of the ones set to zero, and the rows and columns of those."""
    x = adata.X.tocoo()
    hidden = np.random.default_rng(seed).random(x.nnz) < HIDDEN_ONES
    seen = sp.csr_matrix((x.data[~hidden], (x.row[~hidden], x.col[~hidden])), x.shape)
    return ad.AnnData(seen, adata.obs, adata.var), np.stack([x.row[hidden], x.col[hidden]])


def evaluate(name: str, adata: ad.AnnData, labels, k: int, seed: int, likelihood: bool) -> list:
    """One fit on all cells for the clusters; if asked, one more each for the other two scores."""
    start = time.perf_counter()
    fitted = METHODS[name](adata, k, seed)
    seconds = time.perf_counter() - start
    rows = []
    for clustering, codes in fitted.clusters(k, seed).items():
        scores = cluster_scores(labels, codes)
        rows.append({"method": f"{name}, {clustering}", **scores, "occupied": len(set(codes))})
    extra = {"seconds": seconds}
    if likelihood and hasattr(fitted, "held_out"):
        test = np.random.default_rng(seed).permutation(adata.n_obs) < adata.n_obs // 10
        split = METHODS[name](adata[~test].copy(), k, seed)
        extra["held_out"] = float(np.mean(split.held_out(adata[test].copy(), 500)))
    if likelihood and hasattr(fitted, "imputed"):
        seen, (row, column) = mask_peaks(adata, seed)
        scores = METHODS[name](seen, k, seed).imputed(seen)
        zero = seen.X.toarray() == 0
        truth = np.zeros(seen.shape, dtype=bool)
        truth[row, column] = True
        extra["auprc"] = float(average_precision_score(truth[zero], scores[zero]))
    return [row | extra for row in rows]


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over seeds, best ARI first."""
    columns = ["ari", "nmi", "homogeneity", "occupied", "held_out", "auprc", "seconds"]
    columns = [column for column in columns if column in results]
    groups = results.groupby(["data", "method"])
    table = groups[columns].mean()
    table.insert(1, "ari_sd", groups["ari"].std(ddof=0))
    table["seeds"] = groups["seed"].nunique()
    return table.sort_values(["data", "ari"], ascending=[True, False]).round(3)


def draw(results: pd.DataFrame, path: Path) -> None:
    """ARI of every seed, one panel per data set."""
    names = results.groupby("method")["ari"].mean().sort_values().index
    data = results["data"].unique()
    figure, axes = plt.subplots(
        1, len(data), figsize=(3 + 3 * len(data), 0.28 * len(names) + 1.2), sharey=True
    )
    for axis, one in zip(np.atleast_1d(axes), data, strict=True):
        part = results[results["data"] == one]
        at = pd.Series(range(len(names)), names)[part["method"]].to_numpy()
        mine = part["method"].str.startswith("pyro_scale").to_numpy()
        axis.scatter(part["ari"], at, s=14, c=np.where(mine, "#0072B2", "#999999"))
        axis.set(title=one, xlabel="ARI", xlim=(-0.05, 1.05), yticks=range(len(names)))
        axis.set_yticklabels(names)
        axis.grid(axis="y", lw=0.4)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", nargs="+", default=FILES, help="names of .h5ad files")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=range(5))
    parser.add_argument("--likelihood-seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--label", default="cell_type", help="column of obs, for scoring only")
    parser.add_argument("--output", type=Path, default=Path("quality"))
    options = parser.parse_args()
    if "PYRO_SCALE_DATA" not in os.environ:
        parser.error("set PYRO_SCALE_DATA to the folder with the .h5ad files.")
    warnings.filterwarnings("ignore")
    file = options.output.with_suffix(".csv")
    results = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["data", "run", "seed"])
    for data in options.data:
        adata = read(Path(os.environ["PYRO_SCALE_DATA"]), data)
        labels = adata.obs.pop(options.label).astype(str).to_numpy()
        for name in options.methods:
            for seed in options.seeds:
                keys = {"data": data, "run": name, "seed": seed}
                if (results[list(keys)] == pd.Series(keys)).all(axis=1).any():
                    continue
                rows = evaluate(
                    name, adata, labels, len(set(labels)), seed, seed in options.likelihood_seeds
                )
                results = pd.concat([results, pd.DataFrame([keys | row for row in rows])])
                results.to_csv(file, index=False)
    print(summary(results).to_string())
    draw(results, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
