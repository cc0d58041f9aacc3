"""Every shipped configuration: starts with its own command, is valid, builds, and takes a step in every stage."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torchdistill.losses.registry import MIDDLE_LEVEL_LOSS_DICT
from torchvision.datasets import CIFAR10, cifar

from gkd_plugin.compare.cell import cell_config
from gkd_plugin.compare.method import load_method
from gkd_plugin.compare.setting import Setting
from gkd_plugin.config.config import load_config
from gkd_plugin.config.stages import student_entry
from gkd_plugin.data import evaluation_view
from gkd_plugin.runner.devices import make_accelerator, read_placement
from gkd_plugin.runner.models import build_model
from gkd_plugin.runner.parts import build_box
from tests.data.fakes import cub_tree, image_tree
from tests.upstream_driver import drive

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(path.relative_to(ROOT) for path in (ROOT / "configs").glob("*/*.yaml"))
METHODS = sorted((ROOT / "configs").glob("*/methods/*.yaml"))
SLOW = {
    *("cifar100_teacher_resnet110", "cifar100_standard_resnet32", "cifar100_teacher50_wrn40_2"),
    *("cifar100_standard_wrn16_2", "cifar100_standard_wrn40_1", "cifar100_standard_wrn16_1"),
}
"""Near relatives of others, and slow to step."""


@pytest.fixture(autouse=True)
def _in_the_project_with_made_up_files(monkeypatch):
    """torchvision knows CIFAR-100's files by their checksums."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda _: True)
    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory):
    """Family → a small made-up data set in the format of its own; no test may need or download the real one."""
    folder = tmp_path_factory.mktemp("data")
    write_cifar100(folder / "cifar100" / "cifar-100-python")
    return {
        "tiny100": write_npz(folder / "tiny100.npz"),
        "cifar100": folder / "cifar100",
        "cub200": cub_tree(folder, num_classes=10, per_class=4),
        "image_folder": image_tree(folder / "own", [f"class_{k}" for k in range(10)], per_class=4),
    }


def write_npz(path):
    """Black images with the keys and classes of the measurement set, ten of each."""
    labels = {split: np.repeat(np.arange(100), 10) for split in ("train", "test")}
    images = {f"x_{split}": np.zeros((len(y), 32, 32, 3), np.uint8) for split, y in labels.items()}
    names = np.array([f"n{k:03d}" for k in range(100)])
    np.savez_compressed(path, class_names=names, **{f"y_{split}": y for split, y in labels.items()}, **images)
    return path


def write_cifar100(folder):
    """Noise in torchvision's format, two images of each of 100 classes."""
    folder.mkdir(parents=True)
    labels = [k for k in range(100) for _ in range(2)]
    data = np.random.default_rng(0).integers(0, 256, (200, 3072), dtype=np.uint8)
    images, meta = {"data": data, "fine_labels": labels}, {"fine_label_names": [f"class_{k}" for k in range(100)]}
    for name, content in {"train": images, "test": images, "meta": meta}.items():
        (folder / name).write_bytes(pickle.dumps(content))


def overrides_for(path, stand_ins):
    """What makes the configuration buildable here: stand-in data, small batches and models, no trained weights."""
    plain = load_config(path, produced=None).tree
    family, sets = path.parts[1], ["device.default=cpu"]

    def put(key, value, *sections):
        sets.extend(f"{where}={value}" for section in sections for where in paths_of(key, plain[section], section))

    if family in stand_ins:
        put("path" if family == "tiny100" else "root", stand_ins[family], "datasets")
        put("classes_of", stand_ins[family], "datasets")
        put("unlabelled", stand_ins[family], "datasets")
    if family == "tiny100":
        put("per_class", 10, "datasets")
    if family in ("cifar100", "cub200", "image_folder"):
        put("batch_size", 16, "train")
        put("num_workers", 0, "train")
    if family in ("cub200", "image_folder"):
        put("pretrained", False, "models")
        for where in paths_of("model_name", plain["models"], "models"):
            sets.append(f"{where}={'test_resnet' if 'teacher' in where else 'test_efficientnet'}")
    if family == "cub200":
        put("num_classes", 5, "datasets", "models")
    put("src_ckpt", "null", "models")
    put("src_ckpt_classifier", "null", "models")
    return sets


def paths_of(name, value, path):
    """The key path of every ``name`` below ``path``, in objects that tags name too."""
    value = getattr(value, "value", value)
    if isinstance(value, dict):
        for key, item in value.items():
            yield from [f"{path}.{key}"] if key == name else paths_of(name, item, f"{path}.{key}")


