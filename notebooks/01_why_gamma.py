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
# # Why gamma?
#
# SCALE models the open peaks $x$ of a cell by a latent position $z$ and a mixture component $c$:
#
# $$c \sim \mathrm{Categorical}(\pi), \qquad z \mid c \sim N(\mu_c, \mathrm{var}_c), \qquad x \mid z \sim \mathrm{Bernoulli}(\mathrm{decoder}(z)).$$
#
# Its loss draws $z \sim q(z|x)$, computes the responsibilities $\gamma_c(z) = p(c|z)$ at that z, and uses γ wherever the derivation
# has $q(c|x)$. Users have asked why since 2021 (jsxlei/SCALE issues [18](https://github.com/jsxlei/SCALE/issues/18) and
# [25](https://github.com/jsxlei/SCALE/issues/25)):
#
# 1. Is $q(c|x)$ the same as $p(c|z)$? Or does $q(z,c|x) = q(z|x)\,q(c|x)$ hold? Both answers were given.
# 2. Why is $E_{q(z,c|x)}[\log p(c)]$ computed with γ alone?
# 3. Is the result still a lower bound of $\log p(x)$, and what does the substitution cost?
#
# This notebook answers the three questions by running programs in a two-dimensional latent space, where every quantity can be plotted.
# Claim ids such as D04.6 refer to [`derivations/`](../derivations/README.md), where each claim is proved and tested.

# %%
import inspect
import itertools
import os
import textwrap
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.colors import to_rgb
from matplotlib.patches import Ellipse
from pyro import poutine

import pyro_scale as ps
from pyro_scale.comparison import critical_z
from pyro_scale.comparison.estimates import estimate_objective
from pyro_scale.objectives import (
    REGISTRY,
    EvaluationPoint,
    Objective,
    collapsed,
    evaluate,
    mean_field,
    scale,
)
from pyro_scale.programs import CellBatch, MixtureVAE

SHORT = bool(os.environ.get("PYRO_SCALE_SHORT"))  # set by the tests: smaller sizes, same assertions
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
TOLERANCE = 1e-9  # largest error of an identity in float64, in nats


def show(program):
    print(textwrap.dedent(inspect.getsource(type(program).forward)))


# %% [markdown]
# ## The model is a program
#
# The program reads like the equation above. (`kl_weight` is 1 here; training uses it for KL warm-up.)

# %%
vae = MixtureVAE(n_peaks=60, n_components=3, n_latent=2, hidden=(64,))
model, _ = REGISTRY.build(vae, "structured")
show(model)

# %% [markdown]
# We set three overlapping components and a decoder by hand, and simulate cells from the program. `poutine.uncondition` makes the
# program sample x as well.

# %%
with torch.no_grad():
    vae.prior.set_components(
        pi_k=torch.tensor([0.4, 0.35, 0.25]),
        loc_kd=torch.tensor([[-1.9, -0.8], [1.7, -0.9], [0.2, 1.9]]),
        var_kd=torch.tensor([[1.0, 0.5], [0.5, 0.9], [1.2, 0.5]]),
    )
    peaks = vae.likelihood.peaks
    peaks.weight.copy_(0.55 * torch.randn(60, 2))
    peaks.bias.copy_(-2.2 + 0.8 * torch.randn(60))

    n_cells = 200 if SHORT else 600
    nothing = CellBatch.from_counts(torch.zeros(n_cells, 60))
    drawn = poutine.trace(poutine.uncondition(model)).get_trace(nothing)
cells = CellBatch.from_counts(drawn.nodes["x"]["value"])
true_c = drawn.nodes["c"]["value"]
print(f"{n_cells} cells, {100 * cells.x_np.mean():.0f} % of the entries are open")

# %% [markdown]
# The model is now known; only the encoder, $q(z|x) = N(m(x), \sigma^2(x))$, has to be trained. An objective is a torch module, so an
# ordinary training loop does it.

# %%
objective = Objective(vae, "collapsed", "Trace_ELBO")
optimizer = torch.optim.Adam(vae.encoder.parameters(), lr=1e-2)
for _ in range(300 if SHORT else 1200):
    optimizer.zero_grad()
    loss = objective(cells)  # minus the bound, summed over cells
    (loss / n_cells).backward()
    optimizer.step()
vae.requires_grad_(False)
loc_nd, var_nd = vae.encoder(cells)

