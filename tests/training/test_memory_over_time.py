"""A long training, and many short ones, take no more memory at their end than near their start."""

import ctypes
import gc
from pathlib import Path

import pytest
from helpers import small_scale
from lightning.pytorch.callbacks import Callback

import pyro_scale as ps

STATM = Path("/proc/self/statm")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not STATM.exists(), reason="reads /proc, which only Linux has"),
]


def resident() -> float:
    """What this process holds, in MiB (pages of 4 KiB), without what malloc could give back."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc; how much it keeps is chance
        libc.malloc_trim(0)
    return int(STATM.read_text().split()[1]) / 256


def growth(seen: list[float]) -> float:
    """Of the last two thirds, in MiB: by then every buffer has been made once."""
    later = seen[len(seen) // 3 :]
    return max(later[len(later) // 2 :]) - later[0]


class Watch(Callback):
    def __init__(self):
        self.seen, self.steps = [], 0

    def on_train_epoch_end(self, trainer, pl_module):
        self.seen.append(resident())
        self.steps = trainer.global_step


@pytest.mark.parametrize("preset", ["plain", "default"])
def test_ten_thousand_steps(preset):
    """5,000 of each preset; 1 MiB is 300 bytes a step: less than one tensor kept for each."""
    cells = ps.simulate(n_cells=500, n_peaks=30, n_clusters=2, density=0.3, seed=0)
    model, watch = small_scale(cells, 2, n_latent=2, hidden=(4,), preset=preset), Watch()
    kwargs = {"callbacks": watch}
    model.train(40, batch_size=4, warmup_epochs=1, progress_bar=False, trainer_kwargs=kwargs)
    assert watch.steps == 5000
    assert growth(watch.seen) < 1, watch.seen


@pytest.mark.parametrize("preset", ["plain", "default"])
def test_many_trainings_and_questions(preset):
    """A model kept of each round would be 20 x 1.2 MiB of weights, and as much of each moment."""
    cells = ps.simulate(n_cells=60, n_peaks=20_000, n_clusters=2, density=0.01, seed=0)
    seen = []
    for seed in range(30):
        model = small_scale(cells, 2, n_latent=2, preset=preset, n_lsi=4, seed=seed)
        model.train(2, batch_size=30, progress_bar=False)
        model.get_latent_representation()
        model.get_responsibilities(n_samples=5)
        model.get_elbo(n_mc_samples=2)
        model.get_normalized_accessibility(peaks=list(model.peak_names[:5]))
        seen.append(resident())
    assert growth(seen) < 12, seen
