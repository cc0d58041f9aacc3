"""Tiny configurations as text: one epoch per stage, 24 images of 32 × 32, the smallest model of timm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from gkd_plugin.errors import ConfigError
from gkd_plugin.runner.devices import Placement, make_accelerator

CPU = Placement(torch.device("cpu"), None, "no")

LOADER = """
    dataset_id: {name}
    sampler: {{class_or_func: !import_get {{key: 'torch.utils.data.{sampler}'}}}}
    kwargs: {{batch_size: 12, num_workers: 0}}
"""
TRAIN_LOADER = LOADER.format(name="train", sampler="RandomSampler")
VAL_LOADER = LOADER.format(name="val", sampler="SequentialSampler")
TEST_LOADER = LOADER.format(name="test", sampler="SequentialSampler")

DATASETS = """
dependencies:
  - name: 'gkd_plugin'
datasets:
  train: !import_call {key: 'tests.fakes.ViewedImages', init: {kwargs: {classes: 4, per_class: 6, seed: 0}}}
  val: !import_call {key: 'tests.fakes.TinyImages', init: {kwargs: {classes: 4, per_class: 6, seed: 1}}}
  test: !import_call {key: 'tests.fakes.TinyImages', init: {kwargs: {classes: 4, per_class: 6, seed: 2}}}
"""
OPTIMIZER = "{key: 'SGD', kwargs: {lr: 0.05, momentum: 0.9, weight_decay: 0.01}}"
LOGITS = "{is_from_teacher: False, module_path: '.', io: 'output'}"
TEST = f"""
test:
  test_data_loader: {TEST_LOADER}
"""

TEACHER = f"""{DATASETS}
models:
  model:
    key: 'timm_model'
    kwargs: {{model_name: 'test_resnet', num_classes: 4}}
    dst_ckpt: 'runs/teacher/teacher.pt'
train:
  num_epochs: 2
  train_data_loader: {TRAIN_LOADER}
  val_data_loader: {VAL_LOADER}
  model: {{forward_proc: 'forward_batch_only'}}
  optimizer: {OPTIMIZER}
  criterion:
    key: 'WeightedSumLoss'
    kwargs:
      sub_terms:
        cross_entropy:
          criterion: {{key: 'CrossEntropyLoss', kwargs: {{}}}}
          criterion_wrapper: {{key: 'SimpleLossWrapper', kwargs: {{input: {LOGITS}, target: {{uses_label: True}}}}}}
          weight: 1.0
{TEST}"""


def _stage(kind: str, hooks: str) -> str:
    return f"""
    num_epochs: 1
    train_data_loader: {TRAIN_LOADER.replace("    ", "      ")}
    val_data_loader: {VAL_LOADER.replace("    ", "      ")}
    pre_epoch_process: 'refilled'
    teacher:
      forward_proc: 'forward_batch_only'
      requires_grad: False
      auxiliary_model_wrapper: {{key: 'refilled_teacher'}}
      forward_hook: {{output: {hooks}}}
    student: {{forward_proc: 'forward_batch_only', forward_hook: {{output: ['embedding']}}}}
    optimizer: {OPTIMIZER}
    criterion: {{key: 'refilled', kwargs: {{stage: '{kind}'}}}}
"""


REFILLED = f"""{DATASETS}
models:
  teacher_model:
    key: 'timm_model'
    kwargs: {{model_name: 'test_resnet', num_classes: 4}}
    src_ckpt: 'runs/teacher/teacher.pt'
  student_model:
    key: 'timm_model'
    kwargs: {{model_name: 'test_vit', img_size: 32, num_classes: 4}}
    dst_ckpt: 'runs/student/student.pt'
train:
  stage1: {_stage("embedding", "['embedding']")}
  stage2: {_stage("classifier", "['embedding', 'local_classifier']")}
{TEST}"""


def cpu(precision: str = "no") -> Any:
    """Accelerate on the CPU."""
    return make_accelerator(Placement(torch.device("cpu"), None, precision))


def equal(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    """Whether two ``state_dict`` are the same bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def refused(message: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """The call ends in one line that matches the message."""
    with pytest.raises(ConfigError, match=message) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)


def write_configs(folder: Path) -> tuple[Path, Path]:
    """Writes teacher.yaml and student.yaml."""
    for name, text in (("teacher", TEACHER), ("student", REFILLED)):
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return Path("teacher.yaml"), Path("student.yaml")
