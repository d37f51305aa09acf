"""Files of fits: written as a whole, read with suspicion."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor

from pyro_elbo_lab.inference.fitting.fit import fit
from pyro_elbo_lab.inference.fitting.result import Fit
from pyro_elbo_lab.objectives.lower_bounds import StandardELBO
from pyro_elbo_lab.programs.state import store_state

Y = torch.tensor([1.0, 2.0, 3.0])


def model(y: Tensor) -> None:
    m = pyro.sample("m", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(m.sum(), 1.0), obs=y)


def fitted() -> Fit:
    return fit(
        model,
        AutoNormal(model),
        Y,
        objective=StandardELBO(),
        num_steps=3,
        compile=False,
        progress=False,
    )


def content(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def changed(**changes: Any) -> Callable[[Path], Any]:
    return lambda path: torch.save({**content(path), **changes}, path)


def with_parameter(change: Callable[[Tensor], Tensor]) -> Callable[[Path], Any]:
    def write(path: Path) -> None:
        parameters = content(path)["parameters"]
        parameters["AutoNormal.locs.m"] = change(parameters["AutoNormal.locs.m"])
        changed(parameters=parameters)(path)

    return write


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "not a file of Fit.save.*it is empty"),
    "truncated": (
        lambda path: path.write_bytes(path.read_bytes()[:-300]),
        "not a file of Fit.save, or a broken one",
    ),
    "of text": (lambda path: path.write_text("loss,seconds\n1,2\n"), "not a file of Fit.save"),
    "of NUL": (lambda path: path.write_bytes(b"\0" * 500), "not a file of Fit.save"),
    "pickled": (lambda path: path.write_bytes(pickle.dumps(range(3))), "not a file of Fit.save"),
    "a tensor": (
        lambda path: torch.save(torch.ones(3), path),
        "it holds a Tensor, expected a dict",
    ),
    "a state_dict": (
        lambda path: torch.save({"weight": torch.ones(3)}, path),
        r"it holds \['weight'\], expected \['averaged', 'buffers',",
    ),
    "losses as a list": (changed(losses=[1.0, 2.0, 3.0]), "its 'losses' is a list"),
    "too few losses": (changed(num_steps=4), r"losses of shape \(3,\) of 4 steps"),
    "numbers": (changed(parameters={"AutoNormal.locs.m": 1.0}), "a float at 'AutoNormal.locs.m'"),
    "NaN": (with_parameter(lambda x: x * torch.nan), "2 NaN in 'AutoNormal.locs.m'"),
    "another dtype": (
        with_parameter(Tensor.double),
        "Parameter 'AutoNormal.locs.m' is torch.float64 in the fit, but torch.float32",
    ),
    "another shape": (
        with_parameter(lambda x: x.expand(3, 2).clone()),
        r"'AutoNormal.locs.m' has the shape \(3, 2\) in the fit, but \(2,\)",
    ),
    "a buffer": (changed(buffers={"net.mean": torch.ones(2)}), "The fit has the buffer 'net.mean'"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_refused_and_nothing_is_written(kind: str, tmp_path: Path) -> None:
    fitted().save(tmp_path / "fit.pt")
    write, message = BROKEN[kind]
    write(tmp_path / "fit.pt")
    guide = AutoNormal(model)
    guide(Y)
    before = {name: x.clone() for name, x in guide.state_dict().items()}
    store = {name: x.detach().clone() for name, x in store_state()[0].items()}
    with pytest.raises(ValueError, match=message) as caught:
        Fit.load(tmp_path / "fit.pt", model, guide, Y, objective=StandardELBO())
    assert "weights_only" not in str(caught.value)
    for name, x in guide.state_dict().items():
        torch.testing.assert_close(x, before[name], rtol=0, atol=0)
    now = store_state()[0]
    assert now.keys() == store.keys()
    for name, x in store.items():
        torch.testing.assert_close(now[name].detach(), x, rtol=0, atol=0)


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    objective = StandardELBO()
    with pytest.raises(IsADirectoryError, match=r"is a folder: pass the file"):
        Fit.load(tmp_path, model, AutoNormal(model), Y, objective=objective)
    with pytest.raises(FileNotFoundError, match=r"There is no file '.*none.pt'"):
        Fit.load(tmp_path / "none.pt", model, AutoNormal(model), Y, objective=objective)
    result = fitted()
    with pytest.raises(IsADirectoryError):
        result.save(tmp_path)
    with pytest.raises(FileNotFoundError):
        result.save(tmp_path / "nowhere" / "fit.pt")


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh store", "same session"])
def test_a_file_of_another_guide_is_refused(fresh: bool, tmp_path: Path) -> None:
    fitted().save(tmp_path / "fit.pt")
    if fresh:
        pyro.clear_param_store()
    guide = AutoDelta(model)
    guide(Y)
    before = guide.median(Y)["m"].clone()
    message = "has the parameters 'AutoNormal.locs.m', .*but model and guide have 'AutoDelta.m'"
    with pytest.raises(ValueError, match=message):
        Fit.load(tmp_path / "fit.pt", model, guide, Y, objective=StandardELBO())
    torch.testing.assert_close(guide.median(Y)["m"], before)


def test_a_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    result = fitted()
    result.save(tmp_path / "fit.pt")
    earlier = content(tmp_path / "fit.pt")
    del earlier["buffers"]
    torch.save(earlier, tmp_path / "fit.pt")
    guide = AutoNormal(model)
    loaded = Fit.load(tmp_path / "fit.pt", model, guide, Y, objective=StandardELBO())
    torch.testing.assert_close(dict(loaded.parameters), dict(result.parameters))


def test_a_save_that_fails_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fit.pt"
    result = fitted()
    result.save(path)
    earlier = path.read_bytes()

    def full(self: Path, data: Any) -> int:
        with self.open("wb") as file:
            file.write(bytes(data)[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device"):
        result.save(path)
    assert path.read_bytes() == earlier
    assert list(tmp_path.iterdir()) == [path]
