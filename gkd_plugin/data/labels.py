"""The labels and classes of a dataset, read without loading an image."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from gkd_plugin.data._checks import inner_datasets, unwrapped
from gkd_plugin.errors import ConfigError

__all__ = ["classes_of", "has_own", "keeps_labels", "labels_of", "num_classes_of"]

_LABEL_ATTRIBUTES = ("targets", "labels", "_labels")  # the names that torchvision's datasets use
_PAIR_ATTRIBUTES = ("samples", "_samples")  # (path, label) pairs


def labels_of(dataset: Dataset[Any]) -> list[int]:
    """The label of every sample, as ``dataset[i][1]`` would give it, without loading an image.

    Reads ``targets`` (list, array or tensor) or the other names that torchvision uses, applies the dataset's
    ``target_transform`` where it has one, and looks into ``Subset``, ``ConcatDataset`` and torchdistill's
    wrappers.

    Raises:
        ConfigError: there are no labels to find, or they are not one whole number for each sample.

    Example:
        >>> import torch
        >>> from torch.utils.data import Subset, TensorDataset
        >>> images = TensorDataset(torch.zeros(3, 1))
        >>> images.targets = torch.tensor([4, 5, 6])
        >>> labels_of(Subset(images, [2, 0]))
        [6, 4]
    """
    dataset = unwrapped(dataset)
    raw = _raw_labels(dataset)
    if raw is not None:
        return _transformed(dataset, _as_integers(dataset, raw))
    if isinstance(dataset, Subset):
        labels = labels_of(dataset.dataset)
        return [labels[index] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        return [label for part in dataset.datasets for label in labels_of(part)]
    raise ConfigError(
        f"dataset {type(dataset).__name__} has no labels to read; it needs an attribute 'targets' with one "
        "label for each sample"
    )


def num_classes_of(dataset: Dataset[Any]) -> int:
    """The number of classes that the labels need: the largest label + 1.

    Raises:
        ConfigError: the dataset is empty, has a negative label, or has no labels to find.
    """
    labels = labels_of(dataset)
    if not labels:
        raise ConfigError(f"dataset {type(unwrapped(dataset)).__name__} has no samples, so no classes")
    if min(labels) < 0:
        raise ConfigError(f"class index out of range: label {min(labels)}, allowed 0 and up")
    return max(labels) + 1


def classes_of(dataset: Dataset[Any]) -> list[Any]:
    """The names of the classes in the order of their labels; where it has none, the labels 0, 1, … themselves.

    Raises:
        ConfigError: as :func:`num_classes_of`.
    """
    count = num_classes_of(dataset)
    names = _class_names(unwrapped(dataset))
    return names if names is not None and len(names) >= count else list(range(count))


def class_names_of(dataset: Dataset[Any]) -> list[str] | None:
    """The names of the classes in the order of their labels; ``None`` where the dataset names none.

    Numbers are no names. A class with several names (a tuple, as torchvision's ImageNet has) goes by the first.
    """
    try:
        count, names = num_classes_of(dataset), _class_names(unwrapped(dataset))
    except (ConfigError, TypeError):  # ``classes`` may be anything, in a dataset that is not torchvision's
        return None
    names = [name[0] if isinstance(name, tuple) and name else name for name in names or ()]
    are_names = len(names) >= count and all(isinstance(name, str) for name in names)
    return [str(name) for name in names] if are_names else None


def has_own(dataset: Any, name: str) -> bool:
    """Whether the dataset has the attribute itself, and not by passing on what is asked of it (``__getattr__``)."""
    missing = object()
    return inspect.getattr_static(dataset, name, missing) is not missing


def keeps_labels(dataset: Any) -> bool:
    """Whether the labels of a dataset are those of what is inside it, as far as can be seen without loading an image.

    Labels of its own (``targets``, ``target_transform``) must be those inside, for its ``indices`` where it has some;
    where there are none, or they are of other samples, its ``classes`` must be those inside. A dataset with nothing
    inside keeps its labels, and so does a wrapper that shows neither.

    Raises:
        ConfigError: as :func:`labels_of`.

    Example:
        >>> import torch
        >>> from torch.utils.data import Subset, TensorDataset
        >>> images = TensorDataset(torch.zeros(3, 1))
        >>> images.targets = [0, 1, 2]
        >>> part = Subset(images, [2, 0])
        >>> kept = keeps_labels(part)
        >>> part.targets = [0, 1]
        >>> kept, keeps_labels(part)
        (True, False)
    """
    parts = inner_datasets(dataset)
    if not parts:
        return True
    has_labels = any(has_own(dataset, name) for name in (*_LABEL_ATTRIBUTES, *_PAIR_ATTRIBUTES))
    raw = _raw_labels(dataset) if has_labels else None
    has_transform = has_own(dataset, "target_transform") and dataset.target_transform is not None
    shows_labels = raw is not None or has_transform
    if shows_labels:
        inside = _labels_inside(dataset, parts)
        outside = _transformed(dataset, inside if raw is None else _as_integers(dataset, raw))
        if len(outside) == len(inside):
            return outside == inside
    if not has_own(dataset, "classes"):
        return not shows_labels
    names = [list(part.classes) for part in parts if hasattr(part, "classes")]
    return (bool(names) or not shows_labels) and all(list(dataset.classes) == inside for inside in names)


def _labels_inside(dataset: Any, parts: list[Dataset[Any]]) -> list[int]:
    """The labels of the samples that a wrapper takes from what is inside it."""
    labels = [label for part in parts for label in labels_of(part)]
    indices = getattr(dataset, "indices", None)
    return labels if indices is None else [labels[index] for index in indices]


def _class_names(dataset: Dataset[Any]) -> list[Any] | None:
    names = getattr(dataset, "classes", None)
    if names is not None:
        return list(names)
    return _class_names(unwrapped(dataset.dataset)) if isinstance(dataset, Subset) else None


def _raw_labels(dataset: Dataset[Any]) -> Iterable[Any] | None:
    for name in _LABEL_ATTRIBUTES:
        labels: Iterable[Any] | None = getattr(dataset, name, None)
        if labels is not None:
            return labels
    for name in _PAIR_ATTRIBUTES:
        pairs = getattr(dataset, name, None)
        if isinstance(pairs, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
            return [label for _, label in pairs]
    return None


def _as_integers(dataset: Dataset[Any], labels: Iterable[Any]) -> list[int]:
    values = labels.tolist() if isinstance(labels, (np.ndarray, Tensor)) else labels
    try:
        return [int(operator.index(value)) for value in values]
    except TypeError as error:
        raise ConfigError(
            f"dataset {type(dataset).__name__}: labels must be one whole number for each sample: {error}"
        ) from error


def _transformed(dataset: Dataset[Any], labels: list[int]) -> list[int]:
    transform = getattr(dataset, "target_transform", None)
    return labels if transform is None else _as_integers(dataset, [transform(label) for label in labels])
