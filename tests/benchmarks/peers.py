"""The peers of quality.py, each fitted by its own package with its own defaults."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import warnings

import anndata as ad
import numpy as np
import scipy.sparse as sp
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD

STEPS = 12_000  # of the original; its own default is 30,000


def kmeans(x, k, seed):
    """k-means with 20 restarts."""
    return KMeans(k, n_init=20, random_state=seed).fit_predict(x)


def leiden(x, seed):
    """scanpy's Leiden at resolution 1 on 30 neighbours, as the original runs it."""
    import scanpy as sc

    cells = ad.AnnData(np.asarray(x, dtype=np.float32))
    sc.pp.neighbors(cells, n_neighbors=30, use_rep="X", random_state=seed)
    sc.tl.leiden(cells, random_state=seed, flavor="igraph", n_iterations=2, directed=False)
    return cells.obs["leiden"].to_numpy()


class TfidfSvd:
    """TF-IDF, ten singular vectors after the first, unit rows, k-means."""

    def __init__(self, adata, k, seed):
        x = adata.X
        idf = np.log1p(x.shape[0] / np.maximum(x.getnnz(0), 1))
        y = sp.csr_matrix(sp.diags(1 / np.maximum(x.getnnz(1), 1)) @ x @ sp.diags(idf))
        y.data = np.log1p(1e4 * y.data)
        scores = TruncatedSVD(11, random_state=seed).fit_transform(y)[:, 1:]
        self.latent = scores / np.linalg.norm(scores, axis=1, keepdims=True)

    def clusters(self, k, seed):
        return {"k-means": kmeans(self.latent, k, seed)}


class SnapAtac2:
    """SnapATAC2's spectral embedding."""

    def __init__(self, adata, k, seed):
        import snapatac2

        cells = adata.copy()
        cells.var["selected"] = True
        snapatac2.tl.spectral(cells, random_state=seed)
        self.latent = cells.obsm["X_spectral"]

    def clusters(self, k, seed):
        return {"k-means": kmeans(self.latent, k, seed), "Leiden": leiden(self.latent, seed)}


def log_mean_weight(log_weight, n_draws):
    """log of the mean of exp(log_weight(s)) over draws, one draw at a time."""
    total = functools.reduce(torch.logaddexp, (log_weight() for _ in range(n_draws)))
    return (total - math.log(n_draws)).numpy()


class PeakVi:
    """scvi-tools' PeakVI with ten latent dimensions."""

    def __init__(self, adata, k, seed):
        import scvi

        scvi.settings.seed = seed
        self.cells = adata.copy()
        scvi.model.PEAKVI.setup_anndata(self.cells)
        self.model = scvi.model.PEAKVI(self.cells, n_latent=10)
        with contextlib.redirect_stdout(io.StringIO()):
            self.model.train(enable_progress_bar=False, accelerator="cpu")

    def clusters(self, k, seed):
        return {"k-means": kmeans(self.model.get_latent_representation(), k, seed)}

    @torch.inference_mode()
    def held_out(self, adata, n_draws):
        module = self.model.module.eval().cpu()
        x = torch.from_numpy(adata.X.toarray()).float()
        batch = torch.zeros(len(x), 1)
        torch.manual_seed(0)
        inference = module.inference(x, batch, None, None)
        depth, q_z = inference["d"], inference["qz"]
        factor = torch.sigmoid(module.region_factors)

        def log_weight():
            z = q_z.sample()
            p = module.generative(z, q_z.loc, batch)["px"] * depth * factor
            p_x = torch.distributions.Bernoulli(p.clamp(1e-7, 1 - 1e-7))
            prior = torch.distributions.Normal(0.0, 1.0)
            return p_x.log_prob(x).sum(-1) + (prior.log_prob(z) - q_z.log_prob(z)).sum(-1)

        return log_mean_weight(log_weight, n_draws)

    def imputed(self, adata):
        return np.asarray(self.model.get_normalized_accessibility())


@contextlib.contextmanager
def as_released(optimizer):
    """The original needs names that numpy and torch have dropped; with another Adam."""
    adam, clip = torch.optim.Adam, torch.nn.utils.clip_grad_norm_
    for name, value in {"warnings": warnings, "Inf": np.inf}.items():
        setattr(np, name, value)
    torch.optim.Adam = optimizer
    torch.nn.utils.clip_grad_norm = clip
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        torch.optim.Adam = adam


class OriginalScale:
    """PyPI scale 1.1.2: its networks, start and loop, lr 2e-4, batches of 32."""

    def __init__(self, adata, k, seed, *, steps=STEPS, fused=True):
        torch.manual_seed(seed)
        np.random.seed(seed)  # its mixture start reads numpy's state
        x = torch.from_numpy(adata.X.toarray()).float()
        with as_released(functools.partial(torch.optim.Adam, fused=fused)):  # the same update
            from scale.dataset import SingleCellDataset
            from scale.model import SCALE

            self.model = SCALE([x.shape[1], 10, [1024, 128], []], n_centroids=k)
            cells, workers = (x, 0) if fused else (SingleCellDataset(adata), 4)  # as shipped
            data = torch.utils.data.DataLoader(
                cells, batch_size=32, shuffle=True, drop_last=True, num_workers=workers
            )
            self.model.init_gmm_params(torch.utils.data.DataLoader(x, batch_size=32))
            self.model.fit(data, lr=2e-4, max_iter=steps)
        self.model.eval()
        with torch.inference_mode():
            self.mean = self.model.encoder(x)[1]
            self.gamma = self.model.get_gamma(self.mean)[0]

    def clusters(self, k, seed):
        return {
            "k-means": kmeans(self.mean.numpy(), k, seed),
            "Leiden": leiden(self.mean.numpy(), seed),
            "argmax gamma": self.gamma.argmax(1).numpy(),
        }

    @torch.inference_mode()
    def held_out(self, adata, n_draws):
        """With pi normalised: as trained it is off the simplex and p(x) is not a density."""
        x = torch.from_numpy(adata.X.toarray()).float()
        torch.manual_seed(0)
        _, mean, log_var = self.model.encoder(x)
        q_z = torch.distributions.Normal(mean, (0.5 * log_var).exp())
        p_z = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(self.model.pi.clamp_min(1e-10)),
            torch.distributions.Independent(
                torch.distributions.Normal(self.model.mu_c.T, self.model.var_c.T.sqrt()), 1
            ),
        )

        def log_weight():
            z = q_z.sample()
            p = self.model.decoder(z).clamp(1e-7, 1 - 1e-7)
            log_p_x = torch.distributions.Bernoulli(p).log_prob(x).sum(-1)
            return log_p_x + p_z.log_prob(z) - q_z.log_prob(z).sum(-1)

        return log_mean_weight(log_weight, n_draws)

    @torch.inference_mode()
    def imputed(self, adata):
        return self.model.decoder(self.mean).numpy()
