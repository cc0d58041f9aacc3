"""Time and memory of the relationship loss against what it competes with, in one process.

    python -m tests.benchmarks.relationship --output benchmark

writes ``figures.csv``, the measured figures beside the project's goals, and prints it; ``relationship.csv``, a row for
each batch size, number of classes and method; and ``relationship.png``, time and peak memory against B, log–log.
Variants are run in turn, round after round; a time is the median of its rounds, a ratio is of two such medians. On two
idle cores it takes about a quarter of an hour (``--only figures``: five minutes).
"""

import argparse
import csv
import ctypes
import gc
import statistics
import timeit
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from matplotlib.figure import Figure
from pytorch_metric_learning.miners import TripletMarginMiner
from torch import Tensor
from torch.nn import functional
from torchdistill.losses.mid_level import RKDLoss

from gkd_plugin.functional import relationship_matching

Step = Callable[[], object]

SIZES = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
LARGEST = {"padded": 256, "truncated": 1024}
ROUNDS = 15
LONG = 0.1  # seconds, of a step that is run once in its turn
SECONDS = 6.0  # per variant, after which it gets no further round (but two at least)


def ours(student: Tensor, teacher: Tensor, labels: Tensor, **settings: Any) -> Tensor:
    """The loss as the criterion calls it."""
    return relationship_matching(student, teacher, labels, **settings).loss


def rkd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """torchdistill's RKD, distances only."""
    loss = RKDLoss("", "", dist_factor=1.0, angle_factor=0.0, reduction="mean")
    return loss.compute_rkd_distance_loss(teacher, student)


