"""Every architecture of timm through ``timm_model``, on the meta device: no weights, no images, a table.

    python -m tests.benchmarks.architectures --output architectures.csv

Goes on where it was stopped. Columns: name, family, embedding_width, classifier, verdict.
"""

import argparse
import csv
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from timm.models import is_model_in_modules
from tqdm import tqdm

from gkd_plugin.models import is_encoder, timm_model

CLASSES, BOTH = 7, "teacher and student"


class Row(NamedTuple):
    """What one architecture gives."""

    name: str
    embedding_width: int
    classifier: str  # its module path in timm's metadata
    verdict: str  # BOTH, 'teacher only: …' or 'FAILED: …'


def examine(name: str) -> Row:
    """Builds the model and runs it forward once."""
    try:
        with torch.device("meta"):
            model = timm_model(name).eval()
            if not is_encoder(model):
                model.reset_classifier(CLASSES)
        seen: list[tuple[int, ...]] = []
        model.embedding.register_forward_hook(lambda _module, _args, output: seen.append(tuple(output.shape)))
        output = model(torch.zeros(2, *model.pretrained_cfg["input_size"], device="meta"))
    except Exception as error:
        return Row(name, 0, "", f"FAILED: {type(error).__name__}: {' '.join(str(error).split())}")
    width, path, wanted, verdict = model.head_hidden_size, model.pretrained_cfg.get("classifier") or "", CLASSES, BOTH
    if is_encoder(model):
        wanted = width
        verdict = "teacher only: an encoder without a classifier, its embedding is the mean of its tokens"
    if seen != [(2, width)] or tuple(output.shape) != (2, wanted):
        verdict = f"FAILED: embedding {seen}, not {[(2, width)]}; output {tuple(output.shape)}, not {(2, wanted)}"
    return Row(name, width, path if isinstance(path, str) else " ".join(path), verdict)


def one_of_each_family(but: Collection[str] = ()) -> list[str]:
    """The last architecture of each of timm's modules (seldom a large one), ``but`` for some modules."""
    names = timm.list_models()[::-1]
    modules = [module for module in timm.list_modules() if module not in but]
    found = [[name for name in names if is_model_in_modules(name, [module])] for module in modules]
    return [family[0] for family in found if family]


def sweep(names: Sequence[str], path: Path) -> list[Row]:
    """Examines the names that the table at ``path`` does not have yet; returns all rows."""
    rows = list(read(path)) if path.exists() else []
    known = {row.name for row in rows}
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if not rows:
            writer.writerow(Row._fields)
        for name in tqdm([name for name in names if name not in known], disable=None):
            rows.append(examine(name))
            writer.writerow(rows[-1])
            file.flush()
    return rows


def read(path: Path) -> Iterator[Row]:
    """The rows of a table; half a line that a stopped run left is not one."""
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            if line["verdict"]:
                yield Row(line["name"], int(line["embedding_width"]), line["classifier"], line["verdict"])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("architectures.csv"))
    rows = sweep(timm.list_models(), parser.parse_args().output)
    for verdict in sorted({row.verdict for row in rows}):
        found = [row.name for row in rows if row.verdict == verdict]
        print(f"{len(found):5d}  {verdict}" + (f": {', '.join(found)}" if len(found) < 20 else ""))


if __name__ == "__main__":
    main()
