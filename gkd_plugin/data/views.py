"""The evaluation view of a training dataset: the same samples without random augmentation.

Class centres are means over the training set; they are computed on clean images where the dataset offers them.
"""

from __future__ import annotations

import copy
from itertools import zip_longest
from typing import Any

from torch.utils.data import Dataset, Subset

from gkd_plugin.data.images import TransformedImages
from gkd_plugin.data.labels import classes_of, labels_of, unwrapped
from gkd_plugin.data.subsets import ClassSubset
from gkd_plugin.errors import ConfigError

__all__ = ["DatasetWithView", "evaluation_view", "with_evaluation_view"]


class DatasetWithView(Dataset[Any]):
    """The samples of ``dataset``, its training dataset, with an attribute ``evaluation_view``."""

    def __init__(self, dataset: Dataset[Any], view: Dataset[Any]) -> None:
        self.dataset = dataset
        self.evaluation_view = view
        self.targets = labels_of(dataset)
        self.classes = classes_of(dataset)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]


def evaluation_view(dataset: Dataset[Any]) -> tuple[Dataset[Any], bool]:
    """The dataset's evaluation view and True, or the dataset itself and False where it offers none.

    A dataset offers one as its attribute ``evaluation_view``; this package's image datasets offer one where they have
    an ``eval_transform``. Looks into torchdistill's dataset wrappers (and returns what is inside them), ``Subset`` and
    :class:`gkd_plugin.data.ClassSubset`.
    """
    dataset = unwrapped(dataset)
    if hasattr(dataset, "evaluation_view"):
        return unwrapped(dataset.evaluation_view), True
    if isinstance(dataset, TransformedImages) and dataset.eval_transform is not None:
        return _changed(dataset, transform=dataset.eval_transform, eval_transform=None), True
    if not isinstance(dataset, (Subset, ClassSubset)):
        return dataset, False
    view, found = evaluation_view(dataset.dataset)
    if view is dataset.dataset:  # there is none, or it is its own
        return dataset, found
    return (Subset(view, dataset.indices) if isinstance(dataset, Subset) else _changed(dataset, dataset=view)), found


def with_evaluation_view(dataset: Dataset[Any], view: Dataset[Any]) -> DatasetWithView:
    """Attaches to a training dataset the same samples without random augmentation.

    Args:
        dataset: the training dataset, with its augmenting transform.
        view: the same samples in the same order, with the transform of the evaluation.

    Raises:
        ConfigError: the lengths or the labels differ.
    """
    labels, view_labels = labels_of(dataset), labels_of(view)
    for index, (label, view_label) in enumerate(zip_longest(labels, view_labels)):
        if label != view_label:
            raise ConfigError(
                f"evaluation view: sample {index} has label {view_label}, but {label} in the training dataset; both "
                f"must hold the same samples in the same order (the view {len(view_labels)}, the other {len(labels)})"
            )
    return DatasetWithView(dataset, view)


def _changed(original: Any, **attributes: Any) -> Any:
    changed = copy.copy(original)
    changed.__dict__.update(attributes)
    return changed
