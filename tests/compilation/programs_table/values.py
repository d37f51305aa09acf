"""Programs that read the values of arguments and held tensors, or are indexed by what was drawn."""

import pyro
import pyro.distributions as dist
import torch
from pyro import infer
from torch import nn

from pyro_elbo_lab.objectives.lower_bounds import StandardELBO
from tests.compilation.programs_table.arguments import gaussian, late
from tests.compilation.programs_table.latents import X, normal_guide, normal_z, positive
from tests.compilation.programs_table.registry import Run, program

LOCS = torch.tensor([-1.0, 0.5, 2.0])
TABLE = torch.arange(24.0).reshape(2, 3, 4).sin()


def categorical():
    pyro.sample("i", dist.Categorical(logits=pyro.param("logits", torch.tensor([0.3, 0.0, -0.4]))))


def mixture(mean_of):
    """A component is drawn and its mean is found by an index."""

    def model():
        i = pyro.sample("i", dist.Categorical(torch.ones(3)))
        weights = pyro.param("weights", torch.tensor([1.0, 0.5, 2.0]))
        pyro.sample("x", dist.Normal(mean_of(weights, i), 1.0), obs=torch.tensor(0.7))

    return Run(model, categorical, StandardELBO(3))


@program("captured", compiles=True)
def element_at_a_drawn_index():
    return mixture(lambda weights, i: LOCS[i] + weights[i])


@program("captured")
def element_at_drawn_indices_among_others():
    def mean(weights, i):
        rows = TABLE[:, i, 1:3] * TABLE[..., i, None, :2].sum() + TABLE[1, i - 3, [0, 2]]
        return rows.sum() + TABLE[0, i, i] * weights[i] + TABLE[torch.tensor([1, 0]), i].sum()

    return mixture(mean)


@program("captured")
def elements_selected_by_method():
    return mixture(lambda weights, i: LOCS.select(0, i) + torch.select(weights, 0, i))


@program("captured")
def element_written_at_a_drawn_index():
    def mean(weights, i):
        counts = torch.zeros(3)
        counts[i] += 1
        table = torch.zeros(2, 3)
        table[:, i] = weights[:2]
        table[1, i] = 4.0
        return (counts * LOCS).sum() + (table * LOCS).sum()

    return mixture(mean)


@program("eager", reason="drawn index selects")
def element_written_through_a_view():
    def mean(weights, i):
        counts = weights.clone()
        counts[i].mul_(3.0)  # here
        return (counts * LOCS).sum()

    return mixture(mean)


@program("eager")
def drawn_index_of_a_list():
    def mean(weights, i):
        return [0.0, 1.0, 3.0][i] + weights[0]  # here

    return mixture(mean)


@program("captured")
def assertion_on_an_argument():
    def model(x, lengths):
        assert lengths.max() <= x.shape[1]
        assert bool((lengths > 0).all())
        seen = torch.arange(x.shape[1]) < lengths[:, None]
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand(x.shape).mask(seen).to_event(2), obs=x)

    def each(call):
        return TABLE[0], torch.tensor([4, 2, 1 + call % 3])

    return Run(model, normal_z, each=each)


@program("captured")
def equality_of_arguments():
    """As the kernels of Gaussian processes ask."""

    def model(x, y):
        mean = 0.0 if torch.equal(x, y) else 2.0
        gaussian(mean + (3.0 if torch.allclose(x, X) else 0.0), 1.0, x)

    def each(call):
        return X + call % 2, X + (call // 2) % 2

    return Run(model, normal_z, each=each)


@program("captured")
def branch_on_an_argument_of_many_elements():
    x = torch.zeros(200)

    def each(call):
        if call in (3, 5):
            x[7] += 1.0
        return (x,)

    def model(x):
        gaussian(1.0 if float(x[7]) == 1.0 else -1.0, 1.0, x)

    return Run(model, normal_z, each=each)


@program("captured")
def loop_to_the_longest():
    def model(x, lengths):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        total = torch.zeros(())
        for t in range(int(lengths.max())):
            total = total + (x[:, t] - z).square().sum()
        pyro.factor("total", -total)

    def each(call):
        return TABLE[0], torch.tensor([1, 2 + call % 3, 1])

    return Run(model, normal_z, each=each)


@program("captured")
def number_of_a_held_tensor():
    degrees = torch.tensor(2)

    def each(call):
        if call == 4:
            degrees.fill_(3)
        return ()

    def model():
        gaussian(degrees.item(), 1.0 + float(degrees.numpy()))

    return Run(model, normal_z, each=each)


@program("captured")
def number_of_held_memory_shared_with_numpy():
    memory = torch.ones(3).numpy()
    held = torch.from_numpy(memory)

    def each(call):
        memory[1] = 1.0 + late(call) % 2
        return ()

    return Run(lambda: gaussian(float(held.sum())), normal_z, each=each)


@program("captured")
def selection_by_an_argument():
    """Where three values have graphs, the fourth and its like have the last one."""

    def model(seen):
        z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z[seen].mean(), 1.0), obs=X[0])

    def guide(seen):
        loc = pyro.param("loc", torch.zeros(4))
        pyro.sample("z", dist.Normal(loc, positive("sd", 0.5)).to_event(1))

    return Run(model, guide, each=lambda call: (torch.arange(4) <= call % 4,))


