"""The file of a fit: numbers and tensors by name, written as a whole and read with suspicion."""

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_elbo_lab.inference.storage.files import replacing

__all__ = ["read", "write"]

_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "num_steps": int,
    "seconds": (int, float),
    "compile_seconds": (int, float),
    "compilation": str,
    "losses": Tensor,
    "parameters": dict,
    "averaged": dict,
}
_LATER: Mapping[str, type] = {"buffers": dict}  # files of earlier versions lack these


def write(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a file, which is there as a whole or not at all.

    Args:
        path: of the file; an earlier one is replaced at the end.
        content: as `read` returns it.

    Raises:
        OSError: it cannot be written. An earlier file is as it was.
    """
    buffer = io.BytesIO()  # torch.save to a full disk ends the process
    torch.save(dict(content), buffer)
    with replacing(path) as fresh:
        fresh.write_bytes(buffer.getvalue())


def read(path: str | Path, device: torch.device | None = None) -> dict[str, Any]:
    """Read what `write` has written.

    Args:
        path: of the file.
        device: where tensors go; if None to where they were, or to the CPU if that is not there.

    Raises:
        ValueError: the file is something else, or broken.
        OSError: it cannot be read: there is none, or it is a folder.
    """
    data = _bytes(Path(path))
    place = _as_saved if device is None else device
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the error says better
            content = torch.load(io.BytesIO(data), weights_only=True, map_location=place)
    except Exception as error:  # of half a dozen kinds
        found = "it is empty" if not data else f"of its {len(data)} bytes: {_first_line(error)}"
        raise ValueError(
            f"'{path}' is not a file of Fit.save, or a broken one ({found}): pass the path that "
            "Fit.save was given."
        ) from error
    problem = _problem(content)
    if problem:
        raise ValueError(
            f"'{path}' is not a file of Fit.save: {problem}. Pass the path that Fit.save was given."
        )
    return {"buffers": {}, **content}


def _as_saved(storage: Any, location: str) -> Any:
    return storage if location.startswith("cuda") and not torch.cuda.is_available() else None


def _bytes(path: Path) -> bytes:
    if path.is_dir():
        raise IsADirectoryError(f"'{path}' is a folder: pass the file that Fit.save has written.")
    if not path.exists():
        raise FileNotFoundError(f"There is no file '{path}': pass one that Fit.save has written.")
    return path.read_bytes()


def _first_line(error: Exception) -> str:
    """Without PyTorch's advice to read a file that may run any program."""
    return f"{type(error).__name__}: {str(error).strip().split('. ')[0].splitlines()[0][:200]}"


def _problem(content: Any) -> str:
    """What a file that can be read has instead of a fit; empty if it has a fit."""
    if not isinstance(content, dict):
        return f"it holds a {type(content).__name__}, expected a dict"
    names, expected = content.keys(), _KINDS.keys() | _LATER.keys()
    if not _KINDS.keys() <= names <= expected:
        return f"it holds {sorted(map(str, names))}, expected {sorted(expected)}"
    for name, kind in {**_KINDS, **_LATER}.items():
        value = content.get(name, {})
        if not isinstance(value, kind):
            return f"its '{name}' is a {type(value).__name__}"
        if isinstance(value, dict):
            for key, tensor in value.items():
                if not (isinstance(key, str) and isinstance(tensor, Tensor)):
                    return (
                        f"its '{name}' has a {type(tensor).__name__} at {key!r}, expected tensors"
                    )
                if tensor.is_floating_point() and tensor.isnan().any() and name != "buffers":
                    return f"its '{name}' has {int(tensor.isnan().sum())} NaN in '{key}'"
    if content["losses"].dim() != 1 or len(content["losses"]) != content["num_steps"]:
        return (
            f"it has losses of shape {tuple(content['losses'].shape)} of {content['num_steps']} "
            "steps"
        )
    return ""
