import logging
import os

import pytest
import torch
from torch.utils.data import SequentialSampler
from torchdistill.datasets.wrapper import BaseDatasetWrapper

from gkd_plugin.cache import teacher_cache
from gkd_plugin.cache.bank import read_bank
from gkd_plugin.cache.teacher_cache import TeacherCache
from gkd_plugin.config.stages import stages_of
from gkd_plugin.data import timm_dataset
from gkd_plugin.errors import ConfigError
from gkd_plugin.models import timm_model
from gkd_plugin.runner.devices import Placement, make_accelerator
from gkd_plugin.runner.parts import build_box
from gkd_plugin.runner.training import Training
from gkd_plugin.teacher import fit_class_centres
from gkd_plugin.teacher.readouts import READOUTS
from tests.data.fakes import fixed_by_hand, noisy, random_states, shards
from tests.fakes import TinyImages, loader, stage
from tests.runner.fakes import refused
from tests.teacher.fakes import record


class NoisyImages(TinyImages):
    """With an augmentation that draws from torch's random state."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image + 0.1 * torch.randn(image.shape), label


def config(train=None, **changes):
    stages = {"stage1": stage("embedding", epochs=2), "stage2": stage("classifier", epochs=2)}
    for section in stages.values():
        section.update(changes)
    train = BaseDatasetWrapper(NoisyImages()) if train is None else train
    return {"datasets": {"train": train, "val": TinyImages(seed=1)}, "train": stages}


def of_shards(folder, lengths, num_workers=0):
    """What :func:`build` is given for a stream; the shards are written where there are none."""
    pytest.importorskip("webdataset")
    root = folder if folder.exists() else shards(folder, lengths, classes=4)
    stream = timm_dataset("wds/", root, is_training=True, transform=noisy)
    section = loader("train", SequentialSampler, 4)
    section["kwargs"]["num_workers"] = num_workers
    return {"train": stream, "train_data_loader": section}


def build(folder, views=3, teacher_seed=0, classes=7, precision="no", **changes):
    torch.manual_seed(teacher_seed)
    teacher = timm_model("test_resnet", num_classes=classes)
    torch.manual_seed(1)
    student = timm_model("test_resnet", num_classes=4)
    cache = TeacherCache(views, folder)
    placement = Placement(torch.device("cpu"), None, precision)
    accelerator = make_accelerator(placement)
    made = config(**changes)
    stages = {f"train.{name}": section for name, section in made["train"].items()}
    box = build_box(cache.fix_views(made, stages), teacher, student, placement, accelerator)
    return box, student, cache, accelerator


def train(box, student, cache, accelerator):
    stages = stages_of({"train": config()["train"]})
    return [row["loss"] for _, row in Training(box, student, stages, accelerator, cache).epochs()]


def test_the_teacher_runs_for_each_view_once_and_a_second_run_reads_the_bank_and_trains_the_same(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    losses, samples = [], 24
    for asked in (3 * samples + samples, 8):  # every view, and for the class centres; a few, to compare
        box, student, cache, accelerator = build(tmp_path)
        images = []
        box.teacher_model.teacher.register_forward_hook(lambda _m, args, _o, to=images: to.append(len(args[0])))
        losses.append(train(box, student, cache, accelerator))
        assert sum(images) == asked
        assert [report["computed"] for report in cache.reports] == [asked > 8]
        assert sorted(path.suffix for path in tmp_path.iterdir()) == [".npy", ".pt"]
        assert ("local classifier: taken from an earlier run" in caplog.text) == (asked == 8)
    assert losses[0] == losses[1]
    assert "computed in" in caplog.text
    assert "found in" in caplog.text


def test_of_shards_the_teacher_runs_for_each_view_once_and_again_for_a_shard_that_changed(tmp_path):
    root, losses = tmp_path / "shards", []
    for asked, is_changed in ((3 * 24 + 24, False), (3, False), (3 * 9 + 2 + 24, True)):  # the first view of each bank
        if is_changed:
            os.utime(root / "train-0001.tar", ns=(0, 1))
        box, student, cache, accelerator = build(tmp_path / "kept", **of_shards(root, [7, 9, 8]))
        images = []
        box.teacher_model.teacher.register_forward_hook(lambda _m, args, _o, to=images: to.append(len(args[0])))
        losses.append(train(box, student, cache, accelerator))
        assert sum(images) == asked
        (report,) = cache.reports
        assert (report["files"], report["rows"], report["computed"]) == (3, 72, asked > 8)
    assert losses[0] == losses[1]
    assert len(list((tmp_path / "kept").glob("*.npy"))) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_of_shards_the_answers_are_those_of_the_teacher_for_images_that_are_made_by_hand(tmp_path, workers):
    box, _, cache, accelerator = build(tmp_path / "kept", **of_shards(tmp_path / "shards", [7, 9, 8], workers))
    rows = fixed_by_hand(tmp_path / "shards", 3)
    kept, images = read_bank(cache.open(box, accelerator), torch.tensor([*rows])), torch.stack([*rows.values()])
    own = box.teacher_model.answers(images)
    torch.testing.assert_close(kept["embedding"], own.embedding, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(kept["logits"], own.logits, rtol=2e-3, atol=2e-3)
    cache.attach(box, accelerator)
    seen = record(box.teacher_model, "embedding")
    box.pre_epoch_process(epoch=0)
    for images, labels, supplement in box.train_data_loader:
        box.teacher_forward_proc(box.teacher_model, images, labels, supplement)
        given = seen["embedding"].clone()
        assert torch.equal(images, torch.stack([rows[row] for row in supplement["bank_row"].tolist()]))
        torch.testing.assert_close(given, box.teacher_model.embed(images), rtol=2e-3, atol=2e-3)


def test_of_shards_a_damaged_bank_and_images_that_changed_unseen_are_refused(tmp_path):
    root, folder, lengths = tmp_path / "shards", tmp_path / "kept", [12, 12]
    train(*build(folder, **of_shards(root, lengths)))
    bank = sorted(folder.glob("*.npy"))[1]
    content = bank.read_bytes()
    bank.write_bytes(content[:-20] + b"????" + content[-16:])
    refused(rf"^teacher_cache\.folder: {bank} cannot be used", train, *build(folder, **of_shards(root, lengths)))
    bank.write_bytes(content)
    path = root / "train-0001.tar"
    content, time = path.read_bytes(), path.stat().st_mtime_ns
    path.write_bytes(
        content[:4096] + content[6144:8192] + content[4096:6144] + content[8192:]
    )  # two samples change places
    os.utime(path, ns=(0, time))
    refused("teacher_cache: the images are not those", train, *build(folder, **of_shards(root, lengths)))


def test_of_a_shard_without_images_and_of_streams_without_shards_no_answers_are_kept(tmp_path):
    made = of_shards(tmp_path / "shards", [12, 0])
    refused(
        r"^teacher_cache: .*lacks the answers to .*train-0001\.tar: it holds no image",
        train,
        *build(tmp_path / "kept", **made),
    )
    made["train"].reader.root = "https://example.org/shards"
    refused(r"teacher_cache: datasets\.train: .*wds/.*folder", build, tmp_path, **made)


@pytest.mark.parametrize(("classes", "local_features"), [(7, None), (0, None), (7, ["layer1"])])
def test_answers_are_those_of_the_teacher_for_the_very_images_of_the_student(tmp_path, classes, local_features):
    """Each batch: what the hooks record is what the teacher would say of the same images, up to float16."""
    classifier = stage("classifier")
    hooks = {key: classifier[key] for key in ("criterion", "teacher")}
    if local_features:
        more = {"local_classifier": "probe", "local_features": local_features}
        hooks["teacher"]["auxiliary_model_wrapper"]["kwargs"] |= more
    error = 2e-2 if local_features else 2e-3  # a probe's large weights; logits of two images differ by 1 and more
    box, _, cache, accelerator = build(tmp_path, classes=classes, **hooks)
    teacher = box.teacher_model
    box.pre_epoch_process(epoch=0)
    assert teacher.local_classifier.is_ready
    cache.attach(box, accelerator)
    assert "local_classifier" not in cache.open(box, accelerator).open(0).dtype.names  # another run fits another
    seen, rows = record(teacher, "embedding", "local_classifier"), set()
    for epoch in range(3):
        box.pre_epoch_process(epoch=epoch)
        for images, labels, supplement in box.train_data_loader:
            logits = box.teacher_forward_proc(teacher, images, labels, supplement)
            given = dict(seen)
            own = teacher.answers(images)
            torch.testing.assert_close(given["embedding"], own.embedding, rtol=2e-3, atol=2e-3)
            torch.testing.assert_close(given["local_classifier"], own.local_classifier, rtol=2e-3, atol=error)
            want = own.local_classifier if own.logits is None else own.logits
            torch.testing.assert_close(logits, want, rtol=2e-3, atol=2e-3)
            rows |= set(supplement["bank_row"].tolist())
    assert rows == set(range(3 * 24))


def test_a_local_classifier_is_fitted_to_the_answers_that_are_kept(tmp_path, monkeypatch):
    classifier = stage("classifier")
    hooks = {key: classifier[key] for key in ("criterion", "teacher")}
    hooks["teacher"]["auxiliary_model_wrapper"]["kwargs"] |= {"local_classifier": "probe"}
    box, _, cache, accelerator = build(tmp_path, **hooks)
    cache.open(box, accelerator)
    teacher, views, asked, seen = box.teacher_model, box.train_data_loader.dataset, [], []
    monkeypatch.setattr(READOUTS["probe"], "fit", lambda _, given: seen.append(given) or {})
    images, labels = zip(*(views.view(sample, view) for view in range(3) for sample in range(24)), strict=True)
    want = teacher.embed(torch.stack(images))
    teacher.teacher.register_forward_hook(lambda _m, args, _o: asked.append(len(args[0])))
    fit_class_centres(teacher, box.train_data_loader)
    assert sum(asked) == 24  # class centres alone
    torch.testing.assert_close(seen[0].rows, want, rtol=2e-3, atol=2e-3)
    assert (seen[0].labels.tolist(), seen[0].samples.tolist()) == (list(labels), 3 * list(range(24)))


def test_images_and_teachers_that_changed_unseen_are_refused(tmp_path, monkeypatch):
    """Nothing that makes the bank's name shows it."""
    for key, same in {"views_key": "a", "data_key": "b", "model_key": "c", "bank_keys": ["d"]}.items():
        monkeypatch.setattr(f"gkd_plugin.cache.teacher_cache.{key}", lambda *_, same=same, **__: same)
    train(*build(tmp_path))
    other = build(tmp_path, teacher_seed=5)
    refused(r"^teacher_cache\.folder: .* teacher's embedding differs by .* %.*delete", train, *other)
    box, *others = build(tmp_path)
    images = box.train_data_loader.dataset.dataset.images
    images[[1, 2]] = images[[2, 1]]  # rows that opening does not ask the teacher for
    refused("teacher_cache: the images are not those that the teacher answered for", train, box, *others)


