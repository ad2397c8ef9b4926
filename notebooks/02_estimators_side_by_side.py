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
# # Estimators side by side
#
# A bound is a number. An *estimator* is a way to draw that number and its gradient. A model, a guide and an estimator make a loss;
# beside each stands here what a derivation by hand says it is. The two are equal at every draw, or equal on average, and we say which.
#
# Then the practical questions: how noisy is the gradient, what does an evaluation cost, why enumerate c, and when does an analytic
# KL pay. Runs on simulated cells; with your own `AnnData` in the place of `adata` it runs the same.
# [Why gamma?](01_why_gamma.ipynb) explains the bounds.

# %%
import copy
import itertools
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import torch
from pyro.infer import TraceEnum_ELBO

import pyro_scale as ps
from pyro_scale.comparison import critical_z
from pyro_scale.comparison.evaluate import draw, gradient_difference, twin_draw
from pyro_scale.objectives import (
    TABLE,
    Objective,
    collapsed,
    evaluate,
    find_row,
    importance_weighted,
    mean_field,
    scale,
)
from pyro_scale.programs import FORMULATIONS, Cells, Encoder, MixtureVAE, build

# %matplotlib inline

SHORT = bool(os.environ.get("PYRO_SCALE_SHORT"))  # the tests shrink the sizes, not the claims
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
EXACT = 1e-9  # relative: what an identity may be off by, in float64

adata = ps.simulate(n_cells=300, n_peaks=150 if SHORT else 400, n_clusters=4, density=0.08, seed=0)
adata

# %% [markdown]
# ## Calling an objective
#
# A `MixtureVAE` holds the parameters: prior, encoder, decoder. `Objective` puts a formulation of it (which q(z,c|x)) under an estimator (which
# of Pyro's). The result is a torch module: its value is minus the bound, summed over cells.

# %%
vae = MixtureVAE(adata.n_vars, n_components=4, n_latent=2, hidden=(32,))
cells = Cells.from_counts(torch.from_numpy(adata.X[:8].toarray()).double())

objective = Objective(vae, "structured", "TraceEnum_ELBO")
loss = objective(cells)
loss.backward()
print(f"{-loss.item() / cells.n_cells:.3f} nats per cell")

# %% [markdown]
# Nothing is hidden in it: it is Pyro's own estimator on two programs. (`module_local_params` keeps the parameters in the modules,
# out of Pyro's global store.)

# %%
model, guide = build(vae, "structured")
with pyro.settings.context(module_local_params=True):
    torch.manual_seed(1)
    by_pyro = TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, cells)
torch.manual_seed(1)
assert objective.loss(cells) == by_pyro

# %% [markdown]
# `TraceGraph_ELBO` and `RenyiELBO` call backward themselves. `objective.backward(cells)` works for every estimator.

# %%
vae.zero_grad()
iwae = Objective(vae, "collapsed", "RenyiELBO", n_particles=4)
print(f"{-iwae.backward(cells) / cells.n_cells:.3f} nats per cell")
assert all(parameter.grad is not None for parameter in vae.parameters())

# %% [markdown]
# The choices, and which closed form each computes. An empty place is a combination that Pyro, or we, refuse.

# %%
pd.Series({name: f.posterior for name, f in FORMULATIONS.items()}, name="q(z,c|x)").to_frame()

# %%
supported_rows = [row for row in TABLE if row.supported]
overview = pd.DataFrame(
    {
        "formulation": row.formulation,
        "c": row.c,
        "estimator": row.estimator,
        "is": f"{row.twin}, {'exactly' if row.value_agreement == 'exact' else 'on average'}",
    }
    for row in supported_rows
    if row.twin != "mean_field_at_z"
)
overview.pivot_table("is", ["formulation", "c"], "estimator", aggfunc="first").fillna("")

# %% [markdown]
# In `ps.SCALE` the same names are arguments: `formulation="structured", estimator="TraceEnumMeanField_ELBO"` trains the published loss.
#
# ## Equal at every draw
#
# One z per cell; both sides see the same. On the **same** guide, q(z|x) p(c|z), two estimators:
#
# - `TraceEnum_ELBO` sums over c: the *collapsed* closed form (D03.5).
# - `TraceEnumMeanField_ELBO` also replaces z's two log-densities by their expectations under q(z|x). Here c depends on z, so that
#   is no longer the guide's ELBO. It is SCALE's loss, in value and in every gradient (D06.5).

