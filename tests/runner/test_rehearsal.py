"""What a rehearsal finds before the first stage trains, and that it leaves no trace."""

import copy
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import SequentialSampler
from torchdistill.core.interfaces.registry import PRE_EPOCH_PROC_FUNC_DICT
from torchdistill.datasets.registry import BATCH_SAMPLER_DICT

from gkd_plugin.cache.teacher_cache import TeacherCache
from gkd_plugin.config.config import load_config
from gkd_plugin.runner.devices import make_accelerator, read_placement
from gkd_plugin.runner.parts import Parts
from gkd_plugin.runner.run import run_config
from tests.fakes import TinyImages
from tests.runner.fakes import equal, refused, write_configs

UNTRAINED = "models.teacher_model.src_ckpt=null"
JOINT = "train.stage2.criterion.kwargs={stage: joint}"


class UnevenImages(TinyImages):
    """Images of two sizes, of which only the first two make a batch."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image[:, index // 2 % 2 :], label


class GreyImages(TinyImages):
    """Images of one channel, which the student does not take."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image[:1], label


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_configs(tmp_path)


def parts(*overrides):
    config = load_config("student.yaml", [UNTRAINED, *overrides])
    placement = read_placement(config.tree, "cpu")
    cache = TeacherCache.from_section(config.tree.get("teacher_cache"))
    return Parts(config.build(), placement, make_accelerator(placement), cache, is_trial=True)


def criterion(key, **kwargs):
    """Stage 2 with one loss of torchdistill."""
    terms = {"sub_terms": {"term": {"criterion": {"key": key, "kwargs": kwargs}, "weight": 1.0}}}
    return f"train.stage2.criterion={json.dumps({'key': 'WeightedSumLoss', 'kwargs': terms})}"


KD = {"student_module_path": ".", "student_module_io": "output"}
KD |= {"teacher_module_path": ".", "teacher_module_io": "output", "temperature": 1.0, "alpha": 0.5}
SCHEDULER = "train.stage2.scheduler={key: %s, kwargs: {%s}, scheduling_step: %d}"
LINEAR = "{kind: linear, in_features: 5, out_features: 4}"
PROJECTION = f"train.stage2.teacher.auxiliary_model_wrapper.kwargs={{preprocessing: data, projection: {LINEAR}}}"
DISTILS = criterion("KDLoss", **KD)
BARE = "{forward_proc: forward_batch_only, forward_hook: {output: [embedding]}}"
DEFAULT = "default_pre_epoch_process_with_teacher"
SAMPLER = "{key: ClassBalancedBatchSampler, kwargs: {classes_per_batch: %d, samples_per_class: 2}}"
BALANCED = f"train.stage2.train_data_loader.batch_sampler={SAMPLER % 9}"
GROUPS = "[{module: patch_embed, kwargs: {lr: 0.01}}, {module: blocks}]"
GIVES_GRADIENT = "train.stage2.teacher.requires_grad=true"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["models.teacher_model.kwargs.num_classes=7", DISTILS], r"train\.stage2\.criterion: fails"),
        (["train.stage2.optimizer={key: LBFGS, kwargs: {lr: 0.1}}"], r"train\.stage2\.optimizer: .*'closure'"),
        ([SCHEDULER % ("OneCycleLR", "max_lr: 0.1, total_steps: 1", 1)], r"train\.stage2\.scheduler: .*2 times.* is 1"),
        ([PROJECTION, GIVES_GRADIENT], r"train\.stage2\.teacher: .*projection\.in_features: 5 given, .* has"),
        (["train.stage2.student.requires_grad=false"], r"train\.stage2\.optimizer: .*empty parameter list"),
        ([BALANCED, "train.stage2.train_data_loader.kwargs={}"], r"train\.stage2\.train_data_loader: classes_per_bat"),
        ([f"datasets.train.key={__name__}.UnevenImages"], r"train\.stage1\.train_data_loader: fails on its first.*s"),
        ([f"datasets.val.key={__name__}.GreyImages"], r"train\.stage1\.val_data_loader: fails on its first batch: .*c"),
        ([f"datasets.test.key={__name__}.GreyImages"], r"test\.test_data_loader: fails on its first batch: .*channel"),
        ([f"datasets.test.key={__name__}.UnevenImages"], r"test\.test_data_loader: fails on its first batch: .*size"),
    ],
)  # fmt: skip
def test_what_fails_in_a_later_stage_is_told_before_the_first(overrides, message):
    refused(f"^{message}", parts, *overrides)


