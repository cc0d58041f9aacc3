"""Methods on photos, over random choices of the labelled images: the tables of docs/when-it-pays.md.

    python -m tests.benchmarks.photos runs/photos/flowers --methods ce,refilled-joint,probe-kd --subsets 5 \
        --set x-train=data/flowers/train --set x-test=data/flowers/test --set x-teacher=lite2.safetensors

A subset is a run of ``refilled compare`` with photos.yaml; its number draws the images and seeds the student.
Ends in the means and the differences from cross-entropy, paired by subset, with standard errors.
"""

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path

from gkd_plugin.cli import main as refilled
from gkd_plugin.compare.report import mean_of, paired_difference
from gkd_plugin.runner.run_folder import aligned

CONFIG = Path(__file__).with_suffix(".yaml")


def table(output: Path) -> str:
    """Means and paired differences of what all subsets' ``results.csv`` hold."""
    scores: defaultdict[str, dict[tuple[int, None], float]] = defaultdict(dict)
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    for path in sorted(output.glob("subset*/results.csv")):
        for row in csv.DictReader(path.open(encoding="utf-8")):
            if row["top1"]:
                scores[row["method"]][int(row["seed"]), None] = float(row["top1"])
                seconds[row["method"]].append(float(row["seconds"]))
    rows = [("method", "top-1 %", "– cross-entropy", "subsets", "seconds")]
    for method, of in scores.items():
        mean, gain = mean_of(of), paired_difference(of, scores.get("ce", {}))
        shown = "" if gain is None or method == "ce" else f"{gain.value:+.1f} ± {gain.error or 0:.1f}"
        spent = f"{sum(seconds[method]) / len(seconds[method]):.0f}"
        rows.append((method, f"{mean.value:.1f} ± {mean.error or 0:.1f}", shown, str(len(of)), spent))
    return aligned(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--methods", default="ce,refilled-joint,probe-kd")
    parser.add_argument("--subsets", type=int, default=5)
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    for number in map(str, range(given.subsets)):
        chosen = [f"--set={text}" for text in (*given.set, f"x-subset={number}")]
        names = ["--methods", given.methods, "--seeds", number, "--output", str(given.output / f"subset{number}")]
        if code := refilled(["compare", str(CONFIG), *names, *chosen]):
            sys.exit(code)
    print(table(given.output))
