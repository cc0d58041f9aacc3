from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from gkd_plugin.cache.fingerprint import data_key
from gkd_plugin.data import FixedViews, class_subset, evaluation_view, image_folder, image_transform, normalisation_of
from gkd_plugin.errors import ConfigError
from tests.data.image_trees import image_tree


@pytest.fixture
def tree(tmp_path):
    return image_tree(tmp_path / "train", ["cat", "ant"], per_class=3)


def test_samples_and_classes_are_those_of_torchvision(tree):
    dataset, reference = image_folder(tree), ImageFolder(str(tree))
    assert dataset.classes == reference.classes == ["ant", "cat"]
    assert dataset.targets == reference.targets == [0, 0, 0, 1, 1, 1]
    assert len(dataset) == 6
    for (image, label), (expected, expected_label) in zip(dataset, reference, strict=True):
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), np.asarray(expected))
        assert (label, type(label)) == (expected_label, int)


def test_the_evaluation_view_exists_only_with_its_transform(tree):
    assert not evaluation_view(image_folder(str(tree)))[1]
    dataset = image_folder(tree, transform=lambda _: "augmented", eval_transform=lambda _: "clean")
    assert dataset[3] == ("augmented", 1)
    assert evaluation_view(dataset)[0][3] == ("clean", 1)
    assert evaluation_view(dataset)[0].targets == dataset.targets
    assert evaluation_view(class_subset(dataset, ["cat"]))[0][0] == ("clean", 0)
    assert not evaluation_view(evaluation_view(dataset)[0])[1]


def test_the_normalisation_is_found(tree):
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    augmenting = image_transform(8, mean, std, train=True, crop="resized", flip=True)
    dataset = image_folder(tree, augmenting, image_transform(8, mean, std, resize=9))
    for known in (dataset, evaluation_view(dataset)[0], class_subset(dataset, [1])):
        assert normalisation_of(known).mean == pytest.approx(mean)
        assert normalisation_of(known).std == pytest.approx(std)
    assert FixedViews(dataset, views=2)[0][0].shape == (3, 8, 8)


def test_its_files_have_a_fingerprint(tree):
    before = data_key(image_folder(tree))
    assert before == data_key(image_folder(tree, transform=lambda _: "augmented"))
    Image.new("RGB", (30, 30)).save(tree / "ant" / "0.png")
    assert data_key(image_folder(tree)) != before


def test_a_missing_folder_names_its_neighbours(tree):
    with pytest.raises(ConfigError, match=r"root: there is no folder .*trian; in .*did you mean 'train'"):
        image_folder(tree.with_name("trian"))
    with pytest.raises(ConfigError, match=r"root: there is no folder .*here$"):
        image_folder(tree / "not" / "here")


def test_a_folder_without_classes_or_images_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"root: .*needs a folder of images for each class"):
        image_folder(tmp_path)
    image_tree(tmp_path, ["ant"])
    (tmp_path / "bee").mkdir()
    with pytest.raises(ConfigError, match=r"root: .*Found no valid file for the classes bee"):
        image_folder(tmp_path)


def test_an_unreadable_image_is_named(tree):
    (tree / "ant" / "0.png").write_text("no image")
    (tree / "ant" / "1.png").write_bytes((tree / "ant" / "2.png").read_bytes()[:50])
    dataset = image_folder(tree)
    for index in (0, 1):
        with pytest.raises(ConfigError, match=rf"image .*{index}\.png cannot be read: it is damaged"):
            dataset[index]
    (tree / "ant" / "2.png").unlink()
    with pytest.raises(ConfigError, match=r"image .*2\.png cannot be read: No such file"):
        dataset[2]
