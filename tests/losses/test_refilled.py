"""The criterion of each stage, on recorded tensors and in torchdistill's boxes."""

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

LABELS = torch.arange(12) % 3  # of 4 classes


def refilled(**kwargs):
    return get_high_level_loss({"key": "refilled", "kwargs": kwargs})


class Recorded:
    """What hooks recorded of a batch, and the terms from it."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        sizes = {"student": {".": 4, "embedding": 5}, "teacher": {".": 9, "embedding": 7, "local_classifier": 4}}
        self.io = {
            model: {path: {"output": torch.randn(12, width, generator=generator)} for path, width in paths.items()}
            for model, paths in sizes.items()
        }

    def __call__(self, model, path):
        return self.io[model][path]["output"]

    def ce(self):
        return functional.cross_entropy(self("student", "."), LABELS)

    def local(self, *, adaptive, **kwargs):
        weights = emphasis_weights(self("teacher", ".")) if adaptive else None
        student, local = self("student", "."), self("teacher", "local_classifier")
        return local_classifier_distillation(student, local, LABELS, weights=weights, **kwargs)

    def over_all_classes(self):
        ours, theirs = self("student", ".").log_softmax(1), self("teacher", "local_classifier").softmax(1)
        return functional.kl_div(ours, theirs, reduction="batchmean")

    def match(self, **kwargs):
        return relationship_matching(self("student", "embedding"), self("teacher", "embedding"), LABELS, **kwargs).loss


DIVIDED = {"temperature": 2.0, "student_temperature": 3.0}
MATCH = {"temperature": 3.0, "margin": 0.5, "mining": "all", "max_negatives": 2}
HALF_CE = {"ce": cross_entropy(0.5)}


@pytest.mark.parametrize(
    ("kwargs", "terms", "want"),
    [
        (
            {"stage": "embedding"},
            {"relationship", "tuples", "negatives"},
            lambda of: 1000 * of.match(temperature=4.0, margin=0.2, mining="semihard", max_negatives=None),
        ),
        ({"stage": "embedding", "weight": 7, **MATCH}, {"relationship"}, lambda of: 7 * of.match(**MATCH)),
        ({"stage": "embedding", "sub_terms": HALF_CE}, {"ce"}, lambda of: 1000 * of.match() + 0.5 * of.ce()),
        (
            {"stage": "classifier"},
            {"cross_entropy", "local_classifier", "emphasis"},
            lambda of: of.ce() + of.local(adaptive=True, temperature=1.0, student_temperature=1.0),
        ),
        (
            {"stage": "classifier", "weight": 100.0, **DIVIDED},
            {"emphasis"},
            lambda of: of.ce() + 100 * of.local(adaptive=True, **DIVIDED),
        ),
        (
            {"stage": "joint"},
            {"cross_entropy", "local_classifier", "relationship", "tuples", "negatives"},
            lambda of: of.ce() + 3 * of.over_all_classes() + 1000 * of.match(),
        ),
        (
            {"stage": "joint", "classes": "batch", "relationship_weight": 0, "weight": 2.0, "adaptive": True} | DIVIDED,
            {"emphasis"},
            lambda of: of.ce() + 2 * of.local(adaptive=True, **DIVIDED),
        ),
        (
            {"stage": "joint", "relationship_temperature": 3.0, **MATCH, "temperature": 1.0, "sub_terms": HALF_CE},
            {"ce", "relationship"},
            lambda of: 1.5 * of.ce() + 3 * of.over_all_classes() + 1000 * of.match(**MATCH),
        ),
    ],
)
def test_a_stage_is_its_weighted_sum(kwargs, terms, want):
    """The defaults are the published TPAMI setting: τ₁ 4, margin 0.2, w 1000; τ₂ 1, λ 1, ω on."""
    recorded, criterion = Recorded(), refilled(**kwargs)
    assert criterion(recorded.io, {}, LABELS).item() == pytest.approx(want(recorded).item(), rel=1e-5)
    assert criterion.terms.keys() >= terms
    assert ("emphasis" in criterion.terms) == ("emphasis" in terms)


def test_cross_entropy_is_computed_in_float32():
    recorded, criterion = Recorded(), refilled(stage="classifier")
    recorded.io["student"]["."]["output"] = recorded("student", ".").bfloat16()
    criterion(recorded.io, {}, LABELS)
    assert criterion.terms["cross_entropy"] == functional.cross_entropy(recorded("student", ".").float(), LABELS)


def test_the_log_shows_every_setting_and_weight():
    shown = str(refilled(stage="joint", margin=0.25, queue_size=8, weight=5.0, sub_terms=HALF_CE))
    assert all(part in shown for part in ("5.0 * LocalClassifier", "margin=0.25", "queue_size=8", "1000.0 *", "0.5 *"))


def test_stages_read_the_paths_that_they_are_told():
    paths = {"student_embedding": "e", "teacher_embedding": "f", "student_logits": "s", "teacher_logits": "t"}
    hooks = refilled(stage="joint", local_classifier="c", adaptive=True, **paths).hooks
    assert [path for model, path, io in hooks if model == "student"] == ["s", "s", "e"]
    assert [path for model, path, io in hooks if model == "teacher"] == ["c", "t", "f"]
    assert "t" not in [path for _, path, _ in refilled(stage="joint", **paths).hooks]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"stage": "emebdding"}, "stage: 'emebdding' .* did you mean 'embedding'"),
        ({"stage": "embedding", "temprature": 1.0}, "takes no 'temprature': did you mean 'temperature'"),
        ({"stage": "classifier", "margin": 0.1}, "stage 'classifier' takes no 'margin'"),
        ({"stage": "embedding", "temperature": 0}, "temperature: .* above 0, got 0"),
        ({"stage": "classifier", "student_temperature": -1}, "student_temperature: .* above 0, got -1"),
        ({"stage": "classifier", "classes": "al"}, "classes: 'al' .* did you mean 'all'"),
        ({"stage": "classifier", "adaptive": "no"}, "adaptive: must be True or False, got 'no'"),
        ({"stage": "embedding", "weight": True}, "^weight: .* at least 0, got True"),
        ({"stage": "joint", "weight": float("inf")}, "^weight: .* finite .*, got inf"),
        ({"stage": "joint", "relationship_weight": -1}, "^relationship_weight: .* at least 0, got -1"),
    ],
)
def test_bad_settings_are_named(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        refilled(**kwargs)


def models(name="test_resnet", classes=4, **student):
    torch.manual_seed(0)
    return timm_model("test_resnet", num_classes=7), timm_model(name, num_classes=classes, **student)


def section(kind, model=None, hooks=(), **kwargs):
    """The stage with these hooks of one model, and with keywords of the criterion."""
    made = stage(kind)
    made["criterion"]["kwargs"] |= kwargs
    if model is not None:
        made[model]["forward_hook"] = {"output": list(hooks)}
    return made


def trained(train_config, teacher, student):
    """The box, and which entries of the student's state changed."""
    before = [copy.deepcopy(model.state_dict()) for model in (teacher, student)]
    box = make_box(train_config, teacher, student)
    losses = train_box(box)
    assert torch.isfinite(torch.tensor(losses)).all()
    assert all(torch.equal(value, before[0][key]) for key, value in teacher.state_dict().items())
    return box, {key for key, value in student.state_dict().items() if not torch.equal(value, before[1][key])}


