"""One run or several: configurations in, run folders out."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torchdistill.common.main_util import set_seed

from gkd_plugin.cache.fingerprint import teacher_key
from gkd_plugin.cache.teacher_cache import TeacherCache
from gkd_plugin.config.config import RunConfig, checked_config, load_config
from gkd_plugin.config.stages import Stage, student_entry
from gkd_plugin.errors import ConfigError, told_at
from gkd_plugin.runner.accuracy import evaluate
from gkd_plugin.runner.data_checks import check_trained_classes
from gkd_plugin.runner.devices import make_accelerator, read_placement
from gkd_plugin.runner.models import build_model, start_at_centres
from gkd_plugin.runner.parts import Parts, build_test_loader
from gkd_plugin.runner.run_folder import RunFolder, check_run_folder
from gkd_plugin.runner.summary import epoch_line, final_figures, log_final, new_summary
from gkd_plugin.runner.teacher_check import check_teacher
from gkd_plugin.runner.training import train_epochs
from gkd_plugin.runner.weights import load_weights, save_student, save_upstream_checkpoint
from gkd_plugin.teacher import RefilledTeacher

__all__ = ["evaluate_checkpoint", "run_all", "run_config"]

logger = logging.getLogger(__name__)

RUNS = Path("runs")


# --- several configurations ------------------------------------------------------------------------------------------


def run_all(
    paths: Sequence[Path],
    *,
    overrides: Sequence[str] = (),
    output: Path | None = None,
    seed: int = 0,
    device: str | None = None,
) -> list[dict[str, Any]]:
    """Trains each configuration, in order; a later one may load what an earlier one writes (``dst_ckpt``).

    Args:
        paths: the configurations.
        overrides: ``key.path=value``, applied to each.
        output: the run folder, or with several configurations the folder that holds one for each. A ``dst_ckpt``
            inside the default run folder ``runs/<stem>`` moves along, and so does a ``src_ckpt`` that names it.
        seed: of every random number.
        device: overrides ``device.default``.

    Returns:
        The summaries.

    Raises:
        ConfigError: a configuration cannot be used. All that its text shows is found before any of them runs.
    """
    folders = _folders(paths, output)
    written: dict[str, str] = {}
    configs: list[RunConfig] = []
    for path, folder in zip(paths, folders, strict=True):
        config = load_config(path, overrides, produced=tuple(written))
        moved = _with_moved_checkpoints(config, folder, written)
        if moved != config.tree:
            config = checked_config(path, moved, config.notices, produced=tuple(written.values()))
        with told_at(f"{path}: "):
            read_placement(config.tree, device)
        destination = student_entry(config.tree)[1].get("dst_ckpt")
        check_run_folder(folder, None if destination is None else Path(destination))
        configs.append(config)
    return [
        run_config(config, folder, seed=seed, device=device) for config, folder in zip(configs, folders, strict=True)
    ]


def _folders(paths: Sequence[Path], output: Path | None) -> list[Path]:
    """The run folder of each configuration; refuses one folder for two, and one that holds the working directory."""
    folders = [(output or RUNS) / path.stem for path in paths]
    if output is not None and len(paths) == 1:
        folders = [output]
    twice = {str(folder) for folder in folders if folders.count(folder) > 1}
    if twice:
        raise ConfigError(
            f"two configurations would write to {', '.join(sorted(twice))}: run them separately with --output"
        )
    here = Path.cwd().resolve()
    for folder in folders:
        if here.is_relative_to(folder.resolve()):
            raise ConfigError(f"--output: {folder} holds the working directory, so it cannot be a run folder")
    return folders


def _with_moved_checkpoints(config: RunConfig, folder: Path, written: dict[str, str]) -> dict[str, Any]:
    """The config's tree with its checkpoints where this command writes them.

    ``written`` maps the path of a checkpoint in the YAML to the place where this command writes it, for the
    configurations before; this one's is added.
    """
    models = {key: dict(entry) if isinstance(entry, dict) else entry for key, entry in config.tree["models"].items()}
    for entry in (entry for entry in models.values() if isinstance(entry, dict)):
        if entry.get("src_ckpt") is not None:
            entry["src_ckpt"] = written.get(_absolute(entry["src_ckpt"]), entry["src_ckpt"])
    student = student_entry({"models": models})[1]
    destination = student.get("dst_ckpt")
    if destination is not None:
        default = RUNS / config.path.stem
        if Path(destination).is_relative_to(default):
            student["dst_ckpt"] = str(folder / Path(destination).relative_to(default))
        written[_absolute(destination)] = student["dst_ckpt"]
    return {**config.tree, "models": models}


def _absolute(path: str) -> str:
    return os.path.abspath(path)  # noqa: PTH100  # Path.absolute() keeps '..'


# --- one configuration -----------------------------------------------------------------------------------------------


def run_config(config: RunConfig, output: Path, *, seed: int = 0, device: str | None = None) -> dict[str, Any]:
    """Trains what the configuration says.

    Args:
        config: the configuration.
        output: the run folder.
        seed: of every random number.
        device: overrides ``device.default``.

    Returns:
        The summary, as in ``summary.json``.

    Raises:
        ConfigError: something in the configuration or the data cannot be used; nothing is written before all
            of it was built.
    """
    with told_at(f"{config.path}: "):
        placement = read_placement(config.tree, device)
        accelerator = make_accelerator(placement)
        set_seed(seed)
        cache = TeacherCache.from_section(config.tree.get("teacher_cache"))
        with _held_back() as records:
            parts = Parts.build(config.build(), placement, accelerator, cache)
    accelerator.wait_for_everyone()  # the folder may hold weights that another process still reads
    folder = RunFolder(output, accelerator.is_main_process)
    folder.create(config.text)
    with folder.log_file():
        for record in records:
            logging.getLogger(record.name).handle(record)
        for notice in config.notices:
            logger.info("%s", notice)
        logger.info(
            "%s → %s (device %s, precision %s)", config.path, folder.path, placement.device, placement.precision
        )
        summary = {**new_summary(config.path, seed, placement, parts), "warnings": folder.warnings}
        _run(config, parts, folder, summary)
    accelerator.wait_for_everyone()  # a later configuration may load what the main process has written
    return summary


@contextmanager
def _held_back() -> Iterator[list[logging.LogRecord]]:
    """Keeps this package's log lines while a run is built: they go to its log.txt, or nowhere if building fails."""
    handler = logging.handlers.BufferingHandler(capacity=sys.maxsize)
    ours = logging.getLogger("gkd_plugin")
    handlers, propagates = ours.handlers, ours.propagate
    ours.handlers, ours.propagate = [handler], False
    try:
        yield handler.buffer
    finally:
        ours.handlers, ours.propagate = handlers, propagates


