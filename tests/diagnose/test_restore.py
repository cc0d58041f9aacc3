"""A run comes back as it was built, and what cannot come back is said in one line."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from gkd_plugin.config.stages import stages_of
from gkd_plugin.diagnose.emphasis import report_emphasis
from gkd_plugin.diagnose.figures import report_confusion, report_embedding
from gkd_plugin.diagnose.restore import Images, LeftOut, RestoredRun, _last_wrapped
from gkd_plugin.runner.run_folder import read_json
from tests.fakes import TinyImages
from tests.runner.fakes import equal, refused

STUDENT, CONFIG, TEACHER = Path("runs/student"), "runs/student/config.yaml", "runs/teacher/teacher.pt"


def test_the_students_first_weights_are_those_of_the_run(run, finished):
    for weights, expected in ((None, finished.initial), (run.folder.student, load_file(run.folder.student))):
        run.load_student(weights)
        assert equal(run.student.state_dict(), expected)
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
    path = Path("runs/student/config.yaml")
    text, _, _ = path.read_text("utf-8").partition("\ntest:")
    path.write_text(f"{text}\ndevice: {{teacher: 'cuda:7'}}\n", encoding="utf-8")
    restored = RestoredRun(STUDENT, "cpu")
    assert (restored.validation.name, restored.test.name) == ("validation", "validation")
    assert restored.teacher.device.type == "cpu"
    assert not equal(restored.initial, finished.initial)


def test_outputs_are_in_the_order_of_the_images(run):
    data = TinyImages(seed=1)
    means, labels = run.outputs(lambda images: images.mean(dim=(2, 3)).double(), run.validation, "mean")
    assert torch.equal(labels, torch.tensor(data.targets))
    assert means.dtype == torch.float32
    torch.testing.assert_close(means, data.images.mean(dim=(2, 3)))


def test_a_last_look_at_stages_and_names(here, monkeypatch):
    """A student whose embedding no stage names, a stage ``embedding`` that there is not, and synonyms as names."""
    monkeypatch.setattr(TinyImages, "classes", [("tench", "Tinca tinca"), "b", "c", "d"], raising=False)
    edit("config.yaml", "stage: embedding", "stage: joint")()
    restored = RestoredRun(STUDENT, "cpu")
    assert (restored.embedding_stage, restored.embedding_path) == (None, "embedding")
    assert restored.class_names == ["tench", "b", "c", "d"]
    monkeypatch.setattr("gkd_plugin.diagnose.restore.student_embedding", lambda _: "nowhere")
    held_out = {"test": Images("test", [])}
    monkeypatch.setattr("gkd_plugin.diagnose.restore._held_out", lambda name, _: held_out.get(name))
    restored = RestoredRun(STUDENT, "cpu")
    assert restored.embedding_path is None
    assert (restored.validation.name, restored.test.name) == ("test", "test")


def test_one_process_alone_restores(here, monkeypatch):
    monkeypatch.setattr("gkd_plugin.diagnose.restore.make_accelerator", lambda _: SimpleNamespace(num_processes=2))
    refused("diagnose and refilled report run in one process", RestoredRun, STUDENT, "cpu")


def edit(name, old, new):
    def change():
        path = Path("runs/student", name)
        text = path.read_text("utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    return change


def damage(name, text):
    return lambda: Path("runs/student", name).write_text(text, encoding="utf-8")


def other_weights():
    checkpoint = torch.load(TEACHER, weights_only=False)
    checkpoint["model"] = {name: value + 1 for name, value in checkpoint["model"].items()}
    torch.save(checkpoint, TEACHER)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda: STUDENT.rename("runs/x"), "runs/student is not a run folder: it has no config"),
        (other_weights, f"{CONFIG}: models.teacher_model: has other weights than in the run"),
        (Path("runs/student/summary.json").unlink, "runs/student is not a run folder: it has no summary.json"),
        (edit("summary.json", "{", "<"), "runs/student/summary.json: is damaged: "),
        (damage("summary.json", ""), "runs/student/summary.json: is damaged: "),
        (damage("summary.json", "[" * 100_000), "runs/student/summary.json: is damaged: "),
        (damage("summary.json", "[]"), "runs/student/summary.json: is damaged: "),
        (edit("summary.json", '"seed": 3', '"seed": null'), "runs/student/summary.json: seed must be a whole number"),
        (damage("config.yaml", "train: {"), f"{CONFIG}, line 1, column 9: "),
        (damage("student.safetensors", ""), "run folder: runs/student/student.safetensors cannot be read as weights: "),
        (edit("summary.json", '"finished"', '"stopped"'), "runs/student: the run is not finished (status: stopped)"),
        (Path("runs/student/student.safetensors").unlink, "runs/student: the student's weights are missing: "),
        (Path(TEACHER).unlink, f"{CONFIG}: models.teacher_model.src_ckpt: no such file: {TEACHER}"),
    ],
)
def test_what_cannot_be_restored(here, spoil, message):
    spoil()
    refused(f"^{re.escape(message)}", RestoredRun, STUDENT, "cpu")


def test_the_last_stage_with_the_teachers_wrapper():
    plain, wrapped = {"teacher": {}}, {"teacher": {"auxiliary_model_wrapper": {"key": "refilled_teacher"}}}
    for train, name in (
        ({"stage1": plain, "stage2": {}}, "stage2"),
        ({"stage1": wrapped, "stage2": wrapped, "stage3": plain}, "stage2"),
    ):
        assert _last_wrapped(stages_of({"train": train})).name == name


def test_a_run_without_a_teacher(here):
    restored = RestoredRun(Path("runs/teacher"), "cpu")
    assert (restored.teacher, restored.teacher_labels, restored.without_sample) == (None, None, [])
    made = report_embedding(restored, here)["panels"]
    assert list(made) == ["before_training", "final"]
    summary = read_json(Path("runs/teacher/summary.json"))
    assert report_confusion(restored, here)["top1"] == pytest.approx(summary["final"]["top1"])
    with pytest.raises(LeftOut, match="has no teacher"):
        report_emphasis(restored, here, [0])


def test_a_device_that_does_not_exist(here):
    refused(r"^runs/student/config\.yaml: --device: .* 'cuda:99'", RestoredRun, STUDENT, "cuda:99")
