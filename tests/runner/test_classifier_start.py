"""The new classifier against the nearest class mean, written as loops."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from torchdistill.models.classification.resnet import resnet20

from gkd_plugin import ConfigError
from gkd_plugin.models import timm_model
from gkd_plugin.runner.classifier_start import SCALE, start_at_centres
from tests.fakes import TinyImages


def started(model, data=None):
    data = TinyImages(classes=4, per_class=5) if data is None else data
    start_at_centres("models.student_model", model, DataLoader(data, batch_size=7), Accelerator(cpu=True))
    return data


def reference(rows, labels, classes, queries):
    """Cosines of the queries to the normalised means of normalised rows, in float64, sample by sample."""
    centres = []
    for k in range(classes):
        total = torch.zeros(rows.shape[1], dtype=torch.float64)
        for row, label in zip(rows.double(), labels, strict=True):
            if label == k:
                total += row
        centres.append(total / total.norm())
    return torch.stack([torch.stack([query @ centre for centre in centres]) for query in queries.double()])


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda: timm_model("test_resnet", num_classes=4), "embedding"),
        (lambda: timm_model("test_vit", img_size=32, num_classes=4), "embedding"),
        (lambda: resnet20(num_classes=4, pretrained=False, progress=False), None),
    ],
)
def test_logits_are_scaled_similarities_to_class_centres(make, path):
    torch.manual_seed(0)
    model = make()
    data = started(model)
    images, labels = torch.stack([image for image, _ in data]), [label for _, label in data]
    (name, linear) = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    given = []
    model.get_submodule(path or name).register_forward_hook(
        lambda module, inputs, output: given.append(output if path else inputs[0])
    )
    with torch.no_grad():
        logits = model.eval()(images)
    rows = given[0]
    want = reference(rows, labels, 4, rows) * SCALE / rows.double().norm(dim=1).mean()
    torch.testing.assert_close(logits.double(), want, rtol=1e-4, atol=1e-4)
    assert linear.bias.abs().max() == 0


def test_every_classifier_of_a_distilled_model_is_set():
    torch.manual_seed(0)
    model = timm_model("deit_tiny_distilled_patch16_224", img_size=32, num_classes=4, depth=1)
    before = [model.get_submodule(path).weight.clone() for path in ("head", "head_dist")]
    started(model)
    assert all((model.get_submodule(p).weight != w).any() for p, w in zip(("head", "head_dist"), before, strict=True))


def test_random_states_stay_as_they_were():
    model = timm_model("test_resnet", num_classes=4)
    torch.manual_seed(3)
    want = torch.rand(1)
    torch.manual_seed(3)
    started(model)
    assert torch.equal(torch.rand(1), want)


def test_a_class_without_sample_is_told_with_its_key():
    with pytest.raises(ConfigError, match=r"^models\.student_model\.src_ckpt_classifier: 'centres': .*class.* 4"):
        started(timm_model("test_resnet", num_classes=5))


def test_a_classifier_that_is_no_linear_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ConfigError, match=r"'centres': needs classifiers that are Linear, none is found in Sequential"):
        started(model)


def test_nothing_stays_on_the_model():
    model = timm_model("test_resnet", num_classes=4)
    before = {
        name: len(module._forward_pre_hooks) + len(module._forward_hooks) for name, module in model.named_modules()
    }
    started(model)
    after = {
        name: len(module._forward_pre_hooks) + len(module._forward_hooks) for name, module in model.named_modules()
    }
    assert after == before


def test_a_classifier_of_tokens_is_told_with_its_key():
    model = nn.Sequential(nn.Flatten(2), nn.Linear(1024, 4))
    with pytest.raises(ConfigError, match=r"^models\.student_model\.src_ckpt_classifier: 'centres': .*\[7, 3, 1024\]"):
        started(model)
