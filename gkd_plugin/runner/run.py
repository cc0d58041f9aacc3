"""One run or several: configurations in, run folders out."""

import logging
import logging.handlers
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import torch
from torchdistill.common.main_util import set_seed

from gkd_plugin.cache.fingerprint import model_key
from gkd_plugin.cache.teacher_cache import TeacherCache
from gkd_plugin.config.config import RunConfig, checked_config, load_config
from gkd_plugin.config.schema import absolute
from gkd_plugin.config.stages import Stage, stages_of, student_entry
from gkd_plugin.errors import ConfigError, first_line, raised_in, told_at
from gkd_plugin.runner.accuracy import PROBES, advise, check_teacher, evaluate, final_figures, is_accuracy, measured
from gkd_plugin.runner.checkpoints import NOT_FINITE, Checkpoints
from gkd_plugin.runner.checks import check_trained_classes
from gkd_plugin.runner.devices import Placement, make_accelerator, read_placement
from gkd_plugin.runner.division import divide
from gkd_plugin.runner.dry_run import dry_runs
from gkd_plugin.runner.models import TEACHER, build_model, start_at_centres, without_weights
from gkd_plugin.runner.parts import Parts, build_box, build_test_loader, num_classes_of
from gkd_plugin.runner.run_folder import (
    FAILED,
    FINISHED,
    RunFolder,
    check_run_folder,
    holds_run,
    numbered,
    package_versions,
)
from gkd_plugin.runner.tracking import Track, tracked
from gkd_plugin.runner.training import Training
from gkd_plugin.runner.weights import load_weights, read_weights, save_student, save_upstream_checkpoint
from gkd_plugin.teacher import RefilledTeacher

logger = logging.getLogger(__name__)

RUNS = Path("runs")


def run_all(
    paths: Sequence[Path],
    *,
    overrides: Sequence[str] = (),
    output: Path | None = None,
    seed: int = 0,
    device: str | None = None,
    earlier: str = "keep",
) -> list[dict[str, Any]]:
    """Trains each configuration, in order; gives their summaries, each with the ``folder`` that it went to.

    A later one may load what an earlier one writes. What is wrong in any is told before the first one runs.
    ``overrides`` (``key.path=value``) apply to each. ``output`` is the run folder, or with several configurations the
    folder that holds one for each. A ``dst_ckpt`` inside a folder of ``runs`` goes to the run folder, and a
    ``src_ckpt`` that names it follows.

    Where a run is there already, ``earlier`` says what becomes of it: ``'keep'``, the new one goes to ``<folder>-2``
    and so on; ``'overwrite'``; ``'resume'``, the last one of these goes on. Of several configurations, one that fails
    while it runs has the status 'failed', and the others run; a single one raises what stopped it.
    """
    folders: list[Path] = []
    written: dict[str, str] = {}
    configs: list[RunConfig] = []
    for path, base in zip(paths, _folders(paths, output), strict=True):
        read = load_config(path, overrides, produced=tuple(written))
        folder = _numbered_folder(base, earlier)
        config, known = _placed(read, folder, written)
        there = RunFolder(folder)
        if earlier == "resume" and there.is_finished and (differs := there.other_than(config.text, seed)):
            folder = _numbered_folder(base, "keep")
            config, known = _placed(read, folder, written)
            logger.info("%s; so a new run begins in %s", differs, folder)
        written = known
        folders.append(folder)
        with told_at(f"{path}: "):
            read_placement(config.tree, device)
        destination = student_entry(config.tree)[1].get("dst_ckpt")
        check_run_folder(folder, None if destination is None else Path(destination))
        configs.append(config)
    if len(configs) > 1:
        logger.info("checking all %d configurations before the first one runs", len(configs))
        with _lines(shown=False), dry_runs(device) as dry_run:
            for config, folder in zip(configs, folders, strict=True):
                dry_run(config, folder)
    summaries: list[dict[str, Any]] = []
    for config, folder in zip(configs, folders, strict=True):
        try:
            mode = earlier.replace("keep", "aside")
            summary = run_config(config, folder, seed=seed, device=device, earlier=mode)
        except Exception as error:  # whatever it is, the others run
            if len(configs) == 1 and isinstance(error, torch.OutOfMemoryError):
                raise ConfigError(f"{config.path}: {first_line(error)}") from error
            if len(configs) == 1:
                raise
            is_known = isinstance(error, ConfigError | OSError)
            text = str(error) if is_known else f"{config.path}: {first_line(error)} ({raised_in(error)})"
            logger.error("%s", text)  # noqa: TRY400
            summary = {"status": FAILED}
        summaries.append({**summary, "folder": str(folder)})
    return summaries


