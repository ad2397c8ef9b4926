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
# # Your own model
#
# The table that [the second notebook](02_estimators_side_by_side.ipynb) shows is open. A **formulation** is a model, a guide, and what you
# believe its objective is, as a closed form. You write the three in one file; `ps.register` puts them in the table, and
# `ps.compare` says whether they agree. Here we change the guide, then the prior, then the likelihood.
#
# Runs on simulated cells; it needs no other data.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import pyro_scale as ps

# %matplotlib inline

SHORT = bool(os.environ.get("PYRO_SCALE_SHORT"))  # the tests shrink the sizes, not the claims
torch.manual_seed(0)
EXACT = 1e-9  # relative: what an identity may be off by, in float64
sizes = {"n_cells": 12, "n_samples": 12} if SHORT else {"n_cells": 40, "n_samples": 60}

adata = ps.simulate(n_cells=300 if SHORT else 1000, n_peaks=400, n_clusters=4, density=0.15, seed=0)
adata

# %% [markdown]
# ## A guide of one's own
#
# Given z, the best q(c|z,x) is $\gamma_c(z) = p(c|z)$ (D03.3). Suppose we did not know that, and tried it softer or harder, at a temperature T,
# as annealed EM does (Ueda and Nakano 1998, doi:10.1016/S0893-6080(97)00133-0):
#
# $$q(z,c|x) = q(z|x)\, q_T(c|z), \qquad q_T(c|z) = \frac{\gamma_c(z)^{1/T}}{\sum_b \gamma_b(z)^{1/T}} .$$
#
# At T = 1 this is the structured guide; towards 0 each z takes one component; towards infinity all are alike.
#
# **What is its bound?** By definition the average over $z \sim q(z|x)$ of
#
# $$\log p(x|z) + \sum_c q_T(c|z)\,\big[\log p(z|c) + \log \pi_c - \log q_T(c|z)\big] - \log q(z|x) .$$
#
# Bayes' rule, $\log p(z|c) + \log \pi_c = \log \gamma_c(z) + \log p(z)$, makes it
#
# $$L_T = L_{\mathrm{str}} - E_{q(z|x)}\, \mathrm{KL}\big(q_T(c|z) \,\|\, \gamma(z)\big) . \tag{1}$$
#
# The price of a temperature is a divergence, and T = 1 is free. So a T that is *learned* should end at 1. That is what we shall see.
#
# ## In one file
#
# The next cell is that file, from its first import to its last line. The guide reads like the factorisation. T is a parameter of its own:
# `build` gives it to the parameters that all programs share (the `vae`), once. The closed form is the definition above, not (1), term by term,
# and uses no Pyro. `Point` has z, the moments of q(z|x), the prior and log p(x|z); also `vae` and `cells`, for whatever else is needed.
# A row says: this estimator, with c treated so, computes this closed form, so closely. The first row is the default of training.

# %%
# tempered.py
import math

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

import pyro_scale as ps
from pyro_scale.objectives import Point, Row, Terms, terms
from pyro_scale.programs import MixtureModel, MixtureVAE
from pyro_scale.programs.formulations import Formulation, Program, Programs


class TemperedGuide(Program):
    """q(z,c|x) = q(z|x) q_T(c|z), q_T proportional to p(c|z)^(1/T)."""

    def __init__(self, vae, enumerate_c):
        super().__init__(vae)
        self.infer_c = {"enumerate": "parallel"} if enumerate_c else {}

    def forward(self, cells, kl_weight=1.0):
        encoder, prior, log_t = self.vae.encoder, self.vae.prior, self.vae.log_temperature
        with pyro.plate("cells", cells.n_cells), poutine.scale(scale=kl_weight):
            z = pyro.sample("z", encoder.q_z(*encoder(cells)))
            q_t = dist.Categorical(logits=prior.log_responsibilities(z) / log_t.exp())
            pyro.sample("c", q_t, infer=self.infer_c)


def build(vae: MixtureVAE, enumerate_c: bool) -> Programs:
    if not hasattr(vae, "log_temperature"):
        log_t = torch.full_like(vae.prior.logits_k[0], math.log(2.0))  # its dtype and device
        vae.log_temperature = torch.nn.Parameter(log_t)
    return Programs(MixtureModel(vae), TemperedGuide(vae, enumerate_c))


