"""What PyTorch keeps of every graph for the life of the process, and how it is let go.

Each generated function leaves its source text with `torch.fx`, each compiled graph a Python module
and its serialised code with inductor, whether or not anybody still has the graph: about a megabyte
a fit. Nothing reads them again but tracebacks into generated code.

The names are private to PyTorch. Where one is missing, what it names is kept.
"""

import linecache
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
    sources = _sources()
    before = set(sources)
    with _artifacts_dropped():
        try:
            yield
        finally:
            for key in [key for key in sources if key not in before]:
                sources.pop(key, None)
                linecache.cache.pop(key, None)


def modules_thinned() -> None:
    """Keep one module for each file that inductor has generated, the newest; it makes another of
    the same file every time that the same graph is compiled."""
    modules = internal("PyCodeCache").modules
    modules[:] = {module.__file__: module for module in modules}.values()


def _sources() -> dict[str, str]:
    loader: Any = getattr(torch.fx.graph_module, "_loader", None)
    return getattr(loader, "eval_cache", {})


@contextmanager
def _artifacts_dropped() -> Iterator[None]:
    with ExitStack() as stack:
        try:
            from torch.compiler._cache import CacheArtifactManager

            stack.enter_context(CacheArtifactManager.with_fresh_cache())
        except (ImportError, AttributeError):
            pass
        yield
