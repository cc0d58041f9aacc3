"""``refilled report``: runs side by side on one page, and the same page for ``compare`` and ``diagnose``."""

import io
import platform
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jinja2 import Environment, StrictUndefined

from gkd_plugin.compare.grid import NOT_SERVED, Result
from gkd_plugin.compare.report import PLOT, comparison_rows
from gkd_plugin.config.config import RunConfig, load_config
from gkd_plugin.config.stages import student_entry
from gkd_plugin.config.tree import dump
from gkd_plugin.data import length_of
from gkd_plugin.data.files import write_atomically
from gkd_plugin.diagnose.restore import LeftOut, RestoredRun, finished_summary
from gkd_plugin.diagnose.run import look
from gkd_plugin.errors import ConfigError
from gkd_plugin.report.costs import Costs, costs_of_run
from gkd_plugin.report.pictures import CLASSES, confused_pairs, data_uri, examples
from gkd_plugin.runner.accuracy import measured
from gkd_plugin.runner.curves import PALETTE, TEACHER, draw_curves
from gkd_plugin.runner.run_folder import REPORT

_TEMPLATE = Path(__file__).with_name("page.html")
_SETS = {"test": "test images", "validation": "validation images"}


@dataclass
class Shown:
    """A finished run as far as it can be shown: its summary, and what its models and data still say."""

    name: str
    folder: Path
    colour: str = PALETTE[0]
    run: RestoredRun | None = None  # None where data or weights are gone
    found: Mapping[str, Any] = field(default_factory=dict)  # of gkd_plugin.diagnose.run.look
    pictures: dict[str, str] = field(default_factory=dict)
    costs: Mapping[str, Costs] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)
    confused: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # what is missing, and why

    def __post_init__(self) -> None:
        self.summary = finished_summary(self.folder)
        self.final: dict[str, Any] = self.summary.get("final", {})
        self.text = (self.folder / "config.yaml").read_text("utf-8", "replace")
        self.config: RunConfig | None = None
        try:
            self.config = load_config(self.folder / "config.yaml", produced=None)
        except ConfigError as error:
            self.left_out.append(str(error))

    def add(self, run: RestoredRun, found: Mapping[str, Any], pictures: Path) -> None:
        """What the restored run shows: ``found`` by ``look``, and what the page measures itself."""
        self.run, self.found = run, found
        self.pictures = {
            name: data_uri(pictures / f"{name}.png") for name in found if (pictures / f"{name}.png").is_file()
        }
        self.left_out += [f"{name}: {reason}" for name, reason in found["left_out"].items()]
        self.costs = costs_of_run(run)
        try:
            self.examples = examples(run)
            self.confused = confused_pairs(run, found["confusion"]) if "confusion" in found else []
        except LeftOut as reason:
            self.left_out.append(f"images: {reason}")

    @property
    def epochs(self) -> int:
        """How many it was trained for, in all stages."""
        return sum(len(stage["epochs"]) for stage in self.summary["stages"].values())

    @property
    def is_probe(self) -> bool:
        """Whether it is a classifier on a frozen network, which trains no student."""
        return "probe" in self.summary

    @property
    def network(self) -> str:
        """The student's name."""
        student = self.summary.get("student", {})
        return str(student.get("kwargs", {}).get("model_name", student.get("key", self.summary.get("probe", "?"))))

    @property
    def teacher(self) -> str:
        """The teacher's network; empty where there is none, or its name is not known any more."""
        entry = (self.config.tree["models"].get("teacher_model") if self.config else None) or {}
        return str((entry.get("kwargs") or {}).get("model_name", entry.get("key", "")))

    @property
    def teacher_accuracy(self) -> str:
        """In words; empty where it was not measured."""
        figures = self.summary.get("teacher", {})
        known = {"top1": "own classifier", "ncm_top1": "nearest class mean"}
        said = [f"{figures[key]:.1f} % ({how})" for key, how in known.items() if key in figures]
        has_validation = self.config and self.config.stages[0].val_loader
        on = "validation images" if has_validation else "training images, each left out of its class's mean"
        return f"{' and '.join(said)} on the {on}" if said else ""

    @property
    def student_accuracy(self) -> str:
        """In words, with the standard error that the number of images gives."""
        final = self.final
        if "top1" not in final:
            return ""
        if not (n := final.get("samples")):
            return f"{final['top1']:.1f} % of the {_SETS[final['on']]}"
        return measured(final["top1"], n, images=_SETS[final["on"]])

    @property
    def task(self) -> str:
        """What must be the same in a control: images and labels of training and test, and the student."""
        if self.config is None:
            return ""
        tree, stage = self.config.tree, self.config.stages[-1]
        test = (tree.get("test") or {}).get("test_data_loader") or stage.val_loader or {}
        names = [loader["dataset_id"] for loader in (stage.loader, test) if loader]
        student = {key: value for key, value in student_entry(tree)[1].items() if key != "dst_ckpt"}
        return dump({"student": student, "data": [tree["datasets"][name] for name in names]})


