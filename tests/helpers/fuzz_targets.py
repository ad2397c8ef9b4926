"""What is fuzzed: each target takes a generator of random numbers and tries one damaged input."""

import bz2
import gzip
import io
import json
import linecache
import lzma
import traceback
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch

import pyro_scale as ps
from helpers import small_scale, train
from helpers.corrupt_files import damaged_bytes, damaged_json, fix_checksums
from helpers.file_formats import FORMATS, a_dozen_cells
from helpers.fuzz_arguments import Arguments
from pyro_scale.data import CountMatrix, read
from pyro_scale.exceptions import (
    DataError,
    ModelFileError,
    NonFiniteError,
    NotTrainedError,
    OutOfMemoryError,
)

__all__ = ["TARGETS", "BrokenError", "outcome"]

NAMED = (DataError, ModelFileError, NonFiniteError, NotTrainedError, OutOfMemoryError)
PLAIN = (ValueError, TypeError, FileNotFoundError, FileExistsError, NotADirectoryError, ImportError)
PACKAGE = str(Path(ps.__file__).parent)


class BrokenError(Exception):
    """An input was taken that should have been refused, or gave what it should not."""


def outcome(action):
    """``"accepted"``, ``"refused"`` by an error of ours, or the traceback of any other."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            action()
    except Exception as error:
        return "refused" if is_ours(error) else "".join(traceback.format_exception(error))
    return "accepted"


def is_ours(error):
    """Whether we raised it: a named error, or one that a line ``raise ...`` of the package has."""
    if isinstance(error, NAMED):
        return True
    if type(error) not in PLAIN:
        return False
    last = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(last.filename, last.lineno).strip()
    return last.filename.startswith(PACKAGE) and line.startswith("raise ")


class Files:
    """Files that are written once; for each input one of them is damaged, and then put back."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir(parents=True)

    def remember(self):
        self.files = {p: p.read_bytes() for p in sorted(self.folder.rglob("*")) if p.is_file()}

    def restore(self):
        for path, data in self.files.items():
            path.write_bytes(data)

    def damage_one(self, rng, others=()):
        path = list(self.files)[int(rng.integers(len(self.files)))]
        other = [*self.files.values(), *others][int(rng.integers(len(self.files) + len(others)))]
        path.write_bytes(damaged_file(path, self.files[path], rng, other))
        return path


PACKED = {".gz": (gzip.compress, gzip.decompress), ".bz2": (bz2.compress, bz2.decompress)}
PACKED[".xz"] = (lzma.compress, lzma.decompress)


def damaged_file(path, data, rng, other):
    """Damaged as it is, or inside its compression or its JSON, so that deeper code is met."""
    inside = rng.random() < 0.7
    if inside and path.suffix in PACKED:
        pack, unpack = PACKED[path.suffix]
        return pack(damaged_bytes(unpack(data), rng, other))
    if inside and path.name in ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"):
        return json.dumps(damaged_json(json.loads(data), rng)).encode()
    return damaged_bytes(data, rng, other)


class Reader:
    """``ps.read`` of one kind of file; what it takes must be whole, and be refused or counted."""

    def __init__(self, kinds, folder):
        self.trees = []
        for number, kind in enumerate(kinds):
            files = Files(folder / str(number))
            path = FORMATS[kind](a_dozen_cells(), files.folder)
            files.remember()
            self.trees.append((files, path))

    def one(self, rng):
        files, path = self.trees[int(rng.integers(len(self.trees)))]
        files.damage_one(rng)
        backed = path.suffix in (".h5ad", ".zarr") and rng.random() < 0.3
        return lambda: self.attempt(path, backed), files.restore

    def attempt(self, path, backed):
        adata = read(path, backed=backed)
        if not backed:
            adata.X.check_format(full_check=True)
            if adata.X.shape != (len(adata.obs_names), len(adata.var_names)):
                raise BrokenError(f"X is {adata.X.shape}")
        try:
            counts = CountMatrix.from_anndata(adata, binary=False)
        finally:
            if backed:
                adata.file.close()
        if counts.depth.shape != (adata.n_obs,) or not np.isfinite(counts.depth).all():
            raise BrokenError("depths")


class Model:
    """``ps.SCALE.load``; ``sealed``: with checksums that are right again after the damage."""

    options = ({}, {"preset": "plain"}, {"likelihood": "poisson"}, {"formulation": "amortized"})

    def __init__(self, folder, *, sealed):
        self.sealed, self.cells = sealed, a_dozen_cells()
        self.trees = []
        for number, options in enumerate(self.options):
            files = Files(folder / str(number))
            model = train(small_scale(self.cells, **options), 2)
            model.save(files.folder)
            files.remember()
            self.trees.append((files, model))

    def one(self, rng):
        files, model = self.trees[int(rng.integers(len(self.trees)))]
        if self.sealed and rng.random() < 0.8:
            path = files.folder / "model.json"
            content = json.loads(files.files[path])
            path.write_text(json.dumps(damaged_json(content, rng)))
        else:
            files.damage_one(rng)
        if self.sealed:
            outcome(lambda: fix_checksums(files.folder))
        return lambda: self.attempt(files, model), files.restore

    def attempt(self, files, model):
        loaded = ps.SCALE.load(files.folder, self.cells)
        if not self.sealed and not same(loaded, model):
            raise BrokenError("a changed model was loaded")
        if loaded.is_trained:
            latent = loaded.get_latent_representation()
            if latent.shape != (self.cells.n_obs, loaded.config.n_latent):
                raise BrokenError(f"latent of shape {latent.shape}")
            loaded.get_responsibilities(n_samples=2)


