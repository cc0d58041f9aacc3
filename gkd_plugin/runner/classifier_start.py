"""A student's new classifier that begins as the nearest class mean of its own embedding."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from gkd_plugin.centres import clean_loader
from gkd_plugin.errors import ConfigError, user_can_mend
from gkd_plugin.functional import ClassCentreAccumulator
from gkd_plugin.runner.weights import classifier_paths

__all__ = ["is_asked_for", "start_at_centres"]

logger = logging.getLogger(__name__)

SCALE = 10.0
"""Logits per cosine: what a classifier on normalised embeddings usually has."""


def is_asked_for(entry: Mapping[str, Any]) -> bool:
    """Whether a model's section says ``src_ckpt_classifier: 'centres'``."""
    return bool(entry.get("src_ckpt_classifier") == "centres")


@torch.no_grad()
def start_at_centres(where: str, student: nn.Module, train_loader: Any, accelerator: Accelerator) -> None:
    r"""Sets every classifier of the student to z_k = 10 · φᵀc_k / m, with no bias.

    φ is what the classifier is given, c_k the normalised mean of φ over the training samples of class k
    (evaluation view), m the mean length of φ. The student then begins with the accuracy of the nearest class mean
    instead of that of guessing, and its first steps do not spoil the embedding for a classifier that knows nothing
    (Qi, Brown and Lowe, "Low-Shot Learning with Imprinted Weights", CVPR 2018). Not in the ReFilled paper.

    Random states stay as they were.

    Args:
        where: key path of the student.
        student: the model itself, on the accelerator's device; in eval mode afterwards.
        train_loader: of the training set; a loader of torchdistill's or a plain one.
        accelerator: device and precision.

    Raises:
        ConfigError: a classifier is no Linear on rows ``[B, D]``, or a class has no sample.
    """
    place = f"{where}.src_ckpt_classifier: 'centres'"
    student.eval()
    for path in _linear_paths(place, student):
        linear = student.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        given: list[Any] = []
        hook = linear.register_forward_pre_hook(lambda _, inputs, kept=given: kept.append(inputs[0]))
        centres, lengths = ClassCentreAccumulator(linear.out_features), []
        try:
            with torch.random.fork_rng(devices=[]), user_can_mend(place), accelerator.autocast():
                for batch in tqdm(clean_loader(train_loader), desc="class centres", leave=False, disable=None):
                    student(batch[0].to(accelerator.device))
                    rows = given.pop().float()
                    centres.update(rows, batch[1])
                    lengths.append(rows.norm(dim=1).cpu())
                weight = centres.result() * (SCALE / torch.cat(lengths).mean())
        finally:
            hook.remove()
        linear.weight.copy_(weight.to(linear.weight))
        if linear.bias is not None:
            linear.bias.zero_()
        logger.info("%s: the classifier %r begins at %d class centres", where, path, linear.out_features)


def _linear_paths(place: str, student: nn.Module) -> list[str]:
    paths = [prefix.removesuffix(".") for prefix in classifier_paths(student)]
    others = [path for path in paths if not isinstance(student.get_submodule(path), nn.Linear)]
    if others or not paths:
        found = f"{others[0]!r} is a {type(student.get_submodule(others[0])).__name__}" if others else "none is found"
        raise ConfigError(f"{place}: needs classifiers that are Linear, {found} in {type(student).__name__}")
    return paths
