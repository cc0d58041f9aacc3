"""A tiny configuration of both ReFilled stages, as text: 8 classes of 4 images, teacher and student know 4 each."""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from gkd_plugin.compare.grid import Cell, Result
from gkd_plugin.compare.method import Method, load_method
from gkd_plugin.compare.setting import Setting
from gkd_plugin.models import timm_model

DIES, SLOW = 1, 9
"""Seeds of :func:`run_by_seed`."""


def _loader(name: str, sampler: str = "Sequential") -> str:
    return f"""
      dataset_id: {name}
      sampler: {{class_or_func: !import_get {{key: 'torch.utils.data.{sampler}Sampler'}}}}
      kwargs: {{batch_size: 12, num_workers: 0}}
"""


def _dataset(name: str, seed: int, key: str, **kwargs: Any) -> str:
    """A split of eight classes of four images each."""
    tiny = f"{{classes: 8, per_class: 4, size: 32, seed: {seed}}}"
    images = f"!import_call {{key: 'tests.fakes.TinyImages', init: {{kwargs: {tiny}}}}}"
    given = "".join(f"{key}: {json.dumps(value)}, " for key, value in kwargs.items()).replace('"', "'")
    init = f"{{kwargs: {{{given}dataset: {images}}}}}"
    return f"\n  {name}: !import_call {{key: 'gkd_plugin.data.{key}', init: {init}}}"


def _stage(kind: str, hooks: str, t_max: int) -> str:
    return f"""
    num_epochs: {t_max}
    train_data_loader: {_loader("train", "Random")}
    val_data_loader: {_loader("val")}
    pre_epoch_process: 'refilled'
    teacher:
      forward_proc: 'forward_batch_only'
      requires_grad: False
      auxiliary_model_wrapper: {{key: 'refilled_teacher', kwargs: {{preprocessing: 'data'}}}}
      forward_hook: {{output: {hooks}}}
    student: {{forward_proc: 'forward_batch_only', forward_hook: {{output: ['embedding']}}}}
    optimizer: {{key: 'SGD', kwargs: {{lr: 0.01, momentum: 0.9}}}}
    scheduler: {{key: 'CosineAnnealingLR', kwargs: {{T_max: {t_max}, eta_min: 0.001}}}}
    criterion: {{key: 'refilled', kwargs: {{stage: '{kind}'}}}}
"""


def _config(sets: list[str], num_classes: int = 4) -> str:
    return f"""
dependencies:
  - name: 'gkd_plugin'
datasets: {"".join(sets)}
models:
  teacher_model:
    key: 'timm_model'
    kwargs: {{model_name: 'test_byobnet', num_classes: 4}}
    src_ckpt: 'teacher.pt'
  student_model:
    key: 'timm_model'
    kwargs: {{model_name: 'test_byobnet', num_classes: {num_classes}}}
    dst_ckpt: 'somewhere/student.pt'
train:
  stage1: {_stage("embedding", "['embedding']", 1)}
  stage2: {_stage("classifier", "['embedding', 'local_classifier']", 2)}
test:
  test_data_loader: {_loader("test")}
"""


CONFIG = _config(
    [
        _dataset("train", 0, "overlap_subset", role="student", num_classes=4, overlap=0.0),
        _dataset("val", 1, "overlap_subset", role="student", num_classes=4, shift=4),
        _dataset("test", 2, "overlap_subset", role="student", num_classes=4, overlap=0.0),
    ]
)


def write_config(folder: Path, text: str = CONFIG) -> Path:
    """Writes tiny.yaml and the weights of an untrained teacher."""
    torch.manual_seed(0)
    torch.save(timm_model("test_byobnet", num_classes=4).state_dict(), folder / "teacher.pt")
    path = folder / "tiny.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def _write(folder: Path, key: str, train: dict[str, Any], others: dict[str, Any], num_classes: int) -> Path:
    splits = {"train": train, "val": others, "test": others}
    sets = [_dataset(name, seed, key, **kwargs) for seed, (name, kwargs) in enumerate(splits.items())]
    return write_config(folder, _config(sets, num_classes))


def write_incremental(folder: Path) -> Path:
    """The teacher knows 4 classes, the student learns 6."""
    classes = {"old": 4, "new": 2}
    return _write(folder, "incremental_subset", {**classes, "memory": 2}, {**classes, "memory": None}, 6)


def write_few_shot(folder: Path) -> Path:
    """4-way 3-shot tasks of 8 classes; the queries are other images."""
    support = {"ways": 4, "task": 0, "role": "support", "shots": 3, "queries": 0}
    return _write(folder, "few_shot_task", support, {**support, "role": "query", "shots": 0, "queries": None}, 4)


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
    summary = {"final": {"top1": top1, **more}, "wall_seconds": 1.234, "teacher": {"ncm_top1": 100 / 3}}
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
