"""Reading and writing weights: never unpickles arbitrary objects, never leaves a half-written file."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torchdistill.common.main_util import save_ckpt

from gkd_plugin.data import ImageInput
from gkd_plugin.data.transforms import trained_with
from gkd_plugin.errors import ConfigError

__all__ = ["WeightFile", "read_weights", "save_student", "save_upstream_checkpoint", "write_atomically"]

# where checkpoints hold the weights: of timm's train.py (averaged ones first, as timm reads them), torchdistill, DINO
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher", "encoder", "backbone")
_METADATA = "gkd_plugin"


@dataclass(frozen=True)
class WeightFile:
    """What a file of weights holds.

    Attributes:
        state: name → tensor.
        image_input: what images the weights were trained with; ``None`` where the file does not say.
        epochs: trained and planned, at the time of writing; ``None`` where the file does not say.
        classes: names of the classes that the weights were trained with, in the order of their labels; likewise.
    """

    state: dict[str, Tensor]
    image_input: ImageInput | None
    epochs: tuple[int, int] | None = None
    classes: list[str] | None = None


def read_weights(path: str | Path, where: str) -> WeightFile:
    """The weights in a ``.safetensors`` or ``state_dict`` file, or in a checkpoint of torchdistill or timm's train.py.

    Pickled files are read with torch's safe loader: tensors and ``argparse.Namespace`` (which both store).

    Args:
        path: the file, or an ``http(s)://`` address of a pickled ``state_dict``.
        where: key path or option that names the file, for messages.

    Raises:
        ConfigError: no such file, or nothing in it that can be read safely.
    """
    content, about = _read(str(path), where)
    nested = [content[key] for key in _NESTED if key in content] if isinstance(content, Mapping) else []
    state = next((value for value in nested if _is_state_dict(value)), content)
    if not _is_state_dict(state):
        raise ConfigError(f"{where}: {path} holds no state_dict")
    image_input, epochs, classes = (about.get(key) for key in ("image_input", "epochs", "classes"))
    return WeightFile(
        dict(state),
        trained_with(image_input) if isinstance(image_input, Mapping) else None,
        (int(epochs[0]), int(epochs[1])) if isinstance(epochs, list | tuple) and len(epochs) == 2 else None,
        [str(name) for name in classes] if isinstance(classes, list | tuple) else None,
    )


def save_student(
    model: nn.Module,
    path: Path,
    name: str,
    image_input: ImageInput | None = None,
    *,
    epochs: tuple[int, int] | None = None,
    classes: list[str] | None = None,
) -> None:
    """Writes the student's ``state_dict`` alone, as safetensors; shared tensors are written twice.

    The same weights give the same bytes, so there is one entry of metadata (safetensors writes several in random
    order): as JSON, the model's ``name``, what images and classes it was trained with, and for how many epochs of
    those planned.
    """
    about: dict[str, Any] = {"model": name, "image_input": image_input.as_dict() if image_input else None}
    about |= {key: value for key, value in (("epochs", epochs), ("classes", classes)) if value is not None}
    state = {key: value.detach().cpu().clone().contiguous() for key, value in model.state_dict().items()}
    # not save_file(), which makes the file readable for its owner alone
    write_atomically(
        path, lambda temporary: temporary.write_bytes(save(state, metadata={_METADATA: json.dumps(about)}))
    )


def save_upstream_checkpoint(
    model: nn.Module,
    optimizer: Any,
    lr_scheduler: Any,
    best_value: float,
    path: Path,
    *,
    image_input: ImageInput | None = None,
    epochs: tuple[int, int] | None = None,
    classes: list[str] | None = None,
) -> None:
    """Writes a checkpoint in torchdistill's own format (``dst_ckpt``), which its scripts read.

    What images and classes the model was trained with, and for how many epochs of those planned, goes into its
    ``args``.
    """
    about = {"image_input": image_input.as_dict() if image_input else None, "epochs": epochs, "classes": classes}
    args = argparse.Namespace(**{key: value for key, value in about.items() if value is not None})
    write_atomically(
        path, lambda temporary: save_ckpt(model, optimizer, lr_scheduler, best_value, args, str(temporary))
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


def _read(path: str, where: str) -> tuple[Any, Mapping[str, Any]]:
    """A file's content, and what it says of how its weights were trained."""
    is_address = path.startswith(("http://", "https://"))
    if not is_address and not Path(path).is_file():
        raise ConfigError(f"{where}: no such file: {path}")
    try:
        if Path(path).suffix == ".safetensors" and not is_address:
            return load_file(path), _record_of_safetensors(path)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on files that it does not refuse
            if is_address:
                content = torch.hub.load_state_dict_from_url(path, map_location="cpu", weights_only=True)
            else:
                content = torch.load(path, map_location="cpu", weights_only=True)
        args = content.get("args") if isinstance(content, Mapping) else None
        return content, vars(args) if isinstance(args, argparse.Namespace) else {}
    except pickle.UnpicklingError as error:
        reason = "it is no file of tensors; other objects are not unpickled, because that may run any code"
        raise ConfigError(f"{where}: {path} cannot be read as weights: {reason}") from error
    except Exception as error:  # broken files raise whatever the parser meets first
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{where}: {path} cannot be read as weights: {reason}") from error


def _record_of_safetensors(path: str) -> Mapping[str, Any]:
    with safe_open(path, "pt") as file:
        about = (file.metadata() or {}).get(_METADATA)
    return {} if about is None else dict(json.loads(about))


def _is_state_dict(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(item, Tensor) for item in value.values())
