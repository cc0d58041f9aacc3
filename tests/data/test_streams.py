"""Streams: every process and worker its own part, the same order in the same epoch, and whole runs from tiny shards."""

import json
import logging
import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import RandomSampler, SequentialSampler
from torchdistill.datasets.util import build_data_loader
from torchvision.transforms import ToTensor

from gkd_plugin.cache.bank import Banks, read_bank
from gkd_plugin.cache.fingerprint import image_keys
from gkd_plugin.config.config import checked_config, load_config
from gkd_plugin.config.tree import dump
from gkd_plugin.data import class_names_of, evaluation_view, few_shot_subset, labels_of, timm_dataset
from gkd_plugin.data.streams import first_batch
from gkd_plugin.runner.accuracy import evaluate
from gkd_plugin.runner.run import run_config
from gkd_plugin.runner.training import Training
from gkd_plugin.teacher import fitting
from tests.data.fakes import image_tree, shards
from tests.runner.fakes import cpu, equal, refused
from tests.upstream_driver import drive

pytest.importorskip("webdataset")
ROOT = Path(__file__).parents[2]


def wds(root, **kwargs):
    """A stream of (number of the sample, label)."""
    return timm_dataset("wds/", root, transform=lambda image: image.getpixel((0, 0))[0] // 10, **kwargs)


def epoch(stream, number=0, **kwargs):
    """The numbers of the samples in an epoch of a loader, batch by batch."""
    kwargs = {"batch_size": 4, "num_workers": 0, **kwargs}
    loader = build_data_loader(stream, {"sampler": {"class_or_func": SequentialSampler}, "kwargs": kwargs}, False)
    loader.dataset.set_epoch(number)
    torch.manual_seed(0)
    found = [batch[0].tolist() for batch in loader]
    return found, len(loader)


def of_rank(stream, rank, ranks):
    stream.reader.dist_rank, stream.reader.dist_num_replicas = rank, ranks
    return stream


def test_an_epoch_has_its_own_order_and_no_partial_batch(tmp_path):
    stream = wds(shards(tmp_path / "shards", [6, 6, 6, 5]), is_training=True)
    (first, length), (again, _), (second, _) = epoch(stream), epoch(stream), epoch(stream, 1)
    assert first == again
    assert first != second
    assert length == len(first) == 6
    assert {len(batch) for batch in first} == {4}
    assert {*chain(*first)} == {*range(23)}
    sample = next(iter(stream))
    assert sample[2] == {}  # torchdistill's scripts read a supplement


@pytest.mark.parametrize("workers", [0, 2])
def test_training_gives_every_process_as_many_batches_of_other_samples(workers, tmp_path):
    root = shards(tmp_path / "shards", [6, 6, 6, 5])
    found = [epoch(of_rank(wds(root, is_training=True), rank, 2), num_workers=workers) for rank in (0, 1)]
    assert [len(batches) for batches, _ in found] == [length for _, length in found] == [4 if workers else 3] * 2
    first, second = ({*chain(*batches)} for batches, _ in found)
    assert not first & second


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_measuring_reads_every_sample_once(ranks, tmp_path):
    root = shards(tmp_path / "shards", [7, 2, 6, 5])
    found = [epoch(of_rank(wds(root), rank, ranks), num_workers=rank % 2 * 2)[0] for rank in range(ranks)]
    assert sorted(chain(*chain(*found))) == list(range(20))


def test_the_evaluation_view_is_in_order(tmp_path):
    stream = wds(shards(tmp_path / "shards", [3, 4]), is_training=True, eval_transform=lambda image: 1)
    view, is_clean = evaluation_view(of_rank(stream, 1, 2))
    assert list(view) == [(1, number % 3) for number in range(3, 7)]
    assert is_clean
    assert len(list(view.whole())) == 7
    stream.eval_transform = None
    view, is_clean = evaluation_view(build_data_loader(of_rank(stream, 0, 1), _loader(), False).dataset)
    assert list(view) == [(number, number % 3) for number in range(7)]
    assert not is_clean


def _loader(**kwargs):
    return {"sampler": {"class_or_func": SequentialSampler}, "kwargs": {"batch_size": 2, **kwargs}}


def test_samples_without_a_label_are_told_and_timms_own_line_on_them_comes_once(tmp_path, caplog):
    root = shards(tmp_path / "shards", [3, 3])
    for shard in root.glob("*.tar"):
        with tarfile.open(shard) as tar, tarfile.open(shard.with_suffix(".new"), "w") as new:
            for entry in tar:
                if entry.name.endswith(".png"):
                    new.addfile(entry, tar.extractfile(entry))
        shard.with_suffix(".new").replace(shard)
    stream = wds(root)
    refused("no sample that can be read: .*a whole number", first_batch, stream, range(2))
    assert caplog.text.count("Handling webdataset error") == 1


def test_what_has_no_index_has_no_sampler_subset_or_labels_ahead(tmp_path):
    stream = wds(shards(tmp_path / "shards", [6, 6]), is_training=True, classes=["a", "b", "c"])
    refused("RandomSampler.*SequentialSampler.*is_training: True", build_data_loader, stream, _sampled(), False)
    refused(
        "num_workers: 3 given in 1 process.*there are 2 shards",
        build_data_loader,
        stream,
        _loader(num_workers=3),
        False,
    )
    refused("a stream has no index.*hfds/", labels_of, stream)
    refused("a stream has no index", few_shot_subset, stream, 1)
    assert class_names_of(stream) == ["a", "b", "c"]


def _sampled():
    return {"sampler": {"class_or_func": RandomSampler}, "kwargs": {}}


def test_what_is_missing_is_told(tmp_path, monkeypatch, caplog):
    root = shards(tmp_path / "shards", [2, 2], info=False)
    assert len(wds(root, split="train-{0000..0001}.tar|4")) == 4
    assert not caplog.messages  # timm's, that there is no _info.json
    refused("split: 2 of 4 shards are missing: .*train-0002.tar", wds, root, split="train-{0000..0003}.tar|9")
    refused("wds/: .*number of samples", wds, root, split="train-{0000..0001}.tar", is_training=True)
    refused("root: there is no folder.*did you mean .*/shards", wds, tmp_path / "shrds")
    refused("name: 'wsd' is unknown.*'wds'", timm_dataset, "wsd/", root)
    refused("root: there is no folder", timm_dataset, "", tmp_path / "nowhere")
    monkeypatch.setattr("gkd_plugin.data.streams.find_spec", lambda _: None)
    refused(r"'wds/' needs webdataset: pip install 'gkd-plugin\[streaming\]'", wds, root)
    refused("'tfds/x' needs tensorflow_datasets: pip install tensorflow", timm_dataset, "tfds/x")


def test_a_folder_through_timm_has_an_index(tmp_path):
    dataset = timm_dataset("", image_tree(tmp_path / "own", ["b", "a"]), transform=ToTensor())
    assert len(image_keys(dataset)) == len(dataset)  # a cache, and the check of the test set, know them again
    assert (dataset.classes, labels_of(dataset)) == (["a", "b"], [0, 0, 1, 1])
    assert dataset[2][0].shape == (3, 10, 12)


@pytest.mark.parametrize("name", ["hfds", "hfids"])
def test_a_set_of_hugging_face(name, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    (tmp_path / "own/data").mkdir(parents=True)
    for shard in (0, 1):
        images = [Image.new("RGB", (4, 4), (10 * (2 * number + shard), 0, 0)) for number in range(6)]
        rows = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 2] * 2}, features)
        rows.to_parquet(tmp_path / f"own/data/train-{shard:05d}-of-00002.parquet")
    streamed = {"num_samples": 12} if name == "hfids" else {}
    kwargs = {"transform": lambda image: image.getpixel((0, 0))[0] // 10, "root": tmp_path / "cache", **streamed}
    sets = [timm_dataset(f"{name}/{tmp_path / 'own'}", **kwargs) for _ in (0, 1)]
    if name == "hfids":
        found = [epoch(of_rank(dataset, rank, 2))[0] for rank, dataset in enumerate(sets)]
        assert sorted(chain(*chain(*found))) == [*range(12)]
    else:
        assert (class_names_of(sets[0]), labels_of(sets[0])) == (["a", "b", "c"], 4 * [0, 1, 2])
        assert sets[0][7] == (3, 1)


def test_processes_with_different_numbers_of_batches_are_measured_as_one(tmp_path, monkeypatch):
    """The sums are reduced at the end; no batch is gathered."""
    stream = timm_dataset("wds/", shards(tmp_path / "shards", [6, 5]), transform=ToTensor())
    loader = build_data_loader(stream, _loader(), False)
    accelerator = cpu()
    accuracy = evaluate(lambda images: torch.eye(3)[(3 * images[:, 1, 0, 0]).round().long()], loader, accelerator)
    assert (accuracy.top1, accuracy.samples, accuracy.classes) == (100.0, 11, 3)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The configuration of docs/streams.md in a folder with shards of 56 samples."""
    monkeypatch.chdir(tmp_path)
    block, *_ = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/streams.md").read_text(encoding="utf-8"), re.DOTALL)
    Path("streams.yaml").write_text(block, encoding="utf-8")
    shards(tmp_path / "data/shards", [14, 14, 13, 15], classes=5)
    return tmp_path


SETS = [f"datasets.own/{name}.init.kwargs" for name in ("train", "validation", "test")]
STUDENT = "models.student_model.kwargs"
SMALL = [
    *(f"{kwargs}.split=train" for kwargs in SETS),
    *(
        f"{loader}.kwargs={{batch_size: 8, num_workers: 0}}"
        for loader in ("train.train_data_loader", "train.val_data_loader")
    ),
    "test.test_data_loader.kwargs={batch_size: 8, num_workers: 0}",
    "x-size=32",
    "datasets.own/train.init.kwargs.sample_shuffle_size=8",
    "models.teacher_model.kwargs={model_name: test_resnet, num_classes: 7}",
    f"{STUDENT}={{model_name: test_vit, img_size: 32, num_classes: 5, drop_rate: 0.2}}",
    "train.num_epochs=2",
]


def run(output, *changes, **options):
    config = load_config(Path("streams.yaml"), [*SMALL, *changes])
    return run_config(config, Path(output), device="cpu", **options)


def test_a_whole_run_from_shards(here, caplog):
    caplog.set_level(logging.INFO)
    made, log = run("out"), Path("out/log.txt").read_text(encoding="utf-8")
    assert (made["status"], len(made["stages"]["train"]["epochs"])) == ("finished", 2)
    assert "the stream holds 56 samples of 5 classes, 11 of the smallest" in log
    assert "WARN" not in re.sub(".*sample.*|.*near chance.*", "", log)
    assert "not checked" not in log
    assert made["teacher"]["ncm_top1"] > 40  # a guess is right in 20 %
    assert (made["final"]["on"], made["final"]["samples"]) == ("test", 56)
    assert "not measured, a stream has no index" in log  # the student's NCM accuracy


@pytest.mark.parametrize("classes", [3, 7])
def test_a_wrong_number_of_classes_is_told_with_its_key(classes, here):
    changes = f"{STUDENT}={{model_name: test_vit, img_size: 32, num_classes: {classes}}}"
    found = f"{STUDENT}.num_classes: {'3 allows 0 … 2' if classes == 3 else '7 given, .* has 5 classes'}"
    refused(found, run, "out", changes)


@pytest.mark.parametrize("kept", [(), ("teacher_cache={views: 2, folder: kept}",)])
def test_a_run_from_shards_goes_on_with_the_same_bytes(kept, here, monkeypatch):
    step, steps = Training._step, []

    def stop(*args):
        steps.append(args)
        if len(steps) == 13:  # of 8 in an epoch
            raise KeyboardInterrupt
        return step(*args)

    changes = ["checkpoint.every_steps=5", "train.train_data_loader.kwargs.num_workers=2", *kept]
    run("whole", *changes)
    monkeypatch.setattr(Training, "_step", stop)
    with pytest.raises(KeyboardInterrupt):
        run("stopped", *changes)
    run("stopped", *changes, earlier="resume")
    assert len(steps) == 13 + 16 - 10
    assert equal(*(load_file(f"{name}/student.safetensors") for name in ("whole", "stopped")))


def test_both_published_stages_read_the_stream(here, caplog):
    caplog.set_level(logging.INFO)
    tree = load_config(Path("streams.yaml"), SMALL).tree
    stage = {**tree["train"], "num_epochs": 1, "scheduler": {}}
    log_freq = stage.pop("log_freq")
    kinds = {f"stage{number}": {"stage": kind} for number, kind in enumerate(("embedding", "classifier"), 1)}
    stages = {name: {**stage, "criterion": {"key": "refilled", "kwargs": kind}} for name, kind in kinds.items()}
    made = run_config(checked_config(Path("x.yaml"), {**tree, "train": {"log_freq": log_freq, **stages}}), here / "out")
    rows = [row for stage in made["stages"].values() for row in stage["epochs"]]
    assert "ncm_top1" in rows[0]
    assert "top1" in rows[1]
    assert (here / "out/log.txt").read_text(encoding="utf-8").count("the stream holds") == 1  # fitted once


def test_the_local_classifier_is_fitted_to_the_first_samples_of_each_class(tmp_path, monkeypatch):
    """The same as of a set with an index, of which no more are read than needed."""
    monkeypatch.setattr(fitting, "MAX_ROWS", 8)
    stream = wds(shards(tmp_path / "shards", [9, 11]), is_training=True)
    loader = build_data_loader(stream, _loader(), False)
    counts = Counter({0: 7, 1: 7, 2: 6})
    teacher = SimpleNamespace(fields=lambda numbers: {"embedding": numbers})
    found = list(fitting._stream_views(stream, loader, counts, teacher, None))
    labels = torch.cat([of for _, of, _ in found])
    assert torch.cat([answers.embedding for answers, _, _ in found]).tolist() == [0, 1, 2, 3, 4, 5]
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.cat([numbers for _, _, numbers in found]).tolist() == list(range(6))
    monkeypatch.setattr(fitting, "MAX_ROWS", 45)
    found = list(fitting._stream_views(stream, loader, counts, teacher, None))
    assert torch.cat([numbers for _, _, numbers in found]).tolist() == 2 * list(range(20))


def test_the_same_file_under_torchdistills_script(here):
    tree = load_config(Path("streams.yaml"), SMALL).tree
    Path("small.yaml").write_text(dump(tree), encoding="utf-8")
    assert set(drive(Path("small.yaml"))) == {"teacher", "student"}


def test_two_processes_train_on_shards_of_their_own_and_measure_each_sample_once(here):
    words = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--rdzv_endpoint"]
    words += ["localhost:0", "--rdzv_backend", "c10d", "-m", "gkd_plugin", "run", "streams.yaml", "--device", "cpu"]
    sets = [
        word
        for change in [*SMALL, "train.log_freq=1", "teacher_cache={views: 2, folder: two}"]
        for word in ("--set", change)
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = {"capture_output": True, "text": True, "timeout": 400}
    done = subprocess.run([sys.executable, *words, *sets, "--output", "out"], env=env, check=False, **options)
    assert done.returncode == 0, done.stderr
    made = json.loads(Path("out/summary.json").read_text("utf-8"))
    assert (made["processes"], made["final"]["samples"]) == (2, 56)
    run("alone", "teacher_cache={views: 2, folder: one}")
    banks = [sorted(Path(folder).glob("*.npy")) for folder in ("one", "two")]
    assert len(banks[0]) == 4
    for one, two in zip(*banks, strict=True):
        assert one.name == two.name
        for name, values in read_bank(Banks([one]), torch.arange(26)).items():
            torch.testing.assert_close(read_bank(Banks([two]), torch.arange(26))[name], values, rtol=2e-3, atol=2e-3)
    assert "step 4/4" in Path("out/log.txt").read_text("utf-8")


BALANCED = "{classes_per_batch: 2, samples_per_class: 2}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            f"train.train_data_loader.batch_sampler={{key: ClassBalancedBatchSampler, kwargs: {BALANCED}}}",
            "train.train_data_loader.batch_sampler: .*queue_size",
        ),
        (
            "train.train_data_loader.sampler.class_or_func=!import_get {key: torch.utils.data.RandomSampler}",
            "train.train_data_loader.sampler: .*RandomSampler",
        ),
        (
            "train.train_data_loader.dataset_wrapper={key: SSKDDatasetWrapper}",
            "train.train_data_loader.dataset_wrapper: a stream",
        ),
        ("train.val_data_loader.kwargs.drop_last=True", "train.val_data_loader.kwargs.drop_last: True"),
        (f"{SETS[0]}.is_training=False", "datasets.own/train: is_training is False.*must be True"),
        (f"{SETS[2]}.is_training=True", "datasets.own/test: is_training is True.*must be False"),
        (
            "train.train_data_loader.kwargs.num_workers=5",
            "train.train_data_loader.kwargs.num_workers: 5 given.*4 shards",
        ),
    ],
)
def test_what_a_stream_cannot_do_is_refused_where_it_is_written(change, message, here):
    changes = [word for word in SMALL if not ("batch_size" in word and "batch_sampler" in change)]
    if "batch_sampler" in change:
        changes.append("train.train_data_loader.kwargs={num_workers: 0}")
    config = load_config(Path("streams.yaml"), [*changes, change])
    refused(message, run_config, config, Path("out"), device="cpu")
    assert not Path("out").exists()
