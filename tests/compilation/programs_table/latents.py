"""Latents and likelihoods whose draws, supports or densities are unusual."""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.transforms import AffineTransform, ExpTransform, affine_coupling, planar
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.infer.reparam import LocScaleReparam
from pyro.poutine import block, mask, reparam, scale

from pyro_elbo_lab.objectives.lower_bounds import StandardELBO
from tests.compilation.programs_table.registry import Run, program

X = torch.tensor([0.4, -1.1, 2.3, 0.9])
COUNTS = torch.tensor([2.0, 0.0, 3.0, 1.0])


def positive(name: str, value: float = 1.0, size: int | None = None) -> torch.Tensor:
    init = torch.tensor(value) if size is None else torch.full((size,), value)
    return pyro.param(name, init, constraint=constraints.positive)


def normal_guide(name: str = "z", size: int | None = None) -> dist.TorchDistribution:
    loc = pyro.param(f"{name}_loc", torch.zeros(()) if size is None else torch.zeros(size))
    base = dist.Normal(loc, positive(f"{name}_scale", 0.7, size))
    return base if size is None else base.to_event(1)


@program("captured")
def lkj_with_autonormal():
    def model(y):
        corr = pyro.sample("corr", dist.LKJCholesky(3, 2.0))
        y_dist = dist.MultivariateNormal(torch.zeros(3), scale_tril=corr)
        with pyro.plate("rows", 5):
            pyro.sample("y", y_dist, obs=y)

    y = torch.linspace(-1.0, 1.0, 15).sin().reshape(5, 3)
    return Run(model, AutoNormal(model), args=(y,))


@program("captured")
def lkj_with_lkj_guide():
    def model():
        corr = pyro.sample("corr", dist.LKJCholesky(3, 2.0))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(3), scale_tril=corr), obs=X[:3])

    def guide():
        pyro.sample("corr", dist.LKJCholesky(3, positive("concentration", 3.0)))

    return Run(model, guide, StandardELBO(gradient="score"))


@program("captured")
def simplex_with_autonormal():
    def model():
        p = pyro.sample("p", dist.Dirichlet(torch.ones(4)))
        pyro.sample("y", dist.Multinomial(6, probs=p), obs=COUNTS)

    return Run(model, AutoNormal(model))


@program("captured", compiles=True)
def dirichlet_by_its_path():
    def model():
        p = pyro.sample("p", dist.Dirichlet(torch.ones(4)))
        pyro.sample("y", dist.Multinomial(6, probs=p), obs=COUNTS)

    def guide():
        pyro.sample("p", dist.Dirichlet(positive("concentration", 1.5, 4)))

    return Run(model, guide)


@program("captured")
def dirichlet_by_its_score():
    run = dirichlet_by_its_path()
    return Run(run.model, run.guide, StandardELBO(4, "score"))


@program("captured", compiles=True)
def gamma_and_beta():
    def model():
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        zero = pyro.sample("zero", dist.Beta(2.0, 3.0))
        with pyro.plate("data", 4):
            pyro.sample("y", dist.ZeroInflatedPoisson(rate, gate=zero), obs=COUNTS)

    def guide():
        pyro.sample("rate", dist.Gamma(positive("a", 2.0), positive("b", 1.0)))
        pyro.sample("zero", dist.Beta(positive("c", 2.0), positive("d", 2.0)))

    return Run(model, guide)


@program("captured")
def inverse_gamma_and_chi2():
    def model():
        variance = pyro.sample("variance", dist.InverseGamma(3.0, 2.0))
        nu = pyro.sample("nu", dist.Chi2(4.0))
        with pyro.plate("data", 4):
            pyro.sample("y", dist.StudentT(nu, 0.0, variance.sqrt()), obs=X)

    def guide():
        pyro.sample("variance", dist.InverseGamma(positive("a", 3.0), positive("b", 2.0)))
        pyro.sample("nu", dist.Chi2(positive("df", 4.0)))

    return Run(model, guide)


