"""The command ``pyro-scale run``: read cells, train, cluster, and write the results."""

from __future__ import annotations

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
from pyro_scale import preprocessing as pp
from pyro_scale import serialization, training
from pyro_scale.analysis.embedding import default_embedding
from pyro_scale.cli._console import cli_errors, console, echo
from pyro_scale.cli._files import (
    CHECKPOINT,
    CLUSTER_METHODS,
    EMBEDDINGS,
    Outputs,
    add_labels,
    filtered,
    output_folder,
    read_cells,
)
from pyro_scale.cli._options import (
    INPUT,
    MODEL,
    OUTPUT,
    TRAINING,
    BatchKey,
    Files,
    K,
    Layer,
    Likelihood,
    Out,
    Overwrite,
    Peaks,
    PeakStyleOption,
    Seed,
    expand_home,
    parse_widths,
)
from pyro_scale.data.writers import check_writable
from pyro_scale.programs import FORMULATIONS

__all__ = ["run"]


_TRAINING_OPTIONS = (
    *("n_latent", "hidden", "decoder_hidden", "formulation", "likelihood"),
    *("preset", "max_epochs", "max_iter", "batch_size", "lr", "weight_decay", "early_stopping"),
    *("gpu", "min_peaks", "max_peaks", "min_cells", "max_cells", "n_peaks"),
)


