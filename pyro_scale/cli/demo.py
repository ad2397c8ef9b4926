"""The command ``pyro-scale demo``: train and compare on simulated cells."""

from __future__ import annotations

import time
from pathlib import Path

import pyro_scale as ps
from pyro_scale.cli._console import cli_errors, console, echo
from pyro_scale.cli._files import Outputs, output_folder
from pyro_scale.cli._options import Out, Overwrite, Seed
from pyro_scale.cli.compare import compare_model

__all__ = ["demo"]


def demo(output: Out = Path("scale_output"), seed: Seed = 0, overwrite: Overwrite = False) -> None:
    """Simulate cells, train on them, and compare the objectives (about two minutes)."""
    with cli_errors(), output_folder(output, overwrite=overwrite):
        started = time.perf_counter()
        echo(f"output folder {output}, seed {seed}")
        adata = ps.simulate(n_cells=1000, n_peaks=3000, n_clusters=5, seed=seed)
        console.print(f"simulated {adata.n_obs} cells x {adata.n_vars} peaks in 5 clusters")
        model = ps.SCALE(adata, 5, seed=seed)
        console.print(f"training {model}", highlight=False)
        model.train(max_epochs=80)
        outputs = Outputs(label="cell_type", seed=seed)
        outputs.write(model, adata, output)
        plain = ps.SCALE(adata, 5, hidden=(256, 128), preset="plain", seed=seed)
        compare_model(plain, 48, 24, seed, output / "comparison.json", output / "comparison.png")
        echo(f"done in {time.perf_counter() - started:.0f} s")
