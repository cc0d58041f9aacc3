"""What gets no gradient from a loss on the embedding."""

import copy

import pytest
import torch

from gkd_plugin.box.unreached import unreached_parameters
from gkd_plugin.models import timm_model
from tests.fakes import TinyNet

IMAGES = torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize(
    ("name", "classifier"),
    [
        ("test_vit", ("head.",)),
        ("deit_tiny_distilled_patch16_224", ("head.", "head_dist.")),
        ("caformer_s18", ("head.fc.",)),
        ("efficientvim_m1_dist", ("heads.", "heads_dist.", "weights", "weights_dist")),
        ("resnet50_clip", ("head.proj.",)),
        ("volo_d1_224", ("head.", "aux_head.")),
    ],
)
def test_of_a_timm_model_it_is_the_classifier(name, classifier):
    model = timm_model(name, num_classes=3)
    image = torch.randn(1, *model.pretrained_cfg["input_size"])
    unreached = {id(p) for p in unreached_parameters(model, "embedding", "output", image)}
    names = {key for key, parameter in model.named_parameters() if id(parameter) in unreached}
    assert names == {key for key, _ in model.named_parameters() if key.startswith(classifier)}


class Noisy(TinyNet):
    """Draws a random number even in eval mode."""

    def forward(self, x):
        return super().forward(x + torch.rand(()))


@pytest.mark.parametrize(("path", "io"), [("pool", "output"), ("fc", "input")])
def test_any_model_with_a_hook_path_and_nothing_of_it_changes(path, io):
    model = Noisy().train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = unreached_parameters(model, path, io, IMAGES)
    assert {id(p) for p in found} == {id(p) for p in model.fc.parameters()}
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert not model.get_submodule(path)._forward_hooks


def test_frozen_parameters_are_not_listed():
    model = TinyNet()
    model.fc.requires_grad_(False)
    assert unreached_parameters(model, "pool", "output", IMAGES) == []
    model.requires_grad_(False).fc.requires_grad_(True)
    assert len(unreached_parameters(model, "pool", "output", IMAGES)) == 2
