"""``pyro-scale run``: from files to clusters."""

from __future__ import annotations

import importlib.util
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from anndata import AnnData
from typer import Option

import pyro_scale as ps
from pyro_scale import pp, saving, training
from pyro_scale.cli.inputs import add_labels, filtered, read_cells
from pyro_scale.cli.options import (
    BatchKey,
    Files,
    K,
    Layer,
    Likelihood,
    Out,
    Overwrite,
    Peaks,
    Seed,
    widths,
)
from pyro_scale.cli.outputs import CHECKPOINT, CLUSTER_METHODS, EMBEDDINGS, Outputs, claimed
from pyro_scale.cli.terminal import console, say, told
from pyro_scale.programs import FORMULATIONS

__all__ = ["run"]


_OF_TRAINING = (
    *("n_components", "n_latent", "hidden", "decoder_hidden", "formulation", "likelihood"),
    *("preset", "max_epochs", "max_iter", "batch_size", "lr", "weight_decay", "early_stopping"),
    *("gpu", "min_peaks", "max_peaks", "min_cells", "max_cells", "n_peaks"),
)


def run(
    context: typer.Context,
    files: Files = None,
    data_list: Annotated[
        list[str] | None, Option("-d", "--data-list", help="A further file, as SCALE takes them.")
    ] = None,
    n_components: K = None,
    output: Out = Path("scale_output"),
    seed: Seed = 0,
    overwrite: Overwrite = False,
    layer: Layer = None,
    peaks: Peaks = None,
    batch_key: BatchKey = None,
    join: Annotated[
        str, Option(help="Of several files: inner keeps the peaks all have, outer all.")
    ] = "inner",
    min_peaks: Annotated[
        float,
        Option(help="Leave out cells with fewer open peaks, or below 1 a fraction; empty ones go."),
    ] = 1,
    max_peaks: Annotated[
        float | None, Option(help="Leave out cells with more open peaks; below 1, a fraction.")
    ] = None,
    min_cells: Annotated[
        float,
        Option(
            "--min-cells",
            "--low",
            "-x",
            help="Leave out peaks open in fewer cells; below 1, a fraction.",
        ),
    ] = 0.01,
    max_cells: Annotated[
        float | None,
        Option("--max-cells", "--high", help="Leave out peaks open in more; below 1, a fraction."),
    ] = None,
    n_peaks: Annotated[
        int | None,
        Option("--n-peaks", "--n-feature", help="Keep the most variable peaks; -1: all."),
    ] = None,
    formulation: Annotated[str, Option(help=f"q(z,c|x): {', '.join(FORMULATIONS)}.")] = "collapsed",
    likelihood: Likelihood = "bernoulli",
    preset: Annotated[
        str, Option(help="default, or plain: the model of the paper, without extras.")
    ] = "default",
    n_latent: Annotated[
        int, Option("--n-latent", "--latent", "-l", help="Dimensions of the latent space.")
    ] = 10,
    hidden: Annotated[
        str | None,
        Option(
            "--hidden",
            "--encode-dim",
            help="Hidden widths of the encoder, such as 1024,128; default: by preset.",
        ),
    ] = None,
    decoder_hidden: Annotated[
        str | None,
        Option("--decoder-hidden", "--decode-dim", help="Of the decoder; default: linear."),
    ] = None,
    max_epochs: Annotated[
        int | None,
        Option(help="Passes over the cells; default: a million / cells, in 50 to 300."),
    ] = None,
    max_iter: Annotated[
        int | None, Option("--max-iter", "-i", help="Steps, in place of --max-epochs.")
    ] = None,
    batch_size: Annotated[
        int | None,
        Option("--batch-size", "-b", help="Cells per step; default: 128, from 10,000 cells 512."),
    ] = None,
    lr: Annotated[float | None, Option(help="Learning rate of Adam; default: by preset.")] = None,
    weight_decay: Annotated[
        float | None,
        Option(help="Of the decoder's weights, in Adam; default: by preset (--verbose says it)."),
    ] = None,
    early_stopping: Annotated[
        bool, Option("--early-stopping", help="Hold out a tenth of the cells and stop by them.")
    ] = False,
    gpu: Annotated[
        int | None, Option("--gpu", "-g", help="Number of the GPU; -1: CPU; default: if any.")
    ] = None,
    pretrain: Annotated[
        Path | None,
        Option(help="Skip training: a model folder, or a model.pt of the original SCALE."),
    ] = None,
    cluster_method: Annotated[
        str, Option(help=f"{', '.join(CLUSTER_METHODS)} (needs scanpy).")
    ] = "mixture",
    resolution: Annotated[float, Option(help="Of leiden.")] = 1.0,
    embed: Annotated[
        str | None,
        Option(help=f"{', '.join(EMBEDDINGS)}; default: umap where scanpy is installed, or tsne."),
    ] = None,
    impute: Annotated[
        bool, Option("--impute", help="Write imputed.h5ad, probabilities for all cells and peaks.")
    ] = False,
    binary: Annotated[
        bool, Option("--binary", help="Write imputed_binary.h5ad, the same as 0/1.")
    ] = False,
    label: Annotated[
        str | None,
        Option(
            "--label",
            "--reference",
            "-r",
            help="Column of obs, or a file of cell and label, to score against afterwards.",
        ),
    ] = None,
    verbose: Annotated[
        bool, Option("--verbose", "-v", help="Also print the settings, and every epoch's bound.")
    ] = False,
) -> None:
    """Train on FILES without labels; write clusters, latent space, a figure and the model.

    Example: pyro-scale run cells.h5ad -k 8 -o result
    """
    paths = [*(data_list or []), *(files or [])]
    with told(), claimed(output, overwrite=overwrite, inputs=paths):
        started = time.perf_counter()
        say(f"output folder {output}, seed {seed}")
        default = "umap" if importlib.util.find_spec("scanpy") else "tsne"
        outputs = Outputs(
            cluster_method.lower(),
            resolution,
            (embed or default).lower(),
            impute,
            binary,
            seed=seed,
        )
        adata = read_cells(paths, peaks=peaks, batch_key=batch_key, join=join)
        if pretrain is not None:
            _refuse_without_effect(context)
            model, adata = _pretrained(pretrain, adata, layer)
            outputs = replace(outputs, label=add_labels(adata, label))
        else:
            adata = filtered(
                adata,
                layer=layer,
                min_peaks=min_peaks,
                max_peaks=max_peaks,
                min_cells=min_cells,
                max_cells=max_cells,
                n_peaks=n_peaks,
            )
            outputs = replace(outputs, label=add_labels(adata, label))
            model = ps.SCALE(
                adata,
                n_components,
                n_latent,
                formulation=formulation,
                likelihood=likelihood,  # type: ignore[arg-type]  # checked there
                preset=preset,  # type: ignore[arg-type]  # checked there
                hidden=widths(hidden, "--hidden"),
                decoder_hidden=widths(decoder_hidden, "--decoder-hidden") or (),
                layer=layer,
                batch_key=batch_key,
                seed=seed,
            )
            settings = _settings(
                adata.n_obs, max_epochs, max_iter, batch_size, lr, weight_decay, gpu
            )
            console.print(f"training {model}", highlight=False)
            if verbose:
                say(f"configuration: {model.configuration.to_dict()}")
                say(f"training settings: {settings}")
            settings |= {"early_stopping": early_stopping}
            _train(model, output / CHECKPOINT, overwrite=overwrite, **settings)
            if verbose:
                console.print(model.history.to_string(), markup=False, highlight=False)
        outputs.write(model, adata, output, pretrain=pretrain)
        say(f"done in {time.perf_counter() - started:.0f} s")


