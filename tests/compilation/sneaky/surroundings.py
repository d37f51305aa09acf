"""Environment, context, files, clocks, threads; tensors that are held; switches that come late."""

import contextvars
import datetime
import itertools
import os
import random
import tempfile
import threading
import time
import types
from pathlib import Path

import numpy as np
import torch

from tests.compilation.sneaky.registry import Case, gaussian, guide, reading, sneaky

CHANGES = "which outlives the run"


@sneaky("seen")
def environment_variable():
    os.environ["SNEAKY_SD"] = "1.0"
    return reading(
        lambda: float(os.environ["SNEAKY_SD"]), lambda: os.environ.update(SNEAKY_SD="3.0")
    )


@sneaky("seen")
def environment_variable_with_a_default():
    os.environ.pop("SNEAKY_OTHER", None)
    return reading(
        lambda: float(os.getenv("SNEAKY_OTHER", "1.0")),
        lambda: os.environ.update(SNEAKY_OTHER="3.0"),
    )


@sneaky("seen")
def context_variable():
    variable = contextvars.ContextVar("sd", default=1.0)
    return reading(lambda: variable.get(), lambda: variable.set(3.0))


NOISE: contextvars.ContextVar = contextvars.ContextVar("noise")


@sneaky("seen")
def dictionary_in_a_context_variable():
    table = {"sd": 1.0}
    NOISE.set(table)
    return reading(lambda: NOISE.get()["sd"], lambda: table.update(sd=3.0))


@sneaky("seen")
def number_of_a_thread():
    local = threading.local()
    local.sd = 1.0
    return reading(lambda: local.sd, lambda: setattr(local, "sd", 3.0))


@sneaky("seen")
def number_written_by_a_thread():
    table = {"sd": 1.0}

    def change():
        thread = threading.Thread(target=lambda: table.update(sd=3.0))
        thread.start()
        thread.join()

    return reading(lambda: table["sd"], change)


def file_with(number):
    path = Path(tempfile.mkdtemp()) / "sd"
    path.write_text(str(number))
    return path


@sneaky("eager", "reads files")
def file_opened():
    path = file_with(1.0)

    def read():
        with open(path) as file:
            return float(file.read())

    return reading(read, lambda: path.write_text("3.0"))


@sneaky("eager", "reads files")
def file_read_through_a_path():
    path = file_with(1.0)
    return reading(lambda: float(path.read_text()), lambda: path.write_text("3.0"))


@sneaky("eager", "reads files")
def file_that_exists():
    path = Path(tempfile.mkdtemp()) / "switch"
    return reading(lambda: 3.0 if os.path.exists(path) else 1.0, path.touch)


@sneaky("eager", "reads files")
def array_in_a_file():
    path = Path(tempfile.mkdtemp()) / "sd.npy"
    np.save(path, np.ones(2))
    return reading(lambda: float(np.load(path)[0]), lambda: np.save(path, 3 * np.ones(2)))


@sneaky("eager", "reads files")
def tensor_in_a_file():
    path = Path(tempfile.mkdtemp()) / "sd.pt"
    torch.save(torch.ones(()), path)
    return reading(lambda: torch.load(path), lambda: torch.save(torch.tensor(3.0), path))


@sneaky("eager", moves=True)
def open_file():
    file = file_with("1.0\n2.0\n" * 20).open()
    return reading(lambda: float(next(file)))


@sneaky("eager", "reads the clock", moves=True)
def clock():
    return reading(lambda: 1.0 + time.time() % 10)


@sneaky("eager", "reads the clock", moves=True)
def precise_clock():
    return reading(lambda: 1.0 + time.perf_counter() % 1e-3)


@sneaky("eager", "reads the clock", moves=True)
def date():
    return reading(lambda: 1.0 if datetime.datetime.now().year > 2000 else 3.0)


@sneaky("eager", "reads the clock", moves=True)
def clock_that_switches_late():
    begun = time.monotonic()
    return reading(lambda: 1.0 if time.monotonic() < begun + 1e4 else 3.0)


@sneaky("eager", "Python's random", moves=True)
def generator_of_python():
    generator = random.Random(0)
    return reading(lambda: 1.0 + generator.random())


@sneaky("eager", f"'generator', {CHANGES}", moves=True)
def generator_of_numpy():
    generator = np.random.default_rng(0)
    return reading(lambda: 3.0 if generator.uniform() < 1e-9 else 1.0)


@sneaky("eager", "a thread that it starts", moves=True)
def thread_started_inside():
    table = {"sd": 1.0}

    def read():
        thread = threading.Thread(target=lambda: table.update(sd=1.0))
        thread.start()
        thread.join()
        return table["sd"]

    return reading(read)


@sneaky("eager", f"'calls', {CHANGES}", moves=True)
def counter_that_switches_late():
    calls = 0

    def read():
        nonlocal calls
        calls += 1
        return 1.0 if calls < 3000 else 3.0

    return reading(read)


