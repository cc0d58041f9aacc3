from __future__ import annotations

import pytest
import torch

from gkd_plugin.data.splits import ordered_classes
from gkd_plugin.errors import ConfigError

NAMES = ["ant", "bee", ("tench", "Tinca tinca"), "sea lion"]


@pytest.fixture
def write(tmp_path):
    def file(text, name="order.txt"):
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return file


def test_a_file_holds_names_and_indices(write):
    path = write("\ufeff# my order\r\n\r\nsea lion  # not a fish\r\n  0\r\nTinca tinca\r\n1\r\n")
    assert ordered_classes(path, None, 4, NAMES) == [3, 0, 2, 1]


def test_a_number_that_is_a_name_is_the_name(write):
    assert ordered_classes(write("0\n1\n2\n"), None, 3, ["2", "0", "1"]) == [1, 2, 0]


def test_without_names_a_file_holds_indices(write):
    assert ordered_classes(write("2\n0\n1\n"), None, None) == [2, 0, 1]
    assert ordered_classes(write("2\n0\n1\n"), None, 3, [10, 11, 12]) == [2, 0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ant\n\nbees\n", r"class_order: .*order.txt, line 3: no class is named 'bees'; did you mean 'bee'"),
        ("ant\nbee\n0\n", r"line 3: '0' is the class of line 1 again"),
        ("tench\nTinca tinca\n", r"line 2: 'Tinca tinca' is the class of line 1 again"),
        ("ant\n4\n", r"line 2: class index must be a whole number in 0 … 3, got 4"),
        ("ant\n-1\n", r"line 2: no class is named '-1'"),
        ("ant\nbee\n", r"each of the 4 classes once, 2 missing: \('tench', 'Tinca tinca'\), 'sea lion'"),
        ("# nothing\n", r"each of the 4 classes once, 4 missing: 'ant'"),
        (b"\xff\xfe", r"order.txt cannot be read as UTF-8 text"),
    ],
)
def test_an_unusable_file_is_refused(write, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        ordered_classes(write(text), None, 4, NAMES)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_the_nearest_one(write, tmp_path):
    write("0\n")
    write("0\n", "orders.csv")
    with pytest.raises(
        ConfigError, match=r"ordr.txt; in its folder did you mean 'order.txt'\? \(allowed: 'order.txt'\)$"
    ):
        ordered_classes(str(tmp_path / "ordr.txt"), None, 1)
    with pytest.raises(ConfigError, match=r"no file .*order.txt$"):
        ordered_classes(str(tmp_path / "nowhere" / "order.txt"), None, 1)
    with pytest.raises(ConfigError, match="cannot be read"):
        ordered_classes(str(tmp_path), None, 1)


@pytest.mark.parametrize("order", [5, {0: 1}, True])
def test_what_is_neither_list_nor_path(order):
    with pytest.raises(ConfigError, match="class_order must be a list of class indices or the path"):
        ordered_classes(order, None, 6)


def test_a_file_and_a_seed_are_refused(write):
    with pytest.raises(ConfigError, match=r"either class_order or seed, got both \(seed=0\)"):
        ordered_classes(write("0\n"), 0, 1)


def test_a_seed_draws_whatever_the_global_random_state():
    torch.manual_seed(1)
    first = ordered_classes(None, 3, 50)
    torch.manual_seed(2)
    assert ordered_classes(None, 3, 50) == first != ordered_classes(None, 4, 50)
    assert sorted(first) == list(range(50))


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([0, 2, 2], r"once; twice \[2\], missing \[1\]$"),
        ([0, 2], r"once; missing \[1\]$"),
        ([0, 1, 7], r"^class_order: entry 2 must be a whole number in 0 … 2, got 7$"),
    ],
)
def test_what_is_wrong_with_a_list_is_named(order, message):
    with pytest.raises(ConfigError, match=message):
        ordered_classes(order, None, 3)