def tempered(at: Point) -> Terms:
    """One sample of the bound, by hand."""
    log_q_nk = (at.log_gamma_nk / at.vae.log_temperature.exp()).log_softmax(-1)
    q_nk = log_q_nk.exp()
    return Terms(
        log_lik_n=at.log_lik_n,
        log_p_z_n=(q_nk * at.log_p_z_given_c_nk).sum(-1),
        log_p_c_n=(q_nk * at.log_pi_k).sum(-1),
        minus_log_q_z_n=-terms.log_q_z(at.z_nd, at.loc_nd, at.var_nd),
        minus_log_q_c_n=-(q_nk * log_q_nk).sum(-1),
    )


TEMPERED = Formulation("tempered", "q(z|x) p(c|z)^(1/T) / Z", ("enumerated", "sampled"), build)
ROWS = [
    Row("tempered", "TraceEnum_ELBO", "enumerated", "tempered", "exact", "exact"),
    Row("tempered", "Trace_ELBO", "sampled", "tempered", "in expectation", "in expectation"),
    Row("tempered", "TraceGraph_ELBO", "sampled", "tempered", "in expectation", "in expectation"),
]
ps.register(TEMPERED, ROWS, {"tempered": tempered}, replace=True)

# %% [markdown]
# (`replace=True`, because a cell is run more than once.) That was all. The table has the formulation:

# %%
from pyro_scale.objectives import collapsed, evaluate, find_row, to_markdown

print("\n".join(line for line in to_markdown().splitlines() if "tempered" in line))
assert find_row("tempered").estimator == "TraceEnum_ELBO"

# %% [markdown]
# ## Held against the table
#
# `ps.compare` runs every formulation, yours among the package's, in float64. A sampled c makes Pyro's value differ from the closed form at
# each draw (as it does not at T = 1): hence *in expectation* in the rows.

# %%
model = ps.SCALE(adata, n_components=4, n_latent=3, hidden=(16,), preset="plain")
table = ps.compare(model, **sizes)
frame = table.to_frame()
mine = frame[(frame["formulation"] == "tempered") & (frame["value_agreement"] != "unsupported")]
shown = ["c", "estimator", "value", "twin_value", "difference", "max_relative_gradient_difference",
         "max_gradient_z", "verdict"]  # fmt: skip
mine[shown].round(4)

# %%
table.plot()

# %%
assert mine["verdict"].tolist()[:1] == ["holds"]
assert mine.iloc[0]["max_relative_gradient_difference"] <= EXACT
assert not (frame["verdict"] == "FAILS").any()

# %% [markdown]
# What is not in the rows is refused, with Pyro's reason or ours:

# %%
refused = frame[(frame["formulation"] == "tempered") & (frame["value_agreement"] == "unsupported")]
assert (refused["reason"] != "").all()
refused[["c", "estimator", "reason"]]

# %% [markdown]
# ## A mistake is found
#
# Agreement is worth something only if a wrong formula disagrees. A likely slip: $\log q_T = \log \gamma / T$, the normaliser forgotten. Another:
# T held constant (detached). The value is then right, the gradient is not.


# %%
def without_normaliser(at):
    log_gamma_nk = at.log_gamma_nk
    log_q_nk = log_gamma_nk / at.vae.log_temperature.exp()
    right = tempered(at)
    q_nk = log_q_nk.softmax(-1)
    return right._replace(minus_log_q_c_n=-(q_nk * log_q_nk).sum(-1))


def detached(at):
    t = at.vae.log_temperature.exp().detach()
    log_q_nk = (at.log_gamma_nk / t).log_softmax(-1)
    moved_n = (log_q_nk.exp() * (at.log_p_z_given_c_nk + at.log_pi_k - log_q_nk)).sum(-1)
    return at.log_lik_n + moved_n - terms.log_q_z(at.z_nd, at.loc_nd, at.var_nd)


found = {}
for slip in (without_normaliser, detached):
    ps.register(TEMPERED, ROWS, {"tempered": slip}, replace=True)
    row = ps.compare(model, formulations=["tempered"], **sizes).rows[2]
    found[slip.__name__] = row.verdict, row.reason
ps.register(TEMPERED, ROWS, {"tempered": tempered}, replace=True)
pd.DataFrame(found, index=["verdict", "reason"]).T

# %%
assert found["without_normaliser"] == ("FAILS", "value and gradient differ from the closed form")
assert found["detached"] == ("FAILS", "gradient differ from the closed form")

