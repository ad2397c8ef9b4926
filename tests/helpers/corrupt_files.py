"""How files and arguments are damaged: at random, and so that no checksum notices."""

import hashlib
import json
import os
import pickle
import string

import numpy as np
import pandas as pd
from scipy import sparse

from pyro_scale.serialization.model_dir import checksum

__all__ = ["Payload", "damaged_bytes", "damaged_json", "fix_checksums", "pickled", "strange_value"]


def fix_checksums(folder):
    """Give a changed model the checksums of its files, as an attacker would."""
    model = json.loads((folder / "model.json").read_bytes())
    if isinstance(model, dict):
        weights = (folder / "weights.safetensors").read_bytes()
        model["weights_sha256"] = hashlib.sha256(weights).hexdigest()
        model["sha256"] = checksum(model)
        (folder / "model.json").write_text(json.dumps(model))


def damaged_bytes(data, rng, other=b""):
    """The bytes after one to eight mutations; ``other`` is a file to splice from."""
    data = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 1, 2, 3, 8]))):
        data = MUTATIONS[int(rng.integers(len(MUTATIONS)))](data, rng, other)
    return bytes(data)


def _place(data, rng):
    return int(rng.integers(len(data) + 1))


def _span(data, rng):
    start = _place(data, rng)
    longest = int(rng.choice([2, 16, 256, len(data) + 1]))
    return start, min(len(data), start + int(rng.integers(1, longest + 1)))


def _flip(data, rng, _):
    if data:
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return data


def _overwrite(data, rng, _):
    """A run of bytes becomes numbers at which sizes and offsets overflow, or noise."""
    start = _place(data, rng)
    extremes = [
        b"\xff" * 8,
        b"\x00" * 8,
        b"\xff\xff\xff\x7f",
        b"\x00" * 7 + b"\x80",
        b"\xff",
        b"\x00",
    ]
    noise = rng.bytes(int(rng.integers(1, 9)))
    new = [*extremes, noise][int(rng.integers(len(extremes) + 1))]
    data[start : start + len(new)] = new
    return data


def _cut(data, rng, _):
    return data[: _place(data, rng)]


def _drop(data, rng, _):
    start, end = _span(data, rng)
    del data[start:end]
    return data


def _insert(data, rng, _):
    at = _place(data, rng)
    text = string.printable.encode()
    some = [rng.bytes(int(rng.integers(1, 40))), bytes(rng.choice(list(text), 10).tolist()), *WORDS]
    data[at:at] = some[int(rng.integers(len(some)))]
    return data


def _repeat(data, rng, _):
    start, end = _span(data, rng)
    data[end:end] = data[start:end] * int(rng.choice([1, 2, 30]))
    return data[: 2**20]


def _swap(data, rng, _):
    (a, b), (c, d) = sorted([_span(data, rng), _span(data, rng)])
    if b <= c:
        data = data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]
    return data


def _splice(data, rng, other):
    start, end = _span(bytearray(other), rng)
    at = _place(data, rng)
    data[at : at + int(rng.integers(2)) * (end - start)] = other[start:end]
    return data


def _digits(data, rng, _):
    """A number in a text becomes another."""
    digits = [i for i, byte in enumerate(data) if 48 <= byte < 58]
    if digits:
        at = digits[int(rng.integers(len(digits)))]
        new = NUMBERS[int(rng.integers(len(NUMBERS)))]
        data[at : at + 1] = new
    return data


MUTATIONS = [_flip, _overwrite, _cut, _drop, _insert, _repeat, _swap, _splice, _digits, _flip]
WORDS = [
    b"\n",
    b"\t",
    b",",
    b'"',
    b"\r",
    b"\x00",
    b"#",
    b"%",
    b"NaN",
    b"inf",
    b"1e999",
    b"-1",
    b"{",
    b"]",
]
NUMBERS = [
    b"-1",
    b"0",
    b"999999999999",
    b"9" * 30,
    b"1e308",
    b"1e-400",
    b"nan",
    b"0x10",
    b"1_0",
    b"1.5",
]


