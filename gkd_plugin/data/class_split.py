"""Classes cut into named parts: base, validation and novel classes, for example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import Dataset

from gkd_plugin.data._checks import whole_number
from gkd_plugin.data.class_order import ClassOrder, ordered_classes
from gkd_plugin.data.class_subset import ClassSubset, class_subset
from gkd_plugin.data.labels import classes_of
from gkd_plugin.errors import ConfigError, nearest

__all__ = ["class_split"]


def class_split(
    dataset: Dataset[Any],
    part: str,
    sizes: Mapping[str, int],
    *,
    class_order: ClassOrder | None = None,
    seed: int | None = None,
    per_class: int | None = None,
    start: int = 0,
) -> ClassSubset:
    """One of several parts that share no class, relabelled from 0 up.

    Args:
        dataset: a torchvision-style map dataset.
        part: which of ``sizes``.
        sizes: name of a part → its number of classes; the parts follow each other in the class order, in this order.
            Classes may be left over.
        class_order: as in :func:`gkd_plugin.data.overlap_subset`: all class indices, or a text file.
        seed: draws a random class order instead; ``None`` keeps the natural order.
        per_class: as in :func:`gkd_plugin.data.class_subset`.
        start: as in :func:`gkd_plugin.data.class_subset`.

    Raises:
        ConfigError: the part is unknown, a part is empty, there are not so many classes, or as
            :func:`gkd_plugin.data.class_subset` and the class order.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> images = TensorDataset(torch.zeros(5, 1))
        >>> images.targets = [0, 1, 2, 3, 4]
        >>> class_split(images, 'novel', {'base': 3, 'novel': 2}).classes
        [3, 4]
    """
    if not isinstance(sizes, Mapping):
        raise ConfigError(f"sizes must map the names of the parts to numbers of classes, got {sizes!r}")
    counts = {name: whole_number(f"sizes.{name}", size, low=1) for name, size in sizes.items()}
    if part not in counts:
        raise ConfigError(f"part: {part!r} is not in sizes; {nearest(part, counts)}")
    names = classes_of(dataset)
    if sum(counts.values()) > len(names):
        given = " + ".join(map(str, counts.values()))
        raise ConfigError(f"sizes: {given} = {sum(counts.values())} classes, the dataset has {len(names)}")
    order = ordered_classes(class_order, seed, len(names), names)
    first = sum(list(counts.values())[: list(counts).index(part)])
    return class_subset(dataset, order[first : first + counts[part]], per_class, start)
