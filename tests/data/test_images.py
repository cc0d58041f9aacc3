import itertools
import re
import sys
from collections import Counter

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from gkd_plugin.data import ArrayImages, cub200, digits, evaluation_view, image_folder, npz_images
from tests.data.fakes import cub_tree, image_tree, samples
from tests.runner.fakes import refused

RGB = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3)
GREY = RGB[..., 0]


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, x_train=RGB, y_train=[0, 1, 1], x_test=RGB[:1], y_test=[1], class_names=np.array(["ant", "bee"]))
    return path


@pytest.fixture
def tree(tmp_path):
    return image_tree(tmp_path / "train", ["cat", "ant"], per_class=3)


def test_a_transform_that_takes_no_image_is_refused():
    for name, given in itertools.product(("transform", "eval_transform"), (0, False, "flip", [])):
        refused(
            rf"^{name}: {re.escape(repr(given))} given; .*image_transform",
            ArrayImages,
            GREY,
            [0, 1, 1],
            **{name: given},
        )


def test_transforms_and_the_evaluation_view_reach_every_dataset(archive, tree, tmp_path):
    sources = {npz_images: [archive], image_folder: [tree], cub200: [cub_tree(tmp_path)], digits: []}
    for make, source in sources.items():
        dataset = make(*source, transform=lambda _: "augmented", eval_transform=lambda _: "clean")
        view, found = evaluation_view(dataset)
        assert found
        assert dataset[1] == ("augmented", dataset.targets[1])
        assert view[1] == ("clean", dataset.targets[1])
        assert (view.targets, view.classes) == (dataset.targets, dataset.classes)


@pytest.mark.parametrize(("images", "mode"), [(RGB, "RGB"), (GREY, "L")])
def test_arrays_are_pil_images_with_integer_labels(images, mode):
    dataset = ArrayImages(images, np.array([2, 0, 1]))
    image, label = dataset[0]
    assert image.mode == mode
    assert np.array_equal(np.asarray(image), images[0])
    assert (label, type(label)) == (2, int)
    assert dataset.classes == ["0", "1", "2"]
    assert ArrayImages(images, [0, 0, 1], ["ant", "bee"]).classes == ["ant", "bee"]


def test_other_arrays_are_refused():
    for images in (RGB.astype(float), RGB[0, 0], RGB[..., :2]):
        refused(r"images must be uint8 \[N, H, W\]", ArrayImages, images, [0, 1, 1])
    refused("3 labels for 2 images", ArrayImages, RGB[:2], [0, 1, 1])


@pytest.mark.parametrize("images", [RGB, GREY])
def test_an_archive_is_read_by_split_and_pooling_is_the_rounded_mean_of_squares(archive, tmp_path, images):
    train, test = npz_images(archive), npz_images(str(archive), "test")
    assert (train.targets, test.targets) == ([0, 1, 1], [1])
    assert train.classes == test.classes == ["ant", "bee"]
    np.savez(tmp_path / "plain.npz", x_val=images, y_val=[0, 1, 2])
    pooled = npz_images(tmp_path / "plain.npz", "val", pool=2)
    assert pooled.classes == ["0", "1", "2"]
    assert (pooled.data.dtype, pooled.data.shape) == (np.uint8, (3, 2, 2, *images.shape[3:]))
    for n, row, column in np.ndindex(3, 2, 2):
        square = images[n, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].astype(float)
        assert np.array_equal(pooled.data[n, row, column], np.rint(square.mean(axis=(0, 1))))


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (npz_images, {"path": "images.npz", "pool": 3}, "pool=3 does not divide images of 4 × 4"),
        (npz_images, {"path": "images.npz", "pool": 0}, "pool must be"),
        (npz_images, {"path": "images.npz", "split": "tran"}, "no x_tran and y_tran; did you mean 'train'"),
        (npz_images, {"path": "image.npz"}, r"path: there is no file .*image\.npz.*did you mean .*images\.npz"),
        (digits, {"split": "tset"}, "split: 'tset' is unknown; did you mean 'test'"),
        (digits, {"test_fraction": 1.0}, "test_fraction must lie between 0 and 1, got 1.0"),
        (digits, {"test_fraction": 20}, "test_fraction must lie between 0 and 1, got 20"),
        (digits, {"test_fraction": 0.001}, "test_fraction must .*leave samples of each class, got 0.001"),
        (digits, {"seed": -1}, "seed must be"),
        (digits, {"size": 0}, "size must be"),
    ],
)
def test_unusable_arguments_are_refused(archive, make, arguments, message, monkeypatch):
    monkeypatch.chdir(archive.parent)
    refused(message, make, **arguments)