def _run(config: RunConfig, parts: Parts, folder: RunFolder, summary: dict[str, Any]) -> None:
    """Trains, and keeps ``summary.json`` up to date, whatever ends the training."""
    start = time.perf_counter()
    folder.write_summary(summary)
    try:
        _train(parts, folder, summary)
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


def _train(parts: Parts, folder: RunFolder, summary: dict[str, Any]) -> None:
    box, accelerator = parts.box, parts.accelerator
    if hasattr(box, "teacher_model"):
        summary["teacher"] = check_teacher(box, parts.num_classes, accelerator)
        if isinstance(box.teacher_model, RefilledTeacher):
            summary["teacher_weights"] = teacher_key(box.teacher_model.teacher)
    for stage, row in train_epochs(box, parts.student, parts.stages, accelerator, parts.cache, val_freq=parts.val_freq):
        summary["stages"][stage.name]["epochs"].append(row)
        folder.add_metrics(row)
        has_next_stage = row["epoch"] == stage.epochs and not stage.is_last
        _save(parts, folder, summary, stage if has_next_stage else None)
        starts_at_centres = parts.student_entry.get("src_ckpt_classifier") == "centres"
        if starts_at_centres and has_next_stage and not stage.trains_classifier:  # it fits the embedding no more
            start_at_centres(parts.student_path, parts.student, box.train_data_loader, accelerator)
        logger.info("%s", epoch_line(stage, row))
    if parts.cache is not None:
        summary["teacher_cache"] = parts.cache.reports
    summary["final"] = final_figures(parts, summary)


def _save(parts: Parts, folder: RunFolder, summary: Mapping[str, Any], ended: Stage | None) -> None:
    """The student's weights after an epoch: alone, and where the YAML says so in torchdistill's format.

    Those at the end of a stage that others follow are kept, because the next stage changes them.
    """
    if not all(bool(torch.isfinite(value).all()) for value in parts.student.state_dict().values()):
        raise ConfigError("the student's weights are not finite any more: they are not saved")
    if not parts.accelerator.is_main_process:
        return
    student = summary["student"]
    name = str(student["kwargs"].get("model_name", student["key"]))
    rows = [row for stage in summary["stages"].values() for row in stage["epochs"]]
    epochs = (len(rows), sum(stage.epochs for stage in parts.stages))
    about: dict[str, Any] = {"image_input": parts.image_input, "classes": parts.class_names}
    save_student(parts.student, folder.student, name, **about, epochs=epochs)
    if ended is not None:
        save_student(parts.student, folder.student_after(ended.name), name, **about)
    destination = parts.student_entry.get("dst_ckpt")
    if destination is not None:
        best, box = rows[-1].get("top1", 0.0), parts.box
        save_upstream_checkpoint(
            parts.student, box.optimizer, box.lr_scheduler, best, Path(destination), **about, epochs=epochs
        )


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
