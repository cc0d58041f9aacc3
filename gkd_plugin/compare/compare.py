"""``refilled compare``: from one configuration to the grid and its report."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from gkd_plugin.compare.cell import base_stages, cell_config, trained_teacher
from gkd_plugin.compare.grid import Cell, Result, run_grid
from gkd_plugin.compare.method import Method, load_method
from gkd_plugin.compare.report import COLUMNS, comparison_table, draw_settings, write_csv
from gkd_plugin.compare.setting import Setting, Tree, cannot_be_made, obstacle
from gkd_plugin.config.config import RunConfig, load_config
from gkd_plugin.config.stages import stages_of, student_entry
from gkd_plugin.data import class_groups_of
from gkd_plugin.errors import ConfigError, told_at
from gkd_plugin.runner.devices import read_placement
from gkd_plugin.runner.run_folder import LOCK, locked

logger = logging.getLogger(__name__)

RESULTS, TABLE = "results.csv", "table.txt"


@dataclass(frozen=True)
class Comparison:
    """What to compare, as on the command line; settings that are empty leave the configuration as it is."""

    config: Path  # of both ReFilled stages
    methods: Sequence[str]  # names, or YAML files
    seeds: Sequence[int]
    output: Path
    overlaps: Sequence[float] = ()  # in per cent
    ways: Sequence[int] = ()
    shots: Sequence[int] = ()
    tasks: Sequence[int] = ()  # their numbers: repetitions like the seeds
    memories: Sequence[int] = ()
    overrides: Sequence[str] = ()  # ``key.path=value``, applied to the configuration
    device: str | None = None
    jobs: int = 1
    score: str = "top1"


def compare(wanted: Comparison) -> tuple[str, list[Result]]:
    """Runs the grid and writes ``results.csv``, ``table.txt`` and the plot; the table, and the result of every cell.

    What cannot be used as given is a ConfigError before anything is trained.
    """
    check_grid_folder(wanted.output)
    methods = _methods(wanted.methods)
    config = load_config(wanted.config, wanted.overrides)
    for notice in config.notices:
        logger.info("%s", notice)
    with told_at(f"{wanted.config}: "):
        read_placement(config.tree, wanted.device)
        stages = base_stages(config.tree)
        if stages["embedding"].loader != stages["classifier"].loader:
            effect = "methods of one stage take that of 'classifier', so the number of their updates may be another"
            logger.warning("train: the two stages' train_data_loader differ; %s", effect)
        cells, configs = _plan(config.tree, methods, wanted)
    with locked(wanted.output):
        for path, made in configs.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(made.text, encoding="utf-8")
        record = partial(write_csv, path=wanted.output / RESULTS)
        results = run_grid(cells, wanted.device, wanted.jobs, wanted.score, record)
        table = comparison_table(results, wanted.score)
        (wanted.output / TABLE).write_text(table + "\n", encoding="utf-8")
        draw_settings(results, wanted.score, wanted.output)
        logger.info("results.csv, table.txt and the cells' run folders are in %s", wanted.output)
    return table, results


def check_grid_folder(folder: Path) -> None:
    """Refuses a folder that holds something other than logs, and no earlier grid."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output: {folder} is a file")
    names = sorted(path.name for path in folder.glob("*") if path.suffix != ".log" and path.name != LOCK)
    text = (folder / RESULTS).read_text("utf-8", "replace") if RESULTS in names else ""
    if names and not text.startswith(",".join(COLUMNS[:3])):
        first, more = RESULTS if RESULTS in names else names[0], f" and {len(names) - 1} more" if names[1:] else ""
        held = f"{first!r}{more}, which refilled compare did not write"
        raise ConfigError(f"--output: {folder} holds {held}; name a new folder")


def _methods(names: Sequence[str]) -> list[Method]:
    """The methods, whose names are those of their folders."""
    methods = [load_method(name) for name in names]
    known = [method.name for method in methods]
    for name, method in zip(names, methods, strict=True):
        if known.count(method.name) > 1:
            raise ConfigError(f"--methods: {name!r} has the name of another method, {method.name!r}; rename the file")
    return methods


