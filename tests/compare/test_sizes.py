import pytest
import torch
from torchdistill.core.forward_hook import ForwardHookManager
from torchdistill.models.classification.wide_resnet import wide_resnet

from gkd_plugin.compare.sizes import Measured, filled
from gkd_plugin.config.stages import Stage
from gkd_plugin.models import timm_model
from tests.config.samples import parse
from tests.fakes import TinyImages
from tests.runner.fakes import refused

VIT = "{key: 'timm_model', kwargs: {model_name: 'test_vit'}}"
WIDE_KWARGS = "depth: 10, k: 2, dropout_p: 0.0, num_classes: 4, pretrained: False, progress: False"
WIDE = f"{{key: 'wide_resnet', kwargs: {{{WIDE_KWARGS}}}}}"
VIT_B = "{key: 'vit_b_16', kwargs: {num_classes: 4, weights: null}}"
HEADS = {"teacher": VIT_B, "embedding": "heads", "embedding_io": "input"}
TINY = "{key: 'tests.compare.test_sizes.Named', init: {kwargs: {classes: 4, per_class: 6}}}"


class Named(TinyImages):
    """With class names and, where asked for, more samples of the first classes."""

    def __init__(self, more=(), **kwargs):
        super().__init__(**kwargs)
        self.classes = sorted(set(self.targets))
        self.targets += [label for label, count in enumerate(more) for _ in range(count)]


def of(student=VIT, teacher=None, data=TINY, path="embedding", **kwargs):
    text = f"""
datasets: {{train: !import_call {data}, broken: !import_call {{key: 'no.such_thing'}}}}
models:
  teacher_model: {teacher or student}
  student_model: {student}
"""
    wrapper = {"key": "refilled_teacher", "kwargs": kwargs}
    stage = {"train_data_loader": {"dataset_id": "train"}, "teacher": {"auxiliary_model_wrapper": wrapper}}
    return Measured(parse(text, "test"), Stage("train", "train", stage), path)


def seen(model, path, size=32):
    hook = ForwardHookManager("cpu")
    hook.add_hook(model, path)
    model.eval()(torch.zeros(2, 3, size, size))
    return hook.pop_io_dict()[path]["output"].flatten(1).shape[1]


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "mobilenetv3_small_050"])
def test_widths_of_timms_models(name):
    """A fixed input size, weights to be fetched and a checkpoint that is not there are in no one's way."""
    model = timm_model(name, num_classes=4)
    entry = f"{{key: 'timm_model', kwargs: {{model_name: '{name}', pretrained: True}}, src_ckpt: 'nowhere.pt'}}"
    assert filled("{student_width}", of(entry)) == seen(model, "embedding", model.pretrained_cfg["input_size"][1])
    assert filled("{teacher_width}", of(teacher=entry)) == model.head_hidden_size


def test_widths_of_other_models():
    """'avgpool' is [B, D, 1, 1] in torchdistill's wide ResNet; its classifier's input is [B, D]."""
    model = wide_resnet(10, 2, 0.0, num_classes=4, pretrained=False, progress=False)
    assert filled("{student_width}", of(WIDE, path="avgpool")) == seen(model, "avgpool") == 128
    for place, io, width in (("avgpool", "output", 128), ("fc", "output", 4), ("fc", "input", 128)):
        assert filled("{teacher_width}", of(teacher=WIDE, embedding=place, embedding_io=io)) == width
    assert filled("{teacher_width}", of(**HEADS, input_size=224)) == 768  # images of its own size


@pytest.mark.parametrize(
    ("more", "expected"), [([], [24, 18, 16]), ([99], [123, 18, 512]), ([20000, 20000], [40024, 16384, 8192])]
)
def test_samples_negatives_and_the_queue(more, expected):
    """Every sample has as many negatives, those of the largest class too; at most as many as were published."""
    measured = of(data=TINY.replace("classes: 4", f"more: {more}, classes: 4"))
    assert filled(["{num_samples}", "{num_negatives}", "{queue_size}"], measured) == expected


ONE_CLASS = TINY.replace("classes: 4", "classes: 1")
WITHOUT_NAMES = TINY.replace("compare.test_sizes.Named", "fakes.TinyImages")


@pytest.mark.parametrize(
    ("placeholder", "measured", "message"),
    [
        ("{num_negatives}", of(data=ONE_CLASS), "all 6 training samples are of one class; CRD needs negatives"),
        ("{num_negatives}", of(data=WITHOUT_NAMES), r"the training set \(TinyImages\) has no classes"),
        ("{num_negatives}", of(data=TINY.replace("Named", "Nemed")), r"^datasets\.train \(line 2\): .*Nemed"),
        ("{student_width}", of(WIDE, path="avgpol"), r"^models\.student_model: embedding: .* 'avgpol'; did you mean"),
        ("{student_width}", of(WIDE, path="conv1"), r"^models\.student_model: the student's 'conv1'/output has shape"),
        ("{teacher_width}", of(**HEADS), r"^models\.teacher_model: the width of 'heads' cannot be measured: Wrong im"),
    ],
)
def test_what_cannot_be_measured(placeholder, measured, message):
    refused(message, filled, placeholder, measured)


def test_what_holds_placeholders_is_filled_in():
    given = {"a": ["{student_embedding}.fc", "{num_samples}", 0.5], "b": None}
    assert filled(given, of(path="head")) == {"a": ["head.fc", 24, 0.5], "b": None}
