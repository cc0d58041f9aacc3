"""A run that ends before its end goes on where it stood."""

import dataclasses
import json
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import RandomSampler, SequentialSampler

from gkd_plugin.box.schedule import RefilledCosine
from gkd_plugin.config.config import load_config
from gkd_plugin.data import RandomStates, timm_dataset
from gkd_plugin.losses.relationship import RelationshipLoss
from gkd_plugin.losses.rivals import QueueDistillation
from gkd_plugin.runner import checkpoints
from gkd_plugin.runner.checkpoints import Checkpoints, Loading, Progress
from gkd_plugin.runner.run import run_config
from gkd_plugin.runner.stopping import Stopped, stoppable
from gkd_plugin.runner.training import Training
from tests.data.fakes import shards
from tests.fakes import TinyImages
from tests.runner.fakes import cpu, refused
from tests.runner.killed import config

KILLED = [sys.executable, "-m", "tests.runner.killed"]


@pytest.mark.parametrize(
    ("variant", "kills", "name"),
    [
        ("plain", 4, "SIGKILL"),
        ("cache", 2, "SIGKILL"),
        ("workers", 2, "SIGKILL"),
        ("workers", 2, "SIGTERM"),
        pytest.param("plain", 50, "SIGKILL", marks=pytest.mark.slow),
        pytest.param("cache", 25, "SIGKILL", marks=pytest.mark.slow),
        pytest.param("workers", 25, "SIGKILL", marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(variant, kills, name, tmp_path):
    command = [*KILLED, tmp_path / "k", variant, str(kills), name]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["equal"] == found["runs"]
    assert {code for code in found["codes"] if code} == {143 if name == "SIGTERM" else -9}


class Box:
    """What a checkpoint reads of torchdistill's."""

    lr_scheduler = None
    scheduling_step = stage_grad_count = 0

    def __init__(self, samples=5, **loading):
        self.criterion, self.teacher_model = RelationshipLoss(queue_size=4), None
        self.train_data_loader = torch.utils.data.DataLoader(range(samples), **loading)
        self.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))])
        self.optimizer.optimizer = self.optimizer  # Accelerate's holds another


