"""A learning-rate schedule for another number of epochs and another learning rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gkd_plugin.errors import ConfigError, nearest

__all__ = ["scaled", "stretched"]

_STRETCH: Mapping[str, tuple[str, Callable[[Any, float], Any]]] = {
    "CosineAnnealingLR": ("T_max", lambda value, factor: round(value * factor)),
    "StepLR": ("step_size", lambda value, factor: max(1, round(value * factor))),
    "MultiStepLR": ("milestones", lambda value, factor: [round(milestone * factor) for milestone in value]),
    "LinearLR": ("total_iters", lambda value, factor: round(value * factor)),
    "PolynomialLR": ("total_iters", lambda value, factor: round(value * factor)),
    "OneCycleLR": ("total_steps", lambda value, factor: round(value * factor)),
}
_UNCHANGED = {"ConstantLR", "ReduceLROnPlateau"}


def stretched(scheduler: Mapping[str, Any] | None, factor: float) -> dict[str, Any] | None:
    """The scheduler's section for ``factor`` times as many epochs.

    Raises:
        ConfigError: nobody knows how this scheduler is stretched.
    """
    if scheduler is None or factor == 1:
        return None if scheduler is None else dict(scheduler)
    key, kwargs = scheduler["key"], dict(scheduler.get("kwargs") or {})
    if key in _UNCHANGED:
        return dict(scheduler)
    argument, stretch = _STRETCH.get(key, (None, None))
    if argument is None or stretch is None or argument not in kwargs:
        known = sorted({*_STRETCH, *_UNCHANGED})
        raise ConfigError(
            f"scheduler: {key!r} cannot be stretched to the epochs of both stages, as single-stage methods need; "
            f"{nearest(key, known)}"
            if argument is None
            else f"scheduler.kwargs: {key!r} has no {argument!r} to stretch"
        )
    return {**scheduler, "kwargs": {**kwargs, argument: stretch(kwargs[argument], factor)}}


def scaled(scheduler: Mapping[str, Any], lr_factor: float) -> dict[str, Any]:
    """The scheduler's section for ``lr_factor`` times the learning rate, which OneCycleLR has one of its own for."""
    kwargs = dict(scheduler.get("kwargs") or {})
    if scheduler["key"] == "OneCycleLR" and "max_lr" in kwargs:
        peak = kwargs["max_lr"]  # one for each group of parameters, or one for all
        kwargs["max_lr"] = [lr * lr_factor for lr in peak] if isinstance(peak, list) else peak * lr_factor
    return {**scheduler, "kwargs": kwargs} if kwargs else dict(scheduler)
