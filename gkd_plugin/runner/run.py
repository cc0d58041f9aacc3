"""One run: a configuration in, a run folder out."""

from __future__ import annotations

import logging
import logging.handlers
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from torchdistill.common.main_util import set_seed

from gkd_plugin.data import ImageInput, class_names_of, normalisation_of
from gkd_plugin.errors import ConfigError, told_at
from gkd_plugin.fingerprint import teacher_key
from gkd_plugin.losses import EmbeddingStage
from gkd_plugin.runner.accuracy import evaluate
from gkd_plugin.runner.building import build_box, build_test_loader, section_name, stage_configs
from gkd_plugin.runner.checkpoints import read_weights, save_student, save_upstream_checkpoint
from gkd_plugin.runner.classifier_start import is_asked_for, start_at_centres
from gkd_plugin.runner.compiling import compile_models
from gkd_plugin.runner.config import RunConfig
from gkd_plugin.runner.crd_check import check_crd
from gkd_plugin.runner.data_checks import check_data, check_trained_classes
from gkd_plugin.runner.devices import Placement, make_accelerator, read_placement
from gkd_plugin.runner.forward_check import check_forward, first_images
from gkd_plugin.runner.hook_checks import check_hooks
from gkd_plugin.runner.models import TEACHER, build_model, student_entry
from gkd_plugin.runner.ncm_readout import final_ncm, student_embedding_path
from gkd_plugin.runner.run_folder import RunFolder, package_versions
from gkd_plugin.runner.teacher_cache import TeacherCache
from gkd_plugin.runner.teacher_check import check_teacher
from gkd_plugin.runner.training import LAST_EPOCHS, train_epochs
from gkd_plugin.runner.weights import load_weights
from gkd_plugin.teacher import RefilledTeacher

__all__ = ["RunOptions", "evaluate_checkpoint", "run_config"]

logger = logging.getLogger(__name__)

_LENGTHS = {"CosineAnnealingLR": "T_max", "OneCycleLR": "total_steps"}
"""Keyword of a scheduler that says in how many epochs it runs its course."""


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
        placement = read_placement(config.plain, options.device)
        accelerator = make_accelerator(placement)
        set_seed(options.seed)
        cache = TeacherCache.from_section(config.plain.get("teacher_cache"))
        with _held_back() as records:
            parts = _Parts.build(config.build(), placement, accelerator, cache)
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
        section = {**(config.plain.get("device") or {}), "teacher": None}
        placement = read_placement({"device": section}, device)
        accelerator = make_accelerator(placement)
        where, entry = student_entry(config.plain)
        student = build_model(where, {**entry, "src_ckpt": None})
        built = config.build()
        loader = build_test_loader(built, accelerator)
        if loader is None:
            raise ConfigError("has no test.test_data_loader to evaluate on")
    load_weights(student, checkpoint, "--checkpoint")
    dataset_id = built["test"]["test_data_loader"]["dataset_id"]
    trained = read_weights(checkpoint, "--checkpoint").classes
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


