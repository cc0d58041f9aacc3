"""Datasets, class splits and batch samplers for torchdistill YAML files (``!import_call``, ``!import_get``).

Everything takes any torchvision-style map dataset: ``dataset[i]`` is ``(image, label)``, and
``dataset.targets`` holds the labels.
"""

from gkd_plugin.data.class_subset import ClassSubset, class_subset, few_shot_subset
from gkd_plugin.data.cub200 import cub200
from gkd_plugin.data.digits import digits
from gkd_plugin.data.evaluation_view import DatasetWithView, evaluation_view, with_evaluation_view
from gkd_plugin.data.fixed_views import FixedViews
from gkd_plugin.data.image_files import ImageFiles, image_folder
from gkd_plugin.data.image_input import ImageInput, normalisation_of
from gkd_plugin.data.images import ArrayImages, npz_images
from gkd_plugin.data.labels import classes_of, labels_of, num_classes_of
from gkd_plugin.data.overlap import overlap_classes, overlap_subset
from gkd_plugin.data.samplers import ClassBalancedBatchSampler
from gkd_plugin.data.transforms import image_transform

__all__ = [
    "ArrayImages",
    "ClassBalancedBatchSampler",
    "ClassSubset",
    "DatasetWithView",
    "FixedViews",
    "ImageFiles",
    "ImageInput",
    "class_subset",
    "classes_of",
    "cub200",
    "digits",
    "evaluation_view",
    "few_shot_subset",
    "image_folder",
    "image_transform",
    "labels_of",
    "normalisation_of",
    "npz_images",
    "num_classes_of",
    "overlap_classes",
    "overlap_subset",
    "with_evaluation_view",
]