def damaged_json(content, rng):
    """A copy of a JSON value with some of it replaced, taken out, added or wrapped."""
    text = json.dumps(content)
    for _ in range(int(rng.choice([1, 1, 2, 4]))):
        try:
            text = json.dumps(_one_json(json.loads(text), rng))
        except RecursionError:  # nested deeper than can be written
            break
    return json.loads(text)


def _one_json(content, rng):
    places = [(None, None), *_places(content)]
    parent, key = places[int(rng.integers(len(places)))]
    if parent is None:
        return _json_value(rng) if rng.random() < 0.3 else content
    action = int(rng.integers(5))
    if action == 0:
        del parent[key]
    elif action == 1 and isinstance(parent, dict):
        parent[str(_json_value(rng))[:20]] = _json_value(rng)
    elif action == 1:
        parent.insert(key, _json_value(rng))
    elif action == 2:
        parent[key] = [parent[key]]
    elif action == 3:
        other, at = places[1 + int(rng.integers(len(places) - 1))]
        parent[key] = json.loads(json.dumps(other[at])) if _has(other, at) else None
    else:
        parent[key] = _json_value(rng)
    return content


def _has(parent, key):
    return key in parent if isinstance(parent, dict) else key < len(parent)


def _places(content):
    """Every entry as its parent and its key."""
    if isinstance(content, dict | list):
        keys = list(content) if isinstance(content, dict) else range(len(content))
        for key in keys:
            yield content, key
            yield from _places(content[key])


def _json_value(rng):
    values = [
        None, True, False, 0, 1, -1, 2, 17, 2**31, 2**63, 10**12, 10**40, 0.5, -0.0, 1e308,
        float("nan"), float("inf"), "", "a", "softplus", "exp", "poisson", "plain", "x" * 5000,
        "../../etc/passwd", "/dev/zero", "\ud800", "\x00", [], {}, [[]], [1, 2], {"a": 1},
        [None] * 1000, [10**12], [1] * 200, _deep(50), _deep(900), ["b1", "b2"],
    ]  # fmt: skip
    return values[int(rng.integers(len(values)))]


def _deep(n):
    value = []
    for _ in range(n):
        value = [value]
    return value


class _Odd:
    """An object that nothing expects."""

    def __repr__(self):
        return "an odd object"


def strange_value(rng):
    """Something that an argument may be given by mistake."""
    values = [
        None, True, False, 0, 1, -1, 2, 3, 10**7, 10**12, 10**30, -(2**63), 0.0, 0.5, 1.5, -0.5,
        1e308, float("nan"), float("inf"), -float("inf"), 1j, "", "a", "0", "1", "auto",
        "collapsed", "amortized", "scale", "poisson", "optimal", "typical", "change", "cell_type",
        "\x00", "x" * 300, b"bytes", [], (), {}, set(), [0], [1, 2], (64,), [0.5], ["a", "b"],
        [None], [[]], [[1], [1, 2]], {"a": 1}, {1, 2}, range(3), object(), _Odd(), int, len,
        lambda x: x, np.int64(3), np.float64(0.5), np.float32("nan"), np.bool_(True), np.str_("a"),
        np.array([]), np.array(3), np.arange(3), np.arange(12), np.ones((3, 2)), np.ones((12, 2)),
        np.full((12, 2), np.nan), np.array(["a"] * 12), np.array([None] * 12), np.zeros(12, bool),
        np.ones(12, bool), np.ones((2, 2, 2)), np.array(["a", 1], dtype=object),
        pd.Series(["a", "b"] * 6), pd.Series([np.nan] * 12), pd.DataFrame({"a": [1, 2]}), pd.NA,
        pd.Categorical(["a", "b"] * 6), pd.Categorical([None] * 12), pd.Index(["a", "b"]), pd.NaT,
        sparse.csr_matrix((12, 3)), sparse.csr_matrix(np.ones((12, 2))), slice(None), Ellipsis,
        NotImplemented, ValueError("x"), iter([1, 2]), memoryview(b"ab"),
    ]  # fmt: skip
    return values[int(rng.integers(len(values)))]


class Payload:
    """Unpickled, it makes a file: code that ran is noticed."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return (os.mkdir, (self.trace,))


def pickled(payload):
    return pickle.dumps(payload)
