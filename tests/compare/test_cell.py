import re
from pathlib import Path

import pytest

from gkd_plugin.compare.cell import base_stages, cell_config
from gkd_plugin.compare.method import load_method
from gkd_plugin.compare.setting import Setting
from gkd_plugin.config.yaml_nodes import as_node, compose, dump, entries, put, remove
from gkd_plugin.config.yaml_plain import to_plain
from gkd_plugin.errors import ConfigError
from gkd_plugin.models import timm_model
from tests.compare.fakes import CONFIG, write_config, write_incremental

CONFIGS = Path(__file__).parents[2] / "configs/digits"
SHIPPED = [
    path
    for path in sorted(CONFIGS.parent.glob("*/*.yaml"))
    if all(f"stage: '{kind}'" in path.read_text("utf-8") for kind in ("embedding", "classifier"))
]


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return compose(write_config(tmp_path))


def made(root, method, overlap=None, memory=None):
    return cell_config(root, load_method(method), Setting(overlap, memory=memory), Path("cell.yaml")).tree


def test_both_stages_are_found_by_what_they_do(tmp_path):
    path = write_config(tmp_path, CONFIG.replace("stage1:", "stage9:").replace("stage2:", "stage1:"))
    assert base_stages(compose(path)) == {"embedding": "stage9", "classifier": "stage1"}


@pytest.mark.parametrize(
    ("old", "new", "missing"),
    [
        ("stage: 'embedding'", "stage: 'classifier'", "'embedding'"),
        ("key: 'refilled', kwargs: {stage: 'classifier'", "key: 'other', kwargs: {stage: 'classifier'", "'classifier'"),
        ("{key: 'refilled', kwargs:", "{key: 'other', kwargs:", "'embedding' and 'classifier'"),
    ],
)
def test_a_configuration_without_both_stages(old, new, missing, tmp_path):
    with pytest.raises(ConfigError, match=f"no stage with criterion 'refilled' and stage {missing};"):
        base_stages(compose(write_config(tmp_path, CONFIG.replace(old, new))))


def test_a_stage_beside_the_two_is_refused(tmp_path):
    root = compose(write_config(tmp_path))
    train = entries(root)["train"]
    for more in (as_node({"num_epochs": 7, "criterion": {"key": "other"}}, "test"), entries(train)["stage2"]):
        put(train, "stage3", more)
        with pytest.raises(
            ConfigError, match=r"^train: has stage3 beside stages 'embedding' and 'classifier'; compare takes"
        ):
            base_stages(root)


def test_the_model_to_train_may_be_called_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    renamed = compose(write_config(tmp_path, CONFIG.replace("student_model:", "model:")))
    root = compose(write_config(tmp_path))
    for method in ("ce", "refilled-joint", "finetune"):
        assert made(renamed, method)["models"] == made(root, method)["models"]


@pytest.mark.parametrize("loader", ["train_data_loader", "val_data_loader"])
def test_a_stage_without_a_loader_of_its_own_has_that_of_the_stage_before(tmp_path, monkeypatch, loader):
    monkeypatch.chdir(tmp_path)
    root = compose(write_config(tmp_path))
    first, second = (entries(entries(root)["train"])[name] for name in ("stage1", "stage2"))
    put(entries(first)[loader], "requires_supp", as_node(True, "test"))  # another one than that of the second stage
    remove(second, loader)
    for method in ("ce", "refilled", "refilled-joint"):
        train = made(root, method)["train"]
        assert train.get("stage2", train)[loader] == to_plain(entries(first)[loader])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_of_both_stages_can_be_compared(path, monkeypatch):
    monkeypatch.chdir(path.parents[2])
    root = compose(path)
    for model in entries(entries(root)["models"]).values():
        remove(model, "src_ckpt")
        remove(model, "src_ckpt_classifier")
    for method in ("ce", "kd", "rkd", "refilled", "refilled-joint", "refilled-from-teacher", "finetune"):
        assert cell_config(root, load_method(method), Setting(), Path("cell.yaml")).tree["train"]


