"""Damaged files and wrong arguments, at random: taken, or refused by an error of ours.

A short version of ``tests/benchmarks/fuzz.py``, hypothesis over cells, and what once broke.
"""

import gzip
import json
import warnings

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from helpers import small_scale, train
from helpers.corrupt_files import damaged_bytes, damaged_json, fix_checksums
from helpers.file_formats import (
    FORMATS,
    V2,
    a_dozen_cells,
    write_10x_h5,
    write_h5ad,
    write_mtx,
    write_zarr,
)
from helpers.fuzz_arguments import strange_cells
from helpers.fuzz_targets import TARGETS, is_ours, original_state, outcome
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

import pyro_scale as ps
from pyro_scale.data import CountMatrix
from pyro_scale.data.readers import _file_checks

N = {"zarr": 60, "sealed": 80, "arguments": 250}  # slower, or wider, than the others' 150


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_damaged_is_taken_whole_or_refused_by_name(target, tmp_path):
    made = TARGETS[target](tmp_path / "files")
    found = []
    for number in range(N.get(target, 150)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            action, restore = made.one(np.random.default_rng([1, number]))
        found.append(outcome(action))
        restore()
        assert found[-1] in ("accepted", "refused"), f"input {number}: {found[-1]}"
    assert found.count("refused") > len(found) / 5  # power: it does damage


def test_an_error_that_is_not_ours_is_told_from_ours(tmp_path):
    """Power of the test above."""

    def stray():
        return {}["key"]

    assert "KeyError" in outcome(stray)
    assert "ValueError" in outcome(lambda: int("x"))  # raised here, not by the package
    assert "TypeError" in outcome(
        lambda: CountMatrix.from_anndata(a_dozen_cells(), 3, 4)
    )  # by Python
    assert outcome(lambda: CountMatrix.from_anndata(3)) == "refused"
    assert outcome(lambda: ps.read(tmp_path / "none.h5ad")) == "refused"
    assert outcome(a_dozen_cells) == "accepted"


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=80), other=st.binary(max_size=80), seed=st.integers(0, 2**32))
def test_a_mutation_is_a_function_of_its_seed(data, other, seed):
    one, two = (damaged_bytes(data, np.random.default_rng(seed), other) for _ in range(2))
    assert one == two


values = st.one_of(
    st.integers(-2, 5).map(float), st.floats(width=32), st.sampled_from([0.0, 1.0, np.nan, np.inf])
)


@settings(max_examples=150, deadline=None)
@given(
    x=hnp.arrays(np.float64, st.tuples(*[st.integers(0, 6)] * 2), elements=values),
    make=st.sampled_from([np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array]),
    names=st.sampled_from(["differ", "repeat", "regions"]),
    binary=st.booleans(),
)
def test_any_cells_are_counted_or_refused(x, make, names, binary):
    obs, var = (
        [f"{side}{n}" for n in range(size)] for side, size in zip("cp", x.shape, strict=True)
    )
    if names == "repeat" and len(obs) > 1:
        obs[1] = obs[0]
    if names == "regions":
        obs = [f"chr1_{n}_{n + 1}" for n in range(len(obs))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that repeat
        adata = anndata.AnnData(make(x), obs=pd.DataFrame(index=obs), var=pd.DataFrame(index=var))
    with np.errstate(over="ignore"):
        x32 = x.astype(np.float32)
    sound = (
        0 not in x.shape
        and np.isfinite(x32).all()
        and (x32 >= 0).all()
        and (x32 == np.rint(x32)).all()
        and (x32 > 0).any(1).all()
        and len(set(obs)) == len(obs)
        and names != "regions"
    )
    try:
        counts = CountMatrix.from_anndata(adata, binary=binary)
    except ps.DataError:
        assert not sound
    else:
        assert sound
        np.testing.assert_array_equal(counts.x.toarray(), x32 > 0 if binary else x32)


options = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 2**70), st.floats(), st.text(max_size=5),
    st.lists(st.integers(-1, 2**40), max_size=3), st.binary(max_size=3), st.just(object()),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    given_=st.dictionaries(
        st.sampled_from([
            "n_components", "n_latent", "formulation", "estimator", "c", "likelihood", "preset",
            "hidden", "decoder_hidden", "n_lsi", "layer", "batch_key", "seed",
        ]),
        options, min_size=1, max_size=3,
    )
)  # fmt: skip
def test_any_option_is_understood_or_refused(given_):
    """Before networks are built."""
    found = outcome(lambda: ps.scale.ModelConfig(**given_))
    assert found in ("accepted", "refused"), found


# What once broke, and how.


