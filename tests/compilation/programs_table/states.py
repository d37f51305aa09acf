"""Programs that write to tensors that they hold, at the first call only or at every call."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.compilation.programs_table.arguments import gaussian
from tests.compilation.programs_table.latents import X, normal_z
from tests.compilation.programs_table.modules import guide_of_plate, through
from tests.compilation.programs_table.registry import Run, program


def network(layer):
    """Without a bias before the layer, whose gradient would be nothing but rounding."""
    net = nn.Sequential(nn.Linear(3, 4, bias=False), layer, nn.Linear(4, 1))
    return Run(through(net), guide_of_plate, state=lambda: dict(net.named_buffers()))


@program("captured", compiles=True, settled=False)
def batch_norm_from_the_first_call():
    return network(nn.BatchNorm1d(4))


@program("captured", compiles=True)
def batch_norm_that_averages_all_batches():
    return network(nn.BatchNorm1d(4, momentum=None))


@program("captured")
def batch_norm_without_statistics_or_weights():
    return network(nn.BatchNorm1d(4, affine=False, track_running_stats=False))


@program("captured")
def batch_norm_of_images_switched_on_and_off():
    layer = nn.BatchNorm2d(2, momentum=0.3)
    net = nn.Sequential(
        nn.Linear(3, 8), nn.Unflatten(1, (2, 2, 2)), layer, nn.Flatten(), nn.Linear(8, 1)
    )

    def each(call):
        layer.train(call < 4)
        return ()

    return Run(through(net), guide_of_plate, each=each, state=lambda: dict(net.named_buffers()))


@program("captured")
def spectral_norm():
    """It turns its vectors a little at every call."""
    net = nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 4)), nn.Linear(4, 1))
    return Run(through(net), guide_of_plate, state=lambda: dict(net.named_buffers()))


@program("captured")
def counter_in_a_tensor():
    total = torch.zeros(3)

    def model():
        total[1] += 1
        total.mul_(1.5)
        gaussian(total.sum() / 10)

    return Run(model, normal_z, state=lambda: {"total": total})


@program("eager", reason="calls")
def counter_in_a_tensor_read_as_a_number():
    calls = torch.zeros(())

    def model():
        calls.add_(1)
        gaussian(1 / float(calls))  # here

    return Run(model, normal_z, state=lambda: {"calls": calls})


class Scaler(nn.Module):
    """Its buffer is set by the first data that it sees."""

    scale: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.ready = False

    def forward(self, x):
        if not self.ready:
            self.ready = True
            self.scale.copy_(x.std())
        return x / self.scale


@program("captured", settled=False)
def scale_set_by_the_first_call():
    scaler = Scaler()

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand([4]).to_event(1), obs=scaler(x))

    return Run(model, normal_z, args=(X,), state=lambda: dict(scaler.named_buffers()))


@program("captured", settled=False)
def scale_set_by_the_first_call_with_a_flag_in_a_buffer():
    class Flagged(Scaler):
        done: torch.Tensor

        def __init__(self):
            super().__init__()
            self.register_buffer("done", torch.zeros(()))

        def forward(self, x):
            if not self.done:
                self.scale.copy_(x.std())
                self.done.fill_(1.0)
            return x / self.scale

    scaler = Flagged()

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand([4]).to_event(1), obs=scaler(x))

    return Run(model, normal_z, args=(X,), state=lambda: dict(scaler.named_buffers()))


@program("captured", settled=False)
def average_that_the_first_call_starts():
    class Average(Scaler):
        def forward(self, x):
            x = super().forward(x)
            with torch.no_grad():
                self.scale.mul_(0.9).add_(0.1 * x.std())
            return x / self.scale

    scaler = Average()

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand([4]).to_event(1), obs=scaler(x))

    return Run(model, normal_z, args=(X,), state=lambda: dict(scaler.named_buffers()))


@program("captured", settled=False)
def layer_that_is_made_by_the_first_call():
    class Net(nn.Module):
        layer: Any

        def __init__(self):
            super().__init__()
            self.layer = None

        def forward(self, z):
            if self.layer is None:
                self.layer = nn.Linear(z.shape[-1], 1)
                nn.init.constant_(self.layer.weight, 0.3)
                nn.init.zeros_(self.layer.bias)
            return self.layer(z)

    net = Net()

    def model():
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            mean = net(z).squeeze(-1)
            pyro.module("net", net)
            pyro.sample("x", dist.Normal(mean, 1.0), obs=X)

    return Run(model, guide_of_plate)


def hooked(register):
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        weight = pyro.param("weight", torch.tensor([2.0, 3.0]))
        pyro.sample("x", dist.Normal(z * weight.sum(), 1.0), obs=X[0])

    pyro.param("weight", torch.tensor([2.0, 3.0]))
    register(pyro.get_param_store()._params["weight"])
    return Run(model, normal_z)


@program("captured")
def gradient_hook():
    return hooked(lambda leaf: leaf.register_hook(lambda gradient: gradient.clamp(-0.1, 0.1)))


@program("captured")
def gradient_hooks_that_come_and_go():
    seen = []
    run = hooked(lambda leaf: leaf.register_hook(lambda gradient: seen.append(gradient)))
    handles = []

    def each(call):
        leaf = pyro.get_param_store()._params["weight"]
        if call == 2:
            handles.append(leaf.register_hook(lambda gradient: 2 * gradient))
        if call == 5:
            handles.pop().remove()
        return ()

    def state():
        return {"sum": torch.stack(seen).sum(0), "times": torch.tensor(len(seen))}

    return Run(run.model, run.guide, each=each, state=state)


@program("captured")
def hook_after_the_gradient():
    def halve(leaf):
        leaf.grad /= 2

    return hooked(lambda leaf: leaf.register_post_accumulate_grad_hook(halve))