def test_the_input_of_a_module_is_no_embedding_of_a_student(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrapper = "{key: 'refilled_teacher', kwargs: {embedding: 'fc', embedding_io: 'input', preprocessing: 'data'}}"
    text = re.sub(r"auxiliary_model_wrapper: .*", f"auxiliary_model_wrapper: {wrapper}", CONFIG)
    root = compose(write_config(tmp_path, text))
    assert made(root, "finetune")
    with pytest.raises(ConfigError, match=r"^method 'refilled-from-teacher': the teacher's embedding is the input"):
        made(root, "refilled-from-teacher")


def test_methods_of_one_stage_train_as_long_as_both_together(root):
    """1 + 2 epochs; the schedule of the classifier stage is stretched with them and keeps its end."""
    for method in ("ce", "kd", "refilled-joint", "refilled-stage2-only"):
        train = made(root, method, 100.0)["train"]
        assert train["num_epochs"] == 3
        assert train["scheduler"]["kwargs"] == {"T_max": 3, "eta_min": 0.001}


def test_methods_of_two_stages_keep_their_epochs(root):
    for method in ("refilled", "refilled-stage1-only", "config"):
        train = made(root, method)["train"]
        assert [train[name]["num_epochs"] for name in ("stage1", "stage2")] == [1, 2]
        assert [train[name]["scheduler"]["kwargs"]["T_max"] for name in ("stage1", "stage2")] == [1, 2]


def test_joint_bounds_the_gradient_where_the_configuration_does_not(root, tmp_path):
    ours, control = (made(root, method)["train"]["optimizer"] for method in ("refilled-joint", "ce"))
    assert ours == {**control, "max_grad_norm": 2.0}
    small = made(root, "refilled-from-teacher")["train"]["optimizer"]
    assert small == {**ours, "kwargs": {**ours["kwargs"], "lr": pytest.approx(0.1 * ours["kwargs"]["lr"])}}
    text = CONFIG.replace("{key: 'SGD',", "{key: 'SGD', max_grad_norm: 0.5,")
    bounded = compose(write_config(tmp_path, text))
    for method in ("refilled-joint", "ce"):
        assert made(bounded, method)["train"]["optimizer"]["max_grad_norm"] == 0.5


def test_a_stage_without_an_optimizer_is_told(tmp_path):
    at = CONFIG.rindex("    optimizer:")
    text = CONFIG[:at] + CONFIG[CONFIG.index("\n", at) + 1 :]
    with pytest.raises(ConfigError, match=r"method 'refilled-joint': optimizer: missing in the stage 'classifier'"):
        made(compose(write_config(tmp_path, text)), "refilled-joint")


STUDENT = "kwargs: {model_name: 'test_byobnet', num_classes: 4}\n    dst_ckpt"
TEACHER = "auxiliary_model_wrapper: {key: 'refilled_teacher', kwargs: {preprocessing: 'data'}}"


def with_student(folder, kwargs="", entry="", stage=""):
    """A student that starts from trained weights, and a teacher that is read elsewhere than students are."""
    assert STUDENT in CONFIG
    assert TEACHER in CONFIG
    new = STUDENT.replace("num_classes: 4", f"num_classes: 4{kwargs}").replace("\n", f"\n{entry}", 1)
    read = "embedding: 'stem', embedding_io: 'output', local_features: ['stem'], input_size: 64, class_map: {0: 3}"
    text = CONFIG.replace(STUDENT, new).replace("preprocessing: 'data'", f"{read}, preprocessing: 'auto'")
    text = text.replace("student: {forward_proc", f"student: {{{stage}forward_proc")
    return compose(write_config(folder, text))


WEIGHTS = "    src_ckpt: 'teacher.pt'\n    src_ckpt_classifier: 'new'\n"


@pytest.mark.parametrize(
    "given",
    [{"entry": WEIGHTS}, {"kwargs": ", pretrained: true"}, {"entry": WEIGHTS, "stage": "src_ckpt: 'teacher.pt', "}],
)
def test_from_scratch_leaves_the_students_weights_out(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    root = with_student(tmp_path, **given)
    kept, dropped = (made(root, method) for method in ("ce", "scratch"))
    named = str(kept["models"]["model"]) + str(kept["train"]["model"])
    assert "src_ckpt" in named or "'pretrained': True" in named
    assert dropped["models"]["model"].keys() == {"key", "kwargs"}
    assert not dropped["models"]["model"]["kwargs"].get("pretrained")
    assert "src_ckpt" not in dropped["train"]["model"]
    assert dropped["train"]["optimizer"]["kwargs"]["lr"] == pytest.approx(
        10 * kept["train"]["optimizer"]["kwargs"]["lr"]
    )


def test_weights_that_cannot_be_left_out_are_told(tmp_path):
    root = with_student(tmp_path, kwargs=", checkpoint_path: 'x.pth'")
    with pytest.raises(ConfigError, match=r"'scratch': models\.student_model\.kwargs\.checkpoint_path: names weights"):
        made(root, "scratch")


def test_the_students_own_ncm_reads_the_student_in_the_teachers_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = made(with_student(tmp_path, entry=WEIGHTS), "student-ncm")
    assert plain["models"]["teacher_model"] == plain["models"]["student_model"]
    assert plain["models"]["teacher_model"]["src_ckpt"] == "teacher.pt"
    for name in ("stage1", "stage2"):
        wrapper = plain["train"][name]["teacher"]["auxiliary_model_wrapper"]
        kwargs = {"embedding": "embedding", "preprocessing": "data", "class_map": None}
        assert wrapper == {"key": "refilled_teacher", "kwargs": kwargs}


def test_joint_training_is_the_same_whatever_the_memory():
    """Balanced batches, which hold fewer classes where there is no memory, too."""
    root = compose(CONFIGS / "digits_incremental_refilled.yaml")
    configs = [made(root, "joint-training", memory=memory) for memory in (0, 2)]
    assert configs[0] == configs[1]
    assert made(root, "ce", memory=0) != made(root, "ce", memory=2)


def test_cross_entropy_alone_has_no_teacher(root):
    plain = made(root, "ce")
    assert set(plain["models"]) == {"model"}
    assert "dst_ckpt" not in plain["models"]["model"]
    assert plain["train"].keys() == {
        *("num_epochs", "train_data_loader", "val_data_loader", "model", "optimizer", "scheduler", "criterion")
    }
    assert "forward_hook" not in plain["train"]["model"]


def test_without_a_teacher_there_is_no_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = compose(write_config(tmp_path, f"{CONFIG}\nteacher_cache: {{views: 2}}\n"))
    assert "teacher_cache" not in made(root, "ce")
    assert made(root, "kd", 100.0)["teacher_cache"] == {"views": 2}


def test_crd_wraps_the_training_set_and_has_no_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = compose(write_config(tmp_path, f"{CONFIG}\nteacher_cache: {{views: 2}}\n"))
    assert "teacher_cache" not in made(root, "crd")
    assert "teacher_cache" in made(root, "cckd")


def test_hooks_and_criteria_are_the_methods_own(root):
    train = made(root, "rkd")["train"]
    assert train["teacher"]["forward_hook"] == train["student"]["forward_hook"] == {"output": ["embedding"]}
    assert train["teacher"]["auxiliary_model_wrapper"]["key"] == "refilled_teacher"
    assert train["criterion"]["kwargs"]["sub_terms"]["rkd"]["criterion"]["key"] == "RKDLoss"
    assert "forward_hook" not in made(root, "kd", 100.0)["train"]["teacher"]


def test_the_path_of_the_students_embedding_is_the_configurations(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = CONFIG.replace("{stage: 'embedding'}", "{stage: 'embedding', student_embedding: 'head.norm'}")
    train = made(compose(write_config(tmp_path, text)), "spkd")["train"]
    assert train["student"]["forward_hook"] == {"output": ["head.norm"]}
    spkd = train["criterion"]["kwargs"]["sub_terms"]["spkd"]["criterion"]["kwargs"]
    assert (spkd["student_output_path"], spkd["teacher_output_path"]) == ("head.norm", "embedding")


def test_a_student_that_is_the_teachers_network_has_its_embedding(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = compose(write_config(tmp_path, CONFIG.replace("{preprocessing: 'data'}", "{embedding: 'global_pool'}")))
    for method, path in (("refilled-joint", "embedding"), ("refilled-from-teacher", "global_pool")):
        train = made(root, method)["train"]
        assert train["criterion"]["kwargs"]["student_embedding"] == path
        assert train["student"]["forward_hook"] == {"output": [path]}


def test_a_cell_changes_nothing_in_the_configuration(root):
    before = dump(root)
    made(root, "ce", 50.0)
    made(root, "refilled", 0.0)
    assert dump(root) == before


def test_merge_keys_are_resolved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = CONFIG.replace("  stage1: \n", "  stage1: &one\n")
    text = text.replace("  stage2: \n    num_epochs", "  stage2:\n    <<: *one\n    num_epochs")
    assert "<<: *one" in text
    train = made(compose(write_config(tmp_path, text)), "ce")["train"]
    assert (train["num_epochs"], train["scheduler"]["kwargs"]["T_max"]) == (3, 3)


def test_a_method_that_is_not_valid_is_named(root, tmp_path):
    (tmp_path / "mine.yaml").write_text("stages: [{criterion: {key: 'refiled', kwargs: {}}}]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"method 'mine': .*criterion\.key: 'refiled' is not registered; did you me"):
        made(root, "mine.yaml")


def test_several_stages_without_a_teacher(root, tmp_path):
    (tmp_path / "mine.yaml").write_text("stages: [{teacher: null}, {teacher: null}]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="method 'mine': several stages need a teacher"):
        made(root, "mine.yaml")


def test_a_fine_tuned_teacher_is_the_only_model(root):
    plain = made(root, "finetune")
    (entry,) = plain["models"].values()
    assert entry == {
        "key": "timm_model",
        "kwargs": {"model_name": "test_byobnet", "num_classes": 4},
        "src_ckpt": "teacher.pt",
        "src_ckpt_classifier": "new",
    }
    assert plain["train"]["optimizer"]["kwargs"] == {"lr": pytest.approx(0.001), "momentum": 0.9}
    assert plain["train"]["num_epochs"] == 3


def test_in_incremental_learning_the_teachers_classifier_is_extended(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = made(compose(write_incremental(tmp_path)), "lwf")["models"]
    assert models["student_model"]["src_ckpt_classifier"] == "extended"
    assert models["student_model"]["kwargs"]["num_classes"] == 6
    assert "src_ckpt_classifier" not in models["teacher_model"]


def test_joint_training_keeps_all_samples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = made(compose(write_incremental(tmp_path)), "joint-training")
    assert all(tag.value["init"]["kwargs"]["memory"] is None for tag in plain["datasets"].values())


def test_a_learning_rate_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = CONFIG.replace("kwargs: {lr: 0.01, momentum: 0.9}", "kwargs: {momentum: 0.9}")
    with pytest.raises(ConfigError, match=r"method 'finetune': optimizer\.kwargs\.lr: missing"):
        made(compose(write_config(tmp_path, text)), "finetune")


def test_numbers_of_data_and_models_are_filled_in(root):
    """The configuration's own keywords of teacher and loader stay."""
    train = made(root, "crd", 0.0)["train"]
    assert train["train_data_loader"]["dataset_wrapper"]["kwargs"]["num_negative_samples"] == 12
    assert train["train_data_loader"]["kwargs"] == {"batch_size": 12, "num_workers": 0}
    crd = train["criterion"]["kwargs"]["sub_terms"]["crd"]["criterion"]["kwargs"]
    assert (crd["output_size"], crd["num_samples"], crd["num_negative_samples"]) == (16, 16, 12)
    width = timm_model("test_byobnet", num_classes=4).head_hidden_size
    projection = {"kind": "normalised", "in_features": width, "out_features": 128}
    assert train["teacher"]["auxiliary_model_wrapper"] == {
        "key": "refilled_teacher",
        "kwargs": {"preprocessing": "data", "projection": projection},
    }
    assert train["teacher"]["requires_grad"] is True
    assert train["student"]["auxiliary_model_wrapper"] == {
        "key": "projected_student",
        "kwargs": {"embedding": "embedding", "projection": projection},
    }
    assert train["student"]["forward_hook"] == {"input": ["supplement"], "output": ["projection"]}


def test_other_methods_measure_nothing(root, monkeypatch):
    monkeypatch.setattr("gkd_plugin.compare.cell.measure", None)
    for method in ("ce", "rkd", "refilled"):
        made(root, method)


def test_a_projection_to_the_teachers_width(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = CONFIG.replace(
        "kwargs: {model_name: 'test_byobnet', num_classes: 4}",
        "kwargs: {model_name: 'test_vit', num_classes: 4, img_size: 32}",
        1,
    )
    train = made(compose(write_config(tmp_path, text)), "srd", 100.0)["train"]
    widths = [timm_model(name, num_classes=4).head_hidden_size for name in ("test_byobnet", "test_vit")]
    assert train["student"]["auxiliary_model_wrapper"]["kwargs"]["projection"] == {
        "kind": "standardised",
        "in_features": widths[0],
        "out_features": widths[1],
    }


def test_the_configuration_of_a_probe_keeps_both_models(root):
    plain = made(root, "teacher-ncm")
    assert set(plain["models"]) == {"teacher_model", "student_model"}
    assert "dst_ckpt" not in plain["models"]["student_model"]


def test_a_student_that_begins_at_class_centres_does_so_whoever_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = with_student(tmp_path, entry=WEIGHTS.replace("'new'", "'centres'"))
    for method in ("ce", "refilled-joint", "finetune", "refilled-from-teacher"):
        models = made(root, method)["models"]
        assert models.get("student_model", models.get("model"))["src_ckpt_classifier"] == "centres"
    assert made(root, "student-ncm")["models"]["teacher_model"]["src_ckpt_classifier"] == "new"
