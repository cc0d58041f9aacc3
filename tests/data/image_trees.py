"""Small trees of image files: a folder for each class, and CUB-200-2011's official layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image


def image_tree(root: Path, classes: Sequence[str], per_class: int = 2, size: tuple[int, int] = (12, 10)) -> Path:
    """``root/<class>/<number>.png``; image j of class i is plain with red = 10 i and green = j."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            Image.new("RGB", size, (10 * label % 256, number, 0)).save(root / name / f"{number}.png")
    return root


def cub_tree(root: Path, num_classes: int = 3, per_class: int = 4, size: tuple[int, int] = (12, 10)) -> Path:
    """CUB_200_2011 with few classes; of each, the first half are training images."""
    folder = root / "CUB_200_2011"
    names = [f"{label + 1:03d}.Bird_{label}" for label in range(num_classes)]
    image_tree(folder / "images", names, per_class, size)
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
