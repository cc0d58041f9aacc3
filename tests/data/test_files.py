"""Which image files are found, and that every kind of image that people have comes out as they see it."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from gkd_plugin.data import files
from gkd_plugin.data.files import first_difference, images_below, read_image, unreadable_images
from tests.damage import damaged
from tests.data.fakes import image_tree
from tests.runner.fakes import refused

RAMP = np.linspace(0, 1, 256).reshape(16, 16)
GREY = np.rint(255 * RAMP).astype(np.uint8)


def names(folder):
    return [os.path.relpath(path, folder) for path in images_below(folder)]


def test_the_images_of_a_folder(tmp_path, caplog):
    image_tree(tmp_path, ["b", "a"], per_class=1)
    for name in ("one.JFIF", "two.gif", "a/four.webp", "a/._four.webp", "a/.hidden/0.png", "__MACOSX/0.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expected = ["one.JFIF", "two.gif", "a/0.png", "a/four.webp", "b/0.png"]
    assert names(tmp_path) == expected
    assert not caplog.text
    for name in ("notes.txt", "more.txt", "README", "track.fit"):
        (tmp_path / name).touch()
    assert names(tmp_path) == expected
    assert "4 files are no images and are left out: .txt (2)" in caplog.text


@pytest.mark.parametrize(
    ("there", "wanted", "differs"),
    [
        ("a\nb\n", "a\r\nb", ""),
        (b"a\nb\xe9", "a\nb", "line 2 says 'b\ufffd', not 'b'"),
        ("a\nb\n", "a\nc\nd", "line 2 says 'b', not 'c'"),
        ("a\n b", "a", "line 2 says ' b', not ''"),
        ("x" * 90 + "--lr 1", "x" * 90 + "--lr 2", f"line 1 says '{'x' * 15}--lr 1', not '{'x' * 15}--lr 2'"),
        ("z" + "y" * 90, "y" * 90, f"line 1 says 'z{'y' * 59}', not '{'y' * 60}'"),
    ],
)
def test_the_first_line_that_differs(there, wanted, differs, tmp_path):
    file = tmp_path / "x.yaml"
    file.write_bytes(there if isinstance(there, bytes) else there.encode())
    assert first_difference(file, wanted) == differs


def test_links_are_followed_once(tmp_path):
    image_tree(tmp_path / "far", ["x"], per_class=2)
    image_tree(tmp_path, ["a"], per_class=1)
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "a" / "there").symlink_to(tmp_path / "far" / "x", target_is_directory=True)
    (tmp_path / "a" / "also").symlink_to(tmp_path / "far" / "x", target_is_directory=True)
    (tmp_path / "a" / "gone").symlink_to(tmp_path / "nowhere", target_is_directory=True)
    assert names(tmp_path / "a") == ["0.png", "also/0.png", "also/1.png"]


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("8.png", GREY),
        ("16.png", (257 * GREY.astype(np.uint16))),
        ("16.tif", (257 * GREY.astype(np.uint16))),
        ("32.tif", np.rint(RAMP * (2**31 - 1)).astype(np.int32)),
        ("16in32.tif", (257 * GREY.astype(np.int32))),
        ("unit.tif", RAMP.astype(np.float32)),
        ("bytes.tif", (255 * RAMP).astype(np.float32)),
        ("words.tif", (65535 * RAMP).astype(np.float32)),
    ],
)
def test_numbers_of_every_type_are_scaled_by_its_range(tmp_path, name, pixels):
    Image.fromarray(pixels).save(tmp_path / name)
    image = read_image(str(tmp_path / name))
    assert image.mode == "RGB"
    for channel in np.moveaxis(np.asarray(image), -1, 0):
        np.testing.assert_allclose(channel.astype(int), GREY.astype(int), atol=1)


def test_what_is_negative_or_no_number_is_black(tmp_path):
    odd = np.array([[-1, np.nan, np.inf], [0.5, 1, 1.005]], dtype=np.float32)
    for name, pixels, expected in (
        ("odd", odd, [[0, 0, 0], [128, 255, 255]]),
        ("black", np.zeros((1, 2), dtype=np.float32), [[0, 0]]),
        ("bytes", np.array([[-5, 0, 100, 255]], dtype=np.int32), [[0, 0, 100, 255]]),
    ):
        Image.fromarray(pixels).save(tmp_path / f"{name}.tif")
        assert np.asarray(read_image(str(tmp_path / f"{name}.tif")))[..., 0].tolist() == expected


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_is_rgb(tmp_path, mode):
    original = Image.fromarray(GREY).convert("RGB").convert(mode)
    path = tmp_path / f"image.{'tif' if mode in ('CMYK', 'YCbCr') else 'png'}"
    original.save(path)
    image = read_image(str(path))
    assert (image.mode, image.size) == ("RGB", (16, 16))
    assert np.array_equal(np.asarray(image), np.asarray(original.convert("RGB")))


def test_images_are_upright(tmp_path):
    """A camera that was held sideways says so beside the pixels; Pillow's own way is the reference."""
    colours = Image.fromarray(np.arange(12 * 8 * 3, dtype=np.uint8).reshape(8, 12, 3))
    for orientation in range(10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        colours.save(tmp_path / "turned.png", exif=exif)
        expected = ImageOps.exif_transpose(Image.open(tmp_path / "turned.png"))
        assert np.array_equal(np.asarray(read_image(str(tmp_path / "turned.png"))), np.asarray(expected))
    assert expected.size == (12, 8)  # there is no orientation 9


def test_a_damaged_tag_does_not_matter(tmp_path, monkeypatch):
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    monkeypatch.setattr(Image.Image, "getexif", lambda _: struct.unpack("<I", b""))
    assert np.array_equal(np.asarray(read_image(str(tmp_path / "grey.png")))[..., 0], GREY)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    image_tree(tmp_path, ["a", "b"], per_class=1)
    scan = os.scandir

    def forbidding(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", forbidding)
    refused("folder .*b cannot be read: Permission denied", images_below, tmp_path)


def test_an_unreadable_image_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    (tmp_path / "text.png").write_text("no image")
    for name in ("text", "cut"):
        refused(rf"image .*{name}\.png cannot be read: Pillow says: ", read_image, str(tmp_path / f"{name}.png"))
    refused(r"image .*gone\.png cannot be read: No such file", read_image, str(tmp_path / "gone.png"))


def test_images_that_cannot_be_read_are_listed_at_once(tmp_path, monkeypatch, caplog):
    image_tree(tmp_path, ["a"], per_class=3)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for name, kept in (("whole.jpg", None), ("half.jpg", 1500), ("nearly.jpg", -2)):
        photo.save(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:kept])
    (tmp_path / "empty.gif").touch()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    Image.new("1", (400, 400)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64)
    paths = images_below(tmp_path)
    bad = ["empty.gif", "gone.png", "half.jpg", "huge.png", "nearly.jpg"]
    message = f"5 of 9 images in {tmp_path} cannot be read: {', '.join(bad)} \\(the first: Pillow says: .*'skip'$"
    refused(message, unreadable_images, paths, tmp_path)
    assert not caplog.messages
    assert unreadable_images(paths, tmp_path, "skip") == {str(tmp_path / name) for name in bad}
    assert len(caplog.messages) == 1
    assert all(name in caplog.text for name in ("5 of 9", *bad))


def test_of_many_images_the_first_ten_are_named(tmp_path):
    for number in range(12):
        (tmp_path / f"{number:02}.png").touch()
    refused(r"12 of 12 images .* 09\.png, … \(the first: ", unreadable_images, images_below(tmp_path), tmp_path)


def test_an_image_is_decoded_once_unless_it_changes(tmp_path, monkeypatch):
    """Bad ones are looked at again; a memory that is damaged or cannot be written costs only the time."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    image_tree(tmp_path / "photos", ["a", "b"])
    (tmp_path / "photos" / "b" / "bad.png").touch()
    decoded, read = [], files._read
    monkeypatch.setattr(files, "_read", lambda path, **how: decoded.append(Path(path).name) or read(path, **how))

    def looks(where):
        decoded.clear()
        unreadable_images(images_below(where), where, "skip")
        return sorted(decoded)

    everything = ["0.png", "0.png", "1.png", "1.png", "bad.png"]
    assert looks(tmp_path / "photos") == everything
    assert looks(tmp_path / "photos") == ["bad.png"]
    monkeypatch.chdir(tmp_path)
    assert looks(Path("photos")) == ["bad.png"]
    os.utime("photos/a/1.png", ns=(1, 1))
    assert looks(Path("photos")) == ["1.png", "bad.png"]
    assert not {path.suffix for path in Path("photos").rglob("*.*")} - {".png"}
    (memory,) = Path("cache").rglob("*.json")
    memory.write_text(memory.read_text()[:-9])
    assert looks(Path("photos")) == everything
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "photos" / "a" / "0.png"))  # is no folder
    assert looks(Path("photos")) == looks(Path("photos")) == everything


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tif", "webp", "bmp"])
def test_a_damaged_image_is_read_or_named(suffix, tmp_path):
    """Whatever the damage: an image that is not named can be read in training."""
    path, named = tmp_path / f"image.{suffix}", 0
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    for number in range(30):
        path.write_bytes(damaged(content, number))
        if unreadable_images([str(path)], tmp_path, "skip"):
            named += 1
            refused(f"^image {path} cannot be read: ", read_image, str(path))
        else:
            assert read_image(str(path)).mode == "RGB"
    assert named > 5
