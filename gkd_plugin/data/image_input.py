"""How images reach a model: normalisation and size, read from a data set's transforms or from a model's metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from gkd_plugin.data._checks import layers_of
from gkd_plugin.errors import ConfigError

__all__ = ["ImageInput", "normalisation_of", "trained_with"]

_UNKNOWN = {
    "Lambda",
    "RandomApply",
    "RandomChoice",
    "RandomOrder",
    "ToDtype",
    "ConvertImageDtype",
    "LinearTransformation",
}
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
    [0, 255]; ``ToTensor`` and its kin alone give pixels in [0, 1], mean 0 and std 1. Where there is neither, where one
    behind them may change the values (a ``Lambda``, a class of the user), or where the parts of a concatenated set
    differ, mean and std are ``None``.
    """
    found = {known for known in map(_normalisation, layers_of(dataset)) if known is not None}
    return ImageInput(*found.pop()) if len(found) == 1 else ImageInput()


def _normalisation(dataset: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    steps = list(_steps(getattr(dataset, "transform", None)))
    normalising = [index for index, step in enumerate(steps) if type(step).__name__ == "Normalize"]
    scaling = [index for index, step in enumerate(steps) if _scales(step)]
    last = max((*normalising, *scaling), default=None)
    if last is None or len(normalising) > 1 or not all(_keeps_values(step) for step in steps[last + 1 :]):
        return None
    if not normalising:
        return (0.0,), (1.0,)
    step = steps[normalising[0]]
    mean, std = _numbers(getattr(step, "mean", None)), _numbers(getattr(step, "std", None))
    return _affine(mean, std) if mean and std else None


def _affine(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    unit = 255.0 if max(*mean, *std) > 4 else 1.0
    return tuple(value / unit for value in mean), tuple(value / unit for value in std)


def _numbers(values: Any) -> tuple[float, ...]:
    """A number, sequence, array or tensor of them; nothing where it is something else."""
    try:
        return tuple(torch.as_tensor(values, dtype=torch.float64).reshape(-1).tolist())
    except (TypeError, ValueError, RuntimeError):
        return ()


def _keeps_values(step: Any) -> bool:
    """Whether a step after the normalisation only moves or erases pixels, as far as that is known."""
    name, module = type(step).__name__, type(step).__module__
    return module.startswith(("torchvision.", "timm.")) and name not in _UNKNOWN


def _scales(step: Any) -> bool:
    return type(step).__name__ in _SCALING or (type(step).__name__ == "ToDtype" and bool(getattr(step, "scale", False)))


def _steps(transform: Any) -> Iterator[Any]:
    """The single transforms of a composed one, in order; what is applied at random counts as one."""
    if transform is None:
        return
    inner = getattr(transform, "transforms", None) if type(transform).__name__ == "Compose" else None
    if isinstance(transform, nn.Sequential) and type(transform).__name__ == "Sequential":
        inner = list(transform)
    if not isinstance(inner, Sequence | nn.ModuleList):
        yield transform
        return
    for step in inner:
        yield from _steps(step)
