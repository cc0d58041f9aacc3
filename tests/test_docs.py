"""README.md and docs/: short, linked, current; what they print can be run."""

import importlib.util
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import yaml
from torchdistill.common.yaml_util import load_yaml_file

from gkd_plugin import cli
from gkd_plugin.config.config import load_config
from tests.data.fakes import image_tree

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
METHODS = sorted(path.stem for path in (ROOT / "gkd_plugin/compare/methods").glob("*.yaml"))
DATASETS = "datasets: {own: !import_call {key: 'gkd_plugin.data.image_folder', init: {kwargs: {root: 'data/own'}}}}\n"
SAMPLER = "{class_or_func: !import_get {key: 'torch.utils.data.RandomSampler'}}"
LOADER = f"{{dataset_id: 'own', sampler: {SAMPLER}, kwargs: {{}}}}"
"""What ``{...}`` stands for in the examples."""


@cache
def script(name):
    """A script of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks(page, language):
    """The code blocks of a language, without the indentation of a list."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text_of(page), re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def anchors(page):
    """The link targets of its headings, as forges make them."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands():
    """Every ``refilled`` command that a page or the head of a configuration prints."""
    for page in PAGES:
        for block in blocks(page, "sh"):
            for part in re.split(r"&&|\n", block):
                if part.strip().startswith("refilled "):
                    yield pytest.param(shlex.split(part)[1:], id=f"{page.stem}: {part.strip()[:60]}")
    for path in sorted((ROOT / "configs").glob("*/*.yaml")):
        head = re.match(r"(#.*\n)+", text_of(path))[0]
        for command in re.findall(r"^# *refilled (.*(?:\n# +--.*)*)", head, re.MULTILINE):
            yield pytest.param(shlex.split(command.replace("\n#", "")), id=f"{path.stem}: {command[:60]}")


def test_readme_is_one_screen_and_a_bit():
    assert len(text_of(ROOT / "README.md").splitlines()) <= 150


def test_table_of_keywords_is_current_and_explains_every_one():
    tables = script("make_tables")
    assert tables.with_table(text_of(tables.PAGE)) == text_of(tables.PAGE), "run python docs/make_tables.py"
    assert [row for row in tables.table().splitlines() if row.endswith("|  |")] == []


def test_data_functions_of_the_configurations_are_in_the_table():
    text = "\n".join(map(text_of, (ROOT / "configs").rglob("*.yaml")))
    used = set(re.findall(r"gkd_plugin\.data\.(\w+)", text))
    assert used <= {*script("make_tables").DATA, "ClassBalancedBatchSampler"}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_in_the_table(method):
    assert f"\n| `{method}` | " in text_of(ROOT / "docs/compare.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere_and_yaml_blocks_are_yaml(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text_of(page))
    for path, anchor in targets:
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"

    for block in blocks(page, "yaml"):
        assert isinstance(yaml.compose(block), yaml.MappingNode)


def test_the_split_round_a_folder_of_images_is_a_data_set(tmp_path, monkeypatch):
    image_tree(tmp_path / "data/own/train", "abcdefghi")
    (block,) = [block for block in blocks(ROOT / "docs/configuration.md", "yaml") if "overlap_subset" in block]
    (tmp_path / "split.yaml").write_text(block, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (dataset,) = load_yaml_file("split.yaml")["datasets"].values()
    assert (dataset.classes, dataset.teacher_labels) == (list("defghi"), [3, 4, 5, None, None, None])
    assert dataset[0][0].shape == (3, 224, 224)


@pytest.mark.parametrize("words", commands())
def test_commands_are_commands(words):
    options = cli._parser().parse_args(words)
    given = getattr(options, "config", [])
    for config in given if isinstance(given, list) else [given]:
        assert (ROOT / config).is_file() or config.name == "own.yaml"  # which refilled distill writes
        if options.overrides:
            load_config(ROOT / config, options.overrides, produced=None)


@pytest.mark.parametrize("number", [0, 1], ids=["two stages", "joint"])
def test_whole_examples_are_valid(number, tmp_path):
    examples = [block for block in blocks(ROOT / "docs/configuration.md", "yaml") if "criterion:" in block]
    head = examples[0].partition("train:")[0]
    text = examples[number] if number == 0 else head + examples[number]
    path = tmp_path / "example.yaml"
    path.write_text(DATASETS + text.replace("{...}", LOADER), encoding="utf-8")
    load_config(path)


def test_python_of_the_method_runs():
    for block in blocks(ROOT / "docs/method.md", "python"):
        exec(block, {})


@pytest.mark.parametrize(
    ("method", "row"),
    [
        ("ce", "cross-entropy"),
        ("refilled", "ReFilled, TPAMI"),
        ("refilled-unweighted", "– without ω"),
        ("refilled-stage1-only", "– stage `embedding`"),
        ("refilled-stage2-only", "– stage `classifier`"),
        ("refilled-truncated", "– tuples cut"),
        ("refilled-joint", "**ReFilled, stage `joint`"),
        ("kd-tuned", "KD "),
        ("dist-tuned", "DIST "),
        ("srd", "SRD "),
        ("pkt", "PKT "),
        ("spkd-tuned", "SPKD "),
        ("rkd", "RKD "),
        ("crd", "CRD "),
        ("cckd", "CCKD "),
    ],
)
def test_main_table_is_that_of_the_recorded_results(method, row):
    section = text_of(ROOT / "docs/results.md").partition("## Every overlap")[2]
    line = re.search(rf"^\| {re.escape(row)}.*$", section, re.MULTILINE)[0]
    shown = [re.findall(r"[\d.]+", cell) for cell in line.split("|")[2:-1] if re.search(r"\d\.\d", cell)]
    recorded = script("make_figure").means()[method].values()
    assert len(shown) == len(recorded)
    for numbers, mean in zip(shown, recorded, strict=True):
        expected = [value for value in (mean.value, mean.error) if value is not None]
        assert [float(number) for number in numbers] == pytest.approx(expected, abs=0.05 + 1e-6)


def test_the_tables_of_photos_are_those_recorded():
    figures, page = script("make_figure"), text_of(ROOT / "docs/when-it-pays.md").splitlines()
    rows = [row for case in {**figures.CASES, **figures.FURTHER} for row in figures.photo_table(case)]
    assert len(rows) > 10
    assert [row for row in rows if row not in page] == []


def test_the_figures_can_be_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("draw", "draw_photos"):
        getattr(script("make_figure"), name)(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
