"""What model and guide are called with, and what else they read that may change between calls."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from tests.compilation.programs_table.latents import X, normal_z, positive
from tests.compilation.programs_table.registry import Run, program


def late(call):
    """0 up to the fifth call, then 1, 2, ...: between comparisons with eager runs."""
    return max(0, call - 3)


def gaussian(mean, sd=1.0, x=X):
    """z ~ N(0, 1), x ~ N(z + mean, sd)."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z + mean, sd).expand(x.shape).to_event(x.dim()), obs=x)
    return z


@program("captured")
def keyword_arguments():
    def model(x, *, sd, shift=None):
        gaussian(0.0 if shift is None else shift, sd, x)

    return Run(model, normal_z, args=(X,), kwargs={"sd": torch.tensor(2.0), "shift": X[0]})


@program("captured")
def nested_arguments():
    def model(data, more):
        gaussian(more[1]["a"], more[0], data["x"])
        pyro.factor("other", data["y"].sum() * pyro.param("weight", torch.ones(())))

    data = {"y": X.cos(), "x": X}
    return Run(model, normal_z, args=(data, (torch.tensor(2.0), {"a": X[1], "none": None})))


@program("captured")
def none_as_an_argument():
    def model(x, weights):
        gaussian(0.0 if weights is None else weights, 1.0, x)

    return Run(model, normal_z, each=lambda call: (X, None if call % 2 else X.sin()))


@program("either")
def python_number_as_an_argument():
    return Run(lambda sd: gaussian(0.0, sd), normal_z, each=lambda call: (1.0 + call % 2,))


@program("either")
def python_number_that_is_always_new():
    return Run(lambda sd: gaussian(0.0, sd), normal_z, each=lambda call: (1.0 + 0.1 * call,))


@program("either")
def step_number_as_an_argument():
    def model(step):
        pyro.factor("annealed", 0.1 * step * gaussian(0.0))

    return Run(model, normal_z, each=lambda call: (call,))


@program("captured")
def true_and_one_are_different_arguments():
    def model(flag):
        gaussian(0.0 if flag is True else 1.0)

    return Run(model, normal_z, each=lambda call: (True if call % 2 else 1,))


@program("captured", same_stream=False)
def sites_that_follow_a_flag():
    def model(hierarchical):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0)) if hierarchical else 0.5
        gaussian(mean)

    def guide(hierarchical):
        if hierarchical:
            pyro.sample("mean", dist.Normal(pyro.param("mean_loc", torch.zeros(())), 0.5))
        normal_z()

    return Run(model, guide, each=lambda call: (call % 2 == 0,))


@program("captured", settled=False)
def parameter_that_comes_later():
    def guide(wide):
        loc = pyro.param("loc", torch.zeros(()))
        sd = positive("sd", 0.7) if wide else torch.tensor(0.3)
        pyro.sample("z", dist.Normal(loc, sd))

    return Run(lambda wide: gaussian(0.0), guide, each=lambda call: (call >= 2,))


@program("captured")
def string_as_an_argument():
    def model(kind):
        gaussian({"low": -1.0, "high": 1.0}[kind])

    return Run(model, normal_z, each=lambda call: ("low" if call % 2 else "high",))


@program("either")
def numpy_array_as_an_argument():
    def model(x):
        gaussian(0.0, 1.0, torch.as_tensor(x))

    def each(call):
        return (np.linspace(-1.0, late(call), 4, dtype=np.float32),)

    return Run(model, normal_z, each=each)


@program("either")
def numpy_array_changed_in_place():
    x = np.zeros(4, dtype=np.float32)

    def each(call):
        x[:] = late(call)
        return (x,)

    return Run(lambda x: gaussian(0.0, 1.0, torch.tensor(x)), normal_z, each=each)


@program("captured")
def memory_shared_with_numpy():
    shared = np.zeros(100, dtype=np.float32)
    x = torch.from_numpy(shared)

    def each(call):
        shared[:] = 0.1 * late(call)
        return (x,)

    return Run(lambda x: gaussian(0.0, 1.0, x), normal_z, each=each)


@program("captured")
def argument_memory_replaced():
    x = torch.zeros(100)

    def each(call):
        x.data = torch.full((100,), 0.1 * late(call))
        return (x,)

    return Run(lambda x: gaussian(0.0, 1.0, x), normal_z, each=each)


