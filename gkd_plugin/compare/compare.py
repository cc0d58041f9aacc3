"""``refilled compare``: from one configuration to the grid and its report."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from gkd_plugin.compare.cell import base_stages, cell_config
from gkd_plugin.compare.grid import Cell, Result, run_grid
from gkd_plugin.compare.method import Method, load_method
from gkd_plugin.compare.obstacles import obstacle, untrained_student
from gkd_plugin.compare.plot import draw_settings, plot_names
from gkd_plugin.compare.report import COLUMNS, OF_GROUPS, comparison_table, write_csv
from gkd_plugin.compare.setting import Setting
from gkd_plugin.config.config import RunConfig, load_config
from gkd_plugin.config.stages import Stage, stages_of, student_entry
from gkd_plugin.data import class_groups_of
from gkd_plugin.errors import ConfigError, require_report, told_at
from gkd_plugin.runner.devices import read_placement

__all__ = ["Comparison", "check_grid_folder", "compare"]

logger = logging.getLogger(__name__)

TOP = 5
RESULTS, TABLE = "results.csv", "table.txt"


@dataclass(frozen=True)
class Comparison:
    """What to compare, as on the command line.

    Attributes:
        config: a configuration of both ReFilled stages.
        methods: names, or YAML files.
        seeds: of every random number.
        output: folder of the grid.
        overlaps: in per cent; empty leaves the configuration as it is, here and below.
        ways: classes of a few-shot task.
        shots: labelled images of each.
        tasks: numbers of few-shot tasks, repetitions like the seeds.
        memories: exemplars of each old class, in incremental learning.
        overrides: ``key.path=value``, applied to the configuration.
        device: goes before ``device.default``.
        jobs: processes at once.
        score: figure of ``summary.final`` for log, table and plot.
    """

    config: Path
    methods: Sequence[str]
    seeds: Sequence[int]
    output: Path
    overlaps: Sequence[float] = ()
    ways: Sequence[int] = ()
    shots: Sequence[int] = ()
    tasks: Sequence[int] = ()
    memories: Sequence[int] = ()
    overrides: Sequence[str] = ()
    device: str | None = None
    jobs: int = 1
    score: str = "top1"


def compare(wanted: Comparison) -> tuple[str, list[Result]]:
    """Runs the grid and writes ``results.csv``, ``table.txt`` and the plot into its folder.

    Returns:
        The table, and the result of every cell.

    Raises:
        ConfigError: something cannot be used as given; nothing has been trained then.
    """
    require_report("compare")
    check_grid_folder(wanted.output)
    methods = _methods(wanted.methods)
    config = load_config(wanted.config, wanted.overrides)
    for notice in config.notices:
        logger.info("%s", notice)
    with told_at(f"{wanted.config}: "):
        read_placement(config.tree, wanted.device)
        _warn_of_updates(base_stages(config.tree))
        planned = list(_plan(config.tree, methods, wanted))
        _check_data(planned, wanted.score)
    _write_configs(planned)
    results = run_grid([cell for cell, _ in planned], wanted.device, wanted.jobs, wanted.score)
    table = comparison_table(results, wanted.score)
    write_csv(results, wanted.output / RESULTS)
    (wanted.output / TABLE).write_text(table + "\n", encoding="utf-8")
    draw_settings(results, wanted.score, wanted.output)
    logger.info("results.csv, table.txt and the cells' run folders are in %s", wanted.output)
    return table, results


def check_grid_folder(folder: Path) -> None:
    """Refuses a folder that holds something and no earlier grid, before anything is written there.

    Where there are cells of a grid, other things may lie beside them (notes, logs), but for files of the names that a
    comparison writes.

    Raises:
        ConfigError: it is a file, or holds something that no comparison has written.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output: {folder} is a file")
    paths = sorted(folder.iterdir()) if folder.exists() else []
    others = [path.name for path in paths if not _is_ours(path) and path.suffix != ".log"]
    if any(path.is_dir() and _is_ours(path) for path in paths):
        others = [name for name in others if name == RESULTS]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise ConfigError(f"--output: {folder} holds {others[0]!r}{more}, which is of no comparison; name a new folder")