# %%
rows = []
for estimator in ("TraceEnum_ELBO", "TraceEnumMeanField_ELBO"):
    row = find_row("structured", estimator)
    one = draw(vae, Objective(vae, "structured", estimator), cells)  # value, gradients, and its z
    value, gradients = twin_draw(vae, row, cells, one.z_nd)  # the closed form at that z
    rows.append(
        (estimator, -one.loss, row.twin, -value, gradient_difference(one.gradients, gradients))
    )
columns = ["estimator", "by Pyro", "closed form", "by hand", "relative gradient difference"]
same_z = pd.DataFrame(rows, columns=columns)
same_z

# %%
assert ((same_z["by Pyro"] - same_z["by hand"]).abs() < EXACT * same_z["by hand"].abs()).all()
assert (same_z["relative gradient difference"] < EXACT).all()
assert abs(same_z["by Pyro"].diff().iloc[-1]) > 0.01  # and the two losses are different losses

# %% [markdown]
# ## The whole matrix
#
# `ps.compare` does this for every formulation and estimator. *Exact* rows must agree at each draw, in the value and in the gradient of every
# parameter; the others within z\* standard errors, on random projections of each gradient. Where the bounds coincide agreement would
# mean nothing, and a row says "no power".

# %%
scale_model = ps.SCALE(adata, n_components=4, n_latent=3, hidden=(16,), preset="plain")
table = ps.compare(scale_model, n_cells=16 if SHORT else 40, n_samples=20 if SHORT else 100)
table.plot()

# %%
frame = table.to_frame()
supported = frame[frame["value_agreement"] != "unsupported"]
pd.Series(table.gaps, name="nats per cell").to_frame()

# %%
shown = ["formulation", "c", "estimator", "twin", "value", "twin_value", "difference",
         "max_relative_gradient_difference", "max_gradient_z", "verdict"]  # fmt: skip
supported[shown].round(4)

# %%
assert not (supported["verdict"] == "FAILS").any()
exact = supported[supported["gradient_agreement"] == "exact"]
assert (exact["max_relative_gradient_difference"] <= EXACT).all()
on_average = supported[supported["gradient_agreement"] == "in expectation"]
assert (on_average["max_gradient_z"] <= table.settings["critical_z"]).all()
assert (exact["verdict"] == "holds").all()  # the comparison had power

# %% [markdown]
# What cannot be done, in the library's own words:

# %%
refused = frame.loc[
    frame["value_agreement"] == "unsupported", ["formulation", "c", "estimator", "reason"]
]
assert (refused["reason"] != "").all()
refused

# %% [markdown]
# ## One cell, looked at closely
#
# For the rest, one cell between components, and a q(z|x) that is free: a mean and a log standard deviation of its own, in the place
# of the encoder. The programs do not notice. Many copies of the cell in one batch are then many independent draws, and the
# gradient of each copy's parameters is one draw of the gradient.


# %%
class FreePosterior(torch.nn.Module):
    """q(z|x) = N(loc, sd^2), its own parameters for every cell."""

    q_z = staticmethod(Encoder.q_z)

    def __init__(self, loc_nd, var_nd):
        super().__init__()
        self.loc_nd = torch.nn.Parameter(loc_nd.clone())
        self.log_sd_nd = torch.nn.Parameter(0.5 * var_nd.log())

    def forward(self, cells):
        return self.loc_nd, (2 * self.log_sd_nd).exp()

    def gradient(self):
        return torch.cat([self.loc_nd.grad, self.log_sd_nd.grad], -1)


def copies_of(vae, x_p, loc_d, var_d, n):
    """n copies of one cell, each with its own free posterior."""
    free = copy.copy(vae)
    posterior = FreePosterior(loc_d.expand(n, -1), var_d.expand(n, -1))
    free._modules = {**vae._modules, "encoder": posterior}  # prior and decoder are shared
    return free, Cells.from_counts(x_p.expand(n, -1))