@program("either")
def large_numpy_array_in_the_closure():
    x = np.zeros(1000, dtype=np.float32)

    def model():
        gaussian(torch.tensor(x).mean(), 1.0)

    def each(call):
        x[:] = late(call)
        return ()

    return Run(model, normal_z, each=each)


@program("captured")
def dictionary_changed_between_calls():
    data = {"x": X, "sd": torch.tensor(1.0)}

    def each(call):
        data["x"], data["sd"] = X + late(call), torch.tensor(1.0 + late(call))
        return (data,)

    return Run(lambda data: gaussian(0.0, data["sd"], data["x"]), normal_z, each=each)


@program("either")
def dictionary_of_numbers_changed_between_calls():
    data = {"x": X, "sd": 1.0}

    def each(call):
        data["sd"] = 1.0 + late(call)
        return (data,)

    return Run(lambda data: gaussian(0.0, data["sd"], data["x"]), normal_z, each=each)


@program("either")
def list_of_numbers_as_an_argument():
    def model(x):
        gaussian(0.0, 1.0, torch.tensor(x))

    return Run(model, normal_z, each=lambda call: ([0.5, 1.0 + late(call) % 2],))


@program("either")
def object_of_tensors_as_an_argument():
    @dataclass
    class Data:
        x: torch.Tensor
        sd: float

    def model(data):
        gaussian(0.0, data.sd, data.x)

    return Run(model, normal_z, each=lambda call: (Data(X + late(call), 1.0 + late(call)),))


@program("either")
def object_changed_between_calls():
    @dataclass
    class Data:
        x: torch.Tensor
        sd: float

    data = Data(X, 1.0)

    def each(call):
        data.x, data.sd = X + late(call), 1.0 + late(call)
        return (data,)

    return Run(lambda data: gaussian(0.0, data.sd, data.x), normal_z, each=each)


@program("captured")
def one_tensor_twice():
    def model(x, y):
        gaussian(x.sum(), 1.0, y)

    return Run(model, normal_z, each=lambda call: (X, X if call < 4 else X.cos()))


@program("captured")
def argument_that_the_model_holds_too():
    everything = X.clone()

    def model(x):
        gaussian(everything.mean(), 1.0, x)

    return Run(model, normal_z, each=lambda call: (everything if call < 4 else X.cos(),))


@program("captured")
def parameter_as_an_argument():
    def model(shift):
        gaussian(shift + pyro.param("shift"))

    def each(call):
        shift = pyro.param("shift", torch.tensor(0.3))
        return (shift.detach() if call < 4 else torch.tensor(1.0),)

    return Run(model, normal_z, each=each)


@program("captured")
def views_strides_and_addresses():
    wide = torch.linspace(-1.0, 2.0, 40)
    column, constant = wide.reshape(4, 10)[:, 3], wide[9].expand(4)
    views = [wide[:4], wide[1:5], wide[3:7], wide[::10], column, constant, wide[36:]]
    return Run(lambda x: gaussian(0.0, 1.0, x), normal_z, each=lambda call: (views[call],))


@program("captured")
def transposed_matrix():
    square = torch.arange(9.0).reshape(3, 3).sin()

    def each(call):
        return (square if call % 2 else square.T,)

    return Run(lambda x: gaussian(x[0] @ x[1], 1.0, x), normal_z, each=each)


@program("captured")
def dtypes_and_ranks_that_change():
    xs = [X, X.double(), X[0], X.reshape(2, 2), (10 * X).long(), X.half(), X > 0]

    def model(x):
        gaussian(0.0, 1.0, x.float())

    return Run(model, normal_z, each=lambda call: (xs[call],))


@program("either")
def tensor_argument_read_as_a_number():
    def model(n):
        gaussian(float(n))  # here

    return Run(model, normal_z, each=lambda call: (torch.tensor(late(call)),))


@program("either", reason="shape")
def mask_as_an_argument():
    """How many it selects, and so the divisor of the mean, differs from call to call."""

    def model(seen):
        z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z[seen].mean(), 1.0), obs=X[0])

    def guide(seen):
        loc = pyro.param("loc", torch.zeros(4))
        pyro.sample("z", dist.Normal(loc, positive("sd", 0.5)).to_event(1))

    return Run(model, guide, each=lambda call: (torch.arange(4) <= 2 - late(call) % 3,))


