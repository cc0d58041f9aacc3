import copy
import logging

import pytest
import torch
from torch.nn import functional
from torchdistill.losses.registry import get_high_level_loss

from gkd_plugin.functional import emphasis_weights, local_classifier_distillation, relationship_matching
from tests.fakes import cross_entropy, make_box, models, stage, train_box
from tests.runner.fakes import refused

LABELS = torch.arange(12) % 3  # of 4 classes


def refilled(**kwargs):
    return get_high_level_loss({"key": "refilled", "kwargs": kwargs})


LOGITS, EMBEDDING, OWN, TEACHER, LOCAL = torch.randn(12, 29, generator=torch.Generator().manual_seed(0)).split(
    [4, 5, 9, 7, 4], dim=1
)
IO = {
    "student": {".": {"output": LOGITS}, "embedding": {"output": EMBEDDING}},
    "teacher": {".": {"output": OWN}, "embedding": {"output": TEACHER}, "local_classifier": {"output": LOCAL}},
}
CE = functional.cross_entropy(LOGITS, LABELS)
OVER_ALL_CLASSES = functional.kl_div((LOGITS / 2).log_softmax(1), (LOCAL / 2).softmax(1), reduction="batchmean")


def local(**kwargs):
    return local_classifier_distillation(LOGITS, LOCAL, LABELS, weights=emphasis_weights(OWN), **kwargs)


def match(**kwargs):
    return relationship_matching(EMBEDDING, TEACHER, LABELS, **kwargs).loss


DIVIDED = {"temperature": 2.0, "student_temperature": 3.0}
MATCH = {"temperature": 3.0, "margin": 0.5, "mining": "all", "max_negatives": 2}
HALF_CE = {"ce": cross_entropy(0.5)}
PUBLISHED = {"temperature": 4.0, "margin": 0.2, "mining": "semihard", "max_negatives": None}
MATCHED, LOCAL_TERMS = {"relationship", "tuples", "negatives"}, {"cross_entropy", "local_classifier"}


@pytest.mark.parametrize(
    ("kwargs", "terms", "want"),
    [
        ({"stage": "embedding"}, MATCHED, 1000 * match(**PUBLISHED)),
        ({"stage": "embedding", "weight": 7, **MATCH}, {"relationship"}, 7 * match(**MATCH)),
        ({"stage": "embedding", "sub_terms": HALF_CE}, {"ce"}, 1000 * match() + 0.5 * CE),
        ({"stage": "classifier"}, LOCAL_TERMS | {"emphasis"}, CE + local(temperature=1.0, student_temperature=1.0)),
        ({"stage": "classifier", "weight": 100.0, **DIVIDED}, {"emphasis"}, CE + 100 * local(**DIVIDED)),
        ({"stage": "joint"}, LOCAL_TERMS | MATCHED, CE + 12 * OVER_ALL_CLASSES + 1000 * match(**PUBLISHED)),
        (
            {"stage": "joint", "classes": "batch", "relationship_weight": 0, "weight": 2.0, "adaptive": True} | DIVIDED,
            {"emphasis"},
            CE + 2 * local(**DIVIDED),
        ),
        (
            {"stage": "joint", "relationship_temperature": 3.0, **MATCH, "temperature": 2.0, "sub_terms": HALF_CE},
            {"ce", "relationship"},
            1.5 * CE + 12 * OVER_ALL_CLASSES + 1000 * match(**MATCH),
        ),
    ],
)
def test_a_stage_is_its_weighted_sum(kwargs, terms, want):
    """The defaults are the published TPAMI setting: τ₁ 4, margin 0.2, w 1000; τ₂ 1, λ 1, ω on."""
    criterion = refilled(**kwargs)
    assert criterion(IO, {}, LABELS).item() == pytest.approx(want.item(), rel=1e-5)
    assert criterion.terms.keys() >= terms
    assert ("emphasis" in criterion.terms) == ("emphasis" in terms)


@pytest.mark.parametrize(
    ("knowledge", "full", "share"),
    [(0.5, 0.5, 1), (0.9, 0.5, 1), (0.42, 0.5, 0.84), (0.1, 0.5, 0.2), (0.0, 0.5, 0), (0.0, 0.0, 1)],
)
def test_joint_weighs_the_teacher_by_what_it_knows(caplog, knowledge, full, share):
    caplog.set_level(logging.INFO)
    criterion = {"key": "refilled", "kwargs": {"stage": "joint", "full_weight_from": full}}
    box = make_box(stage("joint", criterion=criterion), *models())
    box.teacher_model.local_classifier.keep(
        {"centres": torch.ones(4, 2), "information": torch.tensor(knowledge)}, torch.device("cpu")
    )
    want = CE + share * (12 * OVER_ALL_CLASSES + 1000 * match(**PUBLISHED))
    for epoch in range(2):
        box.pre_epoch_process(epoch=epoch)
        assert box.criterion(IO, {}, LABELS).item() == pytest.approx(want.item(), rel=1e-5)
    told = [record.levelname for record in caplog.records if f"weigh {share:.2f} times as much" in record.getMessage()]
    assert told == ([] if share == 1 else ["WARNING" if share < 0.5 else "INFO"])  # once


