"""Every key of the vocabulary is registered; a key that is taken is refused."""

import subprocess
import sys

import pytest
from torchdistill.core.interfaces.registry import PRE_EPOCH_PROC_FUNC_DICT
from torchdistill.datasets.registry import BATCH_SAMPLER_DICT
from torchdistill.losses.registry import HIGH_LEVEL_LOSS_DICT, MIDDLE_LEVEL_LOSS_DICT
from torchdistill.models.registry import AUXILIARY_MODEL_WRAPPER_DICT, MODEL_DICT, register_model

from gkd_plugin import ConfigError
from gkd_plugin.box.registry import RegistrationError, register


@pytest.mark.parametrize(
    ("registry", "key"),
    [
        (MODEL_DICT, "timm_model"),
        (AUXILIARY_MODEL_WRAPPER_DICT, "refilled_teacher"),
        (HIGH_LEVEL_LOSS_DICT, "refilled"),
        (MIDDLE_LEVEL_LOSS_DICT, "refilled_relationship"),
        (MIDDLE_LEVEL_LOSS_DICT, "refilled_local_classifier"),
        (PRE_EPOCH_PROC_FUNC_DICT, "refilled"),
        (BATCH_SAMPLER_DICT, "ClassBalancedBatchSampler"),
    ],
)
def test_the_vocabulary_is_registered(registry, key):
    assert registry[key].__module__.startswith("gkd_plugin")


def test_a_key_that_is_held_is_refused_and_both_are_named():
    def intruder():
        pass

    with pytest.raises(RegistrationError, match=r"'timm_model' is already held by gkd_plugin.*timm_model; .*intruder"):
        register(MODEL_DICT, register_model, "timm_model")(intruder)
    assert MODEL_DICT["timm_model"] is not intruder
    assert issubclass(RegistrationError, ConfigError)


def test_registering_the_same_object_again_is_harmless():
    held = MODEL_DICT["timm_model"]
    assert register(MODEL_DICT, register_model, "timm_model")(held) is held


def test_a_foreign_holder_stops_the_import():
    code = (
        "from torchdistill.models.registry import register_model\n"
        "@register_model(key='timm_model')\n"
        "def somebody_elses(): pass\n"
        "import gkd_plugin"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "'timm_model' is already held by __main__.somebody_elses" in result.stderr


def test_the_functional_core_needs_neither_torchdistill_nor_timm():
    code = (
        "import sys, warnings\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torchdistill', 'timm', 'accelerate', 'torchvision'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import importlib.util\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name in ('torchdistill', 'timm') else found(name)\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    import torch\n"
        "    from gkd_plugin.functional import relationship_matching\n"
        "assert any('torchdistill and timm not installed' in str(w.message) for w in seen)\n"
        "print(relationship_matching(torch.eye(4), torch.eye(4), torch.tensor([0, 0, 1, 1])).loss.item())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "0.0", result.stderr
