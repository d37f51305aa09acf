"""Warnings name the line of the user that has led to them."""

import inspect
import warnings

import pyro
import pyro.distributions as dist
from pyro.infer import SVI
from pyro.optim import Adam

from pyro_elbo_lab import StandardELBO


def model() -> None:
    pyro.sample("z", dist.Normal(0.0, 1.0))


def guide() -> None:
    """Has a site that the model lacks, of which objectives warn."""
    pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("extra", dist.Normal(0.0, 1.0))


def test_a_warning_of_a_step_names_the_line_that_takes_it() -> None:
    svi = SVI(model, guide, Adam({"lr": 0.01}), StandardELBO())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        line = inspect.currentframe().f_lineno + 1  # type: ignore[union-attr]
        svi.step()
    assert {(w.filename, w.lineno) for w in caught} == {(__file__, line)}


def test_a_warning_of_a_loss_names_the_line_that_calls_it() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        line = inspect.currentframe().f_lineno + 1  # type: ignore[union-attr]
        StandardELBO().loss(model, guide)
    assert caught and {(w.filename, w.lineno) for w in caught} == {(__file__, line)}
