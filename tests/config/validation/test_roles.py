"""Teacher, student or model of a stage."""

from __future__ import annotations

import pytest
from torchdistill.models.registry import AUXILIARY_MODEL_WRAPPER_DICT

from tests.config.validation.samples import MODULE, PLAIN_TRAINING, STAGES, found


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (f"{MODULE}.forward_hooks={{}}", f"{MODULE}.forward_hooks: unknown key; did you mean 'forward_hook'"),
        (f"{MODULE}.forward_hook.outputs=[]", f"{MODULE}.forward_hook.outputs: unknown key; did you mean 'output'"),
        (f"{MODULE}.requires_grad=1", f"{MODULE}.requires_grad: 1 given; must be true or false"),
        (f"{MODULE}.forward_hook.output=embedding", f"{MODULE}.forward_hook.output: 'embedding' given; must be a list"),
        (f"{MODULE}.forward_hook.input=", f"{MODULE}.forward_hook.input: nothing given; must be a list"),
        (f"{MODULE}.forward_hook.input=[1]", f"{MODULE}.forward_hook.input: [1] given"),
        (f"{MODULE}.frozen_modules=", f"{MODULE}.frozen_modules: nothing given; must be a list"),
        (f"{MODULE}.adaptations=[1]", f"{MODULE}.adaptations: [1] given"),
        (f"{MODULE}.sequential=[+x]", f"{MODULE}.sequential: '+x' is not in adaptations"),
        (f"{MODULE}.wrapper=DDP", f"{MODULE}.wrapper: 'DDP' given; allowed: 'DataParallel'"),
        (f"{MODULE}.wrapper={{key: DataParalel}}", "did you mean 'DataParallel'"),
        (f"{MODULE}.forward_proc=forward_batch", "is not registered; did you mean 'forward_batch_only'"),
        (f"{MODULE}.auxiliary_model_wrapper={{key: EmptyModul}}", "did you mean 'EmptyModule'"),
        (f"{MODULE}.auxiliary_model_wrapper=", "auxiliary_model_wrapper: nothing given; must be a section"),
        (f"{MODULE}.adaptations={{x: {{key: Conv2, kwargs: {{}}}}}}", "adaptations.x.key: 'Conv2' is not registered"),
    ],
)
def test_rules(change, line):
    lines = found(PLAIN_TRAINING, change)
    assert any(line in given for given in lines), lines


@pytest.mark.parametrize(
    ("path", "line"),
    [("train.model.forward_proc", "train.model.forward_proc: missing; write forward_proc: 'forward_batch_only'")],
)
def test_required_parts(path, line):
    lines = found(PLAIN_TRAINING, drop=[path])
    assert any(given.startswith(line) for given in lines), lines


@pytest.mark.parametrize("change", ["train.model.wrapper={key: DistributedDataParallel, kwargs: {}}"])
def test_also_valid(change):
    assert found(PLAIN_TRAINING, change) == []


def test_auxiliary_wrapper_gets_torchdistills_arguments(monkeypatch):
    class Dummy:
        def __init__(self, teacher_model, device, device_ids, distributed, width, depth=1):
            pass

    monkeypatch.setitem(AUXILIARY_MODEL_WRAPPER_DICT, "dummy", Dummy)
    change = "train.stage1.teacher={forward_proc: forward_batch_only, auxiliary_model_wrapper: {key: dummy, kwargs: "
    assert found(STAGES, change + "{width: 1}}}") == []
    assert found(STAGES, change + "{witdh: 1, device: cpu}}}") == [
        (
            "train.stage1.teacher.auxiliary_model_wrapper.kwargs.witdh: unknown argument; did you mean 'width'? "
            "(allowed: 'depth', 'width')"
        ),
        (
            "train.stage1.teacher.auxiliary_model_wrapper.kwargs.device: given already, by torchdistill or by "
            "position; remove it"
        ),
        "train.stage1.teacher.auxiliary_model_wrapper.kwargs: argument 'width' is missing",
    ]
