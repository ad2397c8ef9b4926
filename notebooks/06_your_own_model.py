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
# The matrix of [the second notebook](02_estimators_side_by_side.ipynb) can be extended. A **formulation** consists of a model and a guide; to
# add one, you also state, as a closed form, what you think its objective is. All three go in one file: `ps.register` adds the formulation to
# the registry, and `ps.compare` tells whether the programs and the closed form agree. This notebook changes the guide, then the prior, then
# the likelihood.
#
# It runs on simulated cells and needs no other data.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import pyro_scale as ps

# %matplotlib inline

SHORT = bool(os.environ.get("PYRO_SCALE_SHORT"))  # set by the tests: smaller sizes, same assertions
torch.manual_seed(0)
TOLERANCE = 1e-9  # largest relative error of an identity in float64
sizes = {"n_cells": 12, "n_samples": 12} if SHORT else {"n_cells": 40, "n_samples": 60}

adata = ps.simulate(n_cells=300 if SHORT else 1000, n_peaks=400, n_clusters=4, density=0.15, seed=0)
adata

# %% [markdown]
# ## A different guide
#
# Given z, the best q(c|z,x) is $\gamma_c(z) = p(c|z)$ (D03.3). Suppose we did not know this, and tried a softer or harder assignment with a
# temperature T, as in deterministic annealing EM (Ueda and Nakano 1998, doi:10.1016/S0893-6080(97)00133-0):
#
# $$q(z,c|x) = q(z|x)\, q_T(c|z), \qquad q_T(c|z) = \frac{\gamma_c(z)^{1/T}}{\sum_b \gamma_b(z)^{1/T}} .$$
#
# At T = 1 this is the structured guide. For T → 0 each z is assigned to a single component; for T → ∞ all components become equally probable.
#
# **What is its bound?** By definition it is the expectation over $z \sim q(z|x)$ of
#
# $$\log p(x|z) + \sum_c q_T(c|z)\,\big[\log p(z|c) + \log \pi_c - \log q_T(c|z)\big] - \log q(z|x) .$$
#
# With Bayes' rule, $\log p(z|c) + \log \pi_c = \log \gamma_c(z) + \log p(z)$, it becomes
#
# $$L_T = L_{\mathrm{str}} - E_{q(z|x)}\, \mathrm{KL}\big(q_T(c|z) \,\|\, \gamma(z)\big) . \tag{1}$$
#
# The cost of a temperature is a KL divergence, which is zero at T = 1. A *learned* T should therefore end at 1, and below it does.
#
# ## All in one file
#
# The next cell is the complete file. The guide reads like the factorization. T is an additional parameter: `build` adds it to the `vae`, which
# holds the parameters that all programs share, unless it is already there. The closed form implements the definition above (not equation
# (1)), term by term and without Pyro. Its argument is an `EvaluationPoint`, which holds z, the mean and variance of q(z|x), the prior and
# log p(x|z), and also `vae` and `cells` for anything else that is needed. An `ObjectiveSpec` states that an estimator, with a given treatment
# of c, computes a given closed form, exactly or in expectation, for the value and for the gradient. The first one is the default for
# training.

# %%
# tempered.py
import math

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

import pyro_scale as ps
from pyro_scale.objectives import ElboTerms, EvaluationPoint, ObjectiveSpec, terms
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
        log_t = torch.full_like(vae.prior.logits_k[0], math.log(2.0))  # same dtype and device
        vae.log_temperature = torch.nn.Parameter(log_t)
    return Programs(MixtureModel(vae), TemperedGuide(vae, enumerate_c))


def tempered(at: EvaluationPoint) -> ElboTerms:
    """The closed form of the bound, at one sample of z."""
    log_q_nk = (at.log_gamma_nk / at.vae.log_temperature.exp()).log_softmax(-1)
    q_nk = log_q_nk.exp()
    return ElboTerms(
        log_lik_n=at.log_lik_n,
        log_p_z_n=(q_nk * at.log_p_z_given_c_nk).sum(-1),
        log_p_c_n=(q_nk * at.log_pi_k).sum(-1),
        minus_log_q_z_n=-terms.log_q_z(at.z_nd, at.loc_nd, at.var_nd),
        minus_log_q_c_n=-(q_nk * log_q_nk).sum(-1),
    )


