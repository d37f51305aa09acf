"""Numbers in lists, dictionaries, queues, sets and arrays."""

import collections
import queue
import types
from typing import NamedTuple

import numpy as np
import torch

from tests.compilation.sneaky.registry import reading, sneaky


@sneaky("seen")
def middle_of_a_long_list():
    numbers = [1.0] * 3000
    return reading(lambda: sum(numbers) / 3000, lambda: numbers.__setitem__(1234, 3000.0))


@sneaky("seen")
def list_of_lists():
    rows = [[1.0] * 30 for _ in range(40)]
    return reading(lambda: rows[17][5], lambda: rows[17].__setitem__(5, 3.0))


@sneaky("seen")
def long_dictionary():
    table = {i: 1.0 for i in range(2000)}
    return reading(lambda: table[1500], lambda: table.update({1500: 3.0}))


@sneaky("seen")
def list_that_grows():
    numbers = [1.0]
    return reading(lambda: float(len(numbers)), lambda: numbers.append(2.0))


@sneaky("seen")
def deep_dictionary():
    table = {"a": {"b": {"c": {"d": {"e": 1.0}}}}}
    return reading(
        lambda: table["a"]["b"]["c"]["d"]["e"],
        lambda: table["a"]["b"]["c"]["d"].update(e=3.0),
    )


@sneaky("seen")
def dictionary_in_a_tuple():
    parts = (1.0, {"sd": 1.0})
    return reading(lambda: parts[0] * parts[1]["sd"], lambda: parts[1].update(sd=3.0))


@sneaky("seen")
def deque_entry():
    numbers = collections.deque([1.0, 2.0, 3.0])
    return reading(lambda: numbers[0], lambda: numbers.__setitem__(0, 5.0))


@sneaky("seen")
def deque_rotated():
    numbers = collections.deque([1.0, 2.0, 3.0])
    return reading(lambda: numbers[0], lambda: numbers.rotate(1))


@sneaky("seen")
def queue_filled():
    numbers: queue.Queue = queue.Queue()
    return reading(lambda: 1.0 + numbers.qsize(), lambda: numbers.put(1.0))


@sneaky("seen")
def set_that_grows():
    flags = {"a"}
    return reading(lambda: 3.0 if "wide" in flags else 1.0, lambda: flags.add("wide"))


@sneaky("seen")
def set_with_another_member():
    flags = {"narrow"}

    def change():
        flags.discard("narrow")
        flags.add("wide")

    return reading(lambda: 3.0 if "wide" in flags else 1.0, change)


@sneaky("seen")
def frozen_set_replaced():
    holder = {"flags": frozenset({"a"})}
    return reading(
        lambda: 3.0 if "wide" in holder["flags"] else 1.0,
        lambda: holder.update(flags=frozenset({"wide"})),
    )


@sneaky("seen")
def order_of_a_dictionary():
    table = {"a": 1.0, "b": 3.0}

    def change():
        table["a"] = table.pop("a")

    return reading(lambda: next(iter(table.values())), change)


@sneaky("seen")
def order_of_a_dictionary_with_equal_values():
    table = {"narrow": 1.0, "wide": 1.0}

    def change():
        table["narrow"] = table.pop("narrow")

    return reading(lambda: 3.0 if next(iter(table)) == "wide" else 1.0, change)


@sneaky("seen")
def key_renamed():
    table = {"narrow": 1.0}

    def change():
        table["wide"] = table.pop("narrow")

    return reading(lambda: 3.0 if "wide" in table else 1.0, change)


@sneaky("seen")
def default_dictionary():
    table = collections.defaultdict(float, sd=1.0)
    return reading(lambda: table["sd"], lambda: table.update(sd=3.0))


@sneaky("seen")
def chain_of_dictionaries():
    chain = collections.ChainMap({}, {"sd": 1.0})
    return reading(lambda: chain["sd"], lambda: chain.maps[1].update(sd=3.0))


@sneaky("seen")
def counter():
    counter = collections.Counter(a=1)
    return reading(lambda: float(counter["a"]), lambda: counter.update("aa"))


@sneaky("seen")
def read_only_view_of_a_dictionary():
    table = {"sd": 1.0}
    view = types.MappingProxyType(table)
    return reading(lambda: view["sd"], lambda: table.update(sd=3.0))


@sneaky("seen")
def named_tuple_replaced():
    class Config(NamedTuple):
        sd: float
        more: dict

    config = Config(1.0, {"scale": 1.0})
    return reading(lambda: config.sd * config.more["scale"], lambda: config.more.update(scale=3.0))


@sneaky("seen")
def small_array_in_place():
    array = np.ones(3)
    return reading(lambda: float(array[1]), lambda: array.__setitem__(1, 3.0))


@sneaky("seen")
def one_element_of_a_large_array():
    array = np.ones(50_000)
    return reading(
        lambda: torch.tensor(array, dtype=torch.float32).mean(),
        lambda: array.__setitem__(33_333, 50_000.0),
    )


@sneaky("seen")
def array_behind_a_view():
    array = np.ones((4, 4))
    view = array[1]
    return reading(lambda: float(view.sum()), lambda: array.fill(2.0))


@sneaky("seen")
def array_in_a_dictionary_in_an_object():
    holder = types.SimpleNamespace(data={"sds": np.ones(5)})
    return reading(lambda: float(holder.data["sds"].max()), lambda: holder.data["sds"].fill(2.0))


@sneaky("eager", "holds more numbers than can be watched")
def more_than_can_be_watched():
    numbers = [1.0] * 200_000
    return reading(lambda: numbers[100_000], lambda: numbers.__setitem__(100_000, 3.0))


@sneaky("eager", "holds more numbers than can be watched")
def array_that_is_too_large_to_be_watched():
    array = np.ones(500_000)
    return reading(lambda: float(array[7]), lambda: array.__setitem__(7, 3.0))
