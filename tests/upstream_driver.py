"""What torchdistill's ``examples/torchvision/image_classification.py`` does, as far as a configuration can tell.

The same public calls in the same order, on one process.
"""

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchdistill.common import yaml_util
from torchdistill.common.main_util import import_dependencies, load_ckpt, save_ckpt, set_seed
from torchdistill.core.distillation import get_distillation_box
from torchdistill.core.training import get_training_box
from torchdistill.datasets.util import build_data_loader
from torchdistill.misc.log import MetricLogger, SmoothedValue
from torchdistill.models.official import get_image_classification_model
from torchdistill.models.registry import get_model

CPU = torch.device("cpu")


def drive(config_path: Path) -> dict[str, float]:
    """Trains; the final test accuracies of 'teacher', if there is one, and 'student', in per cent."""
    config = read(config_path)
    box, teacher, student = built(config)
    student_entry = config["models"].get("student_model") or config["models"]["model"]
    destination, best = student_entry["dst_ckpt"], 0.0
    for epoch in range(box.num_epochs):
        train_one_epoch(box, CPU, epoch, config["train"]["log_freq"])
        top1 = evaluate(student, box.val_data_loader)
        if top1 > best:
            best = top1
            save_ckpt(student, box.optimizer, box.lr_scheduler, best, None, destination)
        box.post_epoch_process()
    box.clean_modules()

    load_ckpt(destination, model=student, strict=True)
    test_config = config["test"]["test_data_loader"]
    loader = build_data_loader(config["datasets"][test_config["dataset_id"]], test_config, False)
    measured = {"teacher": teacher, "student": student}
    return {name: evaluate(model, loader) for name, model in measured.items() if model is not None}


def read(config_path: Path) -> dict[str, Any]:
    """The configuration, after the seed."""
    set_seed(0)
    config = yaml_util.load_yaml_file(str(config_path))
    import_dependencies(config.get("dependencies", None))
    return config


def built(config: dict[str, Any], device: torch.device = CPU) -> tuple[Any, nn.Module | None, nn.Module]:
    """Box, teacher and student."""
    models, train_config = config["models"], config["train"]
    teacher = load_model(models["teacher_model"]).to(device) if models.get("teacher_model") is not None else None
    student = load_model(models["student_model"] if "student_model" in models else models["model"]).to(device)
    common = (config["datasets"], train_config, device, None, False, 1)
    box = get_training_box(student, *common) if teacher is None else get_distillation_box(teacher, student, *common)
    return box, teacher, student


def train_one_epoch(box: Any, device: torch.device, epoch: int, log_freq: int) -> None:
    """An epoch, with what the script counts and logs."""
    logger = MetricLogger(delimiter="  ")
    logger.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
    logger.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
    box.pre_epoch_process(epoch=epoch)
    for batch, targets, supplementary in logger.log_every(box.train_data_loader, log_freq, f"Epoch: [{epoch}]"):
        start = time.time()
        images, labels = batch.to(device), targets.to(device)
        loss = box.forward_process(images, labels, supplementary)
        box.post_forward_process(loss=loss)
        logger.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
        logger.meters["img/s"].update(len(images) / (time.time() - start))
        assert torch.isfinite(loss)


def load_model(entry: dict[str, Any]) -> nn.Module:
    model = get_image_classification_model(entry, False)
    if model is None:
        model = get_model(entry["key"], entry.get("repo_or_dir"), **entry["kwargs"])
    load_ckpt(entry.get("src_ckpt"), model=model, strict=True)
    return model


@torch.inference_mode()
def evaluate(model: nn.Module, loader: Any) -> float:
    model.eval()
    hits = 0
    for images, labels in loader:
        hits += (model(images).topk(5, dim=1).indices[:, 0] == labels).sum().item()  # it needs at least five classes
    return 100 * hits / len(loader.dataset)