TEMPERED = Formulation("tempered", "q(z|x) p(c|z)^(1/T) / Z", ("enumerated", "sampled"), build)
OBJECTIVES = [
    ObjectiveSpec("tempered", "TraceEnum_ELBO", "enumerated", "tempered", "exact", "exact"),
    ObjectiveSpec(
        "tempered", "Trace_ELBO", "sampled", "tempered", "in expectation", "in expectation"
    ),
    ObjectiveSpec(
        "tempered", "TraceGraph_ELBO", "sampled", "tempered", "in expectation", "in expectation"
    ),
]
ps.register(TEMPERED, OBJECTIVES, {"tempered": tempered}, replace=True)

# %% [markdown]
# (`replace=True` allows this cell to be run more than once.) This is all that is needed. The formulation now appears in the table of objectives:

# %%
from pyro_scale.objectives import REGISTRY, collapsed, evaluate, resolve_objective, to_markdown

print("\n".join(line for line in to_markdown().splitlines() if "tempered" in line))
assert resolve_objective("tempered").estimator == "TraceEnum_ELBO"

# %% [markdown]
# ## Comparison with the closed form
#
# `ps.compare` runs all formulations, yours and the package's, in float64. If c is sampled, Pyro's value differs from the closed form at each
# draw, which it does not at T = 1. The agreement of those objectives is therefore stated as *in expectation*.

# %%
model = ps.SCALE(adata, n_components=4, n_latent=3, hidden=(16,), preset="plain")
table = ps.compare(model, **sizes)
frame = table.to_frame()
mine = frame[(frame["formulation"] == "tempered") & (frame["value_agreement"] != "unsupported")]
shown = ["c", "estimator", "value", "closed_form_value", "difference", "max_relative_gradient_difference",
         "max_gradient_z", "status"]  # fmt: skip
mine[shown].round(4)

# %%
table.plot()

# %%
assert mine["status"].tolist()[:1] == ["holds"]
assert mine.iloc[0]["max_relative_gradient_difference"] <= TOLERANCE
assert not (frame["status"] == "FAILS").any()

# %% [markdown]
# Combinations that are not listed are refused, with a reason from Pyro or from this package:

# %%
refused = frame[(frame["formulation"] == "tempered") & (frame["value_agreement"] == "unsupported")]
assert (refused["reason"] != "").all()
refused[["c", "estimator", "reason"]]

# %% [markdown]
# ## A mistake is found
#
# Agreement means something only if a wrong formula disagrees. We try two plausible mistakes. In the first, $\log q_T = \log \gamma / T$, the
# normalizing constant is forgotten. In the second, T is detached from the gradient: the value is then right and the gradient wrong.


# %%
def without_normalizer(at):
    log_gamma_nk = at.log_gamma_nk
    log_q_nk = log_gamma_nk / at.vae.log_temperature.exp()
    correct = tempered(at)
    q_nk = log_q_nk.softmax(-1)
    return correct._replace(minus_log_q_c_n=-(q_nk * log_q_nk).sum(-1))


def detached(at):
    t = at.vae.log_temperature.exp().detach()
    log_q_nk = (at.log_gamma_nk / t).log_softmax(-1)
    expected_n = (log_q_nk.exp() * (at.log_p_z_given_c_nk + at.log_pi_k - log_q_nk)).sum(-1)
    return at.log_lik_n + expected_n - terms.log_q_z(at.z_nd, at.loc_nd, at.var_nd)


found = {}
for mistake in (without_normalizer, detached):
    ps.register(TEMPERED, OBJECTIVES, {"tempered": mistake}, replace=True)
    row = ps.compare(model, formulations=["tempered"], **sizes).rows[2]
    found[mistake.__name__] = row.status, row.reason
ps.register(TEMPERED, OBJECTIVES, {"tempered": tempered}, replace=True)
pd.DataFrame(found, index=["status", "reason"]).T

# %%
assert found["without_normalizer"] == ("FAILS", "value and gradient differ from the closed form")
assert found["detached"] == ("FAILS", "gradient differs from the closed form")

# %% [markdown]
# ## Training
#
# `ps.SCALE` now accepts the formulation by name, and `get_elbo` accepts its closed form as a bound. A Lightning callback records T after
# each epoch. T starts at 2 and changes only once the mixture is trained; before that the prior is N(0, I) and there is no c.

# %%
import lightning


class RecordTemperature(lightning.Callback):
    def __init__(self):
        self.epochs = []

    def on_train_epoch_end(self, trainer, module):
        self.epochs.append(module.vae.log_temperature.exp().item())


recorded = RecordTemperature()
trained = ps.SCALE(adata, n_components=4, n_latent=4, hidden=(16,), formulation="tempered")
trained.train(
    55 if SHORT else 100,
    warmup_epochs=20,
    batch_size=32,
    progress_bar=False,
    trainer_kwargs={"callbacks": [recorded]},
)
trained

