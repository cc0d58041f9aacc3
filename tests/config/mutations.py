"""Shipped configurations with one mistake each; the same ones each time."""

import math
from collections.abc import Iterator
from pathlib import Path
from random import Random

from gkd_plugin.config.tree import places, read
from tests.config.samples import changed

_FOLDER = Path(__file__).parents[2] / "configs" / "digits"
_NUMBERS = (0, -1, -0.1, 1.5, math.nan, math.inf, 1e30, 10**30)
NONSENSE = (None, False, "", "x", "0.1", *_NUMBERS, [], ["x"], [[]], {}, {"x": 1})
_IMAGES, _LOADER = "datasets.digits_even/train.init.kwargs.dataset.init.kwargs", "train.train_data_loader"
_TERM = "train.criterion.kwargs.sub_terms.cross_entropy"
ABSURD = [
    ("train.optimizer.kwargs.lr", "-0.1", ".nan", "'0.1'", "1.0e+30"),
    ("train.optimizer.kwargs.momentum", "-1", "5"),
    ("train.optimizer.kwargs.weight_decay", ".nan", "1.0e+30"),
    ("train.optimizer.kwargs.nesterov", "'yes'"),
    ("train.scheduler.kwargs.T_max", "0", "'100'"),
    ("train.criterion", "{key: refilled, kwargs: {stage: joint, temperature: 1.0e-30}}"),
    (f"{_TERM}.weight", "1.0e+38"),
    (f"{_LOADER}.kwargs.batch_size", "0", "-1", "null", "1.5"),
    (f"{_LOADER}.kwargs.num_workers", "-1", "1.5"),
    (f"{_LOADER}.dataset_id", "[x]"),
    ("datasets.digits_even/train", "3"),
    (f"{_IMAGES}.transform", "0"),
    (f"{_IMAGES}.eval_transform", "0"),
    (f"{_IMAGES}.transform.init.kwargs", "{size: 32, mean: [0.5, 0.5], std: [0.5, 0.5]}"),
    (f"{_IMAGES}.rgb", "true"),  # whose mean is one number
]
"""Key paths of ``digits_ce``, and values that nobody means."""


def without_weights(name: str) -> dict:
    """The tree of a configuration of the digits, whose models are made without a file."""
    tree = read(_FOLDER / f"{name}.yaml")
    models = {key: {**entry, "src_ckpt": None} for key, entry in tree["models"].items()}
    return {**tree, "models": models}


def mutations(count: int, seed: int = 0) -> Iterator[tuple[str, dict]]:
    """(what was done, tree): a value becomes nonsense, or a key is left out or misspelt."""
    random = Random(seed)
    names = ("digits_ce", "digits_refilled", "digits_joint", "digits_fewshot_refilled", "digits_incremental_refilled")
    trees = {name: without_weights(name) for name in names}
    values = {name: {path: value for path, value in places(tree) if path} for name, tree in trees.items()}
    for _ in range(count):
        name = random.choice(names)
        path, before = random.choice(list(values[name].items()))
        *above, key = path.split(".")
        kind = random.choice(("nonsense", "nonsense", "nonsense", "left out", "misspelt"))
        if kind == "nonsense":
            value = random.choice(NONSENSE)
            yield f"{name}: {path}={value!r}", changed(trees[name], [*above, key], value)
            continue
        tree = changed(trees[name], [*above, key])
        if kind == "misspelt" and not key.isdecimal():
            tree = changed(tree, [*above, f"{key}x"], before)
        yield f"{name}: {path} {kind}", tree
