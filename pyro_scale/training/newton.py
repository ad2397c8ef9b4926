r"""Alternating Newton steps for a linear decoder and the cells' posteriors.

With a linear decoder the logits are :math:`\eta_{np} = w_p \cdot h_n + s_n`, where :math:`h_n`
holds the latent coordinates :math:`z_n`, the cell's batch and a one, and :math:`s_n` is the depth
term. With the Poisson likelihood they are log rates, and :math:`s_n` is the log depth less the log
normalizer over peaks. The joint log-density is concave in the weights of a peak and, for a Gaussian
prior, in the coordinates of a cell. A sweep makes one Newton step in each:

.. math::
    w_p &\leftarrow w_p + \Big(\sum_n v_{np} h_n h_n^T + \Lambda_w\Big)^{-1}
        \Big(\sum_n (x_{np} - \mu_{np}) h_n - \Lambda_w w_p\Big) \\
    z_n &\leftarrow z_n + \Big(\sum_p v_{np} w_p w_p^T + \Lambda_n\Big)^{-1}
        \Big(\sum_p (x_{np} - \mu_{np}) w_p - \Lambda_n (z_n - m_n)\Big)

Here :math:`\mu` and :math:`v` are mean and variance of x, :math:`\Lambda_w` is the precision of the
weights' prior (whose mean is zero but for the biases), and :math:`N(m_n, \Lambda_n^{-1})` is the
cell's prior.

The weights are fitted at a draw of :math:`z_n`, as in stochastic expectation maximization: each
half of the peaks at a draw from a Gaussian whose mean is one Newton step from the current
:math:`z_n` that uses the *other* half. At draws that use all peaks, z would fit the noise of the
very peaks that it is to predict. Masking peaks in the encoder's input has the same purpose.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy import sparse
from torch import Tensor

from pyro_scale.data import CountMatrix, sparse_cells
from pyro_scale.ops.curvature import expected_sums, newton_step
from pyro_scale.ops.peak_sums import Logits, logsumexp_over_peaks
from pyro_scale.ops.sparse import from_scipy, matmul, totals
from pyro_scale.programs import BernoulliLikelihood, MixturePrior, MixtureVAE

__all__ = ["GaussianPosterior", "NewtonSweeps"]

_BIAS_PRECISION = 0.5  # of a prior around the start, which keeps the bias of a closed peak finite
_LONGEST_W, _LONGEST_Z = 1.0, 2.0  # of an entry of a step


class GaussianPosterior(NamedTuple):
    """The Gaussian (Laplace) approximation of p(z|x) of every cell.

    Attributes
    ----------
    loc_nd
        Modes, shape ``(n, d)``.
    precision_ndd
        Negative Hessians of log p(x, z) at the modes, shape ``(n, d, d)``.

    Examples
    --------
    >>> posterior = GaussianPosterior(torch.zeros(5, 2), 4 * torch.eye(2).expand(5, 2, 2))
    >>> posterior.var_nd[0], posterior.take(torch.tensor([0, 3])).loc_nd.shape
    (tensor([0.2500, 0.2500]), torch.Size([2, 2]))
    """

    loc_nd: Tensor
    precision_ndd: Tensor

    @property
    def var_nd(self) -> Tensor:
        """Marginal variances, the diagonal of the inverse precisions, shape ``(n, d)``."""
        factor = torch.linalg.cholesky_ex(self.precision_ndd)[0]
        return torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1)

    def take(self, cells: Tensor) -> GaussianPosterior:
        """Return the posteriors of the cells with the indices ``cells``."""
        return GaussianPosterior(self.loc_nd[cells], self.precision_ndd[cells])


class NewtonSweeps:
    """Alternating Newton steps for a linear decoder and the posteriors of some cells.

    Parameters
    ----------
    vae
        The model, with a linear decoder, from whose biases the sweeps start; weights start at zero.
        Only :meth:`write_decoder` changes the model.
    counts
        The cells, in memory.
    loc_nd
        Latent coordinates that the sweeps start from, shape ``(n, d)``.
    decoder_precision
        Precision of the Gaussian prior on the decoder's weights.
    seed
        Seed of the draws and of the halves of the peaks.
    max_peaks
        Number of peaks that are fitted, those that are open in most cells; None for all. See
        :meth:`include_all_peaks`.

    Examples
    --------
    >>> z_nd = torch.randn(40, 3)
    >>> sweeps = NewtonSweeps(model.vae, counts, z_nd, decoder_precision=50.0, seed=0)
    >>> sweeps.sweep(model.vae.prior)  # step_peaks for each half of the peaks, then step_cells
    >>> sweeps.standardize()
    >>> sweeps.step_peaks((torch.arange(60), sweeps.posterior.loc_nd))
    >>> sweeps.step_cells(model.vae.prior)
    >>> sweeps.include_all_peaks()  # has no effect without max_peaks
    >>> sweeps.write_decoder(model.vae)
    >>> sweeps.posterior.loc_nd.shape, sweeps.posterior.var_nd.shape
    (torch.Size([40, 3]), torch.Size([40, 3]))
    """

    def __init__(
        self,
        vae: MixtureVAE,
        counts: CountMatrix,
        loc_nd: Tensor,
        *,
        decoder_precision: float,
        seed: int,
        max_peaks: int | None = None,
    ) -> None:
        likelihood, n_latent = vae.likelihood, loc_nd.shape[1]
        cells = sparse_cells(counts).to(loc_nd)
        self.x_np = cells.x_np
        if cells.is_sparse:
            self.x_pn = from_scipy(sparse.csr_matrix(counts.read().T)).to(loc_nd)
        else:  # on devices that lack CSR tensors
            self.x_pn = cells.x_np.T
        self.binary = isinstance(likelihood, BernoulliLikelihood)
        self.log_depth_n = cells.depth_n.clamp_min(1.0).log()
        self.slope: Tensor | None = None
        if isinstance(likelihood, BernoulliLikelihood) and likelihood.depth_slope is not None:
            self.slope = likelihood.depth_slope.detach().clone()
            self.log_depth_n = self.log_depth_n - likelihood.mean_log_depth
        self.fixed_nb = loc_nd.new_ones(counts.n_cells, 1)  # the bias's input, after the batch's
        if likelihood.n_batches > 1 and cells.batch_n is not None:
            batch_nb = likelihood.batch_inputs(cells.batch_n).to(loc_nd)
            self.fixed_nb = torch.cat([batch_nb, self.fixed_nb], 1)
        bias_p = likelihood.peaks.bias.detach()
        self.w_pr = torch.zeros_like(likelihood.peaks.weight.detach())
        self.w_pr = torch.cat([self.w_pr, bias_p[:, None]], 1)
        self.start_pr = self.w_pr.clone()  # the mean of the weights' prior
        self.precision_r = torch.full_like(self.w_pr[0], decoder_precision)
        self.precision_r[-1] = _BIAS_PRECISION
        self.loc_nd = loc_nd
        self.precision_ndd = torch.eye(n_latent).to(loc_nd).expand(len(loc_nd), -1, -1)
        self.draws: tuple[Tensor, Tensor] = (loc_nd, loc_nd)  # given either half of the peaks
        self.generator = torch.Generator().manual_seed(seed)
        n_open_p = totals(self.x_pn)
        order = torch.argsort(n_open_p, descending=True, stable=True)
        self.peaks = order[:max_peaks].sort().values
        self.halves = self._new_halves()

    @property
    def posterior(self) -> GaussianPosterior:
        """The cells' posteriors after the last sweep; before the first, N(start, I).

        The precisions are those at the coordinates from which the last step was made.
        """
        return GaussianPosterior(self.loc_nd, self.precision_ndd)

    def sweep(self, prior: MixturePrior) -> None:
        """Make one Newton step for every peak, and then one for every cell.

        Parameters
        ----------
        prior
            The prior of z. For a mixture, each cell's prior is the Gaussian whose log-density is
            the components' average under q(c|x) (:meth:`MixturePrior.log_optimal_q_c`).
        """
        self.step_peaks(*((half, self.draws[1 - i]) for i, half in enumerate(self.halves)))
        self.step_cells(prior)

    @torch.no_grad()
    def standardize(self) -> None:
        """Bring the cells' posteriors, taken together, to mean zero and unit variance.

        The decoder changes accordingly, so that the logits remain the same.
        """
        n_latent = self.loc_nd.shape[1]
        mean_d = self.loc_nd.mean(0)
        var_d = (self.loc_nd - mean_d).square().mean(0) + self.posterior.var_nd.mean(0)
        sd_d = var_d.sqrt()
        self.loc_nd = (self.loc_nd - mean_d) / sd_d
        self.draws = ((self.draws[0] - mean_d) / sd_d, (self.draws[1] - mean_d) / sd_d)
        self.precision_ndd = self.precision_ndd * sd_d * sd_d[:, None]
        self.w_pr[:, -1] += self.w_pr[:, :n_latent] @ mean_d
        self.w_pr[:, :n_latent] *= sd_d

    def include_all_peaks(self, n_steps: int = 3) -> None:
        """Fit the weights of the peaks that are left out so far, and include them from now on.

        Parameters
        ----------
        n_steps
            Number of Newton steps for these peaks.
        """
        others = torch.ones_like(self.w_pr[:, 0], dtype=torch.bool)
        others[self.peaks] = False
        for _ in range(n_steps):
            self.step_peaks((others.nonzero().squeeze(-1), self.draws[0]))
        self.peaks = torch.arange(len(self.w_pr), device=self.w_pr.device)
        self.halves = self._new_halves()

    @torch.no_grad()
    def step_peaks(self, *parts: tuple[Tensor, Tensor]) -> None:
        """Make one Newton step for the weights of peaks.

        Parameters
        ----------
        parts
            Pairs of indices of peaks, and of latent coordinates of the cells, ``(n, d)``, at which
            these peaks are fitted.
        """
        for peaks, z_nd in parts:
            h_nr = self._features(z_nd)
            w_pr = self.w_pr[peaks]
            sums = expected_sums(w_pr, h_nr, h_nr, None, self._shift(h_nr), binary=self.binary)
            gradient_pr = matmul(self.x_pn, h_nr)[peaks] - sums.mean_is
            gradient_pr -= self.precision_r * (w_pr - self.start_pr[peaks])
            curvature_prr = sums.curvature_iss + torch.diag(self.precision_r)
            self.w_pr[peaks] = w_pr + newton_step(gradient_pr, curvature_prr, _LONGEST_W)

    @torch.no_grad()
    def step_cells(self, prior: MixturePrior) -> None:
        """Make one Newton step for the coordinates of every cell and for the depth slope.

        It draws new halves of the peaks, and a draw of each cell's coordinates given either half.

        Parameters
        ----------
        prior
            The prior of z, as in :meth:`sweep`.
        """
        n_latent = self.loc_nd.shape[1]
        h_nr = self._features(self.loc_nd)
        shift_n = self._shift(h_nr)
        self.halves = self._new_halves()
        c_ps = torch.cat([self.w_pr[:, :n_latent], torch.ones_like(self.w_pr[:, :1])], 1)
        prior_ndd, pull_nd = self._prior(prior)
        draws: list[Tensor] = []
        total_ns, total_nss = h_nr.new_zeros(1, 1), h_nr.new_zeros(1, 1, 1)
        for peaks in self.halves:
            sums = expected_sums(
                h_nr, self.w_pr[peaks], c_ps[peaks], shift_n, None, binary=self.binary
            )
            masked_ps = torch.zeros_like(c_ps)
            masked_ps[peaks] = c_ps[peaks]
            gradient_ns = matmul(self.x_np, masked_ps) - sums.mean_is
            gradient_nd, curvature_ndd = self._of_z(gradient_ns, sums.curvature_iss)
            draws.append(self._draw(gradient_nd + pull_nd, curvature_ndd + prior_ndd))
            total_ns, total_nss = total_ns + gradient_ns, total_nss + sums.curvature_iss
        gradient_nd, curvature_ndd = self._of_z(total_ns, total_nss)
        self.precision_ndd = curvature_ndd + prior_ndd
        step_nd = newton_step(gradient_nd + pull_nd, self.precision_ndd, _LONGEST_Z)
        self.loc_nd = self.loc_nd + step_nd
        self.draws = (draws[0], draws[1])
        if self.slope is not None:
            slope = (total_ns[:, -1] * self.log_depth_n).sum()
            curvature = (total_nss[:, -1, -1] * self.log_depth_n.square()).sum()
            self.slope += (slope / curvature.clamp_min(1e-6)).clamp(-0.2, 0.2)

    @torch.no_grad()
    def write_decoder(self, vae: MixtureVAE) -> None:
        """Copy the weights, biases and depth slope to the decoder of ``vae``."""
        layer = vae.likelihood.peaks
        layer.weight.copy_(self.w_pr[:, :-1])
        layer.bias.copy_(self.w_pr[:, -1])
        if self.slope is not None and isinstance(vae.likelihood, BernoulliLikelihood):
            vae.likelihood.depth_slope.copy_(self.slope)  # type: ignore[union-attr]  # has one

    def _features(self, z_nd: Tensor) -> Tensor:
        return torch.cat([z_nd, self.fixed_nb], 1)

    def _shift(self, h_nr: Tensor) -> Tensor | None:
        """Return the shift of each cell's natural parameters, shape ``(n,)``."""
        if self.binary:
            return None if self.slope is None else self.slope * self.log_depth_n
        eta = Logits(h_nr, self.w_pr, torch.zeros_like(self.w_pr[:, 0]))
        return self.log_depth_n - logsumexp_over_peaks(eta)

    def _of_z(self, gradient_ns: Tensor, curvature_nss: Tensor) -> tuple[Tensor, Tensor]:
        """Return gradient and curvature with respect to z, without the last input, the constant.

        With the Poisson likelihood the constant stands for the cell's normalizer (softmax over
        peaks), which follows z: it is eliminated by the Schur complement.
        """
        gradient_nd, curvature_ndd = gradient_ns[:, :-1], curvature_nss[:, :-1, :-1]
        if self.binary:
            return gradient_nd, curvature_ndd
        along_nd = curvature_nss[:, :-1, -1]
        share_nd = along_nd / curvature_nss[:, -1, -1].clamp_min(1e-6)[:, None]
        gradient_nd = gradient_nd - share_nd * gradient_ns[:, -1:]
        return gradient_nd, curvature_ndd - share_nd[:, :, None] * along_nd[:, None, :]

    def _prior(self, prior: MixturePrior) -> tuple[Tensor, Tensor]:
        """Return each cell's prior precision and the gradient of its log prior density."""
        q_c_nk = prior.log_optimal_q_c(self.loc_nd, self.posterior.var_nd).exp()
        precision_nd = q_c_nk @ prior.var_kd.reciprocal()
        pull_nd = q_c_nk @ (prior.loc_kd / prior.var_kd) - precision_nd * self.loc_nd
        return torch.diag_embed(precision_nd), pull_nd

    def _draw(self, gradient_nd: Tensor, precision_ndd: Tensor) -> Tensor:
        """Return a draw of z from the Gaussian at the Newton step."""
        step_nd = newton_step(gradient_nd, precision_ndd, _LONGEST_Z)
        factor_ndd = torch.linalg.cholesky_ex(precision_ndd)[0]
        noise = torch.randn(*step_nd.shape, 1, generator=self.generator).to(step_nd)
        spread: Tensor = torch.linalg.solve_triangular(factor_ndd.mT, noise, upper=True)
        return self.loc_nd + step_nd + spread.squeeze(-1)

    def _new_halves(self) -> tuple[Tensor, Tensor]:
        order = torch.randperm(len(self.peaks), generator=self.generator).to(self.peaks.device)
        middle = (len(order) + 1) // 2
        return self.peaks[order[:middle].sort().values], self.peaks[order[middle:].sort().values]
