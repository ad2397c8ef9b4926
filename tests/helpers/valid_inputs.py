"""Valid inputs, drawn at random: none of them may be refused, and all give the cells they hold.

What varies is what users' files vary in: dtype, layout and order of the matrix, what else an
AnnData holds, how names are written, format, compression and notation.
"""

import gzip
import warnings

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

import pyro_scale as ps
from helpers.file_formats import BED, V3, write_10x_h5, write_h5mu, write_mtx, write_text
from pyro_scale.data import CountMatrix, read

__all__ = ["CHOICES", "one"]

DTYPES = [
    *("?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", ">i4", ">f4", ">f8")
]
LAYOUTS = [
    *("csr", "csc", "dense", "fortran", "csr_array", "csc_array", "int64 indices", "unsorted"),
    *("stored zeros", "duplicates", "read only", "view"),
]
PEAKS = {
    "10x": lambda p: f"chr1:{100 * p}-{100 * p + 50}",
    "Signac": lambda p: f"chr{p % 5 + 1}-{100 * p}-{100 * p + 50}",
    "BED": lambda p: f"chrX_{100 * p}_{100 * p + 50}",
    "R": lambda p: f"chr2.{100 * p}.{100 * p + 50}",
    "Ensembl": lambda p: f"{p % 22 + 1}:{1000 * p + 100}-{1000 * p + 500}",
    "scaffold": lambda p: f"GL000194.1:{100 * p}-{100 * p + 50}",
    "names": lambda p: f"peak {p}",
    "numbers": str,
    "Unicode": lambda p: f"Gipfel_ä{p}•",
}
CELLS = {
    "barcodes": lambda c: f"AAAC{c:04d}-1",
    "samples": lambda c: f"Müller #{c}, day 3",
    "numbers": str,
    "long": lambda c: f"{'x' * 300}{c}",
    "quotes": lambda c: f'it\'s "{c}"',
}
OBS = {
    "text": lambda n, rng: [f"type {v}" for v in rng.integers(0, 3, n)],
    "text with gaps": lambda n, rng: [None if v == 0 else f"t{v}" for v in rng.integers(0, 3, n)],
    "category": lambda n, rng: pd.Categorical(rng.choice(["b", "a"], n), ["b", "a", "none"]),
    "category with gaps": lambda n, rng: pd.Categorical([None, *["a"] * (n - 1)], ordered=True),
    "numbers as categories": lambda n, rng: pd.Categorical(rng.integers(0, 3, n)),
    "nullable whole numbers": lambda n, rng: pd.array([None, *range(n - 1)], dtype="Int64"),
    "nullable booleans": lambda n, rng: pd.array([None, *[True] * (n - 1)], dtype="boolean"),
    "nullable strings": lambda n, rng: pd.array([None, *["s"] * (n - 1)], dtype="string"),
    "float with gaps": lambda n, rng: np.where(rng.random(n) < 0.5, np.nan, 1.5),
    "half": lambda n, rng: rng.random(n).astype(np.float32),
    "bool": lambda n, rng: rng.random(n) < 0.5,
}
UNS = {
    "log1p": lambda: {"base": None},
    "pca": lambda: {"params": {"zero_center": True, "use_highly_variable": None, "mask_var": None}},
    "rank_genes_groups": lambda: {
        "params": {"groupby": "leiden", "corr_method": "benjamini-hochberg", "layer": None},
        "names": np.array([("a", "b"), ("c", "d")], dtype=[("0", "U9"), ("1", "U9")]),
        "scores": np.array([(1.0, 2.0)], dtype=[("0", "f4"), ("1", "f4")]),
    },
    "neighbors": lambda: {"connectivities_key": "connectivities", "params": {"n": np.int64(15)}},
    "colors": lambda: np.array(["#1f77b4", "#ff7f0e"]),
    "empty": lambda: {},
    "empty array": lambda: np.array([]),
    "flag": lambda: True,
    "number": lambda: np.float32(1.5),
    "text": lambda: "Grüße • from scanpy",
    "frame": lambda: pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}),
    "sparse": lambda: sparse.random(4, 5, 0.5, format="csr", random_state=0),
    "list": lambda: ["one", "two"],
    "nested": lambda: {"a": {"b": {"c": {"d": 1}}}},
}
COMPRESSIONS = [None, "gzip", "lzf"]
FORMATS = [
    *("memory", "memory", "h5ad", "h5ad", "h5ad backed", "h5ad called h5", "zarr 2", "zarr 3"),
    *("zarr without suffix", "10x h5", "h5mu", "mtx", "table"),
]
CHOICES = {
    "dtype": DTYPES,
    "layout": LAYOUTS,
    "peaks": list(PEAKS),
    "cells": list(CELLS),
    "format": FORMATS,
}


