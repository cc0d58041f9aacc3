"""The criterion of each stage, in torchdistill's boxes."""

import copy
import logging

import pytest
import torch
from torch.nn import functional
from torchdistill.losses.registry import get_high_level_loss

from gkd_plugin import ConfigError
from gkd_plugin.functional import emphasis_weights, local_classifier_distillation, relationship_matching
from gkd_plugin.models import timm_model
from tests.fakes import TinyNet, cross_entropy, make_box, stage, train_box


def models(name="test_resnet", classes=4, teacher_classes=7):
    torch.manual_seed(0)
    teacher = timm_model("test_resnet", num_classes=teacher_classes)
    return teacher, timm_model(name, num_classes=classes, **({"img_size": 32} if "vit" in name else {}))


def snapshot(module):
    return copy.deepcopy(module.state_dict())


def changed(module, before):
    return {key for key, value in module.state_dict().items() if not torch.equal(value, before[key])}


def io(**tensors):
    return {path: {"output": value} for path, value in tensors.items()}


def test_embedding_stage_is_w_times_relationship_matching():
    torch.manual_seed(0)
    student, teacher, labels = torch.randn(12, 5), torch.randn(12, 9), torch.arange(12) % 3
    criterion = get_high_level_loss({"key": "refilled", "kwargs": {"stage": "embedding"}})
    loss = criterion({"student": io(embedding=student), "teacher": io(embedding=teacher)}, {}, labels)
    match = relationship_matching(student, teacher, labels, temperature=4.0, margin=0.2)
    assert loss.item() == pytest.approx(1000 * match.loss.item())
    assert criterion.terms["relationship"] == match.loss
    assert criterion.terms["tuples"] == match.tuples
    assert "1000.0" in str(criterion)


def test_classifier_stage_is_cross_entropy_plus_lambda_times_local_classifier():
    torch.manual_seed(0)
    student, local, own, labels = torch.randn(12, 4), torch.randn(12, 4), torch.randn(12, 9), torch.arange(12) % 3
    criterion = get_high_level_loss(
        {
            "key": "refilled",
            "kwargs": {"stage": "classifier", "temperature": 2.0, "student_temperature": 2.0, "weight": 100.0},
        }
    )
    io_dict = {"student": {".": {"output": student}}, "teacher": {".": {"output": own}, **io(local_classifier=local)}}
    want = functional.cross_entropy(student, labels) + 100 * local_classifier_distillation(
        student, local, labels, temperature=2.0, student_temperature=2.0, weights=emphasis_weights(own)
    )
    assert criterion(io_dict, {}, labels).item() == pytest.approx(want.item())
    assert set(criterion.terms) == {"cross_entropy", "local_classifier", "emphasis"}


def joint_io():
    torch.manual_seed(0)
    student, local, own = torch.randn(12, 4), torch.randn(12, 4), torch.randn(12, 9)
    student_embedding, teacher_embedding = torch.randn(12, 5), torch.randn(12, 7)
    return {
        "student": {".": {"output": student}, **io(embedding=student_embedding)},
        "teacher": {".": {"output": own}, **io(embedding=teacher_embedding, local_classifier=local)},
    }, torch.arange(12) % 3


def test_joint_stage_is_the_sum_of_all_three_terms():
    io_dict, labels = joint_io()
    criterion = get_high_level_loss({"key": "refilled", "kwargs": {"stage": "joint"}})
    student = io_dict["student"]["."]["output"]
    local = io_dict["teacher"]["local_classifier"]["output"]
    match = relationship_matching(
        io_dict["student"]["embedding"]["output"], io_dict["teacher"]["embedding"]["output"], labels
    )
    over_all = functional.kl_div(student.log_softmax(1), local.softmax(1), reduction="batchmean")  # class 3 too
    want = functional.cross_entropy(student, labels) + 3 * over_all + 1000 * match.loss
    assert criterion(io_dict, {}, labels).item() == pytest.approx(want.item(), rel=1e-5)
    assert set(criterion.terms) == {"cross_entropy", "local_classifier", "relationship", "tuples", "negatives"}
    assert "1000.0" in str(criterion)
    assert "3.0" in str(criterion)


def test_joint_stage_over_the_classes_of_the_batch():
    io_dict, labels = joint_io()
    kwargs = {"stage": "joint", "classes": "batch", "relationship_weight": 0, "weight": 2.0, "adaptive": True}
    criterion = get_high_level_loss({"key": "refilled", "kwargs": kwargs})
    student, own = io_dict["student"]["."]["output"], io_dict["teacher"]["."]["output"]
    local = local_classifier_distillation(
        student, io_dict["teacher"]["local_classifier"]["output"], labels, weights=emphasis_weights(own)
    )
    want = functional.cross_entropy(student, labels) + 2 * local
    assert criterion(io_dict, {}, labels).item() == pytest.approx(want.item(), rel=1e-5)


