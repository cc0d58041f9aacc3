"""A timm model whose every forward passes its pre-classifier embedding through a submodule ``embedding``.

The class of the instance is replaced by a subclass of its own class: it stays a ``timm`` model in every respect
(``isinstance``, ``state_dict`` keys, ``reset_classifier``), and copies and pickles like one.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from timm.layers.attention_pool2d import AttentionPool2d, RotAttentionPool2d
from timm.layers.classifier import ClassifierHead, ClNormMlpClassifierHead, NormMlpClassifierHead
from torch import Tensor, nn

from gkd_plugin.errors import ConfigError


class Embedding(nn.Identity):
    """Passes the embedding ``[B, D]`` through unchanged: the place for a forward hook. Has no parameters."""


class EmbeddingTap(nn.Module):
    """Mixed into the class of a timm model by :func:`tap_embedding`; never built directly."""

    embedding: Embedding

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


def tap_embedding(model: Any) -> nn.Module:
    """Gives a model made by ``timm.create_model`` its ``embedding`` submodule, in place; returns the same object.

    The embedding is what the classifier that timm's ``get_classifier()`` names is given: one pass through the head, and
    in training the dropout mask of the logits. Of several classifiers, or one fed by tokens, it is put together as
    ``forward_head(…, pre_logits=True)`` does it. The width is ``head_hidden_size``, whatever the architecture's name.

    Raises:
        ConfigError: the model is none that timm can classify or encode with (``features_only``), or is tapped already.
    """
    for name in ("forward_features", "forward_head", "head_hidden_size"):
        if not hasattr(model, name):
            needed = "only timm's classifiers and encoders have an embedding (not features_only=True)"
            raise ConfigError(f"{type(model).__name__} has no {name}: {needed}")
    if hasattr(model, "embedding"):
        raise ConfigError(f"{type(model).__name__} already has an attribute 'embedding'")
    model.__class__ = _tapped_class(cast("Any", type(model)))
    model.embedding = Embedding()
    _attach(model)
    return cast("nn.Module", model)


def is_encoder(model: nn.Module) -> bool:
    """Whether timm offers the model as an image encoder without any classifier interface."""
    return not hasattr(model, "get_classifier")


@functools.cache
def _tapped_class(base: Any) -> type[EmbeddingTap]:
    return type(base.__name__, (EmbeddingTap, base), {"__doc__": base.__doc__, "__module__": base.__module__})


def _rebuild(base: Any) -> nn.Module:
    return object.__new__(_tapped_class(base))


def _attach(model: Any) -> None:
    """Hooks the model's classifiers, if it has any; earlier ones went with their hooks."""
    classifiers = list(_classifiers(model.get_classifier())) if model.num_classes else []
    pools = {id(pool.proj) for pool in model.modules() if isinstance(pool, AttentionPool2d | RotAttentionPool2d)}
    inputs = _ClassifierInputs(model.embedding, model.head_hidden_size, len(classifiers))
    for index, classifier in enumerate(classifiers):  # partials of a method follow deepcopy and pickling to the copy
        classifier.register_forward_pre_hook(functools.partial(inputs.hook, index, id(classifier) in pools))


def _classifiers(found: Any) -> Iterator[nn.Module]:
    """The modules that are given the embedding or parts of it: timm's classifiers without the pooling before them."""
    if isinstance(found, tuple | list | nn.ModuleList):
        for part in found:
            yield from _classifiers(part)
    else:
        pools_itself = isinstance(found, ClassifierHead | NormMlpClassifierHead | ClNormMlpClassifierHead)
        yield found.fc if pools_itself else found


@dataclass
class _ClassifierInputs:
    """What the classifiers of a model were given in one forward pass, put together as the embedding.

    One tensor for all is the embedding itself. Distinct inputs are averaged if each is as wide as the embedding (class
    and distillation tokens), otherwise put one behind the other (a classifier for each branch or stage).
    """

    embedding: Embedding
    width: int
    count: int
    seen: list[Tensor] = field(default_factory=list)

    def hook(self, index: int, takes_tokens: bool, _classifier: nn.Module | None, args: Any) -> Any:
        """Forward pre-hook of classifier ``index``; with the last one's input the embedding goes through the tap."""
        x = args[0]
        if self.count == 1 and not takes_tokens:
            is_pooled = x.ndim == 4 and x.shape[2:] == (1, 1)  # [B, D, 1, 1] goes through as [B, D]
            return (self.embedding(x.flatten(1)).view_as(x) if is_pooled else self.embedding(x), *args[1:])
        x = x[:, 0] if takes_tokens else x
        self.seen = self.seen if index else []
        if not any(x is other for other in self.seen):
            self.seen.append(x)
        if index == self.count - 1:
            inputs, self.seen = self.seen, []
            self.embedding(self.combined(inputs))
        return None

    def combined(self, inputs: list[Tensor]) -> Tensor:
        """Distinct inputs ``[B, d_i]`` → ``[B, D]``."""
        widths = [x.shape[-1] for x in inputs]
        if len(inputs) == 1:
            return inputs[0]
        if all(width == self.width for width in widths):
            return torch.stack(inputs).mean(0)
        if sum(widths) == self.width:
            return torch.cat(inputs, dim=1)
        raise ConfigError(f"classifiers with inputs of widths {widths} do not make an embedding of width {self.width}")


def _pooled(x: Tensor, width: int) -> Tensor:
    """Tokens ``[B, N, D]`` or a feature map ``[B, D, H, W]`` → their mean ``[B, D]``."""
    if x.ndim == 4 and x.shape[1] == width:
        return x.mean(dim=(2, 3))
    return x.flatten(1, -2).mean(1) if x.ndim > 2 else x
