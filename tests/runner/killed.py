"""Runs that are killed at random moments and go on: ``python -m tests.runner.killed FOLDER VARIANT KILLS [SIGNAL]``.

Every run is a fork of this process, which has imported everything and computed nothing. Prints one JSON object.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

from gkd_plugin.cli import main
from gkd_plugin.config.tree import dump
from tests.fakes import TinyImages
from tests.runner.fakes import call, student_config

MOST_KILLS_OF_A_RUN = 4


class NoisyImages(TinyImages):
    """Every image anew with noise from all three random states."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image + 0.1 * torch.randn_like(image) + random.random() * np.random.rand(), label  # noqa: NPY002


def config(variant):
    """Both stages, four epochs and four steps each; dropout, momentum, queues, gradients and a schedule have states."""
    tree = student_config()
    tree["datasets"]["train"] = call("tests.runner.killed.NoisyImages", seed=0)
    del tree["models"]["teacher_model"]["src_ckpt"], tree["models"]["student_model"]["dst_ckpt"]
    tree["models"]["student_model"]["kwargs"] |= {"drop_rate": 0.2}
    tree["checkpoint"] = {"every_steps": 3, "keep": 2}
    for stage in (tree["train"]["stage1"], tree["train"]["stage2"]):
        stage |= {"num_epochs": 4, "scheduler": {"key": "StepLR", "kwargs": {"step_size": 2}}}
        stage["train_data_loader"]["kwargs"] |= {"batch_size": 7, "num_workers": 2 * (variant == "workers")}
    tree["train"]["stage1"]["criterion"]["kwargs"]["queue_size"] = 20
    tree["train"]["stage2"]["criterion"]["kwargs"] = {"stage": "joint", "queue_size": 20}
    tree["train"]["stage2"]["optimizer"] = {"key": "AdamW", "grad_accum_step": 2, "kwargs": {"lr": 0.01}}
    if variant == "cache":
        tree["teacher_cache"] = {"views": 2, "folder": "cache"}
        tree["train"] |= {"keep": "best", "patience": 2, "log_freq": 2}
    return dump(tree)


def start(folder):
    """A process that runs the configuration in ``folder``, or goes on with it."""
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(folder)
        sys.stderr = sys.stdout = Path("console.log").open("a", buffering=1, encoding="utf-8")  # noqa: SIM115
        torch.set_num_threads(1)
        os._exit(main(["run", "student.yaml", "--device", "cpu", "--resume", "--output", "run"]))
    return child


def exit_code(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def left(folder):
    """What must not depend on the kills."""
    files = sorted((folder / "run").rglob("*.safetensors"))
    rows = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text("utf-8").splitlines()]
    clocks = ("seconds", "images_per_second", "waiting")
    summary = json.loads((folder / "run/summary.json").read_text("utf-8"))
    kept = [{key: value for key, value in row.items() if key not in clocks} for row in rows]
    return [file.read_bytes() for file in files], kept, summary["status"], summary["final"], summary.get("kept")


def new_folder(path, variant):
    path.mkdir(parents=True)
    (path / "student.yaml").write_text(config(variant), encoding="utf-8")
    return path


def killed(folder, variant, kills, number):
    """Runs with so many kills in all, each at its end the same as one without."""
    whole = new_folder(folder / "whole", variant)
    begin = time.perf_counter()
    assert exit_code(start(whole)) == 0, (whole / "console.log").read_text("utf-8")
    seconds, wanted = time.perf_counter() - begin, left(whole)
    found = {"seconds": seconds, "kills": 0, "runs": 0, "equal": 0, "codes": []}
    draw = random.Random(variant)
    while found["kills"] < kills:
        there = new_folder(folder / str(found["runs"]), variant)
        found["runs"] += 1
        for _ in range(min(MOST_KILLS_OF_A_RUN, kills - found["kills"])):
            child = start(there)
            time.sleep(draw.uniform(0, seconds))
            os.killpg(child, number)
            code = exit_code(child)
            found["codes"].append(code)
            found["kills"] += code != 0
            if code == 0:
                break
        code = exit_code(start(there))
        assert code == 0, (there / "console.log").read_text("utf-8")
        found["equal"] += left(there) == wanted
    return found


if __name__ == "__main__":
    folder, variant, kills, *name = sys.argv[1:]
    number = getattr(signal, name[0]) if name else signal.SIGKILL
    print(json.dumps(killed(Path(folder), variant, int(kills), number)))
