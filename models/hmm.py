"""A hidden Markov model: quiet and lively spells of the earth, from counts of earthquakes.

    low ~ LogNormal(2.5, 0.5),  rise ~ LogNormal(2.5, 0.5),  rate = (low, low + rise),
    leave_k ~ Beta(1, 5),  k = 1, 2: the probability that a spell of kind k ends with the year,
    state_1 ~ the stationary distribution, (leave_2, leave_1) / (leave_1 + leave_2),
    state_t | state_{t-1} ~ switches with probability leave_{state_{t-1}},
    y_t ~ Poisson(rate_{state_t}),  t = 1..107.

`model` sums over the 2^107 paths of states in one distribution, by a parallel scan of logarithmic
depth. `model_enumerated` is the same year by year, under `pyro.markov`, with states marked for
enumeration. It is easier to read and to change, but the graph of 107 steps is too long to compile:
NUTS takes many minutes on it and seconds on `model`. `log_likelihood` is the sum by hand, the
forward algorithm. The rates increase with the state's number, which leaves one mode of two.

Data: earthquakes of magnitude 7 or more in the world, each year from 1900 to 2006; U.S. Geological
Survey, in W. Zucchini and I. L. MacDonald (2009), Hidden Markov models for time series, table 1.1.
They find the likelihood largest, with log -342.3183, at rates 15.472 and 26.125 and probabilities
0.066 and 0.128 to leave (section 3.1).
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor


def data() -> tuple[Tensor]:
    """Counts y, shape (107,)."""
    counts = """
    13 14  8 10 16 26 32 27 18 32 36 24 22 23 22 18 25 21 21 14  8 11 14 23 18 17 19 20 22 19 13 26
    13 14 22 24 21 22 26 21 23 24 27 41 31 27 35 26 28 36 39 21 17 22 17 19 15 34 10 15 22 18 15 20
    15 22 19 16 30 27 29 23 20 16 21 21 25 16 18 15 18 14 10 15  8 15  6 11  8  7 18 16 13 12 13 20
    15 16 12 18 15 16 13 15 16 11 11
    """
    return (torch.tensor([float(count) for count in counts.split()]),)


def model(y: Tensor) -> None:
    """The states are summed out by `DiscreteHMM`; y is one observation."""
    low, rise, leave = _latents(y)
    rate = torch.stack([low, low + rise], -1)
    # DiscreteHMM begins with a transition, which leaves the stationary distribution as it is.
    paths = dist.DiscreteHMM(
        stationary(leave).log(),
        transition(leave).log().unsqueeze(-3),
        dist.Poisson(rate.unsqueeze(-2)),
        duration=len(y),
    )
    pyro.sample("y", paths, obs=y)


def model_enumerated(y: Tensor) -> None:
    """The states are summed out by the objective; each y_t is an observation."""
    low, rise, leave = _latents(y)
    moves = transition(leave)[..., 1]  # probability of state 2 after either
    lively = stationary(leave)[..., 1]
    for t in pyro.markov(range(len(y))):
        switch = dist.Bernoulli(lively)
        state = pyro.sample(f"state_{t + 1}", switch, infer={"enumerate": "parallel"})
        pyro.sample(f"y_{t + 1}", dist.Poisson(low + rise * state), obs=y[t])
        lively = (1 - state) * moves[..., 0] + state * moves[..., 1]


def _latents(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low = pyro.sample("low", dist.LogNormal(y.new_full((), 2.5), 0.5))
    rise = pyro.sample("rise", dist.LogNormal(y.new_full((), 2.5), 0.5))
    leave = pyro.sample("leave", dist.Beta(y.new_ones(2), 5.0).to_event(1))
    return low, rise, leave


def stationary(leave: Tensor) -> Tensor:
    """Long-run probabilities of the states, (..., 2)."""
    return leave.flip(-1) / leave.sum(-1, keepdim=True)


def transition(leave: Tensor) -> Tensor:
    """Probabilities of the next state, in columns, given this one, in rows; (..., 2, 2)."""
    first, second = leave.unbind(-1)
    rows = [torch.stack([1 - first, first], -1), torch.stack([second, 1 - second], -1)]
    return torch.stack(rows, -2)


def log_likelihood(y: Tensor, low: Tensor, rise: Tensor, leave: Tensor) -> Tensor:
    """log p(y | low, rise, leave), by the forward algorithm.

    Args:
        y: counts, shape (T,).
        low, rise: shape (...).
        leave: shape (..., 2).

    Returns:
        Shape (...), in nats.
    """
    log_transition = transition(leave).log()
    poisson = dist.Poisson(torch.stack([low, low + rise], -1))
    forward = stationary(leave).log() + poisson.log_prob(y[0])  # log p(y_1..y_t, state_t)
    for value in y[1:]:
        forward = (forward.unsqueeze(-1) + log_transition).logsumexp(-2) + poisson.log_prob(value)
    return forward.logsumexp(-1)