def _plan(tree: Tree, methods: Sequence[Method], wanted: Comparison) -> tuple[list[Cell], dict[Path, RunConfig]]:
    """Every cell, and the configurations of those whose method can serve their setting, by the cells' files."""
    axes: tuple[Sequence[Any], ...] = (wanted.overlaps, wanted.ways, wanted.shots, wanted.memories)
    settings = [Setting(*values) for values in product(*(axis or (None,) for axis in axes))]
    configs: dict[Path, RunConfig] = {}
    reasons: dict[Path, str] = {}
    with_data: dict[tuple[Setting, bool], RunConfig] = {}
    sources = _sources(methods)

    def planned(method: Method, setting: Setting, task: int | None, seed: int) -> Cell:
        """The cell, its configuration and its teacher's cell made on the way."""
        source = sources.get(method)
        teacher = None if source is None else planned(source, setting, task, seed)
        folder = wanted.output / setting.name / method.name / ("" if task is None else f"task{task}")
        path = folder / (f"config_seed{seed}.yaml" if teacher else "config.yaml")  # each seed has its own teacher
        if path not in reasons:
            reason = f"its teacher {teacher.method.name} {teacher.reason}" if teacher and teacher.reason else ""
            reason = reason or cannot_be_made(method, tree)
            if not reason:
                trained = None
                if teacher is not None:
                    trained = teacher.method, trained_teacher(configs[teacher.config], teacher.folder)
                config = cell_config(tree, method, setting, path, task, trained=trained)
                with told_at(f"{setting.title}: "):
                    reason = obstacle(method, config)
                if not reason:
                    configs[path] = config
                    with_data.setdefault((setting, method.memory is None), config)
            reasons[path] = reason
        return Cell(method, setting, seed, path, folder / f"seed{seed}", reasons[path], task, teacher)

    cells = [planned(*place) for place in product(methods, settings, wanted.tasks or (None,), wanted.seeds)]
    for (setting, _), config in with_data.items():  # what the data sets cannot give is told before anything trains
        with told_at(f"{setting.title}: "):
            _check_score(wanted.score, config.build())
    return cells, configs


def _sources(methods: Sequence[Method]) -> dict[Method, Method]:
    """Method → the one whose student is its teacher, of the methods with such a teacher."""
    known = {method.name: method for method in methods}
    sources: dict[Method, Method] = {}
    for method in filter(lambda method: method.has_trained_teacher, methods):
        name = str(method.teacher)
        with told_at(f"method {method.name!r}: teacher: "):
            sources[method] = source = known.get(name) or load_method(name)
            if source.probe or source.has_trained_teacher:
                why = "trains nothing" if source.probe else "has a trained teacher itself"
                raise ConfigError(f"{name!r} {why}")
            if vars(known.setdefault(source.name, source)) != vars(source):  # both would have one folder
                raise ConfigError(f"{name!r} has the name of another method, {source.name!r}; rename the file")
    return sources


def _check_score(score: str, built: Mapping[str, Any]) -> None:
    loader = (built.get("test") or {}).get("test_data_loader")
    test = built["datasets"][loader["dataset_id"]] if loader else None
    if score in ("old_top1", "new_top1", "harmonic_mean") and not (test and class_groups_of(test)):
        raise ConfigError(f"--score {score}: no test set tells old classes from new, as incremental_subset does")
    if score == "val_top1_last3" and not any(stage.val_loader for stage in stages_of(built)):
        raise ConfigError(f"--score {score}: no stage has a val_data_loader")
    classes = (student_entry(built)[1].get("kwargs") or {}).get("num_classes")
    if score == "top5" and isinstance(classes, int) and classes <= 5:
        raise ConfigError(f"--score {score}: is measured where there are more than 5 classes")
