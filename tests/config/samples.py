"""Configurations for the tests, what validation says after changes to them, and objects for configs to build."""

import copy
import dataclasses
from pathlib import Path

from gkd_plugin.config.config import problems
from gkd_plugin.config.tree import Tagged, compose, plain_tree
from gkd_plugin.errors import ConfigError

LOADER = """
    dataset_id: d/train
    sampler: {class_or_func: !import_get {key: 'torch.utils.data.RandomSampler'}, kwargs: }
    kwargs: {batch_size: 4, num_workers: 0}
"""
LOSS = """
      key: WeightedSumLoss
      kwargs:
        sub_terms:
          ce:
            criterion: {key: CrossEntropyLoss, kwargs: {reduction: mean}}
            criterion_wrapper:
              key: SimpleLossWrapper
              kwargs: {input: {is_from_teacher: false, module_path: '.', io: output}, target: {uses_label: true}}
            weight: 1.0
"""
PLAIN_TRAINING = f"""
dependencies: [{{name: gkd_plugin}}]
datasets:
  d/train: !import_call {{key: builtins.dict, init: {{kwargs: {{a: 1}}}}}}
models:
  model: {{key: resnet20, kwargs: {{num_classes: 3}}, src_ckpt: , dst_ckpt: runs/x.pt}}
train:
  log_freq: 10
  num_epochs: 2
  train_data_loader: {LOADER}
  val_data_loader: {LOADER}
  model: {{forward_proc: forward_batch_only, forward_hook: {{input: [], output: [fc]}}, requires_grad: true}}
  optimizer: {{key: SGD, kwargs: {{lr: 0.1}}, module_wise_kwargs: [{{module: fc, kwargs: {{lr: 1.0}}}}]}}
  scheduler: {{key: StepLR, kwargs: {{step_size: 1}}, scheduling_step: 0}}
  criterion: {LOSS}
test:
  test_data_loader: {LOADER}
"""
STAGES = f"""
_note: &role {{forward_proc: forward_batch_only, forward_hook: {{output: [fc]}}, wrapper: DataParallel}}
x-note: 1
datasets:
  d/train: !import_call {{_any: 1, key: builtins.dict, init: }}
models:
  teacher_model: {{key: resnet34, kwargs: {{weights: !getattr [!import_get {{key: sys.modules}}, x]}}, _note: 1}}
  student_model: {{key: timm_model, kwargs: {{model_name: resnet18.a1_in1k, num_classes: 3}}, experiment: e}}
train:
  student: {{dst_ckpt: runs/stage.pt}}
  stage1: &stage1
    num_epochs: 1
    train_data_loader: {LOADER.replace("    ", "      ")}
      cache_output:
    teacher: *role
    student:
      <<: *role
      auxiliary_model_wrapper: {{key: EmptyModule, kwargs: {{a: 1}}}}
      sequential: [conv1, +extra]
      adaptations: {{extra: {{key: Conv2d, kwargs: {{in_channels: 1, out_channels: 1, kernel_size: 1}}}}}}
      frozen_modules: []
    optimizer:
      key: SGD
      kwargs: {{lr: 0.1}}
      module_wise_configs: [{{module: fc, is_teacher: false}}]
    criterion: {LOSS}
  stage2:
    num_epochs: 1
    teacher: *role
    student: *role
    criterion: {{key: WeightedSumLoss, kwargs: }}
    pre_epoch_process: default_pre_epoch_process_with_teacher
device: {{default: cuda:0, teacher: cuda:1, precision: bf16}}
tracker: {{engine: }}
"""


def parse(text, source="test"):
    """The tree of a YAML text."""
    return plain_tree(compose(text, source), source)


def found(text, *changes, drop=(), **options):
    """The problems of a text after changes ``key.path=value`` and with the paths in ``drop`` left out."""
    tree = parse(text, "test")
    for change in changes:
        path, _, value = change.partition("=")
        tree = changed(tree, path.split("."), parse(value, path))
    for path in drop:
        tree = changed(tree, path.split("."))
    return problems(tree, **options)


def changed(node, path, *value):
    """A copy in which the path holds the value, or is missing; aliases elsewhere keep what they had."""
    if isinstance(node, Tagged):
        return dataclasses.replace(node, value=changed(node.value, path, *value))
    (key, *rest), made = path, list(node) if isinstance(node, list) else dict(node or {})
    key = int(key) if isinstance(made, list) else key
    if rest:
        made[key] = changed(made[key] if isinstance(made, list) else made.get(key), rest, *value)
    elif value:
        made[key] = value[0]
    else:
        del made[key]
    return made


def write(folder: Path, text: str, name: str = "x.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def snapshot(*args, **kwargs):
    """The arguments as they were at the time of the call."""
    return ("snapshot", copy.deepcopy(args), copy.deepcopy(kwargs))


def refuse(**kwargs):
    raise ConfigError("the images are missing; download them first")


def fail(message=""):
    raise FileNotFoundError(message)


RICH = """\
_name: &name 'pets'
_base: &base {size: 3, flag: yes, nothing: , day: 2024-01-02}
datasets:
  &train pets/train: &object !import_call
    _root: &root !join ['~/data/', *name]
    key: 'types.SimpleNamespace'
    init:
      kwargs: &kwargs {root: *root, mean: [0.5, 1.0e-3]}
  pets/again: *object
  pets/val: !import_call
    key: 'types.SimpleNamespace'
    init: {kwargs: *kwargs}
merged:
  <<: [{length: 5, more: 1}, *base]
  flag: no
id: *train
text: 'größer: ok'
empty:
"""
