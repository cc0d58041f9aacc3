"""A training set of labelled images and images without labels."""

from pathlib import Path
from typing import Any

from torch.utils.data import ConcatDataset, Dataset

from gkd_plugin.data import labels
from gkd_plugin.data.files import existing_folder, images_below, unreadable_images
from gkd_plugin.data.images import ImageFiles
from gkd_plugin.data.labels import UNLABELLED, layers_of, length_of
from gkd_plugin.data.splits import ClassSubset
from gkd_plugin.errors import ConfigError

__all__ = ["WithUnlabelled", "with_unlabelled"]


class WithUnlabelled(ConcatDataset[Any]):
    """The samples of ``labelled``, and after them those of ``unlabelled``, whose label is :data:`UNLABELLED` (−1).

    What is known of its classes is what ``labelled`` says.
    """

    def __init__(self, labelled: Dataset[Any], unlabelled: Dataset[Any]) -> None:
        count = length_of(unlabelled)
        hidden = ClassSubset(unlabelled, range(count), [UNLABELLED] * count, [])
        super().__init__([labelled, hidden])
        self.labelled_samples, self.targets = labelled, [*labels.labels_of(labelled), *hidden.targets]
        self.classes, self.class_groups = labels.classes_of(labelled), labels.class_groups_of(labelled)
        self.teacher_labels = labels.teacher_labels_of(labelled)
        self.teacher_num_classes = labels.teacher_num_classes_of(labelled)


def with_unlabelled(
    labelled: Dataset[Any], unlabelled: str | Path | Dataset[Any], on_bad_image: str = "refuse"
) -> WithUnlabelled:
    """Adds images without labels to a training set: the teacher says what they show. Their label is −1.

    They take part in the loss terms that need no label (the local classifier's), not in cross-entropy, relationships,
    class centres, the fit of the local classifier or any accuracy. Put it around all that chooses classes or samples.

    Args:
        labelled: the training set; its transforms are those of the images without labels too.
        unlabelled: a folder, whose images are taken from all folders in it, ``~`` is allowed; or a dataset, whose
            labels are not looked at.
        on_bad_image: ``'refuse'``: images of the folder that cannot be read are an error, which names them. ``'skip'``:
            they are left out, and the log names them.

    Raises:
        ConfigError: there is no such folder, it holds no image, or one that cannot be read (``'refuse'``), or the
            labelled images have no transform to use.
    """
    if isinstance(unlabelled, Dataset):
        return WithUnlabelled(labelled, unlabelled)
    folder = existing_folder(unlabelled, "unlabelled")
    paths = images_below(folder)
    bad = unreadable_images(paths, folder, on_bad_image)
    samples = [(path, UNLABELLED) for path in paths if path not in bad]
    if not samples:
        raise ConfigError(f"unlabelled: {folder} holds no image")
    steps = (getattr(layer, "transform", None) for layer in layers_of(labelled))
    transform = next((step for step in steps if step is not None), None)
    if transform is None:
        lacks = f"dataset {type(labelled).__name__} shows no transform for the images of {folder}"
        raise ConfigError(f"unlabelled: {lacks}; give a dataset with a transform in place of the folder")
    return WithUnlabelled(labelled, ImageFiles(samples, [], folder, transform))
