"""Time and memory of the relationship loss against everything it competes with, in one process.

    python -m tests.benchmarks.relationship --output benchmark

writes ``relationship.csv`` (a row for each batch size, number of classes and method), ``relationship.png`` (time and
peak memory against B, log–log) and ``figures.csv``, and prints the latter: the project's goals and what was measured.
Variants are run in turn, round after round; a time is the median of its rounds, a ratio is of two such medians. On two
idle cores it takes about a quarter of an hour (``--only figures``: five minutes).
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import timm
import torch
from torch import Tensor

from gkd_plugin.functional import relationship_matching
from tests.benchmarks.baselines import BASELINES
from tests.benchmarks.memory import peak_bytes

Step = Callable[[], object]

SIZES = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
LARGEST = {"padded": 256, "truncated": 1024, "dense": 1024}
ROUNDS = 15
LONG = 0.1  # seconds, of a step that is run once in its turn
SECONDS = 6.0  # per variant, after which it gets no further round (but two at least)


@dataclass
class Batch:
    """Embeddings of both networks with some class structure, on the CPU."""

    size: int
    classes: int
    width: int
    student: Tensor = field(init=False)
    teacher: Tensor = field(init=False)
    labels: Tensor = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def clustered(spread: float) -> Tensor:
            centres = torch.randn(self.classes, self.width, generator=generator)
            return spread * centres[self.labels] + torch.randn(self.size, self.width, generator=generator)

        self.labels = torch.randint(self.classes, (self.size,), generator=generator)
        self.student, self.teacher = clustered(0.5).requires_grad_(), clustered(1.0)

    def step(self, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Step:
        """Forward and backward."""

        def run() -> None:
            self.student.grad = None
            loss(self.student, self.teacher, self.labels).backward()

        return run


def ours(student: Tensor, teacher: Tensor, labels: Tensor, **settings: object) -> Tensor:
    """The loss as the criterion calls it."""
    return relationship_matching(student, teacher, labels, **settings).loss  # type: ignore[arg-type]


def dense(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """The form of one softmax per tuple, on all negatives."""
    return ours(student, teacher, labels, max_negatives=len(labels))


OURS = {"ours": ours, "ours, tiled": partial(ours, tiled=True), "dense": dense}
METHODS = OURS | BASELINES


def medians(steps: dict[str, Step]) -> dict[str, float]:
    """Seconds of each step, run in turn; short ones a few times in a row, so that each finds its own cache."""
    torch.empty(31 * 2**18)  # glibc then keeps freed memory, as in a process that trains
    for step in steps.values():  # fills the caches
        step()
    times: dict[str, list[float]] = {name: [_seconds(step)] for name, step in steps.items()}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            if len(times[name]) >= 2 and sum(times[name]) > SECONDS:
                continue
            times[name] += [_seconds(step) for _ in range(1 if times[name][-1] > LONG else 5)]
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def _seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


@dataclass
class Figure:
    """A goal, and what was measured."""

    work: str
    against: str
    goal: str
    measured: float
    unit: str
    met: bool

    def row(self) -> list[str]:
        """For the table and the CSV."""
        return [self.work, self.against, self.goal, f"{self.measured:.3g}{self.unit}", "met" if self.met else "missed"]


def faster_than(batch: Batch, baseline: str, goal: float, method: str = "ours") -> Figure:
    """How many times faster than a baseline."""
    seconds = medians({method: batch.step(METHODS[method]), baseline: batch.step(METHODS[baseline])})
    ratio = seconds[baseline] / seconds[method]
    return Figure(_name(batch, method), baseline, f"≥ {goal:g}×", ratio, "×", ratio >= goal)


def share_of(batch: Batch, what: str, step: Step, goal: float, unit: str = "×") -> Figure:
    """Our time as a share of another's."""
    seconds = medians({"ours": batch.step(ours), what: step})
    share = seconds["ours"] / seconds[what] * (100 if unit == " %" else 1)
    return Figure(_name(batch), what, f"≤ {goal:g}{unit}", share, unit, share <= goal)


def memory_of(batch: Batch, method: str, goal: float, *, squares: bool) -> Figure:
    """Peak memory above the inputs, in B² floats or in MiB."""
    step = batch.step(METHODS[method])
    step()
    peak = statistics.median(peak_bytes(step) for _ in range(5))
    amount, unit = (peak / 4 / batch.size**2, " B² floats") if squares else (peak / 2**20, " MiB")
    return Figure(_name(batch, method), "memory", f"≤ {goal:g}{unit}", amount, unit, amount <= goal)


def _name(batch: Batch, method: str = "ours") -> str:
    return f"{method}, B {batch.size}, {batch.classes} classes, D {batch.width}"


def three_products(batch: Batch) -> Step:
    """XXᵀ, TTᵀ and W·X."""
    student, teacher = batch.student.detach(), batch.teacher
    weights = torch.randn(batch.size, batch.size)
    return lambda: (student @ student.T, teacher @ teacher.T, weights @ student)


def resnet_step(size: int) -> Step:
    """A training step of timm's ResNet-18 on images of 32 pixels."""
    model = timm.create_model("resnet18", num_classes=10)
    images, labels = torch.randn(size, 3, 32, 32), torch.randint(10, (size,))

    def run() -> None:
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()

    return run


