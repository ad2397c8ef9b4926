"""A kernel that counts the lines of a text of numbers, as in a Matrix Market file."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from pyro_scale.ops._numba import compiled

__all__ = ["count_lines"]

_NUMBERS = b"0123456789+-.eEnaifNAIF"  # includes the letters of "nan" and "inf"
_BLANK = b" \t\r"
_OTHER, _IN_NUMBER, _BETWEEN, _END = 0, 1, 2, 3
_KIND = np.full(256, _OTHER, np.uint8)
_KIND[list(_NUMBERS)], _KIND[list(_BLANK)], _KIND[ord("\n")] = _IN_NUMBER, _BETWEEN, _END


@compiled(set())
def _scan(text, kind_of, n_fields, state):  # type: ignore[no-untyped-def]
    n_lines, n_here, in_number = state[0], state[1], state[2]
    for at in range(len(text)):
        kind = kind_of[text[at]]
        if kind == _OTHER or (kind == _END and n_here != 0 and n_here != n_fields):
            return at
        if kind == _END:
            n_lines += n_here > 0
            n_here = 0
        n_here += kind == _IN_NUMBER and in_number == 0
        in_number = kind == _IN_NUMBER
    state[0], state[1], state[2] = n_lines, n_here, in_number
    return -1


def count_lines(blocks: Iterable[bytes], n_fields: int) -> int:
    r"""Count the lines that are not blank, and check that each has ``n_fields`` numbers.

    ``blocks`` are consecutive parts of the text; a part may end in the middle of a line or number.

    Raises
    ------
    ValueError
        If a line has another number of fields, or a character that occurs in no number.

    Examples
    --------
    >>> count_lines([b"1 2 3\n4 5", b" 6\n"], 3)
    2
    """
    state: NDArray[np.int64] = np.zeros(3, np.int64)
    for block in chain(blocks, [b"\n"]):
        text = np.frombuffer(block, np.uint8)
        if (at := _scan(text, _KIND, n_fields, state)) >= 0:
            raise ValueError(
                f"line {int(state[0]) + block[:at].count(10) + 1} of the entries is not {n_fields} "
                f"numbers: ...{block[max(0, at - 40) : at + 10]!r}"
            )
    return int(state[0])
