"""Small models, data and configurations that many tests share."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, RandomSampler, SequentialSampler

from gkd_plugin.models import timm_model


class TinyImages(Dataset):
    """Separable random images: class k is brighter in channel k % 3 and column k."""

    def __init__(self, classes: int = 4, per_class: int = 6, size: int = 32, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.targets = [k for k in range(classes) for _ in range(per_class)]
        self.images = 0.3 * torch.randn(len(self.targets), 3, size, size, generator=generator)
        for image, label in zip(self.images, self.targets, strict=True):
            image[label % 3, :, 4 * label : 4 * label + 4] += 1

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.targets[index]

    def __len__(self) -> int:
        return len(self.targets)


class ViewedImages(TinyImages):
    """The same, which say that they come without augmentation."""

    @property
    def evaluation_view(self) -> TinyImages:
        return self


class ManyImages(ViewedImages):
    """As many samples as one likes: a few images, which come again and again."""

    def __init__(self, count: int, classes: int = 10, size: int = 32) -> None:
        super().__init__(classes, 16, size)
        self.images = self.images.unflatten(0, (classes, 16)).transpose(0, 1).flatten(0, 1)  # the classes in turn
        self.targets = [index % classes for index in range(count)]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index % len(self.images)], self.targets[index]


class TinyNet(nn.Module):
    """A network that is not timm's, with batch norm: pool → fc."""

    def __init__(self, num_classes: int = 4, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, stride=2)
        self.bn = nn.BatchNorm2d(width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.bn(self.conv(x)).relu()).flatten(1))


def models(student: str = "test_resnet", num_classes: int = 4, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """A teacher of seven classes, and a student."""
    torch.manual_seed(0)
    return timm_model("test_resnet", num_classes=7), timm_model(student, num_classes=num_classes, **kwargs)


def loader(dataset_id: str, sampler: Any = RandomSampler, batch_size: int = 12) -> dict[str, Any]:
    kwargs = {"batch_size": batch_size, "num_workers": 0}
    return {"dataset_id": dataset_id, "sampler": {"class_or_func": sampler}, "kwargs": kwargs}


def stage(kind: str, epochs: int = 1, **changes: Any) -> dict[str, Any]:
    """A stage of ReFilled as a YAML would have it."""
    hooks = ["embedding"] if kind == "embedding" else ["embedding", "local_classifier"]
    section: dict[str, Any] = {
        "num_epochs": epochs,
        "train_data_loader": loader("train"),
        "val_data_loader": loader("val", SequentialSampler),
        "pre_epoch_process": "refilled",
        "teacher": {
            "forward_proc": "forward_batch_only",
            "requires_grad": False,
            "auxiliary_model_wrapper": {"key": "refilled_teacher", "kwargs": {"preprocessing": "data"}},
            "forward_hook": {"output": hooks},
        },
        "student": {"forward_proc": "forward_batch_only", "forward_hook": {"output": ["embedding"]}},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}},
        "criterion": {"key": "refilled", "kwargs": {"stage": kind}},
    }
    return {**section, **changes}


def cross_entropy(weight: float = 1.0) -> dict[str, Any]:
    """A sub-term on the student's logits."""
    logits = {"is_from_teacher": False, "module_path": ".", "io": "output"}
    wrapper = {"key": "SimpleLossWrapper", "kwargs": {"input": logits, "target": {"uses_label": True}}}
    loss = {"key": "CrossEntropyLoss", "kwargs": {"ignore_index": -1}}
    return {"criterion": loss, "criterion_wrapper": wrapper, "weight": weight}


def make_box(
    train_config: dict[str, Any], teacher: nn.Module, student: nn.Module, accelerator: Any = None, lr_factor: float = 1
) -> Any:
    from torchdistill.core.distillation import get_distillation_box

    common = ({"train": TinyImages(), "val": TinyImages(seed=1)}, train_config, torch.device("cpu"), None, False)
    return get_distillation_box(teacher, student, *common, lr_factor, accelerator)


def train_box(box: Any) -> list[float]:
    """The epoch loop of torchdistill's example scripts."""
    losses = []
    for epoch in range(box.num_epochs):
        box.pre_epoch_process(epoch=epoch)
        for images, labels, supplementary in box.train_data_loader:
            loss = box.forward_process(images, labels, supplementary)
            box.post_forward_process(loss=loss)
            losses.append(loss.item())
        box.post_epoch_process()
    return losses
