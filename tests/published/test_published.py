"""Our `scale` against the published code: PyPI `scale` 1.1.2 as the oracle."""

import numpy as np
import pytest
import torch

from pyro_scale.objectives import NO_OFFSETS, SCALE_1_1_2_OFFSETS, EvaluationPoint, scale, terms


class Setting:
    """Leaf tensors for one evaluation of both codes."""

    def __init__(self, *, n=7, p=30, d=4, k=3, distance=1.5, seed=0):
        g = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        self.x = (draw(n, p) > 0.8).double()
        self.logits = (2 * draw(n, p)).requires_grad_(True)
        self.m = draw(n, d).requires_grad_(True)
        self.log_var = (0.5 * draw(n, d)).requires_grad_(True)
        self.pi = torch.softmax(draw(k), 0).requires_grad_(True)
        self.loc = (distance * draw(k, d)).requires_grad_(True)
        self.var = draw(k, d).exp().requires_grad_(True)
        self.z = self.m + (0.5 * self.log_var).exp() * draw(n, d)
        self.leaves = (self.logits, self.m, self.log_var, self.pi, self.loc, self.var)

    def ours(self, offsets):
        log_lik = terms.bernoulli_log_lik(self.logits, self.x, eps=offsets.log_eps)
        at = EvaluationPoint(
            self.z, self.m, self.log_var.exp(), self.pi.log(), self.loc, self.var, log_lik
        )
        result = scale(at, offsets=offsets)
        return log_lik.sum(), (log_lik - result.total()).sum()

    def theirs(self, package):
        """Likelihood and KL part as the released model computes them, get_gamma included."""
        model = package.SCALE([self.x.shape[1], self.m.shape[1], [8], []], len(self.pi)).double()
        del model.pi, model.mu_c, model.var_c
        model.pi, model.mu_c, model.var_c = self.pi, self.loc.T, self.var.T
        gamma, mu_c, var_c, pi = model.get_gamma(self.z)
        return package.loss.elbo_SCALE(
            torch.sigmoid(self.logits),
            self.x,
            gamma,
            (mu_c, var_c, pi),
            (self.m, self.log_var),
        )

    def gradients(self, value):
        return torch.autograd.grad(value, self.leaves, retain_graph=True, allow_unused=True)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("distance", [0.3, 1.5, 6.0])
def test_equals_elbo_scale_with_the_published_constants(published, seed, distance):
    setting = Setting(seed=seed, distance=distance)
    ours, theirs = setting.ours(SCALE_1_1_2_OFFSETS), setting.theirs(published)
    for part, other in zip(ours, theirs, strict=True):  # likelihood, then the KL part
        assert (part).item() == pytest.approx((other).item(), rel=1e-12)
        for a, b in zip(setting.gradients(part), setting.gradients(other), strict=True):
            if a is None or b is None:  # not in this part: then in neither
                assert a is None or a.abs().max() == 0
                assert b is None or b.abs().max() == 0
            else:
                assert ((a - b).abs().max()).item() <= 1e-12 * max(1.0, (b.abs().max()).item())


def test_without_the_constants_it_is_near_where_densities_are_large(published):
    """To a bound that the constants imply, and that is itself small here.

    Likelihood: eps moves each log by at most eps / s. KL part: the floor f moves gamma by
    delta = K f / (p(z) + K f) in total variation, hence sum_c gamma_c e_c by 2 delta max|e| and
    the entropy by delta log K + h(delta) (Fannes); the variance by 2 eps, to first order, twice
    for safety.
    """
    setting = Setting(d=2, distance=0.3)
    log_lik, kl = setting.ours(NO_OFFSETS)
    their_log_lik, their_kl = setting.theirs(published)
    smallest = (torch.minimum(setting.logits, -setting.logits).sigmoid().min()).item()
    assert ((log_lik - their_log_lik).abs()).item() <= 1e-8 / smallest * setting.x.numel()

    log_pi, k = setting.pi.log(), len(setting.pi)
    p_z = (log_pi + terms.log_p_z_given_c(setting.z, setting.loc, setting.var)).exp().sum(-1)
    e = log_pi + terms.expected_log_p_z_given_c(
        setting.m, setting.log_var.exp(), setting.loc, setting.var
    )
    delta = k * SCALE_1_1_2_OFFSETS.gamma_floor / (p_z + k * SCALE_1_1_2_OFFSETS.gamma_floor)
    h = -(delta * delta.log() + (1 - delta) * torch.log1p(-delta))
    floor = (2 * delta * e.abs().amax(-1) + delta * np.log(k) + h).sum()
    variance = 4 * SCALE_1_1_2_OFFSETS.var_eps * setting.gradients(kl)[-1].abs().sum()
    bound = (floor + variance).item()
    assert ((kl - their_kl).abs()).item() <= bound < 1e-3


def test_power_the_exact_formula_is_told_from_the_published_one(published):
    setting = Setting()
    log_lik, kl = setting.ours(NO_OFFSETS)
    their_log_lik, their_kl = setting.theirs(published)
    assert abs((log_lik - their_log_lik).item()) > 1e-12 * abs((log_lik).item())
    assert abs((kl - their_kl).item()) > 1e-12 * abs((kl).item())


def test_their_loss_falls_without_bound_as_pi_is_scaled_and_ours_cannot(published):
    setting = Setting(d=2, distance=0.3)  # densities far above the floor
    _, kl = setting.theirs(published)
    with torch.no_grad():
        setting.pi.mul_(100)
    _, scaled = setting.theirs(published)
    n = len(setting.x)
    assert (kl - scaled).item() == pytest.approx(n * np.log(100), rel=1e-6)

    from pyro_scale.programs import MixturePrior

    prior = MixturePrior(3, 4)
    with torch.no_grad():
        prior.logits_k.add_(np.log(100))
    torch.testing.assert_close(prior.log_pi_k.exp().sum(), torch.tensor(1.0))


def test_their_gamma_turns_uniform_where_densities_underflow_and_ours_does_not(published):
    setting = Setting(n=1, d=10, k=5, distance=0.0)
    with torch.no_grad():
        setting.loc.zero_()
        setting.loc[0] += 6.0
        setting.var.fill_(1.0)
        setting.pi.fill_(0.2)
    z = torch.full((1, 10), 9.0, dtype=torch.float64)
    joint = setting.pi.log() + terms.log_p_z_given_c(z, setting.loc, setting.var)
    theirs = torch.softmax((joint.exp() + SCALE_1_1_2_OFFSETS.gamma_floor).log(), -1)
    ours = terms.log_responsibilities(setting.pi.log(), joint).exp()
    package = published.SCALE([30, 10, [8], []], 5).double()
    with torch.no_grad():
        package.mu_c.copy_(setting.loc.T)
    gamma = package.get_gamma(z)[0]
    torch.testing.assert_close(gamma.detach(), torch.full((1, 5), 0.2, dtype=torch.float64))
    torch.testing.assert_close(theirs, gamma.detach(), rtol=1e-6, atol=1e-6)
    assert (ours[0, 0]).item() == pytest.approx(1.0)