def report(folders: Sequence[Path], output: Path | None = None, device: str | None = None) -> Path:
    """Writes the page of one run, or of several side by side; raises ConfigError where one is no finished run.

    By default it is ``report.html`` in the run's folder, or of several beside the first one.
    """
    if repeated := [str(folder) for folder, count in Counter(map(Path.resolve, folders)).items() if count > 1]:
        raise ConfigError(f"RUN: {repeated[0]} is given twice")
    shown = [Shown(*about) for about in zip(_names(folders), folders, PALETTE * len(folders), strict=False)]
    for one in shown:
        try:
            with TemporaryDirectory() as pictures:
                run = RestoredRun(one.folder, device)
                one.add(run, look(run, Path(pictures), ("embedding", "confusion")), Path(pictures))
        except ConfigError as error:  # noqa: PERF203
            one.left_out.append(f"everything that needs data and weights: {error}")
    return write_page(shown, output or (folders[0] if len(folders) == 1 else folders[0].parent) / REPORT)


def write_run_page(run: RestoredRun, found: Mapping[str, Any], folder: Path) -> Path:
    """The page of a run that ``diagnose`` has looked at, beside its pictures."""
    one = Shown(_names([run.folder.path])[0], run.folder.path)
    one.add(run, found, folder)
    return write_page([one], folder / REPORT)


def write_page(shown: Sequence[Shown], path: Path) -> Path:
    """The page of runs."""
    file = io.BytesIO()
    draw_curves({one.name: one.summary for one in shown}).savefig(file, format="png", dpi=120)
    groups = {"data": _grouped(shown, _data), "classes": _grouped(shown, _classes)}
    teachers: dict[tuple[str, str], Shown] = {}  # one that several runs share is shown once
    for one in shown:
        if "teacher" in one.summary:
            teachers.setdefault((one.teacher, one.teacher_accuracy), one)
    about = {"shown": shown, "curves": data_uri(file.getvalue()), "teachers": teachers.values(), **groups}
    title = f"{'Run' if len(shown) == 1 else 'Runs'} {', '.join(one.name for one in shown)}"
    return _write(path, title=title, verdict=[_verdict(one, shown) for one in shown], runs=about)


def write_grid_page(results: Sequence[Result], score: str, folder: Path) -> Path:
    """The page of a comparison, of what it has written into its folder."""
    rows, notes = comparison_rows(results, score)
    pictures = [data_uri(path) for path in sorted(folder.glob("*.png")) if PLOT.fullmatch(path.name)]
    cells = [
        (result.cell.title, result.status, "" if (value := result.score(score)) is None else f"{value:.2f} %", folder)
        for result in results
        for folder in ["" if result.status == NOT_SERVED else str(result.cell.folder)]
    ]
    grid = {"rows": rows, "pictures": pictures, "cells": cells, "score": score}
    return _write(folder / REPORT, title=f"Comparison {folder.name}", verdict=notes, grid=grid)


