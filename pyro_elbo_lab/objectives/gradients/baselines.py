"""Baselines of the user's own for score-function gradients, with Pyro's options.

A guide's site may carry `infer={"baseline": {...}}` with the options that `TraceGraph_ELBO` knows:

* `nn_baseline` and `nn_baseline_input`: a module and its input, which is detached;
* `baseline_value`: a tensor that depends on parameters of the baseline alone;
* `use_decaying_avg_baseline` and `baseline_beta` (default 0.9): an exponential average of the past,
  kept in the param store as "__baseline_avg_downstream_cost_" + the site's name.

A baseline predicts what the leave-one-out baseline leaves of the cost downstream of the site, in
nats, and must not depend on the site's own draw. The squared error of its prediction is minimized
along with the objective.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_elbo_lab.objectives.particles.scored import Draws
from pyro_elbo_lab.programs.enumeration import Site

_OPTIONS = frozenset(
    {
        "nn_baseline",
        "nn_baseline_input",
        "baseline_value",
        "use_decaying_avg_baseline",
        "baseline_beta",
    }
)


class Baselined(NamedTuple):
    """What goes beside log q, and the loss of the baselines."""

    term: Tensor
    loss: Tensor


def subtract_baseline(
    signal: Tensor, drawn: Draws, particle_dims: int, reduce: Callable[[Tensor], Tensor]
) -> Baselined:
    """Take a site's baseline off its learning signal.

    Args:
        signal: what the score of the site is multiplied with, detached.
        drawn: the draws of the site.
        particle_dims: the number of leading dimensions of the signal that are particles.
        reduce: from a baseline of shape (K, M, *plates) to the shape of the signal.

    Returns:
        The rest of the signal, detached, and the squared error of the prediction.

    Raises:
        ValueError: unknown options, two learnt baselines, or a shape that does not fit or changes.
    """
    nothing = Baselined(signal, signal.new_zeros(()))
    options = _options(drawn.sites[0])
    if not options:
        return nothing
    baseline = signal.new_zeros(())
    if options.get("use_decaying_avg_baseline"):
        now = signal.flatten(0, particle_dims - 1).mean(0)
        baseline = _decaying_average(now, drawn.latent.name, options.get("baseline_beta", 0.9))
    loss = nothing.loss
    if "nn_baseline" in options or "baseline_value" in options:
        learnt = reduce(drawn.stack([_predict(site) for site in drawn.sites]))
        _check_shape(learnt, signal, drawn.latent.name)
        baseline = baseline + learnt
        loss = ((signal - baseline) ** 2).sum()
    return Baselined(signal - baseline.detach(), loss)


def _options(site: Site) -> dict[str, Any]:
    options = {k: v for k, v in (site["infer"].get("baseline") or {}).items() if v is not None}
    unknown = options.keys() - _OPTIONS
    if unknown:
        raise ValueError(
            f"infer['baseline'] of site '{site['name']}' has the unknown options "
            f"{sorted(unknown)}; known are {sorted(_OPTIONS)}."
        )
    if "nn_baseline" in options and "baseline_value" in options:
        raise ValueError(
            f"infer['baseline'] of site '{site['name']}' has nn_baseline and baseline_value: "
            "choose one."
        )
    if ("nn_baseline" in options) != ("nn_baseline_input" in options):
        raise ValueError(
            f"infer['baseline'] of site '{site['name']}': nn_baseline and nn_baseline_input go "
            "together."
        )
    return options


def _predict(site: Site) -> Tensor:
    options = _options(site)
    if "baseline_value" in options:
        return torch.as_tensor(options["baseline_value"])
    inputs = options["nn_baseline_input"]
    inputs = inputs.detach() if isinstance(inputs, Tensor) else [x.detach() for x in inputs]
    return options["nn_baseline"](inputs)


def _check_shape(baseline: Tensor, signal: Tensor, name: str) -> None:
    try:
        fits = torch.broadcast_shapes(baseline.shape, signal.shape) == signal.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"The baseline of site '{name}' has shape {tuple(baseline.shape)} over (particles, "
            f"plates), expected one that broadcasts to {tuple(signal.shape)}: return one number "
            "for each element of the site's batch, without event dimensions."
        )


def _decaying_average(now: Tensor, name: str, beta: float) -> Tensor:
    """The average of the past, to which `now` is added for the next time."""
    store = pyro.get_param_store()
    key = f"__baseline_avg_downstream_cost_{name}"
    before = store[key].detach() if key in store else torch.zeros_like(now)
    if before.shape != now.shape:
        raise ValueError(
            f"The decaying average of site '{name}' has shape {tuple(before.shape)} over its "
            f"plates, but now they have shape {tuple(now.shape)}: give every minibatch the same "
            f"size, or delete '{key}' from the param store to start anew."
        )
    store[key] = (1 - beta) * now + beta * before
    return before
