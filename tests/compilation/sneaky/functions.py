"""Functions, methods, hooks and modules that are replaced, and what they bring with them."""

import builtins
import functools
import sys
import types

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroSample
from torch import nn

from tests.compilation.sneaky.registry import Case, X, gaussian, guide, reading, sneaky


def helper_module(name, text):
    module = types.ModuleType(name)
    exec(compile(text, f"{name}.py", "exec"), vars(module))
    sys.modules[name] = module
    return module


@sneaky("seen")
def default_of_an_argument():
    def read(sd=1.0):
        return sd

    return reading(read, lambda: setattr(read, "__defaults__", (3.0,)))


@sneaky("seen")
def default_of_a_keyword():
    def read(*, sd=1.0):
        return sd

    return reading(read, lambda: read.__kwdefaults__.update(sd=3.0))


@sneaky("seen")
def default_that_is_a_list():
    def read(sds=[1.0]):  # noqa: B006
        return sds[0]

    return reading(read, lambda: read.__defaults__[0].__setitem__(0, 3.0))


@sneaky("seen")
def default_that_is_an_object():
    def read(config=types.SimpleNamespace(sd=1.0)):  # noqa: B008
        return config.sd

    return reading(read, lambda: setattr(read.__defaults__[0], "sd", 3.0))


@sneaky("seen")
def code_of_a_function():
    def read():
        return 1.0

    return reading(read, lambda: setattr(read, "__code__", (lambda: 3.0).__code__))


NOISE = [1.0]


def quiet():
    return NOISE[0]


def global_noise():
    return 1.0


@sneaky("seen")
def global_function_replaced():
    globals().update(global_noise=quiet)
    NOISE[0] = 1.0
    return reading(lambda: global_noise(), lambda: globals().update(global_noise=lambda: 3.0))


@sneaky("seen")
def global_behind_a_function():
    NOISE[0] = 1.0
    return reading(lambda: quiet(), lambda: NOISE.__setitem__(0, 3.0))


@sneaky("seen")
def builtin_shadowed():
    globals().pop("max", None)
    return reading(lambda: max(1.0, 0.5), lambda: globals().update(max=lambda *_: 3.0))


@sneaky("seen")
def builtin_replaced():
    builtins.sneaky_noise = lambda: 1.0
    return reading(
        lambda: sneaky_noise(),  # noqa: F821
        lambda: setattr(builtins, "sneaky_noise", lambda: 3.0),
    )


@sneaky("seen")
def library_function_replaced():
    torch.sneaky_noise = lambda: 1.0
    return reading(
        lambda: torch.sneaky_noise(), lambda: setattr(torch, "sneaky_noise", lambda: 3.0)
    )


@sneaky("seen")
def global_of_a_helper_module():
    helper = helper_module("sneaky_one", "sd = 1.0\ndef read():\n    return sd\n")
    return reading(lambda: helper.read(), lambda: setattr(helper, "sd", 3.0))


@sneaky("seen")
def attribute_of_a_helper_module():
    helper = helper_module("sneaky_two", "sd = 1.0\n")
    return reading(lambda: helper.sd, lambda: setattr(helper, "sd", 3.0))


@sneaky("seen")
def helper_of_a_helper():
    inner = helper_module("sneaky_inner", "config = {'sd': 1.0}\n")
    text = "import sneaky_inner\ndef read():\n    return sneaky_inner.config['sd']\n"
    outer = helper_module("sneaky_outer", text)
    return reading(lambda: outer.read(), lambda: inner.config.update(sd=3.0))


@sneaky("seen")
def module_imported_inside():
    helper = helper_module("sneaky_three", "sd = 1.0\n")

    def read():
        import sneaky_three  # type: ignore[import-not-found]

        return sneaky_three.sd

    return reading(read, lambda: setattr(helper, "sd", 3.0))


@sneaky("seen")
def name_imported_inside():
    helper = helper_module("sneaky_four", "sd = 1.0\n")

    def read():
        from sneaky_four import sd  # type: ignore[import-not-found]

        return sd

    return reading(read, lambda: setattr(helper, "sd", 3.0))


@sneaky("seen")
def method_of_a_class_replaced():
    class Noise:
        def read(self):
            return 1.0

    noise = Noise()
    return reading(lambda: noise.read(), lambda: setattr(Noise, "read", lambda self: 3.0))


@sneaky("seen")
def method_of_an_object_replaced():
    class Noise:
        def read(self):
            return 1.0

    noise = Noise()
    return reading(lambda: noise.read(), lambda: setattr(noise, "read", lambda: 3.0))


@sneaky("seen")
def class_of_an_object_replaced():
    class Narrow:
        def read(self):
            return 1.0

    class Wide:
        def read(self):
            return 3.0

    noise = Narrow()
    return reading(lambda: noise.read(), lambda: setattr(noise, "__class__", Wide))


@sneaky("seen")
def decorator_with_a_number():
    def scaled(function):
        @functools.wraps(function)
        def wrapper(*args):
            return wrapper.scale * function(*args)

        wrapper.scale = 1.0
        return wrapper

    @scaled
    def read():
        return 1.0

    return reading(lambda: read(), lambda: setattr(read, "scale", 3.0))