def _numbered_folder(folder: Path, earlier: str) -> Path:
    """The folder, or the first of ``<folder>-2`` … without a run; to go on, the last one with a run."""
    taken = [] if earlier == "overwrite" else list(takewhile(holds_run, numbered(folder)))
    if earlier == "resume":
        return taken[-1] if taken else folder
    return next(islice(numbered(folder), len(taken), None))


def check_all(
    paths: Sequence[Path], *, overrides: Sequence[str] = (), device: str | None = None, builds: bool = True
) -> Iterator[str | Exception]:
    """For each configuration a line where it would run, or what is wrong with it; trains and writes nothing.

    Unless it ``builds``, it imports no module and calls no function that a file names.
    """
    produced: list[str] = []
    with dry_runs(device) as dry_run:
        for path in paths:
            found: str | Exception
            try:
                config = load_config(path, overrides, produced=produced, imports=builds)
                if destination := student_entry(config.tree)[1].get("dst_ckpt"):
                    produced.append(absolute(destination))
                found = dry_run(config, RUNS / path.stem) if builds else f"{path}: valid, not built"
            except (ConfigError, OSError) as error:
                found = error
            yield found


def _folders(paths: Sequence[Path], output: Path | None) -> list[Path]:
    """The run folder of each configuration; refuses one folder for two, and one that holds the working directory."""
    folders = [output] if output and len(paths) == 1 else [(output or RUNS) / path.stem for path in paths]
    twice = {str(folder) for folder in folders if folders.count(folder) > 1}
    if twice:
        raise ConfigError(f"two configurations would write to {', '.join(sorted(twice))}: run each with its --output")
    for folder in folders:
        if Path.cwd().resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"--output: {folder} holds the working directory, so it cannot be a run folder")
    return folders


def _placed(config: RunConfig, folder: Path, written: Mapping[str, str]) -> tuple[RunConfig, dict[str, str]]:
    """The config with its checkpoints where this command writes them, and ``written`` with its own.

    ``written`` maps the checkpoints of the YAML files to these.
    """
    models = {key: dict(entry) if isinstance(entry, dict) else entry for key, entry in config.tree["models"].items()}
    for entry in models.values():
        if isinstance(entry, dict) and entry.get("src_ckpt") is not None:
            entry["src_ckpt"] = written.get(absolute(entry["src_ckpt"]), entry["src_ckpt"])
    student = student_entry({"models": models})[1]
    destination, known = student.get("dst_ckpt"), dict(written)
    if destination is not None:
        inside = Path(destination).relative_to(RUNS).parts if Path(destination).is_relative_to(RUNS) else ()
        if inside[1:]:  # runs/<any>/…: a copy of a configuration does not write where that one does
            student["dst_ckpt"] = str(folder.joinpath(*inside[1:]))
        known[absolute(destination)] = student["dst_ckpt"]
        if student["dst_ckpt"] != destination and Path(destination).exists():
            logger.info("%s: writes %s; %s stays as it is", config.path, student["dst_ckpt"], destination)
    tree = {**config.tree, "models": models}
    if tree == config.tree:
        return config, known
    return checked_config(config.path, tree, config.notices, produced=tuple(known.values())), known