def _is_ours(path: Path) -> bool:
    if path.is_dir():  # a setting: <method>/config.yaml, of few-shot tasks <method>/task0/config.yaml
        return any(next(path.glob(cell), None) for cell in ("*/config.yaml", "*/task*/config.yaml"))
    if path.name == RESULTS:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline().startswith(",".join(COLUMNS[:3]))
    return path.name == TABLE or path.name in plot_names()


def _warn_of_updates(stages: Mapping[str, Stage]) -> None:
    """Methods of one stage take one loader for the epochs of both: with other batches, other numbers of updates."""
    if stages["embedding"].loader != stages["classifier"].loader:
        logger.warning(
            "train: the two stages' train_data_loader differ; methods of one stage take that of stage 'classifier' for "
            "all epochs, so the number of their updates may be another"
        )


def _methods(names: Sequence[str]) -> list[Method]:
    """The methods, whose names are those of their folders."""
    methods = [load_method(name) for name in names]
    known = [method.name for method in methods]
    for name, method in zip(names, methods, strict=True):
        if known.count(method.name) > 1:
            raise ConfigError(f"--methods: {name!r} has the name of another method, {method.name!r}; rename the file")
    return methods


def _plan(
    tree: dict[str, Any], methods: Sequence[Method], wanted: Comparison
) -> Iterator[tuple[Cell, RunConfig | None]]:
    """Every cell with its configuration; without one where the method cannot serve the setting."""
    tasks: list[int | None] = [*wanted.tasks] or [None]
    for method, setting, task in product(methods, _settings(wanted), tasks):
        folder = wanted.output / setting.name / method.name / ("" if task is None else f"task{task}")
        path = folder / "config.yaml"
        reason = untrained_student(method, tree)
        config = None
        if not reason:
            config = cell_config(tree, method, setting, path, task)
            with told_at(f"{setting.title}: "):
                reason = obstacle(method, config)
        for seed in wanted.seeds:
            cell = Cell(method, setting, seed, path, folder / f"seed{seed}", reason, task)
            yield cell, None if reason else config


def _settings(wanted: Comparison) -> list[Setting]:
    overlaps, ways = wanted.overlaps or (None,), wanted.ways or (None,)
    shots, memories = wanted.shots or (None,), wanted.memories or (None,)
    return [Setting(*values) for values in product(overlaps, ways, shots, memories)]


def _check_data(planned: Sequence[tuple[Cell, RunConfig | None]], score: str) -> None:
    """Builds the data sets of each setting once: what they cannot give is told before anything trains."""
    checked: set[tuple[Setting, bool]] = set()
    for cell, config in planned:
        data = (cell.setting, cell.method.memory is None)
        if config is not None and data not in checked:
            checked.add(data)
            with told_at(f"{cell.setting.title}: "):
                _check_score(score, config.build())


def _check_score(score: str, built: Mapping[str, Any]) -> None:
    loader = (built.get("test") or {}).get("test_data_loader")
    test = built["datasets"][loader["dataset_id"]] if loader else None
    if score in OF_GROUPS and not (test and class_groups_of(test)):
        raise ConfigError(
            f"--score {score}: the test set does not tell old classes from new, as incremental_subset does"
        )
    if score == "val_top1_last3" and not any(stage.val_loader for stage in stages_of(built)):
        raise ConfigError(f"--score {score}: no stage has a val_data_loader")
    classes = (student_entry(built)[1].get("kwargs") or {}).get("num_classes")
    if score == "top5" and isinstance(classes, int) and classes <= TOP:
        raise ConfigError(f"--score {score}: is measured where there are more than {TOP} classes")


def _write_configs(planned: Sequence[tuple[Cell, RunConfig | None]]) -> None:
    for cell, config in planned:
        if config is not None:
            cell.config.parent.mkdir(parents=True, exist_ok=True)
            cell.config.write_text(config.text, encoding="utf-8")
