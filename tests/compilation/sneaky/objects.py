"""Numbers in attributes of classes, objects and modules."""

import argparse
import enum
import functools
import types
import weakref
from dataclasses import dataclass, field
from typing import ClassVar

from tests.compilation.sneaky.registry import Case, gaussian, guide, reading, sneaky


@sneaky("seen")
def class_attribute():
    class Config:
        sd = 1.0

    return reading(lambda: Config.sd, lambda: setattr(Config, "sd", 3.0))


@sneaky("seen")
def attribute_of_a_base_class():
    class Base:
        sd = 1.0

    class Config(Base):
        pass

    return reading(lambda: Config.sd, lambda: setattr(Base, "sd", 3.0))


@sneaky("seen")
def attribute_that_hides_that_of_a_base_class():
    class Base:
        sd = 1.0

    class Config(Base):
        pass

    config = Config()
    return reading(lambda: config.sd, lambda: setattr(Config, "sd", 3.0))


@sneaky("seen")
def attribute_that_hides_that_of_the_class():
    class Config:
        sd = 1.0

    config = Config()
    return reading(lambda: config.sd, lambda: setattr(config, "sd", 3.0))


@sneaky("seen")
def nested_class():
    class Config:
        class Noise:
            sd = 1.0

    return reading(lambda: Config.Noise.sd, lambda: setattr(Config.Noise, "sd", 3.0))


@sneaky("seen")
def dictionary_of_a_class():
    class Config:
        values: ClassVar = {"sd": 1.0}

    return reading(lambda: Config.values["sd"], lambda: Config.values.update(sd=3.0))


@sneaky("seen")
def attribute_of_a_metaclass():
    class Meta(type):
        sd = 1.0

    class Config(metaclass=Meta):
        pass

    return reading(lambda: Config.sd, lambda: setattr(Meta, "sd", 3.0))


@sneaky("seen")
def slots():
    class Config:
        __slots__ = ("sd",)

    config = Config()
    config.sd = 1.0
    return reading(lambda: config.sd, lambda: setattr(config, "sd", 3.0))


@sneaky("seen")
def slots_of_a_base_class():
    class Base:
        __slots__ = ("sd",)

    class Config(Base):
        __slots__ = ("other",)

    config = Config()
    config.sd = 1.0
    return reading(lambda: config.sd, lambda: setattr(config, "sd", 3.0))


@sneaky("seen")
def nested_namespaces():
    space = types.SimpleNamespace(model=types.SimpleNamespace(noise=types.SimpleNamespace(sd=1.0)))
    return reading(lambda: space.model.noise.sd, lambda: setattr(space.model.noise, "sd", 3.0))


@sneaky("seen")
def command_line_options():
    options = argparse.Namespace(sd=1.0, more=argparse.Namespace(sd=2.0))
    return reading(lambda: options.sd * options.more.sd, lambda: setattr(options.more, "sd", 3.0))


@sneaky("seen")
def objects_in_a_dictionary():
    table = {"noise": types.SimpleNamespace(sd=1.0)}
    return reading(lambda: table["noise"].sd, lambda: setattr(table["noise"], "sd", 3.0))


@sneaky("seen")
def object_in_a_dictionary_replaced():
    table = {"noise": types.SimpleNamespace(sd=1.0)}
    return reading(
        lambda: table["noise"].sd, lambda: table.update(noise=types.SimpleNamespace(sd=3.0))
    )


@sneaky("seen")
def objects_in_lists_in_objects():
    @dataclass
    class Layer:
        sd: float

    @dataclass
    class Net:
        layers: list

    net = Net([Layer(1.0), Layer(2.0)])
    return reading(
        lambda: sum(layer.sd for layer in net.layers), lambda: setattr(net.layers[1], "sd", 4.0)
    )


@sneaky("seen")
def dataclass_with_defaults():
    @dataclass
    class Config:
        sd: float = 1.0
        more: dict = field(default_factory=lambda: {"scale": 1.0})

    config = Config()
    return reading(
        lambda: config.sd * config.more["scale"], lambda: config.more.__setitem__("scale", 2.0)
    )