def run_config(
    config: RunConfig,
    output: Path,
    *,
    seed: int = 0,
    device: str | None = None,
    earlier: str = "aside",
    keeps_checkpoints: bool = True,
) -> dict[str, Any]:
    """Trains what the configuration says, into the run folder ``output`` once all is built; gives ``summary.json``.

    What becomes of a run that is there says :class:`RunFolder`.
    """
    start = time.perf_counter()
    with told_at(f"{config.path}: "):
        placement = read_placement(config.tree, device)
        accelerator = make_accelerator(placement)
        set_seed(seed)
        folder = RunFolder(output, accelerator.is_main_process, earlier)
        if earlier == "resume":
            if differs := folder.other_than(config.text, seed):
                raise ConfigError(f"--resume: {differs}; to begin a new run, leave out --resume")
            if folder.is_finished:
                logger.info("%s: the run in %s has finished; nothing is left to train", config.path, output)
                return folder.summary
        cache = TeacherCache.from_section(config.tree.get("teacher_cache"))
        with _lines() as built:
            logger.info("%s → %s (device %s, precision %s)", config.path, output, placement.device, placement.precision)
            parts = Parts(config.build(), placement, accelerator, cache)
    accelerator.wait_for_everyone()  # the folder may hold weights that another process still reads
    with folder.opened(config.text, seed, built):
        accelerator.wait_for_everyone()  # an earlier run's checkpoints are gone
        folder.check_is_seen()
        for notice in config.notices:
            logger.info("%s", notice)
        if (processes := accelerator.num_processes) > 1:
            size = getattr(parts.box.train_data_loader.batch_sampler, "batch_size", 0)
            text = "%d processes with %d images each: a step takes %d images; the learning rate is used as written"
            logger.info(text, processes, size, processes * size)
        checkpoints = None
        if keeps_checkpoints and config.tree.get("checkpoint", {}) is not None:
            checkpoints = Checkpoints(output, parts.box, accelerator, config.tree.get("checkpoint"))
        summary = _new_summary(config, seed, placement)
        _run(config, parts, folder, summary, start=start, checkpoints=checkpoints)
        if folder.is_main:
            _draw_curves(folder, summary)
    accelerator.wait_for_everyone()  # a later configuration may load what the main process has written
    return summary


@contextmanager
def _lines(*, shown: bool = True) -> Iterator[list[logging.LogRecord]]:
    """Gives this package's log lines, for a log.txt that is not there yet; unless ``shown`` they go nowhere else."""
    handler = logging.handlers.BufferingHandler(capacity=sys.maxsize)
    ours = logging.getLogger("gkd_plugin")
    handlers, propagates = ours.handlers, ours.propagate
    ours.handlers, ours.propagate = [handler, *(handlers if shown else [])], shown and propagates
    try:
        yield handler.buffer
    finally:
        ours.handlers, ours.propagate = handlers, propagates


def _new_summary(config: RunConfig, seed: int, placement: Placement) -> dict[str, Any]:
    return {
        "config": str(config.path),
        "status": "running",
        "seed": seed,
        **{key: str(value) if isinstance(value, torch.device) else value for key, value in vars(placement).items()},
        "versions": package_versions(),
    }


def _run(
    config: RunConfig,
    parts: Parts,
    folder: RunFolder,
    summary: dict[str, Any],
    *,
    start: float,
    checkpoints: Checkpoints | None,
) -> None:
    """Trains, and keeps ``summary.json`` up to date, whatever ends the training; the run began at ``start``."""
    plain = (str, int, float, bool, list, dict, type(None))
    kwargs = parts.student_entry.get("kwargs") or {}
    summary |= {
        "processes": parts.accelerator.num_processes,
        "student": {
            "key": parts.student_entry["key"],
            "kwargs": {key: value for key, value in kwargs.items() if isinstance(value, plain)},
            "classes": parts.num_classes,
            "parameters": sum(p.numel() for p in parts.student.parameters()),
        },
        "stages": {stage.name: {"num_epochs": stage.epochs, "epochs": []} for stage in parts.stages},
        "warnings": folder.warnings,
    }
    if folder.earlier == "resume" and "stages" in folder.summary:
        start -= _restore(folder, summary, checkpoints)
    folder.write_summary(summary)
    if checkpoints is not None:
        checkpoints.summary = summary
    try:
        with tracked(config.tree, folder) as track:
            _train(parts, folder, summary, start=start, checkpoints=checkpoints, track=track)
        summary["status"] = FINISHED
    except KeyboardInterrupt as error:
        summary["status"] = f"stopped ({str(error) or type(error).__name__})"
        raise
    except ConfigError as error:
        summary |= {"status": FAILED, "error": str(error)}
        logging.getLogger().error("%s", error)  # noqa: TRY400  # to log.txt; the console shows what is raised
        kept = f"; the last good weights are {folder.student}" if folder.student.exists() else ""
        raise ConfigError(f"{config.path}: {error}{kept}") from error
    finally:
        summary["wall_seconds"] = round(time.perf_counter() - start, 3)
        if summary["status"] == "running":
            summary["status"] = f"stopped ({getattr(sys.exc_info()[0], '__name__', 'unknown')})"
        folder.write_summary(summary)
    if checkpoints is not None:
        checkpoints.clear()
    parts.box.clean_modules()


