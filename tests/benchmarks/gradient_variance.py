"""Variance of the guide's gradient: Pyro's Trace_ELBO, StandardELBO and AnalyticKLELBO.

Run from the project's root: python -m tests.benchmarks.gradient_variance

Prints, for each of the first models, each guide, early and late in a fit, the variance of the
one-particle gradient summed over the guide's parameters, as a ratio to Trace_ELBO's. Late is after
4000 steps of a decaying learning rate.
"""

import warnings

import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from models import eight_schools, linear_regression, logistic_regression
from pyro_elbo_lab import AnalyticKLELBO, StandardELBO
from pyro_elbo_lab.inference.fitting.fit import fit

MODELS = {
    "eight schools": eight_schools,
    "linear regression": linear_regression,
    "logistic regression": logistic_regression,
}
GUIDES = {"mean-field": AutoNormal, "full-rank": AutoMultivariateNormal}
OBJECTIVES = {
    "Trace_ELBO": Trace_ELBO(),
    "StandardELBO": StandardELBO(),
    "AnalyticKLELBO": AnalyticKLELBO(),
}
STEPS = {"early": 100, "late": 4000}


def total_variance(objective: ELBO, model, guide, args, num_evaluations: int = 2000) -> float:
    """Sum over the guide's parameters of the variance of their gradient."""
    parameters = list(guide.parameters())
    samples = []
    for _ in range(num_evaluations):
        loss = objective.differentiable_loss(model, guide, *args)
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        samples.append(torch.cat([g.reshape(-1) for g in grads if g is not None]).double())
    return torch.stack(samples).var(0).sum().item()


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(f"{'model':20} {'guide':11} {'fit':6}", *[f"{name:>15}" for name in OBJECTIVES])
    for model_name, module in MODELS.items():
        data = module.data()
        args = data if isinstance(data, tuple) else (data,)
        for guide_name, autoguide in GUIDES.items():
            for stage, num_steps in STEPS.items():
                pyro.clear_param_store()
                guide = autoguide(module.model)
                objective = StandardELBO(gradient="pathwise")
                keywords = {"num_steps": num_steps, "progress": False}
                fit(module.model, guide, *args, objective=objective, **keywords)  # type: ignore[arg-type]
                pyro.set_rng_seed(0)
                variances = [
                    total_variance(objective, module.model, guide, args)
                    for objective in OBJECTIVES.values()
                ]
                ratios = [f"{variance / variances[0]:15.3g}" for variance in variances]
                print(f"{model_name:20} {guide_name:11} {stage:6}", *ratios, flush=True)


if __name__ == "__main__":
    main()