def one(rng, folder):
    """Write and read one input; return what it was, for a message, and raise if it is refused."""
    what = {name: choices[int(rng.integers(len(choices)))] for name, choices in CHOICES.items()}
    cells = a_few_cells(rng, what)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = stored(cells, what, rng, folder)
            check(found, cells, what, rng)
        except Exception as error:
            error.add_note(f"the input was {what}")
            raise
    return what


def a_few_cells(rng, what):
    n, p = int(rng.integers(20, 30)), int(rng.integers(31, 40))  # a square matrix is no .mtx
    counts = np.minimum(rng.poisson(0.6, (n, p)) + (rng.random((n, p)) < 0.1), 9)
    counts[np.arange(n), rng.integers(0, p, n)] += 1  # no cell is empty
    dtype = np.dtype(what["dtype"])
    counts = (counts > 0 if dtype.kind == "b" else counts).astype(dtype)
    order = rng.permutation(n), rng.permutation(p)
    adata = ad.AnnData(
        obs=pd.DataFrame(index=[CELLS[what["cells"]](c) for c in order[0]]),
        var=pd.DataFrame(index=[PEAKS[what["peaks"]](q) for q in order[1]]),
    )
    adata.X = laid_out(counts, what, rng)
    for name in rng.choice(list(OBS), 3, replace=False):
        adata.obs[name] = OBS[name](n, rng)
    adata.var["length"] = rng.integers(100, 900, p)
    for name in rng.choice(list(UNS), 4, replace=False):
        adata.uns[name] = UNS[name]()
    adata.obsm["X_umap"] = rng.normal(size=(n, 2))
    adata.obsm["table"] = pd.DataFrame({"a": rng.random(n), "b": "b"}, index=adata.obs_names)
    adata.obsp["connectivities"] = sparse.random(n, n, 0.2, format="csr", random_state=0)
    adata.varm["loadings"] = rng.normal(size=(p, 3))
    adata.layers["counts"] = sparse.csr_matrix(counts.astype(np.float32))
    if rng.random() < 0.3 and what["dtype"] != "f2":
        adata.raw = adata.copy()
    return adata


def laid_out(counts, what, rng):
    layout, dtype = what["layout"], counts.dtype
    if dtype == np.float16 or not dtype.isnative or layout == "dense":  # scipy has neither
        return counts
    if layout == "fortran":
        return np.asfortranarray(counts)
    if layout.startswith("csc"):
        return (sparse.csc_array if layout == "csc_array" else sparse.csc_matrix)(counts)
    x = (sparse.csr_array if layout == "csr_array" else sparse.csr_matrix)(counts)
    if layout == "int64 indices":
        x.indices, x.indptr = x.indices.astype(np.int64), x.indptr.astype(np.int64)
    elif layout == "unsorted":
        for row in range(x.shape[0]):
            part = slice(x.indptr[row], x.indptr[row + 1])
            shuffled = rng.permutation(x.indptr[row + 1] - x.indptr[row])
            x.indices[part], x.data[part] = x.indices[part][shuffled], x.data[part][shuffled]
        x.has_sorted_indices = False
    elif layout == "stored zeros":
        x = sparse.csr_matrix((counts.ravel(), np.indices(counts.shape).reshape(2, -1)))
    elif layout == "duplicates" and dtype.kind != "b":
        x = sparse.csr_matrix(
            (np.repeat(x.data, 2), np.repeat(x.indices, 2), 2 * x.indptr), x.shape
        )
        x.data[::2] = 0  # the same entry twice, whose sum is the count
    elif layout == "read only":
        for part in (x.data, x.indices, x.indptr):
            part.flags.writeable = False
    return x


