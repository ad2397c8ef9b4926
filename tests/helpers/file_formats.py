"""The same cells written as every format that is read."""

import gzip
import warnings
from contextlib import nullcontext

import anndata as ad
import h5py
import numpy as np
import pytest
from scipy import io, sparse

import pyro_scale as ps


def a_dozen_cells():
    """With counts below ten, so that a number cut short is none."""
    cells = ps.simulate(n_cells=12, n_peaks=30, n_clusters=2, density=0.3, counts=True, seed=0)
    x = sparse.csr_matrix(np.minimum(cells.X.toarray(), 9))
    return ad.AnnData(x, obs=cells.obs[[]], var=cells.var[[]])


def write_text(path, text):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt") as file:
        file.write(text)


def write_mtx(cells, folder, names, *, bed=False, transposed=False, kind="", **kwargs):
    """The three files of the folder, under the names given."""
    folder.mkdir(exist_ok=True, parents=True)
    matrix, barcodes, peaks = names
    io.mmwrite(folder / "plain.mtx", cells.X if transposed else cells.X.T, **kwargs)
    write_text(folder / matrix, (folder / "plain.mtx").read_text())
    if matrix != "plain.mtx":
        (folder / "plain.mtx").unlink()
    write_text(folder / barcodes, "".join(f"{name}\n" for name in cells.obs_names))
    rows = [name.replace("_", "\t") if bed else name + kind for name in cells.var_names]
    write_text(folder / peaks, "".join(f"{row}\n" for row in rows))
    return folder


def write_10x_h5(cells, path, types=None, names=None):
    x = sparse.csr_matrix(cells.X)
    with h5py.File(path, "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = cells.obs_names.to_numpy().astype("S")
        matrix["data"], matrix["indices"] = x.data.astype(np.int32), x.indices
        matrix["indptr"], matrix["shape"] = x.indptr, np.array(x.shape[::-1], np.int32)
        features = matrix.create_group("features")
        for key, values in {
            "id": cells.var_names,
            "name": cells.var_names if names is None else names,
            "feature_type": ["Peaks"] * cells.n_vars if types is None else types,
            "genome": ["GRCh38"] * cells.n_vars,
        }.items():
            features[key] = np.asarray(values).astype("S")
    return path


def write_h5mu(cells, path, modalities=("atac",)):
    mudata = pytest.importorskip("mudata")
    parts = {name: cells.copy() for name in modalities}
    for name in set(parts) - set(modalities[-1:]):
        parts[name].var_names = [f"{name}_{number}" for number in range(cells.n_vars)]
    before_0_4 = hasattr(mudata, "set_options")
    with mudata.set_options(pull_on_update=False) if before_0_4 else nullcontext():
        mudata.MuData(parts).write(path)
    return path


def write_table(cells, path, sep=",", rows="peaks"):
    frame = cells.to_df().astype(int)
    (frame.T if rows == "peaks" else frame).to_csv(path, sep=sep)
    return path


def write_zarr(cells, path, version=3):
    settings = {"zarr_write_format": version, "auto_shard_zarr_v3": False}
    expected = "(Consolidated metadata|Writing zarr v2|This setting will be|zarr v3 will become)"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=expected)
        with ad.settings.override(**settings):
            cells.write_zarr(path)
    return path


def write_h5ad(cells, path, make=lambda x: x):
    ad.AnnData(make(cells.X), obs=cells.obs, var=cells.var).write_h5ad(path)
    return path


V3 = ("matrix.mtx.gz", "barcodes.tsv.gz", "features.tsv.gz")
V2 = ("matrix.mtx", "barcodes.tsv", "genes.tsv")
BED = ("matrix.mtx", "barcodes.tsv", "peaks.bed")
FORMATS = {
    "h5ad": lambda c, d: write_h5ad(c, d / "a.h5ad"),
    "h5ad dense": lambda c, d: write_h5ad(c, d / "a.h5ad", lambda x: x.toarray()),
    "h5ad csc": lambda c, d: write_h5ad(c, d / "a.h5ad", sparse.csc_matrix),
    "zarr v2": lambda c, d: write_zarr(c, d / "a.zarr", version=2),
    "zarr v3": lambda c, d: write_zarr(c, d / "a.zarr"),
    "10x h5": lambda c, d: write_10x_h5(c, d / "a.h5"),
    "h5mu": lambda c, d: write_h5mu(c, d / "a.h5mu"),
    "h5mu/atac": lambda c, d: write_h5mu(c, d / "a.h5mu", ["rna", "atac"]) / "atac",
    "10x mtx v3": lambda c, d: write_mtx(c, d / "m", V3, kind="\tname\tPeaks\tchr1\t1\t2"),
    "10x mtx v2": lambda c, d: write_mtx(c, d / "m", V2, kind="\tname"),
    "10x atac mtx": lambda c, d: write_mtx(c, d / "m", BED, bed=True),
    "mtx cells x peaks": lambda c, d: write_mtx(c, d / "m", BED, bed=True, transposed=True),
    "mtx real": lambda c, d: write_mtx(c, d / "m", BED, bed=True, field="real"),
    "mtx of SCALE": lambda c, d: write_mtx(c, d, ("count.mtx", "barcode.txt", "peak.txt")),
    "mtx file": lambda c, d: (
        write_mtx(c, d, ("s_matrix.mtx.gz", "s_barcodes.tsv", "s_peaks.tsv")) / "s_matrix.mtx.gz"
    ),
    "csv": lambda c, d: write_table(c, d / "a.csv"),
    "csv cells x peaks": lambda c, d: write_table(c, d / "a.csv", rows="cells"),
    "csv.gz": lambda c, d: write_table(c, d / "a.csv.gz"),
    "tsv.bz2": lambda c, d: write_table(c, d / "a.tsv.bz2", sep="\t", rows="cells"),
    "txt.xz": lambda c, d: write_table(c, d / "a.txt.xz", sep=" "),
}
