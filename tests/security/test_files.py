"""Files of cells made to harm: as in test_attacks.py, for what ``ps.read`` takes."""

import gzip
import json

import anndata
import h5py
import numpy as np
import pytest
from helpers.corrupt_files import Payload, pickled
from helpers.file_formats import BED, a_dozen_cells, write_10x_h5, write_h5ad, write_mtx, write_zarr

import pyro_scale as ps


@pytest.fixture(scope="module")
def cells():
    return a_dozen_cells()


def test_a_pickle_inside_an_h5ad_or_zarr_runs_nothing(cells, tmp_path):
    trace = tmp_path / "ran"
    code = np.frombuffer(pickled(Payload(trace)), np.uint8)
    path = write_h5ad(cells, tmp_path / "a.h5ad")
    with h5py.File(path, "a") as file:
        file["uns/payload"] = code
        file["uns/payload"].attrs.update({"encoding-type": "pickle", "encoding-version": "0.1.0"})
    with pytest.raises(ps.DataError, match="cannot be read as AnnData"):
        ps.read(path)
    zarr = write_zarr(cells, tmp_path / "a.zarr", version=2)
    header = max((zarr / "obs" / "_index").rglob(".zarray"))  # of the names: anndata 0.13's values
    array = json.loads(header.read_text())
    header.write_text(json.dumps(array | {"dtype": "|O", "filters": [{"id": "pickle"}]}))
    (header.parent / "0").write_bytes(bytes(code))
    with pytest.raises(ps.DataError):
        ps.read(zarr)
    np.savez(tmp_path / "a.npz", np.array([Payload(trace)], object))
    with pytest.raises(ps.DataError, match="has no known format"):
        ps.read(tmp_path / "a.npz")
    with pytest.raises(ps.ModelFileError):
        ps.SCALE.from_original(tmp_path / "a.npz", cells)
    assert not trace.exists()


def linked(kind, secret):
    """Something in an HDF5 file that is elsewhere."""

    def change(file):
        x = file["X/data"][...] if "X" in file else file["matrix/data"][...]
        group = file["X"] if "X" in file else file["matrix"]
        del group["data"]
        if kind == "link":
            group["data"] = h5py.ExternalLink(secret, "/data")
        elif kind == "soft link":
            group["data"] = h5py.SoftLink("/X/indices")
        elif kind == "external":
            group.create_dataset("data", x.shape, "u1", external=[(str(secret), 0, x.size)])
        else:
            layout = h5py.VirtualLayout(x.shape, x.dtype)
            layout[:] = h5py.VirtualSource(secret, "data", x.shape)
            group.create_virtual_dataset("data", layout)

    return change


@pytest.mark.parametrize("kind", ["link", "soft link", "external", "virtual"])
@pytest.mark.parametrize("write", [write_h5ad, write_10x_h5])
def test_a_file_whose_numbers_are_elsewhere_is_refused(kind, write, cells, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(range(256)) * 40)
    path = write(cells, tmp_path / ("a.h5ad" if write is write_h5ad else "a.h5"))
    with h5py.File(path, "a") as file:
        linked(kind, secret)(file)
    with pytest.raises(ps.DataError, match=r"is a link to|are in other files"):
        ps.read(path)


def test_a_group_within_itself_is_refused(cells, tmp_path):
    path = write_h5ad(cells, tmp_path / "a.h5ad")
    with h5py.File(path, "a") as file:
        file["uns/again"] = file["uns"]
    with pytest.raises(ps.DataError, match="is in two places, or in itself"):
        ps.read(path)


@pytest.mark.parametrize("backed", [False, True])
def test_an_array_of_nothing_is_not_made_room_for(backed, cells, tmp_path):
    path = write_h5ad(cells, tmp_path / "a.h5ad")
    with h5py.File(path, "a") as file:
        file.create_dataset("layers/big", (2**40,), "f8", chunks=(1024,))
        file["layers/big"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    with pytest.raises(ps.DataError, match=r"claims that .*/layers/big has 8796093022208"):
        ps.read(path, backed=backed)
    assert path.stat().st_size < 10**5


@pytest.mark.parametrize("header", ["999999999999 999999999999 9", "30 12 999999999999"])
def test_a_matrix_market_header_is_not_taken_at_its_word(header, cells, tmp_path):
    folder = write_mtx(cells, tmp_path / "m", BED)
    text = (folder / "matrix.mtx").read_text().split("\n", 3)
    (folder / "matrix.mtx").write_text("\n".join([*text[:2], header, text[3]]))
    with pytest.raises(ps.DataError, match=r"does not fit|claims 999999999999 entries"):
        ps.read(folder)


def test_a_line_without_end_is_not_read_to_it(cells, tmp_path, monkeypatch):
    monkeypatch.setattr("pyro_scale.data.readers.text_tables._LONGEST", 2**16)
    for data in (b"," * 2**24, b"a,b\nc," + b"1" * 2**24):
        (tmp_path / "a.csv.gz").write_bytes(gzip.compress(data))
        with pytest.raises(ps.DataError, match="a line of more than 65536 characters"):
            ps.read(tmp_path / "a.csv.gz")


def test_what_is_not_damaged_is_still_read(cells, tmp_path):
    """Power of all the above: the same file without the attack."""
    path = write_h5ad(cells, tmp_path / "a.h5ad")
    assert ps.read(path).shape == anndata.read_h5ad(path).shape