# %% [markdown]
# ## Trained
#
# The name is now an argument of `ps.SCALE`, and the closed form a bound of `get_elbo`. A Lightning callback keeps T after each epoch; it
# starts at 2 and moves once the mixture is trained (before, the prior is N(0, I), and there is no c).

# %%
import lightning


class KeepTemperature(lightning.Callback):
    def __init__(self):
        self.epochs = []

    def on_train_epoch_end(self, trainer, module):
        self.epochs.append(module.vae.log_temperature.exp().item())


keep = KeepTemperature()
softened = ps.SCALE(adata, n_components=4, n_latent=4, hidden=(16,), formulation="tempered")
softened.train(
    55 if SHORT else 100,
    warmup_epochs=20,
    batch_size=32,
    progress_bar=False,
    trainer_kwargs={"callbacks": [keep]},
)
softened

# %%
# E KL(q_T || gamma), per cell, for any T: formula (1), at the trained parameters
vae = softened.vae.double()
cells = ps.data.dense_cells(softened.counts(), dtype=torch.float64)
temperatures = np.geomspace(0.05, 20, 41)
with torch.no_grad():
    moments = loc_nd, var_nd = vae.encoder(cells)
    z_snd = loc_nd + var_nd.sqrt() * torch.randn(20, *loc_nd.shape, dtype=torch.float64)
    at = evaluate(vae, cells, z_snd, moments=moments)
    structured = collapsed(at).total()
    log_gamma = at.log_gamma_nk
    price, by_definition = [], []
    for t in temperatures:
        log_q = (log_gamma / t).log_softmax(-1)
        price.append((log_q.exp() * (log_q - log_gamma)).sum(-1).mean().item())
        vae.log_temperature.fill_(math.log(t))
        by_definition.append((structured - tempered(at).total()).mean().item())
    vae.log_temperature.fill_(math.log(keep.epochs[-1]))
    hard = -log_gamma.amax(-1).mean().item()  # T -> 0: KL is -log of the largest
    flat = (-log_gamma.mean(-1) - math.log(4)).mean().item()  # T -> infinity

with ps.pl.style():
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.7), layout="constrained")
    left.axhline(1, color="0.6", lw=0.8)
    left.plot(keep.epochs, color=ps.pl.PALETTE[3])
    left.set(title="a learned temperature", xlabel="epoch", ylabel="T", ylim=(0.9, 2.1))
    right.plot(temperatures, by_definition, color=ps.pl.PALETTE[0], label="by definition")
    right.plot(temperatures[::4], price[::4], "o", ms=4, color=ps.pl.PALETTE[1], label="E KL, (1)")
    right.axhline(hard, color="0.4", ls=":", lw=1, label="T → 0")
    right.axhline(flat, color="0.4", ls="--", lw=1, label="T → ∞")
    right.set(title="what a temperature costs", xlabel="T", ylabel="nats per cell", xscale="log")
    right.set_yscale("symlog", linthresh=0.01)
    right.set_ylim(0, 2 * flat)
    right.legend()
plt.show()

# %%
assert abs(keep.epochs[0] - 2) < 1e-6
assert abs(keep.epochs[-1] - 1) < 0.1
assert np.allclose(price, by_definition, atol=1e-9)  # (1)
at_one = len(temperatures) // 2
assert abs(temperatures[at_one] - 1) < 1e-12
assert price[at_one] < 1e-12  # free at T = 1, dearer the further from it
assert (np.diff(price[: at_one + 1]) < 0).all()
assert (np.diff(price[at_one:]) > 0).all()
assert max(price[:at_one]) < hard
assert max(price[at_one:]) < flat

# %% [markdown]
# So the tempered bound finds by itself what D03.3 proves, and at its end is the structured one.
#
# ## A prior of one's own
#
# Components with heavy tails: a multivariate t with ν degrees of freedom, on the mixture's own means $\mu_c$ and scales $\mathrm{var}_c$. A cell that lies far
# out then pulls less on its component (Peel and McLachlan 2000, doi:10.1023/A:1008981510081). c is summed out, so the guide is the package's.
#
# $$\log p(z|c) = \log \frac{\Gamma(\frac{\nu + D}{2})}{\Gamma(\frac{\nu}{2})} - \frac D2 \log \nu\pi - \frac12 \sum_d \log \mathrm{var}_{cd}
# - \frac{\nu + D}{2} \log\Big(1 + \frac1\nu \sum_d \frac{(z_d - \mu_{cd})^2}{\mathrm{var}_{cd}}\Big)$$
#
# A row may name a closed form over several samples, too: `RenyiELBO` gives z a first dimension, for them.

