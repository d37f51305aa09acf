"""Plates: nested, subsampled, in minibatches."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoNormal

from pyro_elbo_lab.objectives.lower_bounds import ImportanceWeightedELBO, StandardELBO
from tests.compilation.programs_table.latents import X, normal_z, positive
from tests.compilation.programs_table.registry import Run, program

ROWS = torch.linspace(-1.0, 2.0, 12)


@program("captured")
def nested_plates():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("columns", 3, dim=-1):
            column = pyro.sample("column", dist.Normal(mean, 1.0))
            with pyro.plate("rows", 4, dim=-2):
                row = pyro.sample("row", dist.Normal(column, 0.5))
                pyro.sample("y", dist.Normal(row, 1.0), obs=y)

    objective = StandardELBO(3, vectorize_particles=True)
    return Run(model, AutoNormal(model), objective, (ROWS.reshape(4, 3),))


@program("captured")
def crossed_plates():
    def model(y):
        rows, columns = pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 3, dim=-1)
        with rows:
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with columns:
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with rows, columns:
            pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    return Run(model, AutoNormal(model), args=(ROWS.reshape(4, 3),))


@program("either")
def sequential_plate():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", 4):
            pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=x[i])

    return Run(model, normal_z, args=(X,))


@program("captured", compiles=True)
def subsample_with_shared_latent():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=5) as index:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    return Run(model, normal_z, args=(ROWS,))


def local_model(x):
    center = pyro.sample("center", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=5):
        z = pyro.sample("z", dist.Normal(center, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=pyro.subsample(x, event_dim=0))


def local_guide(x):
    center_loc = pyro.param("center_loc", torch.zeros(()))
    pyro.sample("center", dist.Normal(center_loc, 0.4))
    with pyro.plate("data", len(x), subsample_size=5):
        loc = pyro.param("loc", torch.zeros(len(x)), event_dim=0)
        pyro.sample("z", dist.Normal(loc, positive("scale")))


@program("captured")
def subsample_with_local_latents():
    return Run(local_model, local_guide, args=(ROWS,))


@program("captured")
def subsample_of_importance_weighted_cells():
    objective = ImportanceWeightedELBO(4, vectorize_particles=True)
    return Run(local_model, local_guide, objective, (ROWS,))


@program("captured")
def two_subsampled_plates():
    def model(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with (
            pyro.plate("rows", 4, subsample_size=2, dim=-2) as i,
            pyro.plate("columns", 3, subsample_size=2, dim=-1) as j,
        ):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[i[:, None], j])

    return Run(model, normal_z, args=(ROWS.reshape(4, 3),))


@program("captured")
def subsample_that_is_given():
    def model(x, index):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample=index):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    def each(call):
        return ROWS, (torch.arange(5) * (call + 1)) % 12

    return Run(model, normal_z, each=each)


def regression(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 12, subsample_size=len(x)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def regression_guide(x, y):
    loc = pyro.param("loc", torch.zeros(()))
    scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
    pyro.sample("slope", dist.Normal(loc, scale))


@program("captured")
def minibatches():
    def each(call):
        rows = slice(4 * (call % 3), 4 * (call % 3) + 4)
        return ROWS[rows], ROWS[rows].sin()

    return Run(regression, regression_guide, each=each)


@program("captured")
def minibatches_of_two_sizes():
    def each(call):
        rows = slice(0, 5) if call % 2 else slice(5, 12)
        return ROWS[rows], ROWS[rows].sin()

    return Run(regression, regression_guide, each=each)


@program("captured")
def empty_minibatch():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand([len(x)]).to_event(1), obs=x)

    return Run(model, normal_z, each=lambda call: (ROWS[: 3 * (call % 2)],))
