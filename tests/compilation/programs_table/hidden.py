"""Programs that read values out of tensors, keep state in Python or draw from elsewhere."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from pyro_elbo_lab.objectives.lower_bounds import StandardELBO
from tests.compilation.programs_table.arguments import gaussian
from tests.compilation.programs_table.latents import X, normal_guide, normal_z
from tests.compilation.programs_table.registry import Run, program


@program("eager", reason="z > 0")
def branch_on_a_latent():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        mean = z if z > 0 else -2 * z  # here
        pyro.sample("x", dist.Normal(mean, 1.0), obs=X[0])

    return Run(model, normal_z)


@program("eager")
def branch_in_the_guide():
    def guide():
        z = pyro.sample("z", normal_guide())
        scale = pyro.param("scale", torch.tensor(0.3)).exp()
        loc = z if z > 0.2 else torch.zeros(())  # here
        pyro.sample("w", dist.Normal(loc, scale))

    def model():
        z = gaussian(0.0)
        pyro.sample("w", dist.Normal(z, 1.0))

    return Run(model, guide)


@program("eager")
def item_of_a_latent():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0 + abs(z.item())), obs=X[0])  # here

    return Run(model, normal_z)


@program("eager")
def item_of_a_parameter():
    def model():
        shift = pyro.param("shift", torch.tensor(0.4)).item()  # here
        gaussian(shift)

    return Run(model, normal_z)


@program("eager")
def item_of_a_leaf():
    """Below the store, where nothing but the leaf itself is touched."""

    def model():
        pyro.param("shift", torch.tensor(0.4))
        leaf = pyro.get_param_store()._params["shift"]
        gaussian(leaf.item())  # here

    return Run(model, normal_z)


@program("eager")
def weights_as_a_list():
    net = torch.nn.Linear(1, 2)

    def model():
        pyro.module("net", net)
        low, high = net.bias.tolist()  # here
        gaussian(net(X[:1]).sum() + low - high)

    return Run(model, normal_z)


@program("eager")
def numpy_of_a_latent():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        size = float(np.abs(z.detach().numpy()))  # here
        pyro.sample("x", dist.Normal(z, 1.0 + size), obs=X[0])

    return Run(model, normal_z)


@program("eager")
def numpy_of_a_parameter():
    def model():
        shift = pyro.param("shift", torch.tensor(0.4)).detach().numpy()  # here
        gaussian(float(shift))

    return Run(model, normal_z)


@program("eager")
def selection_by_a_latent():
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(6), 1.0).to_event(1))
        mean = z[z > 0].sum() / 6  # here
        pyro.sample("x", dist.Normal(mean, 1.0), obs=X[0])

    def guide():
        pyro.sample("z", normal_guide(size=6))

    return Run(model, guide)


@program("captured")
def selection_by_what_is_held():
    seen = torch.tensor([True, False, True, True])
    rows = torch.tensor([1.0, torch.nan, 2.0, 0.5])

    def each(call):
        if call == 4:
            seen[3] = False
        return ()

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        pyro.factor("mean", -(z[seen].mean() ** 2))
        pyro.factor("rows", (z - rows)[~rows.isnan()].square().sum())

    def guide():
        pyro.sample("z", normal_guide(size=4))

    return Run(model, guide, each=each)


@program("eager")
def mean_of_a_selection():
    """Its gradient divides by how many were selected."""

    def model():
        z = pyro.sample("z", dist.Normal(torch.ones(6), 1.0).to_event(1))
        mean = torch.masked_select(z, z > -1).mean()  # here
        pyro.sample("x", dist.Normal(mean, 1.0), obs=X[0])

    def guide():
        pyro.sample("z", normal_guide(size=6))

    return Run(model, guide)


@program("eager")
def loop_until_a_latent_says_stop():
    def model():
        z = total = pyro.sample("z", dist.Normal(0.0, 1.0))
        while abs(total) < 1:  # here
            total = 2 * total + 0.1
        pyro.sample("x", dist.Normal(z + total, 1.0), obs=X[0])

    return Run(model, normal_z)


@program("either")
def printing_a_latent():
    """At a capture it may print what it likes; the numbers stay right."""

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        str(z)  # here
        pyro.sample("x", dist.Normal(z, 1.0), obs=X[0])

    return Run(model, normal_z)


@program("eager", reason="numpy.random")
def noise_of_numpy():
    def model():
        gaussian(np.random.normal())

    return Run(model, normal_z)


@program("eager", same_stream=False)
def noise_of_a_numpy_generator():
    generator = np.random.default_rng(0)

    def model():
        gaussian(generator.normal())

    return Run(model, normal_z)


@program("eager", reason="Python's random")
def noise_of_python():
    def model():
        gaussian(random.gauss(0.0, 1.0))

    return Run(model, normal_z)


@program("eager", reason="Python's random")
def rare_noise_of_python():
    """Two runs in three agree."""

    def model():
        gaussian(1.0 if random.random() < 0.2 else 0.0)

    return Run(model, normal_z)


@program("eager")
def seed_read_as_a_number():
    def model():
        gaussian(torch.initial_seed() % 10)

    return Run(model, normal_z)


@program("eager")
def parameter_read_through_numpy_memory():
    leaf = pyro.param("shift", torch.tensor([0.4])).unconstrained()
    memory = leaf.detach().numpy()

    def model():
        gaussian(pyro.param("shift").sum() + float(memory[0]))

    return Run(model, normal_z)


@program("eager")
def seed_set_inside():
    def model():
        torch.manual_seed(7)
        gaussian(torch.randn(()))

    return Run(model, normal_z)


@program("eager", reason="Generator", same_stream=False)
def generator_of_its_own():
    generator = torch.Generator().manual_seed(0)

    def model():
        gaussian(torch.randn((), generator=generator))  # here

    return Run(model, normal_z)


@program("eager", reason="changes 'calls', which outlives the run", repeats=False)
def counter_in_the_closure():
    calls = 0

    def model():
        nonlocal calls
        calls += 1
        gaussian(0.0, 1.0 + 1.0 / calls)

    return Run(model, normal_z)


@program("eager", reason="changes 'calls', which outlives the run", repeats=False)
def slow_counter_in_the_closure():
    """Changes at every tenth run."""
    calls = 0

    def model():
        nonlocal calls
        calls += 1
        gaussian(0.0, 1.0 + calls // 10)

    return Run(model, normal_z)


@program("eager", repeats=False)
def last_value_remembered():
    last = torch.zeros(())

    def model():
        nonlocal last
        z = gaussian(0.5 * last)
        last = z.detach()

    return Run(model, normal_z)


@program("eager", reason="changes 'log', which outlives the run")
def log_of_values_kept():
    log = []

    def model():
        log.append(gaussian(0.0))

    return Run(model, normal_z)


@program("captured")
def tensors_filled_in_place():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        means = torch.zeros(4)
        for i in range(4):
            means[i] = z * i
        means += 1
        pyro.sample("x", dist.Normal(means, 1.0).to_event(1), obs=X)

    return Run(model, normal_z)


@program("captured")
def closure_tensor_written():
    total = torch.zeros(())

    def model():
        total.add_(1)
        gaussian(total / 10)

    return Run(model, normal_z, state=lambda: {"total": total})


@program("captured")
def noise_outside_of_sample_statements():
    def model():
        gaussian(0.1 * torch.randn(()) + 0.1 * torch.rand(4).sum())

    return Run(model, normal_z, StandardELBO(2))


@program("captured")
def sort_topk_and_index():
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(6), 1.0).to_event(1))
        largest = (
            z.sort().values[-1]
            + z.topk(2).values.sum()
            + z.gather(0, z.argmax(0, keepdim=True)).sum()
        )
        running = z.cumsum(0).logcumsumexp(0)[-1] + z.median()
        pyro.sample("x", dist.Normal(largest + running, 1.0), obs=X[0])

    def guide():
        pyro.sample("z", normal_guide(size=6))

    return Run(model, guide)


@program("captured")
def scatter_and_gather():
    groups = torch.tensor([0, 2, 1, 2])

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        sums = torch.zeros(3).index_add(0, groups, X) + torch.zeros(3).scatter_add(
            0, groups, z[groups]
        )
        pyro.sample("x", dist.Normal(sums[groups] * z.gather(0, groups), 1.0).to_event(1), obs=X)

    def guide():
        pyro.sample("z", normal_guide(size=3))

    return Run(model, guide)
