"""What PyTorch keeps of every graph for the life of the process, and how it is let go.

Each generated function leaves its source text with `torch.fx`, each compiled graph a Python module,
its serialized code and its class with inductor, whether or not anybody still has the graph: about a
megabyte a fit. Nothing reads them again but tracebacks into generated code.

The names are private to PyTorch. Where one is missing, what it names is kept.
"""

import linecache
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch.fx.graph_module

from pyro_elbo_lab.compilation.native.internals import internal

__all__ = ["leftovers_dropped", "modules_thinned"]


@contextmanager
def leftovers_dropped() -> Iterator[None]:
    """Drop what PyTorch would keep of the graphs that are made within the block.

    The graphs themselves stay as they are. Also a decorator.

    Example:
        >>> from torch import fx, nn
        >>> sources = torch.fx.graph_module._loader.eval_cache
        >>> before = len(sources)
        >>> with leftovers_dropped():
        ...     module = fx.symbolic_trace(nn.ReLU())
        >>> len(sources) - before, float(module(torch.tensor(-1.0)))
        (0, 0.0)
    """
    with (
        _artifacts_dropped(),
        _new_keys_dropped(_sources(), also=linecache.cache),
        _new_keys_dropped(_classes()),
    ):
        yield


def modules_thinned() -> None:
    """Keep one module for each file that inductor has generated, the newest; it makes another of
    the same file every time that the same graph is compiled."""
    modules = internal("PyCodeCache").modules
    modules[:] = {module.__file__: module for module in modules}.values()


def _sources() -> dict[str, str]:
    loader: Any = getattr(torch.fx.graph_module, "_loader", None)
    return getattr(loader, "eval_cache", {})


def _classes() -> dict[type, bool]:
    """Which classes can be pickled; every graph module has a class of its own."""
    codecache = sys.modules.get("torch._inductor.codecache")
    pickler: Any = getattr(codecache, "FxGraphCachePickler", None)
    return getattr(pickler, "_pickleable_type_cache", {})


@contextmanager
def _new_keys_dropped(kept: dict[Any, Any], also: dict[Any, Any] | None = None) -> Iterator[None]:
    before = set(kept)
    try:
        yield
    finally:
        for key in set(kept) - before:
            kept.pop(key, None)
            if also is not None:
                also.pop(key, None)


@contextmanager
def _artifacts_dropped() -> Iterator[None]:
    with ExitStack() as stack:
        try:
            from torch.compiler._cache import CacheArtifactManager

            stack.enter_context(CacheArtifactManager.with_fresh_cache())
        except (ImportError, AttributeError):
            pass
        yield
