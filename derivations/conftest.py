"""Fixtures of the derivation tests: float64, a fixed seed, and random models."""

from collections.abc import Iterator

import pyro
import pytest
import torch
from oracle import Models
from oracle_batches import BATCHES, batch


@pytest.fixture(autouse=True)
def float64_from_a_seed() -> Iterator[None]:
    """Run each test in float64 from a fixed seed; assert that Pyro's store is unchanged."""
    dtype, stored = torch.get_default_dtype(), set(pyro.get_param_store().keys())
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    with pyro.validation_enabled(True):
        yield
    torch.set_default_dtype(dtype)
    assert set(pyro.get_param_store().keys()) == stored


@pytest.fixture(params=BATCHES, ids=lambda kd: f"K{kd[0]},D{kd[1]}")
def models(request: pytest.FixtureRequest) -> Models:
    """Return random models, all four of whose gaps exceed 0.01 nat."""
    return batch(*request.param)