@sneaky("eager", f"'settings.calls', {CHANGES}", moves=True)
def counter_in_an_attribute():
    settings = types.SimpleNamespace(calls=0)

    def read():
        settings.calls += 1
        return 1.0 if settings.calls < 3000 else 3.0

    return reading(read)


@sneaky("eager", CHANGES, moves=True)
def counter_of_a_class():
    class Model:
        calls = 0

        def __call__(self):
            Model.calls += 1
            gaussian(0.0, 1.0 if Model.calls < 3000 else 3.0)

    return Case(Model(), guide)


@sneaky("eager", f"'calls', {CHANGES}", moves=True)
def counter_of_itertools():
    calls = itertools.count()
    return reading(lambda: 1.0 if next(calls) < 3000 else 3.0)


@sneaky("eager", f"'phases', {CHANGES}", moves=True)
def generator_that_is_held():
    def phases_of_training():
        for _ in range(3000):
            yield 1.0
        while True:
            yield 3.0

    phases = phases_of_training()
    return reading(lambda: next(phases))


@sneaky("eager", CHANGES, moves=True)
def iterator_of_a_list():
    phases = iter([1.0] * 3000 + [3.0] * 3000)
    return reading(lambda: next(phases))


@sneaky("eager", CHANGES, moves=True)
def iterator_behind_others():
    phases = enumerate(zip([1.0] * 3000, itertools.cycle([1, 2]), strict=False))
    return reading(lambda: next(phases)[1][0])


@sneaky("eager", CHANGES, moves=True)
def iterator_of_a_class_of_its_own():
    class Phases:
        def __init__(self):
            self.calls = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.calls += 1
            return 1.0 if self.calls < 3000 else 3.0

    phases = Phases()
    return reading(lambda: next(phases))


@sneaky("eager", CHANGES, moves=True)
def list_that_is_used_up():
    phases = [3.0] * 3000 + [1.0] * 3000
    return reading(lambda: phases.pop())


@sneaky("eager", CHANGES, moves=True)
def default_that_counts():
    def read(calls=[0]):  # noqa: B006
        calls[0] += 1
        return 1.0 if calls[0] < 3000 else 3.0

    return reading(read)


def held(value=1.0, n=3):
    return torch.full((n,), value)


@sneaky("seen")
def number_of_a_held_tensor():
    sd = held()
    return reading(lambda: sd[0].item(), lambda: sd.fill_(3.0))


@sneaky("seen")
def float_of_a_held_tensor_written_by_numpy():
    sd = held()
    memory = sd.numpy()
    return reading(lambda: float(sd[1]), lambda: memory.fill(3.0))


@sneaky("seen")
def list_of_a_held_tensor():
    sd = held()
    return reading(lambda: sd.tolist()[2], lambda: sd.mul_(3.0))


@sneaky("seen")
def branch_on_a_held_tensor():
    sd = held()
    return reading(lambda: 3.0 if sd.sum() > 5 else 1.0, lambda: sd.mul_(3.0))


@sneaky("seen")
def branch_on_a_held_tensor_moved_by_data():
    sd = held()
    return reading(lambda: 3.0 if sd.sum() > 5 else 1.0, lambda: sd.data.mul_(3.0))


@sneaky("seen")
def array_of_a_held_tensor():
    sd = held()
    return reading(lambda: float(sd.numpy().max()), lambda: sd.mul_(3.0))


@sneaky("seen")
def data_of_a_held_tensor_replaced():
    sd = held(n=4)
    return reading(lambda: sd, lambda: setattr(sd, "data", held(3.0, 4)))


@sneaky("seen")
def held_tensor_set_to_another():
    sd = held(n=4)
    return reading(lambda: sd, lambda: sd.set_(held(3.0, 4)))


@sneaky("seen")
def held_tensor_of_another_length():
    sd = held(n=4)
    return reading(lambda: float(len(sd)), lambda: setattr(sd, "data", held(1.0, 6)))


@sneaky("seen")
def held_tensor_transposed_in_place():
    table = torch.arange(1.0, 7.0).reshape(2, 3)
    return reading(lambda: table[1].sum(), lambda: table.t_())


@sneaky("seen")
def held_tensor_changed_in_place():
    sd = held(n=4)
    return reading(lambda: sd, lambda: sd.mul_(3.0))


@sneaky("seen")
def held_tensor_replaced_in_a_list():
    sds = [held(n=4)]
    return reading(lambda: sds[0], lambda: sds.__setitem__(0, held(3.0, 4)))


@sneaky("seen")
def held_tensor_that_gets_a_gradient():
    mean = held(n=4)
    return Case(lambda: gaussian(mean), guide, change=lambda: mean.mul_(2.0).requires_grad_())


@sneaky("seen")
def default_type():
    def change():
        torch.set_default_dtype(torch.float64)

    return reading(lambda: torch.ones(2).sum().item() * torch.ones(()).itemsize / 8, change)
