"""Teacher and student on devices of their own: without GPUs by fake tensors, with them for real."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gkd_plugin.losses.refilled import refilled
from gkd_plugin.models import timm_model
from gkd_plugin.teacher import DTYPES, RefilledTeacher
from gkd_plugin.teacher.readouts import READOUTS
from tests.teacher.fakes import record

CLASSES, BATCH = 4, 12
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def models(name="test_vit"):
    torch.manual_seed(0)
    return timm_model("test_resnet", num_classes=CLASSES).train(), timm_model(name, num_classes=7)


def losses(student, teacher, images, labels):
    """Both stages' losses of one batch, and what torchdistill's hooks record of the teacher."""
    io_dict = {}
    hooks = {"student": ["embedding"], "teacher": ["embedding", "local_classifier"]}
    for role, model in (("student", student), ("teacher", teacher)):
        seen = record(model, *hooks[role])
        logits = model(images)
        io_dict[role] = {".": {"output": logits}, **{path: {"output": output} for path, output in seen.items()}}
    criteria = [refilled(stage) for stage in ("embedding", "classifier")]
    for criterion in criteria:
        criterion.losses[-1][1].may_lack_labels = False  # as ``prepare`` finds: else it waits for the device
    return [criterion(io_dict, {}, labels) for criterion in criteria], io_dict["teacher"]


def use_centres(teacher, centres):
    centres = centres.to(teacher.device)
    teacher.local_classifier.keep({"centres": centres, **READOUTS["centres"].fit(centres, None)}, centres.device)


def placed(model, device, dtype=torch.float32):
    """The model with new tensors on ``device``: ``to()`` cannot move one whose tensors are fake."""
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, value in held.items():
                if value is not None:
                    kind = dtype if value.is_floating_point() else value.dtype
                    new = torch.zeros(value.shape, dtype=kind, device=device)
                    held[name] = torch.nn.Parameter(new) if held is module._parameters else new
    return model


@pytest.mark.parametrize(
    ("teacher_device", "dtype"),
    [("cuda:1", "float32"), ("cpu", "float32"), ("cuda:0", "float32"), ("cuda:1", "bf16"), ("cuda:1", "fp16")],
)
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "deit_tiny_distilled_patch16_224"])
def test_no_arithmetic_mixes_devices_or_precisions(teacher_device, dtype, name):
    """Fake tensors refuse operands on two devices, as real ones do."""
    student_device = "cuda:0"
    student, model = models(name)
    with FakeTensorMode():
        student, model = placed(student, student_device), placed(model, teacher_device, DTYPES[dtype])
        with torch.device(teacher_device):
            teacher = RefilledTeacher(model, data_mean=0.5, data_std=0.5)
            use_centres(teacher, torch.randn(CLASSES, model.head_hidden_size))
        teacher._dtype = DTYPES[dtype]
        images = torch.zeros(BATCH, 3, 48, 48, device=student_device)
        found, recorded = losses(student, teacher, images, torch.zeros(BATCH, dtype=torch.int64, device=student_device))
        assert teacher.device == teacher.embed(images).device == torch.device(teacher_device)
        assert {(str(loss.device), loss.dtype) for loss in found} == {(student_device, torch.float32)}
        outputs = [recording["output"] for recording in recorded.values()]
        assert {(str(x.device), x.dtype, x.requires_grad) for x in outputs} == {(student_device, torch.float32, False)}


def test_fake_tensors_do_refuse_a_mixture():
    with FakeTensorMode(), pytest.raises(RuntimeError, match=r"two different devices|device"):
        torch.zeros(2, device="cuda:0") + torch.zeros(2, device="cuda:1")


def real_teacher(model, device, dtype=None):
    teacher = RefilledTeacher(model, data_mean=0.5, data_std=0.5, teacher_device=device, teacher_dtype=dtype)
    centres = torch.nn.functional.normalize(torch.randn(CLASSES, model.head_hidden_size), dim=1)
    use_centres(teacher, centres)
    return teacher, torch.randn(BATCH, 3, 48, 48)


def real_losses(student_device, teacher_device, precision=None, dtype=None):
    student, model = models()
    teacher, images = real_teacher(model, teacher_device, dtype)
    student, images = student.to(student_device), images.to(student_device)
    with torch.autocast(student_device.partition(":")[0], precision, enabled=precision is not None):
        found, _ = losses(student, teacher, images, torch.arange(BATCH, device=student_device) % CLASSES)
    sum(found).backward()
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)
    return torch.stack([loss.detach().cpu() for loss in found])


def test_a_bf16_teacher_changes_the_losses_little():
    want = real_losses("cpu", "cpu")
    torch.testing.assert_close(real_losses("cpu", "cpu", dtype="bf16"), want, rtol=0.1, atol=0.02)
    torch.testing.assert_close(real_losses("cpu", "cpu", torch.bfloat16), want, rtol=0.1, atol=0.05)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    ("student", "teacher", "precision", "dtype", "tolerance"),
    [
        ("cuda:0", "cpu", None, None, {"rtol": 1e-2, "atol": 1e-3}),
        ("cpu", "cuda:0", None, None, {"rtol": 1e-2, "atol": 1e-3}),
        ("cuda:0", "cuda:0", None, None, {"rtol": 1e-2, "atol": 1e-3}),
        ("cuda:0", "cuda:1", None, None, {"rtol": 1e-2, "atol": 1e-3}),
        ("cuda:0", "cuda:0", torch.float16, "fp16", {"rtol": 0.1, "atol": 0.05}),
        ("cuda:0", "cuda:0", torch.bfloat16, "bf16", {"rtol": 0.1, "atol": 0.05}),
        ("cuda:0", "cuda:0", None, "fp16", {"rtol": 0.1, "atol": 0.05}),
    ],
)
def test_gpus_give_the_losses_of_the_cpu(student, teacher, precision, dtype, tolerance):
    if teacher == "cuda:1" and torch.cuda.device_count() < 2:
        pytest.skip("fewer than two GPUs")
    torch.testing.assert_close(real_losses(student, teacher, precision, dtype), real_losses("cpu", "cpu"), **tolerance)


@pytest.mark.gpu
@needs_gpu
def test_the_host_does_not_wait_for_the_teacher_on_a_gpu():
    teacher, images = real_teacher(timm_model("test_resnet", num_classes=7), "cuda:0")
    images = images.cuda()
    teacher(images)
    torch.cuda.set_sync_debug_mode("error")
    try:
        teacher(images)
    finally:
        torch.cuda.set_sync_debug_mode("default")
