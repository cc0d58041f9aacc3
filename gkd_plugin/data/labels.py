"""Labels and classes of a dataset, and what is known of them, read through its wrappers without loading an image.

All raise ConfigError where a sample has no whole number as label; what counts classes also at no sample or label < 0.
"""

import inspect
import logging
import operator
from collections.abc import Iterable, Iterator, Sized
from typing import Any, cast

import numpy as np
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset

from gkd_plugin.errors import ConfigError

__all__ = ["class_groups_of", "class_names_of", "classes_of", "has_own", "inner_datasets", "keeps_labels", "labels_of"]
__all__ += ["layers_of", "length_of", "num_classes_of", "teacher_labels_of", "teacher_num_classes_of", "unwrapped"]
__all__ += ["UNLABELLED", "labelled_part"]

logger = logging.getLogger(__name__)

UNLABELLED = -1  # the label of a sample that has none, see with_unlabelled

_LABEL_ATTRIBUTES = ("targets", "labels", "_labels")  # the names that torchvision's datasets use
_PAIR_ATTRIBUTES = ("samples", "_samples")  # (path, label) pairs


def unwrapped(dataset: Dataset[Any]) -> Dataset[Any]:
    """What is inside torchdistill's ``BaseDatasetWrapper`` (its ``org_dataset``), however often wrapped."""
    while hasattr(dataset, "org_dataset"):
        dataset = dataset.org_dataset
    return dataset


def length_of(dataset: Dataset[Any]) -> int:
    """The number of samples; torch's ``Dataset`` type does not declare ``__len__``."""
    return len(cast("Sized", dataset))


def inner_datasets(dataset: Any) -> list[Dataset[Any]]:
    """What a wrapper, subset or concatenation holds; nothing for any other dataset."""
    for name in ("org_dataset", "dataset"):
        if isinstance(getattr(dataset, name, None), Dataset):
            return [getattr(dataset, name)]
    parts = getattr(dataset, "datasets", None)
    return list(parts) if isinstance(parts, (list, tuple)) else []


def layers_of(dataset: Any) -> Iterator[Any]:
    """The dataset and everything in it, from the outside in."""
    yield dataset
    for part in inner_datasets(dataset):
        yield from layers_of(part)


def has_own(dataset: Any, name: str) -> bool:
    """Whether the dataset has the attribute itself, rather than through a ``__getattr__`` that asks another."""
    missing = object()
    return inspect.getattr_static(dataset, name, missing) is not missing


def labelled_part(dataset: Dataset[Any]) -> Dataset[Any]:
    """The samples with a label, of what :func:`gkd_plugin.data.with_unlabelled` made; any other dataset as it is."""
    inside: Any = unwrapped(dataset)
    return labelled_part(inside.labelled_samples) if has_own(inside, "labelled_samples") else dataset


