"""An ELBO that enumerates c and integrates z out of its two log-densities."""

from __future__ import annotations

from typing import Any

from pyro.infer import TraceEnum_ELBO
from pyro.ops import packed
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import kl_divergence

__all__ = ["TraceEnumMeanField_ELBO"]


class TraceEnumMeanField_ELBO(TraceEnum_ELBO):  # noqa: N801 (Pyro's naming)
    r"""TraceEnum_ELBO with analytic expectations of the reparameterised log-densities.

    For every reparameterised site z that guide and model share, the sampled log-densities are
    replaced by their expectations under q(z|x),

    .. math::
        \log p(z \mid c) &\to E_q[\log p(z \mid c)] = -KL(q \,\|\, p(\cdot \mid c)) - H(q) \\
        \log q(z \mid x) &\to E_q[\log q(z \mid x)] = -H(q)

    while discrete sites are enumerated as in :class:`pyro.infer.TraceEnum_ELBO`. Pyro has no
    such estimator: its TraceMeanField_ELBO refuses a Categorical.

    On a guide where c is independent of z given x it is unbiased for the same ELBO, with less
    variance: it is then the mean-field bound of VaDE and SCALE's derivation, exactly per
    sample. On the *structured* guide q(z|x) p(c|z), where c depends on z, it is not the ELBO
    of that guide: it reproduces SCALE's loss sample by sample. See ``derivations/``.

    Parameters are those of :class:`pyro.infer.TraceEnum_ELBO`.

    Raises
    ------
    NotImplementedError
        When called with a guide that samples a discrete site instead of enumerating it, or
        with a reparameterised site whose KL divergence to its prior is not registered (the
        collapsed mixture).

    Examples
    --------
    The loss of VaDE and of SCALE's derivation: c enumerated, independent of z.

    >>> import torch
    >>> from pyro_scale.objectives import Objective
    >>> from pyro_scale.programs import Cells, MixtureVAE
    >>> vae = MixtureVAE(n_peaks=30, n_components=3, n_latent=2, hidden=(8,))
    >>> cells = Cells.from_counts((torch.rand(5, 30) < 0.2).float())
    >>> Objective(vae, "mean_field", "TraceEnumMeanField_ELBO")(cells).shape
    torch.Size([])
    """

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)
        for name, guide_site in guide_trace.nodes.items():
            if guide_site["type"] != "sample" or guide_site["is_observed"]:
                continue
            if not guide_site["fn"].has_rsample:
                if not guide_site["infer"].get("enumerate"):
                    raise NotImplementedError(
                        f"TraceEnumMeanField_ELBO needs every discrete site of the guide "
                        f"enumerated, but {name!r} is sampled: mark it "
                        f"infer={{'enumerate': 'parallel'}}."
                    )
                continue
            if name not in model_trace:
                raise NotImplementedError(
                    f"TraceEnumMeanField_ELBO needs every guide site in the model too, but "
                    f"{name!r} is only in the guide."
                )
            model_site = model_trace.nodes[name]
            q, p = guide_site["fn"], model_site["fn"]
            try:
                kl = kl_divergence(q, p)
            except NotImplementedError as error:
                raise NotImplementedError(
                    f"TraceEnumMeanField_ELBO needs a registered KL divergence at site {name!r}, "
                    f"but none is for q = {_describe(q)} and p = {_describe(p)}."
                ) from error
            entropy = q.entropy()
            _replace_log_prob(guide_site, -entropy)
            _replace_log_prob(model_site, -kl - entropy)
        return model_trace, guide_trace


def _replace_log_prob(site: dict[str, Any], log_prob: Tensor) -> None:
    """Put an unscaled log-density at a site, then apply the site's own mask and scale again."""
    parts = site["packed"]
    unscaled = packed.pack(log_prob, site["infer"]["_dim_to_symbol"])
    # One after the other: packed.scale_and_mask drops the scale when it is given a mask.
    masked = packed.scale_and_mask(unscaled, mask=parts["mask"])
    parts["unscaled_log_prob"] = unscaled
    parts["log_prob"] = packed.scale_and_mask(masked, scale=site["scale"])


def _describe(distribution: Any) -> str:
    base = getattr(distribution, "base_dist", None)
    name = type(distribution).__name__
    return name if base is None else f"{name}({type(base).__name__})"
