"""A Bayesian neural network: two half moons, told apart by five hidden units.

    w_hd ~ Normal(0, 2),  b_h ~ Normal(0, 2),  v_h ~ Normal(0, 2),  c ~ Normal(0, 2),
    logit_i = c + sum_h v_h tanh(b_h + sum_d w_hd x_id),  y_i ~ Bernoulli(sigmoid(logit_i)),

h = 1..5 hidden units, d = 1, 2 coordinates, i = 1..100 points.

To swap two hidden units, or to change the signs of w_h, b_h and v_h together, changes nothing:
the posterior has 5! 2^5 = 3840 copies of each mode (`same_function`). A Gaussian guide finds one,
the chains of NUTS others, and means of weights mean nothing. Compare what all copies agree in: the
deterministic site `logit`, and c.

Data: two moons with noise of sd 0.2, made by scikit-learn (`make_moons`) from a fixed seed. For
priors and symmetries see R. M. Neal (1996), Bayesian learning for neural networks.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

NUM_POINTS = 100
NUM_HIDDEN = 5
PRIOR_SD = 2.0


def data() -> tuple[Tensor, Tensor]:
    """Points x, shape (100, 2), and which moon each is of, y, 0 or 1, shape (100,)."""
    from sklearn.datasets import make_moons

    x, y = make_moons(NUM_POINTS, noise=0.2, random_state=1996)
    dtype = torch.get_default_dtype()
    return torch.as_tensor(x, dtype=dtype), torch.as_tensor(y, dtype=dtype)


def model(x: Tensor, y: Tensor) -> None:
    """Hidden units in the plate "hidden", points in the plate "point" beside it."""
    zero = x.new_zeros(())
    c = pyro.sample("c", dist.Normal(zero, PRIOR_SD))
    with pyro.plate("hidden", NUM_HIDDEN):
        w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[-1]), PRIOR_SD).to_event(1))
        b = pyro.sample("b", dist.Normal(zero, PRIOR_SD))
        v = pyro.sample("v", dist.Normal(zero, PRIOR_SD))
    with pyro.plate("point", len(y)):
        logit = pyro.deterministic("logit", network(x, w, b, v, c), event_dim=0)
        pyro.sample("y", dist.Bernoulli(logits=logit), obs=y)


def network(x: Tensor, w: Tensor, b: Tensor, v: Tensor, c: Tensor) -> Tensor:
    """Logits of the points, shape (..., N).

    Args:
        x: shape (N, 2).
        w: shape (..., 5, 2).
        b, v: shape (..., 5).
        c: shape (), or (..., 1) where an outer plate stands to the left of "hidden".
    """
    hidden = (x @ w.mT + b.unsqueeze(-2)).tanh()  # (..., N, 5)
    return c + (hidden @ v.unsqueeze(-1)).squeeze(-1)


def same_function(values: dict[str, Tensor], order: Tensor, sign: Tensor) -> dict[str, Tensor]:
    """Other weights of the same network: hidden units in another order, and with other signs.

    Args:
        values: w (5, 2), b (5,), v (5,) and c ().
        order: a permutation of 0..4.
        sign: 1 or -1 for each unit, shape (5,).
    """
    w, b, v = (values[name][order] for name in ("w", "b", "v"))
    return {"w": sign[:, None] * w, "b": sign * b, "v": sign * v, "c": values["c"]}
