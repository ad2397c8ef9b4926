"""Threads give what they would give one after the other, and processes are independent."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyro
import pytest
import torch
from helpers import small_scale, train
from lightning.pytorch.callbacks import Callback

import pyro_scale as ps
from pyro_scale.objectives import Objective
from pyro_scale.programs import CellBatch, MixtureVAE, Program


def state(model):
    return {name: tensor.numpy().tobytes() for name, tensor in model.vae.state_dict().items()}


def trained(cells, preset="plain", formulation="collapsed", seed=0):
    return train(small_scale(cells, preset=preset, formulation=formulation, seed=seed), 5)


class Pause(Callback):
    """Training stands still in its first step until it is told to go on."""

    def __init__(self):
        self.stands, self.goes_on = threading.Event(), threading.Event()

    def on_train_batch_end(self, *_):
        self.stands.set()
        assert self.goes_on.wait(60)


@pytest.fixture
def beside(cells):
    """Another thread that is in the middle of a training: the model, the pause, the thread."""
    model, pause = small_scale(cells, preset="plain"), Pause()
    thread = threading.Thread(
        target=lambda: train(model, 2, trainer_kwargs={"callbacks": pause}), daemon=True
    )
    thread.start()
    assert pause.stands.wait(60)
    yield model, pause, thread
    pause.goes_on.set()
    thread.join(60)
    assert not thread.is_alive()


def test_models_trained_in_threads_are_those_trained_one_after_the_other(cells):
    """Bit for bit, with sampled c and shuffled cells: every draw is the one that it would be."""
    settings = [("plain", "collapsed", 0), ("default", "mean_field", 1), ("plain", "amortized", 2)]
    alone = [state(trained(cells, *each)) for each in settings]
    torch.manual_seed(3)
    callers = torch.get_rng_state()
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda each: state(trained(cells, *each)), settings))
    assert together == alone
    assert torch.equal(torch.get_rng_state(), callers)


def test_two_threads_that_train_one_model_train_it_twice(cells):
    twice = small_scale(cells)
    train(twice), train(twice)
    model = small_scale(cells)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(train, [model, model]))
    assert state(model) == state(twice)


def test_what_is_compared_while_another_trains_is_right(cells):
    model = trained(cells)
    asked = {
        "compare": lambda: [
            (row.value, row.closed_form_value, row.gradient_variance, row.holds)
            for row in ps.compare(model, n_cells=5, n_samples=4).rows
        ],
        "ladder": lambda: ps.ladder(model, n_cells=3, n_samples=100).to_frame().to_json(),
        "nuts": lambda: ps.sample_latent_nuts(model, n_cells=2, n_draws=8, n_warmup=4).z.tobytes(),
    }
    alone = {name: ask() for name, ask in asked.items()}
    weights = state(trained(cells, seed=4))
    with ThreadPoolExecutor(5) as pool:
        others = [pool.submit(trained, cells, seed=4) for _ in range(2)]
        answers = {name: pool.submit(ask) for name, ask in asked.items()}
        assert {name: answer.result() for name, answer in answers.items()} == alone
        assert all(state(other.result()) == weights for other in others)


def test_what_runs_programs_waits_and_what_does_not_does_not(cells, tmp_path, beside):
    """Reading cells goes on beside a training, and evaluating programs waits for its end."""
    done = []
    vae = MixtureVAE(120, 3, 2, hidden=(8,))
    x = CellBatch.from_counts(torch.ones(4, 120))

    def wait():
        for ask in (
            lambda: Objective(vae, "structured", "TraceEnum_ELBO").loss(x),
            lambda: small_scale(cells),
            lambda: ps.compare(vae, np.ones((4, 120)), n_cells=4, n_samples=2),
        ):
            ask()
            done.append(ask)

    _, pause, _ = beside
    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    assert ps.read(tmp_path / "cells.h5ad").shape == cells.shape
    waiting.join(0.5)
    assert waiting.is_alive()
    assert not done
    pause.goes_on.set()
    waiting.join(60)
    assert len(done) == 3


def test_a_trained_model_answers_is_saved_and_loads_while_another_trains(cells, tmp_path):
    model = trained(cells)
    before = model.get_responsibilities()
    other, pause = small_scale(cells), Pause()
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train, other, 2, trainer_kwargs={"callbacks": pause})
        assert pause.stands.wait(60)
        np.testing.assert_array_equal(model.get_responsibilities(), before)
        model.save(tmp_path / "model")
        again = ps.SCALE.load(tmp_path / "model", cells)
        np.testing.assert_array_equal(again.get_responsibilities(), before)
        pause.goes_on.set()
        training.result(60)


def test_a_model_in_training_is_asked_by_its_own_thread_alone(cells, tmp_path, beside):
    model, pause, thread = beside
    model.is_trained = True  # as if it had been trained before
    verbs = {
        "get_latent_representation": (),
        "get_elbo": (),
        "to_anndata": (),
        "to_datatree": (),
        "save": (tmp_path / "model",),
    }
    for verb, arguments in verbs.items():
        with pytest.raises(ps.BusyError, match="being trained by another thread"):
            getattr(model, verb)(*arguments)
    assert not list(tmp_path.iterdir())
    pause.goes_on.set()
    thread.join(60)
    for verb, arguments in verbs.items():
        getattr(model, verb)(*arguments)


def test_its_own_thread_may_ask(cells):
    class Ask(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            self.z = model.get_latent_representation(cells)
            self.compared = ps.compare(model, n_cells=5, n_samples=4)

    model, ask = trained(cells), Ask()
    train(model, 2, trainer_kwargs={"callbacks": ask})
    np.testing.assert_allclose(ask.z, model.get_latent_representation(), rtol=1e-3, atol=1e-6)
    after = ps.compare(model, n_cells=5, n_samples=4)
    assert [row.value for row in ask.compared.rows] == [row.value for row in after.rows]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_whatever_ends_a_training_the_next_one_has_its_turn(cells, error):
    class Fails(Callback):
        def on_train_batch_end(self, *_):
            raise error("stop here")

    model = small_scale(cells)
    with pytest.raises(error):
        train(model, trainer_kwargs={"callbacks": Fails()})
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(trained, cells).result(60).is_trained
        assert pool.submit(train, model, 2).result(60).is_trained


def test_a_setting_of_pyro_comes_back_whoever_is_out_last(cells):
    """A program is built (by save and load, say) while another thread is inside one."""
    inside, go_on = threading.Event(), threading.Event()

    class Waits(Program):
        def forward(self):
            inside.set()
            assert go_on.wait(60)

    vae = MixtureVAE(5, 2, 2, hidden=(3,))
    assert pyro.settings.get("module_local_params") is False
    thread = threading.Thread(target=Waits(vae))
    thread.start()
    assert inside.wait(60)
    Program(vae)
    assert pyro.settings.get("module_local_params") is True  # the other is inside still
    go_on.set()
    thread.join(60)
    assert pyro.settings.get("module_local_params") is False


SCRIPT = """
import sys
import pyro_scale as ps
cells = ps.simulate(n_cells=80, n_peaks=120, n_clusters=3, density=0.1, seed=1)
model = ps.SCALE(cells, 3, n_latent=3, hidden=(16,), preset="plain")
model.train(5, progress_bar=False, batch_size=32, lr=1e-2, newton_sweeps=0)
model.save(sys.argv[1])
"""


@pytest.mark.slow
def test_two_processes_are_independent(cells, tmp_path):
    command = [sys.executable, "-c", SCRIPT]
    both = [subprocess.Popen([*command, str(tmp_path / name)]) for name in "ab"]
    alone = trained(cells)
    assert [process.wait(120) for process in both] == [0, 0]
    for name in "ab":
        assert state(ps.SCALE.load(tmp_path / name, cells)) == state(alone)