def truncated(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """pytorch-metric-learning's miner, then every tuple cut to the smallest number of negatives, as published.

    The grouping of triplets to tuples is vectorised, which the published code is not.
    """
    student, teacher = functional.normalize(student), functional.normalize(teacher)
    anchor, positive, negative = _mined(student, labels)
    if anchor.numel() == 0:
        return student.sum() * 0
    pair, count = (anchor * len(labels) + positive).unique_consecutive(return_counts=True)
    start = count.cumsum(0) - count
    kept = negative[start.unsqueeze(1) + torch.arange(int(count.min()), device=start.device)]
    members = torch.cat([(pair % len(labels)).unsqueeze(1), kept], dim=1)
    return _divergence(student, teacher, pair // len(labels), members)


def padded(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """All negatives of every tuple, the tuples put together one by one and padded to the longest."""
    student, teacher = functional.normalize(student), functional.normalize(teacher)
    anchor, positive, negative = _mined(student, labels)
    pairs = list(dict.fromkeys(zip(anchor.tolist(), positive.tolist(), strict=True)))
    if not pairs:
        return student.sum() * 0
    tuples = [torch.cat([torch.tensor([p]), negative[(anchor == a) & (positive == p)]]) for a, p in pairs]
    members = torch.nn.utils.rnn.pad_sequence(tuples, batch_first=True, padding_value=-1)
    return _divergence(student, teacher, torch.tensor([a for a, _ in pairs]), members.clamp(min=0), members < 0)


def _mined(student: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return TripletMarginMiner(margin=0.2, type_of_triplets="semihard")(student.detach(), labels)


def _divergence(
    student: Tensor, teacher: Tensor, anchors: Tensor, members: Tensor, absent: Tensor | None = None
) -> Tensor:
    """Mean KL(teacher ‖ student) of tuples, their members ``[tuples, K]``, τ = 4."""
    logs = []
    for rows in (student, teacher):
        logits = -(rows[anchors].unsqueeze(1) - rows[members]).norm(dim=2) / 4
        log_p = (logits if absent is None else logits.masked_fill(absent, -torch.inf)).log_softmax(dim=1)
        logs.append(log_p if absent is None else log_p.masked_fill(absent, -1e4))
    return functional.kl_div(logs[0], logs[1], reduction="batchmean", log_target=True)


TILED = "ours, tiled"
METHODS = {"ours": ours, TILED: partial(ours, tiled=True), "truncated": truncated, "RKD": rkd, "padded": padded}
Row = namedtuple("Row", "size classes width method seconds peak_bytes threads")  # of the sweep


class Batch:
    """Embeddings of both networks with some class structure."""

    def __init__(self, size: int, classes: int, width: int, device: str = "cpu") -> None:
        generator = torch.Generator().manual_seed(0)
        self.size, self.name = size, f"B {size}, {classes} classes, D {width}"
        labels = torch.randint(classes, (size,), generator=generator)

        def clustered(spread: float) -> Tensor:
            centres = torch.randn(classes, width, generator=generator)
            return (spread * centres[labels] + torch.randn(size, width, generator=generator)).to(device)

        self.student, self.teacher, self.labels = clustered(0.5).requires_grad_(), clustered(1.0), labels.to(device)

    def step(self, method: str) -> Step:
        """Forward and backward."""

        def run() -> None:
            self.student.grad = None
            METHODS[method](self.student, self.teacher, self.labels).backward()
            wait(self.labels.device)

        return run


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def medians(steps: dict[str, Step]) -> dict[str, float]:
    """Seconds of each step, run in turn; short ones a few times in a row, so that each finds its own cache."""
    torch.empty(31 * 2**18)  # glibc then keeps freed memory, as in a process that trains
    for step in steps.values():  # fills the caches
        step()
    times: dict[str, list[float]] = {name: [timeit.timeit(step, number=1)] for name, step in steps.items()}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            if len(times[name]) >= 2 and sum(times[name]) > SECONDS:
                continue
            times[name] += timeit.repeat(step, number=1, repeat=1 if times[name][-1] > LONG else 5)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def peak_bytes(call: Step) -> int:
    """How far the resident set rises during ``call`` above what it was before; run it once before to warm up."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    call()
    return max(_status("VmHWM") - before, 0)


def _status(entry: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{entry}:"))


def compared(
    batch: Batch, against: str, goal: float | None = None, step: Step | None = None, faster: bool = False
) -> list[str]:
    """Our time in percent of another's, the ``goal`` is the most; or how many times ``faster`` we are, at least."""
    seconds = medians({"ours": batch.step("ours"), against: step or batch.step(against)})
    ratio = seconds[against] / seconds["ours"]
    measured, unit, sign = (ratio, "×", "≥") if faster else (100 / ratio, " %", "≤")
    wanted = ["", ""]
    if goal:
        is_met = measured >= goal if faster else measured <= goal
        wanted = [f"{sign} {goal:g}{unit}", "met" if is_met else "missed"]
    return [f"ours, {batch.name}", against, f"{measured:.3g}{unit}", *wanted]


def memory_of(batch: Batch, method: str = "ours") -> list[str]:
    """Peak memory above the inputs, in B² floats."""
    step = batch.step(method)
    step()
    peak = statistics.median(peak_bytes(step) for _ in range(5))
    return [f"{method}, {batch.name}", "memory", f"{peak / 4 / batch.size**2:.3g} B² floats", "", ""]


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
        functional.cross_entropy(model(images), labels).backward()

    return run


def figures() -> Iterator[list[str]]:
    """(work, against, measured, goal, whether it is met), those without a goal at the end."""
    for size in (256, 1024):
        yield compared(Batch(size, 100, 512), "ResNet-18 step at 32 px", 1, resnet_step(size))
    for size in (256, 1024, 4096):
        yield compared(Batch(size, 100, 512), "RKD", 100)
    for classes, goal in ((10, 36), (100, 7)):
        yield compared(Batch(256, classes, 512), "truncated", goal, faster=True)
    for classes in (10, 100):
        for size, method in ((64, "truncated"), (1024, "truncated"), (256, "padded")):
            yield compared(Batch(size, classes, 64), method, faster=True)
        batch = Batch(1024, classes, 512)
        yield compared(batch, "three bare products", step=three_products(batch))
    for method, size in (("ours", 1024), ("ours", 4096), (TILED, 4096)):
        yield memory_of(Batch(size, 100, 64), method)


def sweep(sizes: Iterable[int]) -> Iterator[Row]:
    """Time and peak memory of every method at every batch size it can stand."""
    for classes in (10, 100):
        for size in sizes:
            batch = Batch(size, classes, 64)
            steps = {name: batch.step(name) for name in METHODS if size <= LARGEST.get(name, size)}
            seconds = medians(steps)
            for name, step in steps.items():
                yield Row(size, classes, 64, name, seconds[name], peak_bytes(step), torch.get_num_threads())


def plot(rows: list[Row], path: Path) -> None:
    """Time and memory against B, log–log, 100 classes."""
    figure = Figure(figsize=(12, 5), layout="tight")
    axes = figure.subplots(1, 2)
    quantities = (("seconds", "time, ms", 1e3), ("peak_bytes", "peak memory above the inputs, MiB", 2**-20))
    for axis, (key, label, unit) in zip(axes, quantities, strict=True):
        for method in METHODS:
            kept = [row for row in rows if row.method == method and row.classes == 100 and getattr(row, key)]
            heights = [unit * getattr(row, key) for row in kept]
            style = "-" if method.startswith("ours") else "--"
            axis.loglog([row.size for row in kept], heights, style, marker=".", label=method)
        axis.set(xlabel="batch size B", ylabel=label)
        axis.grid(visible=True, alpha=0.2)
    axes[1].legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.suptitle("Relationship loss, forward and backward, 100 classes, D = 64, τ = 4, CPU")
    figure.savefig(path, dpi=150)


def written(rows: Iterable[Any], path: Path, header: Sequence[str] = ()) -> list[Any]:
    """The rows, each printed and in the file as soon as it is measured."""
    kept = []
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([header] if header else [])
        for row in rows:
            writer.writerow(row)
            file.flush()
            print(" | ".join(map(str, row)), flush=True)
            kept.append(row)
    return kept


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmark"))
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="batch sizes of the sweep")
    parser.add_argument("--only", choices=("figures", "sweep"), help="half of the work")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.only != "sweep":
        written(figures(), arguments.output / "figures.csv")
    if arguments.only != "figures":
        rows = written(sweep(arguments.sizes), arguments.output / "relationship.csv", Row._fields)
        plot(rows, arguments.output / "relationship.png")


if __name__ == "__main__":
    main()