def run(
    context: typer.Context,
    files: Files = None,
    data_list: Annotated[
        list[str] | None,
        Option(
            "-d",
            "--data-list",
            help="A further input file, as in the original SCALE; may be repeated.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    layer: Layer = None,
    peaks: Peaks = None,
    batch_key: BatchKey = None,
    join: Annotated[
        str,
        Option(
            help="Peaks to keep from several files: those in all files (inner) or in any (outer).",
            rich_help_panel=INPUT,
        ),
    ] = "inner",
    peak_style: PeakStyleOption = None,
    min_peaks: Annotated[
        float | None,
        Option(
            help="Keep cells with at least this many open peaks, or (below 1) this fraction "
            "of the peaks. Default: a tenth of the median cell's number. Cells without any open "
            "peak are always dropped.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    max_peaks: Annotated[
        float | None,
        Option(
            help="Keep cells with at most this many open peaks, or (below 1) this fraction "
            "of the peaks.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    min_cells: Annotated[
        float | None,
        Option(
            "--min-cells",
            "--low",
            "-x",
            help="Keep peaks open in at least this many cells, or (below 1) this fraction of "
            "the cells. Default: 1 % of the cells, or less, so that nine tenths of the open "
            "entries are kept.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    max_cells: Annotated[
        float | None,
        Option(
            "--max-cells",
            "--high",
            help="Keep peaks open in at most this many cells, or (below 1) this fraction of "
            "the cells.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    n_peaks: Annotated[
        int | None,
        Option(
            "--n-peaks",
            "--n-feature",
            help="Keep this many of the most variable peaks. Default: all (also -1).",
            rich_help_panel=INPUT,
        ),
    ] = None,
    n_components: K = None,
    formulation: Annotated[
        str,
        Option(
            help=f"Variational posterior q(z,c|x): {', '.join(FORMULATIONS)}.",
            rich_help_panel=MODEL,
        ),
    ] = "collapsed",
    likelihood: Likelihood = "bernoulli",
    preset: Annotated[
        str,
        Option(
            help="default, or plain: the model of the paper, without latent semantic "
            "indexing, layer normalization and the depth term.",
            rich_help_panel=MODEL,
        ),
    ] = "default",
    n_latent: Annotated[
        int,
        Option(
            "--n-latent",
            "--latent",
            "-l",
            help="Number of latent dimensions.",
            rich_help_panel=MODEL,
        ),
    ] = 10,
    hidden: Annotated[
        str | None,
        Option(
            "--hidden",
            "--encode-dim",
            help="Widths of the encoder's hidden layers, such as 1024,128. Default: 128, or "
            "1024,128 with --preset plain.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    decoder_hidden: Annotated[
        str | None,
        Option(
            "--decoder-hidden",
            "--decode-dim",
            help="Widths of the decoder's hidden layers. Default: none, the decoder is linear.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    max_epochs: Annotated[
        int | None,
        Option(
            help="Number of training epochs. Default: 75,000 / number of cells, at least 5 and at "
            "most 20 (plain: 30); 1,000,000 / number of cells, at least 50 and at most 300, where "
            "training starts with a warm-up, as with fewer than 200 cells.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    max_iter: Annotated[
        int | None,
        Option(
            "--max-iter",
            "-i",
            help="Number of optimizer steps, instead of --max-epochs; rounded up to whole epochs.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        Option(
            "--batch-size",
            "-b",
            help="Cells per minibatch. Default: 128, or 512 for 10,000 cells or more.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    lr: Annotated[
        float | None,
        Option(
            help="Learning rate of Adam. Default: 0.005; with --preset plain 0.0003, or 0.001 "
            "where training starts with a warm-up.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    weight_decay: Annotated[
        float | None,
        Option(
            help="Weight decay of the decoder's weights. Default: 50 / number of cells, or 0 "
            "with --preset plain.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    early_stopping: Annotated[
        bool,
        Option(
            "--early-stopping",
            help="Hold out a tenth of the cells, and stop when their ELBO no longer rises.",
            rich_help_panel=TRAINING,
        ),
    ] = False,
    gpu: Annotated[
        int | None,
        Option(
            "--gpu",
            "-g",
            help="Index of the GPU to train on; -1 for the CPU. Default: a GPU if there is one.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    pretrain: Annotated[
        Path | None,
        Option(
            help="Use this trained model instead of training: a saved model folder, or a "
            "model.pt of the original SCALE. With -k, its mixture is replaced by one of so many "
            "components, and training goes on from its weights.",
            callback=expand_home,
            rich_help_panel=TRAINING,
        ),
    ] = None,
    seed: Seed = 0,
    output: Out = Path("scale_output"),
    overwrite: Overwrite = False,
    cluster_method: Annotated[
        str,
        Option(
            help=f"Clustering method: {', '.join(CLUSTER_METHODS)}. leiden needs scanpy.",
            rich_help_panel=OUTPUT,
        ),
    ] = "mixture",
    resolution: Annotated[
        float,
        Option(
            help="Resolution of --cluster-method leiden.",
            rich_help_panel=OUTPUT,
        ),
    ] = 1.0,
    embed: Annotated[
        str | None,
        Option(
            help=f"Two-dimensional embedding: {', '.join(EMBEDDINGS)}. Default: umap if "
            "scanpy is installed, otherwise tsne.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    impute: Annotated[
        bool,
        Option(
            "--impute",
            help="Also write imputed.h5ad: the expected accessibility of every cell and peak.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    binary: Annotated[
        bool,
        Option(
            "--binary",
            help="Also write imputed_binary.h5ad: the expected accessibility as 0/1.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    label: Annotated[
        str | None,
        Option(
            "--label",
            "--reference",
            "-r",
            help="Known labels to score the clusters against: a column of obs, or a file "
            "with a cell name and a label per line. Not used in training.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    verbose: Annotated[
        bool,
        Option(
            "--verbose",
            "-v",
            help="Also print the settings, and the bounds of every epoch.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
) -> None:
    """Train SCALE on FILES without labels; write clusters, latent space, a figure and the model.

    Example: pyro-scale run cells.h5ad -k 8 -o result
    """
    paths = [*(data_list or []), *(files or [])]
    with cli_errors(), output_folder(output, overwrite=overwrite, inputs=paths):
        started = time.perf_counter()
        echo(f"output folder {output}, seed {seed}")
        outputs = Outputs(
            cluster_method.lower(),
            resolution,
            (embed or default_embedding()).lower(),
            impute,
            binary,
            seed=seed,
        )
        adata = read_cells(
            paths, peaks=peaks, batch_key=batch_key, join=join, peak_style=peak_style
        )
        if pretrain is not None:
            _check_no_training_options(context)
            model, adata = _pretrained(pretrain, adata, layer)
            outputs = replace(outputs, label=add_labels(adata, label))
            if n_components is not None:
                model.set_n_components(n_components)
                echo(f"going on from {pretrain} with {n_components} components.")
                model.train(checkpoint=output / CHECKPOINT, seed=seed)
                pretrain = None  # what is written is another model
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
                likelihood=likelihood,  # type: ignore[arg-type]  # SCALE checks it
                preset=preset,  # type: ignore[arg-type]  # SCALE checks it
                hidden=parse_widths(hidden, "--hidden"),
                decoder_hidden=parse_widths(decoder_hidden, "--decoder-hidden") or (),
                layer=layer,
                batch_key=batch_key,
                seed=seed,
            )
            settings = _settings(
                adata.n_obs, max_epochs, max_iter, batch_size, lr, weight_decay, gpu
            )
            check_writable(adata, output)
            console.print(f"training {model}", highlight=False)
            if verbose:
                echo(f"configuration: {model.config.to_dict()}")
                echo(f"training settings: {settings}")
            settings |= {"early_stopping": early_stopping}
            _train(model, output / CHECKPOINT, overwrite=overwrite, **settings)
            _report_choice(model, output)
            if verbose:
                console.print(model.history.to_string(), markup=False, highlight=False)
        outputs.write(model, adata, output, pretrain=pretrain)
        echo(f"done in {time.perf_counter() - started:.0f} s")


def _train(model: ps.SCALE, checkpoint: Path, *, overwrite: bool, **settings: Any) -> None:
    """Train; if there is a checkpoint of an interrupted run, resume from it."""
    if checkpoint.exists():
        echo(f"{checkpoint} is from an unfinished run: resuming from it.")
    try:
        model.train(checkpoint=checkpoint, **settings)
    except ps.CheckpointError as error:
        if not overwrite:
            raise ps.CheckpointError(f"{error} Or give --overwrite to start over.") from error
        echo("the checkpoint is from another run; starting over, as --overwrite is given.")
        checkpoint.unlink()
        model.train(checkpoint=checkpoint, **settings)
    except KeyboardInterrupt:
        if checkpoint.exists():
            echo(f"stopped; run the same command again to resume from {checkpoint}.")
        raise


def _report_choice(model: ps.SCALE, output: Path) -> None:
    """Print what the number of components was chosen from, if it was."""
    table = model.n_components_table
    if table.empty:
        return
    echo(
        f"chose {model.config.n_components} components; for each number, the shallowest valley of "
        "the density between two clusters (1: none), the silhouette, and the stability of the "
        "clusters under halves of the peaks:"
    )
    echo(table.T.to_string(float_format="{:.2f}".format))
    echo(f"for another: pyro-scale run FILES --pretrain {output / 'model'} -k NUMBER -o FOLDER")


def _check_no_training_options(context: typer.Context) -> None:
    """Refuse options of training and of the filters, which do nothing with ``--pretrain``."""
    sources = {name: context.get_parameter_source(name) for name in _TRAINING_OPTIONS}
    given = [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]
    if given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(f"with --pretrain, nothing is trained or filtered: leave out {flags}.")


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
    """Translate command-line options to keyword arguments of :meth:`pyro_scale.SCALE.train`."""
    if max_epochs is not None and max_iter is not None:
        raise ValueError(
            "--max-epochs and --max-iter both set the length of training; give only one."
        )
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
    """Load a trained model; return it and the cells, with the peaks that it was trained on."""
    if path.is_file():
        adata = pp.filter_cells(adata, min_peaks=1, layer=layer)
        model = ps.SCALE.from_original(path, adata, layer=layer)
    else:
        saved = serialization.load(path)
        names, batch_key = saved.peak_names, saved.config.batch_key
        if batch_key is not None and batch_key not in adata.obs:
            raise ValueError(
                f"{path} was trained with --batch-key {batch_key}: the cells need a column "
                f"obs[{batch_key!r}] with one of {', '.join(saved.config.batches or ())}."
            )
        adata = pp.filter_cells(pp.match_peaks(adata, names), min_peaks=1, layer=layer)
        model = ps.SCALE.load(path, adata)
    console.print(f"read from {path}, not trained here: {model}", highlight=False, markup=False)
    return model, adata