def joint_stage(**wrapper):
    section = stage("joint")
    section["teacher"]["auxiliary_model_wrapper"]["kwargs"] |= wrapper
    return {"stage1": section}


@pytest.mark.parametrize(("wrapper", "kind"), [({}, "discriminant"), ({"local_classifier": "centres"}, "centres")])
def test_joint_stage_trains_and_asks_for_the_calibrated_classifier(wrapper, kind):
    teacher, student = models()
    before = snapshot(student)
    box = make_box(joint_stage(**wrapper), teacher, student)
    assert box.teacher_model.local_classifier.kind == kind
    train_box(box)
    fitted = box.teacher_model.local_classifier
    assert torch.equal(fitted.weight, fitted.centres) == (kind == "centres")
    assert {key.split(".")[0] for key in changed(student, before)} >= {"conv1", "fc"}


def test_joint_stage_uses_the_shared_classes_that_the_wrapper_names():
    box = make_box(joint_stage(class_map={0: 5, 2: 1}), *models())
    train_box(box)
    assert box.teacher_model.local_classifier.teacher_labels.tolist() == [5, -1, 1, -1]


def test_joint_stage_needs_all_its_hooks():
    section = joint_stage()
    section["stage1"]["student"]["forward_hook"] = {"output": []}
    with pytest.raises(ConfigError, match=r"student\.forward_hook\.output: stage 'joint' reads 'embedding'"):
        make_box(section, *models())


