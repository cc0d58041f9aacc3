"""From a folder of photos and two models to a configuration that runs."""

import logging
from pathlib import Path
from unittest.mock import Mock

import pytest
import timm
import yaml
from PIL import Image
from safetensors.torch import save_file

from gkd_plugin import distill, recipe
from gkd_plugin.cli import main
from gkd_plugin.config.config import load_config
from gkd_plugin.config.tree import read
from gkd_plugin.deploy.export import export
from gkd_plugin.recipe import Wanted, find_folders, write_recipe
from gkd_plugin.runner.run_folder import read_json, write_json
from tests.data.fakes import image_tree
from tests.runner.fakes import refused

MODELS = ["--teacher", "test_resnet=teacher.safetensors", "--student", "test_resnet"]
QUICK = ["--epochs", "1", "--size", "32", "--teacher-size", "32", "--from-scratch", "--device", "cpu"]
PHOTO = Image.effect_noise((80, 60), 64).convert("RGB")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Photos with and without folders for parts, and weights of a teacher."""
    monkeypatch.chdir(tmp_path)
    for blue, part in enumerate(("own/train", "own/val", "own/test", "plain")):
        image_tree(tmp_path / part, ("cat", "dog", "owl"), 5, blue)
    image_tree(tmp_path / "more", ("any",))
    save_file(timm.create_model("test_resnet", num_classes=7).state_dict(), "teacher.safetensors")
    return tmp_path


def wanted(data="own", **changes):
    given = {"teacher": "test_resnet=teacher.safetensors", "student": "test_vit", "is_pretrained": False, "size": 32}
    return Wanted(Path(data), **{**given, "teacher_size": 48, **changes})


@pytest.mark.parametrize(("data", "unlabelled"), [("own", []), ("plain", ["--unlabelled", "more"])])
def test_the_configuration_runs(data, unlabelled, here, caplog, capsys):
    """Into the next folder, where there is a run already."""
    caplog.set_level("INFO")
    write_json(Path("runs", data, "summary.json"), {"status": "finished"})
    assert main(["distill", data, *MODELS, *QUICK, *unlabelled]) == 0
    assert "final top-1 on the test set" in caplog.text
    counts = {"own": (15, 15), "plain": (12, 3)}[data]
    assert f"{counts[0]} samples of 3 classes" in caplog.text
    assert f"own/test: {counts[1]} samples of 3 classes" in caplog.text
    assert ("2 without a label" in caplog.text) == bool(unlabelled)
    table, _, following = capsys.readouterr().out.partition("\nstudent: ")
    place, *commands = following.splitlines()
    assert place.startswith(f"runs/{data}-2/student.safetensors")
    assert [line.split()[:3] for line in commands[:3]] == [
        ["refilled", command, f"runs/{data}-2"] for command in ("predict", "evaluate", "export")
    ]
    assert f"\nruns/{data}-2  test_resnet" in table
    assert {path.name for path in Path(f"runs/{data}-2").iterdir()} >= {"student.safetensors", "summary.json"}


def test_every_number_is_written_once_and_the_models_are_as_their_files_say(here):
    told = write_recipe(wanted(epochs=7, lr=0.25), Path("own.yaml"))
    assert told.startswith("own.yaml: 15 images of 3 classes, 5 of each")
    text, tree = Path("own.yaml").read_text("utf-8"), read(Path("own.yaml"))
    assert text.count(": &epochs 7\n") == text.count("x-lr: &lr 0.25\n") == 1
    teacher, student = (tree["models"][f"{role}_model"]["kwargs"] for role in ("teacher", "student"))
    assert teacher == {"model_name": "test_resnet", "num_classes": 7, "input_size": 48}
    for_test_vit = {"num_classes": 3, "input_size": 32, "img_size": 32}  # built for 160 pixels
    assert student == {"model_name": "test_vit", **for_test_vit}
    assert "validation" in str(tree["train"]["val_data_loader"]["dataset_id"])
    load_config("own.yaml", ["x-epochs=2"])


def test_a_student_with_weights_starts_at_centres_and_the_teachers_answers_are_kept(here):
    write_recipe(wanted(student="test_resnet=teacher.safetensors"), Path("own.yaml"))
    tree = read(Path("own.yaml"))
    assert tree["models"]["student_model"]["src_ckpt_classifier"] == "centres"
    assert tree["teacher_cache"] == {"views": 20}
    assert tree["train"]["num_epochs"] == 60


@pytest.mark.parametrize(
    ("count", "is_pretrained", "epochs", "batch", "views"),
    [
        (120, True, 60, 24, 20),
        (360, True, 20, 24, 8),
        (600, True, 16, 32, 5),
        (900, True, 15, 32, 4),
        (50_000, True, 15, 64, None),
        (120, False, 100, 24, None),
    ],
)
def test_epochs_batches_and_views_by_the_number_of_images(count, is_pretrained, epochs, batch, views):
    made = recipe._schedule(count, wanted(), is_pretrained=is_pretrained)
    assert (made["epochs"], made["batch"]) == (epochs, batch)
    assert (yaml.safe_load(made["cache"]) or {}).get("views") == views


def test_images_of_the_training_folder_in_another_are_refused(here):
    Path("own/train/dog/3.png").rename("own/val/cat/other.png")
    Path("own/train/dog/3.png").write_bytes(Path("own/val/cat/other.png").read_bytes())
    refused("^DATA: 1 of 16 images in own/val .*own/val/cat/other.png", write_recipe, wanted(), Path("x.yaml"))


def test_a_command_that_fails_before_training_may_be_given_again_corrected(here):
    assert main(["distill", "own", "--teacher", "test_vit=teacher.safetensors", *MODELS[2:], *QUICK]) == 2
    assert not Path("own.yaml").exists()


def test_ctrl_c_says_how_to_go_on(here, monkeypatch, capsys):
    monkeypatch.setattr("gkd_plugin.runner.run.run_all", Mock(side_effect=KeyboardInterrupt))
    assert main(["distill", "own", *MODELS, *QUICK, "--output", "out"]) == 130
    assert "refilled run out.yaml --output out --device cpu --resume" in capsys.readouterr().err


def test_from_python_to_a_student_that_is_measured_as_it_is_used_later_and_teaches_the_next(here):
    given = {"is_pretrained": False, "size": 32, "teacher_size": 48, "epochs": 1, "device": "cpu"}
    student = distill("own", MODELS[1], MODELS[3], output="out", **given)
    assert (student.run, student.classes) == (Path("out"), ["cat", "dog", "owl"])
    resize = student.transform.transforms[0]
    cfg = timm.get_pretrained_cfg("test_resnet")
    assert (resize.size, resize.interpolation.value) == (int(32 / cfg.crop_pct), cfg.interpolation)
    assert student.preprocessing["input_size"] == [3, 32, 32]
    assert timm.data.create_transform(**student.preprocessing)(PHOTO).equal(student.transform(PHOTO))
    assert student.evaluate(Path("own/test"))["top1"] == read_json(student.run / "summary.json")["final"]["top1"]
    assert "final top-1" in Path("out/log.txt").read_text("utf-8")
    assert logging.getLogger("gkd_plugin").level == logging.NOTSET  # as before

    export(student.run, ["timm"])
    card = Path("out/export/README.md").read_text("utf-8")
    assert "own/train (own/train)" in card
    words = " ".join([*MODELS, "--epochs 1 --size 32 --teacher-size 48 --from-scratch"])
    assert f"`refilled distill own {words}`" in card
    for teacher in ("out", "out/student.safetensors"):
        write_recipe(wanted("plain", teacher=teacher), Path("next.yaml"), overwrites=True)
        entry = read(Path("next.yaml"))["models"]["teacher_model"]
        assert (entry["kwargs"]["model_name"], entry["kwargs"]["num_classes"]) == ("test_resnet", 3)
        assert entry["src_ckpt"] == "out/student.safetensors"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nowhere"}, "DATA: there is no folder nowhere"),
        ({"data": "empty"}, "DATA: root: empty holds no folders"),
        ({"data": "one"}, "DATA: one has one class, 'cat'"),
        ({"data": "few"}, "DATA: one photo in few/owl, which cannot both train and test; .*'test'"),
        ({"data": "only"}, "DATA: only holds .*test.*, but no folder 'train'"),
        ({"teacher": "resnet81"}, "--teacher: timm has no model 'resnet81'.*resnet18"),
        ({"teacher": "teacher.safetensors"}, "--teacher: teacher.safetensors does not say which model .* NAME=teacher"),
        ({"teacher": "test_resnet=nothing.pt"}, "--teacher: no such file: nothing.pt"),
        ({"unlabelled": Path("nowhere")}, "--unlabelled: there is no folder nowhere"),
        ({"size": 3}, "--size: 3 pixels are too few for a photo; 16 or more"),
        ({"student": "test_vit", "size": 40}, "--size: test_vit takes patches of 16 pixels, so 32 or 48, not 40"),
    ],
)
def test_what_cannot_be_used(changes, message, here):
    (here / "empty").mkdir()
    image_tree(here / "one", ("cat",))
    image_tree(here / "few", ("cat", "dog"))
    image_tree(here / "few", ("owl",), 1)
    image_tree(here / "only/test", ("cat", "dog"))
    refused(f"^{message}", write_recipe, wanted(**changes), Path("x.yaml"))
    assert not Path("x.yaml").exists()


def test_what_cannot_be_fetched_is_told_of_both_models(here, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(recipe, "HfApi", offline)
    monkeypatch.setattr(recipe, "try_to_load_from_cache", lambda *_: None)
    given = wanted(teacher="resnet50", student="resnet18", is_pretrained=True)
    message = "--teacher resnet50 and --student resnet18 .* cannot be reached; .*NAME=FILE"
    refused(message, write_recipe, given, Path("x.yaml"))
    monkeypatch.setattr(recipe, "try_to_load_from_cache", lambda *_: "/cache/model.safetensors")
    write_recipe(given, Path("x.yaml"))
    assert read(Path("x.yaml"))["models"]["student_model"]["kwargs"]["pretrained"] is True


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm/resnet50.a1_in1k", "--student: .*'timm/resnet50.a1_in1k'.*hf-hub:timm/resnet50.a1_in1k"),
        ("hf-hub:timm/resnet50.a1_in1k", "--student: 'hf-hub:.*NAME=FILE"),
        ("own/train", "--student: own/train is not a run folder with a student"),
    ],
)
def test_a_name_with_a_slash_is_told(name, said, here):
    refused(said, write_recipe, wanted(student=name), Path("x.yaml"))


def test_a_folder_with_the_name_of_a_model_is_in_nobodys_way(here):
    Path("test_vit").mkdir()
    write_recipe(wanted(), Path("x.yaml"))
    assert read(Path("x.yaml"))["models"]["student_model"]["kwargs"]["model_name"] == "test_vit"


def test_another_configuration_that_is_there_stays(here):
    write_recipe(wanted(), Path("own.yaml"))
    write_recipe(wanted(), Path("own.yaml"))
    refused(
        "own.yaml is there and differs: line .*--epochs 3 .*--overwrite",
        write_recipe,
        wanted(epochs=3),
        Path("own.yaml"),
    )
    write_recipe(wanted(epochs=3), Path("own.yaml"), overwrites=True)


def test_a_folder_may_have_any_name(here):
    Path("own").rename("own: #1")
    write_recipe(wanted("own: #1"), Path("x.yaml"))
    tree = load_config("x.yaml").tree
    assert tree["x-train"] == "own: #1/train"
    assert tree["x-written-by"].startswith("refilled distill 'own: #1' --teacher ")


def test_names_of_folders(tmp_path):
    for name in ("Training", "valid", "testing", "other"):
        (tmp_path / name).mkdir()
    found = {part: path.name for part, path in find_folders(tmp_path).items()}
    assert found == {"train": "Training", "validation": "valid", "test": "testing"}
