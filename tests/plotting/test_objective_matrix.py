"""The comparison as a heat table: what stands where, and in which colour."""

import numpy as np
import pytest
from helpers.figures import ROWS

import pyro_scale as ps

pytestmark = pytest.mark.usefixtures("matplotlib_is_left_alone")


def places(axes):
    return {
        tuple(np.round(text.get_position()).astype(int)): text.get_text() for text in axes.texts
    }


def test_every_combination_has_its_place_its_closed_form_and_its_variance():
    axes = ps.pl.objective_matrix(ROWS).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["Trace", "TraceEnum"]
    rows = [text.get_text() for text in axes.get_yticklabels()]
    assert rows == ["collapsed · marginalized", "structured · enumerated", "scale · sampled"]
    shown = np.ma.filled(np.ma.masked_invalid(axes.images[0].get_array()), np.nan)
    np.testing.assert_array_equal(shown, [[30, np.nan], [np.nan, 8], [900, 200]])
    expected = {(0, 0): "= collapsed", (1, 1): "= scale", (0, 2): "≈ scale", (1, 2): "≈ scale"}
    assert places(axes) == expected


def test_failures_and_rows_without_power_are_framed_and_the_worst_of_a_place_counts():
    frames = ps.pl.objective_matrix(ROWS).axes[0].patches
    assert {tuple(np.round(f.get_xy()).astype(int)): f.get_linestyle() for f in frames} == {
        (1, 1): "--",
        (0, 2): "-",
    }
    twice = ROWS.iloc[[4, 4]].assign(status=["FAILS", "no power"], closed_form=["a", "b"])
    axes = ps.pl.objective_matrix(twice).axes[0]
    assert places(axes) == {(0, 0): "≈ a\n≈ b"}
    assert [frame.get_linestyle() for frame in axes.patches] == ["-"]


@pytest.mark.parametrize("value", [None, 0.0])
def test_without_any_variance_it_is_drawn_all_the_same(value):
    figure = ps.pl.objective_matrix(ROWS.assign(gradient_variance=value))
    figure.draw_without_rendering()


def test_a_real_comparison_is_drawn(cells):
    model = ps.SCALE(cells, n_components=2, n_latent=2, hidden=(8,))
    table = ps.compare(model, n_cells=4, n_samples=2, formulations=["collapsed"])
    axes = ps.pl.objective_matrix(table.to_frame()).axes[0]
    assert places(axes)[5, 0] == "= importance_\nweighted"
