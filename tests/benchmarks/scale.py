"""How the time and the memory of one epoch grow with the images, and with the processes that share them.

    python -m tests.benchmarks.scale --output scale

Runs of the command with step.yaml on one thread for each process, tiny models, images of 16 pixels in batches of 64;
the epoch is the second one, of 100,000 images and more the first. Writes scale.csv.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.relationship import written
from tests.benchmarks.step import CONFIG

MODELS = ("x-teacher=test_resnet", "x-student=test_resnet", "x-size=16")
IMAGES, OF, PROCESSES = (10**3, 10**4, 10**5, 10**6), 10**4, (1, 2, 4)


class Row(NamedTuple):
    """What one run took."""

    images: int
    processes: int
    preparation_seconds: float  # to the first step: imports left out, the local classifier included
    epoch_seconds: float
    images_per_second: float
    peak_mib: float  # resident, of the largest process


def measured(images: int, processes: int, changes: Sequence[str] = MODELS) -> Row:
    """Runs the command."""
    words = [f"--set={text}" for text in (*changes, f"x-images={images}", f"x-epochs={1 if images >= 10**5 else 2}")]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] * (processes > 1)
    with tempfile.TemporaryDirectory() as folder:
        command = [*launcher, "-m", "gkd_plugin", "run", str(CONFIG), "--device", "cpu", "--output", f"{folder}/run"]
        process = subprocess.Popen(
            [sys.executable, *command, *words],
            cwd=folder,
            env={"PYTHONPATH": str(Path.cwd()), **os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(process.returncode)
        summary = json.loads(Path(folder, "run/summary.json").read_text("utf-8"))
    epoch = summary["stages"]["train"]["epochs"][-1]
    figures = (summary["preparation_seconds"], epoch["seconds"], epoch["images_per_second"], usage.ru_maxrss / 2**10)
    return Row(images, summary["processes"], *(round(figure, 2) for figure in figures))


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("scale"))
    parser.add_argument("--images", type=int, nargs="*", default=IMAGES, help="with one process")
    parser.add_argument("--of", type=int, default=OF, help="images that several processes share")
    parser.add_argument("--processes", type=int, nargs="*", default=PROCESSES)
    parser.add_argument("--set", action="append", default=[*MODELS], metavar="KEY=VALUE", help="changes step.yaml")
    given = parser.parse_args(argv)
    given.output.mkdir(parents=True, exist_ok=True)

    def rows() -> Iterator[Row]:
        yield from (measured(images, 1, given.set) for images in given.images)
        yield from (measured(given.of, processes, given.set) for processes in given.processes)

    written(rows(), given.output / "scale.csv", Row._fields)


if __name__ == "__main__":
    main()
