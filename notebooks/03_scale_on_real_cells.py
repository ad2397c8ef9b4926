# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # SCALE on real cells
#
# This notebook goes from an `.h5ad` file to clusters, an embedding, cluster-specific peaks and imputed accessibility. It then takes the
# question of [the first notebook](01_why_gamma.ipynb) to real cells: SCALE uses $\gamma(z) = p(c|z)$ where the derivation has $q(c|x)$,
# and its bound is lower for it. **For which cells is this price high?** The last part asks how far the model can be trusted: calibration,
# posterior predictive checks, the number of components, Pareto k̂.
#
# The cells are from the mouse forebrain (Preissl et al. 2018, doi:10.1038/s41593-018-0079-3, GSE100033), about half of that data set: the
# file `forebrain_half.h5ad` in the folder that the environment variable `PYRO_SCALE_DATA` names. **Without the file the notebook runs on
# simulated cells**, with the same assertions; the next cell prints which data are used. The authors' cell types are never given to the
# model. They are used only to evaluate it.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scipy import stats
from sklearn.neighbors import NearestNeighbors

import pyro_scale as ps

# %matplotlib inline

SHORT = bool(os.environ.get("PYRO_SCALE_SHORT"))  # set by the tests: smaller sizes, same assertions
file = Path(os.environ.get("PYRO_SCALE_DATA", "")) / "forebrain_half.h5ad"
real = file.is_file()
if real:
    adata = ps.read(file)
else:
    adata = ps.simulate(
        1000, 4000, n_clusters=5, density=0.05, depth_sd=0.5, marker_fraction=0.6, fold=2.5, seed=0
    )
if SHORT:
    adata = adata[np.random.default_rng(0).permutation(adata.n_obs)[:500]].copy()
print("REAL CELLS, mouse forebrain" if real else "SIMULATED CELLS")

# %% [markdown]
# Cells without an open peak, and peaks that are open in less than 1 % of the cells, are removed, on a copy.

# %%
adata = ps.pp.filter_peaks(ps.pp.filter_cells(adata, min_peaks=1), min_cells=0.01)
labels = adata.obs["cell_type"].astype(str).to_numpy()
print(f"{100 * (adata.X > 0).mean():.1f} % open; {len(set(labels))} cell types")
adata

# %% [markdown]
# ## Training
#
# Training uses neither labels nor a given number of components: with `n_components=None`, K is the number of clusters in latent space
# with a valley of the density between each two (`model.n_components_table`). Newton's method fits the decoder and each cell's posterior, which initializes the mixture and the encoder; Adam then
# maximizes the bound together with the log prior density of the decoder's weights (the objective).

# %%
model = ps.SCALE(adata, n_components=None)
model.train(progress_bar=False)
print(model)
ps.pl.history(model.history).figure

# %%
k = model.vae.n_components
objective = model.history["objective"]
assert objective.iloc[-1] > objective.iloc[0]
assert 2 <= k <= 20

# %% [markdown]
# ## Clusters
#
# `to_anndata` returns a copy of the AnnData with the model's results for the cells. The clusters are the components of the mixture. The
# t-SNE of z serves only as a plot.

# %%
result = model.to_anndata(adata, imputed=True)
z_nd, q_nk = result.obsm["X_scale"], result.obsm["scale_responsibilities"]
result.obsm["X_tsne"] = ps.analysis.embed(z_nd, method="tsne")

with ps.pl.style():
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.1), layout="constrained")
    ps.pl.embedding(result, "scale_cluster", ax=axes[0])
    ps.pl.embedding(result, "cell_type", ax=axes[1])
plt.show()

# %%
report = ps.analysis.cluster_report(labels, result.obs["scale_cluster"])
pd.Series(report.scores, name="against the labels").to_frame().round(3)

# %%
ps.pl.confusion_matrix(labels, result.obs["scale_cluster"]).figure

# %%
shuffled = np.random.default_rng(0).permutation(labels)
assert report.scores["ari"] > 0.25
assert abs(ps.analysis.cluster_scores(shuffled, result.obs["scale_cluster"])["ari"]) < 0.05

# %% [markdown]
# ## Cluster-specific peaks
#
# SCALE's specificity score, and the 30 most specific peaks of each cluster. Peaks look more specific on the cells that were used to select
# them. They are therefore selected on one half of the cells and shown on the other half. A component that merges related types, such as
# the excitatory neurons of the forebrain, has few peaks of its own.

