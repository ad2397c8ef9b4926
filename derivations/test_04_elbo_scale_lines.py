"""Chapter 4, second half: the published ``elbo_SCALE``, line by line.

The published function returns only two sums. The tests read its local variables when it returns,
so that each line can be compared with its own term.
"""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from oracle import five_terms, mean_under_q
from oracle_batches import batch
from oracle_checks import assert_identity
from oracle_posterior import log_p_x
from oracle_programs import local_variables, models_of, published, published_model, toy
from torch import Tensor, nn

from pyro_scale.objectives import (
    NO_OFFSETS,
    SCALE_1_1_2_OFFSETS,
    ElboTerms,
    EvaluationPoint,
    scale,
    terms,
)


class Call(NamedTuple):
    """One evaluation of the published code and of our closed form at the same inputs."""

    lines: dict
    gamma_nk: Tensor
    point: EvaluationPoint
    ours: ElboTerms
    leaves: tuple[Tensor, ...]


def call(*, offsets=SCALE_1_1_2_OFFSETS, binary: bool = True, copies: int = 1) -> Call:
    """Evaluate the published code and our closed form; ``copies`` repeats the batch."""
    vae, cells = toy(n=5)
    x_np = cells.x_np.repeat(copies, 1)
    prior = vae.prior
    with torch.no_grad():
        loc_nd, var_nd = vae.encoder(cells)
        eps_nd = torch.randn_like(loc_nd).repeat(copies, 1)
        leaves = [loc_nd.repeat(copies, 1), var_nd.log().repeat(copies, 1)]
        leaves += [prior.log_pi_k.exp(), prior.loc_kd, prior.var_kd]
    mean, log_var, pi_k, loc_kd, var_kd = (leaf.clone().requires_grad_() for leaf in leaves)
    z_nd = mean + (log_var / 2).exp() * eps_nd
    logits_np = vae.likelihood.eta(z_nd)

    model = published_model(pi_k, loc_kd, var_kd)
    gamma_nk, *c_params = model.get_gamma(z_nd)
    lines = local_variables(
        published("loss").elbo_SCALE,
        torch.sigmoid(logits_np),
        x_np,
        gamma_nk,
        tuple(c_params),
        (mean, log_var),
        binary=binary,
    )
    log_lik_n = terms.bernoulli_log_lik(logits_np, x_np, eps=offsets.log_eps)
    point = EvaluationPoint(z_nd, mean, log_var.exp(), pi_k.log(), loc_kd, var_kd, log_lik_n)
    ours = scale(point, offsets=offsets)
    return Call(lines, gamma_nk, point, ours, (mean, log_var, pi_k, loc_kd, var_kd))


LINES = {  # published variable -> its sign in the bound, our term
    "likelihood": (+1, "log_lik_n"),
    "logpzc": (+1, "log_p_z_n"),
    "logpc": (+1, "log_p_c_n"),
    "qentropy": (-1, "minus_log_q_z_n"),
    "logqcx": (-1, "minus_log_q_c_n"),
}


@pytest.mark.parametrize("line", LINES)
def test_d04_9_each_line_of_elbo_scale_is_one_of_our_terms(line):
    made = call()
    sign, ours = LINES[line]
    wrong = {"sign": -getattr(made.ours, ours)}
    if line == "logpzc":
        sd_kd = made.point.var_kd.sqrt()
        at_sd = made.point._replace(var_kd=sd_kd).expected_log_p_z_given_c_nk
        wrong |= {"variance used as scale": (made.gamma_nk * at_sd).sum(-1)}
        wrong |= {"at the sample": (made.gamma_nk * made.point.log_p_z_given_c_nk).sum(-1)}
    if line == "logpc":
        wrong |= {"flat gamma": made.point.log_pi_k.mean().expand(5)}
    published_n = sign * made.lines[line]
    assert_identity(
        published_n, getattr(made.ours, ours), terms=torch.stack(made.ours), wrong=wrong
    )


def test_d04_9_gamma_is_our_gamma():
    made = call()
    gamma_nk = made.point.log_gamma_nk.exp()  # without the floor, which is far below the densities
    with_floor = terms.log_responsibilities(
        made.point.log_pi_k, made.point.log_p_z_given_c_nk, floor=SCALE_1_1_2_OFFSETS.gamma_floor
    )
    assert torch.allclose(made.gamma_nk, with_floor.exp(), rtol=0, atol=1e-7)  # var + 1e-8
    assert torch.allclose(made.gamma_nk, gamma_nk, rtol=0, atol=1e-6)
    no_pi = made.point._replace(log_pi_k=torch.zeros(3)).log_gamma_nk.exp()
    for wrong in (torch.full_like(gamma_nk, 1 / 3), no_pi):
        assert not torch.allclose(made.gamma_nk, wrong, rtol=0, atol=1e-2)


