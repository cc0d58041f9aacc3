"""Teacher and student on devices of their own: without GPUs by fake tensors, with them for real."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gkd_plugin.losses.refilled import refilled
from gkd_plugin.models import timm_model
from gkd_plugin.teacher import DTYPES, RefilledTeacher

CLASSES, BATCH = 4, 12


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


def teacher_on(device, model, **kwargs):
    """A wrapped teacher that was made on ``device``."""
    with torch.device(device):
        teacher = RefilledTeacher(model, data_mean=0.5, data_std=0.5, **kwargs)
        teacher.local_classifier.use_centres(torch.randn(CLASSES, model.head_hidden_size))
    return teacher


def recorded(model, paths, images):
    """What torchdistill's hooks record in a forward pass."""
    io_dict = {path: {} for path in paths}
    handles = [
        model.get_submodule(path).register_forward_hook(lambda m, a, out, path=path: io_dict[path].update(output=out))
        for path in paths
    ]
    io_dict["."] = {"output": model(images)}
    for handle in handles:
        handle.remove()
    return io_dict


def losses(student, teacher, images, labels):
    """Both stages' losses of one batch."""
    io_dict = {
        "student": recorded(student, ["embedding"], images),
        "teacher": recorded(teacher, ["embedding", "local_classifier"], images),
    }
    return [refilled(stage)(io_dict, {}, labels) for stage in ("embedding", "classifier")], io_dict


@pytest.mark.parametrize(
    ("student_device", "teacher_device"),
    [("cuda:0", "cuda:1"), ("cuda:0", "cpu"), ("cuda:0", "cuda:0")],
)
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "deit_tiny_distilled_patch16_224"])
def test_no_arithmetic_mixes_devices(student_device, teacher_device, name):
    """Fake tensors refuse operands on two devices, as real ones do."""
    student, model = timm_model("test_resnet", num_classes=CLASSES).train(), timm_model(name, num_classes=7)
    with FakeTensorMode():
        student, model = placed(student, student_device), placed(model, teacher_device)
        teacher = teacher_on(teacher_device, model)
        images = torch.zeros(BATCH, 3, 48, 48, device=student_device)
        labels = torch.zeros(BATCH, dtype=torch.int64, device=student_device)
        found, io_dict = losses(student, teacher, images, labels)
        assert teacher.device == torch.device(teacher_device)
        assert teacher.embed(images).device == torch.device(teacher_device)
        assert {str(loss.device) for loss in found} == {student_device}
        for recording in io_dict["teacher"].values():
            assert recording["output"].device == torch.device(student_device)
            assert recording["output"].dtype == torch.float32
            assert not recording["output"].requires_grad


def test_fake_tensors_do_refuse_a_mixture():
    with FakeTensorMode(), pytest.raises(RuntimeError, match=r"two different devices|device"):
        torch.zeros(2, device="cuda:0") + torch.zeros(2, device="cuda:1")


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_teacher_held_in_half_precision_meets_a_float32_student(dtype):
    student, model = timm_model("test_resnet", num_classes=CLASSES).train(), timm_model("test_vit", num_classes=7)
    with FakeTensorMode():
        student, model = placed(student, "cuda:0"), placed(model, "cuda:1", DTYPES[dtype])
        teacher = teacher_on("cuda:1", model)
        teacher._dtype = DTYPES[dtype]
        images = torch.zeros(BATCH, 3, 48, 48, device="cuda:0")
        found, _ = losses(student, teacher, images, torch.zeros(BATCH, dtype=torch.int64, device="cuda:0"))
        assert {loss.dtype for loss in found} == {torch.float32}


def real_batch(device):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, 48, 48, generator=generator)
    return images.to(device), (torch.arange(BATCH) % CLASSES).to(device)


def real_losses(student_device, teacher_device, precision=None, dtype=None):
    torch.manual_seed(0)
    model = timm_model("test_vit", num_classes=7)
    student = timm_model("test_resnet", num_classes=CLASSES).to(student_device)
    centres = torch.nn.functional.normalize(torch.randn(CLASSES, model.head_hidden_size), dim=1)
    teacher = RefilledTeacher(model, data_mean=0.5, data_std=0.5, teacher_device=teacher_device, teacher_dtype=dtype)
    teacher.local_classifier.use_centres(centres.to(teacher.device))
    images, labels = real_batch(student_device)
    with torch.autocast(student_device.partition(":")[0], precision, enabled=precision is not None):
        found, _ = losses(student, teacher, images, labels)
    sum(found).backward()
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)
    return torch.stack([loss.detach().cpu() for loss in found])


def test_a_bf16_teacher_changes_the_losses_little():
    want = real_losses("cpu", "cpu")
    torch.testing.assert_close(real_losses("cpu", "cpu", dtype="bf16"), want, rtol=0.1, atol=0.02)
    torch.testing.assert_close(real_losses("cpu", "cpu", torch.bfloat16), want, rtol=0.1, atol=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("student", "teacher"), [("cuda:0", "cpu"), ("cpu", "cuda:0"), ("cuda:0", "cuda:0")])
def test_one_gpu(student, teacher):
    torch.testing.assert_close(real_losses(student, teacher), real_losses("cpu", "cpu"), rtol=1e-2, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
def test_two_gpus():
    torch.testing.assert_close(real_losses("cuda:0", "cuda:1"), real_losses("cpu", "cpu"), rtol=1e-2, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("precision", "dtype"), [(torch.float16, "fp16"), (torch.bfloat16, "bf16"), (None, "fp16")])
def test_half_precision_on_a_gpu(precision, dtype):
    got = real_losses("cuda:0", "cuda:0", precision, dtype)
    torch.testing.assert_close(got, real_losses("cpu", "cpu"), rtol=0.1, atol=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_host_does_not_wait_for_the_teacher_on_a_gpu():
    teacher = teacher_on("cuda:0", timm_model("test_resnet", num_classes=7).cuda())
    images, _ = real_batch("cuda:0")
    teacher(images)
    torch.cuda.set_sync_debug_mode("error")
    try:
        teacher(images)
    finally:
        torch.cuda.set_sync_debug_mode("default")