def test_another_teacher_setting_precision_or_number_of_views_gets_a_bank_of_its_own(tmp_path):
    resized = stage("embedding")["teacher"]
    resized["auxiliary_model_wrapper"]["kwargs"]["input_size"] = 40
    changes = ({}, {"teacher_seed": 5}, {"views": 2}, {"precision": "bf16"}, {"teacher": resized})
    for made in changes:
        box, _, cache, accelerator = build(tmp_path, **made)
        cache.open(box, accelerator)
        assert [report["computed"] for report in cache.reports] == [True]
    assert len(list(tmp_path.iterdir())) == len(changes)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_teacher_answers_in_the_precision_of_the_run_and_no_random_number_is_drawn(tmp_path, precision):
    box, _, cache, accelerator = build(tmp_path, precision=precision)
    seen, before = set(), random_states()
    box.teacher_model.teacher.register_forward_hook(lambda *_: seen.add(torch.is_autocast_enabled("cpu")))
    cache.open(box, accelerator)
    assert seen == {precision == "bf16"}
    assert random_states() == before


def test_what_is_kept_follows_from_its_images_views_and_parts_and_not_from_the_seed(tmp_path):
    images, others, accelerator = (
        TinyImages(),
        TinyImages(seed=1),
        make_accelerator(Placement(torch.device("cpu"), None, "no")),
    )

    def value(folder, *parts, **more):
        given = {"images": images, "accelerator": accelerator, **more}
        return TeacherCache(1, tmp_path / folder).once("x", lambda: torch.rand(()), *parts, **given)

    torch.manual_seed(0)
    before = random_states()
    first = value("a")
    assert random_states() == before
    torch.manual_seed(1)
    assert first == value("a") == value("b")
    assert (
        len(
            {
                float(value("a", *parts, **more))
                for parts, more in [((1,), {}), ((), {"images": others}), ((), {"view": others})]
            }
            | {float(first)}
        )
        == 4
    )


