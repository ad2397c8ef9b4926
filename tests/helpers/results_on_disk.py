"""What a run has left in its folder: whether it is whole, and the same as another's."""

from __future__ import annotations

import zipfile
from pathlib import Path

import anndata
import h5py
import matplotlib.image
import numpy as np
import pandas as pd

from pyro_scale import serialization
from pyro_scale.training.callbacks import check_checkpoint


def checkpoint_of(folder: Path) -> tuple[int, bool] | None:
    """Epochs in the checkpoint, and whether they are all; None if there is no such file."""
    path = folder / "training.checkpoint"
    if not path.exists():
        return None
    found = check_checkpoint(path, {})
    with zipfile.ZipFile(path) as file:
        if bad := file.testzip():  # reads everything
            raise ValueError(f"{path}: {bad} has another checksum")
    return found["epochs"], found["finished"]


def damaged(folder: Path) -> list[str]:
    """What has its final name and is not whole, with the reason."""
    looks = {
        "model": whole_model,
        "adata.h5ad": anndata.read_h5ad,
        "imputed.h5ad": anndata.read_h5ad,
        "imputed_binary.h5ad": anndata.read_h5ad,
        "specific_peaks.tsv": _table,
        "scale.png": matplotlib.image.imread,
        "scale.pdf": _pdf,
        "training.checkpoint": lambda path: checkpoint_of(path.parent),
    }
    found = []
    for path in folder.iterdir() if folder.exists() else ():
        if path.name.startswith(".scale-") or path.name == "training.checkpoint.new":
            continue  # beside its place: not to be read
        try:
            looks[path.name](path)
        except Exception as error:  # whatever a reader says of half a file
            found.append(f"{path.name}: {type(error).__name__}: {error}")
    return found


def whole_model(path: Path) -> None:
    """Refuses what is not a saved model, or not as it was saved."""
    serialization.load(path)  # its checksums too


def _table(path: Path) -> None:
    pd.read_csv(path, sep="\t")
    if not path.read_bytes().endswith(b"\n"):
        raise ValueError("ends within a line")


def _pdf(path: Path) -> None:
    content = path.read_bytes()
    if not (content.startswith(b"%PDF") and content.rstrip().endswith(b"%%EOF")):
        raise ValueError("begins or ends as no PDF does")


def differences(folder: Path, reference: Path) -> list[str]:
    """What two results do not have in common, bit by bit; not dates, which a PDF and HDF5 hold."""
    names = [
        {str(path.relative_to(each)) for path in each.rglob("*")} for each in (folder, reference)
    ]
    found = [f"only in one: {name}" for name in sorted(names[0] ^ names[1])]
    for name in sorted(names[0] & names[1]):
        a, b = folder / name, reference / name
        if a.suffix == ".h5ad":
            found += [f"{name}: {each}" for each in _h5_differences(a, b)]
        elif a.suffix == ".png":
            images = [matplotlib.image.imread(each) for each in (a, b)]
            found += [] if np.array_equal(*images) else [name]
        elif a.is_file() and a.suffix != ".pdf" and a.read_bytes() != b.read_bytes():
            found.append(name)
    return found


def _h5_differences(a: Path, b: Path) -> list[str]:
    with h5py.File(a) as first, h5py.File(b) as second:
        both = [_datasets(file) for file in (first, second)]
    found = sorted(both[0].keys() ^ both[1].keys())
    return found + [
        name for name in both[0].keys() & both[1].keys() if both[0][name] != both[1][name]
    ]


def _datasets(file: h5py.File) -> dict[str, tuple]:
    found: dict[str, tuple] = {}

    def keep(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            values = np.asarray(item[()])
            content = values.tolist() if values.dtype == object else values.tobytes()
            found[name] = (str(item.dtype), values.shape, content)

    file.visititems(keep)
    return found