# %%
# the cost E KL(q_T || gamma) per cell for many T, at the trained parameters: equation (1)
vae = trained.vae.double()
cells = ps.data.dense_cells(trained.counts(), dtype=torch.float64)
temperatures = np.geomspace(0.05, 20, 41)
with torch.no_grad():
    moments = loc_nd, var_nd = vae.encoder(cells)
    z_snd = loc_nd + var_nd.sqrt() * torch.randn(20, *loc_nd.shape, dtype=torch.float64)
    at = evaluate(vae, cells, z_snd, moments=moments)
    structured = collapsed(at).total()
    log_gamma = at.log_gamma_nk
    cost, by_definition = [], []
    for t in temperatures:
        log_q = (log_gamma / t).log_softmax(-1)
        cost.append((log_q.exp() * (log_q - log_gamma)).sum(-1).mean().item())
        vae.log_temperature.fill_(math.log(t))
        by_definition.append((structured - tempered(at).total()).mean().item())
    vae.log_temperature.fill_(math.log(recorded.epochs[-1]))
    hard = -log_gamma.amax(-1).mean().item()  # T -> 0: KL is -log of the largest γ
    flat = (-log_gamma.mean(-1) - math.log(4)).mean().item()  # T -> infinity

with ps.pl.style():
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.7), layout="constrained")
    left.axhline(1, color="0.6", lw=0.8)
    left.plot(recorded.epochs, color=ps.pl.PALETTE[3])
    left.set(title="learned temperature", xlabel="epoch", ylabel="T", ylim=(0.9, 2.1))
    right.plot(temperatures, by_definition, color=ps.pl.PALETTE[0], label="by definition")
    right.plot(temperatures[::4], cost[::4], "o", ms=4, color=ps.pl.PALETTE[1], label="E KL, (1)")
    right.axhline(hard, color="0.4", ls=":", lw=1, label="T → 0")
    right.axhline(flat, color="0.4", ls="--", lw=1, label="T → ∞")
    right.set(title="cost of a temperature", xlabel="T", ylabel="nats per cell", xscale="log")
    right.set_yscale("symlog", linthresh=0.01)
    right.set_ylim(0, 2 * flat)
    right.legend()
plt.show()

# %%
assert abs(recorded.epochs[0] - 2) < 1e-6
assert abs(recorded.epochs[-1] - 1) < 0.1
assert np.allclose(cost, by_definition, atol=1e-9)  # equation (1)
at_one = len(temperatures) // 2
assert abs(temperatures[at_one] - 1) < 1e-12
assert cost[at_one] < 1e-12  # zero at T = 1, and it grows with the distance from T = 1
assert (np.diff(cost[: at_one + 1]) < 0).all()
assert (np.diff(cost[at_one:]) > 0).all()
assert max(cost[:at_one]) < hard
assert max(cost[at_one:]) < flat

# %% [markdown]
# Training with the tempered bound thus finds what D03.3 proves: at the end T is close to 1 and the bound is the structured one.
#
# ## A different prior
#
# The components get heavy tails: a multivariate t distribution with ν degrees of freedom, with the mixture's means $\mu_c$ and with
# $\mathrm{var}_c$ as squared scales. A cell far from a component then has less influence on that component (Peel and McLachlan 2000,
# doi:10.1023/A:1008981510081). c is marginalized, so the guide is the package's `LatentGuide`.
#
# $$\log p(z|c) = \log \frac{\Gamma(\frac{\nu + D}{2})}{\Gamma(\frac{\nu}{2})} - \frac D2 \log \nu\pi - \frac12 \sum_d \log \mathrm{var}_{cd}
# - \frac{\nu + D}{2} \log\Big(1 + \frac1\nu \sum_d \frac{(z_d - \mu_{cd})^2}{\mathrm{var}_{cd}}\Big)$$
#
# A closed form may also use several samples: with `RenyiELBO`, z has a first dimension for them.

# %%
# heavy_tails.py
from pyro_scale.programs import LatentGuide

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
    """Return log p(z|c), shape (..., n, k)."""
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
        ("marginalized",),
        lambda vae, _: Programs(HeavyModel(vae), LatentGuide(vae)),
    ),
    [
        ObjectiveSpec("heavy", "Trace_ELBO", "marginalized", "heavy", "exact", "exact"),
        ObjectiveSpec("heavy", "RenyiELBO", "marginalized", "heavy_iwae", "exact", "exact"),
    ],
    {"heavy": heavy, "heavy_iwae": heavy_iwae},
    replace=True,
)