@program("captured")
def student_t_guide():
    def model():
        z = pyro.sample("z", dist.StudentT(3.0, 0.0, 1.0))
        with pyro.plate("data", 4):
            pyro.sample("y", dist.Normal(z, 1.0), obs=X)

    def guide():
        pyro.sample("z", dist.StudentT(5.0, pyro.param("loc", torch.zeros(())), positive("s")))

    return Run(model, guide)


@program("captured")
def cauchy_laplace_and_gumbel():
    def model():
        a = pyro.sample("a", dist.Cauchy(0.0, 1.0))
        b = pyro.sample("b", dist.Laplace(a, 1.0))
        c = pyro.sample("c", dist.Gumbel(b, 1.0))
        pyro.sample("y", dist.Normal(c, 1.0), obs=X[0])

    def guide():
        a = pyro.sample("a", dist.Normal(pyro.param("a_loc", torch.zeros(())), positive("a_s")))
        pyro.sample("b", dist.Laplace(a, positive("b_s")))
        pyro.sample("c", dist.Gumbel(pyro.param("c_loc", torch.zeros(())), positive("c_s")))

    return Run(model, guide)


@program("either", reason="VonMises")
def von_mises_by_its_score():
    """Its sampler rejects draws in a loop that depends on them."""

    def model():
        angle = pyro.sample("angle", dist.VonMises(0.0, 1.0))
        pyro.sample("y", dist.VonMises(angle, 4.0), obs=X[0])

    def guide():
        pyro.sample("angle", dist.VonMises(pyro.param("loc", torch.zeros(())), positive("k")))

    return Run(model, guide, StandardELBO(2, "score"))


@program("captured")
def truncation_by_uniform():
    def model():
        z = pyro.sample("z", dist.Uniform(-1.0, 2.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=X[0])

    def guide():
        half = pyro.param("half", torch.tensor(0.5), constraint=constraints.interval(0.1, 0.9))
        pyro.sample("z", dist.Uniform(-half, 1 + half))

    return Run(model, guide)


@program("captured")
def bernoulli_by_its_score():
    def model():
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("y", dist.Normal(2 * z - 1, 1.0), obs=X)

    def guide():
        p = pyro.param("p", torch.full((4,), 0.5), constraint=constraints.unit_interval)
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Bernoulli(p))

    return Run(model, guide, StandardELBO(3, "score", vectorize_particles=True))


@program("captured")
def categorical_and_poisson_by_their_scores():
    def model():
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
        n = pyro.sample(
            "n", dist.Poisson(torch.tensor([1.0, 3.0, 6.0]).index_select(0, k.reshape(1)).squeeze())
        )
        pyro.sample("y", dist.Normal(n, 1.0), obs=torch.tensor(2.2))

    def guide():
        probs = pyro.param("probs", torch.ones(3) / 3, constraint=constraints.simplex)
        pyro.sample("k", dist.Categorical(probs))
        pyro.sample("n", dist.Poisson(positive("rate", 2.0)))

    return Run(model, guide, StandardELBO(4, "score"))


@program("captured")
def relaxed_bernoulli_and_one_hot():
    def model():
        b = pyro.sample("b", dist.RelaxedBernoulli(torch.tensor(0.7), probs=torch.tensor(0.4)))
        k = pyro.sample(
            "k", dist.RelaxedOneHotCategorical(torch.tensor(0.7), probs=torch.ones(3) / 3)
        )
        pyro.sample("y", dist.Normal(b + k @ torch.arange(3.0), 1.0), obs=X[0])

    def guide():
        logit = pyro.param("logit", torch.zeros(()))
        pyro.sample("b", dist.RelaxedBernoulli(torch.tensor(0.7), logits=logit))
        logits = pyro.param("logits", torch.zeros(3))
        pyro.sample("k", dist.RelaxedOneHotCategorical(torch.tensor(0.7), logits=logits))

    return Run(model, guide)


