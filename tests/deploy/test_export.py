"""What is exported answers as the student does, without this package; nothing is left half-written."""

import json
import logging
import sys

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import nn

from gkd_plugin import cli
from gkd_plugin.deploy import export as module
from gkd_plugin.deploy.export import export
from gkd_plugin.deploy.student import DistilledStudent
from tests.deploy.fakes import CLASSES, PHOTOS, fake_run
from tests.runner.fakes import model, refused

GREY = {**PHOTOS, "input_size": [1, 32, 32], "mean": [0.5], "std": [0.5]}


def logits(model, size=(3, 32, 32), count=5):
    torch.manual_seed(1)
    with torch.no_grad():
        return model(torch.randn(count, *size))


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def run(tmp_path):
    fake_run(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("entry", "known", "size", "differs"),
    [
        (model("test_vit", img_size=32), PHOTOS, (3, 32, 32), False),
        (model("test_resnet", in_chans=1, drop_rate=0.1), GREY, (1, 32, 32), False),
        (model("test_resnet", input_size=24), PHOTOS, (3, 24, 24), True),
    ],
)
def test_timm_loads_it_and_sees_its_size(tmp_path, caplog, entry, known, size, differs):
    caplog.set_level(logging.INFO)
    fake_run(tmp_path / "run", entry, known)
    assert export(tmp_path / "run", ["timm"]) == []
    folder = tmp_path / "run/export"
    assert names(folder) == {"config.json", "model.safetensors", "README.md"}
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    student = DistilledStudent.load(tmp_path / "run", "cpu")
    assert torch.equal(logits(loaded, size), logits(student.model, size))
    assert loaded.pretrained_cfg["label_names"] == CLASSES
    config = resolve_data_config({}, model=loaded)
    assert config["input_size"] == size
    photo = Image.effect_noise((60, 44), 90).convert("L" if size[0] == 1 else "RGB")
    assert torch.allclose(create_transform(**config)(photo), student.transform(photo), atol=1e-5) != differs
    assert any("one step, the run in two" in text for text in caplog.messages) == differs


def test_the_card_says_what_the_run_knew(run):
    export(run, ["timm"], licence="cc-by-4.0")
    config = json.loads((run / "export/config.json").read_text("utf-8"))
    assert (config["architecture"], config["num_classes"], config["label_names"]) == ("test_vit", 4, CLASSES)
    assert (config["model_args"]["img_size"], config["pretrained_cfg"]["license"]) == ([32, 32], "cc-by-4.0")
    card = (run / "export/README.md").read_text("utf-8")
    for text in (
        "license: cc-by-4.0",
        "4: ant, bee, cat, dog",
        "test_resnet",
        "90.00 %",
        "stage embedding (1 epochs) + ReFilled, stage classifier",
        "top1 87.50 %, ncm top1 75.00 %",
        "--seed 3",
    ):
        assert text in card, text


def test_a_program_of_torch_export_takes_any_number_of_images(run):
    assert export(run, ["torch-export"]) == []
    about = {"refilled.json": ""}
    program = torch.export.load(run / "export/student.pt2", extra_files=about).module()
    assert torch.allclose(logits(program), logits(DistilledStudent.load(run, "cpu").model), atol=1e-5)
    assert json.loads(about["refilled.json"]) == {"classes": CLASSES, "preprocessing": PHOTOS}


def test_onnx_takes_any_number_of_images(run):
    runtime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    assert export(run, ["onnx"]) == []
    session = runtime.InferenceSession(run / "export/student.onnx", providers=["CPUExecutionProvider"])
    expected = logits(DistilledStudent.load(run, "cpu").model)
    torch.manual_seed(1)
    (found,) = session.run(["logits"], {"images": torch.randn(5, 3, 32, 32).numpy()})
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-5)
    about = {entry.key: json.loads(entry.value) for entry in onnx.load(run / "export/student.onnx").metadata_props}
    assert about == {"classes": CLASSES, "preprocessing": PHOTOS}


def test_formats_come_together_and_only_a_folder_of_exports_takes_them(run, tmp_path):
    for name in ("timm", "torch-export", "timm"):
        export(run, [name], output=tmp_path / "own")
    assert names(tmp_path / "own") == {"config.json", "model.safetensors", "README.md", "student.pt2"}
    refused(r"--output: .*run holds something else", export, run, ["timm"], output=run)
    assert names(tmp_path) == {"own", "run"}


def test_a_student_that_is_not_timms(tmp_path, caplog):
    fake_run(tmp_path / "run", {"key": "resnet18", "kwargs": {"num_classes": 4}})
    refused(r"--format: timm: .*'resnet18'", export, tmp_path / "run", ["timm"])
    assert "export" not in names(tmp_path / "run")
    assert export(tmp_path / "run", ["timm", "torch-export"]) == ["timm"]
    assert names(tmp_path / "run/export") == {"student.pt2"}
    assert any("--format: timm" in text for text in caplog.messages)
    assert names(tmp_path) == {"run"}


class Hostile(nn.Module):
    """Cannot be exported: what it does depends on the values of the images."""

    num_classes = 4

    def forward(self, x):
        return x.flatten(1)[:, :4] * (2 if float(x.sum()) > 0 else 1)


def test_what_cannot_be_exported_or_answers_otherwise_is_not_kept(run, monkeypatch):
    monkeypatch.setattr(module, "_program", lambda student: torch.export.export(Hostile(), (torch.zeros(2, 3, 8, 8),)))
    refused(r"^--format: torch-export: VisionTransformer cannot be exported: ", export, run, ["torch-export"])
    monkeypatch.undo()
    monkeypatch.setattr(module, "_CLOSE", -1)
    for name in ("timm", "torch-export"):
        refused(rf"^--format: {name}: gives other logits", export, run, [name])
    assert names(run) == {"config.yaml", "student.safetensors", "summary.json"}


def test_a_missing_extra_is_named_before_anything_is_done(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    refused(r"export to onnx needs .*onnxscript.*pip install 'gkd-plugin\[export\]'", export, run, ["timm", "onnx"])
    assert "export" not in names(run)


def test_the_hub_gets_what_timm_writes(run, monkeypatch):
    sent = {}

    def fake(model, name, **about):
        module.save_for_hf(model, run.parent / name, **{key: about[key] for key in about if key != "model_card"})
        sent.update(about)

    monkeypatch.setattr(module, "push_to_hf_hub", fake)
    export(run, ["timm"], hub="mine", licence="mit")
    for name in ("config.json", "model.safetensors"):
        assert (run.parent / "mine" / name).read_bytes() == (run / "export" / name).read_bytes()
    assert sent["model_card"]["license"] == "mit"
    monkeypatch.setattr(module, "push_to_hf_hub", lambda *_, **__: 1 / 0)
    refused("^--push-to-hub: mine: division", export, run, ["timm"], hub="mine")
    refused("^--push-to-hub: .*timm", export, run, ["torch-export"], hub="mine")


def test_the_command_offers_every_format(run, capsys):
    assert set(cli.FORMATS) == module._FORMATS.keys()
    assert cli.main(["export", str(run), "--format", "torch-export", "--output", str(run.parent / "made")]) == 0
    assert names(run.parent / "made") == {"student.pt2"}
