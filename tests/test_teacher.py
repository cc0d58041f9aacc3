"""The teacher's invariants, whatever a box does to it."""

import copy
import logging

import pytest
import torch
from torch import nn

from gkd_plugin import ConfigError
from gkd_plugin.functional import class_centres
from gkd_plugin.models import timm_model
from gkd_plugin.teacher import RefilledTeacher


def make_teacher(num_classes=5, **kwargs):
    torch.manual_seed(0)
    return RefilledTeacher(timm_model("test_resnet", num_classes=num_classes), **kwargs)


def batches(count=3, classes=4):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8) % classes) for _ in range(count)]


def state(teacher):
    return copy.deepcopy(teacher.teacher.state_dict())


def test_train_does_not_leave_eval_mode():
    teacher = make_teacher()
    assert teacher.train() is teacher
    assert not teacher.training
    assert not any(module.training for module in teacher.modules())


def test_parameters_stay_frozen():
    teacher = make_teacher()
    teacher.requires_grad_(True)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_batch_norm_statistics_never_move_even_if_the_inner_model_was_put_in_train_mode():
    teacher = make_teacher()
    before = state(teacher)
    teacher.teacher.train()
    for images, _ in batches():
        teacher(images)
    after = teacher.teacher.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_no_gradient_flows():
    teacher = make_teacher()
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    assert not teacher(images).requires_grad


def test_output_is_the_teachers_own():
    teacher = make_teacher()
    images = batches()[0][0]
    with torch.no_grad():
        assert torch.equal(teacher(images), teacher.teacher(images))


def test_hook_paths():
    teacher = make_teacher()
    seen = {}
    for path in ("embedding", "local_classifier"):
        teacher.get_submodule(path).register_forward_hook(lambda m, a, out, path=path: seen.update({path: out}))
    images = batches()[0][0]
    teacher(images)
    assert "local_classifier" not in seen  # its centres are not known yet
    teacher.fit_centres(batches())
    teacher(images)
    assert seen["embedding"].shape == (8, teacher.teacher.head_hidden_size)
    assert seen["local_classifier"].shape == (8, 4)
    torch.testing.assert_close(seen["local_classifier"], seen["embedding"] @ teacher.local_classifier.centres.T)


def test_centres_are_those_of_the_embeddings():
    teacher = make_teacher()
    teacher.fit_centres(batches())
    want = class_centres([(teacher.embed(images), labels) for images, labels in batches()])
    torch.testing.assert_close(teacher.local_classifier.centres, want)


def test_centres_are_saved_and_loaded():
    teacher = make_teacher()
    teacher.fit_centres(batches())
    fresh = make_teacher()
    fresh.load_state_dict(teacher.state_dict())
    assert torch.equal(fresh.local_classifier.centres, teacher.local_classifier.centres)
    assert fresh.local_classifier.is_ready


def test_the_number_of_classes_can_be_given():
    teacher = make_teacher(num_classes=5)
    teacher.num_classes = 6
    with pytest.raises(ConfigError, match="class centres: no sample of class 4, 5"):
        teacher.fit_centres(batches())


def test_a_teacher_without_classifier_answers_with_the_local_one_and_says_so_once(caplog):
    teacher = make_teacher(num_classes=0)
    teacher.fit_centres(batches())
    images = batches()[0][0]
    with caplog.at_level(logging.INFO):
        assert teacher(images).shape == (8, 4)
        teacher(images)
    assert caplog.text.count("no classifier of its own") == 1


def test_a_model_that_is_not_timms_names_its_embedding():
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))
    teacher = RefilledTeacher(net, embedding="1")
    assert teacher.embed(torch.randn(2, 3, 8, 8)).shape == (2, 6)


def test_a_path_that_does_not_exist_offers_the_nearest():
    with pytest.raises(ConfigError, match="has no module 'embeding'; did you mean 'embedding'"):
        make_teacher(embedding="embeding")


def test_own_device_is_kept_when_the_box_moves_the_teacher():
    teacher = make_teacher(teacher_device="meta", device=torch.device("cpu"))
    assert teacher.device.type == "meta"
    teacher.to("cpu")
    assert {p.device.type for p in teacher.parameters()} == {"meta"}
    assert {b.device.type for b in teacher.buffers()} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_teacher_on_the_gpu_student_on_the_cpu():
    teacher = make_teacher(teacher_device="cuda:0", device=torch.device("cpu"))
    teacher.fit_centres(batches())
    assert teacher(batches()[0][0]).device.type == "cpu"


def test_centres_are_adopted_only_from_the_same_space():
    first = make_teacher()
    first.fit_centres(batches())
    same = RefilledTeacher(first.teacher)
    same.adopt_centres(first)
    assert torch.equal(same.local_classifier.centres, first.local_classifier.centres)
    for changes in ({"embedding": "global_pool"}, {"num_classes": 4}):
        other = RefilledTeacher(first.teacher, **changes)
        other.adopt_centres(first)
        assert not other.local_classifier.is_ready


def test_an_embedding_that_is_not_pooled_is_refused():
    with pytest.raises(ConfigError, match=r"not \[B, D\] or \[B, D, 1, 1\]"):
        make_teacher(embedding="layer2").embed(batches()[0][0])