torch.manual_seed(1)
toy = MixtureVAE(n_peaks=60, n_components=3, n_latent=2, hidden=(8,)).requires_grad_(False)
toy.prior.set_components(
    pi_k=torch.tensor([0.4, 0.35, 0.25]),
    loc_kd=torch.tensor([[-1.5, -0.8], [1.3, -0.9], [0.2, 1.6]]),
    var_kd=torch.tensor([[0.8, 0.5], [0.5, 0.8], [1.0, 0.5]]),
)
toy.likelihood.peaks.weight.copy_(0.45 * torch.randn(60, 2))
toy.likelihood.peaks.bias.copy_(-2 + 0.5 * torch.randn(60))
x_p = torch.bernoulli(toy.likelihood.peaks(torch.tensor([0.0, -0.8])).sigmoid())

# %% [markdown]
# In two dimensions $E_{q(z|x)}$ is a sum over a grid, so each bound and its gradient are known. (The grid takes the place of
# the copies: the same closed forms, other z.)


# %%
def grid(d, nodes=121):
    t = torch.linspace(-8, 8, nodes)
    t_sd = torch.cartesian_prod(*[t] * d).reshape(-1, d)
    w_s = torch.exp(-0.5 * t_sd.square().sum(-1))
    return t_sd, w_s / w_s.sum()


def exactly(closed_form, loc_d, var_d, nodes=121):
    """A bound, and its gradient in (loc, log sd), by quadrature."""
    t_sd, w_s = grid(2, nodes)
    free, one = copies_of(toy, x_p, loc_d, var_d, 1)
    loc_nd, var_nd = free.encoder(one)
    z_s1d = loc_nd + var_nd.sqrt() * t_sd[:, None]
    value = w_s @ closed_form(evaluate(free, one, z_s1d)).total().expand(len(w_s), 1)[:, 0]
    value.backward()
    return value.item(), free.encoder.gradient()[0]


# q(z|x) goes near the posterior: steps along the exact gradient of the structured bound
loc_d, var_d = torch.zeros(2), torch.ones(2)
for _ in range(60):
    _, gradient = exactly(collapsed, loc_d, var_d, nodes=41)
    loc_d = loc_d + 0.2 * gradient[:2]
    var_d = var_d * (0.2 * gradient[2:]).exp()

forms = {"collapsed": collapsed, "mean_field": mean_field, "scale": scale}
exact_bounds = {name: exactly(form, loc_d, var_d) for name, form in forms.items()}
for name, form in forms.items():
    assert abs(exact_bounds[name][0] - exactly(form, loc_d, var_d, 101)[0]) < EXACT * abs(
        exact_bounds[name][0]
    )

# log p(x), from a wider q: the average of the importance weights is p(x) (D07.7)
t_sd, w_s = grid(2)
wide = evaluate(toy, (one := Cells.from_counts(x_p[None])), loc_d + 2 * t_sd[:, None], moments=(loc_d[None], torch.full((1, 2), 4.0)))  # fmt: skip
log_px = (w_s.log() + collapsed(wide).total()[:, 0]).logsumexp(0).item()
bounds = {"log p(x)": log_px, **{name: value for name, (value, _) in exact_bounds.items()}}
pd.Series(bounds, name="nats").to_frame().round(4)

# %%
assert log_px > bounds["collapsed"] > bounds["mean_field"] > bounds["scale"]

# %% [markdown]
# ## Equal on average
#
# Nine ways to estimate three bounds. The first table's "on average" becomes visible: each way finds *its* line, and
# which one depends on the guide and the estimator together. A dot is the mean over one batch of copies.

# %%
WAYS = [
    ("collapsed", "Trace_ELBO", None),
    ("structured", "TraceEnum_ELBO", "enumerated"),
    ("structured", "Trace_ELBO", "sampled"),
    ("structured", "TraceGraph_ELBO", "sampled"),
    ("mean_field", "TraceEnumMeanField_ELBO", "enumerated"),
    ("mean_field", "TraceEnum_ELBO", "enumerated"),
    ("mean_field", "Trace_ELBO", "sampled"),
    ("structured", "TraceEnumMeanField_ELBO", "enumerated"),
    ("scale", "TraceEnum_ELBO", "enumerated"),
]
twins = [find_row(*way).twin for way in WAYS]
labels = [
    f"{f} · {e.removesuffix('_ELBO')}" + (" · c drawn" if c == "sampled" else "")
    for f, e, c in WAYS
]
colour_of = dict(zip(forms, (ps.pl.PALETTE[0], ps.pl.PALETTE[1], ps.pl.PALETTE[2]), strict=True))

