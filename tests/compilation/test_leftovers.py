"""Nothing of a fit stays in the process when nobody has the fit any more."""

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor
from torch._inductor.codecache import PyCodeCache

from pyro_elbo_lab import StandardELBO, compiled, fit, nuts
from pyro_elbo_lab.compilation.native.leftovers import _classes, _sources, leftovers_dropped
from pyro_elbo_lab.compilation.native.operators import Handles
from tests.support.compilers import needs_compiler


def regression(x: Tensor, y: Tensor) -> None:
    weights = pyro.sample("weights", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    mean = weights @ x.T  # a product of matrices, which is called from C
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(mean.squeeze(-2) if mean.dim() > 1 else mean, 1.0), obs=y)


def fitted(x: Tensor, y: Tensor) -> None:
    objective = StandardELBO(4, vectorize_particles=True)
    guide = AutoNormal(regression)
    fit(regression, guide, x, y, objective=objective, num_steps=3, compile=True, progress=False)


def stepped(x: Tensor, y: Tensor) -> None:
    objective = compiled(StandardELBO(4, vectorize_particles=True))
    guide = AutoNormal(regression)
    for _ in range(3):
        objective.loss_and_grads(regression, guide, x, y)


def sampled(x: Tensor, y: Tensor) -> None:
    nuts(regression, x, y, num_samples=5, num_warmup=5, num_chains=1, progress=False)


def handles() -> int:
    gc.collect()
    return sum(isinstance(x, Handles) for x in gc.get_objects())


@needs_compiler
@pytest.mark.parametrize("run", [fitted, stepped, sampled])
@pytest.mark.filterwarnings("ignore")  # five draws are no reference
def test_data_are_freed(run: Callable[[Tensor, Tensor], None]) -> None:
    rows = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    memory = weakref.ref(rows)
    x = torch.from_numpy(rows)
    before = handles()
    run(x, x.sum(1))
    pyro.clear_param_store()
    del rows, x
    assert handles() == before  # a copy of the data may be behind one
    assert memory() is None


@needs_compiler
def test_a_second_fit_leaves_nothing_more() -> None:
    x = torch.ones(10, 2)
    fitted(x, x.sum(1))
    kept = [len(_sources()), len(PyCodeCache.modules), len(_classes())]
    fitted(x, x.sum(1))
    assert [len(_sources()), len(PyCodeCache.modules), len(_classes())] == kept


def test_without_the_private_names_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.fx.graph_module, "_loader")
    monkeypatch.setattr("torch.compiler._cache.CacheArtifactManager", object())
    monkeypatch.delattr("torch._inductor.codecache.FxGraphCachePickler")
    with leftovers_dropped():
        assert _sources() == _classes() == {}
