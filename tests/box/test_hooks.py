"""Module paths, recordings, and what gets no gradient from a loss on the embedding."""

import copy

import pytest
import torch

from gkd_plugin.box.hooks import Capture, check_module_path, hooked_tensor, unreached_parameters
from gkd_plugin.models import timm_model
from tests.fakes import TinyNet
from tests.runner.fakes import refused


def test_a_path_that_does_not_exist_is_named():
    check_module_path(TinyNet(), "pool", "here")
    refused("here: TinyNet has no module 'poool'; did you mean 'pool'", check_module_path, TinyNet(), "poool", "here")


def test_pooled_maps_are_flattened():
    assert hooked_tensor({"p": {"output": torch.ones(2, 3, 1, 1)}}, "student", "p").shape == (2, 3)
    assert hooked_tensor({"p": {"input": torch.ones(2, 3)}}, "student", "p", "input").shape == (2, 3)


@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        ({"p": {"output": (torch.ones(1),)}}, "the student's 'p'/output is a tuple, not one tensor"),
        ({"p": {"output": torch.ones(2, 3, 4, 4)}}, r"the student's 'p'/output has shape \[2, 3, 4, 4\], not \[B, D\]"),
        ({"pp": {}, ".": {}}, "the student's 'p'/output is not recorded: .*student.forward_hook.output; did you mean"),
        ({}, "there is no student"),
    ],
)
def test_what_is_no_embedding(recorded, message):
    refused(message, hooked_tensor, recorded, "student", "p")


def test_a_capture_is_shared_and_gives_once():
    net, x = TinyNet(), torch.randn(2, 3, 32, 32)
    capture, given = Capture.of(net, "fc", "output"), Capture.of(net, "fc", "input")
    assert Capture.of(net, "fc", "output") is capture
    logits = net(x)
    assert torch.equal(capture.take("teacher", "fc"), logits)
    assert given.take("teacher", "fc").shape == (2, 8)
    refused("'fc'/output is not recorded", capture.take, "teacher", "fc")


@pytest.mark.parametrize(
    ("name", "classifier"),
    [
        ("deit_tiny_distilled_patch16_224", ("head.", "head_dist.")),
        ("efficientvim_m1_dist", ("heads.", "heads_dist.", "weights", "weights_dist")),
        ("volo_d1_224", ("head.", "aux_head.")),
    ],
)
def test_of_a_timm_model_it_is_the_classifier(name, classifier):
    model = timm_model(name, num_classes=3)
    image = torch.randn(1, *model.pretrained_cfg["input_size"])
    unreached = {id(p) for p in unreached_parameters(model, "embedding", image)}
    for key, parameter in model.named_parameters():
        assert (id(parameter) in unreached) == key.startswith(classifier), key


class Noisy(TinyNet):
    """Draws a random number even in eval mode."""

    def forward(self, x):
        return super().forward(x + torch.rand(()))


def test_any_model_with_a_hook_path_and_nothing_of_it_changes():
    model, images = Noisy().train(), torch.randn(2, 3, 32, 32)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = unreached_parameters(model, "pool", images)
    assert {id(p) for p in found} == {id(p) for p in model.fc.parameters()}
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert not model.pool._forward_hooks
    model.fc.requires_grad_(False)
    assert unreached_parameters(model, "pool", images) == []
    model.requires_grad_(False).fc.requires_grad_(True)
    assert len(unreached_parameters(model, "pool", images)) == 2
