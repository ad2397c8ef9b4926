"""A kernel that draws standard normal numbers from a stream of its own for each key.

The random bits are those of SplitMix64 (Steele et al. 2014, doi:10.1145/2660193.2660195), whose
state is a counter, so that a stream needs no set-up; numpy's generators need 10 microseconds each.
The bits become normal numbers by the transform of Box and Muller (1958,
doi:10.1214/aoms/1177706645).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_scale.ops._numba import compiled, in_parallel, parts

__all__ = ["keyed_normals"]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_27, _30, _31, _32 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_UNIT = np.float32(2.0**-32)
_TWO_PI = np.float32(2 * math.pi)
_ONE, _MINUS_TWO = np.float32(1), np.float32(-2)


@compiled({"contract"}, inline=True)
def _mixed(state):  # type: ignore[no-untyped-def]
    state = (state ^ (state >> _30)) * _MIX_1
    state = (state ^ (state >> _27)) * _MIX_2
    return state ^ (state >> _31)


@compiled({"contract"})
def _fill(keys_n, normals_snd, start, stop):  # type: ignore[no-untyped-def]
    n_samples, _, n_dims = normals_snd.shape
    for n in range(start, stop):
        state = keys_n[n]
        second: Any = np.float32(0)  # of the pair that is drawn together
        is_ready = False
        for s in range(n_samples):
            for d in range(n_dims):
                if is_ready:
                    normals_snd[s, n, d] = second
                    is_ready = False
                    continue
                state = state + _STEP
                bits = _mixed(state)
                # The first uniform number is in (0, 1], for its logarithm.
                uniform = np.float32(bits >> _32) * _UNIT + _UNIT
                angle = np.float32(bits & _LOW) * _UNIT * _TWO_PI
                radius = math.sqrt(max(_MINUS_TWO * math.log(uniform), np.float32(0)))
                normals_snd[s, n, d] = radius * math.cos(angle)
                second, is_ready = radius * math.sin(angle), True


def keyed_normals(
    keys_n: NDArray[np.uint64], seed: int, n_samples: int, n_dims: int
) -> NDArray[np.float32]:
    """Return standard normal numbers of shape ``(s, n, d)`` that depend on key and seed alone.

    The numbers of a key do not depend on the other keys, and those of fewer samples are the first
    of those of more.

    Examples
    --------
    >>> keys_n = np.arange(4, dtype=np.uint64)
    >>> normals_snd = keyed_normals(keys_n, seed=1, n_samples=1000, n_dims=3)
    >>> abs(float(normals_snd.mean())) < 0.05, abs(float(normals_snd.std()) - 1) < 0.05
    (True, True)
    >>> bool((keyed_normals(keys_n[2:], 1, 5, 3) == normals_snd[:5, 2:]).all())
    True
    """
    normals_snd = np.empty((n_samples, len(keys_n), n_dims), np.float32)
    # Twice mixed: neighboring keys and seeds would otherwise start near each other in one stream.
    states_n = np.asarray(keys_n, np.uint64).copy()
    with np.errstate(over="ignore"):
        seeded = _mixed_array(np.array([seed], np.uint64) + _STEP)
        states_n = _mixed_array(_mixed_array(states_n + _STEP) ^ seeded)
    ranges = [(states_n, normals_snd, *part) for part in parts(len(states_n))]
    in_parallel(_fill, ranges)
    return normals_snd


def _mixed_array(state_n: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state_n = (state_n ^ (state_n >> _30)) * _MIX_1
    state_n = (state_n ^ (state_n >> _27)) * _MIX_2
    return state_n ^ (state_n >> _31)
