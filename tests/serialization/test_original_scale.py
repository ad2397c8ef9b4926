"""Models that the published SCALE wrote: the same means, nothing run, nothing taken on trust."""

import io
import logging
import pickle

import numpy as np
import pytest
import torch

import pyro_scale as ps


@pytest.fixture(params=[([32, 16], []), ([16], [12])], ids=["linear decoder", "hidden decoder"])
def theirs(request, published, cells):
    """A model of SCALE with weights as after training: pi off the simplex."""
    encoder, decoder = request.param
    model = published.SCALE([cells.n_vars, 4, encoder, decoder], n_centroids=3)
    with torch.no_grad():
        model.pi.copy_(torch.tensor([1.5, 3.0, 0.25]))
        model.mu_c.normal_()
        model.var_c.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture
def path(theirs, tmp_path):
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_the_same_functions(theirs, path, cells, caplog):
    caplog.set_level(logging.WARNING, logger="pyro_scale")
    model = ps.SCALE.from_original(path, cells)
    x = torch.from_numpy(cells.X.toarray()).float()
    with torch.inference_mode():
        _, mean, log_var = theirs.encoder(x)
        z = torch.randn(80, 4)
        decoded = theirs.decoder(z)
        gamma = theirs.get_gamma(mean)[0]
        counts = ps.data.dense_cells(model.counts())
        ours, var = model.vae.encoder(counts)
        ours_decoded = model.vae.likelihood.mean(z, counts)
    np.testing.assert_allclose(model.get_latent_representation(), mean, atol=1e-5)
    np.testing.assert_allclose(ours, mean, atol=1e-5)
    np.testing.assert_allclose(var, log_var.exp(), rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(ours_decoded, decoded, atol=1e-6)
    near = model.get_responsibilities(kind="at_mean")
    np.testing.assert_allclose(near, gamma, atol=1e-3)  # theirs adds 1e-10 to densities
    pi = model.vae.prior.log_pi_k.exp().detach()
    np.testing.assert_allclose(pi, np.array([1.5, 3.0, 0.25]) / 4.75, rtol=1e-6)
    (message,) = caplog.messages
    assert "add up to 4.75" in message
    assert model.config.n_components == 3


def test_it_is_a_model_like_any_other(path, cells, tmp_path):
    model = ps.SCALE.from_original(path, cells)
    model.save(tmp_path / "ours")
    again = ps.SCALE.load(tmp_path / "ours", cells)
    np.testing.assert_array_equal(
        again.get_latent_representation(), model.get_latent_representation()
    )
    assert again.config.posterior_variance == "exp"
    result = model.to_anndata(cells, imputed=True)
    assert result.layers["scale_imputed"].shape == cells.shape
    assert model.is_trained
    assert model.history.empty
    assert "trained)" in repr(model)
    model.train(2, progress_bar=False)
    assert len(model.history) == 2


def changed(**changes):
    def make(state):
        for key, change in changes.items():
            key = key.replace("__", ".")
            if change is None:
                del state[key]
            else:
                state[key] = change(state[key]) if key in state else change(None)
        return state

    return make


BROKEN = {
    "no mixture": (changed(pi=None), "is not a model of SCALE: pi missing"),
    "other keys": (changed(weird=lambda _: torch.ones(2)), "weird not known"),
    "NaN": (changed(mu_c=lambda t: t * np.nan), "mu_c has values that are not finite"),
    "K": (changed(pi=lambda _: torch.ones(5)), "5 weights for 3 components"),
    "shapes": (changed(var_c=lambda t: t[:, :2]), "do not have the shapes of a mixture"),
    "latent": (
        changed(encoder__sample__mu__weight=lambda t: t[:2]),
        "the shapes do not fit each other",
    ),
    "half a layer": (changed(**{"encoder__hidden__0__bias": None}), "is not a whole linear layer"),
    "no layer": (
        changed(**{f"encoder__hidden__0__{kind}": None for kind in ("weight", "bias")}),
        "its encoder has no hidden layer",
    ),
    "whole numbers": (changed(pi=lambda t: t.long()), "pi has values that are not finite"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("theirs", [([16], [])], indirect=True, ids=[""])
def test_what_is_not_such_a_model_is_refused(theirs, cells, tmp_path, name):
    """SCALE takes an unrelated file in silence and goes on with random weights (C19)."""
    make, words = BROKEN[name]
    torch.save(make(dict(theirs.state_dict())), tmp_path / "model.pt")
    with pytest.raises(ps.ModelFileError, match=words):
        ps.SCALE.from_original(tmp_path / "model.pt", cells)


@pytest.mark.parametrize("theirs", [([16], [])], indirect=True, ids=[""])
def test_another_number_of_peaks_is_refused(path, cells):
    with pytest.raises(ps.DataError, match="trained on 120 peaks and the cells have 110"):
        ps.SCALE.from_original(path, ps.pp.filter_cells(cells[:, :110].copy()))


class Attack:
    ran = False

    def __reduce__(self):
        return (setattr, (Attack, "ran", True))


def as_pickle(value):
    return pickle.dumps(value)


def as_torch(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("write", [as_pickle, as_torch])
def test_a_file_that_would_run_code_does_not(cells, tmp_path, write):
    Attack.ran = False
    (tmp_path / "model.pt").write_bytes(write({"pi": Attack()}))
    with pytest.raises(ps.ModelFileError, match="cannot be read as weights alone"):
        ps.SCALE.from_original(tmp_path / "model.pt", cells)
    assert not Attack.ran
    torch.load(io.BytesIO(as_torch(Attack())), weights_only=False)  # power: else it would have
    assert Attack.ran


@pytest.mark.parametrize("theirs", [([16], [])], indirect=True, ids=[""])
def test_a_file_cut_anywhere_is_refused(path, cells, tmp_path):
    whole = path.read_bytes()
    for length in (0, 1, 10, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(ps.ModelFileError, match=r"cannot be read|is not a model"):
            ps.SCALE.from_original(tmp_path / "cut.pt", cells)
    with pytest.raises(FileNotFoundError, match="is not a file"):
        ps.SCALE.from_original(tmp_path / "none.pt", cells)
