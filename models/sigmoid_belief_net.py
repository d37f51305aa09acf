"""Sigmoid belief network: handwritten digits drawn from binary causes.

    z_n in {0, 1}^8,  z_nh ~ Bernoulli(sigmoid(a_h)),
    x_nd ~ Bernoulli(sigmoid(b_d + sum_h z_nh W_hd)),  d = 1..64.

a, b and W are parameters, learnt together with the guide. The guide is an inference network: a
perceptron gives the 8 probabilities of q(z_n | x_n). Nothing can be differentiated through the
binary z_n, so its gradients are score-function estimates.

The 2^8 states of z_n can be summed, so log p(x_n) is known for whatever parameters are in the
store: `log_evidence`.

Data: E. Alpaydin and C. Kaynak (1998), Optical recognition of handwritten digits; as scikit-learn
ships them (`load_digits`, 1797 images of 8 x 8 pixels with values from 0 to 16). A pixel is on from
8 upwards.

Model: R. M. Neal (1992), Connectionist learning of belief networks, Artificial Intelligence 56.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.functional import softplus

NUM_CAUSES = 8
NUM_HELD_OUT = 360


def split() -> tuple[Tensor, Tensor]:
    """Pixels, 0 or 1, of the digits to train on, (1437, 64), and of those held out, (360, 64)."""
    from sklearn.datasets import load_digits

    values = torch.as_tensor(load_digits().data)
    x = (values >= 8).to(torch.get_default_dtype())
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order[NUM_HELD_OUT:]], x[order[:NUM_HELD_OUT]]


def data() -> tuple[Tensor]:
    """The digits to train on."""
    return (split()[0],)


def model(x: Tensor, subsample_size: int | None = None) -> None:
    """Causes z of shape (8,) in one site, pixels x in another, both in the plate "digit"."""
    logits, weight, bias = _parameters(x)
    with pyro.plate("digit", len(x), subsample_size, device=x.device) as index:
        z = pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=bias + z @ weight).to_event(1), obs=x[index])


def _parameters(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """a (8,), W (8, 64) and b (64,); b starts at the logits of the mean digit of the first x."""
    logits = pyro.param("logits", x.new_zeros(NUM_CAUSES))
    weight = pyro.param("weight", lambda: 0.5 * torch.randn(NUM_CAUSES, x.shape[-1]).to(x))
    bias = pyro.param("bias", lambda: ((x.sum(0) + 1) / (len(x) + 2)).logit())
    return logits, weight, bias


class InferenceNetwork(PyroModule):
    """q(z | x): a perceptron with one hidden layer of 64 units."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, NUM_CAUSES))

    def forward(self, x: Tensor, subsample_size: int | None = None) -> None:
        with pyro.plate("digit", len(x), subsample_size, device=x.device) as index:
            pyro.sample("z", dist.Bernoulli(logits=self.layers(x[index])).to_event(1))


guides = {"network": InferenceNetwork}


def states(like: Tensor) -> Tensor:
    """All values of z, (256, 8), in the dtype and on the device of `like`."""
    numbers = torch.arange(2**NUM_CAUSES, device=like.device)
    return (numbers[:, None] >> torch.arange(NUM_CAUSES, device=like.device) & 1).to(like.dtype)


def log_joint(x: Tensor) -> Tensor:
    """log p(x_n, z) for all states z, at the parameters in the store.

    Args:
        x: pixels, shape (N, 64).

    Returns:
        Shape (N, 256), in nats; the states are in the order of `states`.
    """
    logits, weight, bias = _parameters(x)
    z = states(x)
    drawn = bias + z @ weight  # (256, 64), the logits of the pixels
    log_prior = z @ logits - softplus(logits).sum()
    return log_prior + x @ drawn.T - softplus(drawn).sum(-1)


def exact_draws(num_draws: int, x: Tensor) -> dict[str, Tensor]:
    """z from its posterior at the parameters in the store, (num_draws, N, 8)."""
    picked = log_joint(x).softmax(-1).multinomial(num_draws, replacement=True)
    return {"z": states(x)[picked].transpose(0, 1)}


def log_evidence(x: Tensor) -> Tensor:
    """log p(x_n) at the parameters in the store, shape (N,), from pixels x of shape (N, 64)."""
    return log_joint(x).logsumexp(-1)
