from __future__ import annotations

import numpy as np
import pytest
from torch.utils.data import DataLoader
from torchvision.transforms import ToTensor

from gkd_plugin.data import ArrayImages, class_subset, evaluation_view, npz_images
from gkd_plugin.errors import ConfigError

RGB = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3)
GREY = RGB[..., 0]


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, x_train=RGB, y_train=[0, 1, 1], x_test=RGB[:1], y_test=[1], class_names=np.array(["ant", "bee"]))
    return path


@pytest.mark.parametrize(("images", "mode"), [(RGB, "RGB"), (GREY, "L")])
def test_samples_are_pil_images_and_integer_labels(images, mode):
    image, label = ArrayImages(images, np.array([2, 0, 1]))[0]
    assert image.mode == mode
    assert np.array_equal(np.asarray(image), images[0])
    assert (label, type(label)) == (2, int)


def test_the_transform_is_applied():
    dataset = ArrayImages(RGB, [2, 0, 1], transform=ToTensor())
    images, labels = next(iter(DataLoader(dataset, batch_size=3)))
    assert images.shape == (3, 3, 4, 4)
    assert labels.tolist() == dataset.targets == [2, 0, 1]


def test_class_names_default_to_the_labels():
    assert ArrayImages(RGB, [2, 0, 1]).classes == ["0", "1", "2"]
    assert ArrayImages(RGB, [0, 0, 1], ["ant", "bee"]).classes == ["ant", "bee"]


def test_the_evaluation_view_exists_only_with_its_transform():
    assert not evaluation_view(ArrayImages(RGB, [2, 0, 1]))[1]
    dataset = ArrayImages(RGB, [2, 0, 1], transform=lambda _: "augmented", eval_transform=lambda _: "clean")
    assert dataset[0] == ("augmented", 2)
    assert evaluation_view(dataset)[0][0] == ("clean", 2)
    assert evaluation_view(class_subset(dataset, [1]))[0][0] == ("clean", 0)
    assert not evaluation_view(evaluation_view(dataset)[0])[1]


@pytest.mark.parametrize("images", [RGB.astype(np.float32), RGB[0, 0], RGB[..., :2]])
def test_other_arrays_are_refused(images):
    with pytest.raises(ConfigError, match=r"images must be uint8 \[N, H, W\]"):
        ArrayImages(images, [0] * len(images))


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_other_arrays_are_not_pooled(tmp_path, dtype):
    np.savez(tmp_path / "a.npz", x_train=np.zeros((2, 4, 4, 3), dtype), y_train=[0, 1])
    with pytest.raises(ConfigError, match=r"images must be uint8 \[N, H, W\]"):
        npz_images(tmp_path / "a.npz", pool=2)


def test_one_label_for_each_image_is_needed():
    with pytest.raises(ConfigError, match="2 labels for 3 images"):
        ArrayImages(RGB, [0, 1])


def test_an_archive_is_read_by_split(archive):
    train, test = npz_images(archive), npz_images(str(archive), "test")
    assert (len(train), len(test)) == (3, 1)
    assert train.targets == [0, 1, 1]
    assert train.classes == test.classes == ["ant", "bee"]
    assert np.array_equal(train.data, RGB)


def test_transforms_reach_the_dataset(archive):
    dataset = npz_images(archive, transform=lambda _: "augmented", eval_transform=lambda _: "clean")
    assert dataset[1] == ("augmented", 1)
    assert evaluation_view(dataset)[0][1] == ("clean", 1)


def test_class_names_are_optional(tmp_path):
    np.savez(tmp_path / "plain.npz", x_val=GREY, y_val=[0, 1, 2])
    assert npz_images(tmp_path / "plain.npz", "val").classes == ["0", "1", "2"]


@pytest.mark.parametrize("images", [RGB, GREY])
def test_pooling_is_the_rounded_mean_of_squares(tmp_path, images):
    np.savez(tmp_path / "a.npz", x_train=images, y_train=[0, 1, 2])
    pooled = npz_images(tmp_path / "a.npz", pool=2).data
    assert pooled.dtype == np.uint8
    assert pooled.shape == (3, 2, 2, *images.shape[3:])
    for n, row, column in np.ndindex(3, 2, 2):
        square = images[n, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].astype(float)
        assert np.array_equal(pooled[n, row, column], np.rint(square.mean(axis=(0, 1))))


def test_pooling_must_divide_the_image(archive):
    with pytest.raises(ConfigError, match=r"pool=3 does not divide images of 4 × 4"):
        npz_images(archive, pool=3)
    with pytest.raises(ConfigError, match="pool must be"):
        npz_images(archive, pool=0)


def test_a_missing_file_names_its_neighbours(archive):
    with pytest.raises(ConfigError, match=r"there is no file .*image\.npz.*did you mean 'images\.npz'"):
        npz_images(archive.with_name("image.npz"))
    with pytest.raises(ConfigError, match="there is no file"):
        npz_images(archive.parent / "nowhere" / "image.npz")


def test_an_unknown_split_says_what_the_file_holds(archive):
    with pytest.raises(ConfigError, match=r"no x_tran and y_tran; did you mean 'train'.*class_names, x_test"):
        npz_images(archive, "tran")


def test_files_of_other_kinds_are_refused(tmp_path):
    text = tmp_path / "text.npz"
    text.write_text("no archive")
    single = tmp_path / "single.npy"
    np.save(single, RGB)
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK\x03\x04 no more")
    empty = tmp_path / "empty.npz"
    empty.touch()
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, x_train=np.array([object()]), y_train=[0])
    for path in (text, single, broken, empty, pickled):
        with pytest.raises(ConfigError, match="path: ") as caught:
            npz_images(path)
        assert "\n" not in str(caught.value)
