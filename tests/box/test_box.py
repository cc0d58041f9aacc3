"""Every key of the vocabulary is registered; a key that is taken is refused."""

import subprocess
import sys

import pytest
from torchdistill.core.interfaces.registry import PRE_EPOCH_PROC_FUNC_DICT
from torchdistill.datasets.registry import BATCH_SAMPLER_DICT
from torchdistill.losses.registry import HIGH_LEVEL_LOSS_DICT, MIDDLE_LEVEL_LOSS_DICT
from torchdistill.models.registry import AUXILIARY_MODEL_WRAPPER_DICT, MODEL_DICT, register_model

from gkd_plugin import ConfigError
from gkd_plugin.box import register


@pytest.mark.parametrize(
    ("registry", "keys"),
    [
        (MODEL_DICT, ["timm_model"]),
        (AUXILIARY_MODEL_WRAPPER_DICT, ["refilled_teacher", "projected_student"]),
        (HIGH_LEVEL_LOSS_DICT, ["refilled"]),
        (MIDDLE_LEVEL_LOSS_DICT, ["refilled_relationship", "refilled_local_classifier", "old_class_distillation"]),
        (PRE_EPOCH_PROC_FUNC_DICT, ["refilled"]),
        (BATCH_SAMPLER_DICT, ["ClassBalancedBatchSampler"]),
    ],
)
def test_the_vocabulary_is_registered(registry, keys):
    assert all(registry[key].__module__.startswith("gkd_plugin") for key in keys)


def test_a_key_that_is_held_is_refused_and_both_are_named():
    def intruder():
        pass

    held = MODEL_DICT["timm_model"]
    with pytest.raises(ConfigError, match=r"'timm_model' is already held by gkd_plugin.*timm_model; .*intruder"):
        register(MODEL_DICT, register_model, "timm_model")(intruder)
    assert MODEL_DICT["timm_model"] is held
    assert register(MODEL_DICT, register_model, "timm_model")(held) is held  # the same object again


def run(*lines):
    return subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)


def test_a_foreign_holder_stops_the_import():
    foreign = "@register_model(key='timm_model')", "def somebody_elses(): pass"
    result = run("from torchdistill.models.registry import register_model", *foreign, "import gkd_plugin")
    assert result.returncode != 0
    assert "'timm_model' is already held by __main__.somebody_elses" in result.stderr


def test_the_functional_core_needs_neither_torchdistill_nor_timm():
    result = run(
        "import sys, torch",
        "sys.modules.update(dict.fromkeys(['torchdistill', 'timm', 'accelerate', 'torchvision']))",
        "from gkd_plugin.functional import relationship_matching",
        "print(relationship_matching(torch.eye(4), torch.eye(4), torch.tensor([0, 0, 1, 1])).loss.item())",
    )
    assert result.stdout.strip() == "0.0", result.stderr
    assert "torchdistill and timm not installed" in result.stderr
