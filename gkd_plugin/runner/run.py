"""One run: a configuration in, a run folder out."""

from __future__ import annotations

import logging
import logging.handlers
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchdistill.common.main_util import set_seed

from gkd_plugin.cache.fingerprint import teacher_key
from gkd_plugin.cache.teacher_cache import TeacherCache
from gkd_plugin.config.config import RunConfig
from gkd_plugin.errors import ConfigError, told_at
from gkd_plugin.losses import EmbeddingStage
from gkd_plugin.runner.accuracy import evaluate
from gkd_plugin.runner.building import build_test_loader
from gkd_plugin.runner.checkpoints import save_student, save_upstream_checkpoint
from gkd_plugin.runner.classifier_start import is_asked_for, start_at_centres
from gkd_plugin.runner.data_checks import check_trained_classes
from gkd_plugin.runner.devices import Placement, make_accelerator, read_placement
from gkd_plugin.runner.models import build_model, student_entry
from gkd_plugin.runner.outcome import epoch_line, final_figures, log_final, new_summary
from gkd_plugin.runner.parts import Parts
from gkd_plugin.runner.run_folder import RunFolder
from gkd_plugin.runner.teacher_check import check_teacher
from gkd_plugin.runner.training import train_epochs
from gkd_plugin.runner.weights import load_weights
from gkd_plugin.teacher import RefilledTeacher

