"""Construction of the node graph."""

from __future__ import annotations

import pytest
from torchdistill.common.yaml_util import load_yaml_file

from gkd_plugin.config.yaml_construct import construct
from gkd_plugin.config.yaml_nodes import compose
from gkd_plugin.errors import ConfigError
from tests.runner.yaml_samples import RICH, comparable, write


def test_construct_equals_torchdistill(tmp_path):
    path = write(tmp_path, RICH)
    root = compose(path)
    built, expected = construct(root), load_yaml_file(str(path))
    assert built["datasets"]["pets/train"] is built["datasets"]["pets/again"]
    assert built["datasets"]["pets/train"] is not built["datasets"]["pets/val"]
    assert comparable(built) == comparable(expected)
    assert comparable(construct(root)) == comparable(expected), "the graph is left as it was"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "{key: gkd_plugin.functional.centres.class_centers}",
            (
                r"datasets\.train \(line 3\): gkd_plugin\.functional\.centres\.class_centers: no such name in "
                r"gkd_plugin\.functional\.centres; did you mean 'class_centres'"
            ),
        ),
        ("{key: class_centers, package: gkd_plugin.functional.centres}", "did you mean 'class_centres'"),
        ("{key: gkd_plugin.functionl.centres}", r"no module named 'gkd_plugin\.functionl'; did you mean 'functional'"),
        ("{key: nothing_of_this_name.x}", "no module named 'nothing_of_this_name'"),
        ("{key: ImageFolder}", "'ImageFolder' must be a full dotted name"),
        ("{kee: os.sep}", "takes a mapping with 'key'"),
        ("{key: os.sep}", r"\(line 3\): TypeError: 'str' object is not callable"),
        ("{key: tests.runner.yaml_samples.refuse}", r"\(line 3\): the images are missing; download them first$"),
        ('{key: tests.runner.yaml_samples.fail, init: {args: ["pets\\nmore"]}}', "FileNotFoundError: pets$"),
        ("{key: tests.runner.yaml_samples.fail}", r"\(line 3\): FileNotFoundError$"),
        (
            "{key: tests.runner.yaml_samples.fail, init: {kwargs: {mesage: 1}}}",
            "unexpected keyword argument 'mesage'",
        ),
        (
            "{key: builtins.dict, init: {kwargs: {t: !import_call {key: builtins.int, init: {args: [a]}}}}}",
            r"^datasets\.train\.init\.kwargs\.t \(line 3\): ValueError: invalid literal",
        ),
    ],
)
def test_construct_names_the_innermost_object_that_failed(tmp_path, entry, message):
    root = compose(write(tmp_path, f"a: 1\ndatasets:\n  train: !import_call {entry}\n"))
    with pytest.raises(ConfigError, match=message) as caught:
        construct(root)
    assert caught.value.__cause__ is not None


def test_construct_explains_other_tags(tmp_path):
    with pytest.raises(ConfigError, match=r"a \(line 1\): AttributeError: .*sepp"):
        construct(compose(write(tmp_path, "a: !getattr [!import_get {key: sys.modules}, sepp]\n")))
    text = "a: !import_call_method {package: builtins.dict.fromkey, init: {args: [[1]]}}\n"
    with pytest.raises(ConfigError, match=r"no such name in builtins\.dict; did you mean 'fromkeys'"):
        construct(compose(write(tmp_path, text)))
