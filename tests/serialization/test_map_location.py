"""A saved model has no device: it loads on any machine, and where one says."""

import json
import re

import pytest
import torch
from helpers import small_scale, train
from safetensors import safe_open

import pyro_scale as ps


@pytest.fixture
def saved(cells, tmp_path):
    model = train(small_scale(cells))
    model.save(tmp_path / "model")
    return model, tmp_path / "model"


def devices_of(model):
    parts = [*model.vae.parameters(), *model.vae.buffers()]
    return {part.device.type for part in parts}


def test_files_carry_no_device(saved):
    _, folder = saved
    texts = {path.name: path.read_text("latin1") for path in folder.iterdir()}
    model = json.loads(texts["model.json"])
    assert "torch" in model.pop("versions")  # which may say "+cpu" of torch itself
    texts["model.json"] = json.dumps(model)
    for word in ("cuda", "cpu", "device"):
        assert not [name for name, text in texts.items() if word in text]
    with safe_open(folder / "weights.safetensors", "pt") as file:
        assert file.metadata() is None


@pytest.mark.parametrize("where", ["cpu", torch.device("cpu"), "meta", torch.device("meta")])
def test_it_is_put_where_one_says(cells, saved, where):
    model, folder = saved
    assert devices_of(ps.SCALE.load(folder, cells)) == {"cpu"}
    loaded = ps.SCALE.load(folder, cells, map_location=where)
    assert devices_of(loaded) == {torch.device(where).type}
    assert loaded.is_trained
    assert not loaded.vae.training
    if torch.device(where).type == "cpu":
        for name, weight in model.vae.state_dict().items():
            assert torch.equal(loaded.vae.state_dict()[name], weight), name


@pytest.mark.parametrize(
    ("where", "error", "words"),
    [
        ("gpu", ValueError, "map_location='gpu' is not available"),
        ("cuda:99", ValueError, "map_location='cuda:99' is not available"),
        (torch.device("cuda", 99), ValueError, "map_location='cuda:99' is not available"),
        ("xla", ValueError, "map_location='xla' is not available"),
        ("", ValueError, "map_location='' is not available"),
        (0, TypeError, "map_location=0 must be a device, such as 'cpu' or 'cuda:0'"),
        (None, TypeError, "map_location=None must be a device"),
        ({"cuda:0": "cpu"}, TypeError, "must be a device"),
    ],
)
def test_a_device_that_there_is_not(cells, saved, where, error, words, tmp_path):
    with pytest.raises(error, match=re.escape(words)):
        ps.SCALE.load(saved[1], cells, map_location=where)
    with pytest.raises(error, match=re.escape(words)):
        ps.SCALE.from_original(tmp_path / "model.pt", cells, map_location=where)
