"""Memory of a run against the number of streamed samples: ``python -m tests.benchmarks.streams [--kept] [COUNT …]``.

A whole ``refilled run`` of stage joint, with validation, test and checkpoints, of generated images and models of a few
weights: what grows with the samples is not hidden by what does not. Every number has a process of its own; the figure
is the most that was resident in it. ``--kept`` trains on shards of 500 samples, with a teacher cache of two views.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torchdistill.models.registry import register_model

from gkd_plugin.config.config import checked_config
from gkd_plugin.config.tree import Tagged
from gkd_plugin.data import Stream
from gkd_plugin.runner.run import run_config
from tests.data.fakes import shards
from tests.fakes import TinyNet, loader, stage
from tests.runner.fakes import call

COUNTS = (10**3, 10**4, 10**5, 10**6)
CLASSES = 10
register_model(key="tiny_net")(TinyNet)


class Generated:
    """A reader as timm has it, of images that are made as they are read."""

    dist_rank, dist_num_replicas, batch_size = 0, 1, 1

    def __init__(self, num_samples: int, is_training: bool) -> None:
        self.num_samples, self.is_training = num_samples, is_training

    def set_epoch(self, epoch: int) -> None: ...

    def set_loader_cfg(self, num_workers: int) -> None: ...

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        pool = torch.randn(1000, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        for number in range(self.num_samples):
            yield pool[number % 1000] + number % CLASSES / CLASSES, number % CLASSES


def generated(num_samples: int, is_training: bool = False) -> Stream:
    return Stream(Generated(num_samples, is_training))


def measure(count: int, folder: Path, *, is_kept: bool = False) -> dict[str, Any]:
    """Trains on so many samples; MiB that were resident at most, in this process."""
    sampler = Tagged("!import_get", {"key": "torch.utils.data.SequentialSampler"})
    loaders = {f"{name}_data_loader": loader(name, sampler, batch_size=200) for name in ("train", "val", "test")}
    test = {"test_data_loader": loaders.pop("test_data_loader")}
    joint = stage("joint", **loaders)
    joint["teacher"]["auxiliary_model_wrapper"]["kwargs"] = {"embedding": "pool", "preprocessing": "data"}
    joint["student"]["forward_hook"]["output"] = ["pool"]
    joint["criterion"]["kwargs"]["student_embedding"] = "pool"
    model = {"key": "tiny_net", "kwargs": {"num_classes": CLASSES}}
    made = "tests.benchmarks.streams.generated"
    datasets = {name: call(made, num_samples=count, is_training=name == "train") for name in ("train", "val", "test")}
    kept = {}
    if is_kept:
        root = shards(folder / "shards", [500] * (count // 500), CLASSES, size=8)
        wds = {"name": "wds/", "root": str(root), "is_training": True, "sample_shuffle_size": 1000}
        datasets["train"] = call(
            "gkd_plugin.data.timm_dataset", **wds, transform=call("torchvision.transforms.ToTensor")
        )
        kept = {"teacher_cache": {"views": 2, "folder": str(folder / "kept")}}
    tree = {
        **kept,
        "dependencies": [{"name": "gkd_plugin"}],
        "datasets": datasets,
        "models": {"teacher_model": model, "student_model": model},
        "train": joint,
        "test": test,
        "checkpoint": {"every_steps": 500},
    }
    summary = run_config(checked_config(Path("streams.yaml"), tree), folder / "run", device="cpu")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"samples": count, "MiB": round(peak, 1), "seconds": summary["wall_seconds"]}


def main(counts: list[int], *options: str) -> list[dict[str, Any]]:
    """A line for each number, with what it needs in parts of the first one."""
    rows: list[dict[str, Any]] = []
    for count in counts:
        command = [sys.executable, "-m", "tests.benchmarks.streams", "--one", *options, str(count)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append({**row, "ratio": round(row["MiB"] / (rows or [row])[0]["MiB"], 4)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


if __name__ == "__main__":
    options = [word for word in sys.argv[1:] if word == "--kept"]
    if sys.argv[1:2] == ["--one"]:
        with TemporaryDirectory() as folder:
            print(json.dumps(measure(int(sys.argv[-1]), Path(folder), is_kept=bool(options))))
    else:
        main([int(word) for word in sys.argv[1:] if word not in options] or list(COUNTS), *options)
