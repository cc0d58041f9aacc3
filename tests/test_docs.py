"""README.md and docs/: short, linked, current; what they print can be run."""

import importlib.util
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
import yaml
from PIL import Image
from torchdistill.common.yaml_util import load_yaml_file

from gkd_plugin import cli
from gkd_plugin.config.config import load_config
from gkd_plugin.deploy.student import DistilledStudent
from gkd_plugin.recipe import Wanted
from tests.data.fakes import image_tree
from tests.deploy.fakes import fake_run

ROOT = Path(__file__).parent.parent
SITE = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *SITE]
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


def shell(*, own):
    """Every ``refilled`` command of the pages, or every other one."""
    for page in PAGES:
        for block in blocks(page, "sh"):
            for part in re.split(r"&&|\n", block):
                words = shlex.split(part, comments=True)
                if words and (words[0] == "refilled") is own and not words[0].startswith("--"):
                    yield pytest.param(words[1:] if own else words, id=f"{page.stem}: {part.strip()[:60]}")


def commands():
    """Every ``refilled`` command that a page or the head of a configuration prints."""
    yield from shell(own=True)
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
        assert page not in SITE or target.is_relative_to(ROOT / "docs"), f"{path} is not on the site"
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
def test_commands_are_commands(words, tmp_path, monkeypatch):
    options = cli._parser().parse_args(words)
    if options.name in ("configs", "models"):
        monkeypatch.chdir(tmp_path)
        assert cli.main(words) == 0
    if options.name == "compare":
        assert all(name in METHODS or (ROOT / name).suffix == ".yaml" for name in options.methods)
    given = getattr(options, "config", [])
    for config in given if isinstance(given, list) else [given]:
        assert (ROOT / config).is_file() or config.name == "own.yaml"  # which refilled distill writes
        if options.overrides:
            load_config(ROOT / config, options.overrides, produced=None)


@pytest.mark.parametrize("words", shell(own=False))
def test_what_other_commands_name_is_there(words):
    program, *rest = words
    if program == "pip":
        (extras,) = re.findall(r"\[(.*)\]", rest[-1])
        assert set(extras.split(",")) <= set(
            re.findall(r'^(\w+) = \["', text_of(ROOT / "pyproject.toml"), re.MULTILINE)
        )
    elif program == "python":
        path = f"{rest[1].replace('.', '/')}.py" if rest[0] == "-m" else rest[0]
        assert (ROOT / path).is_file()
    elif program == "git":
        assert (rest[0], rest[-1]) == ("clone", "data/own")  # of photos
    else:
        assert program in {"pytest", "pre-commit"}
        assert all((ROOT / word).exists() for word in rest if "/" in word)


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


def test_python_of_the_student_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fake_run(tmp_path / "runs/image_folder_joint")
    for name in ("a.jpg", "b.jpg", "photo.jpg"):
        Image.new("RGB", (40, 40)).save(name)

    def trained(data, teacher, student, **choices):
        assert set(choices) <= {field.name for field in fields(Wanted)}
        return DistilledStudent.load("runs/image_folder_joint")

    monkeypatch.setattr("gkd_plugin.distill", trained, raising=False)
    for page in ("deploy", "distill"):
        (block,) = blocks(ROOT / f"docs/{page}.md", "python")
        exec(block, {})


PARTS_WORK = """
import torch
from torchdistill.losses.registry import get_mid_level_loss

loss = get_mid_level_loss({"key": "embedding_norm", "kwargs": {"strength": 2.0}})
assert loss(torch.ones(3, 4), torch.ones(3, 5), torch.arange(3)) == 2
rows, labels = torch.eye(3), torch.tensor([1, 0, 1])
seen, answers = (type("Rows", (), {"rows": rows, "labels": labels}) for _ in range(2))
readout = NearestImage()
fitted = {**readout.fit(torch.zeros(2, 3), seen), "centres": torch.zeros(2, 3)}
assert readout.logits(fitted, answers).argmax(1).tolist() == [1, 0, 1]
"""


def test_python_of_new_parts_works():
    """In a process of its own: it registers them."""
    script = "\n".join(blocks(ROOT / "docs/contributing.md", "python")) + PARTS_WORK
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_every_page_is_on_the_site():
    listed = re.findall(r"^ +- ([\w-]+\.md)$", text_of(ROOT / "mkdocs.yml"), re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in SITE)


def test_the_citation_is_that_of_the_readme():
    cited = yaml.safe_load(text_of(ROOT / "CITATION.cff"))
    assert f'version = "{cited["version"]}"' in text_of(ROOT / "pyproject.toml")
    (bibtex,) = blocks(ROOT / "README.md", "bibtex")
    paper = cited["preferred-citation"]
    for key in ("title", "journal", "volume", "year", "doi"):
        assert f"{{{paper[key]}}}" in bibtex
    names = " and ".join(f"{author['given-names']} {author['family-names']}" for author in paper["authors"])
    assert f"{{{names}}}" in bibtex


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


def test_every_package_is_built():
    """pyproject.toml names each, because configs/ goes into the package from beside it."""
    text = text_of(ROOT / "pyproject.toml")
    named = re.findall(r'^    "(gkd_plugin[\w.]*)",$', text, re.MULTILINE)
    folders = [path.parent.relative_to(ROOT) for path in (ROOT / "gkd_plugin").rglob("__init__.py")]
    assert sorted(named) == sorted(["gkd_plugin.configs", *(".".join(folder.parts) for folder in folders)])
