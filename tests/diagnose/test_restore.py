"""A run comes back as it was built, and what cannot come back is said in one line."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gkd_plugin.config.config import RunConfig
from gkd_plugin.diagnose.restore import Images, RestoredRun, _stage_of_teacher, outputs
from gkd_plugin.errors import ConfigError
from tests.fakes import TinyImages


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_the_students_first_weights_are_those_of_the_run(run, finished):
    assert same(dict(run.initial), finished.initial)
    run.load_student(None)
    assert same(run.student.state_dict(), finished.initial)
    run.load_student(run.folder.student)
    assert same(run.student.state_dict(), load_file(run.folder.student))
    assert not run.student.training


def test_what_a_run_says(run):
    assert run.seed == 3
    assert run.class_names == ["0", "1", "2", "3"]
    assert run.teacher_labels is None
    assert (run.embedding_stage, run.embedding_path) == ("stage1", "embedding")
    assert [images.name for images in (run.train, run.validation, run.test)] == ["train", "validation", "test"]
    assert run.teacher.local_classifier.is_ready
    for images, seed in ((run.train, 0), (run.validation, 1), (run.test, 2)):
        shown = torch.cat([batch[0] for batch in images.loader])
        assert torch.equal(shown, TinyImages(seed=seed).images)


def test_another_seed_without_test_set_and_the_teacher_on_the_students_device(here, finished):
    edit("summary.json", '"seed": 3', '"seed": 4')()
    text = Path("runs/student/config.yaml").read_text("utf-8")
    text = text[: text.index("\ntest:")] + "\ndevice: {teacher: 'cuda:7'}\n"
    Path("runs/student/config.yaml").write_text(text, encoding="utf-8")
    restored = RestoredRun(Path("runs/student"), "cpu")
    assert (restored.validation.name, restored.test.name) == ("validation", "validation")
    assert restored.teacher.device.type == "cpu"
    assert not same(dict(restored.initial), finished.initial)


def test_outputs_are_in_the_order_of_the_images(run):
    data = TinyImages(seed=1)
    means, labels = outputs(lambda images: images.mean(dim=(2, 3)).double(), run.validation, run.accelerator, "mean")
    assert torch.equal(labels, torch.tensor(data.targets))
    assert means.dtype == torch.float32
    torch.testing.assert_close(means, data.images.mean(dim=(2, 3)))


def test_a_last_look_at_stages_and_names(here, monkeypatch):
    """A student whose embedding no stage names, a stage ``embedding`` that there is not, and synonyms as names."""
    monkeypatch.setattr(TinyImages, "classes", [("tench", "Tinca tinca"), "b", "c", "d"], raising=False)
    edit("config.yaml", "stage: embedding", "stage: joint")()
    restored = RestoredRun(Path("runs/student"), "cpu")
    assert (restored.embedding_stage, restored.embedding_path) == (None, "embedding")
    assert restored.class_names == ["tench", "b", "c", "d"]
    monkeypatch.setattr("gkd_plugin.diagnose.restore.student_embedding", lambda _: "nowhere")
    monkeypatch.setattr(
        "gkd_plugin.diagnose.restore._held_out", lambda name, _: Images(name, []) if name == "test" else None
    )
    restored = RestoredRun(Path("runs/student"), "cpu")
    assert restored.embedding_path is None
    assert (restored.validation.name, restored.test.name) == ("test", "test")


def edit(name, old, new):
    def change():
        path = Path("runs/student", name)
        text = path.read_text("utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    return change


def other_weights():
    path = Path("runs/teacher/teacher.pt")
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["model"] = {name: value + 1 for name, value in checkpoint["model"].items()}
    torch.save(checkpoint, path)


def a_run_without_teacher():
    Path("runs/student").rename("runs/x")
    Path("runs/teacher").rename("runs/student")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda: Path("runs/student").rename("runs/x"), "runs/student is not a run folder: it has no config"),
        (a_run_without_teacher, "runs/student/config.yaml: has no models.teacher_model: "),
        (other_weights, "runs/student/config.yaml: models.teacher_model: has other weights than in the run"),
        (Path("runs/student/summary.json").unlink, "runs/student is not a run folder: it has no summary.json"),
        (edit("summary.json", "{", "<"), "runs/student/summary.json: is not JSON: "),
        (edit("summary.json", '"finished"', '"stopped"'), "runs/student: the run is not finished (status: stopped)"),
        (Path("runs/student/student.safetensors").unlink, "runs/student: the student's weights are missing: "),
        (
            Path("runs/teacher/teacher.pt").unlink,
            "runs/student/config.yaml: models.teacher_model.src_ckpt: no such file: runs/teacher/teacher.pt",
        ),
    ],
)
def test_what_cannot_be_restored(here, spoil, message):
    spoil()
    with pytest.raises(ConfigError) as caught:
        RestoredRun(Path("runs/student"), "cpu")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_no_stage_with_the_teachers_wrapper():
    plain, wrapped = {"teacher": {}}, {"teacher": {"auxiliary_model_wrapper": {"key": "refilled_teacher"}}}
    tree = {"models": {"teacher_model": {"key": "resnet18"}}, "train": {"stage1": plain, "stage2": {}}}
    with pytest.raises(ConfigError, match=r"^no stage has the teacher wrapper 'refilled_teacher'"):
        _stage_of_teacher(RunConfig(Path("a.yaml"), tree))
    tree = {**tree, "train": {"stage1": wrapped, "stage2": wrapped, "stage3": plain}}
    assert _stage_of_teacher(RunConfig(Path("a.yaml"), tree)) == 1


def test_a_device_that_does_not_exist(here):
    with pytest.raises(ConfigError, match=r"^runs/student/config\.yaml: --device: there is no device 'cuda:99' here"):
        RestoredRun(Path("runs/student"), "cuda:99")