@pytest.mark.parametrize("lacks", ["once", "open"])
def test_where_one_process_does_not_see_it_yet_all_compute_it(tmp_path, monkeypatch, lacks):
    """Another run writes it between the looks of two processes."""
    for computed in (1, 1):
        box, _, cache, accelerator = build(tmp_path)
        images = box.train_data_loader.dataset
        if lacks == "open":
            cache.open(box, accelerator)
            assert cache.reports[0]["computed"] == computed
        else:
            found = []
            cache.once("x", lambda to=found: to.append(1), images=images.dataset, accelerator=accelerator)
            assert len(found) == computed
        other = [0] if lacks == "open" else [False]  # a bank's number, or whether it sees the file
        monkeypatch.setattr(teacher_cache, "gather_object", lambda seen, other=other: [*seen, *other])


def test_a_process_that_does_not_see_what_the_main_one_wrote_says_so(tmp_path, monkeypatch):
    box, _, cache, accelerator = build(tmp_path)
    monkeypatch.setattr(type(accelerator), "is_main_process", False)
    refused(rf"^teacher_cache\.folder: .*{tmp_path}", cache.open, box, accelerator)


def test_a_bank_that_another_process_finds_damaged_ends_this_one_too(tmp_path, monkeypatch):
    box, _, cache, accelerator = build(tmp_path)
    monkeypatch.setattr(teacher_cache, "gather_object", lambda seen: [*seen, ConfigError("its checksum is wrong")])
    refused("^its checksum is wrong", cache.open, box, accelerator)


def test_another_wrapper_and_loaders_that_may_change_images_are_refused(tmp_path):
    unwrapped = {"forward_proc": "forward_batch_only"}
    refused("teacher_cache: only 'refilled_teacher' can answer", build, tmp_path, teacher=unwrapped)
    for key in ("collate_fn", "dataset_wrapper"):
        loader = {**stage("embedding")["train_data_loader"], key: {"key": "x"}}
        where = rf"teacher_cache: train\.stage1\.train_data_loader\.{key}"
        refused(f"{where} may change", build, tmp_path, train_data_loader=loader)


def test_the_section():
    assert TeacherCache.from_section(None) is None
    assert TeacherCache.from_section({"views": 4}).views == 4
    assert TeacherCache.from_section({"views": 4, "folder": "~/x", "seed": 2}).folder.is_absolute()
    refused(r"^teacher_cache\.folder: ", TeacherCache.from_section, {"views": 4, "folder": "~nobody-of-this-name/x"})
