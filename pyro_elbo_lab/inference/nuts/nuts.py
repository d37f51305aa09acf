"""NUTS references: draws to hold an approximation against, and whether they can be trusted."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import MCMC, NUTS
from xarray import DataTree

from pyro_elbo_lab.compilation.capture.guard import CaptureError
from pyro_elbo_lab.inference.nuts.chains import TARGET_ACCEPT, Sample, sample
from pyro_elbo_lab.inference.nuts.density import compare, compile_density
from pyro_elbo_lab.inference.nuts.potential import (
    Potential,
    constrain,
    isolated,
    logp_and_gradient,
    prepare,
    starting_point,
)
from pyro_elbo_lab.inference.trees.datatree import to_datatree
from pyro_elbo_lab.inference.trees.groups import constant_data, model_groups
from pyro_elbo_lab.programs.arguments import check_count, check_programs
from pyro_elbo_lab.programs.dims import element_names, trace_dims
from pyro_elbo_lab.programs.messages import warn
from pyro_elbo_lab.programs.replay import observations
from pyro_elbo_lab.programs.state import seeded
from pyro_elbo_lab.statistics.reliability import Worst, worst
from pyro_elbo_lab.statistics.reliability import judge as judged

__all__ = ["nuts"]

_AT_ONCE = 64
"""Scalars judged at once."""


def nuts(
    model: Callable[..., Any],
    *args: Any,
    num_chains: int = 4,
    num_warmup: int = 1000,
    num_samples: int = 1000,
    seed: int = 0,
    sampler: str = "nutpie",
    progress: bool = True,
    **kwargs: Any,
) -> DataTree:
    """Draw from a model's posterior with NUTS, and judge whether the draws can be trusted.

    The density is Pyro's own potential, in float64 whatever the type of the arguments and of the
    tensors that the model keeps, which take part as copies. Discrete
    latents are enumerated and summed out: the result has the continuous ones, and no
    `pyro.deterministic` sites then. Parameters (`pyro.param`, modules) stay fixed. The
    caller's random state, param store and default dtype are untouched.

    With "nutpie" the density and its gradient are captured as one graph and compiled, which takes
    seconds the first time and less again, as compiled code is kept on disk; the compiled density
    is compared with the model at several points beforehand and at some of the draws afterwards.
    Chains then run side by side, one a core; seed and draws do not depend on how many cores there
    are. A model that cannot be one graph (Python control flow or numbers that depend on a latent's
    value) is run eagerly with a warning that says why, a hundred times slower and one chain after
    another: Pyro's handlers are global to the process. So is any model with "pyro".

    The draws count as reliable if, over all scalars of all sites, the rank-normalized split R-hat
    is at most 1.01 and the bulk and tail ESS are at least 100 a chain (Vehtari et al. 2021), and
    if at most 1 % of the transitions after warm-up diverged. Divergent transitions mark a region
    that the chains enter too seldom. Stan's guide finds a few of them tolerable where R-hat and
    ESS are good; the figure of 1 % is ours: even where the missed region is as large as the share
    of divergences and lies 5 sd away, a mean moves by no more than the 0.05 sd that is its Monte
    Carlo error at the least ESS allowed for four chains.

    Args:
        model: a Pyro model, on its full data.
        args: the model's positional arguments.
        num_chains: at least 2 are needed to judge convergence.
        num_warmup: draws a chain that adapt the step size and the mass matrix, not returned.
        num_samples: draws a chain that are returned.
        seed: the same seed gives the same draws.
        sampler: "nutpie" (low-rank mass matrix) or "pyro" (diagonal), both with a target
            acceptance of 0.9.
        progress: whether to show a progress bar.
        kwargs: the model's keyword arguments.

    Returns:
        A tree with the groups `posterior` (constrained values of latent and deterministic sites,
        dimensions named after plates), `sample_stats` (ArviZ's names; "pyro" has only `diverging`
        and `step_size`), `log_likelihood`, predictions, prior and data as in `from_pyro`; what of
        these cannot be had is missing, and the attribute `notes` says why. Attributes of the root:
        `sampler`; `density`, "compiled", or "eager: " and why; `r_hat_max`, `ess_min` and
        `divergences`; `reliable` (1 or 0) and `reliability`, a sentence that says why; `seconds`,
        the wall time of everything, and `compile_seconds`, those of them until the density was
        compiled.

    Raises:
        ValueError: an unknown sampler, a number below 1, or a model that NUTS cannot sample:
            see `potential.prepare`.
        TypeError: the model writes to a float32 tensor that it keeps; a number that is no integer.

    Warns:
        UserWarning: the draws are not reliable, or the model runs eagerly with "nutpie".

    References:
        Hoffman and Gelman (2014), The No-U-Turn sampler; Vehtari, Gelman, Simpson, Carpenter and
        Bürkner (2021), Rank-normalization, folding, and localization: an improved R-hat for
        assessing convergence of MCMC; Stan Development Team, Runtime warnings and convergence
        problems.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> tree = nuts(model, torch.tensor(3.0), num_warmup=300, num_samples=500, progress=False)
        >>> tree["posterior"]["z"].sizes["draw"], tree.attrs["reliable"]
        (500, 1)
        >>> abs(float(tree["posterior"]["z"].mean()) - 1.5) < 0.2
        True
    """
    if sampler not in _SAMPLERS:
        raise ValueError(f"sampler must be one of {sorted(_SAMPLERS)}, got {sampler!r}.")
    check_programs(model=model)
    check_count("num_chains", num_chains)
    check_count("num_samples", num_samples)
    check_count("num_warmup", num_warmup, least=0)
    started = time.perf_counter()
    with seeded(seed), isolated():
        potential = prepare(model, args, kwargs)
        with pyro.validation_enabled(False):  # a rejected proposal may lie outside a support
            drawn = _SAMPLERS[sampler](
                potential, num_chains, num_warmup, num_samples, seed, progress
            )
            posterior = constrain(potential, drawn.draws)
            groups, notes = model_groups(potential.model, potential.trace, posterior)
    quality = judge(posterior, drawn.stats["diverging"])
    if not quality["reliable"]:
        warn(f"The NUTS draws are {quality['reliability']}")
    return to_datatree(
        posterior,
        trace_dims(potential.trace),
        sample_stats=drawn.stats,
        observed_data={
            name: x.detach().cpu().numpy()
            for name, x in observations(potential.trace)(potential.trace).items()
        },
        groups={**groups, "constant_data": constant_data(model, args, kwargs, potential.trace)},
        attrs={
            "sampler": sampler,
            "density": drawn.density,
            **quality,
            "compile_seconds": drawn.compile_seconds,
            "seconds": time.perf_counter() - started,
            **({"notes": "; ".join(notes)} if notes else {}),
        },
    )


def judge(posterior: Mapping[str, np.ndarray], diverging: np.ndarray) -> dict[str, Any]:
    """Whether draws are good enough to be a reference: see `nuts` for the criteria.

    Args:
        posterior: draws by site, each of shape (chain, draw, *site shape).
        diverging: shape (chain, draw).

    Returns:
        `r_hat_max` and `ess_min` over all scalars that vary, `divergences`, `reliable` (1 or 0)
        and `reliability`, a sentence. A single chain has no R-hat (NaN): it is never reliable.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(4, 500))
        >>> judge({"z": draws}, np.zeros((4, 500), bool))["reliability"]
        'reliable: R-hat is at most 1.00..., ESS at least ..., 0 of 2000 transitions diverged.'
    """
    scalars = _varying_scalars(posterior)
    names = list(scalars)
    finite = all(np.isfinite(x).all() for x in scalars.values())
    found = Worst(("", np.nan), ("", np.nan))
    if finite:
        starts = range(0, len(names), _AT_ONCE)
        parts = (names[start : start + _AT_ONCE] for start in starts)
        found = worst((part, np.stack([scalars[name] for name in part])) for part in parts)
    reliable, sentence = judged(found, len(diverging), diverging)
    if not finite:
        reliable, sentence = False, "not reliable: some draws are infinite or NaN."
    return {
        "r_hat_max": found.r_hat[1] if len(diverging) > 1 else np.nan,
        "ess_min": found.ess[1],
        "divergences": int(diverging.sum()),
        "reliable": int(reliable),
        "reliability": sentence,
    }


def _varying_scalars(posterior: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Draws (chain, draw) of every scalar; without those that never vary, if some do."""
    scalars = {
        label: draws[(..., *index)]
        for name, draws in posterior.items()
        for label, index in zip(
            element_names(name, draws.shape[2:]), np.ndindex(draws.shape[2:]), strict=True
        )
    }
    return {name: x for name, x in scalars.items() if (x != x[0, 0]).any()} or scalars


