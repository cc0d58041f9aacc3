from __future__ import annotations

import pytest

from gkd_plugin.data import cub200, evaluation_view, overlap_subset
from gkd_plugin.errors import ConfigError
from tests.data.image_trees import cub_tree


@pytest.fixture
def folder(tmp_path):
    return cub_tree(tmp_path, num_classes=3, per_class=4)


def red_and_green(dataset):
    """(red, green, label): what the tree painted, class and number in it."""
    return [(*image.getpixel((0, 0))[:2], label) for image, label in (dataset[i] for i in range(len(dataset)))]


def test_the_official_split_and_labels(folder):
    train, test = cub200(folder), cub200(str(folder), "test")
    assert red_and_green(train) == [(10 * label, number, label) for label in range(3) for number in (0, 1)]
    assert red_and_green(test) == [(10 * label, number, label) for label in range(3) for number in (2, 3)]
    assert train.classes == test.classes == ["001.Bird_0", "002.Bird_1", "003.Bird_2"]
    assert train.targets == [0, 0, 1, 1, 2, 2]


def test_the_folder_that_the_archive_was_unpacked_in_will_do(folder):
    assert cub200(folder.parent).samples == cub200(folder).samples


def test_the_order_of_the_files_does_not_matter(folder):
    expected = cub200(folder).samples
    for name in ("image_class_labels.txt", "train_test_split.txt"):
        lines = (folder / name).read_text().splitlines()
        (folder / name).write_text("\n".join(reversed(lines)))
    assert cub200(folder).samples == expected


def test_transforms_and_the_evaluation_view(folder):
    dataset = cub200(folder, "train", transform=lambda _: "augmented", eval_transform=lambda _: "clean")
    subset = overlap_subset(dataset, 1, "student", overlap=0.0)
    assert subset.classes == ["002.Bird_1"]
    assert subset[0] == ("augmented", 0)
    view, found = evaluation_view(subset)
    assert found
    assert view[0] == ("clean", 0)


def test_an_unknown_split_is_refused(folder):
    with pytest.raises(ConfigError, match=r"split: 'val' is unknown; .*'test', 'train'"):
        cub200(folder, "val")


def test_a_missing_folder_is_refused(folder):
    with pytest.raises(ConfigError, match=r"root: there is no folder .*; in its folder did you mean 'CUB_200_2011'"):
        cub200(folder.with_name("CUB_200"))


@pytest.mark.parametrize("name", ["classes.txt", "images.txt", "image_class_labels.txt", "train_test_split.txt"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=rf"root: there is no file .*{name}"):
        cub200(folder)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("images.txt", "1 a.png\n2\n", "line 2: '2' given; must be a number and a value"),
        ("images.txt", "one a.png\n", "line 1: 'one a.png' given"),
        ("images.txt", "1 a.png\n1 b.png\n", "line 2: number 1 is there twice"),
        ("images.txt", "", "images.txt is empty"),
        ("images.txt", "13 a.png\n", "image_class_labels.txt has no line for image 13 "),
        ("classes.txt", "1 ant\n2 bee\n", "image 9 has '3'; allowed: '1', '2'"),
        ("train_test_split.txt", "\n".join(f"{n} 2" for n in range(1, 13)), "image 1 has '2'; allowed: '0', '1'"),
    ],
)
def test_a_malformed_file_is_named(folder, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        cub200(folder)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(folder):
    (folder / "images.txt").write_bytes(b"1 \xff\xfe\n")
    with pytest.raises(ConfigError, match=r"images\.txt cannot be read"):
        cub200(folder)


def test_a_missing_image_is_named(folder):
    missing = folder / "images" / "002.Bird_1" / "0.png"
    missing.unlink()
    with pytest.raises(ConfigError, match=r"1 of 6 images of images\.txt are missing, e\.g\. .*002\.Bird_1/0\.png"):
        cub200(folder)
    assert len(cub200(folder, "test")) == 6
