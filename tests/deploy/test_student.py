"""A student taken out of its run folder answers as it did in the run."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import gkd_plugin
from gkd_plugin.config.config import load_config
from gkd_plugin.config.tree import dump
from gkd_plugin.data.files import read_image
from gkd_plugin.data.transforms import image_transform, resized
from gkd_plugin.deploy.student import DistilledStudent, student_of
from gkd_plugin.runner.run import evaluate_checkpoint, run_config
from tests.data.fakes import image_tree
from tests.deploy.fakes import CLASSES, MEAN, PHOTOS, STD, fake_run, photos
from tests.runner.fakes import call, equal, model, refused, teacher_config

TRANSFORM = image_transform(32, MEAN, STD, resize=36)


def _without(*names):
    return {key: value for key, value in PHOTOS.items() if key not in names}


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run on photos, images 10 × 12."""
    folder = tmp_path_factory.mktemp("deployed")
    tree = teacher_config()
    for name in tree["datasets"]:
        image_tree(folder / name, CLASSES, 2)
        numbers = {"size": 32, "mean": MEAN, "std": STD, "resize": 36}
        transform = call("gkd_plugin.data.image_transform", **numbers)
        tree["datasets"][name] = call("gkd_plugin.data.image_folder", root=str(folder / name), transform=transform)
    (folder / "own.yaml").write_text(dump(tree), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_config(load_config("own.yaml"), Path("run"), device="cpu")
    return folder


def test_the_student_of_a_run_is_right_as_often_as_in_the_run(trained, caplog):
    student = gkd_plugin.DistilledStudent.load(trained / "run", "cpu")
    assert (student.classes, student.preprocessing, warnings(caplog)) == (CLASSES, PHOTOS, [])
    final = json.loads((trained / "run/summary.json").read_text("utf-8"))["final"]
    assert student.evaluate(trained / "test", "cpu") == {"top1": final["top1"], "samples": 8}
    config, weights = student_of(trained / "run")
    assert evaluate_checkpoint(config, weights, "cpu") == {"top1": final["top1"], "samples": 8}
    files = sorted((trained / "test").glob("*/*.png"))
    hits = [answer[0][0] == file.parent.name for file, answer in zip(files, student.predict(files), strict=True)]
    assert 100 * sum(hits) / len(hits) == final["top1"]


def test_the_model_is_timms_own_and_sees_what_the_run_showed(tmp_path):
    tapped = fake_run(tmp_path / "run")
    student = DistilledStudent.load(tmp_path / "run", "cpu")
    assert type(student.model) is type(timm.create_model("test_vit"))
    assert equal(student.model.state_dict(), tapped.state_dict())
    image = read_image(photos(tmp_path)[0])
    assert torch.equal(student.transform(image), TRANSFORM(image))


def test_answers_are_classes_with_probabilities_highest_first(tmp_path):
    tapped = fake_run(tmp_path / "run")
    student, paths = DistilledStudent.load(tmp_path / "run", "cpu"), photos(tmp_path, 40)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.open(paths[1]).save(tmp_path / "turned.png", exif=exif)
    turned = Image.open(tmp_path / "turned.png")
    answers = student.predict([*paths, read_image(paths[0]), turned])
    assert dict(answers[40]) == pytest.approx(dict(answers[0]), abs=1e-6)
    assert turned.getexif()[0x0112] == 3  # the caller's image is as it was
    expected = tapped(TRANSFORM(read_image(paths[1]).rotate(180))[None]).softmax(1)[0]
    assert dict(answers[41]) == pytest.approx(dict(zip(CLASSES, expected.tolist(), strict=True)), abs=1e-6)
    for answer in answers:
        assert [share for _, share in answer] == sorted((share for _, share in answer), reverse=True)
        assert sum(share for _, share in answer) == pytest.approx(1)
    assert student.predict([]) == []
    for alone in (paths[:1], paths[0]):  # another batch, so other roundings
        (best,) = student.predict(alone, topk=2)
        assert [name for name, _ in best] == [name for name, _ in answers[0][:2]]
        assert dict(best) == pytest.approx(dict(answers[0][:2]), abs=1e-6)


@pytest.mark.parametrize("own_size", [22, [16, 48]])
def test_a_student_with_a_size_of_its_own(tmp_path, own_size):
    tapped = fake_run(tmp_path / "run", model("test_resnet", input_size=own_size))
    student = DistilledStudent.load(tmp_path / "run", "cpu")
    image = read_image(photos(tmp_path)[0])
    view = TRANSFORM(image)[None]
    assert torch.allclose(student.transform(image)[None], resized(view, tapped.own_size), atol=1e-6)
    assert torch.allclose(student.model(student.transform(image)[None]), tapped(view), atol=1e-5)
    height = tapped.own_size[0]  # timm's transform cuts the same part out of the photo, as nearly as pixels allow
    assert int(height / student.preprocessing["crop_pct"]) == round(height * 36 / 32)


def test_grey_images_and_a_model_that_is_not_timms(tmp_path):
    known = {**PHOTOS, "input_size": [1, 32, 32], "mean": [0.5], "std": [0.5]}
    fake_run(tmp_path / "grey", model("test_resnet", in_chans=1), known)
    (path,) = photos(tmp_path, 1)
    assert len(DistilledStudent.load(tmp_path / "grey", "cpu").predict([path])[0]) == 4
    fake_run(tmp_path / "other", {"key": "resnet18", "kwargs": {"num_classes": 4}})
    assert len(DistilledStudent.load(tmp_path / "other", "cpu").predict([path])[0]) == 4


@pytest.mark.parametrize(
    ("known", "about", "words"),
    [
        (_without("crop_pct", "crop_mode", "interpolation"), {}, ["the shorter side ", "bilinear"]),
        (_without("mean", "std"), {}, ["mean (0.485, 0.456, 0.406)"]),
        ({"input_size": [3, 32, 32]}, {}, ["the shorter side ", "std (0.229, "]),
        (PHOTOS, {"classes": None}, ["0 to 3"]),
        (PHOTOS, {"epochs": (1, 2)}, ["epoch 1 of 2"]),
    ],
)
def test_what_a_run_does_not_show_is_told_in_one_line(tmp_path, caplog, known, about, words):
    fake_run(tmp_path / "run", None, known, **about)
    student = DistilledStudent.load(tmp_path / "run", "cpu")
    (line,) = warnings(caplog)
    assert "student.safetensors" in line
    assert all(word in line for word in words)
    assert len(student.predict(photos(tmp_path, 1))[0]) == 4


def test_nothing_is_downloaded_for_the_weights_that_a_run_began_with(tmp_path, monkeypatch):
    fake_run(tmp_path / "run")
    path = tmp_path / "run/config.yaml"
    text = path.read_text("utf-8").replace("img_size: 32", "img_size: 32\n      pretrained: true")
    path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(timm.models._builder, "load_pretrained", None)
    config, weights = student_of(tmp_path / "run")
    assert config.tree["models"]["student_model"]["kwargs"]["pretrained"] is True
    DistilledStudent.load(tmp_path / "run", "cpu")
    evaluate_checkpoint(config, weights, "cpu")


def test_what_is_no_run_with_a_student_is_refused(tmp_path):
    fake_run(tmp_path / "runs")
    refused(r"RUN: there is no folder .*rums; .*runs", DistilledStudent.load, tmp_path / "rums")
    refused(r"RUN: .*config\.yaml is a file", DistilledStudent.load, tmp_path / "runs/config.yaml")
    fake_run(tmp_path / "bare", None, None)
    refused(r"RUN: .*does not say what images", DistilledStudent.load, tmp_path / "bare")
    (tmp_path / "bare/student.safetensors").unlink()
    refused(r"RUN: .*bare holds no student\.safetensors", DistilledStudent.load, tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare")
    (tmp_path / "bare").mkdir()
    refused(r"RUN: .*bare is not a run folder: it has no config\.yaml", DistilledStudent.load, tmp_path / "bare")
    refused("--device: .*'tpu'", DistilledStudent.load, tmp_path / "runs", "tpu")


def test_images_that_cannot_be_read_are_named_and_the_others_go_on(tmp_path, caplog):
    fake_run(tmp_path / "run")
    student, paths = DistilledStudent.load(tmp_path / "run", "cpu"), photos(tmp_path / "photos", 35)
    (tmp_path / "photos/3.png").write_bytes(b"broken")
    found = dict(student.predict_files([tmp_path / "photos", "nowhere.jpg"], topk=1))
    assert found.keys() == {*paths} - {str(tmp_path / "photos/3.png")}
    assert [found[paths[34]]] == student.predict([paths[34]], topk=1)
    missing, broken = warnings(caplog)
    assert ("3.png" in broken, "nowhere.jpg" in missing) == (True, True)
    for path, message in ((tmp_path / "photos/3.png", "no image could be read"), ("nowhere.jpg", ": nowhere.jpg$")):
        refused(message, lambda path=path: list(student.predict_files([path])))


def test_a_folder_to_measure_on(tmp_path, caplog):
    fake_run(tmp_path / "run")
    student = DistilledStudent.load(tmp_path / "run", "cpu")
    image_tree(tmp_path / "some", ["bee", "dog"])
    found = student.evaluate(tmp_path / "some", "cpu")
    assert found["samples"] == 4
    answers = student.predict(sorted((tmp_path / "some").glob("*/*.png")), topk=1)
    hits = [answer[0][0] == name for answer, name in zip(answers, ["bee", "bee", "dog", "dog"], strict=True)]
    assert found["top1"] == 100 * sum(hits) / 4
    (line,) = warnings(caplog)
    assert "ant, cat" in line
    image_tree(tmp_path / "wrong", ["bee", "dgo"])
    refused(r"^--data: .*'dgo' is unknown; did you mean 'dog'", student.evaluate, tmp_path / "wrong", "cpu")
    refused(r"^--data: there is no folder", student.evaluate, tmp_path / "nowhere", "cpu")
