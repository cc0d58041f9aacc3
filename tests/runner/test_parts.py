"""From sections of a configuration to boxes, loaders and all the parts of a run; whole runs are in test_run."""

import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gkd_plugin.config.config import checked_config, load_config
from gkd_plugin.config.stages import stages_of
from gkd_plugin.data import ArrayImages
from gkd_plugin.errors import ConfigError
from gkd_plugin.runner.devices import read_placement
from gkd_plugin.runner.parts import Parts, _warn, build_box, build_test_loader, compile_models, pin_memory
from gkd_plugin.runner.training import Training
from gkd_plugin.teacher import RefilledTeacher
from tests.config.mutations import ABSURD, mutations, without_weights
from tests.config.samples import changed, parse
from tests.fakes import TinyImages, TinyNet, loader, make_box, models, stage
from tests.runner.fakes import CPU, cpu, refused, student_config, write_configs

DIGITS = without_weights("digits_ce")
TEACHER_APART = replace(CPU, teacher_device=torch.device("cpu"))


@pytest.fixture
def accelerator():
    return cpu()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_configs(tmp_path)


def config(**stages):
    return {"datasets": {"train": TinyImages(), "val": TinyImages(seed=1)}, "train": stages}


def test_building_a_box_leaves_the_config_as_it_was(accelerator):
    built = config(stage1=stage("embedding"), stage2=stage("classifier"))
    box = build_box(built, *models(), TEACHER_APART, accelerator)
    assert isinstance(box.teacher_model, RefilledTeacher)
    assert box.teacher_model._own_device == torch.device("cpu")
    assert built["train"] == {"stage1": stage("embedding"), "stage2": stage("classifier")}


WRAPPER = ("teacher", "auxiliary_model_wrapper")


@pytest.mark.parametrize(
    ("role", "wrapped", "broken", "message"),
    [
        ("teacher", False, False, r"lacks 77 tensors of refilled_teacher: teacher\.bn1\.bias, .*src_ckpt of its"),
        ("teacher", True, True, "holds NaN or infinity: teacher.fc.bias"),
        ("student", True, False, r"lacks 77 tensors of ResNet: bn1\.bias, .*src_ckpt of its entry"),
    ],
)
def test_weights_of_a_later_stage_are_checked_before_the_first(accelerator, tmp_path, role, wrapped, broken, message):
    """torchdistill would meet them when that stage begins."""
    built, (teacher, student) = config(stage1=stage("embedding"), stage2=stage("classifier")), models()
    state = {f"teacher.{key}" if wrapped else key: value.clone() for key, value in teacher.state_dict().items()}
    state[list(state)[-1]] /= 0 if broken else 1
    torch.save(state, tmp_path / "w.pt")
    built["train"]["stage2"][role]["src_ckpt"] = str(tmp_path / "w.pt")
    refused(rf"^train\.stage2\.{role}\.src_ckpt: .*{message}", build_box, built, teacher, student, CPU, accelerator)


def test_a_later_stage_may_load_infinity_into_a_buffer(accelerator, tmp_path):
    """As masks of attention have it."""
    built, (teacher, student) = config(stage1=stage("embedding"), stage2=stage("classifier")), models()
    teacher.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    torch.save({f"teacher.{key}": value for key, value in teacher.state_dict().items()}, tmp_path / "w.pt")
    built["train"]["stage2"]["teacher"]["src_ckpt"] = str(tmp_path / "w.pt")
    assert build_box(built, teacher, student, CPU, accelerator) is not None