@sneaky("seen")
def decorator_with_a_closure():
    settings = {"scale": 1.0}

    def scaled(function):
        return functools.wraps(function)(lambda: settings["scale"] * function())

    read = scaled(lambda: 1.0)
    return reading(lambda: read(), lambda: settings.update(scale=3.0))


@sneaky("seen")
def behind_no_grad():
    settings = {"sd": 1.0}

    @torch.no_grad()
    def read():
        return settings["sd"]

    return reading(lambda: read(), lambda: settings.update(sd=3.0))


@sneaky("seen")
def keywords_of_a_partial():
    read = functools.partial(lambda sd: sd, sd=1.0)
    return reading(lambda: read(), lambda: read.keywords.update(sd=3.0))


@sneaky("seen")
def model_that_is_a_partial():
    settings = {"sd": 1.0}
    model = functools.partial(lambda settings: gaussian(0.0, settings["sd"]), settings)
    return Case(model, guide, change=lambda: settings.update(sd=3.0))


@sneaky("seen")
def cache_cleared():
    settings = {"sd": 1.0}

    @functools.lru_cache
    def read():
        return settings["sd"]

    def change():
        settings["sd"] = 3.0
        read.cache_clear()

    return reading(lambda: read(), change)


@sneaky("seen")
def cache_of_its_own_emptied():
    settings, cache = {"sd": 1.0}, {}

    def read():
        if "sd" not in cache:
            cache["sd"] = settings["sd"]
        return cache["sd"]

    def change():
        settings["sd"] = 3.0
        cache.clear()

    return reading(read, change)


def net_case(net, change):
    def model():
        gaussian(net(X[:1]).sum().detach())

    def learning():
        pyro.module("net", net)
        return guide()

    return Case(model, learning, change=change)


@sneaky("seen")
def submodule_replaced():
    net = nn.Sequential(nn.Flatten(0), nn.Softplus())
    return net_case(net, lambda: net.__setitem__(1, nn.Sigmoid()))


@sneaky("seen")
def submodule_with_another_number():
    net = nn.Sequential(nn.LeakyReLU(0.1), nn.Hardtanh(-0.3, 0.3))
    return net_case(net, lambda: setattr(net[1], "max_val", 0.2))


@sneaky("seen")
def submodule_appended():
    net = nn.Sequential(nn.Softplus())
    return net_case(net, lambda: net.append(nn.Sigmoid()))


@sneaky("seen")
def submodule_in_eval_mode():
    net = nn.Sequential(nn.Sequential(nn.Dropout(0.5)), nn.Softplus())
    return net_case(net, lambda: net[0].eval())


@sneaky("seen")
def probability_of_dropout():
    net = nn.Sequential(nn.Dropout(0.0))
    return net_case(net, lambda: setattr(net[0], "p", 1.0))


@sneaky("seen")
def forward_hook_added():
    net = nn.Sequential(nn.Softplus())
    return net_case(net, lambda: net[0].register_forward_hook(lambda m, args, out: 2 * out))


@sneaky("seen")
def forward_hook_removed():
    net = nn.Sequential(nn.Softplus())
    handle = net.register_forward_hook(lambda m, args, out: 2 * out)
    return net_case(net, handle.remove)


@sneaky("seen")
def hook_before_the_forward():
    net = nn.Sequential(nn.Softplus())
    return net_case(net, lambda: net[0].register_forward_pre_hook(lambda m, args: (args[0] + 1,)))


@sneaky("seen")
def number_behind_a_hook():
    net, settings = nn.Sequential(nn.Softplus()), {"scale": 1.0}
    net.register_forward_hook(lambda m, args, out: settings["scale"] * out)
    return net_case(net, lambda: settings.update(scale=2.0))


@sneaky("seen")
def forward_of_a_module_replaced():
    net = nn.Sequential(nn.Softplus())
    return net_case(net, lambda: setattr(net[0], "forward", lambda x: 3 * x))


@sneaky("seen")
def buffer_replaced():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("shift", torch.zeros(1))

        def forward(self, x):
            return x + self.shift

    net = Net()
    return net_case(net, lambda: setattr(net, "shift", torch.ones(1)))


@sneaky("seen")
def scale_of_a_handler():
    handler = poutine.scale(gaussian, scale=0.5)
    return Case(handler, guide, change=lambda: setattr(handler.args[0], "scale", 2.0))


@sneaky("seen")
def parameter_of_a_distribution():
    prior = dist.Normal(torch.zeros(()), torch.ones(()))

    def model():
        z = pyro.sample("z", prior)
        pyro.sample("x", dist.Normal(z, 1.0).expand([4]).to_event(1), obs=X)

    return Case(model, guide, change=lambda: setattr(prior, "scale", torch.tensor(3.0)))


@sneaky("seen")
def prior_of_a_pyro_module():
    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.z = PyroSample(lambda self: dist.Normal(0.0, 1.0))

        def forward(self):
            pyro.sample("x", dist.Normal(self.z, 1.0).expand([4]).to_event(1), obs=X)

    model = Model()

    def change():
        model.z = PyroSample(lambda self: dist.Normal(1.0, 3.0))

    return Case(model, guide, change=change)
