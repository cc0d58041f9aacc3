"""What tells that a finished cell is stale."""

import json

import pytest

from gkd_plugin.compare.inputs import inputs_of, keep_inputs, stale_input


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher.pt").write_bytes(b"weights")
    (tmp_path / "order.txt").write_text("0", encoding="utf-8")
    path = tmp_path / "config.yaml"
    path.write_text(
        "models: {teacher_model: {src_ckpt: teacher.pt, dst_ckpt: not_there.pt}}\n"
        "datasets:\n"
        '  a: !import_call {key: x.y, init: {kwargs: {class_order: order.txt, sizes: [1, 2], text: "a\\0b"}}}\n',
        encoding="utf-8",
    )
    return path


def test_files_anywhere_in_the_configuration_the_package_and_the_probe(config):
    found = inputs_of(config, "ncm")
    assert set(found) >= {"gkd_plugin", "probe", "torch", "timm", "teacher.pt", "order.txt"}
    assert "not_there.pt" not in found
    assert found["probe"] == "ncm"


def test_nothing_has_changed(config, tmp_path):
    keep_inputs(inputs_of(config, None), tmp_path)
    assert stale_input(inputs_of(config, None), tmp_path) is None


@pytest.mark.parametrize("name", ["teacher.pt", "order.txt"])
@pytest.mark.parametrize("change", [lambda path: path.write_text("another"), lambda path: path.unlink()])
def test_another_content_or_a_file_that_is_gone(config, tmp_path, name, change):
    keep_inputs(inputs_of(config, None), tmp_path)
    change(tmp_path / name)
    assert stale_input(inputs_of(config, None), tmp_path) == f"{name} has changed since it ran"


@pytest.mark.parametrize("name", ["probe", "gkd_plugin", "torch"])
def test_another_probe_or_version(config, tmp_path, name):
    now = inputs_of(config, None)
    keep_inputs({**now, name: "before"}, tmp_path)
    assert stale_input(now, tmp_path) == f"{name} has changed since it ran"


@pytest.mark.parametrize("content", [None, "", "[]", json.dumps({})])
def test_a_run_folder_that_does_not_say(config, tmp_path, content):
    if content is not None:
        (tmp_path / "inputs.json").write_text(content, encoding="utf-8")
    assert stale_input(inputs_of(config, None), tmp_path) == "what it was made from is not on record"


def test_a_file_that_came_later_is_not_asked_for(config, tmp_path):
    keep_inputs(inputs_of(config, None), tmp_path)
    (tmp_path / "not_there.pt").write_bytes(b"")
    assert "not_there.pt" in inputs_of(config, None)
    assert stale_input(inputs_of(config, None), tmp_path) is None
