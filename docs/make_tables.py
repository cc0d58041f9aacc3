"""Writes the table of keywords into configuration.md: ``python docs/make_tables.py``.

A row comes from the signature and the ``Args`` section of what a key names. tests/test_docs.py holds the table current.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, get_args, get_type_hints

from torch.utils.data import Dataset
from torchdistill.losses.registry import HIGH_LEVEL_LOSS_DICT, MIDDLE_LEVEL_LOSS_DICT
from torchdistill.models.registry import AUXILIARY_MODEL_WRAPPER_DICT, MODEL_DICT
from torchvision.transforms import Compose

import gkd_plugin
from gkd_plugin import data, functional, losses

PAGE = Path(__file__).parent / "configuration.md"
START, END = "<!-- keywords: written by docs/make_tables.py -->", "<!-- keywords: end -->"

REGISTRIES = (MODEL_DICT, AUXILIARY_MODEL_WRAPPER_DICT, HIGH_LEVEL_LOSS_DICT, MIDDLE_LEVEL_LOSS_DICT)
STAGES = (losses.EmbeddingStage, losses.ClassifierStage, losses.JointStage)
SUPPLIED = {"self", "teacher_model", "student_model", "device", "device_ids", "distributed"}
"""What torchdistill gives a part by itself."""
SHARED = (data.overlap_classes, data.class_subset, data.TransformedImages)
"""Whose docstrings explain what several data functions take."""


def _makes_data(part: Any) -> bool:
    made = get_type_hints(part).get("return") if inspect.isfunction(part) else None
    kinds = get_args(made) if isinstance(made, UnionType) else (made,)
    return all(inspect.isclass(kind) and issubclass(kind, (Dataset, Compose)) for kind in kinds)


DATA = {name: part for name, part in vars(data).items() if _makes_data(part) and name != "pick"}
"""The functions of this package that make a data set or a transform."""


class Part(NamedTuple):
    """A key of a YAML file, what it names, and what explains its keywords."""

    key: str
    call: Callable[..., Any]
    explained_by: tuple[Any, ...]


def parts() -> Iterator[Part]:
    """Every part of this package that a YAML may name."""
    for registry in REGISTRIES:
        for key, part in sorted(registry.items()):
            if not getattr(part, "__module__", "").startswith(gkd_plugin.__name__):
                continue
            if part is losses.refilled:
                yield from (Part(f"{key}, stage {stage.stage}", stage, stage.__mro__) for stage in STAGES)
            else:
                yield Part(key, part, getattr(part, "__mro__", (part,)))
    for sampler in (data.ClassBalancedBatchSampler, data.MixedBatchSampler):
        yield Part(sampler.__name__, sampler, (sampler, data.ClassBalancedBatchSampler))
    for name, function in DATA.items():
        yield Part(f"data.{name}", function, (function, *SHARED))


def table() -> str:
    """The Markdown table."""
    lines = ["| key | keyword | default | meaning |", "| --- | --- | --- | --- |"]
    for part in parts():
        for name, default in keywords(part.call):
            text = as_markdown(explanation(name, part.explained_by))
            lines.append(f"| `{part.key}` | `{name}` | {default} | {text} |")
    return "\n".join(lines)


def keywords(call: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """(name, default as Markdown) of what a YAML may write."""
    for name, parameter in inspect.signature(call).parameters.items():
        if name in SUPPLIED or parameter.kind == parameter.VAR_POSITIONAL:
            continue
        if parameter.kind == parameter.VAR_KEYWORD:
            yield name, "any"
        else:
            yield name, "required" if parameter.default is parameter.empty else f"`{parameter.default!r}`"


def explanation(name: str, sources: Sequence[Any]) -> str:
    """What the docstrings say of a keyword; where they say "as in" or "see" another part, what that one says."""
    for source in sources:
        text = arguments(inspect.getdoc(source) or "").get(name)
        if text is not None:
            return _followed(text, name, source)
    return ""


def _followed(text: str, name: str, source: Any) -> str:
    """The text, with what the part that it begins by naming says of the same keyword."""
    reference = re.match(r"(?:as in|see) :\w+:`~?(?:[\w.]*\.)?(\w+)`", text)
    if reference is None:
        return text
    places = (inspect.getmodule(source), data, losses, functional)
    other = next((part for place in places if (part := getattr(place, reference[1], None)) is not None), None)
    there = "" if other is None else explanation(name, (other,))
    return there.rstrip(".") + text[reference.end() :] if there else text


def arguments(docstring: str) -> dict[str, str]:
    """Name → text of a Google-style ``Args`` section."""
    found: dict[str, str] = {}
    section = re.search(r"^Args:\n((?: {4}.*\n?|\n)*)", docstring, re.MULTILINE)
    name = ""
    for line in section[1].splitlines() if section else ():
        entry = re.fullmatch(r" {4}(\w+): (.*)", line)
        if entry:
            name, found[entry[1]] = entry[1], entry[2]
        elif line.strip():
            found[name] += f" {line.strip()}"
    return found


def as_markdown(text: str) -> str:
    """In one table cell, without the roles and double backticks of reStructuredText and what they refer a reader to."""
    text = re.sub(r"[,;] see :\w+:`[^`]+`", "", text)
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    return text.replace("``", "`").replace("|", "\\|")


def with_table(page: str) -> str:
    """The page with the table as it is now."""
    before, rest = page.split(START)
    return f"{before}{START}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
