"""A timm model whose every forward passes its pre-classifier embedding through a submodule ``embedding``.

The class of the instance is replaced by a subclass of its own class: it stays a ``timm`` model in every respect
(``isinstance``, ``state_dict`` keys, ``reset_classifier``), and copies and pickles like one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, cast

from timm.layers.attention_pool2d import AttentionPool2d, RotAttentionPool2d
from torch import Tensor, nn

from gkd_plugin.errors import ConfigError

__all__ = ["Embedding", "EmbeddingTap", "tap_embedding"]


class Embedding(nn.Identity):
    """Passes the embedding ``[B, D]`` through unchanged: the place for a forward hook. Has no parameters."""


class _ClassifierInput:
    """Forward pre-hook of a plain classifier: passes its input through ``embedding``.

    An object rather than a closure, so that ``copy.deepcopy`` and pickling follow it to the copied model.
    """

    def __init__(self, embedding: Embedding) -> None:
        self.embedding = embedding

    def __call__(self, _classifier: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]
        tapped = self.embedding(x.flatten(1))
        return (tapped.view_as(x), *args[1:])


class EmbeddingTap(nn.Module):
    """Mixed into the class of a timm model by :func:`tap_embedding`; never built directly."""

    embedding: Embedding
    tap_handle: Any

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The model's own forward; the embedding passes through ``self.embedding`` on the way."""
        if self.tap_handle is not None:
            return super().forward(x, *args, **kwargs)
        model = cast("Any", self)
        features = model.forward_features(x, *args, **kwargs)
        if model.num_classes == 0:
            return self.embedding(model.forward_head(features))
        output = model.forward_head(features)
        self.embedding(model.forward_head(features, pre_logits=True))
        return output

    def reset_classifier(self, *args: Any, **kwargs: Any) -> None:
        """timm's ``reset_classifier``; the tap moves to the new classifier."""
        super().reset_classifier(*args, **kwargs)  # type: ignore[misc]
        _attach(self)

    def classifier_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters between the embedding and the logits: those that the embedding does not depend on."""
        seen: set[int] = set()
        for module in _classifier_modules(self):
            for parameter in module.parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield parameter

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The subclass is made at run time and has no importable name: rebuild it from timm's own class.
        return _rebuild, (type(self).__mro__[2],), dict(self.__dict__)


def tap_embedding(model: nn.Module) -> nn.Module:
    """Gives a timm model its ``embedding`` submodule, in place.

    Where the classifier is one linear layer fed by the embedding, the embedding is that layer's input: no extra
    work, and in training the same dropout mask. Elsewhere (two classifiers, an MLP head, a classifier fed by
    tokens) it is ``forward_head(forward_features(x), pre_logits=True)``, on features that are computed once. Which
    of the two is decided from the model's metadata, never from its name.

    Args:
        model: made by ``timm.create_model``.

    Returns:
        The same object.

    Raises:
        ConfigError: the model has no classifier interface (an encoder or ``features_only`` model).
    """
    for method in ("forward_features", "forward_head", "get_classifier"):
        if not callable(getattr(model, method, None)):
            raise ConfigError(
                f"{type(model).__name__} has no {method}(): only timm models with a classifier interface have an "
                "embedding (not encoders, not features_only=True)"
            )
    if hasattr(model, "embedding"):
        raise ConfigError(f"{type(model).__name__} already has an attribute 'embedding'")
    model.__class__ = _tapped_class(cast("Any", type(model)))
    tapped = cast("EmbeddingTap", model)
    tapped.embedding = Embedding()
    tapped.tap_handle = None
    _attach(tapped)
    return model


@functools.cache
def _tapped_class(base: Any) -> type[EmbeddingTap]:
    return type(base.__name__, (EmbeddingTap, base), {"__doc__": base.__doc__, "__module__": base.__module__})


def _rebuild(base: type[nn.Module]) -> nn.Module:
    tapped = _tapped_class(cast("Any", base))
    return tapped.__new__(tapped)


def _attach(model: EmbeddingTap) -> None:
    """Hooks the model's plain classifier, if it has one."""
    if model.tap_handle is not None:
        model.tap_handle.remove()
    classifier = _plain_classifier(model)
    hook = _ClassifierInput(model.embedding)
    model.tap_handle = None if classifier is None else classifier.register_forward_pre_hook(hook)


def _plain_classifier(model: nn.Module) -> nn.Module | None:
    """The classifier, where it is one linear layer (or 1 × 1 convolution) whose input is the embedding."""
    timm_model = cast("Any", model)
    path = timm_model.pretrained_cfg.get("classifier")
    if not isinstance(path, str) or timm_model.num_classes == 0:
        return None
    classifier = timm_model.get_classifier()
    parent = model.get_submodule(path.rpartition(".")[0])
    if classifier is not model.get_submodule(path) or isinstance(parent, AttentionPool2d | RotAttentionPool2d):
        return None
    width = getattr(classifier, "in_features", None) or getattr(classifier, "in_channels", None)
    is_linear = isinstance(classifier, nn.Linear | nn.Conv2d)
    return classifier if is_linear and width == timm_model.head_hidden_size else None


def _classifier_modules(model: nn.Module) -> Iterator[nn.Module]:
    timm_model = cast("Any", model)
    found = timm_model.get_classifier()
    yield from (found if isinstance(found, tuple | list) else (found,))
    paths = timm_model.pretrained_cfg.get("classifier") or ()
    for path in (paths,) if isinstance(paths, str) else paths:
        yield model.get_submodule(path)
