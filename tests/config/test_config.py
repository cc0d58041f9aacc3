"""From a file to a valid config, and to the objects in it."""

import time
from pathlib import Path

import pytest
from torchdistill.common.yaml_util import load_yaml_file

from gkd_plugin.config.config import checked_config, load_config
from gkd_plugin.errors import ConfigError
from tests.config.mutations import mutations
from tests.config.samples import PLAIN_TRAINING, STAGES, write
from tests.runner.fakes import refused


def test_loads_without_building(tmp_path):
    path = write(tmp_path, STAGES.replace("builtins.dict, init: ", "builtins.list, init: {args: [3]}"))
    config = load_config(path)
    assert config.path == path
    refused(r"^datasets\.d/train \(line \d+\): TypeError: 'int' object is not iterable", config.build)


def test_builds_what_torchdistill_would(tmp_path):
    config = load_config(write(tmp_path, PLAIN_TRAINING), ["train.num_epochs=7", "device.default=cpu"])
    built = config.build()
    assert built["datasets"] == {"d/train": {"a": 1}}
    assert built["train"]["num_epochs"] == 7
    assert built["device"] == {"default": "cpu"}
    assert built == load_yaml_file(str(write(tmp_path, config.text, "resolved.yaml")))


def test_resolved_text_is_a_config_again(tmp_path):
    first = load_config(write(tmp_path, STAGES), ["train.stage1.teacher.wrapper=", "train.stage1.num_epochs=2"])
    assert load_config(write(tmp_path, first.text, "resolved.yaml")).tree == first.tree
    [notice] = first.notices
    assert notice.startswith("train.stage1.teacher.wrapper: 3 other paths (train.stage1.student.wrapper, train.stage2.")
    assert first.tree["train"]["stage2"]["teacher"]["wrapper"] == "DataParallel"


def test_one_problem_is_one_line_and_several_are_listed_in_the_order_of_the_table(tmp_path):
    path = write(tmp_path, PLAIN_TRAINING)
    refused(r"x\.yaml: train\.num_epochs: 0 given", load_config, path, ["train.num_epochs=0"])
    changes = ["device.default=gpu", "train.optimizer.key=SDG", "train.num_epochs=0", "train.log_freq=0", "trian=1"]
    with pytest.raises(ConfigError, match=r"x\.yaml: 5 problems\n  ") as caught:
        load_config(path, changes)
    told = [line.partition(":")[0].strip() for line in str(caught.value).splitlines()[1:]]
    assert told == ["trian", "train.log_freq", "train.num_epochs", "train.optimizer.key", "device.default"]


def test_a_mistake_is_told_or_harmless_and_never_takes_long(monkeypatch):
    monkeypatch.setattr("gkd_plugin.config.schema.unknown_keyword", lambda *_: None)  # it makes a model each time
    told = 0
    for mistake, tree in mutations(150):
        start = time.process_time()
        try:
            checked_config(Path("x.yaml"), tree, produced=None)
        except ConfigError as error:
            told += str(error).startswith("x.yaml: ")
        except Exception as error:
            raise AssertionError(mistake) from error
        assert time.process_time() - start < 5, mistake
    assert told > 75
