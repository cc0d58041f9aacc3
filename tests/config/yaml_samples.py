"""Files, and objects for configs to build."""

from __future__ import annotations

import copy
from pathlib import Path

from gkd_plugin.errors import ConfigError


def write(folder: Path, text: str, name: str = "x.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


class Built:
    """Something a config builds."""

    def __init__(self, **kwargs):
        self.kwargs = kwargs


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
    key: 'tests.config.yaml_samples.Built'
    init:
      kwargs: &kwargs {root: *root, mean: [0.5, 1.0e-3]}
  pets/again: *object
  pets/val: !import_call
    key: 'tests.config.yaml_samples.Built'
    init: {kwargs: *kwargs}
merged:
  <<: [{length: 5, more: 1}, *base]
  flag: no
id: *train
text: 'größer: ok'
empty:
"""


def comparable(value):
    if isinstance(value, Built):
        return ("Built", comparable(value.kwargs))
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items()}
    return [comparable(item) for item in value] if isinstance(value, list) else value