def _draw_curves(folder: RunFolder, summary: Mapping[str, Any]) -> None:
    """Writes ``curves.png`` of a run that has finished; the log says why where it cannot."""
    try:
        from gkd_plugin.runner.curves import write_curves

        write_curves(folder.path, summary)
    except ImportError as error:  # not installed, or damaged
        logger.info("no curves.png (%s): pip install 'gkd-plugin[report]'", error)
    except ValueError as error:  # a ConfigError where the disk is full, say; matplotlib's where MPLBACKEND is unknown
        logger.warning("no curves.png: %s", error)


def _restore(folder: RunFolder, summary: dict[str, Any], checkpoints: Checkpoints | None) -> float:
    """Takes over what the summary of the last checkpoint says; the seconds that its run had taken."""
    found = None if checkpoints is None else checkpoints.last()
    if found is None:
        logger.warning("%s holds no checkpoint: the run starts from the beginning", folder.path)
        folder.write_metrics([])
        return 0.0
    at, before = found
    about = ("device", "processes")
    now = {**summary["versions"], **{name: summary[name] for name in about}}
    for name, was in {**before["versions"], **{name: before[name] for name in about}}.items():
        if was != now.get(name):
            logger.warning("%s is %s now, was %s: results may differ", name, now.get(name), was)
    own = ("status", "versions", *about, "warnings")
    summary |= {key: value for key, value in before.items() if key not in own}
    folder.warnings.extend(text for text in before["warnings"] if text not in folder.warnings)
    folder.write_metrics(_rows(summary))
    name, stage = list(summary["stages"].items())[at.stage]
    logger.info("resumes %s in epoch %d of %d, after its step %d", name, at.epoch, stage["num_epochs"], at.step)
    return float(before.get("wall_seconds", 0.0))


