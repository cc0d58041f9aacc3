"""Shims and traps of torchdistill 1.1.5 and Accelerate 1.15: a failure here means that upstream has moved."""

import os
import re
import socket
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler
from torchdistill.core.distillation import DistillationBox
from torchdistill.core.interfaces.post_forward_proc import default_post_forward_process
from torchdistill.core.training import TrainingBox
from torchdistill.datasets import util
from torchdistill.datasets.wrapper import BaseDatasetWrapper
from torchdistill.losses.mid_level import CRDLoss
from torchdistill.losses.registry import get_high_level_loss

from gkd_plugin.box import upstream
from gkd_plugin.box.upstream import clip_unscaled, install_prepare_hook, install_streams, torchdistill_errors
from gkd_plugin.errors import ConfigError
from gkd_plugin.losses import EmbeddingStage
from gkd_plugin.teacher import RefilledTeacher
from tests.fakes import TinyNet, cross_entropy, make_box, models, stage, train_box
from tests.runner.fakes import equal


def plain_stage():
    """Nothing of ours: torchdistill's own sum of losses over its own models."""
    section = stage("embedding")
    section["teacher"] = {"forward_proc": "forward_batch_only", "requires_grad": False}
    section["student"] = {"forward_proc": "forward_batch_only"}
    del section["pre_epoch_process"]
    section["criterion"] = {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"ce": cross_entropy()}}}
    return section


def test_trap_1_torchdistill_lets_the_teachers_batch_norm_drift():
    teacher = TinyNet()
    before = teacher.bn.running_mean.clone()
    train_box(make_box(plain_stage(), teacher, TinyNet()))
    assert not torch.equal(before, teacher.bn.running_mean)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"forward_proc": None}, ValueError, "No forward process function `None` registered"),  # trap 2
        ({"forward_hook": {"output": ["nowhere"]}}, AttributeError, "'NoneType' object has no attribute"),
    ],
)
def test_traps_2_and_9_errors_that_tell_nothing(change, error, message):
    section = plain_stage()
    section["student"] |= change
    with pytest.raises(error, match=message):
        make_box(section, TinyNet(), TinyNet())


def test_trap_9_misspelt_keys_pass_silently_upstream():
    make_box({**plain_stage(), "optimzer": {}}, TinyNet(), TinyNet())


def test_trap_5_the_learning_rate_is_changed_in_place():
    section = plain_stage()
    make_box(section, TinyNet(), TinyNet(), lr_factor=2)
    assert section["optimizer"]["kwargs"]["lr"] == pytest.approx(2 * 0.05)


