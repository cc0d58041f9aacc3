import copy
from pathlib import Path

import pytest
import torch

from gkd_plugin.compare.cell import base_stages, cell_config, fitted_scheduler
from gkd_plugin.compare.method import load_method
from gkd_plugin.compare.setting import Setting, cannot_be_made, with_memory
from gkd_plugin.config.tree import read
from gkd_plugin.models import timm_model
from tests.compare.fakes import INCREMENTAL
from tests.runner.fakes import refused

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = [
    path
    for path in sorted(CONFIGS.glob("*/*.yaml"))
    if all(f"stage: '{kind}'" in path.read_text("utf-8") for kind in ("embedding", "classifier"))
]
TINY = {"model_name": "test_byobnet", "num_classes": 4}
WEIGHTS = {"src_ckpt": "teacher.pt", "src_ckpt_classifier": "new"}


def in_stages(change):
    """An override for both stages."""
    return [f"train.stage{number}.{change}" for number in (1, 2)]


def made(tree, method, overlap=None, memory=None):
    return cell_config(tree, load_method(method), Setting(overlap, memory=memory), Path("cell.yaml")).tree


def test_both_stages_are_found_by_what_they_do(written):
    tree = written()
    tree["train"] = dict(zip(("stage9", "stage1"), tree["train"].values(), strict=True))
    stages = base_stages(tree)
    assert (stages["embedding"].name, stages["classifier"].name) == ("stage9", "stage1")
    tree["train"]["stage7"] = {"num_epochs": 7, "criterion": {"key": "other"}}
    refused(r"^train: has stage7 beside stages 'embedding' and 'classifier'", base_stages, tree)


def test_of_a_configuration_of_stage_joint_the_methods_of_one_stage_are_made(written):
    """As many epochs for each; those of two stages say that they cannot."""
    tree = written("train.stage2.criterion={key: refilled, kwargs: {stage: joint}}")
    del tree["train"]["stage1"]
    tree["train"] = tree["train"].pop("stage2")
    for name, key, teacher in (
        ("ce", "WeightedSumLoss", False),
        ("pkt", "WeightedSumLoss", True),
        ("config", "refilled", True),
    ):
        section = made(tree, name)["train"]
        assert (section["num_epochs"], section["criterion"]["key"], "teacher" in section) == (2, key, teacher)
        assert not cannot_be_made(load_method(name), tree)
    assert made(tree, "config")["train"] == tree["train"]
    assert made(tree, "student-ncm")["train"].keys() == tree["train"].keys()
    assert cannot_be_made(load_method("refilled"), tree) == "needs both stages"
    tree["train"]["criterion"]["kwargs"]["stage"] = "classifier"  # does not show where the embedding is
    for name, role in (("student-ncm", "teacher"), ("pkt", "student")):
        assert made(tree, name)["train"][role]["auxiliary_model_wrapper"]["kwargs"]["embedding"] == "embedding"
    assert not cannot_be_made(load_method("refilled"), written())


