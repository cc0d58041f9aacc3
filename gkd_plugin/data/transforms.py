"""The usual image transforms in one call, so that YAML files stay short."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchvision import transforms

from gkd_plugin.data._checks import whole_number
from gkd_plugin.errors import ConfigError

__all__ = ["image_transform"]


def image_transform(
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    train: bool = False,
    padding: int = 0,
    flip: bool = False,
) -> Any:
    """PIL image → normalised float tensor ``[C, size, size]``.

    The shorter side is scaled to ``size`` (nothing changes where it has that size). Then training takes a
    random crop, with ``padding`` black pixels on each side, and evaluation takes the centre.

    Args:
        size: height and width of the result.
        mean: one number for each channel, of pixels in [0, 1].
        std: one number above 0 for each channel.
        train: whether to augment.
        padding: pixels added on each side before the random crop; only with ``train``.
        flip: whether to mirror half of the images; only with ``train``.

    Returns:
        A ``torchvision.transforms.Compose``.

    Raises:
        ConfigError: a number is out of range, or ``mean`` and ``std`` differ in length.
    """
    whole_number("size", size, low=1)
    whole_number("padding", padding, low=0)
    if len(mean) != len(std) or not all(value > 0 for value in std):
        raise ConfigError(f"mean and std must be of one length, std above 0, got mean={mean} and std={std}")
    if not train and (padding or flip):
        raise ConfigError(f"padding={padding} and flip={flip} augment, so they need train=True")
    steps: list[Any] = [transforms.Resize(size)]
    steps.append(transforms.RandomCrop(size, padding=padding) if train else transforms.CenterCrop(size))
    if flip:
        steps.append(transforms.RandomHorizontalFlip())
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(list(mean), list(std))])
