"""Datasets, class splits and batch samplers for torchdistill YAML files (``!import_call``, ``!import_get``).

Everything takes any torchvision-style map dataset: ``dataset[i]`` is ``(image, label)``, and
``dataset.targets`` holds the labels.
"""

from gkd_plugin.data.fixed_views import FixedViews, seeded
from gkd_plugin.data.images import ArrayImages, ImageFiles, cub200, digits, image_folder, npz_images
from gkd_plugin.data.labels import (
    class_groups_of,
    class_names_of,
    classes_of,
    labels_of,
    num_classes_of,
    teacher_labels_of,
    teacher_num_classes_of,
)
from gkd_plugin.data.samplers import ClassBalancedBatchSampler
from gkd_plugin.data.splits import class_split, incremental_subset, overlap_classes, overlap_subset
from gkd_plugin.data.subsets import ClassSubset, class_subset, few_shot_subset, few_shot_task
from gkd_plugin.data.transforms import ImageInput, image_transform, normalisation_of
from gkd_plugin.data.views import DatasetWithView, evaluation_view, with_evaluation_view

__all__ = [
    "ArrayImages",
    "ClassBalancedBatchSampler",
    "ClassSubset",
    "DatasetWithView",
    "FixedViews",
    "ImageFiles",
    "ImageInput",
    "class_groups_of",
    "class_names_of",
    "class_split",
    "class_subset",
    "classes_of",
    "cub200",
    "digits",
    "evaluation_view",
    "few_shot_subset",
    "few_shot_task",
    "image_folder",
    "image_transform",
    "incremental_subset",
    "labels_of",
    "normalisation_of",
    "npz_images",
    "num_classes_of",
    "overlap_classes",
    "overlap_subset",
    "seeded",
    "teacher_labels_of",
    "teacher_num_classes_of",
    "with_evaluation_view",
]
