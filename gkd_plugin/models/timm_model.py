"""``timm_model``: any timm backbone by name, with its embedding at one hook path."""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import timm
import torch
from timm.layers.helpers import to_2tuple
from timm.models import get_arch_name, is_model, model_entrypoint, parse_model_name
from torch import Tensor, nn
from torchdistill.models.registry import MODEL_DICT, register_model

from gkd_plugin.box import register
from gkd_plugin.data.transforms import checked_size, resized
from gkd_plugin.errors import ConfigError, nearest
from gkd_plugin.models.embedding_tap import is_encoder, tap_embedding


@register(MODEL_DICT, register_model, "timm_model")
def timm_model(
    model_name: str,
    pretrained: bool = False,
    num_classes: int | None = None,
    input_size: int | Sequence[int] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """A timm model with one addition: a submodule ``embedding`` without parameters, a hook path for every architecture.

    Every forward passes the pre-classifier embedding, ``[B, D]`` with D = ``model.head_hidden_size``, through it. A
    ``state_dict`` saved from the model loads with plain ``timm.create_model(model_name, num_classes=…)``. Its
    ``pretrained_cfg['input_size']`` is the one it works at, with ``in_chans``, ``img_size`` and ``input_size``.

    Args:
        model_name: any timm name, with or without a pretrained tag (``resnet50.a1_in1k``), or
            ``hf-hub:…`` / ``local-dir:…`` as timm takes them.
        pretrained: load timm's pretrained weights.
        num_classes: size of the classifier; 0 for none; ``None`` for the architecture's own.
        input_size: pixels, or [height, width], that the model works at: images of another size are resized on its
            device (bicubic, antialias), so that one view serves a large teacher and a small student. ``None`` takes
            images as they come.
        kwargs: passed on to ``timm.create_model`` (``in_chans``, ``img_size``, ``drop_rate``, …).

    Raises:
        ConfigError: timm has no such model (the nearest names are offered); ``features_only``; or ``num_classes`` for
            an encoder, which has no classifier: it can be a teacher, its embedding is the mean of its tokens.
    """
    check_model_name(model_name)
    model: Any = timm.create_model(model_name, pretrained=pretrained, num_classes=num_classes, **kwargs)
    tap_embedding(model)
    if is_encoder(model) and num_classes:
        reason = f"so it takes no num_classes ({num_classes}): it can be a teacher, not a student"
        raise ConfigError(f"timm's {model_name!r} is an encoder without a classifier, {reason}")
    own_size, size = checked_size(input_size), model.pretrained_cfg.get("input_size")
    if own_size is not None:
        model.own_size = own_size
        model.register_forward_pre_hook(_at_own_size)
    if size is not None:  # timm leaves the architecture's own there, whatever the model was built for
        height, width = own_size or to_2tuple(kwargs.get("img_size") or size[-2:])
        model.pretrained_cfg["input_size"] = (kwargs.get("in_chans") or size[0], height, width)
    return cast("nn.Module", model)


def _at_own_size(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return resized(inputs[0], cast("tuple[int, int]", model.own_size)), *inputs[1:]


def check_model_name(model_name: str) -> None:
    """Raises ConfigError, with the nearest names, unless timm has the model."""
    if not isinstance(model_name, str):
        raise ConfigError(f"model_name must be a timm model name, got {model_name!r}")
    try:
        source, _ = parse_model_name(model_name)
    except (ValueError, AssertionError) as error:  # a "/", as in a path or a hub's name
        ways = f"of a model on the hub 'hf-hub:{model_name}', in a folder of timm's 'local-dir:{model_name}'"
        raise ConfigError(f"timm has no model {model_name!r}; {ways}") from error
    if not source and not is_model(model_name):
        raise ConfigError(f"timm has no model {model_name!r}; {nearest(get_arch_name(model_name), timm.list_models())}")


def unknown_keyword(model_name: str, kwargs: Mapping[str, Any]) -> tuple[str, str] | None:
    """A keyword that timm does not take for this model, and the nearest that it takes; allocates no weights."""
    own = {*inspect.signature(timm_model).parameters, *inspect.signature(timm.create_model).parameters}
    further = {name: value for name, value in kwargs.items() if name not in own}
    if not further or parse_model_name(model_name)[0]:
        return None
    try:
        with torch.device("meta"):
            timm.create_model(model_name, **further)
    except TypeError as error:
        found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        built = inspect.signature(model_entrypoint(get_arch_name(model_name))).return_annotation
        known = {*own, *inspect.signature(built).parameters} - {"self", "kwargs"}
        return (found[1], nearest(found[1], known)) if found and found[1] in further else None
    except Exception:  # a value that does not fit: whoever builds the model hears of it
        return None
    return None