def _train(model: ps.SCALE, checkpoint: Path, *, overwrite: bool, **settings: Any) -> None:
    """Train, or finish the training of a run that was killed."""
    if checkpoint.exists():
        say(f"{checkpoint} is of a run that was not finished: going on from it.")
    try:
        model.train(checkpoint=checkpoint, **settings)
    except ps.CheckpointError as error:
        if not overwrite:
            raise ps.CheckpointError(f"{error} Or give --overwrite, to start anew.") from error
        say("it is of another run; --overwrite: starting anew.")
        checkpoint.unlink()
        model.train(checkpoint=checkpoint, **settings)
    except KeyboardInterrupt:
        if checkpoint.exists():
            say(f"stopped; the same command goes on from {checkpoint}.")
        raise


def _refuse_without_effect(context: typer.Context) -> None:
    """A trained model is what it is, and is asked of every cell that is not empty."""
    sources = {name: context.get_parameter_source(name) for name in _OF_TRAINING}
    given = [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]
    if given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(f"with --pretrain nothing is trained or filtered: leave out {flags}.")


def _n_gpus() -> int:
    return torch.cuda.device_count()


def _settings(
    n_cells: int,
    max_epochs: int | None,
    max_iter: int | None,
    batch_size: int | None,
    lr: float | None,
    weight_decay: float | None,
    gpu: int | None,
) -> dict[str, Any]:
    """The arguments of ``train`` that are given."""
    if max_epochs is not None and max_iter is not None:
        raise ValueError("--max-epochs and --max-iter both say how long to train; give one.")
    if max_iter is not None:
        if max_iter < 1:
            raise ValueError(f"--max-iter {max_iter} must be at least one.")
        n_steps = math.ceil(n_cells / max(batch_size or training.default_batch_size(n_cells), 1))
        max_epochs = math.ceil(max_iter / n_steps)
    settings: dict[str, Any] = {"max_epochs": max_epochs, "batch_size": batch_size}
    if lr is not None:
        settings["lr"] = lr
    if weight_decay is not None:
        settings["decoder_precision"] = weight_decay * n_cells
    if gpu is not None and gpu >= (n := _n_gpus()):
        raise ValueError(
            f"--gpu {gpu}: torch sees {n} GPUs, numbered from 0; leave it out, or give -1 for the "
            "CPU."
        )
    if gpu is not None:
        settings["accelerator"] = "cpu" if gpu < 0 else "gpu"
        settings["devices"] = 1 if gpu < 0 else f"{gpu},"
    return settings


def _pretrained(path: Path, adata: AnnData, layer: str | None) -> tuple[ps.SCALE, AnnData]:
    """A trained model, and the cells with its peaks."""
    if path.is_file():
        adata = pp.filter_cells(adata, min_peaks=1, layer=layer)
        model = ps.SCALE.from_original(path, adata, layer=layer)
    else:
        saved = saving.load(path)
        names, batch_key = saved.peak_names, saved.configuration.batch_key
        if batch_key is not None and batch_key not in adata.obs:
            raise ValueError(
                f"{path} was trained with --batch-key {batch_key}: the cells need a column "
                f"obs[{batch_key!r}] with one of {', '.join(saved.configuration.batches or ())}."
            )
        adata = pp.filter_cells(pp.match_peaks(adata, names), min_peaks=1, layer=layer)
        model = ps.SCALE.load(path, adata)
    console.print(f"not trained, read from {path}: {model}", highlight=False, markup=False)
    return model, adata