def _write(path: Path, **about: Any) -> Path:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters["short"] = _short
    template = environment.from_string(_TEMPLATE.read_text("utf-8"))
    known = {"runs": None, "grid": None, "cpu": platform.processor() or platform.machine()}
    text = template.render({**known, **about}, most_classes=CLASSES, teachers_colour=TEACHER)
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))
    return path


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as many of those above as tell them apart; a cell of compare has its method's."""
    depth = 1
    while len(names := [_name(folder.resolve().parts, depth) for folder in folders]) > len(set(names)):
        depth += 1
    return names


def _name(parts: Sequence[str], depth: int) -> str:
    while re.fullmatch(r"(seed|task)\d+", parts[-depth]):
        depth += 1
    return "/".join(parts[-depth:])


def _verdict(one: Shown, shown: Sequence[Shown]) -> str:
    """A run in a sentence or two: student, teacher, and the same student without a teacher."""
    said = one.student_accuracy or "no measured share of the images"
    groups = {key.removesuffix("_top1"): value for key, value in one.final.items() if key in ("old_top1", "new_top1")}
    parts = ", ".join(f"{value:.1f} % of the {name} classes" for name, value in groups.items())
    who = f"the probe {one.network} of a frozen network" if one.is_probe else f"the student {one.network}"
    text = f"{one.name}: {who} names {said} right{f' ({parts})' if parts else ''}."
    if one.is_probe:
        return text
    if "teacher" not in one.summary:
        return f"{text} It was trained without a teacher."
    if one.teacher_accuracy:
        text += f" Its teacher {one.teacher} reaches {one.teacher_accuracy}."
    controls = [other for other in shown if "teacher" not in other.summary and not other.is_probe]
    control = next((other for other in controls if other.task == one.task), None)
    if control is None or not one.task or "top1" not in one.final:
        return f"{text} To see what the teacher brought, show a run of the same student without a teacher beside it."
    gain = one.final["top1"] - control.final["top1"]
    epochs = "" if one.epochs == control.epochs else f" in {control.epochs} instead of {one.epochs} epochs"
    without = f"the same student reaches {control.final['top1']:.1f} % without a teacher ({control.name}){epochs}"
    text += f" Trained on the same labels, {without}: a difference of {gain:+.1f} points"
    if one.run is None or control.run is None:
        return f"{text}."
    hits = [(run.answers[0].argmax(1) == run.answers[1]).double() for run in (one.run, control.run)]
    error = 100 * float((hits[0] - hits[1]).std()) / len(hits[0]) ** 0.5
    return f"{text} ± {error:.1f}{'' if abs(gain) > 2 * error else ', which may be chance with so few images'}."


def _grouped(shown: Sequence[Shown], of: Callable[[Shown], Any]) -> list[dict[str, Any]]:
    """Runs that have the same: ``{"runs": […], "same": …}``; those that have nothing are left out."""
    groups: list[dict[str, Any]] = []
    for one in shown:
        same = of(one)
        group = next((group for group in groups if group["same"] == same), None)
        if group is not None:
            group["runs"].append(one)
        elif same:
            groups.append({"runs": [one], "same": same})
    return groups


def _data(one: Shown) -> dict[str, Any]:
    """What a run was trained on."""
    if one.run is None or not one.examples:
        return {}
    count, pixels = length_of(one.run.train.loader.dataset), list(next(iter(one.run.train.loader))[0].shape[2:])
    return {"samples": count, "classes": len(one.run.class_names), "pixels": pixels, "examples": one.examples}


def _classes(one: Shown) -> list[tuple[str, int]]:
    """Names of the classes that were tested, and how many images of each."""
    confusion = one.found.get("confusion")
    return (
        [(name, sum(row)) for name, row in zip(confusion["classes"], confusion["counts"], strict=True)]
        if confusion
        else []
    )


def _short(number: float) -> str:
    """Of parameters and multiplications: 4.9 M."""
    size = next((pair for pair in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if number >= pair[0]), (1, ""))
    return f"{number / size[0]:.3g} {size[1]}".rstrip()
