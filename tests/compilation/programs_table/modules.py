"""Networks: in the model, in the guide, with dropout, buffers, priors over their weights."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import RenyiELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

from tests.compilation.programs_table.latents import X, normal_z
from tests.compilation.programs_table.registry import Run, program

PIXELS = torch.linspace(0.0, 1.0, 24).reshape(4, 6).round()


def through(net, x=X):
    """A model that passes z through a network, called "net" in the store."""

    def model():
        pyro.module("net", net)
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(net(z).squeeze(-1), 1.0), obs=x)

    return model


def guide_of_plate():
    loc = pyro.param("loc", torch.linspace(-1.0, 1.0, 12).reshape(4, 3))
    with pyro.plate("data", 4):
        pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))


@program("captured")
def module():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return Run(through(net), guide_of_plate)


@program("captured", compiles=True)
def dropout_in_training():
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.4), nn.Linear(4, 1))
    return Run(through(net), guide_of_plate)


@program("captured")
def dropout_in_evaluation():
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.4), nn.Linear(4, 1)).eval()
    return Run(through(net), guide_of_plate)


@program("captured")
def dropout_switched_on_and_off():
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.4), nn.Linear(4, 1))

    def each(call):
        net.train(call < 4)
        return ()

    return Run(through(net), guide_of_plate, each=each)


@program("captured")
def batch_norm_in_training():
    """Its running mean and count change at every call, and must do so once a call."""
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    return Run(through(net), guide_of_plate, state=lambda: dict(net.named_buffers()))


@program("captured")
def batch_norm_in_evaluation():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).eval()
    return Run(through(net), guide_of_plate, state=lambda: dict(net.named_buffers()))


@program("captured")
def buffer_updated_in_place():
    class Counting(nn.Module):
        calls: torch.Tensor

        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.linear = nn.Linear(3, 1)

        def forward(self, z):
            self.calls += 1
            return self.linear(z) / self.calls

    net = Counting()
    return Run(through(net), guide_of_plate, state=lambda: dict(net.named_buffers()))


@program("captured")
def layer_norm_attention_and_recurrence():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(3)
            self.attention = nn.MultiheadAttention(3, 1, batch_first=True)
            self.recurrence = nn.GRU(3, 2, batch_first=True)
            self.out = nn.Linear(2, 1)

        def forward(self, z):
            z = self.norm(z)[..., None, :].expand(*z.shape[:-1], 2, 3)
            z, _ = self.attention(z, z, z, need_weights=False)
            return self.out(self.recurrence(z)[0][..., -1, :])

    return Run(through(Net()), guide_of_plate)


@program("captured")
def frozen_weights():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    net[0].requires_grad_(False)
    return Run(through(net), guide_of_plate)


@program("captured")
def shared_weights():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.there = nn.Linear(3, 3)
            self.back = nn.Linear(3, 3)
            self.back.weight = self.there.weight

        def forward(self, z):
            return self.back(self.there(z).tanh()).sum(-1)

    return Run(through(Tied()), guide_of_plate)


@program("captured")
def custom_gradient():
    class Straight(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            return (z > 0).to(z.dtype)

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    class Net(nn.Module):
        def forward(self, z):
            return Straight.apply(z).sum(-1, keepdim=True) * self.slope

    net = Net()
    net.slope = nn.Parameter(torch.tensor(0.8))
    return Run(through(net), guide_of_plate)


@program("captured")
def bayesian_regression():
    class Regression(PyroModule):
        def __init__(self):
            super().__init__()
            self.linear = PyroModule[nn.Linear](2, 1)
            self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
            self.linear.bias = PyroSample(dist.Normal(0.0, 3.0).expand([1]).to_event(1))
            self.noise = PyroParam(torch.tensor(0.8), dist.constraints.positive)

        def forward(self, x, y=None):
            mean = self.linear(x).squeeze(-1)
            with pyro.plate("data", len(x)):
                return pyro.sample("y", dist.Normal(mean, self.noise), obs=y)

    model = Regression()
    x = torch.stack([X, X.cos()], -1)
    return Run(model, AutoNormal(model), args=(x, X.sin()))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.loc, self.scale = nn.Linear(6, 5), nn.Linear(5, 2), nn.Linear(5, 2)

    def forward(self, x):
        hidden = nn.functional.softplus(self.hidden(x))
        return self.loc(hidden), self.scale(hidden).exp()


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(), nn.Linear(2, 6)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = self.decoder(z)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*self.encoder(x)).to_event(1))


@program("captured", compiles=True)
def autoencoder():
    vae = Autoencoder()
    return Run(vae.model, vae.guide, args=(PIXELS,))


@program("either")
def autoencoder_with_renyi_of_pyro():
    vae = Autoencoder()
    objective = RenyiELBO(0.5, num_particles=3, vectorize_particles=True)
    return Run(vae.model, vae.guide, objective, (PIXELS,))


@program("captured")
def random_module_with_a_latent_in_its_forward():
    class Noisy(PyroModule):
        def __init__(self):
            super().__init__()
            self.loc = PyroParam(torch.zeros(()))

        @PyroParam(constraint=dist.constraints.positive)
        def scale(self):
            return torch.tensor(0.7)

        def forward(self):
            pyro.sample("z", dist.Normal(self.loc, self.scale))

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=X[0])

    return Run(model, Noisy())


@program("captured")
def parameters_read_as_data():
    """`.data`, `.detach()` and `no_grad` keep gradients out, not values."""
    net = nn.Linear(1, 1)

    def model():
        pyro.module("net", net)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with torch.no_grad():
            shift = net(z.reshape(1)).squeeze()
        mean = z + net.weight.data.sum() + net.bias.detach().sum() + shift
        pyro.sample("x", dist.Normal(mean, 1.0), obs=X[0])

    return Run(model, normal_z)
