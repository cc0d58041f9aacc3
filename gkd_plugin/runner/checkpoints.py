"""Reading and writing weights: never unpickles arbitrary objects, never leaves a half-written file."""

from __future__ import annotations

import argparse
import os
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torchdistill.common.main_util import save_ckpt

from gkd_plugin.errors import ConfigError

__all__ = ["load_weights", "read_state_dict", "save_student", "save_upstream_checkpoint", "write_atomically"]

_NESTED = ("model", "state_dict")  # where torchdistill's checkpoints and those of timm's train.py hold the weights


def read_state_dict(path: str | Path, where: str) -> dict[str, Tensor]:
    """The weights in a ``.safetensors`` or ``state_dict`` file, or in a checkpoint of torchdistill or timm's train.py.

    Pickled files are read with torch's safe loader: tensors and ``argparse.Namespace`` (which both store).

    Args:
        path: the file, or an ``http(s)://`` address of a pickled ``state_dict``.
        where: key path or option that names the file, for messages.

    Raises:
        ConfigError: no such file, or nothing in it that can be read safely.
    """
    content = _read(str(path), where)
    nested = [content[key] for key in _NESTED if key in content] if isinstance(content, Mapping) else []
    state = next((value for value in nested if isinstance(value, Mapping)), content)
    if not _is_state_dict(state):
        raise ConfigError(f"{where}: {path} holds no state_dict")
    return dict(state)


def load_weights(model: nn.Module, path: str | Path, where: str) -> None:
    """Loads weights strictly.

    Raises:
        ConfigError: as :func:`read_state_dict`, or keys or shapes do not fit the model (says which).
    """
    state = read_state_dict(path, where)
    own = model.state_dict()
    problems = [
        *_listed("missing", own.keys() - state.keys()),
        *_listed("unexpected", state.keys() - own.keys()),
        *_listed(
            "of another shape",
            (
                f"{key} {list(state[key].shape)} (model: {list(own[key].shape)})"
                for key in own.keys() & state.keys()
                if own[key].shape != state[key].shape
            ),
        ),
    ]
    if problems:
        raise ConfigError(f"{where}: {path} does not fit {type(model).__name__}: {'; '.join(problems)}")
    model.load_state_dict(state)


def save_student(model: nn.Module, path: Path, name: str) -> None:
    """Writes the student's ``state_dict`` alone, as safetensors; shared tensors are written twice.

    The same weights give the same bytes, so there is one entry of metadata: the model's ``name`` (safetensors writes
    several in random order).
    """
    state = {key: value.detach().cpu().clone().contiguous() for key, value in model.state_dict().items()}
    # not save_file(), which makes the file readable for its owner alone
    write_atomically(path, lambda temporary: temporary.write_bytes(save(state, metadata={"model": name})))


def save_upstream_checkpoint(
    model: nn.Module, optimizer: Any, lr_scheduler: Any, best_value: float, path: Path
) -> None:
    """Writes a checkpoint in torchdistill's own format (``dst_ckpt``), which its scripts read."""
    write_atomically(
        path,
        lambda temporary: save_ckpt(model, optimizer, lr_scheduler, best_value, argparse.Namespace(), str(temporary)),
    )


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls ``write`` with a temporary file beside ``path``, then puts it in place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: str, where: str) -> Any:
    is_address = path.startswith(("http://", "https://"))
    if not is_address and not Path(path).is_file():
        raise ConfigError(f"{where}: no such file: {path}")
    try:
        if Path(path).suffix == ".safetensors" and not is_address:
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on files that it does not refuse
            if is_address:
                return torch.hub.load_state_dict_from_url(path, map_location="cpu", weights_only=True)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "it is no file of tensors; other objects are not unpickled, because that may run any code"
        raise ConfigError(f"{where}: {path} cannot be read as weights: {reason}") from error
    except Exception as error:  # broken files raise whatever the parser meets first
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{where}: {path} cannot be read as weights: {reason}") from error


def _is_state_dict(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


def _listed(what: str, keys: Any) -> list[str]:
    names = sorted(keys)
    shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    return [f"{len(names)} {what}: {shown}"] if names else []
