"""A training step of ``refilled run``, of torchdistill's own script, and of a bare loop, which nothing can beat.

    python -m tests.benchmarks.step

Each trains step.yaml in a process of its own, because ``run`` sets what a process does with freed memory; they take
turns, an epoch each, and the first epoch of each is left out. Ends in where the time of a step of ``run`` goes.
torchdistill's loop is the one of ``tests/upstream_driver.py``: its wheel has no example script. The bare loop has its
images ready, and knows no hook, no loss but cross-entropy, and no bound of the gradients.
"""

import argparse
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.multiprocessing import get_context
from torch.nn import functional
from torch.utils.data import DataLoader
from torchdistill.common.main_util import set_seed

from gkd_plugin.config.config import load_config
from gkd_plugin.runner.checkpoints import Checkpoints
from gkd_plugin.runner.devices import make_accelerator, read_placement
from gkd_plugin.runner.models import build_model
from gkd_plugin.runner.parts import Parts, compile_models
from gkd_plugin.runner.run_folder import aligned
from gkd_plugin.runner.training import Training
from tests import upstream_driver
from tests.benchmarks.relationship import wait

CONFIG = Path(__file__).with_suffix(".yaml")
ROW = ("", "ms / step", "CPU ms / step", "img / s", "time of `run`", "CPU time of `run`")


def run(path: Path, device: str) -> Iterator[tuple[float, Any]]:
    """What ``refilled run`` trains with; gives the seconds of each epoch, and the training."""
    config = load_config(path)
    placement = read_placement(config.tree, device)
    accelerator = make_accelerator(placement)
    set_seed(0)
    parts = Parts(config.build(), placement, accelerator, None)
    checkpoints = Checkpoints(path.parent, parts.box, accelerator)
    training = Training(parts.box, parts.student, parts.stages, accelerator, checkpoints=checkpoints)
    for _, row in training.epochs():
        yield row["seconds"], (training, row)


def upstream(path: Path, device: str) -> Iterator[tuple[float, None]]:
    """torchdistill's script."""
    box, _, _ = upstream_driver.built(upstream_driver.read(path), torch.device(device))
    for epoch in range(box.num_epochs):
        start = time.perf_counter()
        upstream_driver.train_one_epoch(box, torch.device(device), epoch, log_freq=100)
        yield time.perf_counter() - start, None