def made(folder, samples=5, **settings):
    found = Checkpoints(folder, Box(samples), cpu(), settings)
    found.begin(Loading(), is_resumed=False)
    return found


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_the_last_ones_are_kept_and_a_stopped_write_leaves_them(tmp_path, monkeypatch):
    kept = made(tmp_path, keep=2)
    assert kept.last() is None
    for step, updates in ((1, 9), (2, 10), (3, 11)):
        kept.summary = {"status": "running", "after": updates}
        kept.save(Progress(0, 2, step, updates, sums={"loss": 1 / 3}))
    kept.save(Progress(0, 2, 3, 11, is_over=True, sums={"loss": 1 / 3}))
    kept.box.optimizer.param_groups[0]["params"][0].data[0] = float("nan")
    refused("the student's weights contain NaN", kept.save, Progress(0, 3, 1, 12))
    kept.box.optimizer.param_groups[0]["params"][0].data.zero_()
    assert names(tmp_path) == ["000000011.0", "000000011.1"]
    at, summary = made(tmp_path).last()
    assert (at.epoch, at.step, at.is_over, at.sums) == (2, 3, True, {"loss": 1 / 3})
    assert summary == {"status": "running", "after": 11}
    monkeypatch.setattr(checkpoints, "write_json", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        kept.save(Progress(0, 3, 1, 12))
    assert made(tmp_path).last()[0].updates == 11
    kept.clear()
    assert not (tmp_path / "checkpoints").exists()


def test_figures_are_added_when_they_are_read_and_refused_where_a_loss_is_not_finite(tmp_path):
    at, labels, terms = Progress(epoch=1), torch.tensor([0, 1]), {"tuples": torch.tensor(4), "own": 0.5}
    for step, loss in ((1, 1.0), (2, 2.0)):
        at.count(f"step {step}", labels, torch.tensor(loss, requires_grad=True), terms)
    assert (at.images, at.counts, at.sums) == (4, 0, {})
    at.read()
    since = dataclasses.replace(at, sums=dict(at.sums))
    assert at.means() == {"loss": 1.5, "tuples": 4.0, "own": 0.5}
    for step, loss in ((3, 6.0), (4, float("nan")), (5, 1.0)):
        at.count(f"step {step}", labels * 0 - 1, torch.tensor(loss), {"tuples": torch.tensor(1), "own": 1})
    kept = made(tmp_path)
    refused("the loss is nan at step 4 .*no image with a label", kept.save, at)
    assert kept.last() is None
    assert at.means(since) == {"loss": 6.0, "tuples": 1.0, "own": 1.0}


def test_a_loss_may_have_one_element():
    at = Progress()
    at.count("step 1", torch.tensor([0]), torch.tensor([2.0], requires_grad=True), {"own": 0.5})
    at.read()
    assert at.means() == {"loss": 2.0, "own": 0.5}


@pytest.mark.parametrize("process", [0, 1])
def test_each_process_goes_on_with_the_figures_that_it_has_counted(tmp_path, monkeypatch, process):
    kept, others = made(tmp_path), {"loss": 9.0}
    monkeypatch.setattr(checkpoints, "gather_object", lambda own: [*own, others])
    kept.save(Progress(epoch=1, step=1, updates=1, counts=1, sums={"loss": 1.0}))
    monkeypatch.setattr(type(kept.accelerator), "num_processes", 2)
    monkeypatch.setattr(type(kept.accelerator), "process_index", process)
    assert kept.last()[0].sums == ({"loss": 1.0}, others)[process]


def test_loading_counts_the_seconds_that_it_takes(monkeypatch):
    class Slow(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            clock[0] += 2.0
            return index

    clock = [0.0]
    monkeypatch.setattr(checkpoints.time, "perf_counter", lambda: clock[0])
    loading = Loading(1.0)
    for _ in loading.batches(torch.utils.data.DataLoader(Slow())):
        clock[0] += 100.0
    assert loading.seconds == 7.0


def test_the_chosen_student_is_part_of_a_checkpoint(tmp_path):
    kept, file = made(tmp_path), tmp_path / "student.safetensors"
    file.write_bytes(b"of epoch 1")
    kept.summary = {"kept": {"epoch": 1}}
    kept.save(Progress(0, 2, 3, 11))
    file.write_bytes(b"of an epoch that comes again")
    kept.load()
    assert file.read_bytes() == b"of epoch 1"


def test_a_full_disk_is_told_in_one_line(tmp_path, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos")

    kept = made(tmp_path)
    monkeypatch.setattr(kept.accelerator, "save_state", full)
    refused(f"^{tmp_path}/checkpoints cannot be written: .*enforce fail", kept.save, Progress(updates=1))


@pytest.mark.parametrize(
    ("settings", "at", "since", "is_due"),
    [
        ({}, Progress(step=5, updates=30), 1.0, False),
        ({"every_steps": 10}, Progress(step=5, updates=30), 1.0, True),
        ({"every_steps": 10}, Progress(step=5, updates=31), 1.0, False),
        ({"every_minutes": 0.5}, Progress(step=5, updates=31), 31.0, True),
        ({"every_minutes": None}, Progress(step=5, updates=31), 9999.0, False),
        ({}, Progress(step=5, updates=31, is_over=True), 51.0, True),  # the last one took a second
        ({}, Progress(step=5, updates=31, is_over=True), 49.0, False),
    ],
)
def test_when_a_checkpoint_is_due(settings, at, since, is_due, tmp_path, monkeypatch):
    kept, saved = made(tmp_path, **settings), []
    monkeypatch.setattr(kept, "save", saved.append)
    monkeypatch.setattr(checkpoints.time, "perf_counter", lambda: kept._saved + since)
    kept._cost = 1.0
    kept.save_when_due(at)
    assert bool(saved) == is_due


def test_the_batches_of_an_epoch_come_again_whatever_is_drawn_between_them():
    class Noise(torch.utils.data.Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, index):
            return index + torch.rand(()).item() + random.random() + np.random.rand()  # noqa: NPY002

    loader, drawn = torch.utils.data.DataLoader(Noise(), batch_size=2, shuffle=True), []
    loading = Loading()
    begin = loading.states
    torch.manual_seed(3)
    for draws in (0, 2):
        loading.states = begin
        drawn.append([])
        for batch in loading.batches(loader):
            drawn[-1].append(batch)
            torch.rand(draws), random.random(), np.random.rand()  # noqa: NPY002
    assert all(torch.equal(first, second) for first, second in zip(*drawn, strict=True))


def test_several_processes_share_an_order_that_comes_again():
    order = torch.Generator()
    loader = torch.utils.data.DataLoader(range(20), shuffle=True, generator=order)
    loader.synchronized_generator = order  # as Accelerate has it
    first, again = Loading(), Loading()
    again.states = first.states
    assert list(first.batches(loader)) == list(again.batches(loader)) != list(first.batches(loader))


class Noisy(torch.utils.data.Dataset):
    """The number of the sample, and what a transform draws for it."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return index, torch.rand(()).item(), random.random(), np.random.rand()  # noqa: NPY002


@pytest.mark.parametrize("workers", [0, 2])
def test_each_process_augments_its_images_in_its_own_way(workers, monkeypatch):
    def epoch(rank):
        monkeypatch.setattr(checkpoints, "rank", lambda: rank)
        order, loading = torch.Generator(), Loading()
        loading.states = begun
        loader = torch.utils.data.DataLoader(
            Noisy(), None, sampler=RandomSampler(Noisy(), generator=order), num_workers=workers
        )
        loader.synchronized_generator = order
        return list(zip(*loading.batches(loader), strict=True))

    begun = RandomStates()
    first, again, other = epoch(0), epoch(0), epoch(1)
    assert first == again
    assert first[0] == other[0]  # their order, of which each process takes its part
    assert all(not {*one} & {*two} for one, two in zip(first[1:], other[1:], strict=True))


def test_a_stop_while_a_batch_is_loaded_leaves_the_random_states_of_the_models(monkeypatch):
    restore, loading, calls = RandomStates.restore, Loading(), []

    def interrupted(states):
        calls.append(states)
        if len(calls) == 2:
            raise Stopped("SIGTERM")
        restore(states)

    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    monkeypatch.setattr(RandomStates, "restore", interrupted)
    with pytest.raises(Stopped):
        next(loading.batches(torch.utils.data.DataLoader(range(5), shuffle=True)))
    loading.end()
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("loss", [RelationshipLoss(queue_size=5), QueueDistillation(queue_size=5)])
def test_a_queue_is_part_of_the_state(loss):
    torch.manual_seed(0)
    batches = [(torch.tensor([0, 1, 0]), torch.randn(3, 4), torch.randn(3, 4)) for _ in range(3)]
    for batch in batches[:2]:
        loss.compute(*batch)
    state = loss.state_dict()
    wanted = loss.compute(*batches[2])
    other = type(loss)(queue_size=5)
    other.load_state_dict(state)
    assert torch.equal(other.compute(*batches[2]), wanted)


def stop(method, at):
    """Asks a run to stop in the call ``at`` of a method of its training."""
    real, calls = getattr(Training, method), []

    def asked(self, *args):
        calls.append(args)
        if len(calls) == at:
            signal.raise_signal(signal.SIGTERM)
        return real(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, method, asked)
        with stoppable(), pytest.raises(Stopped):
            resume()


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A run that was asked to stop in the fifth of its 32 steps."""
    monkeypatch.chdir(tmp_path)
    Path("student.yaml").write_text(config("plain"), encoding="utf-8")
    stop("_step", 5)
    return tmp_path / "run"


def resume(*overrides, seed=0, folder="run"):
    return run_config(load_config("student.yaml", overrides), Path(folder), seed=seed, device="cpu", earlier="resume")


def test_a_stop_in_validation_changes_neither_views_nor_figures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("student.yaml").write_text(config("cache"), encoding="utf-8")
    wanted = resume(folder="whole")
    stop("_validate", 1)
    stop("_validate", 5)
    assert resume()["final"] == wanted["final"]
    weights = [(Path(folder) / "student.safetensors").read_bytes() for folder in ("run", "whole")]
    assert weights[0] == weights[1]


def test_a_resumed_run_tells_of_another_device_and_of_no_checkpoint(stopped, caplog):
    (stopped / "metrics.jsonl").write_text('{"stage": "stage1", "epoch": 1}\n')
    progress = next((stopped / "checkpoints").iterdir()) / "progress.json"
    found = json.loads(progress.read_text("utf-8"))
    found["summary"]["device"] = "cuda:3"
    progress.write_text(json.dumps(found))
    stop("_step", 1)
    assert "device is cpu now, was cuda:3" in caplog.text
    assert json.loads((stopped / "summary.json").read_text("utf-8"))["device"] == "cpu"
    shutil.rmtree(stopped / "checkpoints")
    made = resume()
    assert any("run holds no checkpoint" in text for text in made["warnings"])
    assert len((stopped / "metrics.jsonl").read_text().splitlines()) == 8
    assert 0 < made["preparation_seconds"] < made["wall_seconds"]


def test_a_run_that_stopped_says_so_and_goes_on(stopped, caplog):
    caplog.set_level("INFO")
    made = json.loads((stopped / "summary.json").read_text("utf-8"))
    assert made["status"] == "stopped (SIGTERM)"
    assert [path.name for path in (stopped / "checkpoints").iterdir()]
    assert resume()["status"] == "finished"
    assert re.search(r"resumes stage\d in epoch \d of 4, after its step \d", caplog.text)
    assert not (stopped / "checkpoints").exists()
    rows = [json.loads(line) for line in (stopped / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [(row["stage"], row["epoch"]) for row in rows] == [
        (f"stage{n}", epoch) for n in (1, 2) for epoch in (1, 2, 3, 4)
    ]
    before = (stopped / "student.safetensors").stat().st_mtime_ns
    assert resume()["final"] == json.loads((stopped / "summary.json").read_text("utf-8"))["final"]
    assert "has finished; nothing is left to train" in caplog.text
    assert (stopped / "student.safetensors").stat().st_mtime_ns == before


def test_what_cannot_go_on(stopped):
    refused(
        "--resume: run was begun with .*line .*lr: 0.05', not .*lr: 0.06'",
        resume,
        "train.stage1.optimizer.kwargs.lr=0.06",
    )
    refused("--resume: run was begun with --seed 0, not 1", resume, seed=1)
    state = next((stopped / "checkpoints").iterdir()) / "state"
    (state / "custom_checkpoint_0.pkl").write_bytes(b"not a checkpoint")
    refused(r"--resume: .*checkpoints/\d+\.0 cannot be used: .*; remove that folder", resume)


def test_workers_that_persist_are_told(tmp_path, caplog):
    made(tmp_path).save(Progress(updates=1))
    Checkpoints(tmp_path, Box(), cpu()).load()
    assert not caplog.messages
    Checkpoints(tmp_path, Box(num_workers=1, persistent_workers=True), cpu()).load()
    assert any(text.startswith("persistent_workers: ") for text in caplog.messages)


def test_other_data_is_not_gone_on_with(tmp_path):
    kept = made(tmp_path)
    kept.save(Progress(updates=1))
    message = "made with 5 training samples, now 6 training samples"
    refused(message, Checkpoints(tmp_path, Box(samples=6), cpu()).load)


@pytest.mark.parametrize(("step", "left"), [(6, 3), (5, 3), (2, 1)])
def test_other_processes_go_on_at_the_same_share_of_an_epoch_and_of_its_schedule(step, left, tmp_path, monkeypatch):
    box = Box()
    box.lr_scheduler, box.scheduling_step = RefilledCosine(box.optimizer, warmup=0.25), 1
    box.lr_scheduler.tell(16)
    kept = Checkpoints(tmp_path, box, cpu())
    for _ in range(step):
        box.optimizer.step()
        box.lr_scheduler.step()
    kept.save(Progress(epoch=2, step=step, images=4 * step, updates=8 + step, sums={"loss": 2.0}))
    monkeypatch.setattr(type(cpu()), "num_processes", 2)
    box.lr_scheduler = RefilledCosine(box.optimizer, warmup=0.25)
    box.lr_scheduler.tell(8)
    found, _ = kept.last()
    kept.load()
    assert (found.epoch, found.step, found.updates, found.sums) == (2, left, 8 + step, {"loss": 2.0})
    assert box.lr_scheduler.last_epoch == round(step / 2)
    wanted = RefilledCosine(torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))]), warmup=0.25)
    wanted.last_epoch = round(step / 2)
    wanted.tell(8)
    assert [group["lr"] for group in box.optimizer.param_groups] == wanted.get_last_lr()


def test_more_processes_than_before_have_random_states_of_their_own(tmp_path, monkeypatch):
    kept = made(tmp_path)
    kept.save(Progress(updates=1))
    kept.load()
    assert kept.begin(Loading(), is_resumed=True) is not None
    monkeypatch.setattr(type(cpu()), "num_processes", 2)
    kept.load()
    assert kept.begin(Loading(), is_resumed=True) is None  # two new ones would be given the same


def test_a_stream_goes_on_with_other_processes(tmp_path, monkeypatch):
    """It tells a process of its own part alone."""
    stream = timm_dataset("wds/", shards(tmp_path / "shards", [6, 6]), is_training=True)
    kept = made(tmp_path)
    kept.box.train_data_loader = stream.make_loader(SequentialSampler(stream), 2)
    kept.save(Progress(updates=1))
    stream.reader.dist_num_replicas = 2
    kept.box.train_data_loader = stream.make_loader(SequentialSampler(stream), 2)
    assert len(kept.box.train_data_loader.dataset) == 6
    kept.load()


def test_one_process_goes_on_with_the_means_of_two(tmp_path):
    kept = made(tmp_path)
    kept.save(Progress(epoch=1, step=3, images=12, updates=3, counts=3, sums={"loss": 6.0}))
    (file,) = (tmp_path / "checkpoints").glob("*/progress.json")
    about = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({**about, "sums": [{"loss": 6.0}, {"loss": 9.0}]}), encoding="utf-8")
    found, _ = kept.last()
    assert (found.step, found.images, found.means()) == (6, 24, {"loss": 2.5})


