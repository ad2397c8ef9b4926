"""What every test starts from, and must leave as it was."""

import os
import random
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import anndata
import numpy as np
import pyro
import pytest
import torch
from helpers.figures import a_result, state_of_matplotlib
from helpers.registered_formulation import (
    CLOSED_FORM,
    EXACT,
    ON_AVERAGE,
    TEMPERED,
    all_that_is_registered,
)

import pyro_scale as ps


def pytest_unconfigure(config):
    """pytest-mpl's folder of images that differ goes, if there is none in it."""
    folder = getattr(config, "pytest_mpl_results_dir", None)
    if folder and not hasattr(config, "workerinput"):
        with suppress(OSError):
            Path(folder).rmdir()


@pytest.fixture(autouse=True)
def nothing_of_the_caller_changes():
    """The library leaves Pyro's store and settings, torch's dtype and threads, the table alone."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (what the published package draws from)
    torch.manual_seed(0)
    before = _process_state()
    yield
    assert _process_state() == before


def _process_state():
    return {
        "parameter store": len(pyro.get_param_store()),
        "module_local_params": pyro.settings.get("module_local_params"),
        "validation": pyro.settings.get("validate_infer"),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "table": all_that_is_registered(),
    }


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real cells; see README. Skipped without them, except in CI, where they must be there."""
    folder = os.environ.get("PYRO_SCALE_DATA")
    if not folder:
        if os.environ.get("CI"):
            pytest.fail("PYRO_SCALE_DATA is not set, in CI")
        pytest.skip("real data: set PYRO_SCALE_DATA to the folder that holds the .h5ad files")
    return Path(folder)


@pytest.fixture
def forebrain(data_folder):
    return anndata.read_h5ad(data_folder / "forebrain_half.h5ad")


@pytest.fixture
def leukemia(data_folder):
    return anndata.read_h5ad(data_folder / "leukemia_aml_su070_su353.h5ad")


@pytest.fixture
def cells():
    """Eighty small cells in three clusters."""
    return ps.simulate(n_cells=80, n_peaks=120, n_clusters=3, density=0.1, seed=1)


@pytest.fixture
def counts():
    """The same with counts."""
    return ps.simulate(n_cells=80, n_peaks=120, n_clusters=3, density=0.2, counts=True, seed=1)


@pytest.fixture(scope="module")
def published():
    """PyPI scale 1.1.2, as released: it needs two names that numpy has dropped since."""
    names = {"warnings": warnings, "Inf": np.inf}
    for name, value in names.items():
        setattr(np, name, value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import scale as package
            import scale.specifity
            import scale.utils
    finally:
        for name in names:
            delattr(np, name)
    yield package
    for module in [m for m in sys.modules if m == "scale" or m.startswith("scale.")]:
        del sys.modules[module]


@pytest.fixture
def registered():
    """A formulation beside the package's own."""
    with ps.register(TEMPERED, [EXACT, ON_AVERAGE], CLOSED_FORM) as registration:
        yield registration


@pytest.fixture
def result():
    """What a model gives, without a model."""
    return a_result()


@pytest.fixture
def matplotlib_is_left_alone():
    before = state_of_matplotlib()
    yield
    assert state_of_matplotlib() == before
