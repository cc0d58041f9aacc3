"""Module paths and recordings."""

import pytest
import torch

from gkd_plugin import ConfigError
from gkd_plugin.box.hooks import check_module_path, hooked_tensor
from tests.fakes import TinyNet


def test_paths():
    check_module_path(TinyNet(), "pool", "here")
    with pytest.raises(ConfigError, match="here: TinyNet has no module 'poool'; did you mean 'pool'"):
        check_module_path(TinyNet(), "poool", "here")


def test_pooled_maps_are_flattened():
    assert hooked_tensor({"p": {"output": torch.ones(2, 3, 1, 1)}}, "student", "p").shape == (2, 3)
    assert hooked_tensor({"p": {"input": torch.ones(2, 3)}}, "student", "p", "input").shape == (2, 3)


def test_what_is_not_a_tensor_is_named():
    with pytest.raises(ConfigError, match="the student's 'p'/output is a tuple, not one tensor"):
        hooked_tensor({"p": {"output": (torch.ones(1), torch.ones(1))}}, "student", "p")


def test_no_teacher_at_all():
    with pytest.raises(ConfigError, match="there is no teacher"):
        hooked_tensor({}, "teacher", "embedding")


def test_maps_that_are_not_pooled_are_refused():
    with pytest.raises(ConfigError, match=r"the student's 'p'/output has shape \[2, 3, 4, 4\], not \[B, D\]"):
        hooked_tensor({"p": {"output": torch.ones(2, 3, 4, 4)}}, "student", "p")
