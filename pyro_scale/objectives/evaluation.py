"""Inputs and outputs of the closed forms: the evaluation point and the five ELBO terms."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from pyro_scale.objectives import terms
from pyro_scale.programs import BernoulliLikelihood, CellBatch, MixtureVAE, PoissonLikelihood

__all__ = [
    "NO_OFFSETS",
    "SCALE_1_1_2_OFFSETS",
    "ElboTerms",
    "EvaluationPoint",
    "NumericalOffsets",
    "evaluate",
]


class NumericalOffsets(NamedTuple):
    """Small constants that the published SCALE code adds for numerical stability.

    Attributes
    ----------
    log_eps
        Constant added to the probabilities inside the logarithms of the likelihood.
    gamma_floor
        Constant added to every pi_c p(z|c) before these are normalized to gamma = p(c|z).
    var_eps
        Constant added to the component variances in gamma; the loss adds 2 ``var_eps``.

    Examples
    --------
    >>> SCALE_1_1_2_OFFSETS
    NumericalOffsets(log_eps=1e-08, gamma_floor=1e-10, var_eps=1e-08)
    """

    log_eps: float = 0.0
    gamma_floor: float = 0.0
    var_eps: float = 0.0


NO_OFFSETS = NumericalOffsets()
"""All offsets zero: the exact formulas."""

SCALE_1_1_2_OFFSETS = NumericalOffsets(log_eps=1e-8, gamma_floor=1e-10, var_eps=1e-8)
"""The offsets of PyPI ``scale`` 1.1.2."""


class EvaluationPoint(NamedTuple):
    """Inputs of the closed forms: a sample of z per cell, q(z|x), the prior and log p(x|z).

    Attributes
    ----------
    z_nd
        The sample of z, shape ``(..., n, d)``.
    loc_nd, var_nd
        Mean and variance of q(z|x), shape ``(n, d)``.
    log_pi_k, loc_kd, var_kd
        The prior's log weights ``(k,)``, means and variances ``(k, d)``. ``log_pi_k`` need not
        be normalized: in the published code it is not.
    log_lik_n
        log p(x|z), shape ``(..., n)``.
    vae, cells
        The model and the minibatch. Closed forms read them if they use another likelihood or
        parameters that are not among the fields above. ``cells`` may be sparse (``cells.dense()``
        makes them dense). :func:`evaluate` sets both.

    Examples
    --------
    Three cells, K = 2, D = 2. In practice, :func:`evaluate` computes the point from a model.

    >>> z_nd, loc_nd, var_nd = torch.zeros(3, 2), torch.zeros(3, 2), torch.ones(3, 2)
    >>> log_pi_k, loc_kd, var_kd = torch.tensor([0.5, 0.5]).log(), torch.eye(2), torch.ones(2, 2)
    >>> log_lik_n = torch.zeros(3)
    >>> at = EvaluationPoint(z_nd, loc_nd, var_nd, log_pi_k, loc_kd, var_kd, log_lik_n)
    >>> at.log_p_z_given_c_nk.shape, at.expected_log_p_z_given_c_nk.shape
    (torch.Size([3, 2]), torch.Size([3, 2]))
    >>> at.log_gamma_nk.exp()[0], at.log_g_star_nk.exp()[0]
    (tensor([0.5000, 0.5000]), tensor([0.5000, 0.5000]))
    >>> vae.add_classifier()
    >>> evaluate(vae, cells, torch.zeros(5, 2)).log_q_c_nk.shape
    torch.Size([5, 3])
    """

    z_nd: Tensor
    loc_nd: Tensor
    var_nd: Tensor
    log_pi_k: Tensor
    loc_kd: Tensor
    var_kd: Tensor
    log_lik_n: Tensor
    vae: MixtureVAE | None = None
    cells: CellBatch | None = None

    @property
    def expected_log_p_z_given_c_nk(self) -> Tensor:
        """E_q(z|x)[log p(z|c)], shape ``(n, k)``."""
        return terms.expected_log_p_z_given_c(self.loc_nd, self.var_nd, self.loc_kd, self.var_kd)

    @property
    def log_p_z_given_c_nk(self) -> Tensor:
        """log p(z|c) at the sample, shape ``(..., n, k)``."""
        return terms.log_p_z_given_c(self.z_nd, self.loc_kd, self.var_kd)

    @property
    def log_gamma_nk(self) -> Tensor:
        """log p(c|z) at the sample, shape ``(..., n, k)``."""
        return terms.log_responsibilities(self.log_pi_k, self.log_p_z_given_c_nk)

    @property
    def log_g_star_nk(self) -> Tensor:
        """log g*(c|x), the optimal mean-field q(c|x), shape ``(n, k)``."""
        return terms.log_optimal_q_c(self.log_pi_k, self.expected_log_p_z_given_c_nk)

    @property
    def log_q_c_nk(self) -> Tensor:
        """log q(c|x) of the classifier network, shape ``(n, k)``."""
        if self.vae is None or self.cells is None:
            raise ValueError(
                "the classifier's q(c|x) needs vae and cells, which this EvaluationPoint lacks: "
                "create it with pyro_scale.objectives.evaluate."
            )
        return self.vae.log_q_c(self.cells)


class ElboTerms(NamedTuple):
    """The five terms of an objective, per cell, in nats, each of shape ``(..., n)``.

    Attributes
    ----------
    log_lik_n
        log p(x|z).
    log_p_z_n
        log p(z|c), averaged over c with the weights of the objective, such as p(c|z) or q(c|x).
    log_p_c_n
        log p(c), averaged in the same way.
    minus_log_q_z_n
        -log q(z|x), or its expectation H, the entropy of q(z|x).
    minus_log_q_c_n
        -log of the weights of c, averaged in the same way.

    Examples
    --------
    >>> terms = ElboTerms(torch.tensor([-9.0]), *torch.tensor([[-3.0], [-1.0], [2.0], [0.5]]))
    >>> terms.total(), terms.total(kl_weight=0.5)
    (tensor([-10.5000]), tensor([-9.7500]))
    """

    log_lik_n: Tensor
    log_p_z_n: Tensor
    log_p_c_n: Tensor
    minus_log_q_z_n: Tensor
    minus_log_q_c_n: Tensor

    def total(self, kl_weight: float = 1.0) -> Tensor:
        """Return the sum of the terms, a bound that is maximized, shape ``(..., n)``.

        ``kl_weight`` multiplies all terms except log p(x|z) (KL warm-up).
        """
        kl_terms_n = self.log_p_z_n + self.log_p_c_n + self.minus_log_q_z_n + self.minus_log_q_c_n
        return self.log_lik_n + kl_weight * kl_terms_n


def evaluate(
    vae: MixtureVAE,
    cells: CellBatch,
    z_nd: Tensor,
    *,
    moments: tuple[Tensor, Tensor] | None = None,
    offsets: NumericalOffsets = NO_OFFSETS,
) -> EvaluationPoint:
    """Evaluate the networks and the prior at a sample of z.

    Parameters
    ----------
    vae
        The networks and the prior.
    cells
        The minibatch of n cells.
    z_nd
        z of every cell, shape ``(..., n, d)``.
    moments
        Mean and variance of q(z|x), each of shape ``(n, d)``, if they are known already. With
        None, the encoder computes them.
    offsets
        Numerical offsets; only ``log_eps`` is used here, in the Bernoulli likelihood.

    Returns
    -------
    EvaluationPoint
        The point, with ``log_lik_n`` of shape ``(..., n)``.

    Examples
    --------
    >>> evaluate(vae, cells, torch.zeros(5, 2)).log_lik_n.shape
    torch.Size([5])
    """
    loc_nd, var_nd = vae.encoder(cells) if moments is None else moments
    given = cells
    if cells.is_sparse and offsets.log_eps:
        cells = cells.dense()
    if cells.is_sparse:
        log_lik_n = vae.likelihood(z_nd, cells).log_prob(cells.x_np)
    elif isinstance(vae.likelihood, PoissonLikelihood):
        log_lik_n = terms.poisson_log_lik(vae.likelihood.log_rate(z_nd, cells), cells.x_np)
    elif isinstance(vae.likelihood, BernoulliLikelihood):
        logits_np = vae.likelihood.logits(z_nd, cells)
        log_lik_n = terms.bernoulli_log_lik(logits_np, cells.x_np, eps=offsets.log_eps)
    else:
        raise NotImplementedError(
            f"there is no log-density by hand for {type(vae.likelihood).__name__}; add it to "
            "objectives/terms.py, and a branch for it to evaluate."
        )
    prior = vae.prior
    return EvaluationPoint(
        z_nd,
        loc_nd,
        var_nd,
        prior.log_pi_k,
        prior.loc_kd,
        prior.var_kd,
        log_lik_n,
        vae,
        given,
    )
