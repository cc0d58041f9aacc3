"""Reading and writing weights: never unpickles arbitrary objects, never leaves a half-written file."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchdistill.common.main_util import save_ckpt

from gkd_plugin.errors import ConfigError

__all__ = ["load_weights", "read_state_dict", "save_student", "save_upstream_checkpoint", "write_atomically"]


def read_state_dict(path: str | Path, where: str) -> dict[str, Tensor]:
    """The weights in a ``.safetensors`` file, a ``state_dict`` file or a torchdistill checkpoint.

    Pickled files are read with torch's safe loader: tensors and ``argparse.Namespace`` (which torchdistill stores).

    Args:
        path: the file, or an ``http(s)://`` address of a pickled ``state_dict``.
        where: key path or option that names the file, for messages.

    Raises:
        ConfigError: no such file, or nothing in it that can be read safely.
    """
    if str(path).startswith(("http://", "https://")):
        content: Any = torch.hub.load_state_dict_from_url(str(path), map_location="cpu", weights_only=True)
    elif not Path(path).is_file():
        raise ConfigError(f"{where}: no such file: {path}")
    else:
        content = _read_file(Path(path), where)
    state = content.get("model", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
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


def save_student(model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes the student's ``state_dict`` alone, as safetensors; shared tensors are written twice."""
    state = {key: value.detach().cpu().clone().contiguous() for key, value in model.state_dict().items()}
    write_atomically(path, lambda temporary: save_file(state, temporary, metadata=dict(metadata)))


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


def _read_file(path: Path, where: str) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{where}: {path} cannot be read as weights ({reason})") from error


def _listed(what: str, keys: Any) -> list[str]:
    names = sorted(keys)
    shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    return [f"{len(names)} {what}: {shown}"] if names else []
