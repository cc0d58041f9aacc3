"""Compiled models train as others do, through both stages."""

import pytest
import torch

from gkd_plugin.models import timm_model
from gkd_plugin.runner.compiling import compile_models
from gkd_plugin.runner.devices import Placement, make_accelerator
from gkd_plugin.runner.training import train_epochs
from tests.fakes import make_box, stage


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


def losses(which, precision="no"):
    torch.manual_seed(0)
    teacher, student = timm_model("test_resnet", num_classes=7), timm_model("test_resnet", num_classes=4)
    accelerator = make_accelerator(Placement(torch.device("cpu"), None, precision))
    box = make_box({"stage1": stage("embedding"), "stage2": stage("classifier")}, teacher, student, accelerator)
    compile_models(which, student, teacher)
    return [row["loss"] for row in train_epochs(box, student, {"stage1": 1, "stage2": 1}, accelerator)]


def test_both_stages_give_the_losses_of_eager_models(eager_backend):
    """With autocast, whose wrapper Accelerate puts around the student."""
    want = losses(None, "bf16")
    assert eager_backend == []
    torch.testing.assert_close(losses("both", "bf16"), want, rtol=1e-4, atol=1e-5)
    assert len(eager_backend) == 2


@pytest.mark.parametrize(("which", "count"), [("student", 1), ("teacher", 1), ("both", 2), (None, 0)])
def test_what_is_compiled(eager_backend, which, count):
    compile_models(which, torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    assert len(eager_backend) == count


def test_names_stay_the_same(eager_backend):
    model = timm_model("test_resnet", num_classes=2)
    names = list(model.state_dict())
    compile_models("student", model, None)
    assert list(model.state_dict()) == names