n_copies, n_batches = 100, 30
z_star = critical_z(2 * len(WAYS), n_batches)
means = np.empty((len(WAYS), n_batches))
free, many = copies_of(toy, x_p, loc_d, var_d, n_copies)
for i, (formulation, estimator, c) in enumerate(WAYS):
    objective = Objective(free, formulation, estimator, c)
    means[i] = [-objective.loss(many) / n_copies for _ in range(n_batches)]
average, error = means.mean(1), means.std(1, ddof=1) / n_batches**0.5

y = np.arange(len(WAYS))[::-1]
with ps.pl.style():
    figure, ax = plt.subplots(figsize=(6.5, 2.9), layout="constrained")
    for name, colour in colour_of.items():
        ax.axvline(bounds[name], color=colour, lw=1.2, label=f"{name}, exact")
        rows = [i for i, twin in enumerate(twins) if twin == name]
        ax.plot(
            means[rows].T,
            np.broadcast_to(y[rows], (n_batches, len(rows))),
            ".",
            color=colour,
            ms=3,
            alpha=0.35,
        )
        ax.errorbar(
            average[rows],
            y[rows],
            z_star * error[rows],
            fmt="o",
            ms=4,
            color=colour,
            mec="black",
            mew=0.5,
        )
    ax.set(yticks=y, yticklabels=labels, xlabel="bound, nats (mean ± z* standard errors)")
    figure.legend(loc="outside upper center", ncols=3)
plt.show()

# %%
assert (len(WAYS), len(set(twins))) == (9, 3)
for way, twin, value, se in zip(labels, twins, average, error, strict=True):
    others = [abs(value - bounds[name]) for name in forms if name != twin]
    assert abs(value - bounds[twin]) < z_star * se < min(others), way  # its own line, and no other

# %% [markdown]
# ## Several samples
#
# `RenyiELBO` at α = 0 is the importance-weighted bound, per cell $E \log \frac1S \sum_s w_s$. It rises from the structured bound to
# log p(x) (D07.8). At the same z it is `importance_weighted` exactly (the matrix above); here it is on average.

# %%
sizes = (1, 2, 4, 8, 16)
n_draws, n_batches, n_copies = (4000, 16, 1000) if SHORT else (20_000, 30, 4000)
noise = torch.randn(sizes[-1], n_draws, 1, 2)
free, _ = copies_of(toy, x_p, loc_d, var_d, 1)
with torch.no_grad():
    point = evaluate(free, one, loc_d + var_d.sqrt() * noise)
    log_w_sn = collapsed(point).total()[..., 0]
    closed = {
        s: torch.stack([chunk.logsumexp(0) - np.log(s) for chunk in log_w_sn.split(s)])
        for s in sizes
    }
    assert torch.equal(closed[16][0], importance_weighted(point)[:, 0])
closed = {
    s: value.mean(0) for s, value in closed.items()
}  # per draw: the mean over its groups of s
by_renyi = {}
free, many = copies_of(toy, x_p, loc_d, var_d, n_copies)
for s in sizes:
    objective = Objective(free, "collapsed", "RenyiELBO", n_particles=s)
    by_renyi[s] = torch.tensor([-objective.loss(many) / n_copies for _ in range(n_batches)])

z_star = critical_z(3 * len(sizes), n_batches)
with ps.pl.style():
    figure, ax = plt.subplots(figsize=(4.5, 2.6), layout="constrained")
    ax.axhline(log_px, color="black", lw=1, label="log p(x)")
    ax.axhline(
        bounds["collapsed"], color=colour_of["collapsed"], lw=1, ls="--", label="structured bound"
    )
    ax.plot(sizes, [closed[s].mean() for s in sizes], color=ps.pl.PALETTE[3], label="closed form")
    errors = [float(z_star * by_renyi[s].std() / n_batches**0.5) for s in sizes]
    ax.errorbar(
        sizes,
        [by_renyi[s].mean() for s in sizes],
        errors,
        fmt="o",
        ms=4,
        capsize=2,
        color=ps.pl.PALETTE[4],
        label="RenyiELBO ± z* s.e.",
    )
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, sizes)
    ax.set(xlabel="samples S", ylabel="nats")
    ax.legend()
