"""The integrals behind the ladder: by quadrature for D <= 2, by Monte Carlo beyond."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_scale.analysis.diagnostics import pareto_k
from pyro_scale.comparison.quadrature import (
    Rule,
    converge,
    gauss_hermite,
    half_width,
    legendre,
    posterior_mode,
    trapezoid,
)
from pyro_scale.objectives import Point, evaluate, terms
from pyro_scale.programs import Cells, MixtureVAE

__all__ = ["Rungs", "by_monte_carlo", "by_quadrature"]

_TOLERANCE = 1e-9  # doubling ends there; the error by then is far below
_TINY = 1e-300  # below it gbar counts as it
_AT_ONCE = 2e7  # decoder outputs held at a time


class Rungs(NamedTuple):
    """Per cell, in nats, each of shape ``(n,)``.

    Attributes
    ----------
    log_px
        log p(x), or its importance-weighted bound for D > 2.
    bounds
        L_str, L_mf(g*), L_mf(gbar), E[L_SCALE].
    divergences
        KL(q || p(z|x)), E KL(g* || gamma), KL(gbar || g*), E KL(gamma || gbar).
    errors
        Numerical error of each (gap - divergence).
    extra
        Further columns.
    """

    log_px: Tensor
    bounds: tuple[Tensor, ...]
    divergences: tuple[Tensor, ...]
    errors: tuple[Tensor, ...]
    extra: dict[str, Tensor]


class _Mixture(NamedTuple):
    """The parts of the bounds that do not need the decoder, at nodes or draws z_mnd."""

    log_p_z_mn: Tensor
    log_gamma_mnk: Tensor


def _mixture(at: Point, z_mnd: Tensor) -> _Mixture:
    log_p_z_given_c_mnk = terms.log_p_z_given_c(z_mnd, at.loc_kd, at.var_kd)
    joint_mnk = at.log_pi_k + log_p_z_given_c_mnk
    log_p_z_mn = joint_mnk.logsumexp(-1)
    return _Mixture(log_p_z_mn, joint_mnk - log_p_z_mn.unsqueeze(-1))


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _nodes(rule: Rule, loc_nd: Tensor, root_ndd: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes moved to loc + root x, ``(m, n, d)``, and their log weights, ``(m, n)``."""
    z_mnd = loc_nd + torch.einsum("nde,me->mnd", root_ndd, rule.x_md)
    return z_mnd, rule.log_w_m[:, None] + torch.linalg.slogdet(root_ndd).logabsdet


def _log_lik(vae: MixtureVAE, cells: Cells, at: Point, z_mnd: Tensor) -> Tensor:
    """log p(x|z) at many z, ``(m, n)``, a few at a time."""
    at_once = max(1, int(_AT_ONCE / cells.x_np.numel()))
    moments = (at.loc_nd, at.var_nd)
    return torch.cat(
        [evaluate(vae, cells, z, moments=moments).log_lik_n for z in z_mnd.split(at_once)]
    )