def same(one, other):
    """Whether two models are equal in all that was saved."""
    weights = one.vae.state_dict()
    return (
        one.config == other.config
        and list(one.peak_names) == list(other.peak_names)
        and one.history.equals(other.history)
        and all(torch.equal(weights[name], w) for name, w in other.vae.state_dict().items())
    )


def original_state(n_peaks, hidden=16, n_latent=3, k=2):
    """Weights as the published SCALE names them."""
    return {
        "pi": torch.full((k,), 1 / k),
        "mu_c": torch.randn(n_latent, k),
        "var_c": torch.ones(n_latent, k),
        "encoder.hidden.0.weight": torch.randn(hidden, n_peaks),
        "encoder.hidden.0.bias": torch.zeros(hidden),
        "encoder.sample.mu.weight": torch.randn(n_latent, hidden),
        "encoder.sample.mu.bias": torch.zeros(n_latent),
        "encoder.sample.log_var.weight": 0.1 * torch.randn(n_latent, hidden),
        "encoder.sample.log_var.bias": torch.zeros(n_latent),
        "decoder.reconstruction.weight": torch.randn(n_peaks, n_latent),
        "decoder.reconstruction.bias": torch.zeros(n_peaks),
    }


STRANGE = [
    lambda w: w[:1], lambda w: w[:0], lambda w: w.double(), lambda w: w.long(),
    lambda w: w * np.nan,
    lambda w: w.reshape(-1), lambda w: w.T, lambda w: w.to_sparse(), lambda w: w.to("meta"),
    lambda w: w.cfloat(), lambda _: torch.zeros(()), lambda _: torch.zeros(1).expand(10**9),
    lambda w: w[None], lambda _: 3, lambda _: "x", torch.nn.Parameter, lambda w: -w, lambda _: None,
    lambda w: w * 1e38, lambda _: torch.zeros(10**6, 0), lambda _: torch.zeros(0, 10**6),
    lambda w: w.half(),
]  # fmt: skip


class Original:
    """``ps.SCALE.from_original``: in torch's zip format and its older one, whole and inside."""

    def __init__(self, folder):
        folder.mkdir(parents=True)
        self.path, self.cells = folder / "model.pt", a_dozen_cells()
        self.state = original_state(self.cells.n_vars)
        self.data = []
        for zipped in (True, False):
            buffer = io.BytesIO()
            torch.save(self.state, buffer, _use_new_zipfile_serialization=zipped)
            self.data.append(buffer.getvalue())

    def one(self, rng):
        how = rng.random()
        if how < 0.3:
            self.path.write_bytes(damaged_bytes(self.data[int(rng.integers(2))], rng))
        elif how < 0.7:
            self._inside(rng)
        else:
            torch.save(self._strange(rng), self.path)
        return lambda: self.attempt(), lambda: None

    def _inside(self, rng):
        with zipfile.ZipFile(io.BytesIO(self.data[0])) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        names = ["archive/data.pkl", *entries]
        hit = names[int(rng.choice([0, 0, 0, int(rng.integers(len(names)))]))]
        with zipfile.ZipFile(self.path, "w") as archive:
            for name, data in entries.items():
                archive.writestr(name, damaged_bytes(data, rng) if name == hit else data)

    def _strange(self, rng):
        state = dict(self.state)
        for _ in range(int(rng.integers(1, 4))):
            key = list(state)[int(rng.integers(len(state)))]
            choice = int(rng.integers(12))
            if choice == 0:
                del state[key]
            elif choice == 1:
                state[f"decoder.hidden.{rng.integers(3)}.weight"] = torch.zeros(3, 3)
            elif state[key] is self.state.get(key):
                state[key] = STRANGE[int(rng.integers(len(STRANGE)))](state[key])
        return state

    def attempt(self):
        model = ps.SCALE.from_original(self.path, self.cells)
        if not np.isfinite(model.get_latent_representation()).all():
            raise BrokenError("latent means that are not finite")


def _readers():
    kinds = {
        "h5ad": [kind for kind in FORMATS if kind.startswith("h5ad")],
        "zarr": ["zarr v2", "zarr v3"],
        "h5": ["10x h5"],
        "h5mu": ["h5mu", "h5mu/atac"],
        "mtx": [kind for kind in FORMATS if "mtx" in kind],
        "tables": [kind for kind in FORMATS if kind[:3] in ("csv", "tsv", "txt")],
    }
    return {name: lambda folder, of=of: Reader(of, folder) for name, of in kinds.items()}


TARGETS = {
    **_readers(),
    "model": lambda folder: Model(folder, sealed=False),
    "sealed": lambda folder: Model(folder, sealed=True),
    "original": Original,
    "arguments": Arguments,
}