# %%
half = np.random.default_rng(1).permutation(adata.n_obs) < adata.n_obs // 2
clusters = result.obs["scale_cluster"]
scores = ps.analysis.peak_specificity(adata.X[half], clusters[half], adata.var_names)
top = ps.analysis.specific_peaks(scores, n_top=30)
by_cluster = {name: list(part["peak"]) for name, part in top.groupby("cluster", observed=True)}
ps.pl.peak_heatmap(result[~half], by_cluster)

# %%
x = (adata.X > 0).astype(float)
others = clusters[~half].to_numpy()
rates = {}
for name, peaks in by_cluster.items():
    of_peaks = np.asarray(x[~half][:, adata.var_names.get_indexer(peaks)].mean(1)).ravel()
    rates[name] = {
        "cells": int((others == name).sum()),
        "open in the cluster, %": 100 * of_peaks[others == name].mean(),
        "open in other cells, %": 100 * of_peaks[others != name].mean(),
    }
rates = pd.DataFrame(rates).T
rates["ratio"] = rates["open in the cluster, %"] / rates["open in other cells, %"]
rates.round(2)

# %%
assert (rates["ratio"] > 1).all()
assert rates["ratio"].median() > 2

# %% [markdown]
# ## Imputation
#
# The decoder's probability of every peak in every cell, next to the observed data. The labels serve to evaluate it, because cells of one
# type should be similar. For each cell we compute the correlation over peaks with the mean profile of the other cells of its type, once for
# the observed and once for the imputed accessibility.

# %%
ps.pl.imputation(result)

# %%
imputed = result.layers["scale_imputed"]
observed = x.toarray()
types, type_n = np.unique(labels, return_inverse=True)
total_tp = np.stack([observed[type_n == t].sum(0) for t in range(len(types))])
size_t = np.bincount(type_n)


def correlation(values_np):
    """Correlate each cell with the mean observed profile of the other cells of its type."""
    profile_np = (total_tp[type_n] - observed) / np.maximum(size_t[type_n] - 1, 1)[:, None]
    a = values_np - values_np.mean(1, keepdims=True)
    b = profile_np - profile_np.mean(1, keepdims=True)
    return (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))


before, after = correlation(observed), correlation(imputed)
print(
    "median correlation of a cell with its type: "
    f"observed {np.median(before):.2f}, imputed {np.median(after):.2f}"
)
assert (after > before).mean() > 0.95

# %% [markdown]
# ## The price of the substitution
#
# `get_elbo(bound=...)` evaluates any of the bounds at the trained parameters, with the same draws of z for all of them. The difference
# between the structured bound (`collapsed`) and SCALE's bound is the price (D04.7):

# %%
bounds = pd.DataFrame(
    {name: model.get_elbo(bound=name) for name in ("collapsed", "mean_field", "scale")}
)
bounds.mean().rename("nats per cell").to_frame().round(2)

# %% [markdown]
# This difference is right in expectation but noisy for a single cell, because the two bounds evaluate different terms at the sample. The
# price is also a Jeffreys divergence (D05.6), which needs no likelihood, is never negative, and takes one line of code:
#
# $$L_{\mathrm{str}} - E[L_{\mathrm{scale}}] = E_{q(z|x)}\big[\mathrm{KL}(g^* \| \gamma(z)) + \mathrm{KL}(\gamma(z) \| g^*)\big] .$$

# %%
n_draws = 400
with torch.no_grad():
    cells = ps.data.sparse_cells(model.counts())
    loc_nd, var_nd = model.vae.encoder(cells)
    prior = model.vae.prior
    torch.manual_seed(0)
    z_snd = loc_nd + var_nd.sqrt() * torch.randn(n_draws, *loc_nd.shape)
    log_gamma, log_g_star = prior.log_responsibilities(z_snd), prior.log_optimal_q_c(loc_nd, var_nd)
    gamma, g_star = log_gamma.exp(), log_g_star.exp()
    price_sn = ((gamma - g_star) * (log_gamma - log_g_star)).sum(-1)  # both directions of KL
price_n = price_sn.mean(0).double().numpy()
result.obs["price"] = price_n

noisy_n = (bounds["collapsed"] - bounds["scale"]).to_numpy()
error = (noisy_n - price_n).std() / len(price_n) ** 0.5
print(
    f"mean price: {price_n.mean():.3f} nats from the divergence, "
    f"{noisy_n.mean():.3f} ± {error:.3f} from the bounds"
)
assert (price_n > -1e-6).all()
assert abs(noisy_n.mean() - price_n.mean()) < 4.5 * error