@program("captured")
def integer_counts():
    def model(k, n, c):
        rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("data", 4):
            pyro.sample("k", dist.Poisson(rate), obs=k)
            pyro.sample("n", dist.Binomial(5, p), obs=n)
            pyro.sample("c", dist.NegativeBinomial(rate, p), obs=k)
            logits = torch.stack([rate, p, rate * p])
            pyro.sample("category", dist.Categorical(logits=logits), obs=c)

    args = COUNTS.long(), torch.tensor([1, 5, 0, 2]), torch.tensor([0, 2, 1, 1])
    return Run(model, AutoNormal(model), args=args)


@program("captured")
def ordered_logistic():
    def model(x, y):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        cuts = pyro.sample(
            "cuts",
            dist.TransformedDistribution(
                dist.Normal(torch.zeros(2), 1.0).to_event(1), dist.transforms.OrderedTransform()
            ),
        )
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.OrderedLogistic(slope * x, cuts), obs=y)

    return Run(model, AutoNormal(model), args=(X, torch.tensor([0, 2, 1, 1])))


@program("captured", compiles=True)
def mixture_summed_over_assignments():
    @config_enumerate
    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[k], 0.8), obs=x)

    return Run(model, AutoNormal(block(model, hide=["k"])), args=(X,))


@program("captured")
def hidden_markov_model():
    @config_enumerate
    def model(x):
        with pyro.plate("states", 2):
            rows = pyro.sample("rows", dist.Dirichlet(torch.ones(2)))
            locs = pyro.sample("locs", dist.Normal(0.0, 2.0))
        z = 0
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z{t}", dist.Categorical(rows[z]))
            pyro.sample(f"x{t}", dist.Normal(locs[z], 1.0), obs=x[t])

    guide = AutoNormal(block(model, expose=["rows", "locs"]))
    return Run(model, guide, args=(X,))


@program("captured")
def vectorized_hidden_markov_model():
    def model(x):
        with pyro.plate("states", 2):
            rows = pyro.sample("rows", dist.Dirichlet(torch.ones(2)))
            locs = pyro.sample("locs", dist.Normal(0.0, 2.0))
        hmm = dist.DiscreteHMM(torch.zeros(2), rows.log(), dist.Normal(locs, 1.0))
        pyro.sample("x", hmm, obs=x)

    return Run(model, AutoNormal(model), args=(X,))


@program("captured")
def mixture_same_family():
    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        mixture = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(locs, 0.8))
        with pyro.plate("data", len(x)):
            pyro.sample("x", mixture, obs=x)

    return Run(model, AutoNormal(model), args=(X,))


@program("captured")
def mask_and_scale():
    def model(x, seen):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)), mask(mask=seen), scale(scale=2.5):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    seen = torch.tensor([True, False, True, True])
    return Run(model, AutoNormal(model), args=(X, seen))


@program("captured")
def missing_data_by_obs_mask():
    def model(x, seen):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=seen)

    seen = torch.tensor([True, False, True, True])
    return Run(model, AutoNormal(model), args=(X, seen))


@program("captured")
def deterministic_and_factor():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        square = pyro.deterministic("square", z**2)
        pyro.factor("penalty", -0.5 * square)

    return Run(model, normal_z)


def normal_z(*args, **kwargs):
    """q(z) of two parameters."""
    pyro.sample("z", normal_guide())


@program("captured")
def transformed_and_folded():
    def model():
        z = pyro.sample("z", dist.HalfCauchy(1.0))
        transforms = [AffineTransform(0.0, z), ExpTransform()]
        lognormal = dist.TransformedDistribution(dist.Normal(0.0, 1.0), transforms)
        with pyro.plate("data", 4):
            pyro.sample("y", lognormal, obs=X.exp())
            pyro.sample("w", dist.FoldedDistribution(dist.Normal(z, 1.0)), obs=X.abs())

    return Run(model, AutoNormal(model))