def stored(cells, what, rng, folder):
    """The cells, written in the format and read again."""
    kind = what["format"]
    settings = {"allow_write_nullable_strings": True, "auto_shard_zarr_v3": False}
    # Bool, half and other byte orders are not what the other tools write.
    text = cells.copy()
    text.X = sparse.csr_matrix(dense(cells.X).astype(np.int32))
    if kind == "memory":
        return cells[:, ::-1][:, ::-1] if what["layout"] == "view" else cells
    if kind.startswith("h5ad"):
        path = folder / ("a.h5" if kind.endswith("h5") else "a.h5ad")
        if kind == "h5ad backed":
            cells.X = sparse.csr_matrix(dense(cells.X).astype(np.float32))
        with ad.settings.override(**settings):
            cells.write_h5ad(path, compression=COMPRESSIONS[int(rng.integers(3))])
        return read(path, backed=kind == "h5ad backed")
    if kind.startswith("zarr"):
        version = 3 if kind == "zarr 3" else 2
        path = folder / ("cells" if kind.endswith("suffix") else "a.zarr")
        if not np.dtype(what["dtype"]).isnative:
            cells.X = text.X  # zarr-python 3 does not write it
        cells.raw = None
        with ad.settings.override(zarr_write_format=version, **settings):
            cells.write_zarr(path)
        return read(path)
    bare = ad.AnnData(text.X, obs=text.obs[[]], var=text.var[[]])
    if kind == "10x h5":
        names = (bare.obs_names, bare.var_names)
        if not all(name.isascii() for index in names for name in index):
            return bare
        return read(write_10x_h5(bare, folder / "a.h5"))
    if kind == "h5mu":
        return read(write_h5mu(bare, folder / "a.h5mu"))
    if kind == "mtx":
        return read(a_folder(bare, what, rng, folder / "m"))
    return read(a_table(bare, what, rng, folder))


def a_folder(cells, what, rng, folder):
    names = V3 if rng.random() < 0.5 else BED
    rows = [f"{name}\n" for name in cells.var_names]
    regions = what["peaks"] == "BED"
    if names is V3:
        rows = [f"{name}\tname\tPeaks\n" for name in cells.var_names]
    elif regions:
        rows = [name.replace("_", "\t") + "\n" for name in cells.var_names]
        if rng.random() < 0.5:
            rows = ["track name=a\n", *rows] if rng.random() < 0.5 else ["chr\tstart\tend\n", *rows]
    barcodes = list(cells.obs_names)
    if what["cells"] == "barcodes" and rng.random() < 0.5:  # as R writes them
        barcodes = [f'"{row}"\t"{name}"' for row, name in enumerate(barcodes, 1)]
        barcodes = ['"x"', *barcodes] if rng.random() < 0.5 else barcodes
    elif what["cells"] == "quotes":
        barcodes = ['"' + name.replace('"', '""') + '"' for name in barcodes]
    write_mtx(cells, folder, names, transposed=rng.random() < 0.5)
    ends = "\r\n" if rng.random() < 0.3 else "\n"
    write_text(folder / names[1], "".join(f"{name}{ends}" for name in barcodes))
    write_text(folder / names[2], "".join(rows))
    if rng.random() < 0.3:  # compressed or not, whatever the name says
        path = folder / names[1]
        content = path.read_bytes()
        packed = content[:2] == b"\x1f\x8b"
        path.write_bytes(gzip.decompress(content) if packed else gzip.compress(content))
    return folder


def a_table(cells, what, rng, folder):
    frame = cells.to_df()
    frame = frame if rng.random() < 0.5 else frame.astype(float)
    separator, suffix = [(",", ".csv"), ("\t", ".tsv"), ("\t", ".txt"), (",", ".csv.gz")][
        int(rng.integers(4))
    ]
    path = folder / f"a{suffix}"
    options = {"sep": separator, "encoding": ["utf-8", "utf-8-sig"][int(rng.integers(2))]}
    if what["peaks"] == "BED" and rng.random() < 0.5:
        parts = pd.DataFrame(
            [name.split("_") for name in cells.var_names], columns=["Chr", "Start", "End"]
        )
        frame = pd.concat([parts, frame.T.reset_index(drop=True)], axis=1)
        frame.to_csv(path, index=False, **options)
        return path
    frame.T.to_csv(path, quoting=int(rng.integers(2)) * 2, **options)
    return path


def dense(x):
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


def check(found, cells, what, rng):
    expected = dense(cells.X).astype(np.float64)
    peaks = what["peaks"] in ("names", "numbers", "Unicode")
    binary = bool(rng.random() < 0.5)
    counts = CountMatrix.from_anndata(found, binary=binary)
    assert list(counts.obs_names) == list(cells.obs_names), "names of cells"
    assert list(counts.var_names) == list(cells.var_names), f"names of peaks ({peaks})"
    want = expected > 0 if binary else expected
    np.testing.assert_array_equal(counts.read().toarray(), want)
    if what["format"] in ("memory", "h5ad", "zarr 2", "zarr 3"):
        assert set(found.uns) == set(cells.uns)
        assert list(found.obs) == list(cells.obs)
    if rng.random() < 0.15:
        likelihood = "bernoulli" if binary else "poisson"
        model = ps.SCALE(found, 2, 2, hidden=(4,), n_lsi=5, likelihood=likelihood)
        model.train(1, progress_bar=False)
        result = model.to_anndata(found)
        assert set(result.uns) == {*found.uns, "scale"}
        assert result.obsm["X_scale"].shape == (cells.n_obs, 2)
