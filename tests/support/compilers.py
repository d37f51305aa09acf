"""Whether this machine can compile what inductor generates, and how to do without it."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, fx
from torch._inductor.cpp_builder import get_cpp_compiler

from pyro_elbo_lab.compilation.native.runner import Runner, runner_of
from pyro_elbo_lab.inference.fitting import trainer


def _has_compiler() -> bool:
    try:
        return bool(get_cpp_compiler())
    except Exception:  # inductor has an error of its own in every version
        return False


needs_compiler = pytest.mark.skipif(not _has_compiler(), reason="no C++ compiler present")
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device present")


def run_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `fit` run its graphs as they are, for tests of what it does with them."""

    def runner(
        module: fx.GraphModule,
        inputs: Sequence[Tensor],
        refill: Callable[[], None],
        written: Sequence[Tensor] = (),
    ) -> tuple[Runner, str]:
        saved = [x.clone() for x in written]
        refill()
        found = runner_of(module, inputs)
        for x, before in zip(written, saved, strict=True):
            x.copy_(before)
        return found, ""

    monkeypatch.setattr(trainer, "checked_runner", runner)