# %% [markdown]
# ## Expectations under q(z|x) by quadrature
#
# All statements below are about expectations under $q(z|x)$. In two dimensions they are computed as weighted sums over a grid:
# `under_q` returns the nodes and their weights. As a check, the integral is repeated with another number of nodes.


# %%
def under_q(loc_nd, var_nd, nodes=101):
    """Nodes z (s, n, d) and weights (s,) such that E_q[f] = sum_s w_s f(z_s)."""
    t = torch.linspace(-7.5, 7.5, nodes)
    t_sd = torch.cartesian_prod(*[t] * loc_nd.shape[-1]).reshape(-1, 1, loc_nd.shape[-1])
    w_s = torch.exp(-0.5 * t_sd.square().sum((1, 2)))
    return loc_nd + var_nd.sqrt() * t_sd, w_s / w_s.sum()


def mean(w_s, f_sn):
    """E_q[f], for f of shape (s, n, ...)."""
    return torch.tensordot(w_s, f_sn, 1)


def prior_point(z_snd, loc_nd, var_nd, prior=vae.prior):
    """Input of the closed forms for a q(z|x) without an x; log p(x|z) is the same in all of them."""
    none = torch.zeros(z_snd.shape[:-1])
    return EvaluationPoint(z_snd, loc_nd, var_nd, prior.log_pi_k, prior.loc_kd, prior.var_kd, none)


def price(loc_nd, var_nd, prior=vae.prior, nodes=101):
    """L_str - E[L_scale]: the price of SCALE's substitution, in nats."""
    z_snd, w_s = under_q(loc_nd, var_nd, nodes)
    at = prior_point(z_snd, loc_nd, var_nd, prior)
    return mean(w_s, collapsed(at).total() - scale(at).total())


n_shown = 50 if SHORT else 200  # number of cells whose price is integrated
loc_nd, var_nd = loc_nd[:n_shown], var_nd[:n_shown]
price_n = price(loc_nd, var_nd)
assert (price_n - price(loc_nd, var_nd, nodes=121)).abs().max() < TOLERANCE

# %% [markdown]
# ## What γ looks like
#
# The color at a point is γ(z) = p(c|z), a mixture of the three components' colors. The ellipses show $q(z|x)$ of three cells, at one
# and two standard deviations. γ is a function of z:
#
# - cell **A** lies inside one component, and γ hardly changes over its $q(z|x)$;
# - cell **B** lies between two components;
# - cell **C** has the widest $q(z|x)$ among the cells whose mean lies inside component 2.
#
# The table gives the price of SCALE's substitution for each of the three (defined below, under *The price*).

# %%
to_center_n = ((loc_nd[:, None] - vae.prior.loc_kd).square() / vae.prior.var_kd).sum(-1).amin(-1)
inside, between = int(to_center_n.argmin()), int(price_n.argmax())
in_2_n = vae.prior.log_responsibilities(loc_nd)[:, 2].exp() > 0.95  # γ at the mean of q
wide = int(torch.where(in_2_n, var_nd.log().sum(-1), -torch.inf).argmax())
named = {"A": inside, "B": between, "C": wide}
colors_k = torch.tensor([to_rgb(c) for c in (ps.pl.PALETTE[0], ps.pl.PALETTE[1], ps.pl.PALETTE[2])])
box = (-4.5, 4.5, -3.4, 4.4)


def field(f, n=160):
    """Evaluate f on a grid of points, as an image."""
    x, y = torch.linspace(*box[:2], n), torch.linspace(*box[2:], n)
    return f(torch.cartesian_prod(y, x).flip(-1)).reshape(n, n, -1).numpy()


def gamma_image(z_md):
    return 1 - 0.55 * (1 - vae.prior.log_responsibilities(z_md).exp() @ colors_k)


def ellipse(ax, loc_d, var_d, sds=(1, 2), **kwargs):
    for s in sds:
        width, height = (2 * s * var_d.sqrt()).tolist()
        ax.add_patch(Ellipse(loc_d.tolist(), width, height, fill=False, **kwargs))


