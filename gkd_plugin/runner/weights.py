"""Loading weights into a model: finds the prefix of a file's keys, says what does not fit, refuses half a backbone."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkd_plugin.errors import ConfigError, told_at
from gkd_plugin.runner.checkpoints import WeightFile, read_weights

__all__ = ["classifier_paths", "load_backbone_weights", "load_teacher_weights", "load_weights"]

logger = logging.getLogger(__name__)

_HEAD = re.compile(
    r"((\w+_)?heads?|fc|classifier|aux\w*|(\w+_)?proj(ect\w*)?|pred\w*|decoder\w*|mask_token|queue\w*|prototypes\w*|logit\w*|"
    r"text\w*|student|teacher|momentum\w*)"
)


@dataclass(frozen=True)
class _Match:
    """A file's tensors against a model's, by name.

    Attributes:
        state: what fits.
        prefix: taken off the file's keys.
        missing: the model's that the file lacks.
        unexpected: the file's that the model lacks.
        misshapen: those of another shape, name → text.
    """

    state: dict[str, Tensor]
    prefix: str
    missing: set[str]
    unexpected: set[str]
    misshapen: dict[str, str]

    def problems(self, but: Collection[str] = ()) -> list[str]:
        """One phrase for each kind."""
        return [
            *_listed("missing", self.missing.difference(but)),
            *_listed("unexpected", self.unexpected.difference(but)),
            *_listed("of another shape", (text for key, text in self.misshapen.items() if key not in but)),
        ]


def load_weights(model: nn.Module, path: str | Path, where: str) -> WeightFile:
    """Loads every weight of the model, and nothing else, from a file; a common prefix of its keys is taken off.

    Args:
        model: any model.
        path: as :func:`~gkd_plugin.runner.checkpoints.read_weights` takes it.
        where: key path or option that names the file, for messages.

    Returns:
        The file.

    Raises:
        ConfigError: the file cannot be read, or keys or shapes do not fit the model (says which); nothing is changed.
    """
    found = _read(path, where)
    with told_at(f"{where}: {path} "):
        match = _match(model, found.state)
    if match.problems():
        raise ConfigError(f"{where}: {path} does not fit {type(model).__name__}: {'; '.join(match.problems())}")
    model.load_state_dict(match.state, strict=False)
    return found


def load_teacher_weights(model: nn.Module, path: str | Path, where: str) -> None:
    """Loads a teacher's weights: its backbone in full, and its classifier if it has one.

    What else a file holds (a classifier that the model does not have, a projection head, a decoder) stays out, and a
    line of the log says so. Where the file tells what images and classes the weights were trained with, the model's
    ``image_input`` and ``trained_classes`` say so afterwards.

    Raises:
        ConfigError: as :func:`load_weights`; a backbone of another architecture, or a classifier that the file lacks or
            has for other classes.
    """
    found = _read(path, where)
    with told_at(f"{where}: {path} "):
        match = _match(model, found.state)
    heads = _timm_classifier_paths(model)
    in_head = {key for key in (*match.missing, *match.misshapen) if key.startswith(heads)}
    tops = {name.partition(".")[0] for name in model.state_dict()}
    extra = {key for key in match.unexpected if key.startswith(heads) or _is_head(key.partition(".")[0], tops)}
    problems = match.problems(but=in_head | extra)
    if problems:
        raise ConfigError(f"{where}: {path} does not fit {type(model).__name__}: {'; '.join(problems)}")
    if in_head and getattr(model, "num_classes", None) != 0:
        raise ConfigError(
            f"{where}: {path} fits the backbone of {type(model).__name__}, but not its classifier: "
            f"{'; '.join(match.problems(but=extra))}; give its kwargs.num_classes, or num_classes: 0 for a teacher "
            "without classifier"
        )
    model.load_state_dict(match.state, strict=False)
    if found.image_input is not None:
        model.image_input = found.image_input  # type: ignore[assignment]
    else:
        model.has_weights_of_unknown_input = True  # type: ignore[assignment]
    if found.classes is not None and len(found.classes) == getattr(model, "num_classes", len(found.classes)):
        model.trained_classes = found.classes  # type: ignore[assignment]
    _report(where, path, match)


def load_backbone_weights(model: nn.Module, path: str | Path, where: str, *, extends_classifier: bool = False) -> None:
    """Loads a backbone in full under a classifier for other classes, as for fine-tuning.

    Args:
        model: a timm model, or one whose last module with weights is its classifier, a Linear.
        path: as :func:`~gkd_plugin.runner.checkpoints.read_weights` takes it.
        where: key path that names the file, for messages.
        extends_classifier: whether the file's classes are the model's first ones, so that their rows are loaded too;
            the other rows stay as they were initialised.

    Raises:
        ConfigError: as :func:`load_weights`, of the backbone; the model does not say which of its modules is the
            classifier; or the file's classifier has no such rows.
    """
    state = _read(path, where).state
    with told_at(f"{where}: {path} "):
        match = _match(model, state)
    heads = classifier_paths(model)
    if not heads:
        raise ConfigError(
            f"{where}: {type(model).__name__} does not say which module is its classifier, as timm's models do, and "
            "its last module with weights is no Linear"
        )
    own = model.state_dict()
    in_head = {key for key in own if key.startswith(heads)}
    tops = {name.partition(".")[0] for name in own}
    extra = {key for key in match.unexpected if key.startswith(heads) or _is_head(key.partition(".")[0], tops)}
    problems = match.problems(but=in_head | extra)
    if problems:
        raise ConfigError(f"{where}: {path} does not fit {type(model).__name__}: {'; '.join(problems)}")
    loaded = {key: value for key, value in match.state.items() if key not in in_head}
    if extends_classifier:
        for key in in_head:
            loaded[key] = _extended(own[key], state.get(match.prefix + key), f"{where}: {path}: {key}")
    model.load_state_dict(loaded, strict=False)
    kind = "extended" if extends_classifier else "new"
    logger.info("%s: %d tensors loaded from %s, the classifier is %s", where, len(loaded), path, kind)


def _extended(rows: Tensor, first: Tensor | None, where: str) -> Tensor:
    """The rows with the first ones replaced."""
    if first is None or first.shape[1:] != rows.shape[1:] or len(first) > len(rows):
        given = None if first is None else list(first.shape)
        raise ConfigError(f"{where} {given} cannot be the first rows of {list(rows.shape)}")
    return torch.cat([first.to(rows), rows[len(first) :]])


def _read(path: str | Path, where: str) -> WeightFile:
    """The file, with a warning where the run that wrote it did not finish."""
    found = read_weights(path, where)
    if found.epochs is not None and found.epochs[0] < found.epochs[1]:
        logger.warning("%s: %s is of epoch %d of %d: the run that wrote it did not finish", where, path, *found.epochs)
    return found


def _report(where: str, path: str | Path, match: _Match) -> None:
    prefix = f", prefix {match.prefix!r} taken off" if match.prefix else ""
    left = f"; left out: {'; '.join(match.problems())}" if match.problems() else ""
    logger.info("%s: %d tensors loaded from %s%s%s", where, len(match.state), path, prefix, left)


def _match(model: nn.Module, given: Mapping[str, Tensor]) -> _Match:
    own = model.state_dict()
    prefix = _prefix(given, own)
    state = {key.removeprefix(prefix): value for key, value in given.items() if key.startswith(prefix)}
    beside = {key: value for key, value in given.items() if not key.startswith(prefix)}
    state |= {key: value for key, value in beside.items() if key in own and key not in state}
    others = beside.keys() - state.keys()
    misshapen = {
        key: f"{key} {list(state[key].shape)} (model: {list(own[key].shape)})"
        for key in own.keys() & state.keys()
        if own[key].shape != state[key].shape
    }
    fitting = {key: value for key, value in state.items() if key in own and key not in misshapen}
    missing = {key for key in own.keys() - state.keys() if not key.endswith(".num_batches_tracked")}  # old files
    return _Match(fitting, prefix, missing, others | (state.keys() - own.keys()), misshapen)


def _prefix(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """What stands before most of the keys that end like one of the model's, e.g. 'module.' or 'backbone.'."""
    counts: Counter[str] = Counter()
    for key in given:
        parts = key.split(".")
        for depth in range(len(parts)):
            if ".".join(parts[depth:]) in own:
                counts["".join(f"{part}." for part in parts[:depth])] += 1
    complete = sorted(prefix for prefix, count in counts.items() if count == len(own))
    if len(complete) > 1:
        raise ConfigError(f"holds several sets of such weights, under the prefixes {', '.join(map(repr, complete))}")
    return max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default="")


