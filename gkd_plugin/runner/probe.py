"""Baselines without training: what the frozen teacher's embedding knows of the student's classes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import normalize
from torchdistill.common.main_util import set_seed

from gkd_plugin.config.config import RunConfig
from gkd_plugin.config.stages import student_entry
from gkd_plugin.errors import ConfigError, told_at
from gkd_plugin.functional import nearest_class_mean
from gkd_plugin.runner.accuracy import Score, evaluate
from gkd_plugin.runner.devices import make_accelerator, read_placement
from gkd_plugin.runner.models import TEACHER, build_model
from gkd_plugin.runner.parts import build_box, build_test_loader
from gkd_plugin.runner.run_folder import RunFolder
from gkd_plugin.runner.summary import new_summary
from gkd_plugin.teacher import RefilledTeacher, clean_loader, fit_class_centres

__all__ = ["PROBES", "run_probe"]

logger = logging.getLogger(__name__)


def run_probe(
    config: RunConfig, output: Path, probe: str, *, seed: int = 0, device: str | None = None
) -> dict[str, Any]:
    """Fits a classifier to the teacher's embeddings of the training set and writes a run folder with its accuracy.

    Args:
        config: with a teacher in the wrapper ``refilled_teacher`` and a test set.
        output: the run folder.
        probe: a key of :data:`PROBES`.
        seed: of every random number.
        device: overrides ``device.default``.

    Returns:
        The summary, as in ``summary.json``.

    Raises:
        ConfigError: there is no such teacher or no test set, or the data cannot be used.
    """
    start = time.perf_counter()
    with told_at(f"{config.path}: "):
        placement = read_placement(config.tree, device)
        accelerator = make_accelerator(placement)
        set_seed(seed)
        built = config.build()
        where, entry = student_entry(built)
        student, teacher = build_model(where, entry), build_model(TEACHER, built["models"]["teacher_model"])
        box = build_box(built, teacher, student, placement, accelerator)
        loader = build_test_loader(built, accelerator)
        if not isinstance(box.teacher_model, RefilledTeacher):
            raise ConfigError("the teacher has no wrapper 'refilled_teacher', which gives its embedding")
        if loader is None:
            raise ConfigError("has no test.test_data_loader to evaluate on")
        folder = RunFolder(output, accelerator.is_main_process)
        folder.create(config.text)
        num_classes = getattr(student, "num_classes", None) or entry["kwargs"]["num_classes"]
        with folder.log_file(), accelerator.autocast():
            score = PROBES[probe](box.teacher_model, box.train_data_loader, num_classes, accelerator)
            final = evaluate(score, loader, accelerator, "test").as_dict()
            logger.info("%s on the frozen network: top-1 on the test set %.2f %%", probe, final["top1"])
    box.clean_modules()
    summary = {
        **new_summary(config.path, seed, placement),
        "status": "finished",
        "probe": probe,
        "warnings": folder.warnings,
        "stages": {},
        "final": {**final, "on": "test"},
        "wall_seconds": round(time.perf_counter() - start, 3),
    }
    folder.write_summary(summary)
    return summary


def _nearest_class_mean(teacher: RefilledTeacher, train_loader: Any, *_: Any) -> Score:
    """Cosine similarity to the class centres."""
    teacher.local_classifier.kind = "centres"  # whatever the wrapper's keyword asks for
    fit_class_centres(teacher, train_loader)
    centres = teacher.local_classifier.centres
    return lambda images: nearest_class_mean(teacher.embed(images), centres)


def _logistic_regression(
    teacher: RefilledTeacher, train_loader: Any, num_classes: int, accelerator: Accelerator
) -> Score:
    """Multinomial, C = 1, on embeddings of length 1, as Tian et al. 2020 ("Rethinking Few-Shot Image Classification").

    Every class has the same weight, whatever its number of samples: old classes with a few exemplars would otherwise
    never be predicted. A class without a sample has probability 0.
    """
    from sklearn.linear_model import LogisticRegression

    batches = [
        (normalize(teacher.embed(batch[0].to(accelerator.device))), batch[1]) for batch in clean_loader(train_loader)
    ]
    embeddings, labels = (torch.cat(parts).cpu() for parts in zip(*batches, strict=True))
    model = LogisticRegression(C=1.0, max_iter=1000, class_weight="balanced").fit(
        embeddings.double().numpy(), labels.numpy()
    )

    def score(images: Tensor) -> Tensor:
        rows = normalize(teacher.embed(images)).cpu().double().numpy()
        probabilities = torch.zeros(len(rows), num_classes)
        probabilities[:, torch.from_numpy(model.classes_).long()] = torch.from_numpy(model.predict_proba(rows)).float()
        return probabilities

    return score


PROBES: dict[str, Callable[[RefilledTeacher, Any, int, Accelerator], Score]] = {
    "ncm": _nearest_class_mean,
    "logistic_regression": _logistic_regression,
}
"""What can be fitted to the teacher's embeddings."""