with ps.pl.style():
    figure, ax = plt.subplots(figsize=(5, 4.2), layout="constrained")
    ax.imshow(field(gamma_image), extent=box, origin="lower", aspect="equal")
    ax.scatter(*loc_nd.T, s=6, color="0.2", lw=0, alpha=0.6, label="mean of q(z|x), each cell")
    for c, color in enumerate(colors_k.tolist()):
        mark = vae.prior.loc_kd[c].tolist()
        ax.plot(*mark, "P", ms=9, mfc=color, mec="white", label=f"component {c}")
    for name, n in named.items():
        ellipse(ax, loc_nd[n], var_nd[n], color="black", lw=1.1, ls="--" if name == "C" else "-")
        top = loc_nd[n] + torch.tensor([0, 2]) * var_nd[n].sqrt()
        ax.annotate(
            name,
            top.tolist(),
            (0, 2),
            textcoords="offset points",
            weight="bold",
            size=11,
            ha="center",
        )
    ax.set(xlabel="$z_1$", ylabel="$z_2$", title="γ(z) = p(c|z), and q(z|x) of three cells")
    figure.legend(loc="outside lower center", ncols=4)
plt.show()
pd.DataFrame({"price, nats": price_n[list(named.values())].numpy()}, index=list(named)).round(3)

# %%
z_snd, w_s = under_q(loc_nd, var_nd)
gamma_snk = vae.prior.log_responsibilities(z_snd).exp()
gbar_nk = mean(w_s, gamma_snk)
gamma_variance_n = mean(w_s, (gamma_snk - gbar_nk).square()).sum(-1)
assert gamma_variance_n[inside] < 0.1 * gamma_variance_n[between]
assert price_n[inside] < price_n[wide] < price_n[between]

# %% [markdown]
# ## Two answers, two programs
#
# Every $q(z,c|x)$ can be written as $q(z|x)\,q(c|z,x)$. The only question is whether the second factor may depend on z. The first
# answer on GitHub says that it does: $q(z,c|x) = q(z|x)\,p(c|z)$, the **structured** guide.

# %%
structured = REGISTRY.build(vae, "structured", treatment="sampled")
show(structured.guide)

# %% [markdown]
# The second answer says that it does not: $q(z,c|x) = q(z|x)\,q(c|x)$, the **mean-field** guide. Here it uses the best such $q(c|x)$,
# called $g^*$.

# %%
mean_field_programs = REGISTRY.build(vae, "mean_field", treatment="sampled")
show(mean_field_programs.guide)

# %% [markdown]
# We run both guides for cell B and plot the pairs (z, c) that they draw. Under the structured guide the component depends on the
# position; under the mean-field guide it does not. The third panel shows SCALE, which is explained further below.

# %%
n_draws = 2000
many = CellBatch.from_counts(cells.x_np[[between]].expand(n_draws, -1))  # cell B, many times
programs = {
    "structured: q(z|x) p(c|z)": structured,
    "mean field: q(z|x) g*(c|x)": mean_field_programs,
    "SCALE: c ~ p(c|u), u ~ q(z|x)": REGISTRY.build(vae, "scale", treatment="sampled"),
}
pairs = {}
for title, (_, guide) in programs.items():
    sites = poutine.trace(guide).get_trace(many).nodes
    pairs[title] = sites["z"]["value"], sites["c"]["value"]

with ps.pl.style():
    figure, axes = plt.subplots(
        1, 3, figsize=(7, 2.5), sharex=True, sharey=True, layout="constrained"
    )
    for ax, (title, (z_nd, c_n)) in zip(axes, pairs.items(), strict=True):
        ax.imshow(field(gamma_image), extent=box, origin="lower", alpha=0.6)
        ax.scatter(*z_nd[:500].T, c=colors_k[c_n[:500]].numpy(), s=5, lw=0.15, edgecolors="black")
        ax.set(title=title, xlabel="$z_1$", xlim=(-3.5, 3.5), ylim=(-3.4, 1.5))
    axes[0].set_ylabel("$z_2$")
plt.show()

# %% [markdown]
# As a number: $\sum_c \mathrm{Cov}(1[c], \gamma_c(z))$ over the pairs. Under the structured guide it equals
# $\sum_c \mathrm{Var}\,\gamma_c(z)$, because c and z are dependent (D04.1). Under the other two guides it is zero.

