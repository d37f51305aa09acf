"""NumPyro's side of `problems`: the same models, priors and guides, on the same data."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from models import radon, vae

Program = Callable[..., Any]


def eight_schools(y: jax.Array, sigma: jax.Array) -> None:
    """`models.eight_schools.model`."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", len(y)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def logistic(x: jax.Array, y: jax.Array) -> None:
    """`models.logistic_regression.model`."""
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    w = numpyro.sample("w", dist.Normal(jnp.zeros(x.shape[-1]), 1.0).to_event(1))
    with numpyro.plate("tumour", len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=b + x @ w), obs=y)


def hierarchical(county: jax.Array, floor: jax.Array, y: jax.Array) -> None:
    """`models.radon.model`."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    b = numpyro.sample("b", dist.Normal(0.0, 5.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    with numpyro.plate("county", radon.NUM_COUNTIES):
        a = numpyro.sample("a", dist.Normal(mu, tau))
    with numpyro.plate("house", len(y)):
        numpyro.sample("y", dist.Normal(a[county] + b * floor, sigma), obs=y)


def decoder(x: jax.Array) -> None:
    """`models.vae.model`."""
    hidden_weight, hidden_bias = _layer("hidden", vae.NUM_LATENTS, vae.NUM_HIDDEN)
    pixel_weight, pixel_bias = _layer("pixel", vae.NUM_HIDDEN, x.shape[-1])
    with numpyro.plate("digit", len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(vae.NUM_LATENTS), 1.0).to_event(1))
        hidden = jax.nn.softplus(z @ hidden_weight + hidden_bias)
        logits = hidden @ pixel_weight + pixel_bias
        numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def encoder(x: jax.Array) -> None:
    """`models.vae.Encoder`."""
    hidden_weight, hidden_bias = _layer("encoder_hidden", x.shape[-1], vae.NUM_HIDDEN)
    loc_weight, loc_bias = _layer("encoder_loc", vae.NUM_HIDDEN, vae.NUM_LATENTS)
    scale_weight, scale_bias = _layer("encoder_scale", vae.NUM_HIDDEN, vae.NUM_LATENTS)
    hidden = jax.nn.softplus(x @ hidden_weight + hidden_bias)
    with numpyro.plate("digit", len(x)):
        q = dist.Normal(hidden @ loc_weight + loc_bias, jnp.exp(hidden @ scale_weight + scale_bias))
        numpyro.sample("z", q.to_event(1))


def _layer(name: str, num_in: int, num_out: int) -> tuple[jax.Array, jax.Array]:
    def uniform(*shape: int) -> Callable[[jax.Array], jax.Array]:
        return lambda key: jax.random.uniform(key, shape, minval=-1, maxval=1) / num_in**0.5

    weight = numpyro.param(f"{name}_weight", uniform(num_in, num_out))
    return weight, numpyro.param(f"{name}_bias", uniform(num_out))


MODELS: dict[str, Program] = {
    "eight schools": eight_schools,
    "logistic": logistic,
    "logistic MVN": logistic,
    "radon": hierarchical,
    "VAE": decoder,
}
GUIDES: dict[str, Callable[[Program], Any]] = {
    "eight schools": AutoNormal,
    "logistic": AutoNormal,
    "logistic MVN": AutoMultivariateNormal,
    "radon": AutoNormal,
    "VAE": lambda model: encoder,
}