# %% [markdown]
# ## For which cells is the price high?
#
# Four plots of the price:
#
# - on the embedding;
# - against the uncertainty of the cell's component, measured by the entropy of q(c|x);
# - by the fraction of the cell's 15 nearest neighbors in z that are of another type: zero inside a type, about one half at the border of
#   two types;
# - its cumulative distribution over the cells.

# %%
near = NearestNeighbors(n_neighbors=16).fit(z_nd).kneighbors(z_nd)[1][:, 1:]
other_n = (labels[near] != labels[:, None]).mean(1)
entropy_n = stats.entropy(q_nk, axis=1)
fractions = pd.cut(
    other_n, [-0.01, 0.01, 1 / 3, 2 / 3, 1], labels=["0", "to 1/3", "to 2/3", "above"]
)
by_fraction = pd.Series(price_n).groupby(fractions, observed=True).agg(["mean", "sem", "size"])

with ps.pl.style():
    figure, axes = plt.subplots(2, 2, figsize=(7.2, 5.4), layout="constrained")
    (on_embedding, by_entropy, by_border, cumulative) = axes.flat
    order = np.argsort(price_n)
    dots = on_embedding.scatter(
        *result.obsm["X_tsne"][order].T, c=price_n[order], s=7, lw=0, cmap="cividis_r",
        vmax=np.quantile(price_n, 0.98),
    )  # fmt: skip
    figure.colorbar(dots, ax=on_embedding, label="price, nats", extend="max")
    on_embedding.set(title="t-SNE of z", xticks=[], yticks=[])
    by_entropy.scatter(entropy_n, price_n, s=6, lw=0, color=ps.pl.PALETTE[0], alpha=0.5)
    by_entropy.set(title="uncertainty of c", xlabel="entropy of q(c|x), nats", ylabel="price, nats")
    by_border.bar(
        [f"{name}\n({n} cells)" for name, n in by_fraction["size"].items()],
        by_fraction["mean"],
        yerr=2 * by_fraction["sem"],
        color=ps.pl.PALETTE[2],
        width=0.6,
        error_kw={"lw": 0.8},
    )
    by_border.set(
        title="borders between types",
        xlabel="fraction of neighbors of another type",
        ylabel="mean price, nats",
    )
    cumulated = np.cumsum(np.sort(price_n)[::-1]) / price_n.sum()
    cumulative.plot(
        100 * np.arange(1, len(price_n) + 1) / len(price_n), 100 * cumulated, color=ps.pl.PALETTE[3]
    )
    cumulative.set(
        title="cumulative price",
        xlabel="cells, % (highest price first)",
        ylabel="fraction of the total price, %",
        ylim=(0, 102),
    )
plt.show()