def bare(path: Path, device: str) -> Iterator[tuple[float, None]]:
    """Teacher, student, backward pass and the optimizer's step, in the precision of the configuration."""
    config = load_config(path)
    placement = read_placement(config.tree, device)
    accelerator = make_accelerator(placement)
    built, train = config.build(), config.tree["train"]
    form = torch.channels_last if placement.channels_last else torch.preserve_format
    entries = (built["models"][name] for name in ("teacher_model", "student_model"))
    teacher, student = (build_model("models", entry).to(accelerator.device, memory_format=form) for entry in entries)
    teacher.eval()
    compile_models(placement.compile, student, teacher)
    optimizer = torch.optim.SGD(student.parameters(), **train["optimizer"]["kwargs"])
    loader = DataLoader(built["datasets"]["train"], train["train_data_loader"]["kwargs"]["batch_size"], drop_last=True)
    batches = [[part.to(accelerator.device) for part in batch] for batch in loader]
    while True:
        start = time.perf_counter()
        for images, labels in batches:
            with accelerator.autocast():
                with torch.no_grad():
                    teacher(images)
                loss = functional.cross_entropy(student(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        wait(accelerator.device)
        yield time.perf_counter() - start, None


SIDES: dict[str, Callable[[Path, str], Iterator[tuple[float, Any]]]] = {"run": run, "upstream": upstream, "bare": bare}


def _take_turns(side: str, path: Path, device: str, connection: Any) -> None:
    logging.disable(logging.WARNING)
    epochs = SIDES[side](path, device)
    while connection.recv():
        before = time.process_time()
        seconds, _ = next(epochs)
        connection.send((seconds, time.process_time() - before))


def compared(
    path: Path, rounds: int, device: str = "cpu", sides: Collection[str] = SIDES.keys()
) -> dict[str, list[tuple[float, float]]]:
    """(seconds, seconds of all cores) of each epoch but the first, for each side; they take turns."""
    context, connections, processes = get_context("spawn"), {}, []
    for side in sides:
        connections[side], theirs = context.Pipe()
        processes.append(context.Process(target=_take_turns, args=(side, path, device, theirs), daemon=True))
        processes[-1].start()
        theirs.close()  # so that the end of the process is one of the connection
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for number in range(rounds + 1):
        for side, connection in connections.items():
            connection.send(True)
            found = connection.recv()
            if number:
                times[side].append(found)
    for connection, process in zip(connections.values(), processes, strict=True):
        connection.send(False)
        process.join()
    return times


def table(times: dict[str, list[tuple[float, float]]], steps: int, batch: int) -> str:
    """Medians of each side, and the medians of the ratios of ``run`` to it, paired by round."""
    rows: list[Sequence[str]] = [ROW]
    for side, of in times.items():
        wall, cpu = (median(epoch[kind] for epoch in of) / steps for kind in (0, 1))
        pairs = [[ours[kind] / theirs[kind] for ours, theirs in zip(times["run"], of, strict=True)] for kind in (0, 1)]
        ratios = [f"{median(ratio):.3f} of it" for ratio in pairs]
        rows.append((side, f"{1e3 * wall:.1f}", f"{1e3 * cpu:.1f}", f"{batch / wall:.0f}", *ratios))
    return aligned(rows)


class Clock:
    """Seconds spent in calls by name; in a call inside another one they are its own alone."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self._inside = device, Counter[str](), 0.0

    def watch(self, owner: Any, attribute: str, name: str) -> None:
        """Counts the calls of a method."""
        call = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start, outside, self._inside = time.perf_counter(), self._inside, 0.0
            try:
                return call(*args, **kwargs)
            finally:
                wait(self.device)
                spent = time.perf_counter() - start
                self.seconds[name] += spent - self._inside
                self._inside = outside + spent

        setattr(owner, attribute, timed)


def shares(path: Path, rounds: int, device: str = "cpu") -> dict[str, float]:
    """The share of each part in the time of the epochs of ``run`` after the first one; on a GPU each is waited for."""
    epochs = run(path, device)
    _, (training, _) = next(epochs)
    clock, box = Clock(training.accelerator.device), training.box
    clock.watch(box, "teacher_forward_proc", "teacher")
    clock.watch(box, "student_forward_proc", "student, forward")
    clock.watch(box.criterion, "forward", "loss")
    clock.watch(training.accelerator, "backward", "backward")
    clock.watch(box.optimizer, "step", "optimizer")
    clock.watch(box, "post_forward_process", "bound of the gradients, gradients to zero")
    clock.watch(box, "forward_process", "hooks")
    total = 0.0
    for _ in range(rounds):
        seconds, (_, row) = next(epochs)
        total += seconds
        clock.seconds["data"] += row["waiting"] * seconds
    clock.seconds["rest"] = total - clock.seconds.total()
    return {name: seconds / total for name, seconds in clock.seconds.most_common()}


def resolved(overrides: Sequence[str], folder: Path) -> tuple[Path, int, int]:
    """The configuration with changes, as a file that torchdistill reads; steps of an epoch, images of a step."""
    config, path = load_config(CONFIG, overrides, produced=None), folder / CONFIG.name
    path.write_text(config.text, encoding="utf-8")
    batch = config.tree["train"]["train_data_loader"]["kwargs"]["batch_size"]
    return path, config.tree["x-images"] // batch, batch


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="epochs of each side that are measured")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes step.yaml")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        path, steps, batch = resolved(given.set, Path(folder))
        print(table(compared(path, given.rounds, given.device), steps, batch), flush=True)
        logging.disable(logging.WARNING)
        for name, share in shares(path, max(given.rounds // 3, 1), given.device).items():
            print(f"{100 * share:5.1f} %  {name}")


if __name__ == "__main__":
    main()