# %%
expected = dict(zip(pairs, (gamma_variance_n[between], 0.0, 0.0), strict=True))
z_star = critical_z(6, n_draws)
for title, (z_nd, c_n) in pairs.items():
    one_hot_nk = torch.nn.functional.one_hot(c_n, 3).double()
    centered_nk = vae.prior.log_responsibilities(z_nd).exp() - gbar_nk[between]
    each_n = (one_hot_nk * centered_nk).sum(-1)
    error = each_n.std() / n_draws**0.5
    print(f"{title:36s} {each_n.mean():7.3f} ± {error:.3f}   exact {expected[title]:.3f}")
    assert abs(each_n.mean() - expected[title]) < z_star * error
assert gamma_variance_n[between] > 2 * z_star * error  # the test has the power to tell them apart

# %% [markdown]
# This answers the first question. $\gamma_c(z) = p(c|z)$ is a valid $q(c|z,x)$, and the best one for a given q(z|x) (D03.3). It is not a
# $q(c|x)$. The two answers on GitHub describe two different joint distributions.
#
# ## Five terms, of which two differ
#
# Any q(z,c|x) gives a lower bound of log p(x), which is an expectation of five terms:
#
# $$E_{q(z,c|x)}\big[\log p(x|z) + \log p(z|c) + \log p(c) - \log q(z|x) - \log q(c|\cdot)\big].$$
#
# The closed forms compute each term by a function of `pyro_scale.objectives.terms`, without Pyro. The table below is for cell B. The
# mean-field bound is taken at $\bar g = E_{q(z|x)}[\gamma(z)]$, so that all three rows use the same probabilities of c.

# %%
one = CellBatch.from_counts(cells.x_np[[between]])
z_s1d, w_s = under_q(*vae.encoder(one))
at = evaluate(vae, one, z_s1d)
gbar_1k = mean(w_s, at.log_gamma_nk.exp())
closed_forms = {
    "structured": collapsed(at),
    "SCALE": scale(at),
    "mean field at ḡ": mean_field(at, gbar_1k.log()),
}
names = ["log p(x|z)", "log p(z|c)", "log p(c)", "-log q(z|x)", "-log q(c|.)"]
terms = pd.DataFrame(
    {
        bound: [float(mean(w_s, term.expand(len(w_s), 1))) for term in five]
        for bound, five in closed_forms.items()
    },
    index=names,
).T
terms["sum"] = terms.sum(axis=1)
terms.round(3)

# %%
from_scale = terms - terms.loc["SCALE"]
with ps.pl.style():
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.4), sharey=True, layout="constrained")
    for ax, bound, color in zip(
        axes, ["structured", "mean field at ḡ"], ps.pl.PALETTE, strict=False
    ):
        values = from_scale.loc[bound, names]
        ax.bar(names, values, color=color, width=0.6)
        ax.axhline(0, color="black", lw=0.6)
        ax.set_title(f"{bound}, minus SCALE")
        ax.tick_params(axis="x", rotation=30)
        for i, value in enumerate(values):
            text = f"{value:.3f}" if abs(value) > TOLERANCE else "0"
            ax.annotate(
                text, (i, max(value, 0)), (0, 2), textcoords="offset points", ha="center", size=7
            )
    axes[0].set_ylabel("nats")
    axes[0].margins(y=0.15)
plt.show()

# %% [markdown]
# **SCALE is a hybrid** (D04.6). It differs from each of the two bounds in exactly one term: its log p(z|c) is that of the mean-field
# bound, and its $-\log q(c|\cdot)$ is that of the structured bound. Neither answer on GitHub describes the whole loss; each describes one
# term of it.

# %%
same = from_scale.abs() < TOLERANCE
assert same.loc["structured", names].tolist() == [True, False, True, True, True]
assert same.loc["mean field at ḡ", names].tolist() == [True, True, True, True, False]
assert (from_scale.loc[["structured", "mean field at ḡ"], "sum"] > 0.01).all()

# %% [markdown]
# ## The question that nobody answered
#
# Why is $E_{q(z,c|x)}[\log p(c)]$ computed with γ alone? Because $\log \pi_c$ does not depend on z, it can be taken out of the
# expectation over z (D04.3):
#
# $$E_{q(z,c|x)}[\log p(c)] = \int q(z|x) \sum_c \gamma_c(z) \log \pi_c \, dz = \sum_c \bar g_c \log \pi_c .$$
#
# Only the marginal probabilities of c matter, not the dependence between c and z. Evaluating γ at a single z therefore gives an unbiased
# estimate, and so does $\log \pi_c$ at a c drawn by the structured guide.