def _rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of all epochs."""
    return [row for stage in summary["stages"].values() for row in stage["epochs"]]


def _train(
    parts: Parts,
    folder: RunFolder,
    summary: dict[str, Any],
    *,
    start: float,
    checkpoints: Checkpoints | None,
    track: Track,
) -> None:
    box, accelerator = parts.box, parts.accelerator
    if hasattr(box, "teacher_model") and "teacher" not in summary:
        summary["teacher"] = check_teacher(box, parts.num_classes, accelerator)
        if isinstance(box.teacher_model, RefilledTeacher):
            summary["teacher_weights"] = model_key(box.teacher_model.teacher)
            summary["student"] |= advise(parts, summary["teacher"])
    prepared = summary.get("preparation_seconds") or time.perf_counter() - start
    keep, patience = parts.settings["keep"], parts.settings["patience"]
    settings = {name: parts.settings[name] for name in ("val_freq", "log_freq")}
    more: dict[str, Any] = {**settings, "checkpoints": checkpoints, "track": track}
    training = Training(box, parts.student, parts.stages, accelerator, parts.cache, **more)
    last = summary["stages"][parts.stages[-1].name]["epochs"]
    training.is_enough = _is_enough(last, patience)
    for stage, row in training.epochs():
        prepared += row.pop("preparation_seconds", 0.0)
        summary["preparation_seconds"] = round(prepared, 3)
        summary["wall_seconds"] = round(time.perf_counter() - start, 3)
        summary["stages"][stage.name]["epochs"].append(row)
        folder.add_metrics(row)
        has_next_stage = row["epoch"] == stage.epochs and not stage.is_last
        training.is_enough = _is_enough(last, patience)
        best = _best(last) if keep == "best" else None
        if best in (None, row):
            if best is not None:
                summary["kept"] = {"stage": stage.name, "epoch": row["epoch"], "val_top1": row["top1"]}
            _save(parts, folder, summary, stage if has_next_stage else None)
        starts_at_centres = parts.student_entry.get("src_ckpt_classifier") == "centres"
        if starts_at_centres and has_next_stage and not stage.trains_classifier:  # it fits the embedding no more
            start_at_centres(parts.student_path, parts.student, box.train_data_loader, accelerator)
        hidden = {"stage", "epoch", "seconds", "images_per_second", "waiting"}
        names = {key: f"validation {key}" if is_accuracy(key) else key for key in row if key not in hidden}
        shown = "  ".join(f"{name} {row[key]:.4g}" for key, name in names.items())
        place = f"{stage.name} {row['epoch']}/{stage.epochs}"
        speed = row["images_per_second"], 100 * row["waiting"]
        logger.info("%s  %s  %.0f img/s, %.0f %% waiting", place, shown, *speed)
    if training.is_enough:
        logger.info("ends after epoch %d: no better validation top-1 for %d epochs", last[-1]["epoch"], patience)
    if training.is_enough or "kept" in summary:
        _keep(parts, folder, summary)
    if parts.cache is not None:
        summary["teacher_cache"] = parts.cache.reports
    summary["final"] = final = final_figures(parts, summary)
    figures = {f"{final.get('on')}/{key}": value for key, value in final.items() if is_accuracy(key)}
    track(figures, training.updates)
    _tell_final(final)


def _tell_final(final: Mapping[str, Any]) -> None:
    if "top1" in final:
        others = [key for key in final if is_accuracy(key) and key != "top1" and not key.startswith("ncm_")]
        shown = "".join(f", {key.replace('_', ' ').replace('top', 'top-')} {final[key]:.2f} %" for key in others)
        top1 = measured(final["top1"], final["samples"], 2) if "samples" in final else f"{final['top1']:.2f} %"
        logger.info("final top-1 on the %s set %s%s", final["on"], top1, shown)
    if "ncm_top1" in final:
        ncm = measured(final["ncm_top1"], final["samples"], 2)
        logger.info("final NCM accuracy of the embedding on the test set %s", ncm)


def _best(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The first row with the highest top-1 on the validation set; ``None`` before there is one."""
    return max((row for row in rows if "top1" in row), key=lambda row: float(row["top1"]), default=None)


def _is_enough(rows: Sequence[Mapping[str, Any]], patience: int | None) -> bool:
    """Whether the last epoch is one of at least ``patience`` without a better top-1 on the validation set."""
    best = _best(rows)
    return bool(patience and best and "top1" in rows[-1] and rows[-1]["epoch"] - best["epoch"] >= patience)


def _keep(parts: Parts, folder: RunFolder, summary: Mapping[str, Any]) -> None:
    """Makes the kept student that of the run, which is complete."""
    if "kept" in summary:
        parts.accelerator.wait_for_everyone()  # the main process writes it
        parts.student.load_state_dict(read_weights(folder.student, "train.keep").state)
        logger.info("keeps epoch %(epoch)d of %(stage)s, with a validation top-1 of %(val_top1).2f %%", summary["kept"])
    _save(parts, folder, summary, None, is_complete=True)


