"""Chapter 6: the program whose bound is SCALE's loss, and the estimator that computes it."""

import numpy as np
import pytest
import torch
from oracle import five_terms, standard_grid
from oracle_batches import batch
from oracle_checks import assert_identity, assert_mean
from oracle_posterior import log_p_x
from oracle_programs import (
    Watch,
    expected_terms,
    gradient_error,
    gradients,
    models_of,
    published,
    repeat,
    toy,
)

from pyro_scale.objectives import (
    ElboTerms,
    Objective,
    collapsed,
    evaluate,
    mean_field,
    mean_field_at_z,
    scale,
)

FEW = 8


def few_models():
    models = batch(3, 1)
    return models.select(np.arange(len(models)) < FEW)


def over_u_and_z(models, f):
    """Return the mean of f(at u, at z), ``(u, z, n)``, over independent u, z ~ q(z|x), by grids."""
    totals = []
    for nodes in (151, 301):
        t_sd, w_s = standard_grid(1, nodes)
        z_snd = models.m_nd + np.sqrt(models.s2_nd) * t_sd[:, None, :]
        totals.append(np.einsum("u,z,uzn->n", w_s, w_s, f(models.at(z_snd), models.at(z_snd))))
    assert np.abs(totals[0] - totals[1]).max() < 1e-9
    return totals[1]


def log_weight(models, at_u, at_z, c):
    """Return log p(x,z,c) q(u) - log q(u) gamma_c(u) q(z|x), ``(u, z, n)``."""
    log_p = at_z.log_lik + at_z.log_p_z_given_c[..., c] + np.log(models.pi_nk[:, c])
    return (log_p[None] + at_u.log_q_z[:, None]) - (
        at_u.log_q_z[:, None] + at_u.log_gamma[:, None, :, c] + at_z.log_q_z[None]
    )


def test_d06_1_the_bound_of_the_auxiliary_program_is_the_average_of_scales_loss():
    models = few_models()

    def bound(at_u, at_z):
        return sum(
            at_u.gamma[:, None, :, c] * log_weight(models, at_u, at_z, c) for c in range(models.k)
        )

    def u_in_the_guide_only(at_u, at_z):
        return bound(at_u, at_z) - at_u.log_q_z[:, None]

    elbo = over_u_and_z(models, bound)
    ours = expected_terms(models, scale)
    wrong = {
        "u in the guide only": over_u_and_z(models, u_in_the_guide_only),
        "u = z (structured)": five_terms(models, "structured").sum(0),
    }
    assert_identity(ours.sum(0), elbo, terms=five_terms(models, "scale"), wrong=wrong)


def test_d06_2_so_it_is_a_lower_bound_and_its_gap_is_a_divergence_over_u_c_and_z():
    models = few_models()
    truth = log_p_x(models)

    def divergence(at_u, at_z):
        total = 0.0
        for c in range(models.k):
            log_q = at_u.log_q_z[:, None] + at_u.log_gamma[:, None, :, c] + at_z.log_q_z[None]
            log_joint = at_z.log_lik + at_z.log_p_z_given_c[..., c] + np.log(models.pi_nk[:, c])
            log_p = at_u.log_q_z[:, None] + (log_joint - truth)[None]
            total = total + at_u.gamma[:, None, :, c] * (log_q - log_p)
        return total

    gap = over_u_and_z(models, divergence)
    bound = expected_terms(models, scale).sum(0)
    wrong = {"the gap of the structured bound": truth - five_terms(models, "structured").sum(0)}
    assert_identity(truth - bound, gap, terms=five_terms(models, "scale"), wrong=wrong)
    assert (gap > 0.04).all()


def run(formulation, estimator, c="enumerated", *, kl_weight=1.0, seed=0):
    """Return the vae, the loss, the evaluation point at the program's z, and log gamma at its u."""
    vae, cells = toy()
    torch.manual_seed(seed)
    objective = Objective(vae, formulation, estimator, c)
    with Watch() as watch, Watch("u") as auxiliary:
        loss = objective(cells, kl_weight)
    u_nd = auxiliary.value
    log_gamma_u = None if u_nd is None else vae.prior.log_responsibilities(u_nd)
    return vae, loss, evaluate(vae, cells, watch.value), log_gamma_u


def assert_computes(run_, right: ElboTerms, *, wrong: dict[str, ElboTerms], kl_weight: float = 1.0):
    """Assert that the program's loss is minus ``right``, in value and in every gradient."""
    vae, loss = run_[:2]
    target = -right.total(kl_weight).sum()
    terms = torch.stack(right).sum(1, keepdim=True)
    values = {name: -other.total(kl_weight).sum().reshape(1) for name, other in wrong.items()}
    assert_identity(loss.reshape(1), target.reshape(1), terms=terms, wrong=values)
    theirs = gradients(loss, vae)
    assert gradient_error(theirs, gradients(target, vae)) < 1e-10
    for other in wrong.values():
        assert gradient_error(theirs, gradients(-other.total(kl_weight).sum(), vae)) > 1e-3


def test_d06_3_one_run_of_the_auxiliary_program_weighs_z_by_gamma_at_u():
    made = run("scale", "TraceEnum_ELBO")
    _, _, point, log_gamma_u = made
    wrong = {
        "gamma at z": mean_field_at_z(point, point.log_gamma_nk),
        "g*": mean_field_at_z(point),
    }
    assert_computes(made, mean_field_at_z(point, log_gamma_u), wrong=wrong)


