"""Every derivation is checked in float64, from a fixed seed, without side effects."""

from collections.abc import Iterator

import pyro
import pytest
import torch
from oracle import Models
from oracle_batches import BATCHES, batch


@pytest.fixture(autouse=True)
def float64_from_a_seed() -> Iterator[None]:
    """float64 while a test runs; Pyro's parameter store must be left as it was found."""
    dtype, stored = torch.get_default_dtype(), set(pyro.get_param_store().keys())
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    with pyro.validation_enabled(True):
        yield
    torch.set_default_dtype(dtype)
    assert set(pyro.get_param_store().keys()) == stored


@pytest.fixture(params=BATCHES, ids=lambda kd: f"K{kd[0]},D{kd[1]}")
def models(request: pytest.FixtureRequest) -> Models:
    """Random models, all of whose gaps exceed 0.01 nat."""
    return batch(*request.param)
