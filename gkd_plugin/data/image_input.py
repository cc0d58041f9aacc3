"""How images reach a model: normalisation and size, read from a data set's transforms or from a model's metadata."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from gkd_plugin.data._checks import layers_of
from gkd_plugin.errors import ConfigError

__all__ = ["ImageInput", "normalisation_of", "trained_with"]

_SCALING = {"ToTensor", "MaybeToTensor", "ConvertImageDtype"}  # pixels 0 … 255 → [0, 1]


@dataclass(frozen=True)
class ImageInput:
    """What a model is given.

    Attributes:
        mean: subtracted, one number for each channel, of pixels in [0, 1]; ``None`` where it is not known.
        std: divided by.
        size: (height, width); ``None`` where it is not known or does not matter.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint; :func:`trained_with` reads it."""
        return asdict(self)


def trained_with(record: Mapping[str, Any]) -> ImageInput:
    """The input that :meth:`ImageInput.as_dict` described.

    Raises:
        ConfigError: it is no such description.
    """
    try:
        mean, std, size = (record.get(key) for key in ("mean", "std", "size"))
        return ImageInput(
            mean=None if mean is None else tuple(map(float, mean)),
            std=None if std is None else tuple(map(float, std)),
            size=None if size is None else (int(size[0]), int(size[1])),
        )
    except (TypeError, ValueError, IndexError) as error:
        raise ConfigError(f"no description of images: {record}") from error


def normalisation_of(dataset: Dataset[Any]) -> ImageInput:
    """The normalisation in a data set's transforms, looked for in wrappers and subsets too; the size stays open.

    ``Normalize`` of torchvision (and so of timm's transforms) counts, with a mean or std above 4 as one of pixels in
    [0, 255]; ``ToTensor`` and its kin alone give pixels in [0, 1], mean 0 and std 1. Where there is neither, or where
    the parts of a concatenated data set differ, mean and std are ``None``.
    """
    found = {known for known in map(_normalisation, layers_of(dataset)) if known is not None}
    return ImageInput(*found.pop()) if len(found) == 1 else ImageInput()


def _normalisation(dataset: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    steps = list(_steps(getattr(dataset, "transform", None)))
    normalising = [step for step in steps if type(step).__name__ == "Normalize"]
    if len(normalising) == 1:
        return _affine(normalising[0].mean, normalising[0].std)
    if not normalising and any(_scales(step) for step in steps):
        return (0.0,), (1.0,)
    return None


def _affine(mean: Iterable[float], std: Iterable[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    means, stds = _numbers(mean), _numbers(std)
    unit = 255.0 if max(*means, *stds) > 4 else 1.0
    return tuple(value / unit for value in means), tuple(value / unit for value in stds)


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in (values if isinstance(values, Iterable) else (values,)))


def _scales(step: Any) -> bool:
    return type(step).__name__ in _SCALING or (type(step).__name__ == "ToDtype" and bool(getattr(step, "scale", False)))


def _steps(transform: Any) -> Iterator[Any]:
    """The single transforms of a composed one, in order."""
    if transform is None:
        return
    inner = list(transform) if isinstance(transform, nn.Sequential) else getattr(transform, "transforms", None)
    if not isinstance(inner, Sequence | nn.ModuleList):
        yield transform
        return
    for step in inner:
        yield from _steps(step)