def test_several_processes_need_batches_of_a_known_size(monkeypatch):
    class Batches(SequentialSampler):
        def __iter__(self):
            yield from torch.arange(len(self)).split(6)

    monkeypatch.setitem(BATCH_SAMPLER_DICT, "Batches", Batches)
    loader = [
        f"train.stage2.train_data_loader.{key}" for key in ("batch_sampler={key: Batches, kwargs: {}}", "kwargs={}")
    ]
    assert parts(*loader)
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    refused(r"^train\.stage2\.train_data_loader\.batch_sampler: Batches .*batch_size", parts, *loader)


LEAVES_NO_TRACE = {
    "plain": [],
    "answers that are kept": ["teacher_cache={views: 2}"],
    "bf16, several groups": ["device.precision=bf16", f"train.stage2.optimizer.module_wise_configs={GROUPS}"],
    "balanced": [
        f"train.stage2.train_data_loader.batch_sampler={SAMPLER % 2}",
        "train.stage2.train_data_loader.kwargs={}",
    ],
    "a plateau": [SCHEDULER % ("ReduceLROnPlateau", "mode: max", 0)],
    "a stage of another kind": [JOINT, "train.stage2.scheduler={key: StepLR, kwargs: {step_size: 1}}"],
    "a teacher that is trained": [*(f"train.{name}.teacher={BARE}" for name in ("stage1", "stage2")), DISTILS],
    "another process, a checkpoint": [f"train.stage2.pre_epoch_process={DEFAULT}", "train.student={dst_ckpt: x.pt}"],
}


@pytest.mark.parametrize("overrides", LEAVES_NO_TRACE.values(), ids=LEAVES_NO_TRACE)
def test_everything_is_as_it_was(monkeypatch, overrides):
    rehearse, seen = Parts._rehearse, []

    def state(student, built, teacher):
        held = {f"{role}.{key}": x for role, m in (("s", student), ("t", teacher)) for key, x in m.state_dict().items()}
        held |= {name: x._epoch for name, x in built["datasets"].items() if hasattr(x, "_epoch")}
        numpy, python = np.random.get_state()[1], random.getstate()[1]  # noqa: NPY002
        return copy.deepcopy(
            {**held, "random": torch.tensor([*python, *numpy.tolist(), *torch.get_rng_state().tolist()])}
        )

    def watched(self, built, teacher, *args):
        seen.append(state(self.student, built, teacher))
        rehearse(self, built, teacher, *args)
        seen.append(state(self.student, built, teacher))
        assert not any(vars(self.accelerator)[name] for name in ("_models", "_optimizers", "_dataloaders"))

    monkeypatch.setattr(Parts, "_rehearse", watched)
    made = parts(*overrides)
    assert equal(*seen)
    assert made.box.own_processes["pre_epoch_process"] is PRE_EPOCH_PROC_FUNC_DICT["refilled"]
    assert made.box.stage_number == 1
    assert {path.name for path in Path().iterdir()} == {"teacher.yaml", "student.yaml"}


def test_weights_are_those_of_a_run_without_it(monkeypatch):
    for name in ("with", "without"):
        run_config(load_config("student.yaml", [UNTRAINED]), Path(name), device="cpu")
        monkeypatch.setattr(Parts, "_rehearse", lambda *_: None)
    assert Path("with/student.safetensors").read_bytes() == Path("without/student.safetensors").read_bytes()