@program("captured")
def closure_tensor_changed_in_place():
    x = X.clone()

    def each(call):
        x.copy_(X + late(call))
        return ()

    return Run(lambda: gaussian(0.0, 1.0, x), normal_z, each=each)


@program("either")
def closure_tensor_replaced():
    x = X

    def model():
        gaussian(0.0, 1.0, x)

    def each(call):
        nonlocal x
        x = X + late(call)
        return ()

    return Run(model, normal_z, each=each)


@program("either")
def closure_number_replaced():
    """Annealing by hand."""
    sd = 1.0

    def model():
        gaussian(0.0, sd)

    def each(call):
        nonlocal sd
        sd = 1.0 + late(call)
        return ()

    return Run(model, normal_z, each=each)


@program("either")
def closure_list_changed():
    sds = [1.0]

    def each(call):
        sds[0] = 1.0 + late(call)
        return ()

    return Run(lambda: gaussian(0.0, sds[0]), normal_z, each=each)


SD = 1.0


@program("either")
def global_number_replaced():
    def model():
        gaussian(0.0, SD)

    def each(call):
        global SD
        SD = 1.0 + late(call)
        return ()

    return Run(model, normal_z, each=each)


@program("either")
def attribute_of_a_module_replaced():
    class Model(torch.nn.Module):
        sd = 1.0

        def forward(self):
            gaussian(0.0, self.sd)

    model = Model()

    def each(call):
        model.sd = 1.0 + late(call)
        return ()

    return Run(model, normal_z, each=each)


@program("either")
def attribute_of_an_object_replaced():
    class Model:
        x, sd = X, 1.0

        def __call__(self):
            gaussian(0.0, self.sd, self.x)

    model = Model()

    def each(call):
        model.sd, model.x = 1.0 + late(call), X + late(call)
        return ()

    return Run(model, normal_z, each=each)


@program("either")
def attribute_behind_a_bound_method_replaced():
    class Owner:
        sd = 1.0

        def model(self):
            gaussian(0.0, self.sd)

    owner = Owner()

    def each(call):
        owner.sd = 1.0 + late(call)
        return ()

    return Run(owner.model, normal_z, each=each)


@program("either")
def default_dtype_changed():
    def model():
        gaussian(torch.ones(2).sum() / 3, 1.0, X.to(torch.get_default_dtype()))

    def guide():
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 0.5))

    def each(call):
        torch.set_default_dtype(torch.float64 if call > 3 else torch.float32)
        return ()

    return Run(model, guide, each=each)


@program("captured")
def store_cleared_and_filled_anew():
    def each(call):
        if call == 4:
            pyro.clear_param_store()
            pyro.param("z_loc", torch.tensor(0.9))
        return ()

    return Run(lambda: gaussian(0.0), normal_z, each=each)


@program("captured")
def store_loaded():
    def each(call):
        store = pyro.get_param_store()
        if call == 4:
            store.set_state(store.get_state())
            store["z_loc"] = torch.tensor(0.9)
        return ()

    return Run(lambda: gaussian(0.0), normal_z, each=each)


@program("captured")
def parameter_memory_replaced():
    def each(call):
        leaf = pyro.get_param_store()._params.get("z_loc")
        if leaf is not None and call > 3:
            leaf.data = leaf.data.clone() + 0.1
        return ()

    return Run(lambda: gaussian(0.0), normal_z, each=each)


@program("either")
def sparse_matrix():
    x = torch.eye(4).to_sparse()

    def model(x):
        gaussian((x @ X[:, None]).sum())

    return Run(model, normal_z, args=(x,))


@program("either")
def complex_numbers():
    def model(x):
        gaussian(x.abs().sum() + torch.fft.fft(x).real.mean())

    return Run(model, normal_z, args=(torch.complex(X, X.sin()),))


@program("either")
def tensor_of_a_subclass():
    class Labeled(torch.Tensor):
        pass

    return Run(lambda x: gaussian(0.0, 1.0, x), normal_z, args=(X.as_subclass(Labeled),))


@program("captured")
def named_tuple_as_an_argument():
    class Data(NamedTuple):
        x: torch.Tensor
        sd: torch.Tensor

    def each(call):
        return (Data(X + late(call), torch.tensor(1.0 + call)),)

    return Run(lambda data: gaussian(0.0, data.sd, data.x), normal_z, each=each)