@pytest.mark.parametrize("large", [_file_checks._LARGE, 0], ids=["small", "large"])
def test_a_heap_of_strings_without_end_is_not_read_for_ever(tmp_path, monkeypatch, large):
    """HDF5 2.0 hangs on it: an entry of free space of no length, where strings have moved."""
    monkeypatch.setattr(_file_checks, "_LARGE", large)
    for path in (
        write_h5ad(a_dozen_cells(), tmp_path / "a.h5ad"),
        FORMATS["h5mu"](a_dozen_cells(), tmp_path),
    ):
        data = bytearray(path.read_bytes())
        at = data.index(b"GCOL") + 16
        for _ in range(3):
            at += 16 + -(-int.from_bytes(data[at + 8 : at + 16], "little") // 8) * 8
        data[at : at + 16] = bytes(16)
        path.write_bytes(data)
        with pytest.raises(ps.DataError, match=f"its strings at byte {at} have no end"):
            ps.read(path)


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_in_a_large_file_the_bytes_of_numbers_are_passed_over(tmp_path, compression):
    cells = ps.simulate(n_cells=400, n_peaks=300, n_clusters=2, density=0.2, seed=0)
    cells.write_h5ad(tmp_path / "a.h5ad", compression=compression)
    size = (tmp_path / "a.h5ad").stat().st_size
    passed = sum(end - start for start, end in _file_checks._numbers(tmp_path / "a.h5ad"))
    with h5py.File(tmp_path / "a.h5ad") as file:
        numbers = sum(file["X"][key].id.get_storage_size() for key in ("data", "indices", "indptr"))
    assert numbers <= passed < size


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda body: [*body[:-1], body[-1] + " 1 1 1 1 1"], "is not 3 numbers"),  # scipy crashes
        (lambda body: [*body[:4], "7", *body[5:]], "line 5 .* is not 3 numbers"),
        (lambda body: body[:-1], "claims .* entries and has"),
        (lambda body: [*body, body[-1]], "claims .* entries and has"),
        (lambda body: ["1 \x00 1", *body[1:]], "line 1 .* is not 3 numbers"),
    ],
)
def test_an_mtx_whose_lines_are_not_what_they_should_be(tmp_path, damage, words):
    folder = write_mtx(a_dozen_cells(), tmp_path, V2)
    (path,) = folder.glob("*.mtx")
    lines = path.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if not line.startswith("%")) + 1
    for end in ("", "\n", "\r\n\n"):  # and what is whole is read
        path.write_bytes("\r\n".join(lines).encode() + end.encode())
        assert ps.read(folder).n_obs == 12
    path.write_text("\n".join([*lines[:start], *damage(lines[start:])]))
    with pytest.raises(ps.DataError, match=words):
        ps.read(folder)


def test_a_string_whose_type_is_damaged_is_not_read(tmp_path):
    """A crash in h5py: a type of varying length that is neither string nor list."""
    path = write_h5ad(a_dozen_cells(), tmp_path / "a.h5ad")
    data = bytearray(path.read_bytes())
    at = data.rindex(b"\x19\x01\x01\x00\x10\x00\x00\x00")  # the last attribute's
    data[at + 1] = 0xFF
    path.write_bytes(data)
    with pytest.raises(ps.DataError, match="is ragged"):
        ps.read(path)


@pytest.mark.parametrize("indptr", ["descends", "ends early", "starts late", "ends at nothing"])
@pytest.mark.parametrize("kind", ["h5ad", "zarr v2", "10x h5"])
def test_rows_that_do_not_follow_each_other_are_refused(indptr, kind, tmp_path):
    """A crash in scipy or anndata, which take the bounds of rows on trust."""
    cells = a_dozen_cells()
    where, what = {
        "descends": (5, 2**30),
        "ends early": (-1, 3),
        "starts late": (0, 3),
        "ends at nothing": (slice(-2, None), 0),  # where check_format looks no further
    }[indptr]
    cells.X.indptr[where] = what
    x = cells.X
    cells.X = a_dozen_cells().X
    if kind == "10x h5":
        cells.X = None
        path = write_10x_h5_of(x, cells, tmp_path / "a.h5")
    elif kind == "h5ad":
        path = write_h5ad(cells, tmp_path / "a.h5ad")
        with h5py.File(path, "a") as file:
            file["X/indptr"][...] = x.indptr
    else:
        path = write_zarr(cells, tmp_path / "a.zarr", version=2)
        zarr.open_group(path, mode="a")["X/indptr"][...] = x.indptr
    for backed in (False, True) if kind != "10x h5" else (False,):
        with pytest.raises(
            ps.DataError, match=r"rows of its|row ends|entries|start at|index pointer"
        ):
            ps.read(path, backed=backed)