@pytest.mark.parametrize(
    ("wrapper", "kind", "shared"),
    [
        ({}, "discriminant", None),
        ({"local_classifier": "centres"}, "centres", None),
        ({"class_map": {0: 5, 2: 1}}, "discriminant", [5, -1, 1, -1]),
    ],
)
def test_joint_stage_trains_and_asks_for_the_calibrated_classifier(wrapper, kind, shared):
    joint = stage("joint")
    joint["teacher"]["auxiliary_model_wrapper"]["kwargs"] |= wrapper
    box, changed = trained({"stage1": joint}, *models())
    fitted = box.teacher_model.local_classifier
    assert fitted.kind == kind
    assert shared is None or fitted.teacher_labels.tolist() == shared
    assert torch.equal(fitted.weight, fitted.centres) == (kind == "centres")
    assert {key.split(".")[0] for key in changed} >= {"conv1", "fc"}


@pytest.mark.parametrize("student", [{"name": "test_vit", "img_size": 32}, {"name": "mobilenetv3_small_050"}])
def test_swapping_the_backbone_changes_nothing_else(student):
    _, changed = trained({"stage1": stage("embedding"), "stage2": stage("classifier")}, *models(**student))
    assert changed


def test_stage_embedding_leaves_the_classifier_alone_though_weight_decay_is_on():
    teacher, student = models()
    _, changed = trained(stage("embedding", epochs=2), teacher, student)
    assert changed
    assert not any(key.startswith("fc.") for key in changed)
    assert all(not p.requires_grad for p in student.get_classifier().parameters())


def test_further_terms_keep_the_classifier_in_training():
    _, changed = trained(section("embedding", sub_terms={"ce": cross_entropy()}), *models())
    assert any(key.startswith("fc.") for key in changed)


def test_models_that_are_not_timms_by_hook_path():
    torch.manual_seed(0)
    sections = {
        "stage1": section("embedding", "student", ["pool"], student_embedding="pool"),
        "stage2": section("classifier", "student"),
    }
    for made in sections.values():
        made["teacher"]["auxiliary_model_wrapper"]["kwargs"] = {"embedding": "pool"}
    _, changed = trained(sections, TinyNet(7, 16), TinyNet(4, 8))
    assert {key.split(".")[0] for key in changed} == {"conv", "bn", "fc"}


def test_a_student_without_a_classifier_is_refused():
    with pytest.raises(ConfigError, match="stage 'classifier' trains a classifier, but ResNet has none"):
        make_box(stage("classifier"), *models(classes=0))


def test_stage_classifier_without_its_pre_epoch_process_says_what_is_missing():
    without = stage("classifier")
    del without["pre_epoch_process"]
    with pytest.raises(ConfigError, match="pre_epoch_process: 'refilled'"):
        train_box(make_box(without, *models()))


def test_an_unwrapped_teacher_is_warned_about(caplog):
    bare = stage("embedding")
    del bare["teacher"]["auxiliary_model_wrapper"]
    with caplog.at_level(logging.WARNING):
        make_box(bare, *models())
    assert "not wrapped in 'refilled_teacher'" in caplog.text


def test_a_stage_without_its_own_optimizer_is_refused():
    """Stage 1's optimizer holds no classifier, so stage 2 would never train it."""
    box = make_box({"stage1": stage("embedding"), "stage2": stage("classifier", optimizer=None)}, *models())
    with pytest.raises(ConfigError, match="optimizer: stage 'classifier' needs its own"):
        box.advance_to_next_stage()
