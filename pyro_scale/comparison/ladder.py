r"""The ladder of bounds below log p(x), with each gap computed in two ways.

.. math::
    \log p(x) - L_{str} &= KL(q(z|x) \,\|\, p(z|x)) \\
    L_{str} - L_{mf}(g^*) &= E_q KL(g^* \,\|\, \gamma(z)) \\
    L_{mf}(g^*) - L_{mf}(\bar g) &= KL(\bar g \,\|\, g^*) \\
    L_{mf}(\bar g) - E[L_{SCALE}] &= E_q KL(\gamma(z) \,\|\, \bar g)

Here gamma(z) = p(c|z), gbar is its mean under q(z|x), and g* is the optimal q(c|x) among those
independent of z. L_str is the bound with c summed out, L_mf(g) the mean-field bound with
q(c|x) = g, and L_SCALE minus the loss of SCALE. The left sides are differences of bounds, the right
sides divergences. Both are computed by different integration rules (D <= 2) or from different draws
(D > 2), so that their agreement is an independent check. See ``derivations/``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from torch import Tensor

from pyro_scale._locking import exclusive
from pyro_scale._validation import check_int
from pyro_scale.analysis.diagnostics import pareto_k
from pyro_scale.comparison.compare import prepare
from pyro_scale.comparison.quadrature import (
    Rule,
    converge,
    gauss_hermite,
    half_width,
    legendre,
    posterior_mode,
    trapezoid,
)
from pyro_scale.config import ModelLike
from pyro_scale.objectives import EvaluationPoint, evaluate, terms
from pyro_scale.programs import CellBatch, MixtureVAE, rsample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Ladder",
    "Rungs",
    "by_monte_carlo",
    "by_quadrature",
    "ladder",
]

_GAPS = ("posterior", "optimal", "averaged", "scale")


@dataclass(frozen=True)
class Ladder:
    """Log p(x), four lower bounds of it and the gap above each bound, per cell, in nats.

    Attributes
    ----------
    frame
        Data frame that :meth:`to_frame` describes.
    settings
        Method of integration, numbers of cells and latent dimensions, seed, and number of warm-up
        steps.

    Examples
    --------
    >>> model = ps.SCALE(adata, n_components=2, n_latent=2, hidden=(8,))
    >>> rungs = ps.ladder(model, n_cells=2)
    >>> rungs.to_frame().shape, rungs.summary().index.tolist()
    ((2, 17), ['gap_posterior', 'gap_optimal', 'gap_averaged', 'gap_scale'])
    >>> rungs.max_discrepancy < 1e-8
    True
    >>> figure = rungs.plot()
    """

    frame: pd.DataFrame
    settings: dict[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """Return a data frame with one row per cell.

        The columns are ``log_px``; the bounds ``structured`` (L_str), ``optimal`` (L_mf at g*),
        ``averaged`` (L_mf at gbar) and ``scale`` (E[L_SCALE]); the gap above each bound, both as a
        difference of bounds (``gap_posterior``, ``gap_optimal``, ``gap_averaged``, ``gap_scale``)
        and as a divergence (``kl_...``); and ``error_...``, the numerical error of the difference
        between ``gap_...`` and ``kl_...``. By quadrature, the error is the change by the last
        doubling of the number of nodes; by Monte Carlo, it is the standard error.

        For D > 2, ``log_px`` is the importance-weighted bound. ``gap_posterior`` is therefore too
        small on average, and ``kl_posterior`` is not available (NaN). Two columns are added:
        ``khat``, the Pareto k-hat of the importance weights, and ``doubling``, the change of
        ``kl_averaged`` when gbar is averaged over twice as many draws.
        """
        return self.frame.copy()

    def summary(self) -> pd.DataFrame:
        """Return mean, 95th percentile and maximum over cells of each gap.

        A gap is taken as the divergence (``kl_...``), which has less Monte Carlo noise, or as the
        difference of bounds (``gap_...``) where the divergence is not available.
        """
        gaps = self._gaps()
        return pd.DataFrame(
            {"mean": gaps.mean(), "p95": gaps.quantile(0.95), "largest": gaps.max()}
        )

    def _gaps(self) -> pd.DataFrame:
        """Return the gaps as divergences where available, else as differences of bounds."""
        gaps = {
            f"gap_{name}": self.frame[f"kl_{name}"].fillna(self.frame[f"gap_{name}"])
            for name in _GAPS
        }
        return pd.DataFrame(gaps)

    @property
    def max_discrepancy(self) -> float:
        """Largest difference between the two computations of a gap, over cells and gaps, in nats.

        Each gap is computed as a difference of bounds and as a divergence. Gaps whose divergence
        is not available are left out.
        """
        differences = [
            (self.frame[f"gap_{name}"] - self.frame[f"kl_{name}"]).abs().max()
            for name in _GAPS
            if self.frame[f"kl_{name}"].notna().all()
        ]
        return float(max(differences))

    def plot(self) -> Figure:
        """Plot the gaps as one stacked bar per cell."""
        from pyro_scale.plotting import ladder as draw  # matplotlib takes long to import

        return draw(self._gaps())


@exclusive()
def ladder(
    model: ModelLike | MixtureVAE,
    adata_or_x: AnnData | NDArray[Any] | None = None,
    *,
    n_cells: int = 32,
    n_samples: int = 1000,
    seed: int = 0,
    warmup_steps: int | None = None,
) -> Ladder:
    """Compute the ladder of bounds below log p(x) at a model's parameters.

    Parameters
    ----------
    model
        A :class:`pyro_scale.SCALE` or a :class:`pyro_scale.programs.MixtureVAE`; it is not
        changed.
    adata_or_x, n_cells, seed, warmup_steps
        Cells, their number, the seed and the warm-up, as in :func:`pyro_scale.compare`.
    n_samples
        Number of draws of z per cell if D > 2.

    Returns
    -------
    Ladder
        Bounds and gaps per cell: by quadrature, with the nodes doubled until convergence, if
        D <= 2; by Monte Carlo, with standard errors, if D > 2.

    Raises
    ------
    ValueError
        If ``n_samples`` is below 100 or ``n_cells`` below one, or if the peaks do not match.
    NonFiniteError
        If the warm-up steps lead to parameters that are not finite.

    Examples
    --------
    >>> model = ps.SCALE(adata, n_components=2, n_latent=2, hidden=(8,))
    >>> rungs = ps.ladder(model, n_cells=2)
    >>> rungs.frame.shape, rungs.max_discrepancy < 1e-8
    ((2, 17), True)
    """
    check_int("n_samples", n_samples, least=100)  # for standard errors
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPUs
        vae, cells, steps = prepare(
            model, adata_or_x, n_cells=n_cells, seed=seed, warmup_steps=warmup_steps
        )
        quadrature = vae.n_latent <= 2
        rungs = by_quadrature(vae, cells) if quadrature else by_monte_carlo(vae, cells, n_samples)
    settings = {
        "method": "quadrature" if quadrature else f"Monte Carlo, {n_samples} draws",
        "n_cells": cells.n_cells,
        "n_latent": vae.n_latent,
        "seed": seed,
        "warmup_steps": steps,
    }
    return Ladder(_to_frame(rungs), settings)


def _to_frame(rungs: Rungs) -> pd.DataFrame:
    columns: dict[str, Tensor] = {"log_px": rungs.log_px}
    columns |= dict(zip(("structured", *_GAPS[1:]), rungs.bounds, strict=True))
    upper = (rungs.log_px, *rungs.bounds[:-1])
    for name, above, below in zip(_GAPS, upper, rungs.bounds, strict=True):
        columns[f"gap_{name}"] = above - below
    for name, divergence, error in zip(_GAPS, rungs.divergences, rungs.errors, strict=True):
        columns[f"kl_{name}"], columns[f"error_{name}"] = divergence, error
    columns |= rungs.extra
    return pd.DataFrame({name: value.numpy() for name, value in columns.items()})


_TOLERANCE = 1e-9  # change that ends the doubling of nodes; the error is then far smaller
_TINY = 1e-300  # floor of gbar before its logarithm is taken
_MAX_OUTPUTS = 2e7  # decoder outputs held in memory at a time


class Rungs(NamedTuple):
    """The bounds of the ladder and the gaps per cell, in nats; every tensor has shape ``(n,)``.

    Attributes
    ----------
    log_px
        log p(x), or its importance-weighted bound for D > 2.
    bounds
        The bounds L_str, L_mf(g*), L_mf(gbar), E[L_SCALE].
    divergences
        The divergences KL(q || p(z|x)), E KL(g* || gamma), KL(gbar || g*), E KL(gamma || gbar),
        where gamma = p(c|z).
    errors
        Numerical error of the difference between each gap and its divergence.
    extra
        Additional columns by name.
    """

    log_px: Tensor
    bounds: tuple[Tensor, ...]
    divergences: tuple[Tensor, ...]
    errors: tuple[Tensor, ...]
    extra: dict[str, Tensor]


class _Mixture(NamedTuple):
    """log p(z) and log p(c|z) at m nodes or draws of z per cell, without the decoder."""

    log_p_z_mn: Tensor
    log_gamma_mnk: Tensor


def _mixture(at: EvaluationPoint, z_mnd: Tensor) -> _Mixture:
    log_p_z_given_c_mnk = terms.log_p_z_given_c(z_mnd, at.loc_kd, at.var_kd)
    joint_mnk = at.log_pi_k + log_p_z_given_c_mnk
    log_p_z_mn = joint_mnk.logsumexp(-1)
    return _Mixture(log_p_z_mn, joint_mnk - log_p_z_mn.unsqueeze(-1))


def _nodes(rule: Rule, loc_nd: Tensor, root_ndd: Tensor) -> tuple[Tensor, Tensor]:
    """Map the nodes x of a rule to z = loc + root x, ``(m, n, d)``, with log weights ``(m, n)``."""
    z_mnd = loc_nd + torch.einsum("nde,me->mnd", root_ndd, rule.x_md)
    return z_mnd, rule.log_w_m[:, None] + torch.linalg.slogdet(root_ndd).logabsdet


def _log_lik(vae: MixtureVAE, cells: CellBatch, at: EvaluationPoint, z_mnd: Tensor) -> Tensor:
    """Evaluate log p(x|z) at m values of z per cell, shape ``(m, n)``, in chunks."""
    chunk = max(1, int(_MAX_OUTPUTS / cells.x_np.numel()))
    moments = (at.loc_nd, at.var_nd)
    return torch.cat(
        [evaluate(vae, cells, z, moments=moments).log_lik_n for z in z_mnd.split(chunk)]
    )


def by_quadrature(vae: MixtureVAE, cells: CellBatch) -> Rungs:
    """Compute the bounds and gaps for D <= 2 by quadrature.

    The number of nodes is doubled for each cell separately until its results converge.

    Differences of bounds are integrated over q(z|x) by Gaussian quadrature: Gauss-Hermite for the
    log-likelihood, which is smooth over q(z|x), and Gauss-Legendre in panels for the mixture, whose
    p(c|z) may be too steep for Gauss-Hermite. Divergences are integrated by the trapezoidal rule.
    log p(x) is the sum over components of the integrals of p(x|z) p(z|c) p(c), each around its own
    mode (:func:`_regions`), by the trapezoidal rule for the difference of bounds and by
    Gauss-Legendre for the divergence.
    """
    parts = [_one_cell(vae, cells.take(slice(n, n + 1))) for n in range(cells.n_cells)]

    def column(groups: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        return tuple(torch.cat(values) for values in zip(*groups, strict=True))

    return Rungs(
        log_px=torch.cat([part.log_px for part in parts]),
        bounds=column([part.bounds for part in parts]),
        divergences=column([part.divergences for part in parts]),
        errors=column([part.errors for part in parts]),
        extra={},
    )


class _Region(NamedTuple):
    """Where p(x,z,c) of a cell has its mass in z, for one component c.

    Attributes
    ----------
    c
        Index of the component.
    mode_nd, root_ndd
        The mode, shape ``(1, d)``, and a root of the Laplace covariance, ``(1, d, d)``.
    width
        Half the side of the box around the mode, in units of the root.
    """

    c: int
    mode_nd: Tensor
    root_ndd: Tensor
    width: float


_NEGLIGIBLE = 60.0  # nats below the largest component, by Laplace's approximation


def _log_p_zc(at: EvaluationPoint, z_mnd: Tensor) -> Tensor:
    """Return log p(z,c) at m values of z per cell, shape ``(m, n, k)``."""
    return at.log_pi_k + terms.log_p_z_given_c(z_mnd, at.loc_kd, at.var_kd)


def _regions(vae: MixtureVAE, cells: CellBatch, at: EvaluationPoint) -> list[_Region]:
    """Find where p(x,z,c) of a cell has its mass, for each component c that matters.

    The posterior p(z|x) may have a mode per component, far from each other, and an integral around
    one of them misses the others. For one component, p(x|z) p(z|c) has a single mode if the decoder
    is linear: its logarithm is then concave in z, for both likelihoods of this package. With hidden
    layers it may have several. The search then starts from points around the component's mean and
    from the encoder's mean, and the box is widened until it holds all modes that were found.
    """
    d, n_components = vae.n_latent, len(at.log_pi_k)
    steps = torch.cat([torch.zeros(1, d), *(s * torch.eye(d) for s in (-2, -1, 1, 2))])
    if not len(vae.likelihood.hidden):
        steps = steps[:1]
    around = at.loc_kd[:, None] + steps.to(at.var_kd) * at.var_kd.sqrt()[:, None]
    start_ksd = torch.cat([around, at.loc_nd.expand(n_components, 1, d)], 1)
    n_starts = start_ksd.shape[1]
    c_s = torch.arange(n_components).repeat_interleave(n_starts)

    def log_joint(z_sd: Tensor) -> Tensor:
        z_mnd = z_sd.unsqueeze(1)
        rows = torch.arange(len(z_sd))
        return _log_lik(vae, cells, at, z_mnd)[:, 0] + _log_p_zc(at, z_mnd)[rows, 0, c_s]

    with torch.enable_grad():
        mode_sd, root_sdd = posterior_mode(log_joint, start_ksd.reshape(-1, d))
    value_ks = log_joint(mode_sd).view(n_components, n_starts)
    best_k = value_ks.argmax(1) + n_starts * torch.arange(n_components)
    mass_k = value_ks.amax(1) + torch.linalg.slogdet(root_sdd[best_k]).logabsdet
    regions = []
    for c in range(n_components):
        if mass_k[c] < mass_k.max() - _NEGLIGIBLE:
            continue
        best = int(best_k[c])
        mode_nd, root_ndd = mode_sd[best : best + 1], root_sdd[best : best + 1]

        def around_mode(
            x_md: Tensor, c: int = c, mode_nd: Tensor = mode_nd, root_ndd: Tensor = root_ndd
        ) -> Tensor:
            z_mnd, _ = _nodes(Rule(x_md, torch.zeros(len(x_md))), mode_nd, root_ndd)
            return _log_lik(vae, cells, at, z_mnd)[:, 0] + _log_p_zc(at, z_mnd)[:, 0, c]

        found_sd = mode_sd.view(n_components, n_starts, d)[c]
        near_s = value_ks[c] > value_ks[c].max() - _NEGLIGIBLE
        away_sd = torch.linalg.solve(root_ndd[0], (found_sd[near_s] - mode_nd).T).T
        width = half_width(around_mode, d, least=9 + float(away_sd.abs().max()))
        regions.append(_Region(c, mode_nd, root_ndd, width))
    return regions


@torch.no_grad()
def _one_cell(vae: MixtureVAE, cells: CellBatch) -> Rungs:
    d = vae.n_latent
    loc_nd, var_nd = vae.encoder(cells)
    at = evaluate(vae, cells, loc_nd, moments=(loc_nd, var_nd))
    root_q = torch.diag_embed(var_nd.sqrt())
    e_nk = at.log_pi_k + at.expected_log_p_z_given_c_nk
    log_g_star_nk = at.log_g_star_nk

    def under_q(rule: Rule) -> tuple[_Mixture, Tensor, Tensor]:
        z_mnd, log_w_mn = _nodes(rule, loc_nd, root_q)
        weight_mn = (log_w_mn + terms.log_q_z(z_mnd, loc_nd, var_nd)).exp()
        return _mixture(at, z_mnd), weight_mn, z_mnd

    def average_gamma(m: _Mixture, weight_mn: Tensor) -> Tensor:
        return (weight_mn.unsqueeze(-1) * m.log_gamma_mnk.exp()).sum(0)

    def bounds(n: int) -> Tensor:
        m, weight_mn, _ = under_q(legendre(n, d))
        gbar_nk = average_gamma(m, weight_mn)
        scale_mn = (m.log_gamma_mnk.exp() * (e_nk - m.log_gamma_mnk)).sum(-1)
        return torch.stack(
            [
                (weight_mn * m.log_p_z_mn).sum(0),
                e_nk.logsumexp(-1),
                (gbar_nk * e_nk - torch.xlogy(gbar_nk, gbar_nk)).sum(-1),
                (weight_mn * scale_mn).sum(0),
            ]
        )

    def divergences(n: int) -> Tensor:
        m, weight_mn, _ = under_q(trapezoid(n, d))
        log_gbar_nk = average_gamma(m, weight_mn).clamp_min(_TINY).log()
        return torch.stack(
            [
                (weight_mn * terms.kl_categorical(log_g_star_nk, m.log_gamma_mnk)).sum(0),
                terms.kl_categorical(log_gbar_nk, log_g_star_nk),
                (weight_mn * terms.kl_categorical(m.log_gamma_mnk, log_gbar_nk)).sum(0),
            ]
        )

    regions = _regions(vae, cells, at)

    def log_px(rule: Callable[[int, int, float], Rule]) -> Callable[[int], Tensor]:
        def integrate(n: int) -> Tensor:
            parts = []
            for region in regions:
                nodes = rule(n, d, region.width)
                z_mnd, log_w_mn = _nodes(nodes, region.mode_nd, region.root_ndd)
                log_joint_mn = _log_lik(vae, cells, at, z_mnd) + _log_p_zc(at, z_mnd)[..., region.c]
                parts.append((log_w_mn + log_joint_mn).logsumexp(0))
            return torch.stack(parts).logsumexp(0)

        return integrate

    def expected_log_lik(n: int) -> Tensor:
        _, weight_mn, z_mnd = under_q(gauss_hermite(n, d))
        return (weight_mn * _log_lik(vae, cells, at, z_mnd)).sum(0)

    def cross_entropy(n: int) -> Tensor:
        m, weight_mn, z_mnd = under_q(trapezoid(n, d))
        log_q_mn = terms.log_q_z(z_mnd, loc_nd, var_nd)
        log_joint_mn = _log_lik(vae, cells, at, z_mnd) + m.log_p_z_mn
        return (weight_mn * (log_q_mn - log_joint_mn)).sum(0)

    stop = 512 if d == 2 else 8192  # nodes per dimension
    bounds_4n, bounds_change = converge(bounds, 32, stop, _TOLERANCE)
    divergences_3n, divergences_change = converge(divergences, 33, stop, _TOLERANCE)
    log_px_n, log_px_change = converge(log_px(trapezoid), 24, stop, _TOLERANCE)
    log_z_n, log_z_change = converge(log_px(legendre), 32, stop, _TOLERANCE)
    r_n, r_change = converge(expected_log_lik, 12, 96, _TOLERANCE)
    cross_n, cross_change = converge(cross_entropy, 24, stop, _TOLERANCE)
    return Rungs(
        log_px=log_px_n,
        bounds=tuple(r_n + terms.entropy_z(var_nd) + bounds_4n),
        divergences=(cross_n + log_z_n, *divergences_3n),
        errors=(
            log_px_change + log_z_change + r_change + cross_change + bounds_change[0],
            *(bounds_change[:-1] + bounds_change[1:] + divergences_change),
        ),
        extra={},
    )


@torch.no_grad()
def by_monte_carlo(vae: MixtureVAE, cells: CellBatch, n_samples: int) -> Rungs:
    """Compute the bounds and gaps for D > 2 by Monte Carlo.

    The bounds are averages over one set of draws of z, the divergences over another, independent
    set.
    """
    loc_nd, var_nd = vae.encoder(cells)
    at = evaluate(vae, cells, loc_nd, moments=(loc_nd, var_nd))
    e_nk = at.log_pi_k + at.expected_log_p_z_given_c_nk
    log_g_star_nk = at.log_g_star_nk
    entropy_n = terms.entropy_z(var_nd)

    def draws() -> Tensor:
        noise = torch.randn(n_samples, *loc_nd.shape, dtype=loc_nd.dtype)
        z_snd: Tensor = rsample(loc_nd, var_nd, noise)
        return z_snd

    def error(values_sn: Tensor) -> Tensor:
        return values_sn.std(0) / math.sqrt(n_samples)

    # First set of draws: the bounds, and log p(x) by importance weighting.
    z_snd = draws()
    m = _mixture(at, z_snd)
    log_lik_sn = _log_lik(vae, cells, at, z_snd)
    gamma_snk = m.log_gamma_mnk.exp()
    gbar_nk = gamma_snk.mean(0)
    scale_sn = (gamma_snk * (e_nk - m.log_gamma_mnk)).sum(-1)
    # The mean over draws is the part of L_mf(gbar) that depends on c.
    averaged_sn = (gamma_snk * (e_nk - gbar_nk.clamp_min(_TINY).log())).sum(-1)
    log_w_sn = log_lik_sn + m.log_p_z_mn - terms.log_q_z(z_snd, loc_nd, var_nd)
    khat = pareto_k(log_w_sn.numpy())
    common_n = log_lik_sn.mean(0) + entropy_n

    # Second set of draws: the divergences.
    other = _mixture(at, draws())
    other_gamma_snk = other.log_gamma_mnk.exp()
    log_gbar_nk = other_gamma_snk.mean(0).clamp_min(_TINY).log()
    kl_optimal_sn = terms.kl_categorical(log_g_star_nk, other.log_gamma_mnk)
    kl_scale_sn = terms.kl_categorical(other.log_gamma_mnk, log_gbar_nk)
    influence_sn = (other_gamma_snk * (log_gbar_nk - log_g_star_nk)).sum(-1)
    both_nk = (gbar_nk + log_gbar_nk.exp()) / 2  # gbar averaged over both sets of draws
    doubled_n = terms.kl_categorical(both_nk.clamp_min(_TINY).log(), log_g_star_nk)

    missing = torch.full_like(entropy_n, torch.nan)
    return Rungs(
        log_px=log_w_sn.logsumexp(0) - math.log(n_samples),
        bounds=(
            common_n + m.log_p_z_mn.mean(0),
            common_n + e_nk.logsumexp(-1),
            common_n + averaged_sn.mean(0),
            common_n + scale_sn.mean(0),
        ),
        divergences=(
            missing,
            kl_optimal_sn.mean(0),
            terms.kl_categorical(log_gbar_nk, log_g_star_nk),
            kl_scale_sn.mean(0),
        ),
        errors=(
            error(log_w_sn),
            (error(m.log_p_z_mn).square() + error(kl_optimal_sn).square()).sqrt(),
            (error(averaged_sn).square() + error(influence_sn).square()).sqrt(),
            (error(averaged_sn - scale_sn).square() + error(kl_scale_sn).square()).sqrt(),
        ),
        extra={
            "khat": torch.from_numpy(khat),
            "doubling": doubled_n - terms.kl_categorical(log_gbar_nk, log_g_star_nk),
        },
    )
