"""What can be known of the data before training: labels that do not fit, stages that could learn nothing."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from gkd_plugin.cache.fingerprint import image_keys
from gkd_plugin.data import class_names_of, labels_of
from gkd_plugin.errors import ConfigError

__all__ = ["check_data", "check_labels", "check_trained_classes"]

logger = logging.getLogger(__name__)

MANY = 0.02
"""Share of a test set's images that may be training images, too, before that is told."""


def check_data(
    config: Mapping[str, Any], where: str, num_classes: int | None, stages: Mapping[str, Mapping[str, Any]]
) -> None:
    """Checks every dataset that a loader of the config names.

    Args:
        config: the built config.
        where: key path of the student.
        num_classes: size of the student's classifier, ``None`` where unknown.
        stages: the stages, each with its loaders.

    Raises:
        ConfigError: as :func:`check_labels`; for the sets that accuracy is measured on, a label out of range, or a
            class that has another label in the training set.
    """
    by_training_set: dict[str, dict[str, Mapping[str, Any]]] = {}
    measured: dict[str, str] = {}  # a set that accuracy is measured on → the training set of the last stage that does
    trained = ""
    for name, stage in stages.items():
        trained = stage["train_data_loader"]["dataset_id"]
        by_training_set.setdefault(trained, {})[name] = stage
        val_loader = stage.get("val_data_loader")
        measured |= {val_loader["dataset_id"]: trained} if val_loader else {}
    test_loader = (config.get("test") or {}).get("test_data_loader")
    measured |= {test_loader["dataset_id"]: trained} if test_loader else {}
    for dataset_id, own in by_training_set.items():
        check_labels(dataset_id, config["datasets"][dataset_id], where, num_classes, own)
    for dataset_id, trained in measured.items():
        if dataset_id not in by_training_set:
            check_labels(dataset_id, config["datasets"][dataset_id], where, num_classes, {})
            _check_same_classes(config["datasets"], trained, dataset_id)
    others = {name: trained for name, trained in measured.items() if name not in by_training_set}
    _warn_of_training_images(config["datasets"], others)


def check_labels(
    dataset_id: str, dataset: Any, where: str, num_classes: int | None, stages: Mapping[str, Mapping[str, Any]]
) -> None:
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
    for stage in stages.values():
        kind = _refilled_stage(stage)
        if kind in ("embedding", "joint"):
            _check_pairs(name, counts, kind, repeats=_repeats_samples(stage))
        if kind == "embedding":
            _check_centres(name, counts, kind, max(counts) + 1, where)
        elif kind in ("classifier", "joint"):
            _check_centres(name, counts, kind, num_classes or max(counts) + 1, where)


def check_trained_classes(trained: Sequence[str] | None, dataset_id: str, dataset: Any, where: str) -> None:
    """Compares the names of the classes that weights were trained with, where they say so, with those of a test set.

    Args:
        trained: names in the order of the labels; ``None`` where they are not known.
        dataset_id: the test set's name in ``datasets``.
        dataset: the test set; one that names no classes is not compared.
        where: what names the weights, for messages.

    Raises:
        ConfigError: a class has another label there.
    """
    ours, theirs = _by_name(trained or []), _by_name(class_names_of(dataset) or [])
    name = _in_conflict(ours, theirs)
    if name is not None:
        raise ConfigError(
            f"{where}: its class {name!r} has label {ours[name]}, and label {theirs[name]} in datasets.{dataset_id}: "
            "the figures would be of other classes"
        )
    if _are_strangers(ours, theirs):
        logger.warning(
            "%s: its classes %s are none of the classes %s of datasets.%s",
            where,
            list(ours)[:5],
            list(theirs)[:5],
            dataset_id,
        )


def _check_same_classes(datasets: Mapping[str, Any], trained: str, measured: str) -> None:
    ours, theirs = (_by_name(class_names_of(datasets[name]) or []) for name in (trained, measured))
    name = _in_conflict(ours, theirs)
    if name is not None:
        lacking = [other for other in ours if other not in theirs]
        missing = f" ({', '.join(map(repr, lacking[:3]))} missing there)" if lacking else ""
        raise ConfigError(
            f"datasets.{measured}: class {name!r} has label {theirs[name]}, and label {ours[name]} in the training "
            f"set, datasets.{trained}; give both the same classes in the same order{missing}"
        )
    if _are_strangers(ours, theirs):
        logger.warning(
            "datasets.%s: its classes %s are none of the training set's %s", measured, list(theirs)[:5], list(ours)[:5]
        )


def _in_conflict(ours: Mapping[str, int], theirs: Mapping[str, int]) -> str | None:
    """A class under two labels, which is a mistake."""
    return next((name for name in sorted(ours.keys() & theirs.keys()) if ours[name] != theirs[name]), None)


def _are_strangers(ours: Mapping[str, int], theirs: Mapping[str, int]) -> bool:
    """Whether names have nothing in common: they may only be spelt otherwise."""
    return bool(ours and theirs) and not ours.keys() & theirs.keys()


def _warn_of_training_images(datasets: Mapping[str, Any], measured: Mapping[str, str]) -> None:
    """An accuracy on images that the student was trained on says little; a few doubles may lie in any data."""
    keys = {name: image_keys(datasets[name]) for name in {*measured, *measured.values()}}
    for name, trained in measured.items():
        ours, theirs = keys[trained] or [], keys[name] or []
        shared = len(set(theirs) & set(ours))
        if shared > MANY * len(theirs):
            logger.warning(
                "datasets.%s: %d of its %d images are training images too (datasets.%s)",
                name,
                shared,
                len(theirs),
                trained,
            )


def _by_name(names: Sequence[str]) -> dict[str, int]:
    """The label of each class with a name of its own."""
    counts = Counter(names)
    return {name: label for label, name in enumerate(names) if counts[name] == 1}


def _refilled_stage(stage: Mapping[str, Any]) -> str | None:
    criterion = stage.get("criterion") or {}
    return (criterion.get("kwargs") or {}).get("stage") if criterion.get("key") == "refilled" else None


def _repeats_samples(stage: Mapping[str, Any]) -> bool:
    """Whether a batch holds several views of a sample where its class has no other: balanced batches do."""
    sampler = stage["train_data_loader"].get("batch_sampler") or {}
    samples = (sampler.get("kwargs") or {}).get("samples_per_class", 1)
    return sampler.get("key") == "ClassBalancedBatchSampler" and samples > 1


def _check_pairs(name: str, counts: Counter[int], stage: str, *, repeats: bool) -> None:
    if len(counts) == 1:
        raise ConfigError(f"{name}: holds one class only: stage {stage!r} compares classes and needs at least two")
    if repeats:
        return
    single = sorted(label for label, count in counts.items() if count == 1)
    if len(single) == len(counts):
        raise ConfigError(f"{name}: every class has one sample: stage {stage!r} needs pairs of the same class")
    if single:
        logger.warning("%s: classes %s have one sample: they form no positive pair", name, single[:10])


def _check_centres(name: str, counts: Counter[int], stage: str, classes: int, where: str) -> None:
    """Stage ``embedding`` needs the centres for its figure, the NCM accuracy."""
    missing = [label for label in range(classes) if label not in counts]
    if missing:
        raise ConfigError(
            f"{name}: no sample of class {', '.join(map(str, missing[:10]))}: stage {stage!r} needs a class centre for "
            f"each of {classes} classes; are there so many ({where}.kwargs.num_classes)?"
        )