@dataclass
class _Parts:
    """The built objects of a run."""

    box: Any
    student: nn.Module
    student_path: str
    student_entry: Mapping[str, Any]
    num_classes: int | None
    stages: dict[str, int]
    val_freq: int
    test_loader: Any
    accelerator: Accelerator
    dst_ckpt: Path | None
    image_input: ImageInput
    class_names: list[str] | None
    cache: TeacherCache | None
    embedding_path: str | None

    @classmethod
    def build(
        cls, built: Mapping[str, Any], placement: Placement, accelerator: Accelerator, cache: TeacherCache | None
    ) -> _Parts:
        where, entry = student_entry(built)
        student = build_model(where, entry)
        num_classes = _num_classes(student, entry)
        stages = stage_configs(built["train"])
        check_data(built, where, num_classes, stages)
        teacher_entry = built["models"].get("teacher_model")
        teacher = None if teacher_entry is None else build_model(TEACHER, teacher_entry)
        sections = {section_name(name): stage for name, stage in stages.items()}
        check_crd(sections, built["datasets"])
        check_hooks(sections, teacher, student)
        dataset = built["datasets"][next(iter(stages.values()))["train_data_loader"]["dataset_id"]]
        images = first_images(dataset)
        check_forward(where, student.to(accelerator.device).eval(), images, accelerator)
        if is_asked_for(entry):
            start_at_centres(where, student, _plain_loader(dataset, next(iter(stages.values()))), accelerator)
        destination = entry.get("dst_ckpt")
        if placement.channels_last:
            for model in filter(None, (student, teacher)):
                model.to(memory_format=torch.channels_last)
        box = build_box(cache.fix_views(built) if cache else built, teacher, student, placement, accelerator)
        if teacher is not None:
            check_forward(TEACHER, box.teacher_model.eval(), images, accelerator)
        if cache is not None:
            cache.open(box, accelerator)
        compile_models(placement.compile, student, teacher)
        _warn_of_unread(built, where, entry)
        _warn_of_schedules(sections)
        return cls(
            box=box,
            student=student,
            student_path=where,
            student_entry=entry,
            num_classes=num_classes,
            stages={name: stage["num_epochs"] for name, stage in stages.items()},
            val_freq=built["train"].get("val_freq", 1),
            test_loader=build_test_loader(built, accelerator),
            accelerator=accelerator,
            dst_ckpt=None if destination is None else Path(destination),
            image_input=replace(
                normalisation_of(_last_training_set(built, stages)), size=(images.shape[-2], images.shape[-1])
            ),
            class_names=_names_of_all(num_classes, _last_training_set(built, stages)),
            cache=cache,
            embedding_path=student_embedding_path(entry, stages),
        )


def _train(
    config: RunConfig, options: RunOptions, placement: Placement, parts: _Parts, folder: RunFolder
) -> dict[str, Any]:
    start = time.perf_counter()
    summary = {**_new_summary(config, options, placement, parts), "warnings": folder.warnings}
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
            logger.info("%s", _line(row, parts.stages))
        if parts.cache is not None:
            summary["teacher_cache"] = parts.cache.reports
        summary["final"] = _final(parts, summary)
        summary["status"] = "finished"
        _log_final(summary["final"])
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


def _new_summary(config: RunConfig, options: RunOptions, placement: Placement, parts: _Parts) -> dict[str, Any]:
    return {
        "config": str(config.path),
        "status": "running",
        "seed": options.seed,
        "device": str(placement.device),
        "teacher_device": None if placement.teacher is None else str(placement.teacher),
        "precision": placement.precision,
        "teacher_dtype": placement.teacher_dtype,
        "channels_last": placement.channels_last,
        "compile": placement.compile,
        "processes": parts.accelerator.num_processes,
        "versions": package_versions(),
        "student": {
            "key": parts.student_entry["key"],
            "kwargs": {k: v for k, v in (parts.student_entry.get("kwargs") or {}).items() if _is_plain(v)},
            "classes": parts.num_classes,
            "parameters": sum(p.numel() for p in parts.student.parameters()),
        },
        "stages": {name: {"num_epochs": count, "epochs": []} for name, count in parts.stages.items()},
    }


def _save(parts: _Parts, folder: RunFolder, summary: Mapping[str, Any], row: Mapping[str, Any]) -> None:
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