@pytest.mark.parametrize("estimator", ["TraceEnum_ELBO", "TraceEnumMeanField_ELBO"])
def test_d06_4_its_average_is_that_of_scales_loss(estimator):
    vae, cells = toy()
    models = models_of(vae, cells)
    many = repeat(cells, 200)
    objective = Objective(vae, "scale", estimator, "enumerated")
    samples = torch.tensor([-objective.loss(many) / 200 for _ in range(100)])
    right, structured = (five_terms(models, r).sum() for r in ("scale", "structured"))
    assert_mean(samples, right, wrong={"the structured bound": structured})


def test_d06_5_the_mean_field_estimator_on_the_structured_guide_is_scales_loss_sample_by_sample():
    for seed in range(3):
        made = run("structured", "TraceEnumMeanField_ELBO", seed=seed)
        point = made[2]
        wrong = {"structured": collapsed(point), "mean field": mean_field(point)}
        assert_computes(made, scale(point), wrong=wrong)


def test_d06_5_and_the_published_function_at_the_same_z():
    vae, loss, point, _ = run("structured", "TraceEnumMeanField_ELBO")
    cells = toy()[1]
    n, k = point.log_gamma_nk.shape
    c_params = (
        point.loc_kd.T.expand(n, 2, k).clone(),
        point.var_kd.T.expand(n, 2, k).clone(),
        point.log_pi_k.exp().expand(n, k),
    )
    recon = torch.sigmoid(vae.likelihood.eta(point.z_nd))
    arguments = (recon, cells.x_np, point.log_gamma_nk.exp(), c_params)
    likelihood, kld = published("loss").elbo_SCALE(*arguments, (point.loc_nd, point.var_nd.log()))
    # log(s + 1e-8) is at most log s + 1e-8 / s; the offset of the variances matters far less.
    observed = torch.where(cells.x_np > 0, recon, 1 - recon)
    allowed = 2e-8 * float((1 / observed).detach().sum())
    assert (loss - (kld - likelihood)).abs().item() < allowed < 1e-3
    assert (loss + collapsed(point).total().sum()).abs().item() > 1e-2


def test_d06_6_with_the_auxiliary_program_the_same_estimator_splits_into_z_and_u():
    made = run("scale", "TraceEnumMeanField_ELBO")
    _, _, point, log_gamma_u = made
    wrong = {"gamma at z": scale(point), "g*": mean_field(point)}
    assert_computes(made, mean_field(point, log_gamma_u), wrong=wrong)


def test_d06_6_so_sharing_one_sample_for_both_changes_the_variance_but_not_the_mean():
    vae, cells = toy()
    cells = repeat(cells, 400)
    shared, apart = [], []
    with torch.no_grad():
        loc_nd, var_nd = vae.encoder(cells)
        for _ in range(50):
            z_nd, u_nd = loc_nd + var_nd.sqrt() * torch.randn(2, *loc_nd.shape)
            point = evaluate(vae, cells, z_nd)
            log_gamma_u = vae.prior.log_responsibilities(u_nd)
            shared.append(scale(point).total().view(400, -1).mean(0))
            apart.append(mean_field(point, log_gamma_u).total().view(400, -1).mean(0))
            structured = collapsed(point).total().view(400, -1).mean(0)
    difference = torch.stack(shared) - torch.stack(apart)
    price = (structured - shared[-1]).expand(len(shared), -1).mean(0)
    assert_mean(difference, torch.zeros(4), wrong={"the price of the substitution": price})
    assert difference.abs().max() > 1e-3


@pytest.mark.parametrize("formulation", ["mean_field", "model_enumerated"])
def test_d06_7_on_the_mean_field_guide_the_estimator_is_the_best_mean_field_bound(formulation):
    made = run(formulation, "TraceEnumMeanField_ELBO")
    point = made[2]
    wrong = {"sampled": mean_field_at_z(point), "scale": scale(point)}
    assert_computes(made, mean_field(point), wrong=wrong)


@pytest.mark.parametrize("weight", [0.3, 2.0])
@pytest.mark.parametrize("formulation", ["structured", "mean_field"])
def test_d06_8_a_weight_of_the_kl_terms_multiplies_four_of_the_five(formulation, weight):
    made = run(formulation, "TraceEnumMeanField_ELBO", kl_weight=weight)
    point = made[2]
    right = scale(point) if formulation == "structured" else mean_field(point)
    unweighted = right._replace(**{
        field: getattr(right, field) / weight for field in right._fields[1:]
    })  # fmt: skip
    assert_computes(made, right, wrong={"weight lost": unweighted}, kl_weight=weight)


@pytest.mark.parametrize(
    ("formulation", "c", "words"),
    [("structured", "sampled", "is sampled"), ("collapsed", "marginalized", "registered KL")],
)
def test_d06_9_the_estimator_refuses_what_it_cannot_integrate(formulation, c, words):
    vae, cells = toy()
    with pytest.raises(NotImplementedError, match=words):
        Objective(vae, formulation, "TraceEnumMeanField_ELBO", c)(cells)
