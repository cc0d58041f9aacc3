"""What torchdistill's ``examples/torchvision/image_classification.py`` does, as far as a configuration can tell.

The same public calls in the same order, on one process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchdistill.common import yaml_util
from torchdistill.common.main_util import import_dependencies, load_ckpt, save_ckpt, set_seed
from torchdistill.core.distillation import get_distillation_box
from torchdistill.core.training import get_training_box
from torchdistill.datasets.util import build_data_loader
from torchdistill.models.official import get_image_classification_model
from torchdistill.models.registry import get_model


def drive(config_path: Path, device_name: str = "cpu", seed: int = 0) -> dict[str, Any]:
    """Trains and evaluates; returns the best validation and the final test accuracies, in per cent."""
    set_seed(seed)
    config = yaml_util.load_yaml_file(str(config_path))
    import_dependencies(config.get("dependencies", None))
    device, entries = torch.device(device_name), config["models"]
    teacher = load_model(entries["teacher_model"], device) if entries.get("teacher_model") is not None else None
    student_entry = entries["student_model"] if "student_model" in entries else entries["model"]
    student = load_model(student_entry, device)
    best = train(config, teacher, student, student_entry["dst_ckpt"], device)

    load_ckpt(student_entry["dst_ckpt"], model=student, strict=True)
    test_config = config["test"]["test_data_loader"]
    loader = build_data_loader(config["datasets"][test_config["dataset_id"]], test_config, False)
    models = {"student": student} if teacher is None else {"student": student, "teacher": teacher}
    return {"best": best, **{name: evaluate(model, loader, device) for name, model in models.items()}}


def load_model(entry: dict[str, Any], device: torch.device) -> nn.Module:
    model = get_image_classification_model(entry, False)
    if model is None:
        model = get_model(entry["key"], entry.get("repo_or_dir"), **entry["kwargs"])
    load_ckpt(entry.get("src_ckpt"), model=model, strict=True)
    return model.to(device)


def train(config: dict[str, Any], teacher: Any, student: nn.Module, destination: str, device: torch.device) -> float:
    assert config["train"]["log_freq"] > 0
    common = (config["datasets"], config["train"], device, None, False, 1)
    box = get_training_box(student, *common) if teacher is None else get_distillation_box(teacher, student, *common)
    best = 0.0
    for epoch in range(box.num_epochs):
        box.pre_epoch_process(epoch=epoch)
        for images, labels, supplementary in box.train_data_loader:
            loss = box.forward_process(images.to(device), labels.to(device), supplementary)
            box.post_forward_process(loss=loss)
            assert torch.isfinite(loss)
        top1 = evaluate(student, box.val_data_loader, device)
        if top1 > best:
            best = top1
            save_ckpt(student, box.optimizer, box.lr_scheduler, best, None, destination)
        box.post_epoch_process()
    box.clean_modules()
    return best


@torch.inference_mode()
def evaluate(model: nn.Module, loader: Any, device: torch.device) -> float:
    model.to(device).eval()
    hits = 0
    for images, labels in loader:
        ranked = model(images.to(device)).topk(5, dim=1).indices  # upstream needs at least five classes
        hits += (ranked[:, 0] == labels.to(device)).sum().item()
    return 100 * hits / len(loader.dataset)