# %%
# heavy_tails.py
from pyro_scale.programs import FORMULATIONS, LatentGuide

NU = 4.0


class HeavyModel(Program):
    """z ~ sum_c pi_c t_nu(mu_c, diag(var_c)), x ~ Likelihood(decoder(z))."""

    def forward(self, cells, kl_weight=1.0):
        prior, likelihood = self.vae.prior, self.vae.likelihood
        root_kdd = torch.diag_embed(prior.var_kd.sqrt())
        df_k = torch.full_like(prior.logits_k, NU)
        components = dist.MultivariateStudentT(df_k, prior.loc_kd, root_kdd)
        with pyro.plate("cells", cells.n_cells):
            with poutine.scale(scale=kl_weight):
                z = pyro.sample("z", dist.MixtureSameFamily(prior.weight(), components))
            pyro.sample("x", likelihood(z, cells), obs=cells.x_np)


def log_t(at):
    """log p(z|c), shape (..., n, k)."""
    d = at.z_nd.shape[-1]
    square_nk = ((at.z_nd.unsqueeze(-2) - at.loc_kd).square() / at.var_kd).sum(-1)
    constant = math.lgamma((NU + d) / 2) - math.lgamma(NU / 2) - d / 2 * math.log(NU * math.pi)
    return constant - at.var_kd.log().sum(-1) / 2 - (NU + d) / 2 * torch.log1p(square_nk / NU)


def heavy(at):
    log_p_z_n = (at.log_pi_k + log_t(at)).logsumexp(-1)
    return at.log_lik_n + log_p_z_n - terms.log_q_z(at.z_nd, at.loc_nd, at.var_nd)


def heavy_iwae(at):
    return heavy(at).logsumexp(0) - math.log(len(at.z_nd))


ps.register(
    Formulation(
        "heavy",
        "q(z|x), a mixture of t as prior",
        ("collapsed",),
        lambda vae, _: Programs(HeavyModel(vae), LatentGuide(vae)),
    ),
    [
        Row("heavy", "Trace_ELBO", "collapsed", "heavy", "exact", "exact"),
        Row("heavy", "RenyiELBO", "collapsed", "heavy_iwae", "exact", "exact"),
    ],
    {"heavy": heavy, "heavy_iwae": heavy_iwae},
    replace=True,
)

# %% [markdown]
# ## A likelihood of one's own
#
# What makes a peak "open" in a cell? At least one fragment. If fragments are Poisson with rate $e^{\eta_{np}}$, where $\eta$ is the decoder's output, then
#
# $$P(x_{np} = 1 | z) = 1 - \exp(-e^{\eta_{np}}), \qquad
# \log p(x|z) = \sum_p x_p \log\big(1 - e^{-\lambda_p}\big) - (1 - x_p)\,\lambda_p, \quad \lambda = e^{\eta} .$$
#
# For rare peaks this is the logistic link, for common ones it is not. The closed form has to replace log p(x|z), so it reads `at.vae` and
# `at.cells`. In training, cells come sparse; `cells.dense()` is the simple way here.


# %%
# thresholded.py
class ThresholdedModel(Program):
    """x = 1 where a Poisson count of rate exp(decoder(z)) is above zero."""

    def forward(self, cells, kl_weight=1.0):
        prior, decoder, cells = self.vae.prior, self.vae.likelihood, cells.dense()
        with pyro.plate("cells", cells.n_cells):
            with poutine.scale(scale=kl_weight):
                z = pyro.sample("z", prior.mixture())
            rate_np = decoder.logits(z, cells).exp()
            logits_np = rate_np + torch.log(-torch.expm1(-rate_np))  # of 1 - exp(-rate)
            pyro.sample("x", dist.Bernoulli(logits=logits_np).to_event(1), obs=cells.x_np)


def thresholded(at):
    cells = at.cells.dense()
    rate_np = at.vae.likelihood.logits(at.z_nd, cells).exp()
    x_np = cells.x_np
    log_lik_n = (x_np * torch.log(-torch.expm1(-rate_np)) - (1 - x_np) * rate_np).sum(-1)
    return collapsed(at)._replace(log_lik_n=log_lik_n)


