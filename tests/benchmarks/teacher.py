"""What the teacher costs: wrapper and tap over a bare forward pass, and epochs with and without ``teacher_cache``.

    python -m tests.benchmarks.teacher

Interleaved in one process; medians and the median of paired ratios.
"""

import argparse
import logging
import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from torch import Tensor

from gkd_plugin.cache.teacher_cache import TeacherCache
from gkd_plugin.config.stages import stages_of
from gkd_plugin.models import timm_model
from gkd_plugin.runner.devices import Placement, make_accelerator
from gkd_plugin.runner.parts import build_box
from gkd_plugin.runner.training import Training
from gkd_plugin.teacher import Answers, RefilledTeacher
from tests.fakes import TinyImages, stage

CPU = Placement(torch.device("cpu"), None, "no")


def overhead(rounds: int, size: int = 64, batch: int = 64, classes: int = 100) -> dict[str, float]:
    """Seconds of a bare ResNet-18 and of the same wrapped, with class centres known, and their ratio."""
    torch.manual_seed(0)
    bare = timm.create_model("resnet18").eval()
    model = timm_model("resnet18")
    model.load_state_dict(bare.state_dict())
    teacher = RefilledTeacher(model, preprocessing="data")
    embeddings = torch.randn(classes, model.head_hidden_size)
    teacher.local_classifier.fit([(Answers(embeddings), torch.arange(classes))], classes)
    images = torch.randn(batch, 3, size, size)
    with torch.no_grad():
        times = [(_timed(bare, images), _timed(teacher, images)) for _ in range(rounds + 2)][2:]
    seconds = {"bare_seconds": median(a for a, _ in times), "wrapped_seconds": median(b for _, b in times)}
    return {**seconds, "ratio": median(b / a for a, b in times)}


def epochs(teacher_name: str, student_name: str, views: int, per_class: int) -> list[dict[str, Any]]:
    """Seconds of the epochs of both stages, without a cache and with one; the second epoch of a stage is the figure.

    ``prepared_ratio`` counts what comes before the first epoch, too: with a cache the teacher's answers.
    """
    plain, rows = _epochs(teacher_name, student_name, None, per_class), []
    with tempfile.TemporaryDirectory() as folder:
        cached = _epochs(teacher_name, student_name, TeacherCache(views, Path(folder)), per_class)
    for before, after in zip(plain, cached, strict=True):
        seconds = {"plain_seconds": before["seconds"], "cached_seconds": after["seconds"]}
        ratio = after["seconds"] / before["seconds"]
        rows.append({"stage": before["stage"], "epoch": before["epoch"], **seconds, "ratio": ratio})
        if "preparation_seconds" in before:
            with_it, without = (row["seconds"] + row["preparation_seconds"] for row in (after, before))
            rows[-1]["prepared_ratio"] = with_it / without
    return rows


def cost_ratio(teacher_name: str, student_name: str, size: int = 32, batch: int = 64, rounds: int = 5) -> float:
    """How many times the student's forward and backward pass the teacher's forward pass takes."""
    torch.manual_seed(0)
    images = torch.randn(batch, 3, size, size)
    teacher, student = timm_model(teacher_name).eval(), timm_model(student_name, num_classes=10).train()
    ratios = []
    for _ in range(rounds):
        with torch.no_grad():
            forward = _timed(teacher, images)
        ratios.append(forward / _timed(lambda x: student(x).sum().backward(), images))
    return median(ratios)


def _timed(function: Callable[[Tensor], Any], images: Tensor) -> float:
    return timeit.timeit(lambda: function(images), number=1)


def _epochs(teacher_name: str, student_name: str, cache: TeacherCache | None, per_class: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    config = {
        "datasets": {"train": TinyImages(10, per_class), "val": TinyImages(10, 2, seed=1)},
        "train": {"stage1": stage("embedding", epochs=3), "stage2": stage("classifier", epochs=3)},
    }
    for section in config["train"].values():
        section["train_data_loader"]["kwargs"]["batch_size"] = 64
    accelerator = make_accelerator(CPU)
    teacher, student = timm_model(teacher_name), timm_model(student_name, num_classes=10)
    if cache:
        config = cache.fix_views(config, {f"train.{name}": section for name, section in config["train"].items()})
    box = build_box(config, teacher, student, CPU, accelerator)
    return [row for _, row in Training(box, student, stages_of(config), accelerator, cache).epochs()]


def main() -> None:
    """The command."""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--teacher", default="resnet18")
    parser.add_argument("--student", default="test_byobnet")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--per-class", type=int, default=64, help="training images of each of ten classes")
    options = parser.parse_args()
    cost = overhead(options.rounds)
    print(f"refilled_teacher + tap over a bare ResNet-18, batch 64 at 64 px: {cost}")
    ratio = cost_ratio(options.teacher, options.student)
    print(f"{options.teacher} forward / {options.student} forward + backward: {ratio:.2f}")
    for row in epochs(options.teacher, options.student, options.views, options.per_class):
        print(row)


if __name__ == "__main__":
    main()