def test_there_are_configurations_whose_run_folders_do_not_collide():
    assert {path.parts[1] for path in CONFIGS} == {"cifar100", "cub200", "digits", "image_folder", "tiny100"}
    assert len({path.stem for path in CONFIGS}) == len(CONFIGS)


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_methods_are_valid_cells(path):
    config = ROOT / "configs" / path.parent.parent.name / "tiny100_refilled.yaml"
    tree = load_config(config, ["models.teacher_model.src_ckpt=null"]).tree
    cell = cell_config(tree, load_method(str(path)), Setting(overlap=100.0), Path("cell.yaml"))
    terms = cell.tree["train"]["criterion"]["kwargs"]["sub_terms"]
    loss = next(term for name, term in terms.items() if name != "cross_entropy")
    assert MIDDLE_LEVEL_LOSS_DICT[loss["criterion"]["key"]](**loss["criterion"]["kwargs"])


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_its_own_command_trains_every_checkpoint_it_loads_and_schedules_end_with_their_stage(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    words = first.removeprefix("# refilled run ").split()
    assert first.startswith("# refilled run ")
    assert words[-1] == str(path)
    written = [student_entry(load_config(word, produced=None).tree)[1]["dst_ckpt"] for word in words]
    assert Path(written[-1]).parent == Path("runs") / path.stem
    config = load_config(path, produced=None)
    for model in config.tree["models"].values():
        assert model.get("src_ckpt") in (None, *written[:-1])
    for stage in config.stages:
        kwargs = (stage.section.get("scheduler") or {"kwargs": {}})["kwargs"]
        assert {kwargs[key] for key in ("T_max", "total_steps") if key in kwargs} <= {stage.epochs}


@pytest.mark.parametrize(
    ("teacher", "student", "num_classes"),
    [
        ("cifar100/cifar100_teacher50_wrn40_2", "cifar100/cifar100_generalised_wrn16_2", 50),
        ("cub200/cub200_teacher100_resnet50", "cub200/cub200_generalised_mobilenetv3", 5),
    ],
)
@pytest.mark.parametrize("overlap", [0.0, 0.4, 1.0])
def test_one_value_sets_the_overlap(teacher, student, num_classes, overlap, stand_ins):
    built = {}
    for name, more in ((teacher, []), (student, [f"x-overlap={overlap}"])):
        path = Path("configs") / f"{name}.yaml"
        built[name] = load_config(path, [*overrides_for(path, stand_ins), *more]).build()["datasets"]
    known, (train, test) = next(iter(built[teacher].values())).classes, built[student].values()
    assert len(train.classes) == len(known) == num_classes
    assert len(set(train.classes) & set(known)) == round(overlap * num_classes)
    assert train.classes == test.classes
    assert evaluation_view(train)[1]


STEPPED = [pytest.param(path, marks=[pytest.mark.slow] * (path.stem in SLOW)) for path in CONFIGS]


@pytest.mark.parametrize("path", STEPPED, ids=str)
def test_builds_and_steps_in_every_stage(path, stand_ins):
    config = load_config(path, overrides_for(path, stand_ins))
    placement, built = read_placement(config.tree), config.build()
    teacher = built["models"].get("teacher_model")
    teacher = None if teacher is None else build_model("models.teacher_model", teacher)
    student, stages = build_model(*student_entry(built)), config.stages
    box = build_box(built, teacher, student, placement, make_accelerator(placement))
    for number in range(len(stages)):
        box.pre_epoch_process(epoch=0)
        images, labels, supplementary = next(iter(box.train_data_loader))
        loss = box.forward_process(images, labels, supplementary)
        box.post_forward_process(loss=loss)
        assert torch.isfinite(loss)
        assert len(next(iter(box.val_data_loader))) == 2
        if number + 1 < len(stages):
            box.advance_to_next_stage()


def test_run_unmodified_under_torchdistills_own_script(tmp_path, monkeypatch):
    """The teacher's configuration, then two students': only the numbers of epochs are cut, to save time."""
    monkeypatch.chdir(tmp_path)
    for stem in ("digits_teacher", "digits_refilled", "digits_standard"):
        text = (ROOT / "configs" / "digits" / f"{stem}.yaml").read_text("utf-8")
        path = tmp_path / f"{stem}.yaml"
        path.write_text(re.sub(r"num_epochs:.*", "num_epochs: 1", text), encoding="utf-8")
        results = drive(path)
        assert results["student"] > 0
        assert ("teacher" in results) == (stem != "digits_teacher")