# %%
log_pi_k = vae.prior.log_pi_k
z_nd, c_n = pairs["structured: q(z|x) p(c|z)"]
exact = gbar_1k[0] @ log_pi_k
estimates = {
    "log π at a drawn c": log_pi_k[c_n],
    "Σ γ(z) log π at a drawn z (SCALE)": vae.prior.log_responsibilities(z_nd).exp() @ log_pi_k,
}
wrong = at.log_g_star_nk[0].exp() @ log_pi_k  # g* has other probabilities of c
for name, each_n in estimates.items():
    error = each_n.std() / n_draws**0.5
    print(f"{name:38s} {each_n.mean():.4f} ± {error:.4f}")
    assert abs(each_n.mean() - exact) < z_star * error < abs(each_n.mean() - wrong)
print(f"{'Σ ḡ log π, exact':38s} {exact:.4f}\n{'Σ g* log π, another q(c|x)':38s} {wrong:.4f}")

# %% [markdown]
# ## The price
#
# The difference between the structured bound and SCALE's bound is a covariance. It also equals a Jeffreys divergence, that is, KL in both
# directions between $g^*$ and γ(z) (D05.6, D05.7):
#
# $$L_{\mathrm{str}} - E[L_{\mathrm{scale}}] = \sum_c \mathrm{Cov}_q\big(\gamma_c(z), \log p(z|c)\big) = E_q\big[\mathrm{KL}(g^* \| \gamma(z)) + \mathrm{KL}(\gamma(z) \| g^*)\big] .$$