def write_10x_h5_of(x, cells, path):
    cells.X = a_dozen_cells().X
    write_10x_h5(cells, path)
    with h5py.File(path, "a") as file:
        file["matrix/indptr"][...] = x.indptr
    return path


@pytest.mark.parametrize("byte", [b"\x00", b"\x08", b"\x02", b"\xff", b"\x00" * 8])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_bytes_that_are_no_numbers_are_refused_in_a_matrix(byte, suffix, tmp_path):
    """A hang or a crash in scipy's reader of Matrix Market."""
    names = (f"matrix.mtx{suffix}", "barcodes.tsv", "peaks.bed")
    folder = write_mtx(a_dozen_cells(), tmp_path / "m", names, bed=True)
    opened = gzip.open if suffix else open
    with opened(folder / names[0], "rb") as file:
        data = file.read()
    with opened(folder / names[0], "wb") as file:
        file.write(data[:200].rstrip() + byte + data[200:])
    with pytest.raises(ps.DataError, match="is not 3 numbers"):
        ps.read(folder)


@pytest.mark.parametrize("index", [-1, 30, 2**30, None])
def test_indices_beyond_the_matrix_are_refused(index):
    """A crash, or eight gigabytes, in scipy."""
    cells = a_dozen_cells()
    if index is None:
        cells.X.indptr[-2:] = 0
    else:
        cells.X.indices[3] = index
    model = train(small_scale(a_dozen_cells(), 2), 1)
    for action in (
        lambda: CountMatrix.from_anndata(cells),
        lambda: ps.pp.match_peaks(cells, cells.var_names[:5]),
        lambda: ps.pp.tf_idf(cells),
        lambda: model.get_latent_representation(cells),
    ):
        with pytest.raises(ps.DataError, match="broken sparse matrix"):
            action()


def test_a_chunk_that_is_damaged_on_disk_is_told_when_it_is_read(tmp_path):
    """RuntimeError of a codec, or IndexError, when the cells were asked for."""
    path = write_zarr(a_dozen_cells(), tmp_path / "a.zarr", version=3)
    chunk = path / "X" / "indices" / "c" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-5] + bytes(5))
    with pytest.raises(ps.DataError, match="cannot be read as rows of counts"):
        CountMatrix.from_anndata(ps.read(path, backed=True))


def test_json_nested_as_deep_as_it_can_be_read_is_refused(tmp_path):
    """RecursionError when its checksum was taken."""
    model, cells = train(small_scale(a_dozen_cells(), 2), 1), a_dozen_cells()
    model.save(tmp_path / "model")
    content = json.loads((tmp_path / "model" / "model.json").read_text())
    for depth in (100, 500, 900, 990, 2000, 20_000):
        text = json.dumps(content | {"versions": "DEEP"}).replace(
            '"DEEP"', "[" * depth + "]" * depth
        )
        (tmp_path / "model" / "model.json").write_text(text)
        with pytest.raises(ps.ModelFileError):
            ps.SCALE.load(tmp_path / "model", cells)


def test_numbers_beyond_float32_are_no_model(tmp_path):
    """Latent means that are infinite."""
    cells = a_dozen_cells()
    for factor, dtype in ((1e38, torch.float32), (1e300, torch.float64)):
        state = {name: w.to(dtype) for name, w in original_state(cells.n_vars).items()}
        state["encoder.hidden.0.weight"] *= factor
        torch.save(state, tmp_path / "model.pt")
        with pytest.raises(ps.ModelFileError, match="training failed"):
            ps.SCALE.from_original(tmp_path / "model.pt", cells)


def test_weights_that_overflow_are_told_when_cells_are_asked_for(tmp_path):
    """Finite, and sealed by whoever made them: torch's ValueError, or NaN."""
    model = train(small_scale(a_dozen_cells(), 2), 1)
    with torch.no_grad():
        model.vae.encoder.loc.weight.fill_(3e38)
    model.save(tmp_path / "model")
    loaded = ps.SCALE.load(tmp_path / "model", a_dozen_cells())
    for verb in ("get_latent_representation", "get_responsibilities", "get_elbo", "get_pareto_k"):
        with pytest.raises(ps.NonFiniteError, match="is not finite"):
            getattr(loaded, verb)()


def test_strange_cells_and_json_differ():
    """Power: they are not one and the same."""
    shapes = {strange_cells(np.random.default_rng(n)).shape for n in range(40)}
    assert len(shapes) > 2
    content = {"a": [1, 2], "b": {"c": 3}}
    damaged = [json.dumps(damaged_json(content, np.random.default_rng(n))) for n in range(40)]
    assert len(set(damaged)) > 20
    assert not is_ours(KeyError("x"))
    assert callable(fix_checksums)
