"""Image transforms: the usual ones in one call, and the normalisation that a dataset's transforms apply."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from torchvision import transforms

from gkd_plugin.data.labels import layers_of
from gkd_plugin.errors import ConfigError, listed, one_of, whole_number

__all__ = ["ImageInput", "image_transform", "normalisation_of", "trained_with"]

_LARGEST_SIDE = 10_000  # pixels: a larger image would fill the memory
_HIGHEST = 4  # mean or std of pixels in [0, 1]; more are of pixels in [0, 255]
_CHANGES_VALUES = {"Lambda", "LinearTransformation", "RandomApply", "RandomChoice", "RandomOrder", "ToDtype"}
_SCALING = {"ToTensor", "MaybeToTensor", "ConvertImageDtype"}  # pixels 0 … 255 → [0, 1]
_CUTS = ["Resize", "CenterCrop"]
_PREPARES = {*_CUTS, *_SCALING, "Normalize", "PILToTensor", "ToDtype", "ToImage"}


def image_transform(
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    train: bool = False,
    padding: int = 0,
    flip: bool = False,
    crop: str = "random",
    scale: Sequence[float] = (0.08, 1.0),
    resize: int | None = None,
    interpolation: str = "bilinear",
) -> transforms.Compose:
    """PIL image → normalised float tensor ``[C, size, size]``, a ``torchvision.transforms.Compose``.

    The shorter side is scaled to ``resize``. Then training takes a random crop, with ``padding`` black pixels on each
    side, and evaluation the centre. ``crop: 'resized'`` trains on a random part of the whole image instead, stretched
    to the size, as is usual on ImageNet. Raises ConfigError where a number is out of range or arguments contradict.

    Args:
        size: height and width of the result.
        mean: one number for each channel, of pixels in [0, 1].
        std: one number above 0 for each channel.
        train: whether to augment.
        padding: pixels added on each side before the random crop; only with ``train``.
        flip: whether to mirror half of the images; only with ``train``.
        crop: ``'random'``, or ``'resized'`` (``RandomResizedCrop``), which is only for ``train``.
        scale: the smallest and the largest part of the image's area that ``crop: 'resized'`` takes.
        resize: the shorter side before the crop, at least ``size``; ``None`` is ``size``.
        interpolation: how images are scaled: ``'bilinear'``, ``'bicubic'``, ``'lanczos'`` or ``'nearest'``.
    """
    one_of("interpolation", interpolation, ("bilinear", "bicubic", "lanczos", "nearest"))
    mode = transforms.InterpolationMode(interpolation)
    whole_number("size", size, low=1, high=_LARGEST_SIDE)
    whole_number("padding", padding, low=0, high=_LARGEST_SIDE)
    mean = listed("mean", mean, float, "a number for each channel, of pixels in [0, 1]")
    std = listed("std", std, float, "a number above 0 for each channel, of pixels in [0, 1]", above_zero=True)
    if mean is None or std is None or len(mean) != len(std) or max(map(abs, (*mean, *std))) > _HIGHEST:
        allowed = f"of one length, at most {_HIGHEST}, as for pixels in [0, 1]"
        raise ConfigError(f"mean and std must be {allowed}, got mean={mean} and std={std}")
    one_of("crop", crop, ("random", "resized"))
    if not train and (padding or flip or crop == "resized"):
        raise ConfigError(f"padding={padding}, flip={flip} and crop={crop!r} augment, so they need train=True")
    if crop == "resized":
        if padding or resize is not None:
            raise ConfigError(f"crop='resized' has no use for padding and resize, got {padding} and {resize}")
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise ConfigError(f"scale must be two numbers with 0 < smallest <= largest <= 1, got {scale}")
        steps = [transforms.RandomResizedCrop(size, scale=tuple(scale), interpolation=mode)]
    else:
        shorter_side = size if resize is None else whole_number("resize", resize, low=size, high=_LARGEST_SIDE)
        cut = transforms.RandomCrop(size, padding=padding) if train else transforms.CenterCrop(size)
        steps = [transforms.Resize(shorter_side, mode), cut]
    if flip:
        steps.append(transforms.RandomHorizontalFlip())
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(list(mean), list(std))])


@dataclass(frozen=True)
class ImageInput:
    """What a model is given; ``None`` where it is not known or does not matter."""

    mean: tuple[float, ...] | None = None  # subtracted, one number for each channel, of pixels in [0, 1]
    std: tuple[float, ...] | None = None  # divided by
    size: tuple[int, int] | None = None  # height, width


def checked_size(value: object) -> tuple[int, int] | None:
    """(height, width) from a number of pixels or a pair, or ``None``; raises ConfigError for something else."""
    sides = listed("input_size", value, int, "a number of pixels or [height, width]", above_zero=True, most=2)
    return None if sides is None else (sides[0], sides[-1])


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """``[B, C, H, W]`` → ``[B, C, h, w]`` in float32, bicubic with antialiasing; nothing where they have the size."""
    if tuple(images.shape[-2:]) == size:
        return images
    return functional.interpolate(images.float(), size, mode="bicubic", antialias=True, align_corners=False)


def trained_with(record: Mapping[str, Any]) -> ImageInput:
    """The input whose fields a checkpoint holds as a dictionary; raises ConfigError where it is no such description."""
    try:
        mean, std, size = (record.get(key) for key in ("mean", "std", "size"))
        mean, std = (None if values is None else tuple(map(float, values)) for values in (mean, std))
        return ImageInput(mean, std, None if size is None else (int(size[0]), int(size[1])))
    except (TypeError, ValueError, IndexError) as error:
        raise ConfigError(f"no description of images: {record}") from error


def normalisation_of(dataset: Dataset[Any]) -> ImageInput:
    """The normalisation in a dataset's transforms, looked for in wrappers and subsets too; the size stays open.

    Reads torchvision's (and timm's) ``Normalize``; a mean or std above 4 is taken to be of pixels in [0, 255].
    ``ToTensor`` and its kin alone are mean 0 and std 1. Both are ``None`` where there is none, where a later step may
    change the values (a ``Lambda``, a class of the user), and where the parts of a concatenated dataset differ.
    """
    found = {known for known in map(_normalisation, layers_of(dataset)) if known is not None}
    return ImageInput(*found.pop()) if len(found) == 1 else ImageInput()


def _normalisation(dataset: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    normalising, is_known = [], False
    for step in _steps(getattr(dataset, "transform", None)):
        name = type(step).__name__
        if name == "Normalize":
            normalising.append(step)
        if name in ("Normalize", *_SCALING) or (name == "ToDtype" and getattr(step, "scale", False)):
            is_known = True
        elif name in _CHANGES_VALUES or not type(step).__module__.startswith(("torchvision.", "timm.")):
            is_known = False  # others only move or erase pixels, as far as is known
    if not is_known or len(normalising) > 1:
        return None
    if not normalising:
        return (0.0,), (1.0,)
    step = normalising[0]
    try:
        mean, std = (torch.as_tensor(x, dtype=torch.float64).reshape(-1).tolist() for x in (step.mean, step.std))
    except (AttributeError, TypeError, ValueError, RuntimeError):  # someone else's Normalize
        return None
    unit = 255.0 if max(*mean, *std) > _HIGHEST else 1.0
    return tuple(value / unit for value in mean), tuple(value / unit for value in std)


def preprocessing_of(dataset: Dataset[Any], images: Tensor) -> dict[str, Any]:
    """How a data set prepares photos, in timm's words; ``images`` are a batch of it.

    ``input_size``, ``mean``, ``std``, ``crop_pct``, ``crop_mode``, ``interpolation``: what its transforms do not show
    is left out. Reads torchvision's and timm's ``Resize`` and ``CenterCrop``, where nothing else moves pixels.
    """
    known, size = normalisation_of(dataset), tuple(images.shape[1:])
    found = {cut for cut in (_cut(layer, size[1:]) for layer in layers_of(dataset)) if cut is not None}
    cut = zip(("crop_pct", "crop_mode", "interpolation"), found.pop(), strict=True) if len(found) == 1 else ()
    shown = {"input_size": size, "mean": known.mean, "std": known.std, **dict(cut)}
    return {key: value for key, value in shown.items() if value is not None}


def _cut(dataset: Any, size: tuple[int, ...]) -> tuple[float, str, str] | None:
    steps = _steps(getattr(dataset, "transform", None))
    names = [type(step).__name__ for step in steps]
    theirs = all(type(step).__module__.startswith(("torchvision.", "timm.")) for step in steps)
    cuts = [name for name in names if name in _CUTS]
    if not theirs or not _PREPARES.issuperset(names) or cuts not in (_CUTS, _CUTS[:1]):
        return None
    step = steps[names.index("Resize")]
    sides = (step.size,) if isinstance(step.size, int) else tuple(step.size or size)
    share = crop_pct(size[0], sides[0])
    if step.max_size or [math.floor(side / share) for side in size] != [*sides] * (2 // len(sides)):
        return None  # timm has no words for it
    mode = "center" if len(sides) == 1 else "squash"
    return share, mode, str(getattr(step.interpolation, "value", step.interpolation))


def crop_pct(side: int, scaled: int) -> float:
    """timm's word for cutting ``side`` out of ``scaled`` pixels; timm rounds side / crop_pct down."""
    share = side / scaled
    return share if math.floor(side / share) == scaled else side / (scaled + 0.5)


def _steps(transform: Any) -> list[Any]:
    """The single transforms of a composed one, in order; what is applied at random counts as one."""
    inner: Any = transform if type(transform) is nn.Sequential else None
    if type(transform).__name__ == "Compose":
        inner = getattr(transform, "transforms", None)
    is_composed = isinstance(inner, Sequence | nn.ModuleList | nn.Sequential)
    return [step for part in inner for step in _steps(part)] if is_composed else [transform]
