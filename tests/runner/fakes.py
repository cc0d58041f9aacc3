"""Tiny configurations: one epoch per stage, 24 images of 32 × 32, the smallest models of timm."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from gkd_plugin.config.tree import Tagged, dump
from gkd_plugin.errors import ConfigError
from gkd_plugin.runner.devices import Placement, make_accelerator
from tests.fakes import cross_entropy, loader, stage

CPU = Placement(torch.device("cpu"), None, "no")


def call(key: str, **kwargs: Any) -> Tagged:
    return Tagged("!import_call", {"key": key, "init": {"kwargs": kwargs}})


def _loader(name: str, sampler: str = "Sequential") -> dict[str, Any]:
    return loader(name, Tagged("!import_get", {"key": f"torch.utils.data.{sampler}Sampler"}))


def loaders() -> dict[str, Any]:
    return {"train_data_loader": _loader("train", "Random"), "val_data_loader": _loader("val")}


def config(models: dict[str, Any], train: dict[str, Any]) -> dict[str, Any]:
    kinds = {"train": "ViewedImages", "val": "TinyImages", "test": "TinyImages"}
    datasets = {name: call(f"tests.fakes.{kind}", seed=seed) for seed, (name, kind) in enumerate(kinds.items())}
    return {
        "dependencies": [{"name": "gkd_plugin"}],
        "datasets": datasets,
        "models": models,
        "train": train,
        "test": {"test_data_loader": _loader("test")},
    }


def model(name: str, **kwargs: Any) -> dict[str, Any]:
    return {"key": "timm_model", "kwargs": {"model_name": name, "num_classes": 4, **kwargs}}


def teacher_config() -> dict[str, Any]:
    """A plain training of the teacher."""
    section = stage("classifier", epochs=2, **loaders()) | {"model": {"forward_proc": "forward_batch_only"}}
    for key in ("pre_epoch_process", "teacher", "student"):
        del section[key]
    section["criterion"] = {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"cross_entropy": cross_entropy()}}}
    return config({"model": {**model("test_resnet"), "dst_ckpt": "runs/teacher/teacher.pt"}}, section)


def student_config() -> dict[str, Any]:
    """Both stages of ReFilled with that teacher."""
    teacher = {**model("test_resnet"), "src_ckpt": "runs/teacher/teacher.pt"}
    student = {**model("test_vit", img_size=32), "dst_ckpt": "runs/student/student.pt"}
    stages = {f"stage{number}": stage(kind, **loaders()) for number, kind in enumerate(("embedding", "classifier"), 1)}
    return config({"teacher_model": teacher, "student_model": student}, stages)


def write_configs(folder: Path) -> tuple[Path, Path]:
    """Writes teacher.yaml and student.yaml."""
    for name, tree in (("teacher", teacher_config()), ("student", student_config())):
        (folder / f"{name}.yaml").write_text(dump(tree), encoding="utf-8")
    return Path("teacher.yaml"), Path("student.yaml")


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
