"""What can be known of the data before training: labels that do not fit, stages that could learn nothing."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from gkd_plugin.cache.fingerprint import image_keys
from gkd_plugin.config.stages import Stage
from gkd_plugin.data import class_names_of, labels_of
from gkd_plugin.errors import ConfigError

__all__ = ["check_data", "check_labels", "check_trained_classes"]

logger = logging.getLogger(__name__)

MANY = 0.02
"""Share of a test set's images that may be training images, too, before that is told."""


def check_data(config: Mapping[str, Any], where: str, num_classes: int | None, stages: Sequence[Stage]) -> None:
    """Checks every dataset that a loader of the config names.

    Args:
        config: the built config.
        where: key path of the student.
        num_classes: size of the student's classifier, ``None`` where unknown.
        stages: all of them.

    Raises:
        ConfigError: as :func:`check_labels`; for the sets that accuracy is measured on, a label out of range, or a
            class that has another label in the training set; numbers of a ``CRDLoss`` that do not fit its data.
    """
    datasets = config["datasets"]
    training = {stage.loader["dataset_id"]: stage.dataset(config) for stage in stages}
    measured = {stage.val_loader["dataset_id"]: stage.loader["dataset_id"] for stage in stages if stage.val_loader}
    if test := (config.get("test") or {}).get("test_data_loader"):
        measured[test["dataset_id"]] = stages[-1].loader["dataset_id"]
    for name, dataset in training.items():
        own = [stage for stage in stages if stage.loader["dataset_id"] == name]
        check_labels(name, dataset, where, num_classes, own)
        for stage in own:
            _check_crd(stage, dataset)
    measured = {name: trained for name, trained in measured.items() if name not in training}
    for name, trained in measured.items():
        check_labels(name, datasets[name], where, num_classes, [])
        names = class_names_of(datasets[trained])
        check_trained_classes(names, name, datasets[name], f"the training set, datasets.{trained}")
    keys = {name: image_keys(datasets[name]) or [] for name in {*measured, *measured.values()}}
    for name, trained in measured.items():
        shared = len(set(keys[name]) & set(keys[trained]))
        if shared > MANY * len(keys[name]):  # an accuracy on these says little
            text = f"{shared} of its {len(keys[name])} images are training images too (datasets.{trained})"
            logger.warning("datasets.%s: %s", name, text)


def check_labels(dataset_id: str, dataset: Any, where: str, num_classes: int | None, stages: Sequence[Stage]) -> None:
    """Checks a dataset against the student and the stages that train on it.

    Args:
        dataset_id: its name in ``datasets``.
        dataset: the dataset; one without readable labels is not checked.
        where: key path of the student.
        num_classes: size of the student's classifier, ``None`` where unknown.
        stages: the stages that train on it.

    Raises:
        ConfigError: no sample, or a label out of range; one class only, or no class with two samples, in stages
            ``embedding`` and ``joint``; a class without a sample in a stage that needs its centre.
    """
    try:
        counts = Counter(labels_of(dataset))
    except ConfigError:
        logger.info("datasets.%s: its labels cannot be read ahead (no `targets`), so they are not checked", dataset_id)
        return
    name = f"datasets.{dataset_id}"
    if not counts:
        raise ConfigError(f"{name}: holds no sample")
    if min(counts) < 0:
        raise ConfigError(f"{name}: class index out of range: label {min(counts)}; labels count from 0")
    if num_classes is not None and max(counts) >= num_classes:
        raise ConfigError(
            f"{name}: class index out of range: label {max(counts)}, but {where} has {num_classes} classes (0 … "
            f"{num_classes - 1})"
        )
    for stage in stages:
        if stage.kind in ("embedding", "joint"):
            _check_pairs(name, counts, stage)
        if stage.kind is not None:  # stage 'embedding' needs the centres for its figure, the NCM accuracy
            classes = None if stage.kind == "embedding" else num_classes
            _check_centres(name, counts, stage.kind, classes or max(counts) + 1, where)


