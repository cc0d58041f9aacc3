"""``timm_model``: any timm backbone by name, with its embedding at one hook path."""

from __future__ import annotations

from typing import Any

import timm
from timm.models import get_arch_name, is_model, parse_model_name
from torch import nn
from torchdistill.models.registry import MODEL_DICT, register_model

from gkd_plugin.errors import ConfigError, nearest
from gkd_plugin.models.embedding_tap import tap_embedding
from gkd_plugin.registry import register

__all__ = ["timm_model"]


@register(MODEL_DICT, register_model, "timm_model")
def timm_model(model_name: str, pretrained: bool = False, num_classes: int | None = None, **kwargs: Any) -> nn.Module:
    """A timm model with one addition: a parameterless submodule ``embedding``.

    Every forward passes the pre-classifier embedding, ``[B, D]`` with D = ``model.head_hidden_size``, through it, so
    the hook path is ``embedding`` for every architecture. The model is timm's own: a ``state_dict`` saved from it
    loads with plain ``timm.create_model(model_name, num_classes=…)``.

    Args:
        model_name: any timm name, with or without a pretrained tag (``resnet50.a1_in1k``), or
            ``hf-hub:…`` / ``local-dir:…`` as timm takes them.
        pretrained: load timm's pretrained weights.
        num_classes: size of the classifier; 0 for none; ``None`` for the architecture's own.
        kwargs: passed on to ``timm.create_model`` (``in_chans``, ``img_size``, ``drop_rate``, …).

    Raises:
        ConfigError: timm has no such model (the nearest names are offered), or the model has no classifier interface.
    """
    _check_name(model_name)
    model = timm.create_model(model_name, pretrained=pretrained, num_classes=num_classes, **kwargs)
    return tap_embedding(model)


def _check_name(model_name: str) -> None:
    if not isinstance(model_name, str):
        raise ConfigError(f"model_name must be a timm model name, got {model_name!r}")
    source, _ = parse_model_name(model_name)
    if source or is_model(model_name):
        return
    known = timm.list_models()
    raise ConfigError(f"timm has no model {model_name!r}; {nearest(get_arch_name(model_name), known)}")
