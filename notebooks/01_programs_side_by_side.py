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
# # The programs side by side
#
# SCALE's generative model is three lines: a component, a position, the open peaks. What an ELBO of it *computes* depends on
# the guide, q(z,c|x), and on the estimator. Here each choice is a Pyro program, and beside each stands the number that a
# derivation by hand gives. They are not approximately equal: they are equal, or they are equal on average, and we say which.
#
# Runs on simulated cells, in about a minute. With your own `AnnData` in the place of `adata` it runs the same.

# %%
import inspect
import os

import pandas as pd
import torch

import pyro_scale as ps
from pyro_scale.comparison.evaluate import draw
from pyro_scale.objectives import (
    Objective,
    collapsed,
    evaluate,
    mean_field,
    scale,
)
from pyro_scale.programs import Cells, MixtureModel, MixtureVAE, StructuredGuide

SHORT = bool(os.environ.get("PYRO_SCALE_SHORT"))  # the tests shrink the sizes, not the claims
adata = ps.simulate(n_cells=300, n_peaks=400, n_clusters=4, density=0.08, seed=0)
adata

# %% [markdown]
# ## The model and a guide
#
# The model is the generative process, written down. The structured guide draws z from the encoder and then c from its
# exact posterior given z, the responsibilities γ(z) = p(c|z).

# %%
print(inspect.getsource(MixtureModel.forward))
print(inspect.getsource(StructuredGuide.forward))

# %% [markdown]
# ## One z per cell, two estimators
#
# A small set of parameters, in float64, not trained: components overlap, so the choices differ. The same guide under two
# estimators:
#
# - `TraceEnum_ELBO` sums over c exactly. At the z that it drew, its value is the *collapsed* closed form: c summed out.
# - `TraceEnumMeanField_ELBO` also replaces the two log-densities of z by their expectations under q(z|x). On **this** guide,
#   where c depends on z, that is no longer the guide's ELBO. It is SCALE's loss.

# %%
torch.manual_seed(1)
vae = MixtureVAE(adata.n_vars, n_components=4, n_latent=2, hidden=(32,)).double()
cells = Cells.from_counts(torch.from_numpy(adata.X[:8].toarray()).double())

rows = []
for estimator, twin in [("TraceEnum_ELBO", collapsed), ("TraceEnumMeanField_ELBO", scale)]:
    one = draw(vae, Objective(vae, "structured", estimator), cells)
    by_hand = twin(evaluate(vae, cells, one.z_nd)).total().sum().item()
    rows.append((estimator, -one.loss, twin.__name__, by_hand, abs(-one.loss - by_hand)))
same_z = pd.DataFrame(
    rows, columns=["estimator", "by Pyro", "closed form", "by hand", "difference"]
)
same_z

# %%
assert (same_z["difference"] < 1e-9).all()

# %% [markdown]
# ## The five terms
#
# Averaged over many z, in nats per cell. Three columns agree between the readings (one of them, -log q(z|x), up to the noise of the draws); SCALE takes log p(z|c) from the mean-field
# reading and -log q(c|.) from the structured one. (The mean field here is at ḡ, the average of γ(z), so that
# the two readings have the same frequencies of c.)

# %%
with torch.no_grad():
    loc, var = vae.encoder(cells)
    z = loc + var.sqrt() * torch.randn(1000 if SHORT else 4000, *loc.shape, dtype=loc.dtype)
    at = evaluate(vae, cells, z)
    log_gbar = at.log_gamma_nk.exp().mean(0).log()
    readings = {
        "structured": collapsed(at),
        "mean field at ḡ": mean_field(at, log_gbar),
        "SCALE": scale(at),
    }
    names = ["log p(x|z)", "log p(z|c)", "log p(c)", "-log q(z|x)", "-log q(c|.)"]
    terms = pd.DataFrame(
        {name: [term.mean().item() for term in reading] for name, reading in readings.items()},
        index=names,
    ).T
    terms["sum"] = terms.sum(axis=1)
terms.round(3)

# %%
column = terms.loc
assert abs(terms["log p(c)"].max() - terms["log p(c)"].min()) < 1e-9
assert abs(column["SCALE", "log p(z|c)"] - column["mean field at ḡ", "log p(z|c)"]) < 1e-9
assert abs(column["SCALE", "-log q(c|.)"] - column["structured", "-log q(c|.)"]) < 1e-9
assert column["structured", "log p(z|c)"] > column["SCALE", "log p(z|c)"]
assert column["mean field at ḡ", "-log q(c|.)"] > column["SCALE", "-log q(c|.)"]

# %% [markdown]
# ## The whole matrix
#
# Every formulation under every estimator. *Exact* rows agree at each draw, in the value and in the gradient of every
# parameter; the others within Monte Carlo error. The gaps between the formulations stand beside: where they are nil,
# agreement would mean nothing, and a row says "no power".

# %%
model = ps.SCALE(adata, n_components=4, n_latent=3, hidden=(32,), preset="plain")
table = ps.compare(model, n_cells=40, n_samples=60 if SHORT else 150)
frame = table.to_frame()
supported = frame[frame["value_agreement"] != "unsupported"]
pd.Series(table.gaps)

# %%
supported[
    ["formulation", "c", "estimator", "twin", "value", "twin_value", "difference",
     "max_relative_gradient_difference", "max_gradient_z", "gradient_variance", "verdict"]
].round(4)  # fmt: skip

# %%
table.plot()

# %% [markdown]
# What Pyro cannot do, in its own words:

# %%
frame.loc[frame["value_agreement"] == "unsupported", ["formulation", "c", "estimator", "reason"]]

# %%
assert not (supported["holds"] == False).any()  # noqa: E712 (None is neither)
exact = supported[supported["gradient_agreement"] == "exact"]
assert (exact["max_relative_gradient_difference"] <= 1e-9).all()
analytic, sampled = (
    supported.query("formulation == 'mean_field' and c == 'enumerated' and estimator == @name")
    for name in ("TraceEnumMeanField_ELBO", "TraceEnum_ELBO")
)
assert analytic["gradient_variance"].max() < sampled["gradient_variance"].min()

# %% [markdown]
# ## The ladder
#
# From log p(x) down to SCALE's bound there are four steps, and each is a divergence. In two dimensions we integrate
# them: once as differences of bounds, once as divergences, by different rules.

# %%
two = ps.SCALE(adata, n_components=4, n_latent=2, hidden=(32,), seed=0)
two.train(max_epochs=20 if SHORT else 60, batch_size=64, progress_bar=False)
rungs = ps.ladder(two, n_cells=20)
rungs.plot()

# %%
rungs.summary()

# %%
assert rungs.max_discrepancy < 1e-8
assert (rungs.to_frame().filter(like="gap_") > -1e-8).all().all()

# %% [markdown]
# Why this is so is in [`derivations/`](../derivations/README.md); chapter 4 stands alone.