# %% [markdown]
# ## A different likelihood
#
# When is a peak "open" in a cell? When it has at least one fragment. If the number of fragments is Poisson with rate $e^{\eta_{np}}$, where
# $\eta$ is the decoder's output, then
#
# $$P(x_{np} = 1 | z) = 1 - \exp(-e^{\eta_{np}}), \qquad
# \log p(x|z) = \sum_p x_p \log\big(1 - e^{-\lambda_p}\big) - (1 - x_p)\,\lambda_p, \quad \lambda = e^{\eta} .$$
#
# This link nearly equals the logistic link for rare peaks and differs from it for common ones. The closed form has to replace log p(x|z),
# and therefore uses `at.vae` and `at.cells`. In training, cells are sparse; `cells.dense()` is the simple solution here.


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
        ("marginalized",),
        lambda vae, _: Programs(ThresholdedModel(vae), LatentGuide(vae)),
    ),
    [ObjectiveSpec("thresholded", "Trace_ELBO", "marginalized", "thresholded", "exact", "exact")],
    {"thresholded": thresholded},
    replace=True,
)

# %% [markdown]
# We compare both formulations with their closed forms, and again try a mistake in each, to test the power of the comparison.

# %%
table = ps.compare(model, formulations=["collapsed", "heavy", "thresholded"], **sizes)
frame = table.to_frame()
both = frame[frame["formulation"].isin(["heavy", "thresholded"]) & (frame["closed_form"] != "")]
both[["formulation", "estimator", "value", "closed_form_value", "difference", "max_relative_gradient_difference", "status"]]  # fmt: skip

# %%
assert (both["status"] == "holds").all()
assert (both["max_relative_gradient_difference"] <= TOLERANCE).all()
gaussian = frame.loc[frame["estimator"] == "Trace_ELBO"].set_index("formulation")["value"]
assert abs(gaussian["heavy"] - gaussian["collapsed"]) > 0.01  # another prior, another bound

mistakes = {
    "heavy": lambda at: heavy(at) + 0.5 * at.var_kd[0].log().sum(),  # a scale is forgotten
    "thresholded": collapsed,  # the logistic link
}
for name, mistake in mistakes.items():
    wrong = f"{name}_wrong"
    formulation = REGISTRY.formulation(name)._replace(name=wrong)
    objective = ObjectiveSpec(wrong, "Trace_ELBO", "marginalized", wrong, "exact", "exact")
    with ps.register(formulation, [objective], {wrong: mistake}):
        assert ps.compare(model, formulations=[wrong], **sizes).rows[0].status == "FAILS"
    assert wrong not in REGISTRY.formulations  # leaving `with` removes it

# %% [markdown]
# ## Which likelihood is right?
#
# The simulator draws Poisson counts and keeps whether they are above zero, so the second likelihood is the true one. The two links differ most
# where many peaks are open and the depth varies. We train each model on half of the cells and evaluate its own bound on the other half.

# %%
open_cells = ps.simulate(800, 400, n_clusters=4, density=0.4, depth_sd=0.8, seed=0)
held_out = np.random.default_rng(0).permutation(800) < 400
bounds = {}
for name in ("collapsed", "thresholded", "heavy"):
    candidate = ps.SCALE(open_cells[~held_out], 4, n_latent=4, hidden=(32,), formulation=name)
    candidate.train(50 if SHORT else 100, warmup_epochs=20, batch_size=64, progress_bar=False)
    bounds[name] = candidate.get_elbo(open_cells[held_out], n_mc_samples=50)
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
        title="counts above zero minus logistic link",
    )
plt.show()

# %%
error = gain_n.std(ddof=1) / len(gain_n) ** 0.5
print(f"{gain_n.mean():.3f} ± {error:.3f} nats per cell")
assert gain_n.mean() > 3 * error

# %% [markdown]
# ## What stays the same
#
# - q(z|x) is the encoder's Gaussian: the closed form's z is a reparameterized draw from it. Everything else can be changed.
# - `get_responsibilities` and the clusters use the formulation's own q(c|·). It is the function `log_q_c` of the `Formulation` if there is
#   one; otherwise it is read off the guide. A guide without c has p(c|z) of `model.vae.prior`. `ps.ladder` assumes the mixture of Gaussians in
#   `model.vae.prior`, and the methods for accessibility assume the package's link. With another prior or link, compute these quantities from
#   `model.vae`.
# - A saved model stores the name of its formulation. Before you load it, import the file that registers the formulation; otherwise the error
#   message says so.
#
# [CONTRIBUTING](../CONTRIBUTING.md) has the same as a recipe.