def _save(
    parts: Parts, folder: RunFolder, summary: Mapping[str, Any], ended: Stage | None, *, is_complete: bool = False
) -> None:
    """Writes the student's weights after an epoch, and apart at the end of a stage that others follow."""
    if not all(bool(torch.isfinite(value).all()) for value in parts.student.state_dict().values()):
        raise ConfigError(NOT_FINITE)
    if not parts.accelerator.is_main_process:
        return
    student = summary["student"]
    rows = _rows(summary)
    name = str(student["kwargs"].get("model_name", student["key"]))
    planned = len(rows) if is_complete else sum(stage.epochs for stage in parts.stages)
    about: dict[str, Any] = {"image_input": vars(parts.image_input), "epochs": (len(rows), planned)}
    about["preprocessing"] = parts.preprocessing
    if parts.class_names is not None:
        about["classes"] = parts.class_names
    save_student(parts.student, folder.student, {"model": name, **about})
    destination = parts.student_entry.get("dst_ckpt")
    if destination is not None:
        top1 = summary["kept"]["val_top1"] if "kept" in summary else rows[-1].get("top1", 0.0)
        save_upstream_checkpoint(parts.student, parts.box, top1, Path(destination), about)
    if ended is not None:
        del about["epochs"]  # of a stage that is complete
        save_student(parts.student, folder.student_after(ended.name), {"model": name, **about})


def evaluate_checkpoint(
    config: RunConfig, checkpoint: Path, device: str | None = None, where: str = "--checkpoint"
) -> dict[str, Any]:
    """Accuracy of a saved student on the test set of its configuration; its classes must be in the same order.

    ``where`` is what names the file on the command line.
    """
    with told_at(f"{config.path}: "):
        accelerator = make_accelerator(read_placement(config.tree, device, one_device=True))
        path, entry = student_entry(config.tree)
        student = build_model(path, without_weights(entry))
        built = config.build()
        loader = build_test_loader(built, accelerator, is_needed=True)
    trained = load_weights(student, checkpoint, where).classes
    dataset_id = built["test"]["test_data_loader"]["dataset_id"]
    check_trained_classes(trained, dataset_id, built["datasets"][dataset_id], f"{where}: {checkpoint}")
    student.to(accelerator.device).eval()
    with accelerator.autocast():
        accuracy = evaluate(student, loader, accelerator)
    return {**accuracy.as_dict(), "samples": accuracy.samples}


def run_probe(config: RunConfig, output: Path, probe: str, seed: int = 0, device: str | None = None) -> dict[str, Any]:
    """Fits one of the :data:`PROBES` to the teacher's embeddings and measures it: a run with a folder and a summary."""
    start = time.perf_counter()
    with told_at(f"{config.path}: "):
        placement = read_placement(config.tree, device)
        accelerator = make_accelerator(placement)
        set_seed(seed)
        built = config.build()
        where, entry = student_entry(built)
        student, teacher = build_model(where, entry), build_model(TEACHER, built["models"]["teacher_model"])
        divide(teacher, stages_of(built), built["datasets"], placement, accelerator)
        box = build_box(built, teacher, student, placement, accelerator)
        loader = build_test_loader(built, accelerator, is_needed=True)
        if not isinstance(box.teacher_model, RefilledTeacher):
            raise ConfigError("the teacher has no wrapper 'refilled_teacher', which gives its embedding")
        box.teacher_model.local_classifier.kind = "centres"  # a probe reads no other
        folder = RunFolder(output, accelerator.is_main_process)
        with folder.opened(config.text, seed), accelerator.autocast():
            score = PROBES[probe](box.teacher_model, box.train_data_loader, accelerator, num_classes_of(student, entry))
            final = evaluate(score, loader, accelerator, "test").as_dict()
            logger.info("%s on the frozen network: top-1 on the test set %.2f %%", probe, final["top1"])
    box.clean_modules()
    found = {"probe": probe, "warnings": folder.warnings, "stages": {}, "final": {**final, "on": "test"}}
    seconds = dict.fromkeys(("preparation_seconds", "wall_seconds"), round(time.perf_counter() - start, 3))
    ended = {"status": FINISHED, **found, **seconds}
    summary = {**_new_summary(config, seed, placement), **ended}
    folder.write_summary(summary)
    return summary
