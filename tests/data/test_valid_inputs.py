"""What is valid is taken and read as it is: a part of ``tests/benchmarks/valid_inputs.py``."""

import numpy as np
import pytest
from helpers.valid_inputs import one


@pytest.mark.parametrize("number", range(60))
def test_a_valid_input_is_not_refused(number, tmp_path):
    one(np.random.default_rng([19, number]), tmp_path)
