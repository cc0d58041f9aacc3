from pathlib import Path

import pytest

from gkd_plugin.compare.cell import cell_config
from gkd_plugin.compare.method import load_method
from gkd_plugin.compare.obstacles import obstacle, untrained_student
from gkd_plugin.compare.setting import Setting
from gkd_plugin.config.overrides import apply_overrides
from gkd_plugin.config.yaml_nodes import compose
from tests.compare.fakes import write_config, write_few_shot, write_incremental

NO_OLD = dict.fromkeys(("lwf", "joint-training"), "needs old and new classes")
SAME = dict.fromkeys(("kd", "srd"), "needs the same classes")


@pytest.mark.parametrize(
    ("write", "setting", "in_the_way"),
    [
        (write_config, Setting(50.0), {**SAME, **NO_OLD}),
        (write_config, Setting(100.0), NO_OLD),
        (write_few_shot, Setting(shots=2), {**SAME, **NO_OLD}),
        (
            write_few_shot,
            Setting(shots=1),
            {
                **SAME,
                **NO_OLD,
                **dict.fromkeys(
                    ("refilled", "refilled-joint", "refilled-stage1-only"),
                    "needs two shots or ClassBalancedBatchSampler",
                ),
            },
        ),
        (write_incremental, Setting(memory=1), {**SAME}),
        (
            write_incremental,
            Setting(memory=0),
            {
                **SAME,
                **dict.fromkeys(
                    ("refilled", "refilled-joint", "refilled-stage1-only", "refilled-stage2-only", "teacher-ncm"),
                    "needs a sample of each class",
                ),
            },
        ),
    ],
)
def test_what_is_in_the_way(write, setting, in_the_way, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = compose(write(tmp_path))
    refilled = ("refilled", "refilled-joint", "refilled-stage1-only", "refilled-stage2-only")
    found = {}
    for name in (
        "ce",
        "kd",
        "srd",
        "cckd",
        "crd",
        "lwf",
        "joint-training",
        "rkd",
        "finetune",
        "teacher-ncm",
        "teacher-logreg",
        *refilled,
    ):
        method = load_method(name)
        reason = obstacle(method, cell_config(root, method, setting, Path("cell.yaml")).root)
        if reason:
            found[name] = reason
    assert found == in_the_way


def test_batches_with_several_views_of_an_image_serve_one_shot():
    root = compose(Path(__file__).parents[2] / "configs/digits/digits_fewshot_refilled.yaml")
    apply_overrides(root, ["models.teacher_model.src_ckpt=null"])
    for name in ("refilled", "refilled-joint"):
        method = load_method(name)
        config = cell_config(root, method, Setting(shots=1), Path("cell.yaml"))
        assert obstacle(method, config.root) == ""


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("ce", ""),
        ("teacher-ncm", ""),
        ("scratch", "is the same as ce: random weights"),
        ("student-ncm", "needs a student with trained weights"),
    ],
)
def test_methods_about_trained_weights_need_some(method, reason, tmp_path):
    path = write_config(tmp_path)
    assert untrained_student(load_method(method), compose(path)) == reason
    for weights in ("src_ckpt: 'teacher.pt'", "src_ckpt: null"):
        given = path.read_text("utf-8").replace("    dst_ckpt:", f"    {weights}\n    dst_ckpt:")
        (tmp_path / "trained.yaml").write_text(given, "utf-8")
        found = untrained_student(load_method(method), compose(tmp_path / "trained.yaml"))
        assert found == ("" if "teacher" in weights else reason)
