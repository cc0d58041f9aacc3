"""A learning-rate schedule for another number of epochs and another learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gkd_plugin.errors import ConfigError, nearest

__all__ = ["scaled", "stretched"]

_IN_EPOCHS = {
    "CosineAnnealingLR": "T_max",
    "StepLR": "step_size",
    "MultiStepLR": "milestones",
    "LinearLR": "total_iters",
    "PolynomialLR": "total_iters",
    "OneCycleLR": "total_steps",
}
"""Key of a scheduler → its keyword that counts epochs."""
_UNCHANGED = ("ConstantLR", "ReduceLROnPlateau")


def stretched(scheduler: Mapping[str, Any] | None, factor: float) -> dict[str, Any] | None:
    """The scheduler's section for ``factor`` ≥ 1 times as many epochs.

    Raises:
        ConfigError: nobody knows how this scheduler is stretched.
    """
    if scheduler is None:
        return None
    key, kwargs = scheduler["key"], dict(scheduler.get("kwargs") or {})
    if factor == 1 or key in _UNCHANGED:
        return dict(scheduler)
    if key not in _IN_EPOCHS:
        raise ConfigError(
            f"scheduler: {key!r} cannot be stretched to the epochs of both stages, as single-stage methods need; "
            f"{nearest(key, [*_IN_EPOCHS, *_UNCHANGED])}"
        )
    argument = _IN_EPOCHS[key]
    if argument not in kwargs:
        raise ConfigError(f"scheduler.kwargs: {key!r} has no {argument!r} to stretch")
    epochs = kwargs[argument]
    longer = [round(epoch * factor) for epoch in epochs] if isinstance(epochs, list) else round(epochs * factor)
    return {**scheduler, "kwargs": {**kwargs, argument: longer}}


def scaled(scheduler: Mapping[str, Any], lr_factor: float) -> dict[str, Any]:
    """The scheduler's section for ``lr_factor`` times the learning rate; OneCycleLR has a peak of its own."""
    kwargs = scheduler.get("kwargs") or {}
    if scheduler["key"] != "OneCycleLR" or "max_lr" not in kwargs:
        return dict(scheduler)
    peak = kwargs["max_lr"]  # one for each group of parameters, or one for all
    peak = [lr * lr_factor for lr in peak] if isinstance(peak, list) else peak * lr_factor
    return {**scheduler, "kwargs": {**kwargs, "max_lr": peak}}