# %%
rank_entropy = stats.spearmanr(price_n, entropy_n).statistic
rank_other = stats.spearmanr(price_n, other_n).statistic
inside, border = other_n == 0, (other_n > 1 / 3) & (other_n <= 2 / 3)
test = stats.mannwhitneyu(price_n[border], price_n[inside], alternative="greater")
tenth = cumulated[len(price_n) // 10]
print(
    f"price inside a type {price_n[inside].mean():.4f}, at a border {price_n[border].mean():.3f} "
    f"nats per cell (p = {test.pvalue:.0e});\n"
    f"rank correlation of the price with the entropy {rank_entropy:.2f}, "
    f"with the fraction of other types {rank_other:.2f};\n"
    f"the tenth of the cells with the highest price has {100 * tenth:.0f} % of the total"
)
assert rank_entropy > 0.8
assert rank_other > 0.3
assert test.pvalue < 1e-4
assert price_n[border].mean() > 3 * price_n[inside].mean()
assert tenth > 0.4

# %% [markdown]
# **The price is high at the borders between cell types, and nearly zero inside them.** The entropy of q(c|x) shows this without labels: the
# price of a cell is high when p(c|z) changes over its q(z|x). On average it is small compared with the gap of q(z|x) itself. The ladder
# shows both, for a few cells:

# %%
rungs = ps.ladder(model, n_cells=16 if SHORT else 40, n_samples=300 if SHORT else 1000)
rungs.plot()

# %%
summary = rungs.summary()
summary.round(4)

# %%
below = rungs.to_frame()[["kl_optimal", "kl_averaged", "kl_scale"]].sum(axis=1)
assert (below > 0).all()
assert summary.loc["gap_posterior", "mean"] > below.mean()

# %% [markdown]
# ## Does the model predict the observed data?
#
# Draw z from q(z|x), then x from p(x|z), and compare these predictions with the data: the number of open peaks per cell, and the frequency
# of each peak. The posterior predictive p-value is the fraction of the predictions that lie above the observed value. For a correct model
# these p-values concentrate around one half, more than a uniform distribution does, because the posterior has seen the data. For
# comparison, a model that ignores depth: every cell draws each peak at the overall frequency of that peak.

# %%
tree = model.to_datatree(n_cells=200 if SHORT else 600, n_samples=25 if SHORT else 50, n_peaks=2000)
predicted, observed_data = tree["posterior_predictive"], tree["observed_data"]
pvalues = {
    name: ps.analysis.posterior_predictive_pvalues(
        predicted[name].to_numpy()[0], observed_data[name].to_numpy()
    )
    for name in ("n_open", "accessibility")
}
f_p = np.asarray(x.mean(0)).ravel()
rng = np.random.default_rng(0)
spread = np.sqrt((f_p * (1 - f_p)).sum())
no_depth = rng.normal(f_p.sum(), spread, (200, len(observed_data["n_open"])))
pvalues["without depth"] = ps.analysis.posterior_predictive_pvalues(
    no_depth, observed_data["n_open"].to_numpy()
)
titles = {
    "n_open": "open peaks per cell",
    "accessibility": "peak frequency",
    "without depth": "open peaks, no depth",
}
with ps.pl.style():
    figure, axes = plt.subplots(1, 3, figsize=(7.2, 2.3), layout="constrained")
    for ax, (name, title), color in zip(axes, titles.items(), ps.pl.PALETTE, strict=False):
        ax.hist(pvalues[name], np.linspace(0, 1, 21), color=color)
        ax.set(title=title, xlabel="posterior predictive p", xlim=(0, 1))
    axes[0].set_ylabel("cells (middle: peaks)")
plt.show()

# %%
extreme = {name: float(((p < 0.05) | (p > 0.95)).mean()) for name, p in pvalues.items()}
print({name: round(value, 3) for name, value in extreme.items()})
assert extreme["n_open"] < 0.2  # a tenth, if p were uniform
assert extreme["accessibility"] < 0.1
assert extreme["without depth"] > 0.5  # the check detects a wrong model

# %% [markdown]
# ## Are confident assignments correct?
#
# Clusters are matched one to one to cell types. Of the cells that are assigned with probability 0.9, nine in ten should be of the matched
# type.

# %%
matching = {label: int(c) for c, label in report.matching.items()}
of_n = np.array([matching.get(label, -1) for label in labels])
calibration = ps.analysis.calibration(q_nk, of_n, n_bins=5)
with ps.pl.style():
    figure, ax = plt.subplots(figsize=(3.4, 3), layout="constrained")
    ax.plot([0, 1], [0, 1], color="0.7", lw=0.8)
    ax.errorbar(
        calibration["confidence"],
        calibration["observed"],
        2 * calibration["error"],
        fmt="o-",
        ms=4,
        color=ps.pl.PALETTE[0],
    )
    for row in calibration.itertuples():
        ax.annotate(
            row.n_cells, (row.confidence, row.observed), (6, -9), textcoords="offset points", size=7
        )
    ax.set(
        xlabel="largest responsibility",
        ylabel="fraction of the matched type",
        xlim=(0.2, 1.02),
        ylim=(0, 1.02),
        title="calibration (numbers: cells)",
    )
plt.show()

# %%
confidence = q_nk.max(1)
correct = q_nk.argmax(1) == of_n
confident = confidence > 0.9
print(f"mean confidence {confidence.mean():.2f}, fraction correct {correct.mean():.2f}")
assert correct[confident].mean() > correct[~confident].mean()  # confidence is informative

# %% [markdown]
# On the forebrain, the responsibilities are **overconfident** as probabilities of a *cell type*. They are probabilities of a component of
# the model: if the model splits a type, or merges two types, the assignment may be wrong with full confidence. Confident assignments are
# nevertheless correct more often than the others. (On simulated cells, where the components correspond to types, there is little
# overconfidence.)
#
# ## How many components?
#
# Training chose K by merging clusters until a valley of the density separates each two. Here the model is trained again for each K on nine tenths of the cells,
# and evaluated by the bound of the remaining tenth.

# %%
held_out = np.random.default_rng(2).permutation(adata.n_obs) < adata.n_obs // 10
by_k = {}
for n_components in sorted({1, 2, k, 2 * k}) if SHORT else sorted({1, 2, 4, k, 2 * k}):
    other = ps.SCALE(adata[~held_out], n_components)
    other.train(progress_bar=False)
    bound = other.get_elbo(adata[held_out], bound="collapsed", n_mc_samples=50).to_numpy()
    ari = ps.analysis.cluster_scores(labels, other.get_cluster_assignments(adata))["ari"]
    by_k[n_components] = {"bound": bound, "ARI": ari}
ks = sorted(by_k)
gain = np.array([by_k[n]["bound"] - by_k[1]["bound"] for n in ks])  # paired, cell by cell
mean, error = gain.mean(1), gain.std(1, ddof=1) / gain.shape[1] ** 0.5

with ps.pl.style():
    figure, (left, right_ax) = plt.subplots(1, 2, figsize=(6.6, 2.5), layout="constrained")
    left.errorbar(ks, mean, 2 * error, fmt="o-", ms=4, color=ps.pl.PALETTE[0])
    left.set(ylabel="bound minus that of K = 1, nats", title="held-out cells")
    right_ax.plot(ks, [by_k[n]["ARI"] for n in ks], "o-", ms=4, color=ps.pl.PALETTE[2])
    right_ax.set(ylabel="ARI with the labels", title="all cells", ylim=(0, 1))
    for ax in (left, right_ax):
        ax.axvline(k, color="0.5", ls=":", lw=1)
        ax.set(xlabel="K (dotted: chosen)")
plt.show()

# %%
chosen = ks.index(k)
assert by_k[1]["ARI"] == 0
assert by_k[k]["ARI"] > by_k[2]["ARI"]
assert mean[chosen] > mean.max() - 4 * error.max()  # no other K is clearly better

# %% [markdown]
# ## Can q(z|x) be trusted?
#
# Pareto k̂ measures how heavy the tail of a cell's importance weights p(x,z)/q(z|x) is. Above 0.7, q(z|x) misses part of p(z|x), and
# estimates of log p(x) from these weights (`get_marginal_ll`) are unreliable.

# %%
k_hat = model.get_pareto_k(n_samples=200 if SHORT else 1000).to_numpy()
limit = ps.analysis.diagnostics.K_HAT_LIMIT
result.obs["k_hat"] = k_hat
with ps.pl.style():
    figure, (left, right_ax) = plt.subplots(1, 2, figsize=(7, 2.7), layout="constrained")
    left.hist(k_hat.clip(-0.5, 2), 40, color=ps.pl.PALETTE[0])
    left.axvline(limit, color="black", ls="--", lw=1)
    left.set(
        xlabel="Pareto k̂", ylabel="cells", title=f"{100 * (k_hat > limit).mean():.0f} % above 0.7"
    )
    dots = right_ax.scatter(
        *result.obsm["X_tsne"].T, c=k_hat, s=7, lw=0, vmin=0, vmax=1.4, cmap="coolwarm"
    )
    figure.colorbar(dots, ax=right_ax, label="k̂")
    right_ax.set(title="on the embedding", xticks=[], yticks=[])
plt.show()

# %%
some, bias = adata[:100], model.vae.encoder.raw_var.bias
with torch.no_grad():  # the power of this check: k-hat of a q(z|x) that is too narrow
    kept = bias.clone()
    bias -= 3
    too_narrow = np.median(model.get_pareto_k(some, n_samples=200))
    bias.copy_(kept)
trained = np.median(model.get_pareto_k(some, n_samples=200))
print(f"median k-hat of 100 cells: trained q {trained:.2f}, narrower q {too_narrow:.2f}")
assert too_narrow > trained + 0.2
assert 0 < (k_hat > limit).mean() < 1

# %% [markdown]
# ## What to take home
#
# | question | answer | section |
# |---|---|---|
# | Does the mixture find the types? | Yes, as far as they are separated; the confusion matrix shows which types are merged. | Clusters |
# | What does using γ for q(c\|x) cost? | A small part of the bound on average (D05.6, D05.7). | The price |
# | For which cells is the price high? | Cells between types; the entropy of q(c\|x) finds them without labels (D05.12, D05.13). | The price |
# | Does the model predict the data? | Yes: depth and peak frequencies. | Predictive checks |
# | Are its probabilities those of types? | No, they are overconfident. Use them to rank cells. | Calibration |
# | Is log p(x) known? | Not for cells with k̂ above 0.7: report a bound for those. | Pareto k̂ |
