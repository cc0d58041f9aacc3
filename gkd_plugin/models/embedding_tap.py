"""A timm model whose every forward passes its pre-classifier embedding through a submodule ``embedding``.

The class of the instance is replaced by a subclass of its own class: it stays a ``timm`` model in every respect
(``isinstance``, ``state_dict`` keys, ``reset_classifier``), and copies and pickles like one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from timm.layers.attention_pool2d import AttentionPool2d, RotAttentionPool2d
from timm.layers.classifier import ClassifierHead, ClNormMlpClassifierHead, NormMlpClassifierHead
from torch import Tensor, nn

from gkd_plugin.errors import ConfigError

__all__ = ["Embedding", "EmbeddingTap", "is_encoder", "tap_embedding"]


class Embedding(nn.Identity):
    """Passes the embedding ``[B, D]`` through unchanged: the place for a forward hook. Has no parameters."""


class _ClassifierInputs:
    """What the classifiers of a model were given in one forward pass, put together as the embedding.

    One classifier (or several that are given the same tensor) is given the embedding itself. Where each has its own
    input, timm's ``pre_logits`` is their mean if each is as wide as the embedding (a class and a distillation token),
    and otherwise one behind the other (one classifier for each branch or stage).
    """

    def __init__(self, embedding: Embedding, width: int, count: int) -> None:
        self.embedding = embedding
        self.width = width
        self.count = count
        self.seen: list[Tensor] = []

    def single(self, x: Tensor) -> Tensor:
        """The only classifier's input, through the tap; ``[B, D, 1, 1]`` goes through as ``[B, D]``."""
        is_pooled = x.ndim == 4 and x.shape[2:] == (1, 1)
        return self.embedding(x.flatten(1)).view_as(x) if is_pooled else cast("Tensor", self.embedding(x))

    def add(self, index: int, x: Tensor) -> None:
        """The input of classifier ``index``; with the last one's the embedding goes through the tap."""
        if index == 0:
            self.seen = []
        if not any(x is other for other in self.seen):
            self.seen.append(x)
        if index == self.count - 1:
            inputs, self.seen = self.seen, []
            self.embedding(self.combined(inputs))

    def combined(self, inputs: Sequence[Tensor]) -> Tensor:
        """Distinct inputs ``[B, d_i]`` → ``[B, D]``."""
        widths = [x.shape[-1] for x in inputs]
        if len(inputs) == 1:
            return inputs[0]
        if all(width == self.width for width in widths):
            return torch.stack(list(inputs)).mean(0)
        if sum(widths) == self.width:
            return torch.cat(list(inputs), dim=1)
        raise ConfigError(f"classifiers with inputs of widths {widths} do not make an embedding of width {self.width}")


