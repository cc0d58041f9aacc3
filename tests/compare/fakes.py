"""A tiny configuration of both ReFilled stages, as text: 8 classes of 4 images, teacher and student know 4 each."""

from __future__ import annotations

from pathlib import Path

import torch

from gkd_plugin.models import timm_model
from tests.runner.fakes import TEST, TRAIN_LOADER, VAL_LOADER

CLASSES = 8


def _dataset(name: str, kwargs: str, seed: int, classes: int = CLASSES) -> str:
    return f"""
  {name}: !import_call
    key: 'gkd_plugin.data.overlap_subset'
    init:
      kwargs:
        role: 'student'
        num_classes: 4
        {kwargs}
        dataset: !import_call
          key: 'tests.fakes.TinyImages'
          init: {{kwargs: {{classes: {classes}, per_class: 4, size: 32, seed: {seed}}}}}"""


def _stage(kind: str, hooks: str, t_max: int) -> str:
    return f"""
    num_epochs: {t_max}
    train_data_loader: {TRAIN_LOADER.replace("    ", "      ")}
    val_data_loader: {VAL_LOADER.replace("    ", "      ")}
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


CONFIG = f"""
dependencies:
  - name: 'gkd_plugin'
datasets:
  {_dataset("train", "overlap: 0.0", 0)}
  {_dataset("val", "shift: 4", 1)}
  {_dataset("test", "overlap: 0.0", 2)}
models:
  teacher_model:
    key: 'timm_model'
    kwargs: {{model_name: 'test_byobnet', num_classes: 4}}
    src_ckpt: 'teacher.pt'
  student_model:
    key: 'timm_model'
    kwargs: {{model_name: 'test_byobnet', num_classes: 4}}
    dst_ckpt: 'somewhere/student.pt'
train:
  stage1: {_stage("embedding", "['embedding']", 1)}
  stage2: {_stage("classifier", "['embedding', 'local_classifier']", 2)}
{TEST}"""


def write_config(folder: Path, text: str = CONFIG) -> Path:
    """Writes tiny.yaml and the weights of an untrained teacher."""
    torch.manual_seed(0)
    torch.save(timm_model("test_byobnet", num_classes=4).state_dict(), folder / "teacher.pt")
    path = folder / "tiny.yaml"
    path.write_text(text, encoding="utf-8")
    return path
