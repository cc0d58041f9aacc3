"""Datasets small enough to predict by hand, trees of image files, and values that count the work done on them."""

import io
import json
import random
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from gkd_plugin.data import ClassSubset, seeded


class FakeImages(Dataset[Any]):
    """Sample i is ``(prefix + str(i), label)``; without ``targets`` only where ``labels`` is ``None``."""

    def __init__(self, labels: Any, classes: Iterable[Any] | None = None, prefix: str = "image") -> None:
        if labels is not None:
            self.targets = labels
        if classes is not None:
            self.classes = list(classes)
        self.prefix = prefix

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[str, int]:
        if not 0 <= index < len(self.targets):
            raise IndexError(index)
        return f"{self.prefix}{index}", int(self.targets[index])


def with_view(labels: list[int], classes: Iterable[Any] | None = None) -> FakeImages:
    dataset = FakeImages(labels, classes, prefix="augmented")
    dataset.evaluation_view = FakeImages(labels, classes, prefix="clean")
    return dataset


def known_by_a_teacher(dataset: Any) -> ClassSubset:
    """Its three classes, of which a teacher with seven has the first and the last."""
    known = {"teacher_labels": [4, None, 1], "teacher_num_classes": 7}
    return ClassSubset(dataset, range(len(dataset)), dataset.targets, dataset.classes, **known)


def random_states() -> list[Any]:
    """Of the three global CPU generators, to be compared."""
    _, keys, *rest = np.random.get_state()  # noqa: NPY002
    return [random.getstate(), keys.tolist(), rest, torch.get_rng_state().tolist()]


def samples(dataset: Any) -> list[Any]:
    return [dataset[i] for i in range(len(dataset))]


def counted(kind: type) -> Any:
    """A new kind of ``int`` or ``str`` whose attribute ``looks`` counts how often any of them is compared or hashed."""

    class Counted(kind):
        looks = 0

        def __eq__(self, other: object) -> bool:
            Counted.looks += 1
            return kind.__eq__(self, other)

        def __hash__(self) -> int:
            Counted.looks += 1
            return kind.__hash__(self)

    return Counted


def image_tree(root: Path, classes: Sequence[str], per_class: int = 2, blue: int = 0) -> Path:
    """``root/<class>/<number>.png``; image j of class i is plain with red = 10 i and green = j."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            Image.new("RGB", (12, 10), (10 * label % 256, number, blue)).save(root / name / f"{number}.png")
    return root


def cub_tree(root: Path, num_classes: int = 3, per_class: int = 4) -> Path:
    """CUB_200_2011 with few classes; of each, the first half are training images."""
    folder = root / "CUB_200_2011"
    names = [f"{label + 1:03d}.Bird_{label}" for label in range(num_classes)]
    image_tree(folder / "images", names, per_class)
    rows = [(label, number) for label in range(num_classes) for number in range(per_class)]
    files = {
        "classes.txt": names,
        "images.txt": [f"{names[label]}/{number}.png" for label, number in rows],
        "image_class_labels.txt": [label + 1 for label, _ in rows],
        "train_test_split.txt": [int(number < per_class // 2) for _, number in rows],
    }
    for name, values in files.items():
        lines = [f"{number} {value}\n" for number, value in enumerate(values, start=1)]
        (folder / name).write_text("".join(lines), encoding="utf-8")
    return folder


def noisy(image: Image.Image) -> Tensor:
    """A transform that draws from torch's random state."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    return pixels + 0.1 * torch.randn(pixels.shape)


def fixed_by_hand(root: Path, views: int) -> dict[int, Tensor]:
    """Row → image of the fixed views of :func:`shards` under :func:`noisy`, read without a stream."""
    rows = {}
    for number, path in enumerate(sorted(root.glob("*.tar"))):
        with tarfile.open(path) as tar:
            members = [member for member in tar.getmembers() if member.name.endswith(".png")]
            for index, member in enumerate(members):
                with Image.open(tar.extractfile(member)) as image:
                    for view in range(views):
                        with seeded(f"0,{path.name},{index},{view}"):
                            rows[(number << 32) + index * views + view] = noisy(image)
    return rows


def shards(root: Path, samples: Sequence[int], classes: int = 3, size: int = 32, info: bool = True) -> Path:
    """webdataset's ``train-0000.tar`` …, with so many samples each: the red of a sample is its number, 10 times."""
    root.mkdir(parents=True)
    number, names = 0, [f"train-{index:04d}.tar" for index in range(len(samples))]
    for name, count in zip(names, samples, strict=True):
        with tarfile.open(root / name, "w") as tar:
            for _ in range(count):
                image = io.BytesIO()
                Image.new("RGB", (size, size), (10 * number % 256, 80 * (number % classes), 0)).save(image, "png")
                for suffix, content in (("png", image.getvalue()), ("cls", str(number % classes).encode())):
                    entry = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
                number += 1
    split = {"name": "train", "num_samples": number, "filenames": names, "shard_lengths": list(samples)}
    if info:
        (root / "_info.json").write_text(json.dumps({"splits": {"train": split}}), encoding="utf-8")
    return root
