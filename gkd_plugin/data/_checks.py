"""Checks that several modules of this package share."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any, cast

from torch.utils.data import Dataset

from gkd_plugin.errors import ConfigError

__all__ = ["inner_datasets", "layers_of", "length_of", "unwrapped", "whole_number"]


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


def inner_datasets(dataset: Any) -> list[Dataset[Any]]:
    """What a wrapper, subset or concatenation holds; nothing for a data set of its own."""
    for name in ("org_dataset", "dataset"):
        if isinstance(getattr(dataset, name, None), Dataset):
            return [getattr(dataset, name)]
    parts = getattr(dataset, "datasets", None)
    return list(parts) if isinstance(parts, (list, tuple)) else []


def layers_of(dataset: Any) -> Iterator[Any]:
    """The data set and everything in it, from the outside in."""
    yield dataset
    for part in inner_datasets(dataset):
        yield from layers_of(part)