@pytest.mark.parametrize(
    ("place", "value", "placement", "message"),
    [
        (("stage2", *WRAPPER), None, TEACHER_APART, r"device\.teacher: only .*; set train\.stage2\.teacher\.aux"),
        (("stage1", *WRAPPER, "kwargs", "teacher_dtype"), "bf16", CPU, r"train: one .*device\.teacher_dtype"),
        (("stage1", "optimizer", "kwargs", "lr"), -1, CPU, r"train\.stage1\.optimizer: torchdistill .*: Invalid l"),
        (("stage2", "student", "src_ckpt"), "no.pt", CPU, r"train\.stage2\.student\.src_ckpt: no such file: no\.pt"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_told_with_its_key(accelerator, place, value, placement, message):
    built = config(stage1=stage("embedding"), stage2=stage("classifier"))
    section = built["train"]
    for key in place[:-1]:
        section = section[key]
    section[place[-1]] = value
    refused(f"^{message}", build_box, built, *models(), placement, accelerator)


def test_the_checkpoint_of_a_stage_runs_no_code(accelerator, tmp_path):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"model": Code()}, tmp_path / "x.pt")
    for role in ("teacher", "student"):
        built = config(stage1=stage("embedding"), stage2=stage("classifier"))
        built["train"]["stage2"][role]["src_ckpt"] = str(tmp_path / "x.pt")
        place = rf"^train\.stage2\.{role}\.src_ckpt: .* cannot be read as weights: .*mkdir"
        refused(place, build_box, built, *models(), CPU, accelerator)
    assert not (tmp_path / "ran").exists()


def test_the_test_loader(accelerator):
    assert len(build_test_loader(config() | {"test": {"test_data_loader": loader("val")}}, accelerator).dataset) == 24
    for without in ({}, {"test": None}):
        assert build_test_loader(config() | without, accelerator) is None


@pytest.fixture
def eager_backend(monkeypatch):
    """Traces as always, but leaves out the minutes that Inductor compiles."""
    compiled = []

    def compile_eagerly(module):
        compiled.append(module)
        module._compiled_call_impl = torch.compile(module._call_impl, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_eagerly)
    yield compiled
    torch._dynamo.reset()


def losses(which):
    """With autocast, whose wrapper Accelerate puts around the student."""
    torch.manual_seed(0)
    teacher, student, accelerator = TinyNet(7), TinyNet(4), cpu("bf16")
    sections = {"stage1": stage("embedding", val_data_loader={}), "stage2": stage("joint", val_data_loader={})}
    for section in sections.values():  # torchdistill hooks a model anew in each stage
        section["teacher"]["auxiliary_model_wrapper"]["kwargs"]["embedding"] = "pool"
        section["student"]["forward_hook"]["output"] = ["pool"]
        section["criterion"]["kwargs"]["student_embedding"] = "pool"
    box = make_box(sections, teacher, student, accelerator)
    compile_models(which, student, teacher)
    return [row["loss"] for _, row in Training(box, student, stages_of({"train": sections}), accelerator).epochs()]


def test_compiled_models_train_as_others_do(eager_backend):
    want = losses(None)
    assert eager_backend == []
    torch.testing.assert_close(losses("both"), want, rtol=1e-4, atol=1e-5)
    assert len(eager_backend) == 2


@pytest.mark.parametrize(("which", "count"), [("student", 1), ("teacher", 1), ("both", 2), (None, 0)])
def test_what_is_compiled_keeps_its_names(eager_backend, which, count):
    teacher, student = models()
    names = list(student.state_dict())
    compile_models(which, student, teacher)
    assert len(eager_backend) == count
    assert list(student.state_dict()) == names
    compile_models("both", student, None)


@pytest.mark.usefixtures("here")
def test_what_a_plain_training_is_built_from(accelerator, caplog):
    built = load_config("teacher.yaml").build()
    made = Parts(built, CPU, accelerator, None)
    assert (made.num_classes, made.student_path, made.embedding_path) == (4, "models.model", "embedding")
    assert ([(stage.name, stage.epochs) for stage in made.stages], made.settings["val_freq"]) == ([("train", 2)], 1)
    assert made.image_input.size == (32, 32)
    assert made.class_names is None
    assert not hasattr(made.box, "teacher_model")
    assert not Path("runs").exists()
    assert "not read by refilled" not in caplog.text
    small = load_config("teacher.yaml", ["models.model.kwargs.input_size=24"]).build()
    assert Parts(small, CPU, accelerator, None).image_input.size == (24, 24)
    built["models"]["model"]["sync_bn"] = True
    Parts(built, CPU, accelerator, None)
    assert "models.model.sync_bn: not read by refilled" in caplog.text


@pytest.mark.usefixtures("here")
def test_a_teacher_without_a_wrapper_begins_in_eval_mode(accelerator):
    """In a run that goes on, too, which does not measure it."""
    role = {"forward_proc": "forward_batch_only", "requires_grad": False, "forward_hook": {"output": ["embedding"]}}
    tree = student_config()
    del tree["train"]["stage2"], tree["models"]["teacher_model"]["src_ckpt"]
    tree["train"]["stage1"] |= {"teacher": role}
    made = Parts(checked_config(Path("student.yaml"), tree).build(), CPU, accelerator, None)
    assert not any(module.training for module in made.box.teacher_model.modules())


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["val", "test"])
def test_images_of_every_data_set_are_looked_at_before_training(accelerator, name):
    built = load_config("teacher.yaml").build()
    built["datasets"][name] = ArrayImages(np.zeros((4, 32, 32, 3), np.uint8), [0, 1, 2, 3])
    refused(rf"^datasets\.{name}: its first images", Parts, built, CPU, accelerator, None)


