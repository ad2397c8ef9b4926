"""A formulation to be registered: q(z|x) p(c|z)^(1/T) / Z, with T a parameter of its own."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

from pyro_scale.objectives import (
    CLOSED_FORMS,
    OBJECTIVES,
    REGISTRY,
    ElboTerms,
    ObjectiveSpec,
    terms,
)
from pyro_scale.programs import MixtureModel
from pyro_scale.programs.formulations import Formulation, Program, Programs


class TemperedGuide(Program):
    """q(z|x) times p(c|z)^(1/T), normalised; T is a parameter."""

    def __init__(self, vae, enumerate_c):
        super().__init__(vae)
        self.infer_c = {"enumerate": "parallel"} if enumerate_c else {}

    def forward(self, cells, kl_weight=1.0):
        encoder, prior = self.vae.encoder, self.vae.prior
        with pyro.plate("cells", cells.n_cells), poutine.scale(scale=kl_weight):
            z = pyro.sample("z", encoder.q_z(*encoder(cells)))
            logits = prior.log_responsibilities(z) / self.vae.log_temperature.exp()
            pyro.sample("c", dist.Categorical(logits=logits), infer=self.infer_c)


def build(vae, enumerate_c):
    if not hasattr(vae, "log_temperature"):
        vae.log_temperature = torch.nn.Parameter(torch.full_like(vae.prior.logits_k[0], 0.7))
    return Programs(MixtureModel(vae), TemperedGuide(vae, enumerate_c))


def tempered(at):
    log_q_nk = (at.log_gamma_nk / at.vae.log_temperature.exp()).log_softmax(-1)
    q_nk = log_q_nk.exp()
    return ElboTerms(
        at.log_lik_n,
        (q_nk * at.log_p_z_given_c_nk).sum(-1),
        (q_nk * at.log_pi_k).sum(-1),
        -terms.log_q_z(at.z_nd, at.loc_nd, at.var_nd),
        -(q_nk * log_q_nk).sum(-1),
    )


TEMPERED = Formulation("tempered", "q(z|x) p(c|z)^(1/T)", ("enumerated", "sampled"), build)
EXACT = ObjectiveSpec("tempered", "TraceEnum_ELBO", "enumerated", "tempered", "exact", "exact")
ON_AVERAGE = ObjectiveSpec(
    "tempered", "Trace_ELBO", "sampled", "tempered", "in expectation", "in expectation"
)
CLOSED_FORM = {"tempered": tempered}
EXACT_FIELDS = ("tempered", "TraceEnum_ELBO", "enumerated", "tempered", "exact", "exact")


def changed(at, value):
    """The exact row with another entry."""
    fields = list(EXACT_FIELDS)
    fields[at] = value
    return ObjectiveSpec(*fields)


def all_that_is_registered():
    return tuple(OBJECTIVES), dict(REGISTRY.formulations), dict(CLOSED_FORMS)
