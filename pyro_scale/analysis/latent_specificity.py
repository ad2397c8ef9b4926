"""Which latent dimensions tell a cluster from the other cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import f

from pyro_scale.checks import check_array, check_labels

__all__ = ["latent_specificity"]


def latent_specificity(
    latent_nd: ArrayLike, clusters: Sequence[object] | pd.Series
) -> pd.DataFrame:
    r"""p values of one-way F tests of a cluster against all other cells, per dimension.

    .. math:: F_{dk} = \frac{n_k (\bar z_{dk} - \bar z_d)^2 + n_{-k} (\bar z_{d,-k} - \bar z_d)^2}
              {W_{dk} / (n - 2)} \sim F_{1,\,n-2}

    with W the sum of squares around the means of the cluster and of all others (-k).

    Parameters
    ----------
    latent_nd
        Latent means, shape ``(n, d)``, any number of dimensions.
    clusters
        The cluster of each cell; cells without one (NaN) are left out.

    Returns
    -------
    DataFrame
        p values, dimensions (numbered from 0) x clusters that have cells. One where nothing can
        be told: a constant dimension, no cells outside of the cluster, or fewer than three.

    Raises
    ------
    ValueError
        If there is not one cluster per cell, or a latent value is not finite.

    References
    ----------
    The test that Xiong et al. 2019 (doi:10.1038/s41467-019-12630-7) draw as "feature
    specificity"; equal to :func:`scipy.stats.f_oneway`.

    Examples
    --------
    >>> latent_specificity([[0.0], [1.0], [4.0], [5.0]], ["a", "a", "b", "b"]).round(3)
          a     b
    0  0.03  0.03
    """
    z_nd = check_array("latent_nd", latent_nd, np.float64)
    if z_nd.ndim != 2:
        raise ValueError(f"latent_nd has shape {z_nd.shape}; expected cells x dimensions.")
    groups = check_labels("clusters", clusters)
    if len(groups) != len(z_nd):
        raise ValueError(f"{len(groups)} clusters for {len(z_nd)} cells: expected one each.")
    if not np.isfinite(z_nd).all():
        raise ValueError(f"latent_nd has {int((~np.isfinite(z_nd)).sum())} NaN or infinities.")
    if not isinstance(groups.dtype, pd.CategoricalDtype):
        groups = groups.astype("category")
    known = groups.notna().to_numpy()
    codes, z_nd = groups.cat.codes.to_numpy()[known], z_nd[known]
    used, codes = np.unique(codes, return_inverse=True)
    names = [str(groups.cat.categories[code]) for code in used]
    n, dims = len(z_nd), z_nd.shape[1]
    size_k = np.bincount(codes, minlength=len(names))
    p_dk = np.ones((dims, len(names)))
    if n > 2 and len(names) > 1:
        constant_d = np.ptp(z_nd, axis=0) == 0
        z_nd = z_nd - z_nd.mean(0)
        member_nk = np.eye(len(names))[codes]
        sum_dk = z_nd.T @ member_nk
        mean_dk, rest_dk = sum_dk / size_k, -sum_dk / (n - size_k)  # z is centred
        between_dk = size_k * mean_dk**2 + (n - size_k) * rest_dk**2
        # Sums of squares by cluster, then of each cluster j != k around the mean of the rest.
        inside_dk = ((z_nd - mean_dk.T[codes]) ** 2).T @ member_nk
        off_dkj = size_k * (mean_dk[:, None, :] - rest_dk[:, :, None]) ** 2
        off_dkj[:, np.arange(len(names)), np.arange(len(names))] = 0
        within_dk = inside_dk.sum(1, keepdims=True) + off_dkj.sum(2)
        with np.errstate(divide="ignore", invalid="ignore"):
            p_dk = f.sf(between_dk / (within_dk / (n - 2)), 1, n - 2)
        p_dk[constant_d] = 1
    return pd.DataFrame(p_dk, columns=names)
