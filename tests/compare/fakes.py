"""A tiny configuration of both ReFilled stages: 8 classes of 4 images, teacher and student know 4 each."""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from gkd_plugin.compare.grid import Cell, Result
from gkd_plugin.compare.method import Method, load_method
from gkd_plugin.compare.setting import Setting
from gkd_plugin.config.tree import dump
from gkd_plugin.models import timm_model
from tests.fakes import stage
from tests.runner.fakes import call, config, loaders, model

DIES, SLOW = 1, 9
"""Seeds of :func:`run_by_seed`."""


def _tree(key: str, splits: dict[str, dict[str, Any]], num_classes: int = 4) -> dict[str, Any]:
    """Splits of eight classes of four images each."""
    sets, stages = {}, {}
    for seed, (name, kwargs) in enumerate(splits.items()):
        images = call("tests.fakes.TinyImages", classes=8, per_class=4, size=32, seed=seed)
        sets[name] = call(f"gkd_plugin.data.{key}", **kwargs, dataset=images)
    for epochs, kind in enumerate(("embedding", "classifier"), 1):
        optimizer = {"key": "SGD", "kwargs": {"lr": 0.01, "momentum": 0.9}}
        scheduler = {"key": "CosineAnnealingLR", "kwargs": {"T_max": epochs, "eta_min": 0.001}}
        stages[f"stage{epochs}"] = stage(kind, epochs, optimizer=optimizer, scheduler=scheduler, **loaders())
    teacher = {**model("test_byobnet"), "src_ckpt": "teacher.pt"}
    student = {**model("test_byobnet", num_classes=num_classes), "dst_ckpt": "somewhere/student.pt"}
    return {**config({"teacher_model": teacher, "student_model": student}, stages), "datasets": sets}


_STUDENT, _CLASSES = {"role": "student", "num_classes": 4}, {"old": 4, "new": 2}
_SUPPORT = {"ways": 4, "task": 0, "role": "support", "shots": 3, "queries": 0}
_QUERY = {"ways": 4, "task": 0, "role": "query", "shots": 0, "queries": None}
_OVERLAP = {**_STUDENT, "overlap": 0.0}
TINY = _tree("overlap_subset", {"train": _OVERLAP, "val": {**_STUDENT, "shift": 4}, "test": _OVERLAP})
FEW_SHOT = _tree("few_shot_task", {"train": _SUPPORT, "val": _QUERY, "test": _QUERY})
"""4-way 3-shot tasks of 8 classes; the queries are other images."""
_MEMORY, _ALL = {**_CLASSES, "memory": 2}, {**_CLASSES, "memory": None}
INCREMENTAL = _tree("incremental_subset", {"train": _MEMORY, "val": _ALL, "test": _ALL}, num_classes=6)
"""The teacher knows 4 classes, the student learns 6."""


def write_config(folder: Path, tree: dict[str, Any] = TINY) -> Path:
    """Writes tiny.yaml and the weights of an untrained teacher."""
    torch.manual_seed(0)
    torch.save(timm_model("test_byobnet", num_classes=4).state_dict(), folder / "teacher.pt")
    path = folder / "tiny.yaml"
    path.write_text(dump(tree), encoding="utf-8")
    return path


def write_summary(folder: Path, final: dict[str, float], **more: Any) -> str:
    """What a finished run leaves behind, as far as a grid reads it; no reason why it failed."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = {"status": "finished", "final": final, "wall_seconds": 2.0, **more}
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return ""


def run_by_seed(cell: Cell, device: str | None) -> str:
    """Stands in for the run of a cell in a process of its own."""
    cell.folder.mkdir(parents=True)
    (cell.folder / "pid").write_text(str(os.getpid()))
    if cell.seed == DIES:
        os._exit(7)
    if cell.seed == SLOW:
        time.sleep(600)
    return write_summary(cell.folder, {"top1": float(cell.seed)})


CE, REFILLED, KD = (load_method(name) for name in ("ce", "refilled", "kd"))
HALF, FULL = Setting(50.0), Setting(100.0)


def finished(
    method: Method, setting: Setting, seed: int, top1: float, task: int | None = None, **more: float
) -> Result:
    summary = {"final": {"top1": top1, **more}, "teacher": {"ncm_top1": 100 / 3}}
    summary |= {"preparation_seconds": 0.25, "wall_seconds": 1.234}
    return Result(Cell(method, setting, seed, Path("c.yaml"), Path("f"), task=task), "finished", summary)


def unfinished(method: Method, setting: Setting, seed: int, status: str, reason: str) -> Result:
    return Result(Cell(method, setting, seed, Path("c.yaml"), Path("f")), status, reason=reason)


RESULTS = [
    *(finished(CE, HALF, seed, top1, ncm_top1=top1 / 2) for seed, top1 in enumerate([60.0, 62.0, 64.0])),
    *(finished(CE, FULL, seed, top1) for seed, top1 in enumerate([50.0, 50.0, 50.0])),
    *(finished(REFILLED, HALF, seed, top1) for seed, top1 in enumerate([61.0, 64.0, 67.0])),
    finished(REFILLED, FULL, 0, 57.0),
    *(unfinished(REFILLED, FULL, seed, "failed", 'too small, "x"') for seed in (1, 2)),
    *(unfinished(KD, HALF, seed, "not served", "needs the same classes") for seed in range(3)),
    *(unfinished(KD, FULL, seed, "failed", "no weights") for seed in range(3)),
]