def test_adaptive_off_reads_no_teacher_logits():
    criterion = get_high_level_loss({"key": "refilled", "kwargs": {"stage": "classifier", "adaptive": False}})
    io_dict = {"student": {".": {"output": torch.randn(4, 2)}}, "teacher": io(local_classifier=torch.randn(4, 2))}
    criterion(io_dict, {}, torch.tensor([0, 1, 0, 1]))
    assert "emphasis" not in criterion.terms


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"stage": "emebdding"}, "there is no stage 'emebdding'; did you mean 'embedding'"),
        ({"stage": "embedding", "temprature": 1.0}, "takes no 'temprature': did you mean 'temperature'"),
        ({"stage": "classifier", "margin": 0.1}, "stage 'classifier' takes no 'margin'"),
        ({"stage": "embedding", "temperature": 0}, "temperature: must be a finite number above 0, got 0"),
        (
            {"stage": "classifier", "student_temperature": -1},
            "student_temperature: must be a finite number above 0, got -1",
        ),
        ({"stage": "embedding", "margin": -1}, "margin: must be a number, at least 0, got -1"),
        ({"stage": "classifier", "classes": "al"}, "classes: 'al' given; did you mean 'all'"),
        ({"stage": "joint", "relationship_weight": -1}, "relationship_weight: must be a finite number, at least 0, "),
        ({"stage": "embedding", "max_negatives": "smalest"}, "max_negatives: must be None, 'smallest' or an integer"),
        ({"stage": "embedding", "weight": "x"}, "weight: must be a finite number, at least 0, got 'x'"),
        ({"stage": "classifier", "weight": -1}, "weight: must be a finite number, at least 0, got -1"),
        ({"stage": "joint", "weight": float("inf")}, "weight: must be a finite number, at least 0, got inf"),
        ({"stage": "classifier", "temperature": "hot"}, "temperature: must be a finite number above 0, got 'hot'"),
        ({"stage": "classifier", "adaptive": "no"}, "adaptive: must be True or False, got 'no'"),
    ],
)
def test_bad_settings_are_named(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        get_high_level_loss({"key": "refilled", "kwargs": kwargs})


def test_extra_sub_terms_are_added():
    kwargs = {"stage": "embedding", "sub_terms": {"ce": cross_entropy(0.5)}}
    criterion = get_high_level_loss({"key": "refilled", "kwargs": kwargs})
    logits, labels = torch.randn(6, 3), torch.tensor([0, 0, 1, 1, 2, 2])
    io_dict = {
        "student": {".": {"output": logits}, **io(embedding=torch.randn(6, 3))},
        "teacher": io(embedding=torch.randn(6, 5)),
    }
    plain = (
        1000
        * relationship_matching(
            io_dict["student"]["embedding"]["output"], io_dict["teacher"]["embedding"]["output"], labels
        ).loss
    )
    want = plain + 0.5 * functional.cross_entropy(logits, labels)
    assert criterion(io_dict, {}, labels).item() == pytest.approx(want.item(), rel=1e-5)
    assert "ce" in criterion.terms


@pytest.mark.parametrize("student_name", ["test_resnet", "test_vit", "mobilenetv3_small_050"])
def test_swapping_the_backbone_changes_nothing_else(student_name):
    """Both stages from one configuration; only the model differs. Teacher bit-identical, student trained."""
    teacher, student = models(student_name)
    before, teacher_before = snapshot(student), snapshot(teacher)
    box = make_box({"stage1": stage("embedding"), "stage2": stage("classifier")}, teacher, student)
    losses = train_box(box)
    assert all(torch.isfinite(torch.tensor(losses)))
    assert changed(student, before)
    assert not changed(teacher, teacher_before)


def test_stage_embedding_leaves_the_classifier_alone_though_weight_decay_is_on():
    teacher, student = models()
    before = snapshot(student)
    box = make_box(stage("embedding", epochs=2), teacher, student)
    train_box(box)
    moved = changed(student, before)
    assert moved
    assert not any(key.startswith("fc.") for key in moved)
    assert all(not p.requires_grad for p in student.get_classifier().parameters())


def test_further_terms_keep_the_classifier_in_training():
    teacher, student = models()
    criterion = {"key": "refilled", "kwargs": {"stage": "embedding", "sub_terms": {"ce": cross_entropy()}}}
    before = snapshot(student)
    train_box(make_box(stage("embedding", criterion=criterion), teacher, student))
    assert any(key.startswith("fc.") for key in changed(student, before))


def test_models_that_are_not_timms_by_hook_path():
    torch.manual_seed(0)
    teacher, student = TinyNet(7, 16), TinyNet(4, 8)
    wrapper = {"key": "refilled_teacher", "kwargs": {"embedding": "pool"}}
    first = stage(
        "embedding", criterion={"key": "refilled", "kwargs": {"stage": "embedding", "student_embedding": "pool"}}
    )
    first["student"]["forward_hook"] = {"output": ["pool"]}
    second = stage("classifier")
    second["student"].pop("forward_hook")
    for section in (first, second):
        section["teacher"]["auxiliary_model_wrapper"] = wrapper
    before = snapshot(student)
    train_box(make_box({"stage1": first, "stage2": second}, teacher, student))
    assert {key.split(".")[0] for key in changed(student, before)} == {"conv", "bn", "fc"}


@pytest.mark.parametrize(
    ("model", "hooks", "message"),
    [
        ("student", ["embeding"], "student.forward_hook.output: stage 'embedding' reads 'embedding', which is not"),
        ("student", [], "which is not listed"),
        ("teacher", ["local_classifier"], "teacher.forward_hook.output: stage 'embedding' reads 'embedding'"),
    ],
)
def test_missing_hooks_are_named_before_training(model, hooks, message):
    section = stage("embedding")
    section[model]["forward_hook"] = {"output": [hook for hook in hooks if hook != "embeding"]}
    with pytest.raises(ConfigError, match=message):
        make_box(section, *models())


def test_a_module_path_that_does_not_exist_is_named():
    criterion = {"key": "refilled", "kwargs": {"stage": "embedding", "student_embedding": "layer9"}}
    with pytest.raises(ConfigError, match="ResNet has no module 'layer9'; did you mean 'layer"):
        make_box(stage("embedding", criterion=criterion), *models())


def test_stage_classifier_without_its_pre_epoch_process_says_what_is_missing():
    section = stage("classifier")
    del section["pre_epoch_process"]
    box = make_box(section, *models())
    with pytest.raises(ConfigError, match="pre_epoch_process: 'refilled'"):
        train_box(box)


def test_an_unwrapped_teacher_is_warned_about(caplog):
    section = stage("embedding")
    del section["teacher"]["auxiliary_model_wrapper"]
    with caplog.at_level(logging.WARNING):
        make_box(section, *models())
    assert "not wrapped in 'refilled_teacher'" in caplog.text


def test_the_published_tpami_setting_is_the_default():
    """τ₁ 4, margin 0.2, w 1000; τ₂ 1, student logits undivided, λ 1, ω on."""
    torch.manual_seed(0)
    student, local, own, labels = torch.randn(12, 4), torch.randn(12, 4), torch.randn(12, 9), torch.arange(12) % 3
    io_dict = {"student": {".": {"output": student}}, "teacher": {".": {"output": own}, **io(local_classifier=local)}}
    criterion = get_high_level_loss({"key": "refilled", "kwargs": {"stage": "classifier"}})
    want = functional.cross_entropy(student, labels) + local_classifier_distillation(
        student, local, labels, temperature=1.0, student_temperature=1.0, weights=emphasis_weights(own)
    )
    assert criterion(io_dict, {}, labels).item() == pytest.approx(want.item())
    first = get_high_level_loss({"key": "refilled", "kwargs": {"stage": "embedding"}})
    settings = (first.weight, first.loss.temperature, first.loss.margin, first.loss.mining, first.loss.max_negatives)
    assert (*settings, first.loss.queue) == (1000.0, 4.0, 0.2, "semihard", None, None)


def test_a_stage_without_its_own_optimizer_is_refused():
    """Stage 1's optimizer holds no classifier, so stage 2 would never train it."""
    second = stage("classifier")
    del second["optimizer"]
    box = make_box({"stage1": stage("embedding"), "stage2": second}, *models())
    with pytest.raises(ConfigError, match="optimizer: stage 'classifier' needs its own"):
        box.advance_to_next_stage()
