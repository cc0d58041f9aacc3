"""From a file to a valid config, and to the objects in it."""

from __future__ import annotations

import pytest
from torchdistill.common.yaml_util import load_yaml_file

from gkd_plugin.config.config import load_config
from gkd_plugin.errors import ConfigError
from tests.config.samples import PLAIN_TRAINING, STAGES


def write(folder, text, name="pets.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_loads_without_building(tmp_path):
    path = write(tmp_path, STAGES.replace("builtins.dict, init: ", "builtins.list, init: {args: [3]}"))
    config = load_config(path)
    assert config.path == path
    assert config.stem == "pets"
    with pytest.raises(ConfigError, match=r"^datasets\.d/train \(line \d+\): TypeError: 'int' object is not iterable"):
        config.build()


def test_builds_what_torchdistill_would(tmp_path):
    config = load_config(write(tmp_path, PLAIN_TRAINING), ["train.num_epochs=7", "device.default=cpu"])
    built = config.build()
    assert built["datasets"] == {"d/train": {"a": 1}}
    assert built["train"]["num_epochs"] == 7
    assert built["device"] == {"default": "cpu"}
    assert built == load_yaml_file(str(write(tmp_path, config.text, "resolved.yaml")))


def test_resolved_text_is_a_config_again(tmp_path):
    first = load_config(write(tmp_path, STAGES), ["train.stage1.teacher.wrapper=", "train.stage1.num_epochs=2"])
    again = load_config(write(tmp_path, first.text, "resolved.yaml"))
    assert again.tree == first.tree
    assert first.notices == (
        (
            "train.stage1.teacher.wrapper: 3 other paths (train.stage1.student.wrapper, train.stage2.teacher.wrapper, "
            "train.stage2.student.wrapper) keep the earlier value"
        ),
    )
    assert first.tree["train"]["stage2"]["teacher"]["wrapper"] == "DataParallel"


def test_notices_where_an_object_is_shared(tmp_path):
    text = PLAIN_TRAINING.replace("d/train: !import_call", "d/train: &train !import_call").replace(
        "models:", "  d/again: *train\nmodels:", 1
    )
    config = load_config(write(tmp_path, text), ["datasets.d/train.init.kwargs.a=2"])
    assert len(config.notices) == 1
    assert "also changes 1 other path (datasets.d/again.init.kwargs.a)" in config.notices[0]
    built = config.build()["datasets"]
    assert built["d/again"] is built["d/train"]
    assert built["d/train"] == {"a": 2}


def test_one_problem_is_one_line_and_several_are_listed(tmp_path):
    path = write(tmp_path, PLAIN_TRAINING)
    with pytest.raises(ConfigError, match=r"pets\.yaml: train\.num_epochs: 0 given") as caught:
        load_config(path, ["train.num_epochs=0"])
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"pets\.yaml: 2 problems\n  train\.log_freq: .*\n  train\.num_epochs: 0 "):
        load_config(path, ["train.num_epochs=0", "train.log_freq=0"])


def test_checkpoints(tmp_path):
    path = write(tmp_path, PLAIN_TRAINING)
    override = [f"models.model.src_ckpt={tmp_path}/teacher.pt"]
    with pytest.raises(ConfigError, match="no such file"):
        load_config(path, override)
    assert load_config(path, override, produced=[f"{tmp_path}/teacher.pt"]).tree["models"]["model"]["src_ckpt"]
    assert load_config(path, override, needs_checkpoints=False).tree["models"]["model"]["src_ckpt"]


def test_unusable_files_and_overrides(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="did you mean 'train'"):
        load_config(write(tmp_path, PLAIN_TRAINING), ["trian.num_epochs=1"])