plt.show()

# %%
for s in sizes:
    difference = by_renyi[s].mean() - closed[s].mean()
    se = (by_renyi[s].var() / n_batches + closed[s].var() / n_draws) ** 0.5
    assert abs(difference) < z_star * se
for s, more in itertools.pairwise(sizes):
    assert (closed[more] >= closed[s] - EXACT).all()  # in every single draw
assert bounds["collapsed"] < closed[2].mean() < closed[16].mean() < log_px

# %% [markdown]
# ## How noisy is the gradient?
#
# The gradient is what training sees. With the copies, one backward gives thousands of draws of it. First, it must be right on average:
# the mean of every coordinate against the exact gradient of the way's bound.

# %%
n_draws = 4000 if SHORT else 20_000
free, many = copies_of(toy, x_p, loc_d, var_d, n_draws)
gradients = []
for formulation, estimator, c in WAYS:
    free.encoder.zero_grad()
    Objective(free, formulation, estimator, c).backward(many)
    gradients.append(-free.encoder.gradient())  # of the bound; (draws, loc and log sd)

z_star = critical_z(6 * len(WAYS), n_draws)
for way, twin, g in zip(labels, twins, gradients, strict=True):
    z = (g.mean(0) - exact_bounds[twin][1]) / (g.std(0) / n_draws**0.5 + EXACT)
    assert z.abs().max() < z_star, way

# %% [markdown]
# Then its variance: $\mathrm{tr}\,\mathrm{Cov}$ of the gradient. Same colour, same bound, same mean; only the noise differs.

# %%
square = [(g - g.mean(0)).square().sum(-1) for g in gradients]
variance = torch.stack([s.mean() for s in square])
error = torch.stack([s.std() / n_draws**0.5 for s in square])

with ps.pl.style():
    figure, ax = plt.subplots(figsize=(6.5, 2.7), layout="constrained")
    ax.barh(
        y,
        variance,
        xerr=z_star * error,
        color=[colour_of[t] for t in twins],
        height=0.65,
        error_kw={"lw": 0.8},
    )
    for place, value, se in zip(y, variance.tolist(), error.tolist(), strict=True):
        ax.annotate(
            f"{value:.0f}" if value >= 10 else f"{value:.1f}",
            (value + z_star * se, place),
            (4, 0),
            textcoords="offset points",
            va="center",
            size=7,
        )
    ax.set(
        yticks=y, yticklabels=labels, xscale="log", xlabel="gradient variance in (m, log σ), nats²"
    )
    ax.margins(x=0.1)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colour_of.values()]
    figure.legend(handles, colour_of, loc="outside upper center", ncols=3, title="gradient of")
plt.show()

# %% [markdown]
# ## Why enumerate
#
# A drawn c has no reparameterisation. Its gradient needs the score term, whose factor f holds the log-likelihood of the whole cell:
#
# $$\nabla E_{q(c)}[f(c)] = E_{q(c)}\big[\nabla f(c) + f(c)\,\nabla \log q(c)\big].$$
#
# An enumerated c is an exact sum over K components, and needs none (D07.4).


# %%
def clearly_less(less, more):
    a, b = WAYS.index(less), WAYS.index(more)
    return variance[b] - variance[a] > z_star * (error[a] ** 2 + error[b] ** 2) ** 0.5


for formulation in ("structured", "mean_field"):
    enumerated, sampled = (
        (formulation, "TraceEnum_ELBO", "enumerated"),
        (formulation, "Trace_ELBO", "sampled"),
    )
    print(
        f"{formulation}: drawing c costs {variance[WAYS.index(sampled)] / variance[WAYS.index(enumerated)]:.0f} times the variance"
    )
    assert clearly_less(enumerated, sampled)
assert clearly_less(
    ("mean_field", "TraceEnumMeanField_ELBO", "enumerated"),
    ("mean_field", "TraceEnum_ELBO", "enumerated"),
)

# %% [markdown]
# The likelihood is a constant factor in that term: adding peaks that say nothing about z adds nothing to the bound's gradient, and a lot to the
# drawn estimator's noise.

