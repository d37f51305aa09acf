"""Probabilistic matrix factorization: what would a user think of a film not yet seen?

    u_n ~ Normal(0, I),  v_m ~ Normal(0, I) in 2 dimensions,  n = 1..30 users,  m = 1..20 films,
    r_i ~ Normal(u_{n_i} . v_{m_i}, 0.5),  i = 1..300 ratings.

Any rotation or reflection of all u and v together leaves the ratings as they are: the posterior is
a ring, and a Gaussian guide settles on one point of it. Means of u and v mean nothing; compare the
deterministic site `score`, which no rotation moves.

Given the films, the users' factors are Gaussian and independent: `given_films`.

Data: simulated from the model with `NOISE` by a fixed seed; 300 of the 600 pairs are rated, and
`held_out` has the other half. R. Salakhutdinov and A. Mnih (2008), Probabilistic matrix
factorization, Advances in Neural Information Processing Systems 20.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

NUM_USERS, NUM_FILMS, RANK = 30, 20, 2
NUM_RATED = 300
NOISE = 0.5


def data() -> tuple[Tensor, Tensor, Tensor]:
    """Users 0..29 and films 0..19, int64, and ratings, each of shape (300,)."""
    return _simulated()[0]


def held_out() -> tuple[Tensor, Tensor, Tensor]:
    """The other 300 pairs and their ratings."""
    return _simulated()[1]


def _simulated() -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2008)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    u, v = normal(NUM_USERS, RANK), normal(NUM_FILMS, RANK)
    ratings = (u @ v.T + NOISE * normal(NUM_USERS, NUM_FILMS)).to(torch.get_default_dtype())
    pairs = torch.randperm(NUM_USERS * NUM_FILMS, generator=generator)
    halves = (pairs[:NUM_RATED].sort().values, pairs[NUM_RATED:].sort().values)
    return [(i // NUM_FILMS, i % NUM_FILMS, ratings.flatten()[i]) for i in halves]


def model(user: Tensor, film: Tensor, rating: Tensor) -> None:
    """Users, films and ratings in three plates side by side."""
    zero = rating.new_zeros(RANK)
    with pyro.plate("user", NUM_USERS):
        u = pyro.sample("u", dist.Normal(zero, 1.0).to_event(1))
    with pyro.plate("film", NUM_FILMS):
        v = pyro.sample("v", dist.Normal(zero, 1.0).to_event(1))
    product = (u[..., user, :] * v[..., film, :]).sum(-1)
    with pyro.plate("rating", len(rating)):
        score = pyro.deterministic("score", product, event_dim=0)
        pyro.sample("r", dist.Normal(score, NOISE), obs=rating)


def given_films(
    user: Tensor, film: Tensor, rating: Tensor, v: Tensor
) -> tuple[Tensor, dist.MultivariateNormal]:
    """log p(ratings | films) in nats, and the posterior of all u given the films' factors.

    For a user with the factors V (k, 2) of the films rated and the ratings r (k,), the precision
    of u is P = I + V'V / 0.25, its mean m = P^-1 V'r / 0.25, and
    log p(r | V) = sum log Normal(r; 0, 0.5) + m'P m / 2 - log det(P) / 2.

    Args:
        user, film, rating: as in `data`.
        v: factors of the films, shape (20, 2).
    """
    rated = v[film]  # (ratings, 2)
    outer = rated.unsqueeze(-1) * rated.unsqueeze(-2) / NOISE**2
    precision = torch.eye(RANK, dtype=v.dtype, device=v.device).repeat(NUM_USERS, 1, 1)
    precision = precision.index_add(0, user, outer)
    pull = v.new_zeros(NUM_USERS, RANK).index_add(0, user, rated * rating[:, None] / NOISE**2)
    mean = torch.linalg.solve(precision, pull)
    log_evidence = (
        dist.Normal(0.0, NOISE).log_prob(rating).sum()
        + ((mean * pull).sum() - torch.logdet(precision).sum()) / 2
    )
    return log_evidence, dist.MultivariateNormal(mean, precision_matrix=precision)