def test_files_of_other_kinds_are_refused(tmp_path):
    contents = {"text.npz": b"no archive", "broken.npz": b"PK\x03\x04 no more", "empty.npz": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    np.save(tmp_path / "single.npy", RGB)
    np.savez(tmp_path / "pickled.npz", x_train=np.array([object()]), y_train=[0])
    for name in (*contents, "single.npy", "pickled.npz"):
        refused("path: ", npz_images, tmp_path / name)


def test_the_splits_of_the_digits_share_nothing_and_lose_nothing():
    train, test = digits("train"), digits("test")
    assert (len(train), len(test)) == (1198, 599)
    splits = (train, test, digits("train", 0.5), digits("test", 0.5))
    rows = [Counter(image.tobytes() for image in split.data) for split in splits]
    assert rows[0] + rows[1] == rows[2] + rows[3]
    assert not rows[0] & rows[1]
    counts = Counter(train.targets), Counter(test.targets)
    assert all(abs(counts[0][k] - 2 * counts[1][k]) <= 2 for k in range(10))


def test_digits_are_grey_and_use_the_whole_range_and_name_the_extra_that_they_need(monkeypatch):
    dataset = digits()
    assert np.array_equal(digits().data, dataset.data)
    assert not np.array_equal(digits(seed=1).data, dataset.data)
    assert (dataset.data.min(), dataset.data.max()) == (0, 255)
    assert dataset.classes == list("0123456789")
    assert digits(size=16).data.shape == (1198, 16, 16)
    assert digits(rgb=True).data.shape == (1198, 8, 8, 3)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    refused(r"pip install 'gkd-plugin\[digits\]'", digits)


def test_a_folder_is_read_as_by_torchvision_unless_it_is_missing_or_holds_no_classes_or_images(tree):
    image_tree(tree / "cat" / "more", ["b", "a"], per_class=2)
    dataset, reference = image_folder(tree), ImageFolder(str(tree))
    assert dataset.classes == ["ant", "cat"]
    assert dataset.samples == reference.samples
    assert samples(dataset) == samples(reference)
    for name in (".ipynb_checkpoints", "__MACOSX"):  # are no classes
        (tree / name).mkdir()
    assert image_folder(tree).samples == reference.samples
    refused(r"root: there is no folder .*trian; .*did you mean .*train", image_folder, tree.with_name("trian"))
    refused(r"root: .*needs a folder of images for each class", image_folder, tree / "ant")
    (tree / "bee").mkdir()
    refused(r"root: .*no image in the folders of 1 of 3 classes: bee", image_folder, tree)


def test_images_that_cannot_be_read_are_found_in_all_classes_at_once(tree, tmp_path):
    for path in (tree / "ant" / "1.png", tree / "cat" / "0.png"):
        path.write_bytes(path.read_bytes()[:40])
    refused(r"2 of 6 images in .*train .*: ant/1\.png, cat/0\.png .*: 'skip'", image_folder, tree)
    dataset = image_folder(tree, on_bad_image="skip")
    assert dataset.targets == [0, 0, 1, 1]
    assert len(samples(dataset)) == 4
    refused("on_bad_image: 'ignore' is unknown; .*'refuse', 'skip'", image_folder, tree, on_bad_image="ignore")
    for path in (tree / "ant").iterdir():
        path.write_bytes(b"")
    refused("root: .*no image in the folders of 1 of 2 classes: ant", image_folder, tree, on_bad_image="skip")
    cub = cub_tree(tmp_path)
    (cub / "images" / "001.Bird_0" / "1.png").write_bytes(b"")
    refused(r"1 of 6 images in .*images/001\.Bird_0/1\.png", cub200, cub)
    assert len(cub200(cub, "test")) == 6


def test_a_test_set_has_the_classes_of_the_training_set(tree, tmp_path):
    train = image_tree(tmp_path / "all", ["ant", "bee", "cat"])
    dataset = image_folder(tree, classes_of=train)
    assert dataset.classes == ["ant", "bee", "cat"]
    assert dataset.targets == [0, 0, 0, 2, 2, 2]
    refused(
        "root: class folder of .*all: 'bee' is unknown; allowed: 'ant', 'cat'", image_folder, train, classes_of=tree
    )
    refused("classes_of: there is no folder", image_folder, tree, classes_of=tmp_path / "none")
    refused("classes_of: .* holds no folders", image_folder, tree, classes_of=tree / "ant")


def test_the_official_split_and_labels_of_cub200(tmp_path):
    cub = cub_tree(tmp_path)
    train, test = cub200(cub), cub200(str(cub), "test")
    for dataset, numbers in ((train, (0, 1)), (test, (2, 3))):  # the tree paints red = 10 · class, green = number
        red_and_green = [(*image.getpixel((0, 0))[:2], label) for image, label in samples(dataset)]
        assert red_and_green == [(10 * label, number, label) for label in range(3) for number in numbers]
    assert train.classes == test.classes == ["001.Bird_0", "002.Bird_1", "003.Bird_2"]
    for name in ("image_class_labels.txt", "train_test_split.txt"):  # whose order does not matter
        (cub / name).write_text("\n".join(reversed((cub / name).read_text().splitlines())))
    assert cub200(cub.parent).samples == train.samples  # the folder that the archive was unpacked in


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("classes.txt", None, "root: .*classes.txt.* cannot be read"),
        ("images.txt", b"1 \xff\xfe\n", "images.txt.* cannot be read"),
        ("images.txt", b"1 a.png\n2\n", "line 2: '2' given; must be a new number and a value"),
        ("images.txt", b"one a.png\n", "line 1: 'one a.png' given"),
        ("images.txt", b"1 a.png\n1 b.png\n", "line 2: '1 b.png' given; must be a new number"),
        ("images.txt", b"", "images.txt is empty"),
        ("images.txt", b"13 a.png\n", "image_class_labels.txt has no line for image 13 "),
        ("classes.txt", b"1 ant\n2 bee\n", "image 9: '3' is unknown; allowed: '1', '2'"),
        ("train_test_split.txt", b"".join(b"%d 2\n" % n for n in range(1, 13)), "image 1: '2' .*allowed: '0', '1'"),
        ("images/002.Bird_1/0.png", None, r"1 of 6 images of images\.txt are missing, e\.g\. .*002\.Bird_1/0\.png"),
    ],
)
def test_a_missing_or_malformed_file_is_named(tmp_path, name, content, message):
    cub = cub_tree(tmp_path)
    (cub / name).unlink()
    if content is not None:
        (cub / name).write_bytes(content)
    refused(message, cub200, cub)
    refused("split: 'val' is unknown", cub200, cub, "val")