def _nutpie(potential: Potential, *settings: Any) -> Sample:
    started = time.perf_counter()
    try:
        density = compile_density(potential)
        seconds = time.perf_counter() - started
        draws = sample(potential, density, *settings)
        compare(density, potential, list(draws.draws[:, -1]))
        return draws._replace(density="compiled", compile_seconds=seconds)
    except CaptureError as error:
        reason = str(error)
    warn(f"NUTS runs the model eagerly, which is slow: {reason}.")
    draws = sample(potential, logp_and_gradient(potential), *settings)
    return draws._replace(density=f"eager: {reason}")


def _pyro(
    potential: Potential,
    num_chains: int,
    num_warmup: int,
    num_samples: int,
    seed: int,
    progress: bool,
) -> Sample:
    chains = [
        _pyro_chain(potential, num_warmup, num_samples, seed + chain, progress)
        for chain in range(num_chains)
    ]
    return Sample(
        draws=np.stack([chain.draws for chain in chains]),
        stats={name: np.stack([chain.stats[name] for chain in chains]) for name in chains[0].stats},
        density="eager: Pyro's sampler runs the model itself",
    )


def _pyro_chain(
    potential: Potential, num_warmup: int, num_samples: int, seed: int, progress: bool
) -> Sample:
    step_sizes: list[float] = []

    def record(kernel: NUTS, params: Any, stage: str, i: int) -> None:
        if stage.startswith("Sample"):
            step_sizes.append(float(kernel.step_size))

    start = torch.tensor(starting_point(potential, seed), device=potential.device)
    mcmc = MCMC(
        NUTS(potential_fn=potential.energy, target_accept_prob=TARGET_ACCEPT),
        num_samples=num_samples,
        warmup_steps=num_warmup,
        initial_params=potential.by_site(start),
        hook_fn=record,
        disable_progbar=not progress,
    )
    mcmc.run()
    values = mcmc.get_samples()
    diverging = np.zeros(num_samples, bool)
    diverging[mcmc.diagnostics()["divergences"]["chain 0"]] = True
    return Sample(
        draws=torch.cat([values[n].reshape(num_samples, -1) for n in potential.shapes], -1)
        .cpu()
        .numpy(),
        stats={"diverging": diverging, "step_size": np.array(step_sizes)},
    )


_SAMPLERS: dict[str, Callable[..., Sample]] = {"nutpie": _nutpie, "pyro": _pyro}
