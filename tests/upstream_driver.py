"""What torchdistill's ``examples/torchvision/image_classification.py`` does, as far as a configuration can tell.

The same public calls in the same order, on one process.
"""

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

CPU = torch.device("cpu")


def drive(config_path: Path) -> dict[str, float]:
    """Trains; the final test accuracies of 'teacher', if there is one, and 'student', in per cent."""
    set_seed(0)
    config = yaml_util.load_yaml_file(str(config_path))
    import_dependencies(config.get("dependencies", None))
    models, train_config = config["models"], config["train"]
    teacher = load_model(models["teacher_model"]) if models.get("teacher_model") is not None else None
    student_entry = models["student_model"] if "student_model" in models else models["model"]
    student, destination = load_model(student_entry), student_entry["dst_ckpt"]
    assert train_config["log_freq"] > 0
    common = (config["datasets"], train_config, CPU, None, False, 1)
    box = get_training_box(student, *common) if teacher is None else get_distillation_box(teacher, student, *common)
    best = 0.0
    for epoch in range(box.num_epochs):
        box.pre_epoch_process(epoch=epoch)
        for images, labels, supplementary in box.train_data_loader:
            loss = box.forward_process(images, labels, supplementary)
            box.post_forward_process(loss=loss)
            assert torch.isfinite(loss)
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