# %%
def kl(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum(-1)


z_snd, w_s = under_q(loc_nd, var_nd)
at = prior_point(z_snd, loc_nd, var_nd)
log_gamma, log_g_star = at.log_gamma_nk, at.log_g_star_nk
jeffreys_n = mean(w_s, kl(log_g_star, log_gamma) + kl(log_gamma, log_g_star))
covariance_n = mean(w_s, ((log_gamma.exp() - gbar_nk) * at.log_p_z_given_c_nk).sum(-1))
assert (jeffreys_n - price_n).abs().max() < TOLERANCE
assert (covariance_n - price_n).abs().max() < TOLERANCE
assert (price_n > 0).all()

# %% [markdown]
# VaDE's argument, which SCALE's derivation follows, asks for the q(c|x) that minimizes $E_q\,\mathrm{KL}(q(c|x) \| p(c|z))$. That
# minimizer is $g^*$, the normalized *geometric* mean of p(c|z) (D05.9). It is neither ḡ, the arithmetic mean, nor γ at one sample:

# %%
geometric_nk = mean(w_s, log_gamma).softmax(-1)
assert (geometric_nk - log_g_star.exp()).abs().max() < TOLERANCE
three = {
    "γ at the mean of q": vae.prior.log_responsibilities(loc_nd[between]).exp(),
    "ḡ": gbar_nk[between],
    "g*": log_g_star[between].exp(),
}
assert (three["ḡ"] - three["g*"]).abs().max() > 0.01
pd.DataFrame({name: value.numpy() for name, value in three.items()}).T.rename_axis("cell B").round(
    3
)

# %% [markdown]
# ## Where the price is high
#
# Three plots of the price:
#
# - **Left**: at every point m, for a q(z|x) of the median width centered at m. The dots are the cells, each with its own width.
# - **Middle**: the mean of q moves from component 0 to component 1, for a narrow and for wide q.
# - **Right**: two components of unit variance move apart, with q inside one of them or half-way between them.

# %%
typical_var_d = var_nd.quantile(0.5, 0)
m_d = torch.linspace(0, 1, 41)[:, None]
path_nd = vae.prior.loc_kd[0] * (1 - m_d) + vae.prior.loc_kd[1] * m_d
widths = (0.15, 0.5, 1.0)
slides = {s: price(path_nd, torch.full_like(path_nd, s**2)) for s in widths}

distance_n = torch.linspace(0.5, 30, 60)
zero_n1 = torch.zeros(60, 1)
apart = SimpleNamespace(
    log_pi_k=torch.full((2,), 0.5).log(),
    loc_kd=torch.stack([-distance_n / 2, distance_n / 2], -1)[..., None],  # a prior per distance
    var_kd=torch.ones(1, 2, 1),
)
half_way = price(zero_n1, zero_n1 + 1.0, apart, nodes=3001)
in_one = price(distance_n[:, None] / 2, zero_n1 + 0.49, apart, nodes=3001)
limit = distance_n / (2 * torch.pi) ** 0.5


def landscape(z_md):
    parts = [price(part, typical_var_d.expand_as(part), nodes=31) for part in z_md.split(500)]
    return torch.cat(parts)


with ps.pl.style():
    figure, axes = plt.subplots(
        1, 3, figsize=(7.2, 2.7), layout="constrained", width_ratios=(1.25, 1, 1)
    )
    limits = {"vmin": 0, "vmax": float(price_n.quantile(0.95)), "cmap": "cividis"}
    axes[0].imshow(
        field(landscape, 30 if SHORT else 80),
        extent=box,
        origin="lower",
        aspect="auto",
        interpolation="bilinear",
        **limits,
    )
    dots = axes[0].scatter(*loc_nd.T, c=price_n, s=13, edgecolors="white", lw=0.5, **limits)
    figure.colorbar(
        dots, ax=axes[0], label="price, nats", location="bottom", aspect=30, extend="max"
    )
    axes[0].set(title="everywhere", xlabel="$z_1$", ylabel="$z_2$", xlim=box[:2], ylim=box[2:])
    styles = zip(slides.items(), ("-", "--", ":"), ps.pl.PALETTE, strict=False)
    for (s, values), line, color in styles:
        axes[1].plot(m_d, values, line, color=color, label=f"σ = {s}")
    axes[1].set(title="q from 0 to 1", ylabel="price, nats", ylim=(0, None))
    axes[1].set_xticks([0, 0.5, 1], ["inside 0", "half-way", "inside 1"])
    axes[1].legend()
    axes[2].plot(distance_n, half_way, color=ps.pl.PALETTE[3], label="q half-way")
    axes[2].plot(distance_n, limit, "k:", lw=1, label=r"$d\,\sigma/\sqrt{2\pi}$")
    axes[2].plot(distance_n, in_one, "--", color=ps.pl.PALETTE[2], label="q inside one")
    axes[2].set(
        title="two components",
        xlabel="distance d, component s.d.",
        ylabel="price, nats",
        yscale="log",
        ylim=(1e-4, 40),
    )
    axes[2].legend(loc="center right")
plt.show()

# %% [markdown]
# - For a narrow q the price is proportional to σ² (D05.11). It is highest for a wide q between components.
# - *"Well-separated clusters make γ one-hot, so the substitution is free"* is **false** (D05.13). It is free if q also lies inside one of
#   the components (D05.12). Half-way between them, the price grows with the distance, without limit.

# %%
narrow = price(path_nd[[20]], torch.full((1, 2), 1e-4)) / price(
    path_nd[[20]], torch.full((1, 2), 4e-4)
)
assert abs(narrow - 0.25) < 0.01  # half the width, a quarter of the price
assert all((slides[a] < slides[b]).all() for a, b in itertools.pairwise(widths))
assert (half_way.diff() > 0).all()
assert abs(half_way[-1] - limit[-1]) < 0.01 * limit[-1]
assert in_one[-1] < TOLERANCE < in_one.max()

# %% [markdown]
# ## The ladder
#
# The price is the sum of three gaps. Above them is the gap of q(z|x) itself. From log p(x) down to SCALE's bound:
#
# | gap | equals exactly | claim |
# |---|---|---|
# | $\log p(x) - L_{\mathrm{str}}$ | $\mathrm{KL}(q(z\vert x) \,\Vert\, p(z\vert x))$ | D05.1 |
# | $L_{\mathrm{str}} - L_{\mathrm{mf}}(g^*)$ | $E_q\,\mathrm{KL}(g^* \,\Vert\, \gamma(z))$ | D05.2 |
# | $L_{\mathrm{mf}}(g^*) - L_{\mathrm{mf}}(\bar g)$ | $\mathrm{KL}(\bar g \,\Vert\, g^*)$ | D05.3 |
# | $L_{\mathrm{mf}}(\bar g) - E[L_{\mathrm{scale}}]$ | $E_q\,\mathrm{KL}(\gamma(z) \,\Vert\, \bar g)$ | D05.4 |
#
# `ps.ladder` integrates both columns, by different quadrature rules. It takes a trained `ps.SCALE` or, as here, a `MixtureVAE`.

# %%
n_ladder = 15 if SHORT else 60
rungs = ps.ladder(vae, cells.x_np[:n_ladder].numpy(), n_cells=n_ladder)
rungs.plot()

# %%
rungs.summary().round(4)

# %%
frame = rungs.to_frame()
below = frame[["gap_optimal", "gap_averaged", "gap_scale"]].sum(axis=1)
assert rungs.max_discrepancy < 1e-8
assert (frame.filter(like="gap_") > -1e-8).all().all()  # log p(x) and four bounds, in this order
assert np.abs(below - price_n[:n_ladder].numpy()).max() < 1e-8

# %% [markdown]
# In expectation over z, SCALE's objective **is** therefore a lower bound of log p(x), only a looser one. (At a single z it may exceed
# log p(x): D04.14.)
#
# ## SCALE's loss as the ELBO of a program
#
# Is there a guide whose ELBO this is? Yes, with one more variable: u, a second, independent draw from the encoder's q(z|x), on which c
# depends instead of z (D06.1). u has the same density in the model and in the guide, so it cancels.

# %%
auxiliary = REGISTRY.build(vae, "scale")
show(auxiliary.guide)
show(auxiliary.model)

# %% [markdown]
# The ELBO of this program, with c enumerated by Pyro, averages to SCALE's bound and to none of the others.
#
# There is a second way. `TraceEnumMeanField_ELBO` replaces the two log-densities of z by their expectations under q(z|x). On the
# *structured* guide it computes SCALE's loss **exactly**, sample by sample (D06.5).

# %%
n_runs = 4000
many = CellBatch.from_counts(cells.x_np[[between]].expand(n_runs, -1))
z_s1d, w_s = under_q(*vae.encoder(one))
at = evaluate(vae, one, z_s1d)
bounds = {
    "structured": float(mean(w_s, collapsed(at).total())),
    "mean field at g*": float(mean(w_s, mean_field(at).total())),
    "mean field at ḡ": float(mean(w_s, mean_field(at, gbar_1k.log()).total())),
    "SCALE": float(mean(w_s, scale(at).total())),
}
auxiliary_elbo = Objective(vae, "scale", "TraceEnum_ELBO")
runs = torch.tensor([-auxiliary_elbo.loss(many) / n_runs for _ in range(20)])
error, z_star = runs.std() / len(runs) ** 0.5, critical_z(4, len(runs))
print(f"auxiliary program: {runs.mean():.4f} ± {error:.4f}")
print(pd.Series(bounds).round(4).to_string())
assert abs(runs.mean() - bounds["SCALE"]) < z_star * error
assert all(
    abs(runs.mean() - value) > z_star * error for name, value in bounds.items() if name != "SCALE"
)

# %%
vae.requires_grad_(True)
run = estimate_objective(vae, Objective(vae, "structured", "TraceEnumMeanField_ELBO"), cells)
closed_form = scale(evaluate(vae, cells, run.z_nd)).total().sum().item()
print(f"Pyro {-run.loss:.9f}, closed form {closed_form:.9f}")
assert abs(-run.loss - closed_form) < TOLERANCE * abs(closed_form)

# %% [markdown]
# ## Answers
#
# | question | answer | claim |
# |---|---|---|
# | Is q(c\|x) = p(c\|z)? | No. p(c\|z) is the best q(c\|z,x). A q(c\|x) cannot depend on z; the best one is g*. | D03.3, D05.8 |
# | Is q(z,c\|x) = q(z\|x) q(c\|x)? | It may be chosen so. It is not what the loss uses throughout. | D03.2, D04.7 |
# | Why γ alone in E[log p(c)]? | log p(c) does not depend on z: only the probabilities of c matter, and γ(z) estimates them without bias. | D04.3 |
# | What does the loss compute? | log p(z\|c) as in the mean-field bound, −log q(c\|·) as in the structured bound; the other three terms are the same in both. | D04.6 |
# | Is it a bound? | In expectation, yes: it is the ELBO of a program with an auxiliary draw. | D06.1 |
# | What does it cost? | A Jeffreys divergence: zero where γ is constant over q(z\|x), large between components. | D05.6, D05.13 |
#
# Recommendation: use `formulation="collapsed"`, the default of `ps.SCALE`, whose bound is the tightest of these at the same parameters.
# [The next notebook](02_estimators_side_by_side.ipynb) compares the estimators.