@program("eager", reason="values of what it reads")
def branch_on_an_argument_that_is_always_new():
    def model(x):
        gaussian(float(x.sum()), 1.0, x)  # here

    return Run(model, normal_z, each=lambda call: (X + call,))


@program("eager")
def branch_on_an_argument_times_a_parameter():
    def model(x):
        shift = pyro.param("shift", torch.tensor(0.3))
        gaussian(1.0 if (x * shift).sum() > 0 else -1.0, 1.0, x)  # here

    return Run(model, normal_z, args=(X,))


@program("eager")
def branch_on_a_sum_of_an_argument_and_a_draw():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        buffer = torch.zeros(2)
        buffer[0], buffer[1] = x.sum(), z
        mean = z if buffer[0] > 0 else -z  # here
        pyro.sample("x", dist.Normal(mean, 1.0), obs=X[0])

    return Run(model, normal_z, args=(X,))


@program("captured")
def number_of_a_buffer_that_arguments_fill():
    def model(x):
        buffer = torch.zeros(4)
        buffer[:2] = x[:2].sign()
        view = buffer[1:]
        view.add_(x[0].sign())
        gaussian(float(buffer.sum()), 1.0, x)

    return Run(model, normal_z, each=lambda call: (X - 0.8 * (call % 3),))


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrence, self.out = nn.GRU(4, 3, batch_first=True), nn.Linear(3, 1)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=False
        )
        hidden, _ = self.recurrence(packed)
        padded, _ = nn.utils.rnn.pad_packed_sequence(hidden, batch_first=True)
        return self.out(padded.sum(1)).squeeze(-1)


@program("captured")
def packed_sequences():
    net = Packed()

    def model(x, lengths):
        with pyro.plate("sequences", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=x.sum((1, 2)))

    def guide(x, lengths):
        pyro.module("net", net)
        with pyro.plate("sequences", len(x)):
            pyro.sample("z", dist.Normal(net(x, lengths), 0.5))

    x = torch.arange(60.0).reshape(3, 5, 4).cos()
    return Run(model, guide, each=lambda call: (x, torch.tensor([5, 1 + call % 2, 3])))


@infer.config_enumerate
def enumerated(x):
    locs = pyro.sample("locs", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.4, 0.6])))
        pyro.sample("x", dist.Normal(locs[..., k], 0.7), obs=x)


def of_locations(x):
    pyro.sample("locs", normal_guide(size=2))


@program("captured", compiles=True)
def trace_enum_elbo():
    return Run(enumerated, of_locations, infer.TraceEnum_ELBO(max_plate_nesting=1), (X,))


@program("captured")
def trace_enum_elbo_of_a_guide_that_is_enumerated():
    """With probabilities of zero, which Pyro leaves out of its sums."""

    @infer.config_enumerate
    def guide(x):
        pyro.sample("locs", normal_guide(size=2))
        logits = pyro.param("logits", torch.tensor([0.2, -0.1]))
        never = torch.tensor([0.0, -torch.inf, 0.0, 0.0])
        with pyro.plate("data", len(x)):
            rows = torch.stack([logits[0].expand(4), logits[1] + never], -1)
            pyro.sample("k", dist.Categorical(logits=rows))

    return Run(enumerated, guide, infer.TraceEnum_ELBO(max_plate_nesting=1), (X,))


@program("captured")
def trace_enum_elbo_of_a_chain():
    @infer.config_enumerate
    def model(x):
        matrix = pyro.sample("matrix", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
        k = 0
        for t in pyro.markov(range(len(x))):
            k = pyro.sample(f"k{t}", dist.Categorical(matrix[k]))
            pyro.sample(f"x{t}", dist.Normal(2.0 * k, 1.0), obs=x[t])

    def guide(x):
        sharp = positive("sharp", 3.0)
        pyro.sample("matrix", dist.Dirichlet(sharp * (torch.ones(2, 2) + torch.eye(2))).to_event(1))

    return Run(model, guide, infer.TraceEnum_ELBO(max_plate_nesting=0), (X,))