def by_quadrature(vae: MixtureVAE, cells: Cells) -> Rungs:
    """The rungs for D <= 2, cell by cell, each with its own number of nodes.

    Differences of bounds are integrated by Gauss's rules under q(z|x) (Hermite for the
    likelihood, which is smooth over q; Legendre in panels for the mixture, whose p(c|z) may be
    too steep for Hermite), divergences by the trapezoidal rule. log p(x) is integrated around the
    *true posterior's* mode by both: one enters the difference, the other the divergence.
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


@torch.no_grad()
def _one_cell(vae: MixtureVAE, cells: Cells) -> Rungs:
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
                (weight_mn * _kl(log_g_star_nk, m.log_gamma_mnk)).sum(0),
                _kl(log_gbar_nk, log_g_star_nk),
                (weight_mn * _kl(m.log_gamma_mnk, log_gbar_nk)).sum(0),
            ]
        )

    def log_joint(z_mnd: Tensor) -> Tensor:
        return _log_lik(vae, cells, at, z_mnd) + _mixture(at, z_mnd).log_p_z_mn

    with torch.enable_grad():
        mode_nd, root_ndd = posterior_mode(lambda z: log_joint(z.unsqueeze(0))[0], loc_nd)

    def around_mode(x_md: Tensor) -> Tensor:
        z_mnd, _ = _nodes(Rule(x_md, torch.zeros(len(x_md))), mode_nd, root_ndd)
        return log_joint(z_mnd)[:, 0]

    width = half_width(around_mode, d)

    def log_px(rule: Callable[[int, int, float], Rule]) -> Callable[[int], Tensor]:
        def integrate(n: int) -> Tensor:
            z_mnd, log_w_mn = _nodes(rule(n, d, width), mode_nd, root_ndd)
            return (log_w_mn + log_joint(z_mnd)).logsumexp(0)

        return integrate

    def expected_log_lik(n: int) -> Tensor:
        _, weight_mn, z_mnd = under_q(gauss_hermite(n, d))
        return (weight_mn * _log_lik(vae, cells, at, z_mnd)).sum(0)

    def cross_entropy(n: int) -> Tensor:
        m, weight_mn, z_mnd = under_q(trapezoid(n, d))
        log_q_mn = terms.log_q_z(z_mnd, loc_nd, var_nd)
        log_joint_mn = _log_lik(vae, cells, at, z_mnd) + m.log_p_z_mn
        return (weight_mn * (log_q_mn - log_joint_mn)).sum(0)

    most = 512 if d == 2 else 8192  # nodes per dimension
    bounds_4n, bounds_change = converge(bounds, 32, most, _TOLERANCE)
    divergences_3n, divergences_change = converge(divergences, 33, most, _TOLERANCE)
    log_px_n, log_px_change = converge(log_px(trapezoid), 24, most, _TOLERANCE)
    log_z_n, log_z_change = converge(log_px(legendre), 32, most, _TOLERANCE)
    r_n, r_change = converge(expected_log_lik, 12, 96, _TOLERANCE)
    cross_n, cross_change = converge(cross_entropy, 24, most, _TOLERANCE)
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
def by_monte_carlo(vae: MixtureVAE, cells: Cells, n_samples: int) -> Rungs:
    """The rungs for D > 2: differences over one set of draws, divergences over another."""
    loc_nd, var_nd = vae.encoder(cells)
    at = evaluate(vae, cells, loc_nd)
    e_nk = at.log_pi_k + at.expected_log_p_z_given_c_nk
    log_g_star_nk = at.log_g_star_nk
    entropy_n = terms.entropy_z(var_nd)

    def draws() -> Tensor:
        noise = torch.randn(n_samples, *loc_nd.shape, dtype=loc_nd.dtype)
        z_snd: Tensor = loc_nd + var_nd.sqrt() * noise
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
    # its mean is L_mf(gbar)'s part
    averaged_sn = (gamma_snk * (e_nk - gbar_nk.clamp_min(_TINY).log())).sum(-1)
    log_w_sn = log_lik_sn + m.log_p_z_mn - terms.log_q_z(z_snd, loc_nd, var_nd)
    khat = pareto_k(log_w_sn.numpy())
    common_n = log_lik_sn.mean(0) + entropy_n

    # Second set: the divergences.
    other = _mixture(at, draws())
    other_gamma_snk = other.log_gamma_mnk.exp()
    log_gbar_nk = other_gamma_snk.mean(0).clamp_min(_TINY).log()
    kl_optimal_sn = _kl(log_g_star_nk.expand_as(other.log_gamma_mnk), other.log_gamma_mnk)
    kl_scale_sn = _kl(other.log_gamma_mnk, log_gbar_nk.expand_as(other.log_gamma_mnk))
    influence_sn = (other_gamma_snk * (log_gbar_nk - log_g_star_nk)).sum(-1)
    both_nk = (gbar_nk + log_gbar_nk.exp()) / 2  # gbar from twice the draws
    doubled_n = _kl(both_nk.clamp_min(_TINY).log(), log_g_star_nk)

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
            _kl(log_gbar_nk, log_g_star_nk),
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
            "doubling": doubled_n - _kl(log_gbar_nk, log_g_star_nk),
        },
    )