def labels_of(dataset: Dataset[Any]) -> list[int]:
    """The label of every sample, as ``dataset[i][1]`` would give it, without loading an image.

    Reads ``targets`` (list, array or tensor) or the other names that torchvision uses, applies the dataset's
    ``target_transform``, and looks into ``Subset``, ``ConcatDataset`` and torchdistill's wrappers.
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
    if isinstance(dataset, IterableDataset):
        way = "choose classes and samples when the shards are written, or read the set with an index (hfds/, a folder)"
        raise ConfigError(f"a stream has no index, and its labels show only as it is read; {way}")
    raise ConfigError(f"dataset {type(dataset).__name__} has no labels to read; it needs 'targets', one label a sample")


def num_classes_of(dataset: Dataset[Any]) -> int:
    """The number of classes that the labels need: the largest label + 1; samples of no label are left out.

    Of a stream the number of its names.
    """
    if isinstance(unwrapped(dataset), IterableDataset) and (names := getattr(unwrapped(dataset), "classes", None)):
        return len(names)
    labels = labels_of(labelled_part(dataset))
    if not labels:
        raise ConfigError(f"dataset {type(unwrapped(dataset)).__name__} has no samples, so no classes")
    if min(labels) < 0:
        raise ConfigError(f"class index out of range: label {min(labels)}, allowed 0 and up")
    return max(labels) + 1


def classes_of(dataset: Dataset[Any]) -> list[Any]:
    """The names of the classes in the order of their labels; where it has none, the labels 0, 1, … themselves."""
    count, dataset = num_classes_of(dataset), unwrapped(dataset)
    while getattr(dataset, "classes", None) is None and isinstance(dataset, Subset):
        dataset = unwrapped(dataset.dataset)
    names = getattr(dataset, "classes", None)
    listed = [] if names is None else list(names)
    return listed if len(listed) >= count else list(range(count))


def class_names_of(dataset: Dataset[Any]) -> list[str] | None:
    """The names of the classes in the order of their labels; ``None`` where the dataset names none.

    Numbers are no names. A class with several names (a tuple, as torchvision's ImageNet has) goes by the first.
    """
    try:
        names = [name[0] if isinstance(name, tuple) and name else name for name in classes_of(dataset)]
    except (ConfigError, TypeError):  # ``classes`` may be anything, in a dataset that is not torchvision's
        return None
    return [str(name) for name in names] if all(isinstance(name, str) for name in names) else None


def keeps_labels(dataset: Any) -> bool:
    """Whether a wrapper has the labels of the dataset inside it, as far as can be seen without loading an image.

    Compares its own labels with those inside, at its ``indices`` where it has some; where it has no labels, or they are
    of other samples, its ``classes``. True for a dataset with nothing inside, and for a wrapper with neither.
    """
    parts = inner_datasets(dataset)
    if not parts:
        return True
    has_labels = any(has_own(dataset, name) for name in (*_LABEL_ATTRIBUTES, *_PAIR_ATTRIBUTES))
    raw = _raw_labels(dataset) if has_labels else None
    shows_labels = raw is not None or (has_own(dataset, "target_transform") and dataset.target_transform is not None)
    if shows_labels:
        inside = [label for part in parts for label in labels_of(part)]
        if getattr(dataset, "indices", None) is not None:
            inside = [inside[index] for index in dataset.indices]
        outside = _transformed(dataset, inside if raw is None else _as_integers(dataset, raw))
        if len(outside) == len(inside):
            return outside == inside
    if not has_own(dataset, "classes"):
        return not shows_labels
    names = [list(part.classes) for part in parts if hasattr(part, "classes")]
    return (bool(names) or not shows_labels) and all(list(dataset.classes) == inside for inside in names)


def teacher_labels_of(dataset: Dataset[Any]) -> list[int | None] | None:
    """For each label of the dataset the teacher's own label of the same class; ``None`` where nothing is known.

    A class that the teacher does not know has ``None``. Looks into wrappers, ``Subset`` and concatenations whose parts
    agree. A wrapper with other labels or classes (:func:`keeps_labels`) hides what is inside it; the log says so.
    """
    return cast("list[int | None] | None", _known(dataset, "teacher_labels"))


def teacher_num_classes_of(dataset: Dataset[Any]) -> int | None:
    """The size of the label space of :func:`teacher_labels_of`, found likewise; ``None`` where it is not known."""
    return cast("int | None", _known(dataset, "teacher_num_classes"))


def class_groups_of(dataset: Dataset[Any]) -> dict[str, list[int]] | None:
    """Groups of classes (name → labels) whose accuracies are shown apart, found likewise; ``None``: no groups."""
    return cast("dict[str, list[int]] | None", _known(dataset, "class_groups"))


def _known(dataset: Any, name: str) -> Any:
    """The attribute of the dataset, or of what is inside it where all parts agree and the labels are the same."""
    if has_own(dataset, name):
        return getattr(dataset, name)
    found = [_known(part, name) for part in inner_datasets(dataset)]
    known = found[0] if found and all(value == found[0] for value in found) else None
    if known is None or keeps_labels(dataset):
        return known
    if name == "teacher_labels":
        advice = "give it its own teacher_labels, or write a class_map"
        own = f"dataset {type(dataset).__name__} has labels or classes of its own"
        logger.warning("%s, so the teacher_labels of the dataset inside it are not used; %s", own, advice)
    return None


def _raw_labels(dataset: Dataset[Any]) -> Iterable[Any] | None:
    for name in _LABEL_ATTRIBUTES:
        labels: Iterable[Any] | None = getattr(dataset, name, None)
        if labels is not None:
            return labels
    for pairs in (getattr(dataset, name, None) for name in _PAIR_ATTRIBUTES):
        if isinstance(pairs, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
            return [label for _, label in pairs]
    return None


def _as_integers(dataset: Dataset[Any], labels: Iterable[Any]) -> list[int]:
    values = labels.tolist() if isinstance(labels, (np.ndarray, Tensor)) else labels
    try:
        return [int(operator.index(value)) for value in values]
    except TypeError as error:
        needed = "labels must be one whole number for each sample"
        raise ConfigError(f"dataset {type(dataset).__name__}: {needed}: {error}") from error


def _transformed(dataset: Dataset[Any], labels: list[int]) -> list[int]:
    transform = getattr(dataset, "target_transform", None)
    return labels if transform is None else _as_integers(dataset, [transform(label) for label in labels])
