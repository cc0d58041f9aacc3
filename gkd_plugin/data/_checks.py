"""Checks that several modules of this package share."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, cast

from torch.utils.data import Dataset

from gkd_plugin.errors import ConfigError

__all__ = ["length_of", "unwrapped", "whole_number"]


def whole_number(argument: str, value: object, *, low: int, high: int | None = None) -> int:
    """The value as ``int``.

    Raises:
        ConfigError: it is not a whole number, or lies outside [low, high].
    """
    allowed = f"a whole number from {low} up" if high is None else f"a whole number in {low} … {high}"
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{argument} must be {allowed}, got {value!r}")
    if value < low or (high is not None and value > high):
        raise ConfigError(f"{argument} must be {allowed}, got {value}")
    return value


def unwrapped(dataset: Dataset[Any]) -> Dataset[Any]:
    """What is inside torchdistill's ``BaseDatasetWrapper`` (its ``org_dataset``), however often wrapped."""
    while hasattr(dataset, "org_dataset"):
        dataset = dataset.org_dataset
    return dataset


def length_of(dataset: Dataset[Any]) -> int:
    """The number of samples; torch's ``Dataset`` type does not declare ``__len__``."""
    return len(cast("Sized", dataset))
