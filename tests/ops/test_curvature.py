"""Gradients and curvatures of many observations, against the same sums over dense arrays."""

import pytest
import torch

from pyro_scale.ops import curvature
from pyro_scale.ops.curvature import expected_sums, newton_step


def _inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(13, 3), (9, 3), (9, 2), (13,), (9,)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("shifts", [(False, False), (True, False), (False, True), (True, True)])
def test_sums_are_those_of_dense_arrays(monkeypatch, binary, shifts):
    monkeypatch.setitem(curvature._TILE, "cpu", 4)  # several tiles, the last ones smaller
    a_ir, b_jr, c_js, s_i, t_j = _inputs()
    eta_ij = a_ir @ b_jr.T
    eta_ij = eta_ij + s_i[:, None] if shifts[0] else eta_ij
    eta_ij = eta_ij + t_j if shifts[1] else eta_ij
    mean_ij = eta_ij.sigmoid() if binary else eta_ij.exp()
    variance_ij = mean_ij * (1 - mean_ij) if binary else mean_ij
    sums = expected_sums(
        a_ir,
        b_jr,
        c_js,
        s_i if shifts[0] else None,
        t_j if shifts[1] else None,
        binary=binary,
    )
    torch.testing.assert_close(sums.mean_is, mean_ij @ c_js)
    expected = torch.einsum("ij,js,jt->ist", variance_ij, c_js, c_js)
    torch.testing.assert_close(sums.curvature_iss, expected)


def test_rates_far_from_the_optimum_stay_finite():
    rates = expected_sums(torch.full((1, 1), 1e3), torch.ones(2, 1), torch.ones(2, 1), binary=False)
    assert rates.mean_is.isfinite().all()
    assert rates.curvature_iss.isfinite().all()


def test_a_newton_step_solves_the_quadratic_and_is_bounded():
    factor = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    curvature_nrr = factor @ factor.mT
    gradient_nr = torch.ones(4, 3, dtype=torch.float64)
    step_nr = newton_step(gradient_nr, curvature_nrr, longest=1e9)
    torch.testing.assert_close((curvature_nrr @ step_nr[..., None])[..., 0], gradient_nr)
    assert newton_step(gradient_nr, curvature_nrr, longest=0.01).abs().max() <= 0.01


def test_rows_without_positive_curvature_do_not_move():
    curvature_nrr = torch.stack([torch.eye(2), -torch.eye(2), torch.full((2, 2), torch.nan)])
    step_nr = newton_step(torch.ones(3, 2), curvature_nrr, longest=5.0)
    assert step_nr.tolist() == [[1, 1], [0, 0], [0, 0]]