def figures() -> Iterable[Figure]:
    """Every goal, in turn."""
    for classes, width, goal in ((10, 64, 30), (10, 512, 36), (100, 64, 6), (100, 512, 7)):
        yield faster_than(Batch(256, classes, width), "truncated", goal)
    for classes, goal in ((10, 180), (100, 40)):
        yield faster_than(Batch(1024, classes, 64), "truncated", goal)
    for classes, goal in ((10, 2000), (100, 100)):
        yield faster_than(Batch(256, classes, 64), "padded", goal)
    for classes in (10, 100):
        yield faster_than(Batch(64, classes, 64), "truncated", 3)
        yield faster_than(Batch(64, classes, 64), "dense", 1 / 1.1)
    for size in (256, 1024, 4096):
        batch = Batch(size, 100, 512)
        yield share_of(batch, "RKD", batch.step(BASELINES["RKD"]), 1.0)
    for classes in (10, 100):
        batch = Batch(1024, classes, 512)
        yield share_of(batch, "three bare products", three_products(batch), 4)
    for method, size, goal in (("ours", 1024, 5), ("ours", 4096, 2.5), ("ours, tiled", 4096, 0.6)):
        yield memory_of(Batch(size, 100, 64), method, goal, squares=True)
    yield memory_of(Batch(256, 10, 64), "ours", 4, squares=False)
    for size, goal in ((256, 1), (1024, 1)):
        yield share_of(Batch(size, 100, 512), "ResNet-18 step", resnet_step(size), goal, " %")


def growth(rows: list[dict[str, object]], key: str, goal: float) -> Figure:
    """The exponent of B between 1024 and 8192."""
    found = {row["size"]: row[key] for row in rows if row["method"] == "ours" and row["classes"] == 100}
    exponent = float(torch.log2(torch.tensor(float(str(found[8192])) / float(str(found[1024]))))) / 3
    return Figure("ours, B 1024 to 8192", f"growth of {key}", f"≤ B^{goal:g}", exponent, "", exponent <= goal)


def sweep(sizes: Iterable[int]) -> Iterable[dict[str, object]]:
    """Time and peak memory of every method at every batch size it can stand."""
    for classes in (10, 100):
        for size in sizes:
            batch = Batch(size, classes, 64)
            steps = {name: batch.step(loss) for name, loss in METHODS.items() if size <= LARGEST.get(name, size)}
            seconds = medians(steps)
            for name, step in steps.items():
                peak = peak_bytes(step)
                print(f"B {size}, {classes} classes, {name}: {seconds[name] * 1e3:.2f} ms, {peak / 2**20:.1f} MiB")
                yield {
                    "size": size, "classes": classes, "width": 64, "temperature": 4.0, "method": name,
                    "seconds": seconds[name], "peak_bytes": peak, "threads": torch.get_num_threads(),
                    "torch": torch.__version__,
                }  # fmt: skip


def plot(rows: list[dict[str, object]], path: Path) -> None:
    """Time and memory against B, log–log, 100 classes."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 5))
    sizes = sorted({int(str(row["size"])) for row in rows})
    for axis, key, label, unit in zip(
        axes, ("seconds", "peak_bytes"), ("time, ms", "peak memory above the inputs, MiB"), (1e3, 2**-20), strict=True
    ):
        for method in METHODS:
            points = [row for row in rows if row["method"] == method and row["classes"] == 100 and row[key]]
            heights = [float(str(row[key])) * unit for row in points]
            style = "-" if method.startswith("ours") else "--"
            axis.loglog([row["size"] for row in points], heights, style, marker=".", label=method)
        axis.set(xlabel="batch size B", ylabel=label, xticks=sizes, xticklabels=sizes)
        axis.minorticks_off()
        axis.grid(visible=True, alpha=0.2)
    axes[1].legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.suptitle("Relationship loss, forward and backward, 100 classes, D = 64, τ = 4, CPU")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmark"))
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="batch sizes of the sweep")
    parser.add_argument("--only", choices=("figures", "sweep"), help="half of the work")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    found: list[Figure] = []
    if arguments.only != "sweep":
        for figure in figures():
            found.append(figure)
            print(" | ".join(figure.row()), flush=True)
    if arguments.only != "figures":
        rows = _written(sweep(arguments.sizes), arguments.output / "relationship.csv")
        plot(rows, arguments.output / "relationship.png")
        if {1024, 8192} <= set(arguments.sizes):
            found += [growth(rows, "seconds", 2.2), growth(rows, "peak_bytes", 2.0)]
            print("\n".join(" | ".join(figure.row()) for figure in found[-2:]))
    if found:
        with (arguments.output / "figures.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(
                [["work", "against", "goal", "measured", ""], *(figure.row() for figure in found)]
            )


def _written(rows: Iterable[dict[str, object]], path: Path) -> list[dict[str, object]]:
    """The rows, each in the file as soon as it is measured."""
    kept: list[dict[str, object]] = []
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for row in rows:
            if not kept:
                writer.writerow(row)
            writer.writerow(row.values())
            file.flush()
            kept.append(row)
    return kept


if __name__ == "__main__":
    main()
