"""Variational auto-encoder: handwritten digits drawn from a Gaussian code.

    z_n ~ Normal(0, I_50),
    x_nd ~ Bernoulli(sigmoid(f_d(z_n))),  f(z) = W_2 softplus(W_1 z + c_1) + c_2,  200 hidden units.

The weights of the decoder f are parameters, learnt together with the guide. The guide is an
encoder, a perceptron of the same form that gives the means and standard deviations of q(z_n | x_n).
The number of pixels is that of the data: the encoder has to be told, `Encoder(784)`.

Data: E. Alpaydin and C. Kaynak (1998), Optical recognition of handwritten digits; as scikit-learn
ships them (`load_digits`, 1797 images of 8 x 8 pixels with values from 0 to 16). A pixel is on from
8 upwards.

Model: D. P. Kingma and M. Welling (2014), Auto-encoding variational Bayes, ICLR.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.functional import softplus

NUM_HIDDEN = 200
NUM_LATENTS = 50


def data() -> tuple[Tensor]:
    """Pixels, 0 or 1, of shape (1797, 64)."""
    from sklearn.datasets import load_digits

    return ((torch.as_tensor(load_digits().data) >= 8).to(torch.get_default_dtype()),)


def model(x: Tensor) -> None:
    """The code z of shape (50,) in one site, pixels x in another, both in the plate "digit"."""
    hidden_weight, hidden_bias = _layer("hidden", NUM_LATENTS, NUM_HIDDEN, x)
    pixel_weight, pixel_bias = _layer("pixel", NUM_HIDDEN, x.shape[-1], x)
    with pyro.plate("digit", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(NUM_LATENTS), 1.0).to_event(1))
        logits = softplus(z @ hidden_weight + hidden_bias) @ pixel_weight + pixel_bias
        pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def _layer(name: str, num_in: int, num_out: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (num_in, num_out) and biases (num_out,), at first in torch's usual small range."""

    def uniform(*shape: int) -> Tensor:
        return like.new_empty(shape).uniform_(-1, 1) / num_in**0.5

    weight = pyro.param(f"{name}_weight", lambda: uniform(num_in, num_out))
    return weight, pyro.param(f"{name}_bias", lambda: uniform(num_out))


class Encoder(PyroModule):
    """q(z | x): a perceptron with one hidden layer.

    Args:
        num_pixels: of an image.
    """

    def __init__(self, num_pixels: int = 64) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(num_pixels, NUM_HIDDEN), nn.Softplus())
        self.loc = nn.Linear(NUM_HIDDEN, NUM_LATENTS)
        self.log_scale = nn.Linear(NUM_HIDDEN, NUM_LATENTS)

    def forward(self, x: Tensor) -> None:
        hidden = self.hidden(x)
        with pyro.plate("digit", len(x)):
            q = dist.Normal(self.loc(hidden), self.log_scale(hidden).exp())
            pyro.sample("z", q.to_event(1))


guides = {"encoder": Encoder}