@pytest.mark.parametrize(("path", "value"), [(path, value) for path, *values in ABSURD for value in values])
def test_absurd_values_are_told_before_anything_is_written(accelerator, path, value):
    def build(tree):
        Parts(checked_config(Path("x.yaml"), tree).build(), CPU, accelerator, None)

    refused(
        "^(x.yaml: )?(train|datasets)[^ ]+ ?(.line [0-9]+.)?: ", build, changed(DIGITS, path.split("."), parse(value))
    )


@pytest.mark.slow
def test_a_mistake_is_told_before_training_or_harmless(accelerator):
    for mistake, tree in mutations(2000, seed=1):
        start = time.process_time()
        try:
            made = checked_config(Path("x.yaml"), tree, produced=None)
            Parts(made.build(), read_placement(made.tree, "cpu"), accelerator, None)
        except ConfigError:
            pass
        except Exception as error:
            raise AssertionError(mistake) from error
        assert time.process_time() - start < 5, mistake


def test_a_teacher_is_not_saved(caplog):
    models = {"teacher_model": {"dst_ckpt": "t.pt"}, "student_model": {}}
    _warn({"models": models}, [])
    (warning,) = caplog.messages
    assert warning.startswith("models.teacher_model.dst_ckpt: not read by refilled")


COSINE = "train.scheduler={key: CosineAnnealingLR, kwargs: {T_max: %d}}"
CYCLE = "train.scheduler={key: OneCycleLR, kwargs: {max_lr: 0.1, total_steps: %d, cycle_momentum: False}}"


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("scheduler", "length", "epochs", "told"),
    [
        (COSINE, 3, 3, None),
        (COSINE, 3, 1, "T_max: 3, but the stage has 1 epoch"),
        (CYCLE, 3, 3, None),
        (CYCLE, 3, 2, "total_steps: 3, but the stage has 2 epochs"),
        (CYCLE, 1, 1, "total_steps: 1 step is the last of its cycle"),
    ],
)
def test_a_cycle_that_does_not_fit_its_stage_is_told(caplog, accelerator, scheduler, length, epochs, told):
    sets = [f"train.num_epochs={epochs}", scheduler % length]
    Parts(load_config("teacher.yaml", sets).build(), CPU, accelerator, None)
    found = [line for line in caplog.messages if "scheduler" in line]
    assert [line.startswith(f"train.scheduler.kwargs.{told}") for line in found] == ([] if told is None else [True])


@pytest.mark.parametrize(("views", "is_told"), [(2, True), (3, False), (None, False)])
def test_few_fixed_views_for_many_epochs_are_told(caplog, views, is_told):
    stages = [SimpleNamespace(epochs=epochs, section={}, path="train") for epochs in (4, 6)]
    _warn({"models": {"student_model": {}}, "teacher_cache": {"views": views}}, stages)
    assert [line.startswith("teacher_cache.views: 2 for 10 epochs") for line in caplog.messages] == [True] * is_told


def test_batches_for_a_gpu_wait_in_pinned_memory_unless_told_otherwise():
    for given, device, want in ((None, "cuda", True), ({"pin_memory": False}, "cuda", False), (None, "cpu", None)):
        loader = {"dataset_id": "x", "kwargs": given}
        pin_memory(loader, torch.device(device))
        assert (loader["kwargs"] or {}).get("pin_memory") == want
