"""Models made to harm: none runs code, reads elsewhere, or makes room for what it merely claims."""

import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from helpers import small_scale, train
from helpers.corrupt_files import Payload, fix_checksums, pickled
from helpers.file_formats import a_dozen_cells
from helpers.fuzz_targets import original_state

import pyro_scale as ps
from pyro_scale.serialization.model_dir import FILES


@pytest.fixture(scope="module")
def cells():
    return a_dozen_cells()


@pytest.fixture(scope="module")
def model(cells):
    return train(small_scale(cells, 2), 2)


@pytest.fixture
def folder(model, tmp_path):
    model.save(tmp_path / "model")
    return tmp_path / "model"


def torch_saved(payload, *, zipped=True):
    buffer = io.BytesIO()
    torch.save({"pi": payload}, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def torch_older(payload):
    return torch_saved(payload, zipped=False)


CODE = [pickled, torch_saved, torch_older]


@pytest.mark.parametrize("write", CODE)
def test_the_payload_would_make_a_file(write, tmp_path):
    """Power of the tests below."""
    data = io.BytesIO(write(Payload(tmp_path / "ran")))
    pickle.load(data) if write is pickled else torch.load(data, weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("write", CODE)
@pytest.mark.parametrize("name", [*FILES, "model.pt"])
def test_a_pickle_in_a_models_place_runs_nothing(name, write, cells, folder, tmp_path):
    trace = tmp_path / "ran"
    (folder / name).write_bytes(write(Payload(trace)))
    if name != "model.json":
        fix_checksums(folder)
    load, path = (ps.SCALE.load, folder)
    if name == "model.pt":
        load, path = (ps.SCALE.from_original, folder / name)
    with pytest.raises(ps.ModelFileError):
        load(path, cells)
    assert not trace.exists()


def deep(text):
    return (text * 100_000).encode()


BOMBS = {
    "deep lists": deep("["),
    "deep objects": deep('{"a":'),
    "a number of a million digits": b"1" * 10**6,
    "lists closed": deep("[") + deep("]"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_of_json_is_refused(bomb, cells, folder):
    (folder / "model.json").write_bytes(BOMBS[bomb])
    with pytest.raises(ps.ModelFileError, match=r"is not JSON|nested too deeply"):
        ps.SCALE.load(folder, cells)
    inside = b'{"schema_version": 5, "peak_names": ' + BOMBS[bomb] + b"}"
    (folder / "model.json").write_bytes(inside)
    with pytest.raises(ps.ModelFileError, match=r"is not JSON|nested too deeply|has the keys"):
        ps.SCALE.load(folder, cells)


def test_json_of_many_gigabytes_is_not_read(cells, folder):
    with (folder / "model.json").open("r+b") as file:
        file.truncate(10 * 2**30)  # sparse: takes no room
    with pytest.raises(ps.ModelFileError, match="no saved model has more than"):
        ps.SCALE.load(folder, cells)


@pytest.mark.parametrize(
    "options",
    [
        {"hidden": [2**20] * 50},
        {"hidden": [10**12]},
        {"n_latent": 2**20, "decoder_hidden": [2**20] * 3},
        {"n_components": 2**20, "n_latent": 2**20},
        {"batch_key": "b", "batches": [str(n) for n in range(10**5)]},
    ],
)
def test_no_room_is_made_for_weights_that_are_not_there(options, cells, folder):
    model = json.loads((folder / "model.json").read_text())
    model["config"] |= options
    (folder / "model.json").write_text(json.dumps(model))
    fix_checksums(folder)
    tracemalloc.start()
    with pytest.raises(ps.ModelFileError, match="do not fit each other"):
        ps.SCALE.load(folder, cells)
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**40) + b"{" + b" " * 100,
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 70)
        + b'{"prior.loc_kd":{"dtype":"F32","shape":[1000000000000],"data_offsets":'[:70],
    ],
)
def test_a_header_of_weights_is_not_taken_at_its_word(header, cells, folder):
    (folder / "weights.safetensors").write_bytes(header)
    fix_checksums(folder)
    with pytest.raises(ps.ModelFileError):
        ps.SCALE.load(folder, cells)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../etc/passwd", "own"])
def test_a_link_in_a_models_folder_is_not_followed(name, target, cells, folder):
    whole = (folder / name).read_bytes()
    (folder.parent / "own").write_bytes(whole)  # even if what it leads to is in order
    (folder / name).unlink()
    (folder / name).symlink_to(folder.parent / "own" if target == "own" else target)
    with pytest.raises(ps.ModelFileError, match="is a link, a folder or a device"):
        ps.SCALE.load(folder, cells)


def test_a_pipe_or_a_device_in_a_models_folder_is_not_waited_for(cells, folder):
    (folder / "weights.safetensors").unlink()
    os.mkfifo(folder / "weights.safetensors")
    with pytest.raises(ps.ModelFileError, match="is a link, a folder or a device"):
        ps.SCALE.load(folder, cells)


@pytest.mark.parametrize("name", ["../peaks.json", "/etc/passwd", "model.json/../../own"])
def test_a_name_in_the_place_of_a_checksum_opens_no_file(name, cells, folder):
    model = json.loads((folder / "model.json").read_text())
    model["sha256"] = {name: "0" * 64}
    (folder / "model.json").write_text(json.dumps(model))
    with pytest.raises(ps.ModelFileError, match="changed after it was saved"):
        ps.SCALE.load(folder, cells)


def compressed(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def test_a_zip_that_swells_is_not_unpacked(cells, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(original_state(cells.n_vars), path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    bomb = {n: bytes(2**24) if "/data/" in n else data for n, data in entries.items()}
    for content in (entries, bomb, {"arr_0.npy": bytes(2**24)}):  # the last as an npz
        compressed(path, content)
        with pytest.raises(ps.ModelFileError, match="is compressed inside"):
            ps.SCALE.from_original(path, cells)
    np.savez_compressed(tmp_path / "a.npz", np.zeros(2**22))
    with pytest.raises(ps.ModelFileError, match="is compressed inside"):
        ps.SCALE.from_original(tmp_path / "a.npz", cells)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pi": torch.zeros(1).expand(10**9)}, "claims weights of"),
        ({"encoder.hidden.0.weight": torch.zeros(10**6, 0)}, "no dictionary of named tensors"),
        ({"mu_c": torch.zeros(3, 2).to_sparse()}, "no dictionary of named tensors"),
        ({"mu_c": torch.zeros(3, 2, device="meta")}, "no dictionary of named tensors"),
    ],
)
def test_no_room_is_made_for_tensors_that_are_not_there(change, words, cells, tmp_path):
    if "pi" in change:  # written small: a view of one number
        buffer = io.BytesIO()
        torch.save(original_state(cells.n_vars) | change, buffer)
        (tmp_path / "model.pt").write_bytes(buffer.getvalue())
    else:
        torch.save(original_state(cells.n_vars) | change, tmp_path / "model.pt")
    with pytest.raises(ps.ModelFileError, match=words):
        ps.SCALE.from_original(tmp_path / "model.pt", cells)


def test_what_is_not_damaged_is_still_read(model, cells, folder, tmp_path):
    """Power of all the above: the same files without the attack."""
    assert ps.SCALE.load(folder, cells).is_trained
    torch.save(original_state(cells.n_vars), tmp_path / "model.pt")
    assert ps.SCALE.from_original(tmp_path / "model.pt", cells).is_trained