class _ClassifierHook:
    """Forward pre-hook of one classifier.

    An object rather than a closure, so that ``copy.deepcopy`` and pickling follow it to the copied model.
    """

    def __init__(self, inputs: _ClassifierInputs, index: int, *, takes_tokens: bool) -> None:
        self.inputs = inputs
        self.index = index
        self.takes_tokens = takes_tokens

    def __call__(self, _classifier: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.inputs.count == 1 and not self.takes_tokens:
            return (self.inputs.single(args[0]), *args[1:])
        self.inputs.add(self.index, args[0][:, 0] if self.takes_tokens else args[0])
        return None


class EmbeddingTap(nn.Module):
    """Mixed into the class of a timm model by :func:`tap_embedding`; never built directly."""

    embedding: Embedding
    tap_handles: list[Any]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own forward; the embedding passes through ``self.embedding`` on the way.

        A model without classifier (``num_classes`` 0) returns its embedding, as timm has it; for an encoder that is
        the mean of its tokens or of its feature map.
        """
        output = super().forward(*args, **kwargs)
        model = cast("Any", self)
        if model.num_classes:
            return output
        return self.embedding(_pooled(output, model.head_hidden_size) if is_encoder(self) else output)

    def reset_classifier(self, *args: Any, **kwargs: Any) -> None:
        """timm's ``reset_classifier``; the tap moves to the new classifier."""
        cast("Any", super()).reset_classifier(*args, **kwargs)
        _attach(self)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The subclass is made at run time and has no importable name: rebuild it from timm's own class.
        return _rebuild, (type(self).__mro__[2],), cast("Any", self).__getstate__()


def tap_embedding(model: nn.Module) -> nn.Module:
    """Gives a timm model its ``embedding`` submodule, in place.

    The embedding is what the model's classifier is given, found through timm's ``get_classifier()``: no second pass
    through the head, and in training the same dropout mask as the logits. Where the model has several classifiers, or
    one fed by tokens, the embedding is put together as ``forward_head(…, pre_logits=True)`` does it. The width is
    ``head_hidden_size``. Nothing is decided by the name of an architecture.

    Args:
        model: made by ``timm.create_model``.

    Returns:
        The same object.

    Raises:
        ConfigError: the model is none that timm can classify or encode with (``features_only``), or is tapped already.
    """
    for name in ("forward_features", "forward_head", "head_hidden_size"):
        if not hasattr(model, name):
            raise ConfigError(
                f"{type(model).__name__} has no {name}: only timm's classifiers and encoders have an embedding "
                "(not features_only=True)"
            )
    if hasattr(model, "embedding"):
        raise ConfigError(f"{type(model).__name__} already has an attribute 'embedding'")
    model.__class__ = _tapped_class(cast("Any", type(model)))
    tapped = cast("EmbeddingTap", model)
    tapped.embedding = Embedding()
    tapped.tap_handles = []
    _attach(tapped)
    return model


def is_encoder(model: nn.Module) -> bool:
    """Whether timm offers the model as an image encoder without any classifier interface."""
    return not hasattr(model, "get_classifier")


@functools.cache
def _tapped_class(base: Any) -> type[EmbeddingTap]:
    return type(base.__name__, (EmbeddingTap, base), {"__doc__": base.__doc__, "__module__": base.__module__})


def _rebuild(base: type[nn.Module]) -> nn.Module:
    tapped = _tapped_class(cast("Any", base))
    return tapped.__new__(tapped)


def _attach(model: EmbeddingTap) -> None:
    """Hooks the model's classifiers, if it has any."""
    for handle in model.tap_handles:
        handle.remove()
    timm_model = cast("Any", model)
    classifiers = list(_classifiers(model)) if timm_model.num_classes else []
    pools = {id(pool.proj) for pool in model.modules() if isinstance(pool, AttentionPool2d | RotAttentionPool2d)}
    inputs = _ClassifierInputs(model.embedding, timm_model.head_hidden_size, len(classifiers))
    model.tap_handles = [
        classifier.register_forward_pre_hook(_ClassifierHook(inputs, index, takes_tokens=id(classifier) in pools))
        for index, classifier in enumerate(classifiers)
    ]


def _classifiers(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that are given the embedding or parts of it: timm's classifiers without the pooling before them."""
    yield from _flat(cast("Any", model).get_classifier())


def _flat(found: Any) -> Iterator[nn.Module]:
    if isinstance(found, tuple | list | nn.ModuleList):
        for part in found:
            yield from _flat(part)
    else:
        pools_itself = isinstance(found, ClassifierHead | NormMlpClassifierHead | ClNormMlpClassifierHead)
        yield found.fc if pools_itself else found


def _pooled(x: Tensor, width: int) -> Tensor:
    """Tokens ``[B, N, D]`` or a feature map ``[B, D, H, W]`` → their mean ``[B, D]``."""
    if x.ndim == 4 and x.shape[1] == width:
        return x.mean(dim=(2, 3))
    return x.flatten(1, -2).mean(1) if x.ndim > 2 else x
