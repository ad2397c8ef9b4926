"""A user's program has types: `mypy --strict` reads it with the package, and it runs.

``assert_type`` is mypy's claim; the test beside it holds the same claim against what is returned.
"""

from pathlib import Path
from typing import Any, TypeAlias, assert_type

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

import pyro_scale as ps
from pyro_scale.comparison import Comparison, Ladder

Series: TypeAlias = "pd.Series[Any]"  # pandas' own class takes no [] when it runs


def test_a_users_program(tmp_path: Path) -> None:
    adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    model = ps.SCALE(adata, n_components=2, n_latent=2, hidden=(8,))
    model.train(max_epochs=1)

    z_nd = assert_type(model.get_latent_representation(), NDArray[np.float32])
    assert z_nd.dtype == np.float32
    gamma = assert_type(model.get_responsibilities(), NDArray[np.float32])
    assert gamma.dtype == np.float32
    assert isinstance(assert_type(model.get_elbo(), Series), pd.Series)
    assert isinstance(assert_type(model.get_cluster_assignments(), Series), pd.Series)
    assert isinstance(assert_type(model.history, pd.DataFrame), pd.DataFrame)
    assert isinstance(assert_type(model.is_trained, bool), bool)

    model.save(tmp_path / "model")
    assert isinstance(assert_type(ps.SCALE.load(tmp_path / "model", adata), ps.SCALE), ps.SCALE)
    assert isinstance(assert_type(ps.compare(model), Comparison), Comparison)
    assert isinstance(assert_type(ps.ladder(model), Ladder), Ladder)
    assert isinstance(assert_type(ps.pl.history(model.history), Axes), Axes)
