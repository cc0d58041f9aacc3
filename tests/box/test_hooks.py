"""Module paths and recordings."""

import pytest
import torch

from gkd_plugin import ConfigError
from gkd_plugin.box.hooks import Capture, check_module_path, hooked_tensor
from tests.fakes import TinyNet


def test_a_path_that_does_not_exist_is_named():
    check_module_path(TinyNet(), "pool", "here")
    with pytest.raises(ConfigError, match="here: TinyNet has no module 'poool'; did you mean 'pool'"):
        check_module_path(TinyNet(), "poool", "here")


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
    with pytest.raises(ConfigError, match=message):
        hooked_tensor(recorded, "student", "p")


def test_a_capture_is_shared_and_gives_once():
    net, x = TinyNet(), torch.randn(2, 3, 32, 32)
    capture, given = Capture.of(net, "fc", "output"), Capture.of(net, "fc", "input")
    assert Capture.of(net, "fc", "output") is capture
    logits = net(x)
    assert torch.equal(capture.take("teacher", "fc"), logits)
    assert given.take("teacher", "fc").shape == (2, 8)
    with pytest.raises(ConfigError, match="'fc'/output is not recorded"):
        capture.take("teacher", "fc")