def classifier_paths(model: nn.Module) -> tuple[str, ...]:
    """Prefixes (``'fc.'``) of the keys of a model's classifiers: those that a timm model names, or the last Linear."""
    return _timm_classifier_paths(model) or _last_linear(model)


def _timm_classifier_paths(model: nn.Module) -> tuple[str, ...]:
    cfg: Any = getattr(model, "pretrained_cfg", None)
    paths = (cfg.get("classifier") if isinstance(cfg, dict) else None) or ()
    return tuple(f"{path}." for path in ((paths,) if isinstance(paths, str) else paths))


def _last_linear(model: nn.Module) -> tuple[str, ...]:
    """Prefix of the keys of the last module with weights, if it is a Linear, as in torchvision and torchdistill."""
    with_weights = [(name, module) for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    name, last = with_weights[-1] if with_weights else ("", model)
    return (f"{name}.",) if name and isinstance(last, nn.Linear) else ()


def _is_head(top: str, tops: Collection[str]) -> bool:
    """Whether a file's top-level module is a head that the model (with ``tops``) lacks, as pretraining leaves them."""
    return top not in tops and _HEAD.fullmatch(top) is not None


def _listed(what: str, keys: Iterable[str]) -> list[str]:
    names = sorted(keys)
    shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    return [f"{len(names)} {what}: {shown}"] if names else []