def _final(parts: _Parts, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy of the last epoch's weights on the test set, and the mean of the last three validation figures.

    On the test set that is the classifier's, and the embedding's by nearest class mean.
    """
    rows = [row for stage in summary["stages"].values() for row in stage["epochs"]]
    last = list(summary["stages"].values())[-1]["epochs"]
    final: dict[str, Any] = {}
    if parts.test_loader is not None:
        parts.student.eval()
        with parts.accelerator.autocast():  # the student was unwrapped at the end of its last stage
            final |= evaluate(parts.student, parts.test_loader, parts.accelerator, "test").as_dict()
            final |= final_ncm(
                parts.student,
                parts.embedding_path,
                parts.box.train_data_loader,
                parts.test_loader,
                parts.accelerator,
                num_classes=parts.num_classes,
            )
        final["on"] = "test"
    elif "top1" in rows[-1]:
        final |= {key: value for key, value in rows[-1].items() if _is_accuracy(key)}
        final["on"] = "validation"
    tail = [row["top1"] for row in last[-LAST_EPOCHS:] if "top1" in row]
    if tail:
        final["val_top1_last3"] = sum(tail) / len(tail)
    return final


def _line(row: Mapping[str, Any], stages: Mapping[str, int]) -> str:
    """One epoch in one line of text."""
    head = f"{row['stage']} {row['epoch']}/{stages[row['stage']]}"
    hidden = {"stage", "epoch", "seconds", "images_per_second"}
    shown = "  ".join(f"{key} {value:.4g}" for key, value in row.items() if key not in hidden)
    return f"{head}  {shown}  {row['images_per_second']:.0f} img/s"


def _is_accuracy(key: str) -> bool:
    """Whether a metrics row's key is one of ``Accuracy.as_dict``."""
    return key in ("top1", "top5", "harmonic_mean") or key.endswith("_top1")


def _log_final(final: Mapping[str, Any]) -> None:
    if "top1" not in final:
        return
    others = [key for key in final if _is_accuracy(key) and key != "top1" and not key.startswith("ncm_")]
    shown = "".join(f", {key.replace('_', ' ').replace('top', 'top-')} {final[key]:.2f} %" for key in others)
    logger.info("final top-1 on the %s set %.2f %%%s", final["on"], final["top1"], shown)
    if "ncm_top1" in final:
        logger.info("final NCM accuracy of the embedding on the test set %.2f %%", final["ncm_top1"])


def _plain_loader(dataset: Any, stage: Mapping[str, Any]) -> DataLoader[Any]:
    """The stage's training set in batches and workers like the stage's own."""
    kwargs = stage["train_data_loader"].get("kwargs") or {}
    return DataLoader(dataset, batch_size=kwargs.get("batch_size") or 128, num_workers=kwargs.get("num_workers", 0))


def _last_training_set(built: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]) -> Any:
    return built["datasets"][list(stages.values())[-1]["train_data_loader"]["dataset_id"]]


def _warn_of_unread(built: Mapping[str, Any], where: str, entry: Mapping[str, Any]) -> None:
    """What torchdistill's scripts read and this runner does not (yet)."""
    if built.get("tracker"):
        logger.warning("tracker: not read by refilled; metrics.jsonl holds the figures")
    if entry.get("sync_bn"):
        logger.warning("%s.sync_bn: not read by refilled", where)


def _warn_of_schedules(sections: Mapping[str, Mapping[str, Any]]) -> None:
    """A cycle that does not end with its stage leaves the learning rate somewhere, or takes it up again."""
    for section, stage in sections.items():
        scheduler, epochs = stage.get("scheduler") or {}, stage["num_epochs"]
        name = _LENGTHS.get(str(scheduler.get("key")), "")
        length = (scheduler.get("kwargs") or {}).get(name)
        if length is not None and not scheduler.get("scheduling_step") and length != epochs:
            logger.warning("%s.scheduler.kwargs.%s: %s, but the stage has %s epochs", section, name, length, epochs)


def _names_of_all(num_classes: int | None, dataset: Any) -> list[str] | None:
    """The names of the student's classes, where its training set has one for each."""
    names = class_names_of(dataset)
    return names if names is not None and len(names) == num_classes else None


def _num_classes(student: nn.Module, entry: Mapping[str, Any]) -> int | None:
    value = getattr(student, "num_classes", None) or (entry.get("kwargs") or {}).get("num_classes")
    return value if isinstance(value, int) and value > 0 else None


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float | bool | list | dict | type(None))