def test_d04_10_the_published_loss_is_minus_our_scale_in_value_and_every_gradient():
    made = call()
    likelihood, kld = made.lines["return"]
    loss, ours = (kld - likelihood).reshape(1), -made.ours.total().sum().reshape(1)
    totals = torch.stack(made.ours).sum(1, keepdim=True)
    wrong = {line: ours + 2 * total for line, total in zip(LINES, totals, strict=True)}
    # Each wrong value has the sign of one term reversed.
    assert_identity(loss, ours, terms=totals, wrong=wrong)
    detached = _with_gamma_detached(made)
    for leaf in made.leaves:
        grads = [
            torch.autograd.grad(value, leaf, retain_graph=True)[0].flatten()
            for value in (loss, ours, detached)
        ]
        size = grads[1].abs().max().expand(1, len(grads[1]))
        wrong = {"sign": -grads[1], "gamma detached": grads[2]}
        assert_identity(grads[0], grads[1], terms=size, wrong=wrong)


def _with_gamma_detached(made: Call) -> Tensor:
    """Return our loss with gamma detached, so that no gradient flows through it."""
    expected_nk, gamma_nk = made.point.expected_log_p_z_given_c_nk, made.gamma_nk.detach()
    with_c = gamma_nk * (expected_nk + made.point.log_pi_k - gamma_nk.log())
    return -(made.ours.log_lik_n + with_c.sum(-1) + made.ours.minus_log_q_z_n).sum().reshape(1)


def test_d04_10_without_its_constants_it_is_the_formula_of_this_chapter():
    made = call(offsets=NO_OFFSETS)
    likelihood, kld = made.lines["return"]
    gap = (likelihood - kld - made.ours.total().sum()).abs().item()
    assert 0 < gap < 1e-5  # the offsets matter, but little at ordinary parameters


def test_d04_11_qentropy_is_minus_the_entropy():
    made = call()
    normal = torch.distributions.Normal(made.point.loc_nd, made.point.var_nd.sqrt())
    entropy_n = normal.entropy().sum(-1)
    lines = torch.stack([entropy_n, made.lines["logpzc"]])
    assert_identity(made.lines["qentropy"], -entropy_n, terms=lines, wrong={"as named": entropy_n})


def test_d04_12_the_other_branch_is_a_mean_square_over_the_whole_batch():
    once, four_times = call(binary=False), call(binary=False, copies=4)
    x_np, recon_np = once.lines["x"], once.lines["recon_x"]
    difference_np = (x_np - recon_np).detach().numpy()
    mse = sum(difference_np[n, p] ** 2 for n in range(5) for p in range(8)) / (5 * 8)
    per_cell = (x_np - recon_np).square().sum(-1)
    wrong = {"summed over peaks": -per_cell.mean(), "summed": -per_cell.sum()}
    assert_identity(once.lines["return"][0].reshape(1), [-mse], terms=[mse], wrong=wrong)
    x_np, recon_np = x_np.detach(), recon_np.detach()
    gauss = torch.distributions.Normal(recon_np, (5 * 8 / 2) ** 0.5)  # variance nP/2
    log_ratio = (gauss.log_prob(x_np) - gauss.log_prob(recon_np)).sum()
    assert log_ratio.item() == pytest.approx(-mse, rel=1e-10)
    # Repeating every cell leaves the likelihood unchanged and multiplies the KL terms.
    likelihood, kld = (part.item() for part in four_times.lines["return"])
    assert likelihood == pytest.approx(once.lines["return"][0].item(), rel=1e-12)
    assert kld == pytest.approx(4 * once.lines["return"][1].item(), rel=1e-12)


def test_d04_13_elbo_scale_adds_to_the_callers_variances_in_place():
    elbo_scale = published("loss").elbo_SCALE
    n, d, k = 2, 1, 2
    gamma, pi = torch.full((n, k), 0.5), torch.full((n, k), 0.5)
    arguments = [torch.full((n, 3), 0.5), torch.ones(n, 3), gamma]
    moments = (torch.zeros(n, d), torch.zeros(n, d))
    var_c = torch.ones(n, d, k)
    elbo_scale(*arguments, (torch.zeros(n, d, k), var_c, pi), moments)
    assert float(var_c[0, 0, 0]) == 1 + 1e-8
    leaf = nn.Parameter(torch.ones(n, d, k))
    with pytest.raises(RuntimeError, match="in-place"):
        elbo_scale(*arguments, (torch.zeros(n, d, k), leaf, pi), moments)


def test_d04_14_the_average_over_z_is_a_bound(models):
    truth = log_p_x(models)
    # Each model has four gaps of at least 0.01 nat.
    assert (five_terms(models, "scale").sum(0) < truth - 0.04).all()
    mean = mean_under_q(models, lambda at: scale(models.point(at.z_snd)).total().numpy())
    brute = five_terms(models, "scale")
    short = brute.sum(0) - brute[2]
    assert_identity(mean, brute.sum(0), terms=brute, wrong={"log pi dropped": short})


def test_d04_14_one_sample_may_exceed_log_p_x():
    models = batch(3, 1)
    noise = np.random.default_rng(0).normal(size=(100, len(models), 1))
    values = scale(models.point(models.m_nd + np.sqrt(models.s2_nd) * noise)).total().numpy()
    assert (values > log_p_x(models)).any()


def test_d04_14_also_for_the_toy_program():
    vae, cells = toy()
    models = models_of(vae, cells)
    assert (five_terms(models, "scale").sum(0) < log_p_x(models)).all()
