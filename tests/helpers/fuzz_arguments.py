"""Arguments that are fuzzed: every public function with valid ones, of which some are replaced."""

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

import pyro_scale as ps
from helpers import small_scale, train
from helpers.corrupt_files import strange_value
from helpers.file_formats import a_dozen_cells
from pyro_scale import analysis
from pyro_scale.data import CountMatrix

__all__ = ["Arguments", "strange_cells"]

SCALE = {
    "n_components": 2, "n_latent": 2, "formulation": "collapsed", "estimator": None, "c": None,
    "likelihood": "bernoulli", "preset": "default", "hidden": (4,), "decoder_hidden": (),
    "n_lsi": 5, "layer": None, "batch_key": None, "seed": 0,
}  # fmt: skip


def calls(cells, model):
    """Name, function, and arguments that are in order."""
    z = np.arange(36.0).reshape(12, 3) % 7
    q = np.tile([0.25, 0.75], (12, 1))
    labels = ["a", "b", "c"] * 4
    weights = np.random.default_rng(0).normal(size=(30, 4))
    scores = pd.DataFrame({"a": [0.1, 0.2], "b": [0.3, 0.0]}, index=["p", "q"])
    draws = {"adata": None, "batch_size": 4, "seed": 0}
    of = {"layer": None, "inplace": False}
    groups = dict.fromkeys(("groupby", "group1", "group2", "idx1", "idx2"))
    return [
        (ps.SCALE, {"adata": cells, **SCALE}),
        (model.get_latent_representation, {**draws, "give_mean": True}),
        (model.get_responsibilities, {**draws, "kind": "averaged", "n_samples": 3}),
        (model.get_cluster_assignments, {**draws, "kind": "averaged", "n_samples": 3}),
        (model.get_elbo, {**draws, "bound": "collapsed", "n_mc_samples": 3}),
        (model.get_marginal_ll, {**draws, "n_mc_samples": 3}),
        (model.get_pareto_k, {**draws, "n_samples": 25}),
        (model.get_normalized_accessibility, {"adata": None, "peaks": None, "depth": "typical"}),
        (model.get_binary_accessibility, {"adata": None, "depth": "typical"}),
        (model.get_peaks_by_dimension, {"kind": "both", "cutoff": 1.0}),
        (model.to_anndata, {"adata": None, "imputed": False, "binary": False}),
        (
            model.differential_accessibility,
            {"adata": None, **groups, "mode": "change", "delta": 0.1, "fdr_target": 0.1,
             "n_samples": 5, "seed": 0},
        ),
        (ps.SCALE.load, {"directory": "nowhere", "adata": cells}),
        (ps.SCALE.from_original, {"path": "nowhere", "adata": cells, "layer": None}),
        (CountMatrix.from_anndata, {"adata": cells, "layer": None, "binary": True,
                                    "batch_key": None, "batches": None}),
        (ps.pp.filter_cells, {"adata": cells, "min_peaks": 1, "max_peaks": None, **of}),
        (ps.pp.filter_peaks, {"adata": cells, "min_cells": 1, "max_cells": None, **of}),
        (ps.pp.select_variable_peaks, {"adata": cells, "n_peaks": 5, **of}),
        (ps.pp.binarize, {"adata": cells, **of}),
        (ps.pp.log_transform, {"adata": cells, **of}),
        (ps.pp.tf_idf, {"adata": cells, **of}),
        (ps.pp.match_peaks, {"adata": cells, "peak_names": cells.var_names}),
        (ps.read, {"path": "nowhere.h5ad", "peaks": None, "batch_key": "batch", "join": "inner",
                   "backed": False}),
        (analysis.kmeans_clusters, {"latent_nd": z, "n_clusters": 2, "seed": 0}),
        (analysis.leiden_clusters, {"latent_nd": z, "resolution": 1.0, "n_neighbors": 3,
                                    "seed": 0}),
        (analysis.embed, {"latent_nd": z[:4], "method": "tsne", "n_neighbors": 3, "min_dist": 0.1,
                          "seed": 0}),
        (analysis.cluster_scores, {"labels": labels, "clusters": labels}),
        (analysis.match_clusters, {"labels": labels, "clusters": labels}),
        (analysis.cluster_report, {"labels": labels, "clusters": labels}),
        (analysis.latent_specificity, {"latent_nd": z, "clusters": labels}),
        (analysis.peak_specificity, {"x": z, "clusters": labels, "peak_names": None}),
        (analysis.specific_peaks, {"scores": scores, "n_top": 1}),
        (analysis.pareto_k, {"log_weight_sn": weights}),
        (analysis.importance_log_evidence, {"log_weight_sn": weights, "smoothed": True}),
        (analysis.calibration, {"responsibilities_nk": q, "clusters": [0, 1] * 6, "n_bins": 3}),
        (analysis.posterior_predictive_pvalues, {"predicted_s": z, "observed": z[0]}),
    ]  # fmt: skip


