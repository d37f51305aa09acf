"""The sleep phase: the guide learns to invert the model on data that the model dreams up."""

import inspect
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_elbo_lab.programs.pair import Pair, Program, traced
from pyro_elbo_lab.programs.replay import unobserved
from pyro_elbo_lab.programs.structure.factors import is_random, is_subsample


def dream(pair: Pair, *, num: int, share: float) -> Tensor:
    """share * E[log q(z | x)] over z and x from the model, whose parameters do not learn from it.

    Args:
        pair: a model, whose observed sites are sampled, and a guide with a keyword argument
            `observations`, in which it gets the dreamt values of these sites by name.
        num: the number of joint draws (z, x) from the model.
        share: a factor.

    Returns:
        A scalar, in nats. It is to be maximized.

    Raises:
        ValueError: the guide takes no `observations`, or draws a latent that is not in the model.
    """
    _check_takes_observations(pair.guide)
    total = torch.zeros(())
    for _ in range(num):
        with torch.no_grad(), poutine.block():
            dreamt = traced(unobserved(pair.model), pair)
        observations = {
            name: site["value"]
            for name, site in dreamt.nodes.items()
            if site["type"] == "sample" and site["infer"].get("was_observed")
        }
        seeing = replace(pair, kwargs={**pair.kwargs, "observations": observations})
        trace = traced(poutine.replay(pair.guide, trace=dreamt), seeing)
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and not is_subsample(site) and is_random(site):
                _check_dreamt(name, dreamt)
        total = total + trace.log_prob_sum()
    return share * total / num


def _check_takes_observations(guide: Program) -> None:
    called = guide.forward if isinstance(guide, torch.nn.Module) else guide
    parameters = inspect.signature(called).parameters.values()
    if not any(p.name == "observations" or p.kind is p.VAR_KEYWORD for p in parameters):
        raise ValueError(
            "The sleep phase calls the guide with a keyword argument `observations`, a dict of "
            "dreamt values by site, which this guide does not take. Let it read its data from "
            "there, as in `def guide(x, observations=None)`, or use insomnia=1."
        )


def _check_dreamt(name: str, dreamt: Any) -> None:
    if name not in dreamt.nodes:
        raise ValueError(
            f"The guide draws '{name}', which the model has not, so the sleep phase does not know "
            "its value (autoguides draw in unconstrained space). Write a guide that draws the "
            "model's own sites, or use insomnia=1."
        )