def test_samples_without_a_label_have_the_local_classifier_alone():
    """Of 12 samples the first 8 have a label; all 12 have the local classifier's loss."""
    labels = torch.where(torch.arange(12) < 8, LABELS, -1)
    criterion = refilled(stage="joint")
    want = functional.cross_entropy(LOGITS[:8], LABELS[:8]) + 12 * OVER_ALL_CLASSES
    want += 1000 * relationship_matching(EMBEDDING[:8], TEACHER[:8], LABELS[:8]).loss
    assert criterion(IO, {}, labels).item() == pytest.approx(want.item(), rel=1e-5)
    none = criterion(IO, {}, torch.full((12,), -1))
    assert none.item() == pytest.approx(12 * OVER_ALL_CLASSES.item(), rel=1e-5)
    present = refilled(stage="classifier", adaptive=False)
    want = local_classifier_distillation(LOGITS, LOCAL, LABELS % 2)
    present(IO, {}, torch.where(labels < 0, -1, LABELS % 2))
    assert present.terms["local_classifier"].item() == pytest.approx(want.item(), rel=1e-5)  # over classes 0 and 1


def test_cross_entropy_is_computed_in_float32():
    half, criterion = LOGITS.bfloat16(), refilled(stage="classifier")
    criterion({**IO, "student": {".": {"output": half}}}, {}, LABELS)
    assert criterion.terms["cross_entropy"] == functional.cross_entropy(half.float(), LABELS)


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
        ({"stage": "embedding", "mining": "semi-hard"}, "mining: 'semi-hard' .* did you mean 'semihard'"),
        ({"stage": "embedding", "max_negatives": "smalest"}, "^refilled_relationship: max_negatives: .* or an integer"),
        ({"stage": "embedding", "queue_size": -1}, "queue_size must be a whole number from 0 up, got -1"),
        ({"stage": "embedding", "queue_size": True}, "queue_size must be a whole number from 0 up, got True"),
        ({"stage": "classifier", "student_temperature": -1}, "student_temperature: .* above 0, got -1"),
        ({"stage": "classifier", "classes": "al"}, "classes: 'al' .* did you mean 'all'"),
        ({"stage": "classifier", "adaptive": "no"}, "adaptive: must be True or False, got 'no'"),
        ({"stage": "embedding", "weight": True}, "^weight: .* at least 0, got True"),
        ({"stage": "joint", "weight": float("inf")}, "^weight: .* finite .*, got inf"),
        ({"stage": "joint", "full_weight_from": 1.5}, "^full_weight_from: .* from 0 to 1, got 1.5"),
        ({"stage": "joint", "relationship_weight": -1}, "^relationship_weight: .* at least 0, got -1"),
    ],
)
def test_bad_settings_are_named(kwargs, message):
    refused(message, refilled, **kwargs)


def trained(train_config, teacher, student):
    """The box, and which entries of the student's state changed."""
    before = [copy.deepcopy(model.state_dict()) for model in (teacher, student)]
    box = make_box(train_config, teacher, student)
    losses = train_box(box)
    assert torch.isfinite(torch.tensor(losses)).all()
    assert all(torch.equal(value, before[0][key]) for key, value in teacher.state_dict().items())
    return box, {key for key, value in student.state_dict().items() if not torch.equal(value, before[1][key])}


@pytest.mark.parametrize(("wrapper", "kind"), [({}, "probe"), ({"local_classifier": "centres"}, "centres")])
def test_joint_stage_trains_and_asks_for_the_calibrated_classifier(wrapper, kind):
    joint = stage("joint")
    joint["teacher"]["auxiliary_model_wrapper"]["kwargs"] |= wrapper
    box, changed = trained({"stage1": joint}, *models())
    fitted = box.teacher_model.local_classifier
    assert fitted.kind == kind
    assert torch.equal(fitted.weight, fitted.centres) == (kind == "centres")
    assert {key.split(".")[0] for key in changed} >= {"conv1", "fc"}


@pytest.mark.parametrize("terms", [{}, {"ce": cross_entropy()}])
def test_stage_embedding_leaves_the_classifier_alone_unless_further_terms_train_it(terms):
    """Though weight decay is on."""
    section, (teacher, student) = stage("embedding", epochs=2), models()
    section["criterion"]["kwargs"]["sub_terms"] = terms
    _, changed = trained(section, teacher, student)
    assert changed
    assert any(key.startswith("fc.") for key in changed) == bool(terms)
    assert all(p.requires_grad == bool(terms) for p in student.get_classifier().parameters())


def test_a_stage_without_classifier_pre_epoch_process_or_optimizer_is_refused():
    """Stage 1's optimizer holds no classifier, so stage 2 would never train it."""
    none = models(num_classes=0)
    refused("stage 'classifier' trains a classifier, but ResNet has none", make_box, stage("classifier"), *none)
    without = stage("classifier")
    del without["pre_epoch_process"]
    refused("pre_epoch_process: 'refilled'", train_box, make_box(without, *models()))
    box = make_box({"stage1": stage("embedding"), "stage2": stage("classifier", optimizer=None)}, *models())
    refused("optimizer: stage 'classifier' needs its own", box.advance_to_next_stage)


def test_an_unwrapped_teacher_is_warned_about(caplog):
    bare = stage("embedding")
    del bare["teacher"]["auxiliary_model_wrapper"]
    with caplog.at_level(logging.WARNING):
        make_box(bare, *models())
    assert "not wrapped in 'refilled_teacher'" in caplog.text


def test_the_log_says_what_the_loss_is_made_of(caplog):
    section = stage("joint")
    section["criterion"]["kwargs"]["sub_terms"] = {"own": {**cross_entropy(), "weight": 0.5}}
    with caplog.at_level(logging.INFO):
        make_box(section, *models())
    assert "loss = cross_entropy + 12 · local_classifier + 1000 · relationship + 0.5 · own" in caplog.text
