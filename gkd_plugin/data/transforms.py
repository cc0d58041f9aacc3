"""The usual image transforms in one call, so that YAML files stay short."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchvision import transforms

from gkd_plugin.data._checks import whole_number
from gkd_plugin.errors import ConfigError, nearest

__all__ = ["image_transform"]

_CROPS = ("random", "resized")


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
) -> Any:
    """PIL image → normalised float tensor ``[C, size, size]``.

    The shorter side is scaled to ``resize`` (nothing changes where it has that size). Then training takes a
    random crop, with ``padding`` black pixels on each side, and evaluation takes the centre. ``crop: 'resized'`` trains
    on a random part of the whole image instead, stretched to the size, as is usual on ImageNet.

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

    Returns:
        A ``torchvision.transforms.Compose``.

    Raises:
        ConfigError: a number is out of range, ``mean`` and ``std`` differ in length, or arguments contradict.

    Example:
        >>> from PIL import Image
        >>> image_transform(224, [0.5], [0.5], resize=256)(Image.new('L', (400, 300))).shape
        torch.Size([1, 224, 224])
    """
    whole_number("size", size, low=1)
    whole_number("padding", padding, low=0)
    if len(mean) != len(std) or not all(value > 0 for value in std):
        raise ConfigError(f"mean and std must be of one length, std above 0, got mean={mean} and std={std}")
    if crop not in _CROPS:
        raise ConfigError(f"crop: {crop!r} is unknown; {nearest(crop, _CROPS)}")
    if not train and (padding or flip or crop == "resized"):
        raise ConfigError(f"padding={padding}, flip={flip} and crop={crop!r} augment, so they need train=True")
    steps = _resized_crop(size, padding, scale, resize) if crop == "resized" else [_resize(size, resize)]
    if crop == "random":
        steps.append(transforms.RandomCrop(size, padding=padding) if train else transforms.CenterCrop(size))
    if flip:
        steps.append(transforms.RandomHorizontalFlip())
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(list(mean), list(std))])


def _resize(size: int, resize: int | None) -> Any:
    return transforms.Resize(size if resize is None else whole_number("resize", resize, low=size))


def _resized_crop(size: int, padding: int, scale: Sequence[float], resize: int | None) -> list[Any]:
    """``RandomResizedCrop``, which takes its crop from the image as it is."""
    if padding or resize is not None:
        raise ConfigError(f"crop='resized' has no use for padding and resize, got padding={padding}, resize={resize}")
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise ConfigError(f"scale must be two numbers with 0 < smallest <= largest <= 1, got {scale}")
    return [transforms.RandomResizedCrop(size, scale=tuple(scale))]