__all__ = ["RunOptions", "evaluate_checkpoint", "run_config"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """What the command line adds to a configuration.

    Attributes:
        output: the run folder.
        seed: of every random number.
        device: goes before ``device.default``.
    """

    output: Path
    seed: int = 0
    device: str | None = None


def run_config(config: RunConfig, options: RunOptions) -> dict[str, Any]:
    """Trains what the configuration says.

    Returns:
        The summary, as in ``summary.json``.

    Raises:
        ConfigError: something in the configuration or the data cannot be used; nothing is written before all
            of it was built.
    """
    with told_at(f"{config.path}: "):
        placement = read_placement(config.tree, options.device)
        accelerator = make_accelerator(placement)
        set_seed(options.seed)
        cache = TeacherCache.from_section(config.tree.get("teacher_cache"))
        with _held_back() as records:
            parts = Parts.build(config.build(), placement, accelerator, cache)
    accelerator.wait_for_everyone()  # the folder may hold weights that another process still reads
    folder = RunFolder(options.output, accelerator.is_main_process)
    folder.create(config.text)
    with folder.log_file():
        for record in records:
            logging.getLogger(record.name).handle(record)
        for notice in config.notices:
            logger.info("%s", notice)
        logger.info(
            "%s → %s (device %s, precision %s)", config.path, folder.path, placement.device, placement.precision
        )
        summary = _train(config, options, placement, parts, folder)
    accelerator.wait_for_everyone()  # a later configuration may load what the main process has written
    return summary


def evaluate_checkpoint(config: RunConfig, checkpoint: Path, device: str | None = None) -> dict[str, Any]:
    """Accuracy of a saved student on the test set of its configuration.

    Raises:
        ConfigError: the checkpoint cannot be read, does not fit the student or is of classes in another order, or
            there is no test set.
    """
    with told_at(f"{config.path}: "):
        section = {**(config.tree.get("device") or {}), "teacher": None}
        placement = read_placement({"device": section}, device)
        accelerator = make_accelerator(placement)
        where, entry = student_entry(config.tree)
        student = build_model(where, {**entry, "src_ckpt": None})
        built = config.build()
        loader = build_test_loader(built, accelerator)
        if loader is None:
            raise ConfigError("has no test.test_data_loader to evaluate on")
    trained = load_weights(student, checkpoint, "--checkpoint").classes
    dataset_id = built["test"]["test_data_loader"]["dataset_id"]
    check_trained_classes(trained, dataset_id, built["datasets"][dataset_id], f"--checkpoint: {checkpoint}")
    student.to(accelerator.device).eval()
    with accelerator.autocast():
        accuracy = evaluate(student, loader, accelerator)
    return {**accuracy.as_dict(), "samples": accuracy.samples}


@contextmanager
def _held_back() -> Iterator[list[logging.LogRecord]]:
    """Keeps this package's log lines while a run is built: they belong in its log.txt, or with an error nowhere."""
    handler = logging.handlers.BufferingHandler(capacity=sys.maxsize)
    ours = logging.getLogger("gkd_plugin")
    handlers, propagates = ours.handlers, ours.propagate
    ours.handlers, ours.propagate = [handler], False
    try:
        yield handler.buffer
    finally:
        ours.handlers, ours.propagate = handlers, propagates


def _train(
    config: RunConfig, options: RunOptions, placement: Placement, parts: Parts, folder: RunFolder
) -> dict[str, Any]:
    start = time.perf_counter()
    summary = {**new_summary(str(config.path), options.seed, placement, parts), "warnings": folder.warnings}
    folder.write_summary(summary)
    try:
        if hasattr(parts.box, "teacher_model"):
            summary["teacher"] = check_teacher(parts.box, parts.num_classes, parts.accelerator)
            if isinstance(parts.box.teacher_model, RefilledTeacher):
                summary["teacher_weights"] = teacher_key(parts.box.teacher_model.teacher)
        for row in train_epochs(
            parts.box, parts.student, parts.stages, parts.accelerator, parts.cache, val_freq=parts.val_freq
        ):
            summary["stages"][row["stage"]]["epochs"].append(row)
            folder.add_metrics(row)
            _save(parts, folder, summary, row)
            if is_asked_for(parts.student_entry) and _ends_stage(row, parts.stages) and _left_classifier(parts.box):
                start_at_centres(parts.student_path, parts.student, parts.box.train_data_loader, parts.accelerator)
            logger.info("%s", epoch_line(row, parts.stages))
        if parts.cache is not None:
            summary["teacher_cache"] = parts.cache.reports
        summary["final"] = final_figures(parts, summary)
        summary["status"] = "finished"
        log_final(summary["final"])
    except ConfigError as error:
        summary |= {"status": "failed", "error": str(error)}
        logging.getLogger().error("%s", error)  # noqa: TRY400  # to log.txt; the console shows what is raised
        kept = f"; the last good weights are {folder.student}" if folder.student.exists() else ""
        raise ConfigError(f"{config.path}: {error}{kept}") from error
    finally:
        summary["wall_seconds"] = round(time.perf_counter() - start, 3)
        if summary["status"] == "running":
            summary["status"] = f"stopped ({getattr(sys.exc_info()[0], '__name__', 'unknown')})"
        folder.write_summary(summary)
    parts.box.clean_modules()
    return summary


def _save(parts: Parts, folder: RunFolder, summary: Mapping[str, Any], row: Mapping[str, Any]) -> None:
    """The student's weights after an epoch: alone, and where the YAML says so in torchdistill's format.

    At the end of a stage that others follow they are kept, because the next stage changes them.
    """
    if not all(bool(torch.isfinite(value).all()) for value in parts.student.state_dict().values()):
        raise ConfigError("the student's weights are not finite any more: they are not saved")
    if not parts.accelerator.is_main_process:
        return
    student = summary["student"]
    name = str(student["kwargs"].get("model_name", student["key"]))
    rows = [row for stage in summary["stages"].values() for row in stage["epochs"]]
    epochs = (len(rows), sum(parts.stages.values()))
    save_student(parts.student, folder.student, name, parts.image_input, epochs=epochs, classes=parts.class_names)
    if _ends_stage(row, parts.stages):
        save_student(
            parts.student, folder.student_after(row["stage"]), name, parts.image_input, classes=parts.class_names
        )
    if parts.dst_ckpt is not None:
        save_upstream_checkpoint(
            parts.student,
            parts.box.optimizer,
            parts.box.lr_scheduler,
            rows[-1].get("top1", 0.0),
            parts.dst_ckpt,
            image_input=parts.image_input,
            epochs=epochs,
            classes=parts.class_names,
        )


def _left_classifier(box: Any) -> bool:
    """Whether the box is in a stage that leaves the classifier as it is, which then fits the embedding no more."""
    return isinstance(box.criterion, EmbeddingStage) and not box.criterion.term_dict


def _ends_stage(row: Mapping[str, Any], stages: Mapping[str, int]) -> bool:
    """Whether an epoch is the last of a stage, and others follow."""
    return bool(row["epoch"] == stages[row["stage"]] and row["stage"] != list(stages)[-1])
