"""What the log says of a teacher: once for each, whatever wraps it."""

import logging

import pytest
import torch

from gkd_plugin.data import ImageInput
from gkd_plugin.models import timm_model
from gkd_plugin.teacher import RefilledTeacher
from gkd_plugin.teacher.teacher_input import TeacherInput
from gkd_plugin.teacher.teacher_log import TeacherLog
from tests.fakes import TinyNet

IMAGES = torch.zeros(2, 3, 32, 32)
DATA = ImageInput((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
OWN = ImageInput((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (48, 48))


@pytest.fixture(autouse=True)
def _all_levels(caplog):
    caplog.set_level(logging.INFO)


def lines(caplog):
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_what_is_done_to_the_images_is_said_once_for_all_wrappers(caplog):
    net = TinyNet()
    for _ in range(2):
        log = TeacherLog(net, "auto")
        log.images(TeacherInput(DATA, OWN), IMAGES)
        log.images(TeacherInput(DATA, OWN), IMAGES)
    ((level, line),) = lines(caplog)
    assert level == "INFO"
    assert "resized from 32 × 32 to 48 × 48 pixels (bicubic, antialias) and normalised with mean (0.5" in line
    assert "pretrained_cfg" not in line
    TeacherLog(TinyNet(), "auto").images(TeacherInput(DATA, OWN), IMAGES)
    assert len(lines(caplog)) == 2


@pytest.mark.parametrize(("preprocessing", "level"), [("auto", "WARNING"), ("pretrained", "INFO")])
def test_weights_of_unknown_origin_are_warned_of_where_images_change(preprocessing, level, caplog):
    net = TinyNet()
    net.has_weights_of_unknown_input = True
    TeacherLog(net, preprocessing).images(TeacherInput(DATA, OWN), IMAGES)
    ((given, line),) = lines(caplog)
    assert given == level
    assert ("timm's pretrained_cfg is taken" in line) == (level == "WARNING")


@pytest.mark.parametrize(("preprocessing", "said"), [("auto", 1), ("data", 0)])
def test_a_teacher_of_unknown_images(preprocessing, said, caplog):
    TeacherLog(TinyNet(), preprocessing).images(TeacherInput(DATA, ImageInput()), IMAGES)
    assert caplog.text.count("does not say what images it was trained with") == said


def test_a_data_set_that_hides_its_normalisation_is_warned_of(caplog):
    TeacherLog(TinyNet(), "auto").images(TeacherInput(ImageInput(), OWN), IMAGES)
    assert [level for level, line in lines(caplog) if "does not show how its images are normalised" in line] == [
        "WARNING"
    ]


def test_a_teacher_without_classifier_says_so_once(caplog):
    net = TinyNet()
    for _ in range(2):
        TeacherLog(net, "auto").has_no_classifier()
    assert caplog.text.count("no classifier of its own") == 1


def test_a_wrapper_speaks_through_it(caplog):
    torch.manual_seed(0)
    model = timm_model("test_resnet", num_classes=0)
    for _ in range(2):
        teacher = RefilledTeacher(model)
        teacher.fit_centres([(torch.randn(4, 3, 32, 32), torch.arange(4) % 2)])
        assert teacher(IMAGES).shape == (2, 2)
    assert caplog.text.count("resized from 32 × 32") == 1
    assert caplog.text.count("no classifier of its own") == 1