ps.register(
    Formulation(
        "thresholded",
        "q(z|x), counts above zero",
        ("collapsed",),
        lambda vae, _: Programs(ThresholdedModel(vae), LatentGuide(vae)),
    ),
    [Row("thresholded", "Trace_ELBO", "collapsed", "thresholded", "exact", "exact")],
    {"thresholded": thresholded},
    replace=True,
)

# %% [markdown]
# Both, held against their closed forms; and a slip for each, as before: the power of the test.

# %%
table = ps.compare(model, formulations=["collapsed", "heavy", "thresholded"], **sizes)
frame = table.to_frame()
both = frame[frame["formulation"].isin(["heavy", "thresholded"]) & (frame["twin"] != "")]
both[["formulation", "estimator", "value", "twin_value", "difference", "max_relative_gradient_difference", "verdict"]]  # fmt: skip

# %%
assert (both["verdict"] == "holds").all()
assert (both["max_relative_gradient_difference"] <= EXACT).all()
gaussian = frame.loc[frame["estimator"] == "Trace_ELBO"].set_index("formulation")["value"]
assert abs(gaussian["heavy"] - gaussian["collapsed"]) > 0.01  # another prior, another bound

slips = {
    "heavy": lambda at: heavy(at) + 0.5 * at.var_kd[0].log().sum(),  # a scale forgotten
    "thresholded": collapsed,  # the logistic link
}
for name, slip in slips.items():
    wrong = f"{name}_wrong"
    formulation = FORMULATIONS[name]._replace(name=wrong)
    row = Row(wrong, "Trace_ELBO", "collapsed", wrong, "exact", "exact")
    with ps.register(formulation, [row], {wrong: slip}):
        assert ps.compare(model, formulations=[wrong], **sizes).rows[0].verdict == "FAILS"
    assert wrong not in FORMULATIONS  # the end of `with` took it out again

# %% [markdown]
# ## Which likelihood is right?
#
# The simulator draws Poisson counts and keeps whether they are above zero: the second likelihood is the true one. Where many peaks are open and
# depth varies the links differ most. Half of the cells are not trained on, and tell, by each model's own bound.

# %%
open_cells = ps.simulate(800, 400, n_clusters=4, density=0.4, depth_sd=0.8, seed=0)
held_out = np.random.default_rng(0).permutation(800) < 400
bounds = {}
for name in ("collapsed", "thresholded", "heavy"):
    trained = ps.SCALE(open_cells[~held_out], 4, n_latent=4, hidden=(32,), formulation=name)
    trained.train(50 if SHORT else 100, warmup_epochs=20, batch_size=64, progress_bar=False)
    bounds[name] = trained.get_elbo(open_cells[held_out], n_mc_samples=50)
    print(f"{name:12s} {bounds[name].mean():9.2f} nats per held-out cell")
bounds = pd.DataFrame(bounds)
gain_n = (bounds["thresholded"] - bounds["collapsed"]).sort_values().to_numpy()

with ps.pl.style():
    figure, ax = plt.subplots(figsize=(4.5, 2.4), layout="constrained")
    ax.bar(np.arange(len(gain_n)), gain_n, width=1, color=ps.pl.PALETTE[0])
    ax.axhline(0, color="black", lw=0.6)
    ax.set(
        xlabel=f"{len(gain_n)} held-out cells",
        ylabel="nats",
        title="counts above zero, minus the logistic link",
    )
plt.show()

# %%
error = gain_n.std(ddof=1) / len(gain_n) ** 0.5
print(f"{gain_n.mean():.3f} ± {error:.3f} nats per cell")
assert gain_n.mean() > 3 * error

# %% [markdown]
# ## What stays as it is
#
# - q(z|x) is the encoder's Gaussian: the closed form's z moves with its mean and variance. All else is yours.
# - The verbs of `ps.SCALE` that speak of c (`get_responsibilities`, clusters, `ps.ladder`) read the mixture of Gaussians in `model.vae.prior`, and
#   accessibility is the package's link. With another prior or link take what you need from `model.vae`.
# - A saved model knows its formulation by name. To load it, import the file that registers it first; the error says so.
#
# [CONTRIBUTING](../CONTRIBUTING.md) has the same as a recipe.
