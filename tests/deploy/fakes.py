"""Run folders without a training: random weights, and what refilled run writes beside them."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from gkd_plugin.config.tree import dump
from gkd_plugin.runner.models import build_model
from gkd_plugin.runner.run_folder import write_json
from gkd_plugin.runner.weights import save_student
from tests.runner.fakes import model, student_config

CLASSES = ["ant", "bee", "cat", "dog"]
MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
PHOTOS = {"input_size": [3, 32, 32], "mean": MEAN, "std": STD}
PHOTOS |= {"crop_pct": 32 / 36, "crop_mode": "center", "interpolation": "bilinear"}
"""As image_transform(32, …, resize=36)."""


def fake_run(
    folder: Path, entry: dict[str, Any] | None = None, known: dict[str, Any] | None = PHOTOS, **about: Any
) -> Any:
    """Writes the run of a student (test_vit) with a teacher; gives the student as the run had it."""
    tree = student_config()
    tree["models"]["student_model"] = entry = entry or model("test_vit", img_size=32)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump(tree), encoding="utf-8")
    torch.manual_seed(0)
    student = build_model("models.student_model", entry).eval()
    about = {"classes": CLASSES, "epochs": (2, 2), **about} | ({} if known is None else {"preprocessing": known})
    save_student(student, folder / "student.safetensors", about)
    final = {"top1": 87.5, "ncm_top1": 75.0, "samples": 24, "on": "test"}
    about = {"config": "own.yaml", "status": "finished", "seed": 3, "final": final, "versions": {"timm": "1.0"}}
    write_json(
        folder / "summary.json", {**about, "teacher": {"ncm_top1": 90.0}, "stages": {"stage1": {"num_epochs": 2}}}
    )
    return student


def photos(folder: Path, count: int = 3) -> list[str]:
    """Pictures of noise in several shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.effect_noise((40 + 9 * number, 50), 90).convert("RGB").save(path)
    return list(map(str, paths))