def test_the_model_to_train_may_be_called_model(written):
    renamed = written()
    renamed["models"]["model"] = renamed["models"].pop("student_model")
    assert made(renamed, "finetune")["models"] == made(written(), "finetune")["models"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_of_both_stages_can_be_compared(path, monkeypatch):
    monkeypatch.chdir(path.parents[2])
    tree = read(path)
    for model in tree["models"].values():
        model.pop("src_ckpt", None)
        model.pop("src_ckpt_classifier", None)
    for method in ("ce", "kd", "rkd", "refilled", "refilled-joint", "refilled-from-teacher", "finetune"):
        assert made(tree, method)["train"]


@pytest.mark.parametrize(("method", "epochs"), [("ce", [3]), ("refilled", [1, 2])])
def test_schedules_are_stretched_with_the_epochs(written, method, epochs):
    train = made(written(), method)["train"]
    stages = [train] if len(epochs) == 1 else [train["stage1"], train["stage2"]]
    assert [stage["num_epochs"] for stage in stages] == epochs
    assert [stage["scheduler"]["kwargs"] for stage in stages] == [{"T_max": n, "eta_min": 0.001} for n in epochs]


@pytest.mark.parametrize(
    ("key", "kwargs", "changed"),
    [
        ("CosineAnnealingLR", {"T_max": 10, "eta_min": 0.1}, {"T_max": 25}),
        ("StepLR", {"step_size": 4, "gamma": 0.5}, {"step_size": 10}),
        ("MultiStepLR", {"milestones": [4, 8]}, {"milestones": [10, 20]}),
        ("LinearLR", {"total_iters": 6}, {"total_iters": 15}),
        ("PolynomialLR", {"total_iters": 6, "power": 2}, {"total_iters": 15}),
        ("OneCycleLR", {"max_lr": 0.5, "total_steps": 20}, {"max_lr": 0.25, "total_steps": 50}),
        ("ConstantLR", {"factor": 1.0}, {}),
        ("ReduceLROnPlateau", {"patience": 3}, {}),
    ],
)
def test_two_and_a_half_times_as_long_at_half_the_learning_rate(key, kwargs, changed):
    expected, before = {**kwargs, **changed}, copy.deepcopy(kwargs)
    given = {"key": key, "kwargs": kwargs, "scheduling_step": 1}
    assert fitted_scheduler(given, 2.5, 0.5) == {"key": key, "kwargs": expected, "scheduling_step": 1}
    assert kwargs == before
    weights = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    getattr(torch.optim.lr_scheduler, key)(weights, **expected)


@pytest.mark.parametrize("scheduler", [{"key": "ConstantLR"}, {"key": "ExponentialLR", "kwargs": {"gamma": 0.9}}])
def test_a_schedule_of_as_many_epochs_stays(scheduler):
    assert fitted_scheduler(scheduler, 1, 0.5) == scheduler


def test_joint_bounds_the_gradient_where_the_configuration_does_not(written):
    ours, control = (made(written(), method)["train"]["optimizer"] for method in ("refilled-joint", "ce"))
    assert ours == {**control, "max_grad_norm": 2.0}
    bounded = written("train.stage2.optimizer.max_grad_norm=0.5")
    assert made(bounded, "refilled-joint")["train"]["optimizer"]["max_grad_norm"] == 0.5


@pytest.mark.parametrize(("method", "weights", "lr"), [("ce", {}, 0.01), ("finetune", WEIGHTS, 0.001)])
def test_without_a_teacher_the_student_is_the_only_model(written, method, weights, lr):
    tree = made(written(), method)
    assert tree["models"] == {"model": {"key": "timm_model", "kwargs": TINY, **weights}}
    assert tree["train"]["model"] == {"forward_proc": "forward_batch_only"}
    assert not {"teacher", "student", "pre_epoch_process"} & tree["train"].keys()
    assert tree["train"]["optimizer"]["kwargs"] == {"lr": pytest.approx(lr), "momentum": 0.9}


def test_without_a_teacher_or_with_a_wrapped_training_set_there_is_no_cache(written):
    tree = written("teacher_cache.views=2")
    kept = [method for method in ("ce", "crd", "cckd", "kd") if "teacher_cache" in made(tree, method, 100.0)]
    assert kept == ["cckd", "kd"]


def test_hooks_and_criteria_are_the_methods_own(written):
    tree = written()
    tree["train"]["stage2"]["teacher"]["forward_hook"]["input"] = ["embedding"]
    train = made(tree, "rkd")["train"]
    assert train["teacher"]["forward_hook"] == train["student"]["forward_hook"] == {"output": ["embedding"]}
    assert train["criterion"]["kwargs"].keys() == {"sub_terms"}
    assert "forward_hook" not in made(written(), "kd", 100.0)["train"]["teacher"]


def test_the_path_of_the_students_embedding_is_the_configurations_or_the_teachers(written):
    named = written("train.stage1.criterion.kwargs.student_embedding=head.norm")
    spkd = made(named, "spkd")["train"]["criterion"]["kwargs"]["sub_terms"]["spkd"]["criterion"]["kwargs"]
    assert (spkd["student_output_path"], spkd["teacher_output_path"]) == ("head.norm", "embedding")
    teachers = written(*in_stages("teacher.auxiliary_model_wrapper.kwargs={embedding: global_pool}"))
    for tree, method, path in (
        (named, "spkd", "head.norm"),
        (teachers, "refilled-joint", "embedding"),
        (teachers, "refilled-from-teacher", "global_pool"),  # its student is the teacher's network
    ):
        train = made(tree, method)["train"]
        assert train["student"]["forward_hook"] == {"output": [path]}
        assert train["criterion"]["kwargs"].get("student_embedding", path) == path


def test_numbers_of_data_and_models_are_filled_in(written):
    """The configuration's own keywords of teacher and loader stay."""
    train = made(written(), "crd", 0.0)["train"]
    assert train["train_data_loader"]["dataset_wrapper"]["kwargs"]["num_negative_samples"] == 12
    assert train["train_data_loader"]["kwargs"] == {"batch_size": 12, "num_workers": 0}
    crd = train["criterion"]["kwargs"]["sub_terms"]["crd"]["criterion"]["kwargs"]
    assert (crd["output_size"], crd["num_samples"], crd["num_negative_samples"]) == (16, 16, 12)
    projection = {"kind": "normalised", "in_features": timm_model(**TINY).head_hidden_size, "out_features": 128}
    wrappers = {
        "teacher": {"key": "refilled_teacher", "kwargs": {"preprocessing": "data", "projection": projection}},
        "student": {"key": "projected_student", "kwargs": {"embedding": "embedding", "projection": projection}},
    }
    assert {role: train[role]["auxiliary_model_wrapper"] for role in wrappers} == wrappers


def with_student(tree, kwargs=None, **entry):
    """A student that starts from trained weights, and a teacher that is read elsewhere than students are."""
    student = tree["models"]["student_model"]
    tree["models"]["student_model"] = {**student, **entry, "kwargs": student["kwargs"] | (kwargs or {})}
    read_at = {"embedding": "stem", "embedding_io": "output", "local_features": ["stem"], "input_size": 64}
    for stage in tree["train"].values():
        wrapper = stage["teacher"]["auxiliary_model_wrapper"]
        wrapper["kwargs"] = {**read_at, "class_map": {0: 3}, "preprocessing": "auto"}
    return tree


@pytest.mark.parametrize(("kwargs", "entry"), [({}, {**WEIGHTS, "src_ckpt_prefix": "q"}), ({"pretrained": True}, {})])
def test_an_untrained_student_leaves_the_weights_out(written, kwargs, entry):
    tree = with_student(written(), kwargs, **entry)
    tree["train"]["stage2"]["student"]["src_ckpt"] = "teacher.pt"
    tree = made(tree, "scratch")
    assert tree["models"] == {"model": {"key": "timm_model", "kwargs": {**TINY, **dict.fromkeys(kwargs, False)}}}
    assert "src_ckpt" not in tree["train"]["model"]
    assert tree["train"]["optimizer"]["kwargs"]["lr"] == pytest.approx(0.1)
    assert made(with_student(written(), {"checkpoint_path": "x.pth"}), "scratch")["models"]["model"]["kwargs"] == TINY


def test_an_untrained_teacher_leaves_the_weights_out(written):
    tree = written()
    kwargs = {"pretrained": True, "checkpoint_path": "x.pth"}
    tree["models"]["teacher_model"] = {**tree["models"]["teacher_model"], "kwargs": {**TINY, **kwargs}}
    tree["train"]["stage2"]["teacher"] |= {"src_ckpt": "teacher.pt"}
    ours, control = (made(tree, method) for method in ("refilled-joint-random-teacher", "refilled-joint"))
    assert ours["models"]["teacher_model"] == {"key": "timm_model", "kwargs": {**TINY, "pretrained": False}}
    assert ours["models"]["student_model"] == control["models"]["student_model"]
    assert ours["train"]["teacher"] == {key: v for key, v in control["train"]["teacher"].items() if key != "src_ckpt"}


@pytest.mark.parametrize(
    ("source", "read_at"),
    [("finetune", {"embedding": "stem", "embedding_io": "output"}), ("ce", {"embedding": "head"})],
)
def test_a_trained_teacher_sees_images_as_the_student_and_is_read_where_its_network_was(written, source, read_at):
    tree = with_student(written("train.stage1.criterion.kwargs.student_embedding=head"))
    teacher = {"key": "timm_model", "kwargs": TINY, "src_ckpt": "grid/finetune/seed0/student.safetensors"}
    trained = load_method(source), teacher
    config = cell_config(tree, load_method("finetuned-kd"), Setting(), Path("cell.yaml"), trained=trained)
    assert config.tree["models"]["teacher_model"] == teacher
    kwargs = {**read_at, "preprocessing": "data", "class_map": None}
    assert config.tree["train"]["teacher"]["auxiliary_model_wrapper"]["kwargs"] == kwargs


def test_the_students_own_ncm_reads_the_student_in_the_teachers_place(written):
    tree = made(with_student(written(), **WEIGHTS), "student-ncm")
    assert tree["models"]["teacher_model"] == tree["models"]["student_model"]
    assert tree["models"]["teacher_model"]["src_ckpt"] == "teacher.pt"
    kwargs = {"embedding": "embedding", "preprocessing": "data", "class_map": None}
    for stage in tree["train"].values():
        assert stage["teacher"]["auxiliary_model_wrapper"] == {"key": "refilled_teacher", "kwargs": kwargs}


def test_a_student_that_begins_at_class_centres_does_so_whoever_it_is(written):
    tree = with_student(written(), **{**WEIGHTS, "src_ckpt_classifier": "centres"})
    for method in ("ce", "refilled-joint", "finetune", "refilled-from-teacher"):
        models = made(tree, method)["models"]
        assert models.get("student_model", models.get("model"))["src_ckpt_classifier"] == "centres"
    assert made(tree, "student-ncm")["models"]["teacher_model"]["src_ckpt_classifier"] == "new"


def test_in_incremental_learning_the_teachers_classifier_is_extended(written):
    models = made(written(tree=INCREMENTAL), "lwf")["models"]
    extended = {"kwargs": {**TINY, "num_classes": 6}, "src_ckpt_classifier": "extended"}
    assert models["student_model"] == {**models["teacher_model"], **extended}
    assert "src_ckpt_classifier" not in models["teacher_model"]


def test_joint_training_keeps_all_samples_whatever_the_memory():
    """Also where all are kept already; balanced batches, which hold fewer classes where there is no memory, too."""
    tree = read(CONFIGS / "digits/digits_incremental_refilled.yaml")
    configs = [made(tree, "joint-training", memory=memory) for memory in (0, 2)]
    assert all(tag.value["init"]["kwargs"]["memory"] is None for tag in configs[0]["datasets"].values())
    for kwargs in with_memory(tree):
        kwargs["memory"] = None
    assert configs[0] == configs[1] == made(tree, "joint-training")


def test_changes_go_over_sections_key_by_key_and_null_takes_away(written, tmp_path):
    changes = "student: {forward_hook: null, src_ckpt: 'teacher.pt'}, train_data_loader: {kwargs: {batch_size: 2}}"
    (tmp_path / "mine.yaml").write_text(f"stages: [{{{changes}}}]", encoding="utf-8")
    train = made(written(), "mine.yaml")["train"]
    assert train["student"] == {"forward_proc": "forward_batch_only", "src_ckpt": "teacher.pt"}
    assert train["train_data_loader"]["kwargs"] == {"batch_size": 2, "num_workers": 0}


def test_several_stages_may_be_without_a_teacher(written, tmp_path):
    stage = "teacher: null, criterion: {key: 'WeightedSumLoss', kwargs: {sub_terms: {cross_entropy: 1.0}}}"
    (tmp_path / "mine.yaml").write_text(f"stages: [{{like: 'embedding', {stage}}}, {{{stage}}}]", encoding="utf-8")
    tree = made(written(), "mine.yaml")
    assert tree["models"].keys() == {"model"}
    assert [tree["train"][name]["num_epochs"] for name in ("stage1", "stage2")] == [1, 2]


AT_INPUT = "teacher.auxiliary_model_wrapper.kwargs={embedding: fc, embedding_io: input}"


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("ce", "criterion.kwargs.stage=classifier", "^train: has no stage .*'refilled' and stage 'embedding';"),
        ("ce", "criterion.key=x", "^train: .*'refilled' and stage 'embedding' and 'classifier'"),
        ("ce", "scheduler.key=CosineAnealingLR", "scheduler: 'CosineAnealingLR' .* did you mean 'CosineAnneali"),
        ("ce", "scheduler={key: StepLR, kwargs: {gamma: 0.9}}", r"scheduler\.kwargs: 'StepLR' has no 'step_size'"),
        ("finetune", "optimizer.kwargs={momentum: 0.9}", r"^method 'finetune': optimizer\.kwargs\.lr: missing"),
        ("refilled-joint", "optimizer=", "^method 'refilled-joint': optimizer: missing in the stage 'classifier'"),
        ("refilled-from-teacher", AT_INPUT, "^method 'refilled-from-teacher': .*embedding_io"),
        ("mine.yaml", "num_epochs=1", r"^method 'mine': .*criterion\.key: 'refiled' is not registered; did you mean"),
    ],
)
def test_what_cannot_be_made(written, tmp_path, method, change, message):
    (tmp_path / "mine.yaml").write_text("stages: [{criterion: {key: 'refiled', kwargs: {}}}]\n", encoding="utf-8")
    tree = written(*in_stages(change))
    refused(message, made, tree, method)