# %%
padding = (0, 60, 240)
noise_of = {"TraceEnum_ELBO": [], "Trace_ELBO": []}
for extra in padding:
    padded = copy.deepcopy(toy)
    padded.likelihood.peaks.weight = torch.nn.Parameter(
        torch.cat([toy.likelihood.peaks.weight, torch.zeros(extra, 2)]), requires_grad=False
    )
    padded.likelihood.peaks.bias = torch.nn.Parameter(
        torch.cat([toy.likelihood.peaks.bias, torch.full((extra,), -2.0)]), requires_grad=False
    )
    free, many = copies_of(padded, torch.cat([x_p, torch.zeros(extra)]), loc_d, var_d, 4000)
    for estimator, c in (("TraceEnum_ELBO", "enumerated"), ("Trace_ELBO", "sampled")):
        free.encoder.zero_grad()
        Objective(free, "mean_field", estimator, c).backward(many)
        noise_of[estimator].append(free.encoder.gradient().var(0).sum().item())
pd.DataFrame(noise_of, index=pd.Index(padding, name="silent peaks added")).round(1)

# %%
enumerated, sampled = noise_of["TraceEnum_ELBO"], noise_of["Trace_ELBO"]
assert sampled[-1] > 2 * sampled[0]
assert max(enumerated) < 1.5 * min(enumerated)

# %% [markdown]
# ## Cost
#
# Time of one evaluation, value and gradient, relative to the quickest (never asserted: your machine differs), beside the
# gradient variance of **all** parameters from `ps.compare`. Their product is what a given precision costs. At this size Pyro's own
# bookkeeping takes the time; with many peaks the encoder and decoder do, and they never see c, enumerated or not.

# %%
cost = supported[supported["twin"] != "mean_field_at_z"][
    ["formulation", "c", "estimator", "twin", "gradient_variance"]
].copy()
cost["relative time"] = supported["seconds"] / supported["seconds"].min()
cost["variance x time"] = cost["gradient_variance"] * cost["relative time"]
cost.sort_values(["twin", "variance x time"]).round(2)

# %% [markdown]
# ## When the analytic KL pays
#
# Take one component, $N(\mu, \tau^2)$, one dimension, and q(z|x) at the posterior: its mean at the mode, its variance
# $\sigma^2 = 1/(a + 1/\tau^2)$ from the curvature *a* of the log-likelihood. Near the mode both log-densities are
# quadratic, and so the noise of the gradient in m is $\sigma$ times the curvature that is left in the sample:
#
# $$\frac{\mathrm{Var}\ \text{(sampled)}}{\mathrm{Var}\ \text{(analytic)}} \approx \frac{(a + 1/\tau^2)^2}{a^2} = \frac{1}{(1 - r^2)^2}, \qquad r = \sigma / \tau .$$
#
# So it depends on the width of the posterior, in units of its component. We vary how much the peaks say about z, and measure with
# the two estimators. Lines: quadratic theory, and exact quadrature of the closed forms.

# %%
torch.manual_seed(2)
line = MixtureVAE(n_peaks=60, n_components=1, n_latent=1, hidden=(4,)).requires_grad_(False)
line.prior.set_components(torch.ones(1), torch.zeros(1, 1), torch.ones(1, 1))
weight, bias = torch.randn(60, 1), -2 + 0.5 * torch.randn(60)
TWO = {"TraceEnum_ELBO": collapsed, "TraceEnumMeanField_ELBO": mean_field}  # K = 1: the same bound


def at_the_posterior(x_p):
    """Mean and variance of the Laplace approximation, by Newton's method."""
    w, b, z = line.likelihood.peaks.weight[:, 0], line.likelihood.peaks.bias, torch.zeros(())
    for _ in range(50):
        p = (w * z + b).sigmoid()
        precision = 1 + (w.square() * p * (1 - p)).sum()
        z = z + ((x_p - p) @ w - z) / precision
    return z[None], 1 / precision[None]


