"""The number of components that training chooses, beside other criteria, on simulated cells.

Each data set is one of three kinds: separated types, types nested in groups, and types that vary
continuously. It has from 2 to 15 types, 300 to 3,000 cells, 700 to 40,000 peaks, and 1 to 10 % of
cells with ten open peaks. Every criterion but SnapATAC2's reads the same posterior means, those
from which training chooses; modularity, silhouette and prediction strength those of at most 1,000
cells, by which they are scored. Labels are for scoring. Needs scanpy, igraph and snapatac2.

    python tests/benchmarks/choosing_k.py --sets 0 204
    python tests/benchmarks/choosing_k.py --real          # with PYRO_SCALE_DATA
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
from peers import SnapAtac2, leiden
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, silhouette_score
from sklearn.neighbors import kneighbors_graph

import pyro_scale as ps
from pyro_scale.training import start
from pyro_scale.training.clustering import _neighbor_clusters

LARGEST = 20
REAL = {  # labels, in obs
    "forebrain_half": "cell_type",
    "schep_12_lines_600": "cell_type",
    "leukemia_aml_su070_su353": "cell_type",
    "celllines_gm_h1": "cell_type",
    "celllines_bj_tf1_chr12": "cell_type",
}


def options_of(rng, kind):
    """Numbers of cells, peaks and types, and the other options of one simulation."""
    n_types = int(rng.integers(3 if kind == "nested" else 2, 16))
    n_peaks = int(np.exp(rng.uniform(np.log(700), np.log(40_000))))
    n_cells = max(int(np.exp(rng.uniform(np.log(300), np.log(3_000)))), 40 * n_types)
    options = {
        "density": np.exp(rng.uniform(np.log(0.015), np.log(0.2))),
        "depth_sd": rng.uniform(0.2, 0.8),
        "marker_fraction": rng.uniform(0.2, 0.5),
        "fold": rng.uniform(3.0, 6.0),
        "concentration": float(rng.choice([3, 10, 30])),
        "low_quality_fraction": rng.uniform(0.01, 0.1),
    }
    if kind == "nested":
        options["n_groups"] = int(rng.integers(2, max(3, n_types // 2 + 1)))
    if kind == "continuous":
        options["continuous_sd"] = rng.uniform(0.3, 1.0)
    return n_cells, n_peaks, n_types, options


def simulated(number: int):
    """The cells of one set, and its kind.

    Options are drawn anew until the markers of two types tell a cell of mean depth apart by 15
    nats, so that there are types to be found, and until it has at most 3,000 open peaks.
    """
    rng = np.random.default_rng([20, number])
    kind = ("separated", "nested", "continuous")[number % 3]
    while True:
        n_cells, n_peaks, n_types, options = options_of(rng, kind)
        n_markers = options["marker_fraction"] * n_peaks / n_types / (1 + (kind == "nested"))
        fold = options["fold"]
        nats = n_markers * options["density"] * (fold - 1) * np.log(fold)
        if nats >= 15 and options["density"] * n_peaks <= 3_000:
            break
    adata = ps.simulate(n_cells, n_peaks, n_types, seed=number, **options)
    return kind, ps.pp.filter_peaks(adata, min_cells=0.01), adata.obs["cell_type"].to_numpy()


def real(name: str):
    """The cells of a file, as in quality.py."""
    from quality import read

    adata = read(Path(os.environ["PYRO_SCALE_DATA"]), name)
    return "real", adata, adata.obs[REAL[name]].astype(str).to_numpy()


def fitted(adata, k):
    """A trained model, and the means from which K was chosen."""
    seen = []

    def recorded(loc_nd, *arguments, **options):
        seen.append(loc_nd.numpy().astype(float))
        return ps.training.choose_n_components(loc_nd, *arguments, **options)

    with mock.patch.object(start, "choose_n_components", recorded):
        model = ps.SCALE(adata, k, seed=0)
        model.train(progress_bar=False)
    return model, (seen[0] if seen else model.get_latent_representation().astype(float))


def modularity(means):
    """Normalized cuts with the largest modularity, the criterion of an earlier version."""
    graph = kneighbors_graph(means, 15)
    graph = graph.maximum(graph.T)
    degree, best = np.asarray(graph.sum(0)).ravel(), (-1.0, None)
    for k in range(2, min(LARGEST, len(means) // 15) + 1):
        labels = _neighbor_clusters(means, k, 0)
        member = np.equal.outer(labels, np.arange(k)).astype(float)
        within = np.einsum("nk,nk->k", member, graph @ member) / degree.sum()
        score = float((within - (member.T @ degree / degree.sum()) ** 2).sum())
        best = max(best, (score, labels), key=lambda pair: pair[0])
    return best[1]


def silhouette(means):
    """k-means with the largest mean silhouette."""
    found = [
        KMeans(k, n_init=3, random_state=0).fit_predict(means)
        for k in range(2, min(LARGEST, len(means) // 15) + 1)
    ]
    return max(found, key=lambda labels: silhouette_score(means, labels))


def prediction_strength(means):
    """k-means with the largest K of prediction strength 0.8 (Tibshirani and Walther 2005)."""
    half = np.random.default_rng(0).permutation(len(means)) % 2 == 0
    one, other, best = means[half], means[~half], np.zeros(len(means), int)
    for k in range(2, min(LARGEST, len(means) // 30) + 1):
        by_one = KMeans(k, n_init=3, random_state=0).fit(one).predict(other)
        own = KMeans(k, n_init=3, random_state=0).fit_predict(other)
        shares = []
        for cluster in range(k):
            sizes = np.bincount(by_one[own == cluster], minlength=k)
            n = sizes.sum()
            shares.append((sizes * (sizes - 1)).sum() / (n * (n - 1)) if n > 1 else 0.0)
        if min(shares) >= 0.8:
            best = KMeans(k, n_init=3, random_state=0).fit_predict(means)
    return best


def evaluate(name, kind, adata, labels, peers):
    """The number and the adjusted Rand index of every criterion, as rows; or of ours alone."""
    n_types = len(set(labels))
    chosen, means = fitted(adata, None)
    known, _ = fitted(adata, n_types)
    some = np.sort(np.random.default_rng(0).permutation(len(means))[:1_000])
    results = {
        "pyro_scale": chosen.get_cluster_assignments().to_numpy(),
        "pyro_scale, true K": known.get_cluster_assignments().to_numpy(),
    }
    if peers:
        results |= {
            "modularity": modularity(means[some]),
            "silhouette": silhouette(means[some]),
            "prediction strength": prediction_strength(means[some]),
            "Leiden": leiden(means, 0),
            "SnapATAC2, Leiden": leiden(SnapAtac2(adata, n_types, 0).latent, 0),
        }
    n_of = {method: len(set(found)) for method, found in results.items()}
    n_of |= {"pyro_scale": chosen.config.n_components, "pyro_scale, true K": n_types}
    return [
        {
            "set": name,
            "kind": kind,
            "cells": adata.n_obs,
            "peaks": adata.n_vars,
            "true": n_types,
            "method": method,
            "k": n_of[method],
            "ari": adjusted_rand_score(
                labels if len(found) == len(labels) else labels[some], found
            ),
        }
        for method, found in results.items()
    ]


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """Error of K and index of the clusters, per kind and over all simulated sets."""
    results = results.assign(
        error=(results["k"] - results["true"]).abs(),
        within_one=(results["k"] - results["true"]).abs() <= 1,
        too_many=(results["k"] > results["true"] + 1)
        & (results["true"] <= 5)
        & (results["kind"] == "separated"),
    )
    both = [results, results[results["kind"] != "real"].assign(kind="all simulated")]
    table = pd.concat(both).groupby(["kind", "method"])
    return pd.DataFrame(
        {
            "sets": table.size(),
            "|K - true|": table["error"].mean(),
            "within one": table["within_one"].mean(),
            "ARI": table["ari"].mean(),
            "few separated, too many": table["too_many"].sum(),
        }
    ).round(3)


def main() -> None:
    """Run the sets that are asked for and not in the file yet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sets", nargs=2, type=int, default=(0, 0), metavar=("FIRST", "END"))
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("choosing_k.csv"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    file = options.output
    results = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["set"])
    names = [*(REAL if options.real else ()), *map(str, range(*options.sets))]
    for name in names:
        if name in set(results["set"].astype(str)):
            continue
        kind, adata, labels = real(name) if name in REAL else simulated(int(name))
        rows = evaluate(name, kind, adata, labels, not options.no_peers)
        results = pd.concat([results, pd.DataFrame(rows)])
        results.to_csv(file, index=False)
    print(summary(results).to_string())


if __name__ == "__main__":
    main()
