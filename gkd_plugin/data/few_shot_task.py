"""N-way K-shot tasks: a few classes with a few labelled images of each, and the images to answer for."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.utils.data import Dataset

from gkd_plugin.data._checks import unwrapped, whole_number
from gkd_plugin.data.class_subset import ClassSubset, members_of, subset_of, teacher_labels_of
from gkd_plugin.data.labels import classes_of
from gkd_plugin.errors import ConfigError, nearest

__all__ = ["few_shot_task"]

_ROLES = ("support", "query")


def few_shot_task(
    dataset: Dataset[Any],
    ways: int,
    shots: int,
    task: int,
    role: str,
    *,
    queries: int | None = 15,
    seed: int = 0,
) -> ClassSubset:
    """One part of one N-way K-shot task, its classes relabelled 0 … N − 1.

    The classes are drawn by ``seed`` and ``task`` alone, and so is, for each class, one permutation of its images: the
    support set is cut from its front, the queries from its end. Cut from one dataset, the two are disjoint; fewer shots
    are a subset of more shots, with the same queries. They may also be cut from two datasets with the same classes
    (training and test images): then ``queries: 0`` for the support set and ``shots: 0`` for the queries leave no image
    to the other role.

    Args:
        dataset: a torchvision-style map dataset of the novel classes.
        ways: N, from 2 up.
        shots: K, the images of each class in the support set; for the queries, how many are left to the support set.
        task: the number of the task, 0, 1, …
        role: ``'support'`` or ``'query'``.
        queries: the images of each class to answer for; for the support set, how many are left to the queries.
            ``None``: all that the support set leaves.
        seed: of all tasks.

    Raises:
        ConfigError: an argument is out of range, there are fewer than N classes, a class has too few images, or the
            dataset is empty.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> images = TensorDataset(torch.zeros(40, 1))
        >>> images.targets = [i % 4 for i in range(40)]
        >>> support, query = (few_shot_task(images, 2, 3, 0, role, queries=None) for role in ('support', 'query'))
        >>> len(support), len(query), support.classes == query.classes
        (6, 14, True)
    """
    dataset = unwrapped(dataset)
    if role not in _ROLES:
        raise ConfigError(f"role: {role!r} is unknown; {nearest(role, _ROLES)}")
    is_support = role == "support"
    whole_number("ways", ways, low=2)
    whole_number("shots", shots, low=1 if is_support else 0)
    if queries is not None:
        whole_number("queries", queries, low=0 if is_support else 1)
    entropy = [whole_number("seed", seed, low=0), whole_number("task", task, low=0)]
    names, members = classes_of(dataset), members_of(dataset)
    if ways > len(names):
        raise ConfigError(f"ways={ways}, but the dataset has {len(names)} classes")
    drawn = np.random.default_rng(entropy).permutation(len(names))[:ways].tolist()
    kept = {}
    for new, old in enumerate(drawn):
        _check_size(names[old], len(members[old]), shots, queries, is_support)
        order = np.random.default_rng([*entropy, old + 1]).permutation(len(members[old])).tolist()
        first = len(order) - queries if queries else shots
        kept[new] = [members[old][i] for i in (order[:shots] if is_support else order[first:])]
    known = teacher_labels_of(dataset)
    return subset_of(dataset, kept, [names[old] for old in drawn], None if known is None else [known[k] for k in drawn])


def _check_size(name: Any, size: int, shots: int, queries: int | None, is_support: bool) -> None:
    """Raises ConfigError where a class is too small for both roles."""
    if queries is None:
        others, wanted = (0, "") if is_support else (1, " and one query at least")
    else:
        others, wanted = queries, f" and queries={queries}"
    if size < shots + others:
        raise ConfigError(f"class {name!r} has {size} samples, shots={shots}{wanted} need {shots + others}")