@sneaky("seen")
def frozen_dataclass_replaced():
    @dataclass(frozen=True)
    class Config:
        sd: float = 1.0

    holder = types.SimpleNamespace(config=Config())
    return reading(lambda: holder.config.sd, lambda: setattr(holder, "config", Config(3.0)))


@sneaky("seen")
def value_of_an_enumeration():
    class Noise(enum.Enum):
        LOW = 1.0
        HIGH = 3.0

    return reading(lambda: Noise.LOW.value, lambda: setattr(Noise.LOW, "_value_", 5.0))


@sneaky("seen")
def member_of_an_enumeration_replaced():
    class Noise(enum.Enum):
        LOW = 1.0
        HIGH = 3.0

    now = {"noise": Noise.LOW}
    return reading(lambda: now["noise"].value, lambda: now.update(noise=Noise.HIGH))


@sneaky("seen")
def property_of_a_class():
    class Config:
        def __init__(self):
            self._log_sd = 0.0

        @property
        def sd(self):
            return 2.0**self._log_sd

    config = Config()
    return reading(lambda: config.sd, lambda: setattr(config, "_log_sd", 2.0))


@sneaky("seen")
def property_replaced():
    class Config:
        sd = property(lambda self: 1.0)

    config = Config()
    return reading(lambda: config.sd, lambda: setattr(Config, "sd", property(lambda self: 3.0)))


@sneaky("seen")
def attributes_by_getattr():
    class Config:
        def __init__(self):
            self.table = {"sd": 1.0}

        def __getattr__(self, name):
            return self.table[name]

    config = Config()
    return reading(lambda: config.sd, lambda: config.table.update(sd=3.0))


@sneaky("seen")
def attributes_by_computed_names():
    config = types.SimpleNamespace(sd_1=1.0, sd_2=2.0)
    return reading(
        lambda: sum(getattr(config, f"sd_{i}") for i in (1, 2)),
        lambda: setattr(config, "sd_2", 4.0),
    )


@sneaky("seen")
def attributes_by_vars():
    config = types.SimpleNamespace(low=1.0, high=2.0)
    return reading(lambda: sum(vars(config).values()), lambda: setattr(config, "high", 4.0))


@sneaky("seen")
def descriptor():
    class Number:
        value = 1.0

        def __get__(self, instance, owner=None):
            return self.value

    class Config:
        sd = Number()

    config = Config()
    return reading(lambda: config.sd, lambda: setattr(vars(Config)["sd"], "value", 3.0))


@sneaky("seen")
def object_that_is_called():
    class Model:
        def __init__(self):
            self.parts = {"noise": {"sd": 1.0}}

        def __call__(self):
            gaussian(0.0, self.parts["noise"]["sd"])

    model = Model()
    return Case(model, guide, change=lambda: model.parts["noise"].update(sd=3.0))


@sneaky("seen")
def behind_a_weak_reference():
    class Config:
        sd = 1.0

    config = Config()
    reference = weakref.ref(config)

    def change():
        config.sd = 3.0

    return reading(lambda: reference().sd, change)


@sneaky("seen")
def behind_a_static_method():
    class Noise:
        sd = 1.0

        @staticmethod
        def read():
            return Noise.sd

        @classmethod
        def twice(cls):
            return 2 * cls.sd

    return reading(lambda: Noise.read() * Noise.twice(), lambda: setattr(Noise, "sd", 3.0))


@sneaky("seen")
def cached_property_forgotten():
    class Config:
        log_sd = 0.0

        @functools.cached_property
        def sd(self):
            return 2.0**self.log_sd

    config = Config()

    def change():
        config.log_sd = 2.0
        del config.sd

    return reading(lambda: config.sd, change)


@sneaky("seen")
def attribute_of_a_function():
    def read():
        return read.sd

    read.sd = 1.0
    return reading(read, lambda: setattr(read, "sd", 3.0))
