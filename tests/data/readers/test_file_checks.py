"""Consistency checks of files, on what no reader meets by chance."""

import h5py
import numpy as np
import pytest

import pyro_scale as ps
from pyro_scale.data.readers._file_checks import _check_not_ragged


def test_ragged_numbers_are_found_within_other_types():
    ragged = h5py.vlen_dtype(np.int32)
    inside = np.dtype([("a", np.int32), ("b", ragged)])
    for kind in (ragged, inside, np.dtype((inside, (2,)))):
        with pytest.raises(ps.DataError, match="x is ragged"):
            _check_not_ragged(h5py.h5t.py_create(kind, logical=True), "x")
    plain = np.dtype([("a", np.int32), ("b", np.float64, (2,))])
    _check_not_ragged(h5py.h5t.py_create(plain, logical=True), "x")