@program("captured")
def normalizing_flow_likelihood():
    flow = affine_coupling(2, hidden_dims=[4])

    def model(y):
        pyro.module("flow", flow)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        base = dist.Normal(z.expand(2), 1.0).to_event(1)
        with pyro.plate("data", len(y)):
            likelihood = dist.TransformedDistribution(base, [flow])
            likelihood.clear_cache()
            pyro.sample("y", likelihood, obs=y)

    return Run(model, normal_z, args=(X.reshape(2, 2),))


@program("captured")
def planar_flow_guide():
    flow = planar(2)

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z.sin().sum(), 0.5), obs=X[0])

    def guide():
        pyro.module("flow", flow)
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    return Run(model, guide)


@program("captured")
def loop_over_time():
    def model(x):
        z, phi = torch.zeros(()), pyro.sample("phi", dist.Uniform(-1.0, 1.0))
        for t in range(len(x)):
            z = pyro.sample(f"z{t}", dist.Normal(phi * z, 0.5))
            pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=x[t])

    return Run(model, AutoNormal(model), args=(torch.linspace(0.0, 3.0, 10).sin(),))


@program("captured")
def gaussian_hidden_markov_model():
    def model(x):
        noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
        eye = torch.eye(1)
        zero = dist.MultivariateNormal(torch.zeros(1), eye)
        seen = dist.MultivariateNormal(torch.zeros(1), noise * eye)
        pyro.sample("x", dist.GaussianHMM(zero, 0.9 * eye, zero, eye, seen), obs=x)

    return Run(model, AutoNormal(model), args=(X[:, None],))


@program("captured", compiles=True)
def gaussian_process():
    def model(x, y):
        length = pyro.sample("length", dist.LogNormal(0.0, 0.5))
        noise = pyro.sample("noise", dist.LogNormal(-1.0, 0.5))
        kernel = (-0.5 * ((x[:, None] - x) / length) ** 2).exp()
        tril = torch.linalg.cholesky(kernel + noise * torch.eye(len(x)))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), scale_tril=tril), obs=y)

    x = torch.linspace(0.0, 3.0, 5)
    return Run(model, AutoMultivariateNormal(model), args=(x, x.sin()))


@program("captured")
def wishart_like_precision():
    """Solves, determinants and inverses, forward and backward."""

    def model(y):
        a = pyro.sample("a", dist.Normal(torch.zeros(3, 3), 0.3).to_event(2))
        precision = a @ a.T + torch.eye(3)
        normal = dist.MultivariateNormal(torch.zeros(3), precision_matrix=precision)
        pyro.sample("y", normal, obs=y)
        pyro.factor("penalty", -precision.logdet() - torch.linalg.inv(precision).trace())

    return Run(model, AutoNormal(model), args=(X[:3],))


@program("captured")
def reparameterized_by_a_handler():
    @reparam(config={"z": LocScaleReparam(0.0)})
    def model():
        spread = pyro.sample("spread", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(0.0, spread))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X)

    return Run(model, AutoNormal(model))


@program("captured")
def conditioned_by_a_handler():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0))

    return Run(pyro.condition(model, data={"x": X[2]}), normal_z)


@program("captured")
def infinite_log_density_behind_a_mask():
    """-inf, where it counts for nothing, is not NaN in the gradient."""

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        positive_part = torch.where(x > 0, x, torch.ones_like(x))
        with pyro.plate("data", len(x)), mask(mask=x > 0):
            pyro.sample("x", dist.LogNormal(z, 1.0), obs=positive_part)
        pyro.factor("constant", torch.tensor(math.pi).log())

    return Run(model, normal_z, args=(X,))


@program("captured")
def float64():
    def model(x):
        zero = torch.zeros((), dtype=torch.float64)
        z = pyro.sample("z", dist.Normal(zero, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros((), dtype=torch.float64))
        pyro.sample("z", dist.Normal(loc, 0.3))

    return Run(model, guide, args=(X.double(),))
