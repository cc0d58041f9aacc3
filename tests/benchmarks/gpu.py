"""What is measured on a GPU: a training step, the relationship loss in large batches, the tests marked ``gpu``.

    python -m tests.benchmarks.gpu --output gpu

Ten minutes at most, on one GPU of 80 GB; each part is written to the folder as soon as it is there.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from tests.benchmarks import step
from tests.benchmarks.relationship import TILED, Batch, Step, medians, written

IMAGES = ("x-teacher=resnet50", "x-size=224", "x-batch=128", "x-images=2560")
STEPS: dict[str, Sequence[str]] = {
    "float32": (),
    "bf16": ("device.precision=bf16", "device.channels_last=True"),
    "bf16, compiled": ("device.precision=bf16", "device.channels_last=True", "device.compile=both"),
}
SIZES = (1024, 2048, 4096, 8192, 16384)
LOSSES = ("ours", TILED, "truncated", "RKD")
HEADER = ("size", "classes", "width", "method", "ms", "peak MiB")


def losses(sizes: Sequence[int], device: str) -> Iterator[tuple[object, ...]]:
    """Time and peak memory of the losses, forward and backward; what does not fit has no figure."""
    for size in sizes:
        batch = Batch(size, 100, 512, device)
        yield from ((size, 100, 512, method, *_figures(batch.step(method), method, device)) for method in LOSSES)


def _figures(call: Step, method: str, device: str) -> tuple[str, object]:
    has_memory = device != "cpu"
    if has_memory:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if has_memory else 0
    try:
        seconds = medians({method: call})[method]
    except RuntimeError as error:  # out of memory, or of what its integers count
        return type(error).__name__, ""
    return f"{1e3 * seconds:.2f}", torch.cuda.max_memory_allocated() - before >> 20 if has_memory else ""


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu"))
    parser.add_argument("--device", default="cuda", help="cpu: to try the script")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--set", action="append", default=[*IMAGES], metavar="KEY=VALUE", help="changes step.yaml")
    given = parser.parse_args(argv)
    given.output.mkdir(parents=True, exist_ok=True)
    written(losses(given.sizes, given.device), given.output / "losses.csv", HEADER)
    tests = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu", "tests"]
    found = subprocess.run(tests, capture_output=True, text=True, check=False).stdout
    (given.output / "tests.txt").write_text(found, encoding="utf-8")
    print(found[-500:], flush=True)
    for name, changes in STEPS.items():
        file = given.output / f"step {name}.txt"
        with tempfile.TemporaryDirectory() as folder:
            path, steps, batch = step.resolved([*given.set, *changes], Path(folder))
            sides = [side for side in step.SIDES if side != "upstream" or not changes]  # it knows float32 only
            text = step.table(step.compared(path, given.rounds, given.device, sides), steps, batch)
            file.write_text(text, encoding="utf-8")
            print(f"{name}\n{text}", flush=True)
            shares = step.shares(path, 1, given.device).items()
            text += "".join(f"\n{100 * share:5.1f} %  {part}" for part, share in shares)
            file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
