"""One YAML, any two backbones of timm: only the model names change, by ``--set``."""

import json
import math
from pathlib import Path

import pytest
import timm
from safetensors.torch import load_file

from gkd_plugin.cli import main

CONFIG = Path(__file__).parents[1] / "configs" / "digits" / "digits_try_backbones.yaml"
QUICK = [
    ("{model_name: test_resnet}", "levit_128s"),
    ("{model_name: test_vit}", "test_efficientnet"),
    # an encoder, one block of it at 64 pixels: at its own size it takes minutes on a CPU
    ("{model_name: qwen3_vit_88m_enc, depth: 1, img_size: 64}", "test_efficientnet"),
]
PAIRS = """
resnet18 vit_tiny_patch16_224
vit_tiny_patch16_224 mobilenetv3_small_050
deit_tiny_distilled_patch16_224 resnet10t
resnet18 deit_tiny_distilled_patch16_224
swin_tiny_patch4_window7_224 efficientnet_b0
convnext_tiny swin_tiny_patch4_window7_224
mixer_s32_224 regnetx_002
efficientnet_b0 mixer_s32_224
resnet50_clip efficientvim_m1
vgg11 convnext_atto
efficientvim_m1 vgg11
regnety_002 levit_128s
vit_small_patch14_dinov2 mobilenetv3_small_050
"""
SLOW = [(f"{{model_name: {teacher}}}", student) for teacher, student in map(str.split, PAIRS.strip().splitlines())]


@pytest.mark.parametrize(
    ("teacher", "student"), [*QUICK, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW)]
)
def test_pairs(teacher, student, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"teacher_model.kwargs": teacher, "student_model.kwargs.model_name": student}
    words = [word for key, value in settings.items() for word in ("--set", f"models.{key}={value}")]
    assert main(["run", str(CONFIG), "--output", "out", *words]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    rows = [row for stage in summary["stages"].values() for row in stage["epochs"]]
    assert [row["stage"] for row in rows] == ["stage1", "stage2"]
    assert all(math.isfinite(row["loss"]) for row in rows)
    plain = timm.create_model(student, num_classes=10)
    plain.load_state_dict(load_file(tmp_path / "out" / "student.safetensors"), strict=True)
