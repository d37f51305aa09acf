"""What a program does while it runs: which of its functions, and what it reads that is unseen."""

import contextvars
import gc
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from pyro_elbo_lab.compilation.watch.names import Names, is_library, names_in
from pyro_elbo_lab.compilation.watch.unseen import unseen_source

__all__ = ["Activity"]

_TOOLS = (4, 3, 5)  # not those of debuggers, coverage, profilers and optimizers


class Activity:
    """What has been seen in the runs within `recorded`.

    Attributes:
        complete: whether everything could be seen: not if other tools occupy `sys.monitoring`.
        codes: the code that ran, of libraries too.
        functions: functions of the program that ran and are still there, numbered.
        unseen: what the program read that cannot be watched, with the function that it called.
        variables: context variables that were read.
        environment: whether environment variables were read.
    """

    def __init__(self) -> None:
        self.complete = True
        self.codes: set[types.CodeType] = set()
        self.functions: WeakKeyDictionary[types.FunctionType, int] = WeakKeyDictionary()
        self.unseen: dict[str, str] = {}
        self.variables: list[contextvars.ContextVar] = []
        self.environment = False
        self._own: set[types.CodeType] = set()

    @cached_property
    def names(self) -> Names:
        """What the program's code that ran mentions."""
        return names_in(self._own)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Look on while the block runs; a second block adds to what the first has shown."""
        monitoring = sys.monitoring
        tool = next((i for i in _TOOLS if monitoring.get_tool(i) is None), None)
        if tool is None:
            self.complete = False
            yield
            return
        events = monitoring.events
        monitoring.use_tool_id(tool, "pyro_elbo_lab")
        try:
            monitoring.restart_events()
            thread = threading.get_ident()

            def starts(code: types.CodeType, offset: int) -> Any:
                if threading.get_ident() == thread:
                    self._starts(code, sys._getframe(1))
                return monitoring.DISABLE

            def calls(code: types.CodeType, offset: int, function: Any, first: Any) -> None:
                if threading.get_ident() == thread:
                    self._calls(function, first, sys._getframe(1))

            monitoring.register_callback(tool, events.PY_START, starts)
            monitoring.register_callback(tool, events.PY_RESUME, starts)
            monitoring.register_callback(tool, events.CALL, calls)
            monitoring.set_events(tool, events.PY_START | events.PY_RESUME | events.CALL)
            yield
        finally:
            monitoring.set_events(tool, 0)
            for event in (events.PY_START, events.PY_RESUME, events.CALL):
                monitoring.register_callback(tool, event, None)
            monitoring.free_tool_id(tool)
            self._find_functions()

    def _starts(self, code: types.CodeType, frame: types.FrameType) -> None:
        self.codes.add(code)
        module = frame.f_globals.get("__name__")
        if not is_library(module):
            self._own.add(code)
        elif module == "os" and ("_Environ" in code.co_qualname or code.co_name == "getenv"):
            self.environment = True

    def _calls(self, function: Any, first: Any, frame: types.FrameType) -> None:
        if isinstance(function, types.MethodType):
            function = function.__func__
        if isinstance(function, types.FunctionType):
            self._found(function)
        elif isinstance(first, contextvars.ContextVar):
            if not any(first is known for known in self.variables):
                self.variables.append(first)
            return
        source = unseen_source(function, first, frame)
        if source:
            self.unseen.setdefault(source, getattr(function, "__name__", str(function)))

    def _found(self, function: types.FunctionType) -> None:
        if function not in self.functions and not is_library(function.__globals__.get("__name__")):
            self.functions[function] = len(self.functions) + len(self._own)

    def _find_functions(self) -> None:
        """Those that were not called by name, but by C."""
        self.__dict__.pop("names", None)
        missing = self._own - {function.__code__ for function in self.functions}
        if missing:
            for referrer in gc.get_referrers(*missing):
                if isinstance(referrer, types.FunctionType) and referrer.__code__ in missing:
                    self._found(referrer)