t_s1, w_s = grid(1, 801)
n_draws = 4000 if SHORT else 20_000
measured = []
for information in np.geomspace(0.08, 2.5, 6 if SHORT else 9):
    line.likelihood.peaks.weight.copy_(information * weight)
    line.likelihood.peaks.bias.copy_(bias)
    x = torch.bernoulli(line.likelihood.peaks(torch.tensor([0.7])).sigmoid())
    m, v = at_the_posterior(x)
    result = {"r": v.sqrt().item()}
    for estimator, form in TWO.items():
        free, many = copies_of(line, x, m, v, n_draws)
        Objective(free, "mean_field", estimator).backward(many)
        each = (free.encoder.loc_nd.grad - free.encoder.loc_nd.grad.mean()).square()
        free, nodes = copies_of(line, x, m, v, len(t_s1))  # a copy at every node
        loc_nd, var_nd = free.encoder(nodes)
        values = form(evaluate(free, nodes, loc_nd + var_nd.sqrt() * t_s1)).total()
        values.sum().backward()
        g, values = free.encoder.loc_nd.grad[:, 0], values.detach()
        result[estimator] = each.mean().item(), (each.std() / n_draws**0.5).item()
        result[estimator + " exact"] = (w_s @ (g - w_s @ g).square()).item()
        result[estimator + " value"] = (w_s @ (values - w_s @ values).square()).item()
    measured.append(result)
r = np.array([row["r"] for row in measured])


def ratio(suffix):
    return np.array(
        [
            row["TraceEnum_ELBO" + suffix] / row["TraceEnumMeanField_ELBO" + suffix]
            for row in measured
        ]
    )


by_pyro = np.array(
    [[row[e] for e in TWO] for row in measured]
)  # (points, estimators, value and error)
ratio_pyro = by_pyro[:, 0, 0] / by_pyro[:, 1, 0]
relative_error = np.hypot(*(by_pyro[..., 1] / by_pyro[..., 0]).T)

# %%
z_star = critical_z(2 * len(measured), n_draws)
theory = np.linspace(0.05, r.max(), 200)
with ps.pl.style():
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
    left.plot(theory, (1 - theory**2) ** -2.0, "k:", lw=1, label=r"$(1 - r^2)^{-2}$")
    left.plot(r, ratio(" exact"), color=ps.pl.PALETTE[0], label="closed forms, quadrature")
    left.errorbar(
        r,
        ratio_pyro,
        z_star * relative_error * ratio_pyro,
        fmt="o",
        ms=4,
        capsize=2,
        color=ps.pl.PALETTE[3],
        label="Pyro's estimators ± z* s.e.",
    )
    left.set(title="the gradient (in m)", ylabel="variance, sampled / analytic")
    left.legend()
    right.plot(
        r, ratio(" value"), "o", ms=4, color=ps.pl.PALETTE[0], label="closed forms, quadrature"
    )
    right.legend()
    right.set(title="the value")
    for ax in (left, right):
        ax.axhline(1, color="0.6", lw=0.8)
        ax.set(yscale="log", xlabel="r = width of q(z|x) / width of its component", xlim=(0, 1))
plt.show()

# %% [markdown]
# - **In the gradient** the analytic KL pays as q(z|x) grows as wide as its component, without limit: few peaks, shallow cells, dimensions that
#   have collapsed to the prior. For a narrow q it gains nothing, because the noise is all the likelihood's.
# - **In the value** it is the other way round (D07.6): at the posterior $\log p(x|z) + \log p(z) - \log q(z|x)$ is nearly constant, and
#   integrating a part of it takes away what cancelled the rest. To *report* a bound, sample; to *train* one, integrate.

# %%
for row in measured:
    for estimator in TWO:
        value, se = row[estimator]
        assert abs(value - row[estimator + " exact"]) < z_star * se
assert (ratio(" exact") > 1).all()
assert (ratio(" value") < 1).all()
assert (np.diff(ratio(" exact")[np.argsort(r)]) > 0).all()

# %% [markdown]
# ## What to take home
#
# | | value | gradient | claim |
# |---|---|---|---|
# | c summed out, or enumerated | exact at each z | exact at each z | D03.5 |
# | c drawn, structured guide | exact at each z | on average, noisy | D03.6, D07.4 |
# | c drawn, mean-field guide | on average | on average, noisy | D07.1, D07.4 |
# | analytic KL, mean-field guide | exact | exact; less noise where q is wide | D06.7, D07.5 |
# | analytic KL, structured guide | SCALE's loss, exact | exact | D06.5 |
# | several samples (IWAE) | exact; rises to log p(x) | exact with c summed out | D07.8, D07.9 |