def strange_cells(rng):
    """A small AnnData of which something is not as it should be."""
    cells = a_dozen_cells()
    x = cells.X.toarray().astype(float)
    change = int(rng.integers(12))
    if change == 0:
        wrong = [np.nan, np.inf, -np.inf, -1, 0.5, 1e39, 0]
        x[rng.integers(12), rng.integers(30)] = wrong[int(rng.integers(7))]
    elif change == 1:
        x[int(rng.integers(12))] = 0
    elif change == 2:
        types = (bool, np.uint8, np.int64, np.float16, np.float64, complex, "U3", object, "M8[s]")
        x = x.astype(int).astype(types[int(rng.integers(len(types)))])
    elif change == 3:
        x = [sparse.csc_matrix, sparse.csr_array, sparse.csc_array, sparse.csr_matrix][
            int(rng.integers(4))
        ](x)
    elif change == 4:
        x = sparse.csr_matrix(x)
        x.indices[int(rng.integers(x.nnz))] = [-1, 29, 30, 2**30][int(rng.integers(4))]
    elif change == 5:
        x = None
    obs, var = cells.obs.copy(), cells.var.copy()
    adata = AnnData(x, obs=obs, var=var)
    if change == 6:
        adata.obs_names = [["same"] * 12, [str(n) for n in range(12)]][int(rng.integers(2))]
    elif change == 7:
        adata.var_names = [["same"] * 30, [""] * 30, [f"g{n}" for n in range(30)]][
            int(rng.integers(3))
        ]
    elif change == 8:
        column = strange_value(rng)
        adata.obs["batch"] = column if isinstance(column, str) else list("ab" * 6)
        adata.obs.loc[adata.obs_names[:1], "batch"] = [None, "c", "b"][int(rng.integers(3))]
    elif change == 9:
        adata = adata[: int(rng.integers(3)), : int(rng.integers(3))]
    elif change == 10:
        adata = adata[::-1, ::2]
    elif change == 11:
        adata.layers["raw"] = adata.X * -1
    return adata


class Arguments:
    """Each function with one to three arguments replaced, of cells by strange ones too."""

    def __init__(self, folder):
        folder.mkdir(parents=True)
        self.cells = a_dozen_cells()
        self.model = train(small_scale(self.cells, n_components=2), 2)

    def one(self, rng):
        choices = calls(self.cells.copy(), self.model)
        function, arguments = choices[int(rng.integers(len(choices)))]
        for _ in range(int(rng.choice([1, 1, 2, 3]))):
            name = list(arguments)[int(rng.integers(len(arguments)))]
            odd_cells = name == "adata" and rng.random() < 0.8
            arguments[name] = strange_cells(rng) if odd_cells else strange_value(rng)
            if "adata" in arguments and rng.random() < 0.1:
                arguments["layer" if "layer" in arguments else "adata"] = "raw"
        self.tried = function, arguments
        return lambda: function(**arguments), lambda: None