def test_trap_6_parameters_in_sub_terms_are_not_seen():
    term = {"criterion": torch.nn.Linear(2, 2), "weight": 1.0}
    loss = get_high_level_loss({"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"x": term}}})
    assert list(loss.parameters()) == []


def test_crd_cannot_draw_negatives_itself():
    """``self.prob`` should be ``self.probs``: so ``contrast_idx`` comes from CRDDatasetWrapper."""
    loss = CRDLoss("z", "indices", "z", input_size=2, output_size=6, num_negative_samples=3, num_samples=6)
    student = {"z": {"output": torch.randn(2, 2)}, "indices": {"input": {"pos_idx": torch.tensor([0, 1])}}}
    with pytest.raises(AttributeError, match="has no attribute 'prob'"):
        loss(student, {"z": {"output": torch.randn(2, 2)}})


def test_trap_3_accelerate_has_no_use_fp16():
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(AttributeError, match="use_fp16"):
        make_box(stage("embedding"), *models(), Accelerator(cpu=True))


def test_the_student_is_ours_before_the_box_wraps_it(monkeypatch):
    """No part that a plugin registers is shown the student before it is wrapped: why the prepare hook exists."""
    monkeypatch.setattr(DistillationBox, "setup_loss", DistillationBox.setup_loss.__wrapped__)
    teacher, student = models()
    make_box(stage("embedding"), teacher, student)
    assert all(p.requires_grad for p in student.get_classifier().parameters())
    install_prepare_hook()
    installed = DistillationBox.setup_loss
    install_prepare_hook()
    assert DistillationBox.setup_loss is installed  # twice wraps once
    make_box(stage("embedding"), teacher, student)
    assert not any(p.requires_grad for p in student.get_classifier().parameters())


def run_rank(rank, port, folder):
    """Writes the weights after both stages, of a student with two classifiers; then trap 4."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    accelerator.state.use_fp16 = False
    teacher, student = models("deit_tiny_distilled_patch16_224", img_size=32, depth=2)
    stages = {"stage1": stage("embedding"), "stage2": stage("classifier")}
    train_box(make_box(stages, teacher, student, accelerator))
    torch.save(dict(student.named_parameters()), folder / str(rank))
    EmbeddingStage.prepare = lambda self, box, stage_config: None
    with pytest.raises(RuntimeError, match="Expected to have finished reduction"):
        train_box(make_box(stage("embedding", epochs=2), *models(), accelerator))


def test_two_gloo_processes_train_both_stages_with_equal_weights_and_trap_4_without_freezing_ddp_stops(tmp_path):
    """DDP through Accelerate; tests/test_cli.py has a student with batch norm."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    mp.spawn(run_rank, (port, tmp_path), nprocs=2)
    assert equal(*(torch.load(tmp_path / rank) for rank in "01"))


# --- clipping in float16 ---------------------------------------------------------------------------------------------

LIMIT, SCALE = 0.5, 2.0**16
GRADIENT = torch.tensor([3.0, 4.0])


def scaled():
    """What Accelerate does in float16, with a scaler for the CPU."""
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    return SimpleNamespace(scaler=scaler, backward=lambda loss: scaler.scale(loss).backward())


def box_with(accelerator, max_grad_norm, grad_accum_step=1, **kwargs):
    Accelerator(cpu=True)  # AcceleratedOptimizer reads its state
    parameter = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=1.0, **kwargs)
    box = SimpleNamespace(accelerator=accelerator, max_grad_norm=max_grad_norm, parameter=parameter)
    box.grad_accum_step, box.stage_grad_count, box.lr_scheduler, box.scheduling_step = grad_accum_step, 0, None, 0
    box.optimizer = AcceleratedOptimizer(optimizer, device_placement=False, scaler=accelerator.scaler)
    return box


def step(box):
    """The step that torchdistill takes against the gradient (3, 4)."""
    before = box.parameter.detach().clone()
    default_post_forward_process(box, loss=(box.parameter * GRADIENT).sum())
    return box.parameter.detach() - before


def test_trap_torchdistill_clips_what_the_scaler_multiplied():
    torch.testing.assert_close(step(box_with(scaled(), LIMIT)), -LIMIT * GRADIENT / 5 / SCALE)


UNSCALED = SimpleNamespace(scaler=None, backward=torch.Tensor.backward)  # torchdistill clips


@pytest.mark.parametrize(("fused", "has_scaler"), [(False, True), (True, True), (False, False)])
@pytest.mark.parametrize(("limit", "expected"), [(LIMIT, LIMIT * GRADIENT / 5), (10.0, GRADIENT), (None, GRADIENT)])
def test_the_gradient_itself_is_clipped(limit, expected, fused, has_scaler):
    box = box_with(scaled() if has_scaler else UNSCALED, limit, fused=fused)
    clip_unscaled(box, box.accelerator)
    for _ in range(2):
        torch.testing.assert_close(step(box), -expected)


def test_accumulated_gradients_are_clipped_once():
    box = box_with(scaled(), LIMIT, grad_accum_step=2)
    clip_unscaled(box, box.accelerator)
    assert not step(box).any()
    torch.testing.assert_close(step(box), -LIMIT * GRADIENT / 5)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (AttributeError("x\n y"), "train.stage3: torchdistill cannot build this stage: x y"),
        (KeyError("x"), "train.stage3: torchdistill cannot build this stage: 'x'"),
        (ConfigError("optimizer: missing"), "train.stage3.optimizer: missing"),
        (ValueError("x" + " y" * 999), f"train.stage3: torchdistill cannot build this stage: x{' y' * 148} …"),
    ],
)
def test_errors_of_torchdistill_name_the_stage(error, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"), torchdistill_errors("train.stage3"):
        raise error


def test_a_second_box_leaves_the_first_its_processes(monkeypatch):
    """Upstream's own way, without the shim, changes those of the first: when it does not any more, remove the shim."""

    def process_of(first):
        made = {}
        for name, process in (("first", "refilled"), ("second", "default_pre_epoch_process_with_teacher")):
            made[name] = make_box({"stage1": stage("classifier", pre_epoch_process=process)}, *models())
        return made[first].pre_epoch_process

    called = []
    monkeypatch.setattr(RefilledTeacher, "fit_centres", lambda *_: called.append("refilled"))
    with suppress(RuntimeError, ValueError):  # nothing was fitted
        process_of("first")(epoch=0)
    assert called == ["refilled"]
    process_of("second")(epoch=0)
    assert called == ["refilled"]
    for kind in (DistillationBox, TrainingBox):
        monkeypatch.setattr(kind, "setup_pre_post_processes", kind.setup_pre_post_processes.__wrapped__)
        for name in upstream._PROCESSES:
            monkeypatch.setattr(kind, name, None)
    process_of("first")(epoch=0)
    assert called == ["refilled"]


def test_torch_and_torchdistill_still_have_no_loader_for_a_set_without_an_index():
    class Numbers(IterableDataset):
        def __iter__(self):
            yield from range(3)

    with pytest.raises(ValueError, match="sampler"):
        DataLoader(Numbers(), sampler=SequentialSampler(Numbers()))
    assert not hasattr(BaseDatasetWrapper(Numbers()), "__iter__")
    install_streams()
    assert util.DataLoader(range(3), batch_size=3).batch_size == 3  # of any other set, torch's own
