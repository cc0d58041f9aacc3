"""A student's new classifier that begins as the nearest class mean of its own embedding."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from gkd_plugin.errors import ConfigError, user_can_mend
from gkd_plugin.functional import ClassCentreAccumulator
from gkd_plugin.runner.weights import classifier_paths
from gkd_plugin.teacher import clean_loader

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
    starts = {path: _Start(linear) for path, linear in _linears(place, student).items()}
    try:
        with torch.random.fork_rng(devices=[]), user_can_mend(place), accelerator.autocast():
            for batch in tqdm(clean_loader(train_loader), desc="class centres", leave=False, disable=None):
                student(batch[0].to(accelerator.device))
                for start in starts.values():
                    start.add(batch[1])
            weights = {path: start.weight() for path, start in starts.items()}
    finally:
        for start in starts.values():
            start.hook.remove()
    for path, start in starts.items():
        start.linear.weight.copy_(weights[path])
        if start.linear.bias is not None:
            start.linear.bias.zero_()
        logger.info("%s: the classifier %r begins at %d class centres", where, path, start.linear.out_features)


class _Start:
    """What a classifier was given so far."""

    def __init__(self, linear: nn.Linear) -> None:
        self.linear = linear
        self.hook = linear.register_forward_pre_hook(self._keep)
        self._rows: Tensor | None = None
        self._centres = ClassCentreAccumulator(linear.out_features)
        self._lengths: list[Tensor] = []

    def _keep(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._rows = inputs[0].float()

    def add(self, labels: Tensor) -> None:
        """The labels of what the last forward pass gave it."""
        assert self._rows is not None
        self._centres.update(self._rows, labels)
        self._lengths.append(self._rows.norm(dim=1).cpu())

    def weight(self) -> Tensor:
        """``[C, D]``, as the classifier's own."""
        rows = self._centres.result() * (SCALE / torch.cat(self._lengths).mean())
        return rows.to(self.linear.weight)


def _linears(place: str, student: nn.Module) -> dict[str, nn.Linear]:
    """The student's classifiers by their paths."""
    modules = {key[:-1]: student.get_submodule(key[:-1]) for key in classifier_paths(student)}
    linears = {path: module for path, module in modules.items() if isinstance(module, nn.Linear)}
    others = [f"{path!r} is a {type(module).__name__}" for path, module in modules.items() if path not in linears]
    if others or not modules:
        found = others[0] if others else "none is found"
        raise ConfigError(f"{place}: needs classifiers that are Linear, {found} in {type(student).__name__}")
    return linears