def test_a_schedule_that_counts_steps_has_the_same_number_of_processes(tmp_path, monkeypatch):
    box = Box()
    box.lr_scheduler, box.scheduling_step = torch.optim.lr_scheduler.OneCycleLR(box.optimizer, 0.1, total_steps=9), 1
    kept = Checkpoints(tmp_path, box, cpu())
    kept.save(Progress(updates=1))
    kept.load()
    monkeypatch.setattr(type(cpu()), "num_processes", 2)
    refused("OneCycleLR counts steps.*resume with 1 .*refilled_cosine", kept.load)


def test_none_are_kept_where_the_configuration_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("student.yaml").write_text(config("plain"), encoding="utf-8")
    monkeypatch.setattr(Checkpoints, "save", lambda *_: pytest.fail("saved"))
    assert resume("checkpoint=null", "train.stage1.num_epochs=1", "train.stage2.num_epochs=1")["status"] == "finished"


class Broken(TinyImages):
    def __getitem__(self, index):
        raise ValueError(f"no sample {index}\nof these")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_set_that_raises_in_the_middle_is_a_line(workers):
    loader = torch.utils.data.DataLoader(Broken(), batch_size=4, num_workers=workers)
    refused("^a batch cannot be loaded: .*of these", list, Loading().batches(loader))
