"""Builds the models that a YAML names, with their weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from huggingface_hub.errors import LocalEntryNotFoundError
from torch import nn
from torchdistill.models.official import get_image_classification_model
from torchdistill.models.registry import get_model
from torchvision.models import get_model_weights

from gkd_plugin.data import ImageInput
from gkd_plugin.errors import ConfigError
from gkd_plugin.runner.weights import load_backbone_weights, load_teacher_weights, load_weights

__all__ = ["TEACHER", "build_model", "student_entry"]

TEACHER = "models.teacher_model"


def student_entry(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(key path, entry) of the model to train: ``models.student_model``, or ``models.model`` without a teacher."""
    models = config["models"]
    name = "student_model" if "student_model" in models else "model"
    return f"models.{name}", models[name]


def build_model(where: str, entry: Mapping[str, Any]) -> nn.Module:
    """The model that ``entry`` names, with ``src_ckpt`` loaded into it.

    Args:
        where: key path of the entry, for messages.
        entry: ``key``, ``kwargs``, optionally ``repo_or_dir``, ``src_ckpt`` and ``src_ckpt_classifier``: ``'new'`` and
            ``'centres'`` take the file's backbone alone, ``'extended'`` also its classifier as the first classes.

    Raises:
        ConfigError: the model cannot be built, or its weights do not fit.
    """
    with _told_as_model_error(where, (entry.get("kwargs") or {}).get("model_name", entry.get("key"))):
        model: nn.Module | None = get_image_classification_model(entry)
        if model is None:
            model = get_model(entry["key"], entry.get("repo_or_dir"), **(entry.get("kwargs") or {}))
        else:
            _note_torchvision_input(model, entry)
    if entry.get("src_ckpt") and entry.get("src_ckpt_classifier"):
        is_extended = entry["src_ckpt_classifier"] == "extended"
        load_backbone_weights(model, entry["src_ckpt"], f"{where}.src_ckpt", extends_classifier=is_extended)
    elif entry.get("src_ckpt"):
        load = load_teacher_weights if where == TEACHER else load_weights
        load(model, entry["src_ckpt"], f"{where}.src_ckpt")
    return model


@contextmanager
def _told_as_model_error(where: str, name: object) -> Iterator[None]:
    """Around the building of a model by timm, torchvision or torch.hub; their retries offline are quiet."""
    hub_log = logging.getLogger("huggingface_hub")
    level = hub_log.level
    hub_log.setLevel(logging.ERROR)
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise ConfigError(
            f"{where}: what {name!r} needs of the Hugging Face hub is not in the local cache, and there is no "
            "connection; a file fetched elsewhere can be its src_ckpt, with pretrained: False"
        ) from error
    except FileNotFoundError as error:
        reason = str(error) or "a file that its kwargs name does not exist"
        raise ConfigError(f"{where}: {reason}") from error
    except (TypeError, ValueError, RuntimeError, OSError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{where}: {reason}") from error
    finally:
        hub_log.setLevel(level)


def _note_torchvision_input(model: nn.Module, entry: Mapping[str, Any]) -> None:
    """torchvision's pretrained weights say what images they were trained with; the model does not."""
    name = (entry.get("kwargs") or {}).get("weights")
    if not isinstance(name, str):
        return
    preset = get_model_weights(entry["key"])[name.rpartition(".")[2]].transforms()
    side = int(preset.crop_size[0])
    model.image_input = ImageInput(tuple(preset.mean), tuple(preset.std), (side, side))  # type: ignore[assignment]