def _check_pairs(name: str, counts: Counter[int], stage: Stage) -> None:
    if len(counts) == 1:
        raise ConfigError(f"{name}: holds one class only: stage {stage.kind!r} compares classes and needs at least two")
    if stage.batch_sampler.get("samples_per_class", 1) > 1:
        return  # balanced batches repeat a sample where its class has no other
    single = sorted(label for label, count in counts.items() if count == 1)
    if len(single) == len(counts):
        raise ConfigError(f"{name}: every class has one sample: stage {stage.kind!r} needs pairs of the same class")
    if single:
        logger.warning("%s: classes %s have one sample: they form no positive pair", name, single[:10])


def _check_centres(name: str, counts: Counter[int], kind: str, classes: int, where: str) -> None:
    missing = [label for label in range(classes) if label not in counts]
    if missing:
        raise ConfigError(
            f"{name}: no sample of class {', '.join(map(str, missing[:10]))}: stage {kind!r} needs a class centre for "
            f"each of {classes} classes; are there so many ({where}.kwargs.num_classes)?"
        )


def check_trained_classes(trained: Sequence[str] | None, dataset_id: str, dataset: Any, where: str) -> None:
    """Compares the names of the classes that a model was trained with, with those of a set that it is measured on.

    Args:
        trained: names in the order of the labels; ``None`` where they are not known.
        dataset_id: the set's name in ``datasets``.
        dataset: the set; one that names no classes is not compared.
        where: what gives the trained names, for messages.

    Raises:
        ConfigError: a class has another label there.
    """
    ours, theirs = _by_name(trained or []), _by_name(class_names_of(dataset) or [])
    for name in sorted(ours.keys() & theirs.keys()):
        if ours[name] != theirs[name]:
            lacking = [other for other in ours if other not in theirs]
            missing = f" ({', '.join(map(repr, lacking[:3]))} missing there)" if lacking else ""
            raise ConfigError(
                f"datasets.{dataset_id}: class {name!r} has label {theirs[name]}, and label {ours[name]} in {where}; "
                f"both must have the same classes in the same order{missing}"
            )
    if ours and theirs and not ours.keys() & theirs.keys():  # they may only be spelt differently
        text = f"its classes {list(theirs)[:5]} are none of the classes {list(ours)[:5]} of {where}"
        logger.warning("datasets.%s: %s", dataset_id, text)


def _by_name(names: Sequence[str]) -> dict[str, int]:
    """The label of each class with a name of its own."""
    counts = Counter(names)
    return {name: label for label, name in enumerate(names) if counts[name] == 1}


def _check_crd(stage: Stage, dataset: Any) -> None:
    """torchdistill meets a wrong number of CRD's as a shape or an index in the first batch."""
    for name, term in ((stage.criterion.get("kwargs") or {}).get("sub_terms") or {}).items():
        if term["criterion"]["key"] != "CRDLoss":
            continue
        kwargs, path = term["criterion"]["kwargs"], f"{stage.path}.criterion.kwargs.sub_terms.{name}.criterion.kwargs"
        wrapper = stage.loader.get("dataset_wrapper")
        if not wrapper:
            raise ConfigError(
                f"{stage.path}.train_data_loader.dataset_wrapper: missing; CRDLoss needs 'CRDDatasetWrapper', which "
                "names the negatives of each sample"
            )
        wanted = kwargs["num_negative_samples"]
        drawn = (wrapper.get("kwargs") or {}).get("num_negative_samples", wanted)
        if wanted != drawn:
            raise ConfigError(
                f"{path}.num_negative_samples: {wanted} given, but the loader's dataset_wrapper draws {drawn}"
            )
        if kwargs["output_size"] < len(dataset):
            raise ConfigError(
                f"{path}.output_size: {kwargs['output_size']} given, but there are {len(dataset)} training samples"
            )
