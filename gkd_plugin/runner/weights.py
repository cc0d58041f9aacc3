"""Files of weights: reads them without running code, fits them to a model, writes them in one step."""

from __future__ import annotations

import argparse
import json
import logging
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torchdistill.common.main_util import save_ckpt

from gkd_plugin.data import ImageInput
from gkd_plugin.data.transforms import trained_with
from gkd_plugin.errors import ConfigError, first_line, told_at
from gkd_plugin.runner.run_folder import write_atomically

__all__ = [
    "WeightFile",
    "classifier_paths",
    "load_backbone_weights",
    "load_teacher_weights",
    "load_weights",
    "read_weights",
    "save_student",
    "save_upstream_checkpoint",
]

logger = logging.getLogger(__name__)

# where checkpoints hold the weights: of timm's train.py (averaged ones first, as timm reads them), torchdistill, DINO
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher", "encoder", "backbone")
_METADATA = "gkd_plugin"
_HEAD = re.compile(
    r"((\w+_)?heads?|fc|classifier|aux\w*|(\w+_)?proj(ect\w*)?|pred\w*|decoder\w*|mask_token|queue\w*|prototypes\w*|logit\w*|"
    r"text\w*|student|teacher|momentum\w*)"
)
"""Names of modules that pretraining leaves beside a backbone."""


@dataclass(frozen=True)
class WeightFile:
    """What a file of weights holds. Our own files also say how the weights were trained; others leave that ``None``.

    Attributes:
        state: name → tensor.
        image_input: what images the weights were trained with.
        epochs: (trained, planned) when the file was written.
        classes: names of the classes that the weights were trained with, in the order of their labels.
    """

    state: dict[str, Tensor]
    image_input: ImageInput | None
    epochs: tuple[int, int] | None = None
    classes: list[str] | None = None


def read_weights(path: str | Path, where: str) -> WeightFile:
    """The weights in a ``.safetensors`` or ``state_dict`` file, or in a checkpoint of torchdistill or timm's train.py.

    Pickled files are read with torch's safe loader: tensors and ``argparse.Namespace`` (which both store).

    Args:
        path: the file, or an ``http(s)://`` address of a pickled ``state_dict``.
        where: key path or option that names the file, for messages.

    Raises:
        ConfigError: no such file, or nothing in it that can be read safely.
    """
    is_address = str(path).startswith(("http://", "https://"))
    if not is_address and not Path(path).is_file():
        raise ConfigError(f"{where}: no such file: {path}")
    try:
        is_safetensors = Path(path).suffix == ".safetensors" and not is_address
        content, about = _read_safetensors(path) if is_safetensors else _unpickle(str(path), is_address)
    except Exception as error:  # broken files raise whatever the parser meets first
        reason = first_line(error)
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds more than tensors; other objects are not unpickled, because that may run any code"
        raise ConfigError(f"{where}: {path} cannot be read as weights: {reason}") from error
    nested = [content[key] for key in _NESTED if key in content] if isinstance(content, Mapping) else []
    state = next((value for value in (*nested, content) if _is_state_dict(value)), None)
    if state is None:
        raise ConfigError(f"{where}: {path} holds no state_dict")
    image_input, epochs, classes = (about.get(key) for key in ("image_input", "epochs", "classes"))
    return WeightFile(
        dict(state),
        trained_with(image_input) if isinstance(image_input, Mapping) else None,
        (int(epochs[0]), int(epochs[1])) if isinstance(epochs, list | tuple) and len(epochs) == 2 else None,
        [str(name) for name in classes] if isinstance(classes, list | tuple) else None,
    )


def _read_safetensors(path: str | Path) -> tuple[Any, Mapping[str, Any]]:
    with safe_open(path, "pt") as file:
        about = (file.metadata() or {}).get(_METADATA)
    return load_file(path), {} if about is None else dict(json.loads(about))


def _unpickle(path: str, is_address: bool) -> tuple[Any, Mapping[str, Any]]:
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's advice on files that it accepts
        if is_address:
            content = torch.hub.load_state_dict_from_url(path, map_location="cpu", weights_only=True)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    args = content.get("args") if isinstance(content, Mapping) else None
    return content, vars(args) if isinstance(args, argparse.Namespace) else {}


def _is_state_dict(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


# --- writing ---------------------------------------------------------------------------------------------------------


def save_student(
    model: nn.Module,
    path: Path,
    name: str,
    image_input: ImageInput | None = None,
    *,
    epochs: tuple[int, int] | None = None,
    classes: list[str] | None = None,
) -> None:
    """Writes the student's ``state_dict`` alone, as safetensors; shared tensors are written twice.

    One entry of metadata says as JSON the model's ``name`` and how it was trained, see :class:`WeightFile`. (Of several
    entries safetensors would choose the order at random; this way the same weights give the same bytes.)
    """
    about: dict[str, Any] = {"model": name, "image_input": image_input.as_dict() if image_input else None}
    about |= {key: value for key, value in (("epochs", epochs), ("classes", classes)) if value is not None}
    state = {key: value.detach().cpu().clone().contiguous() for key, value in model.state_dict().items()}
    content = save(state, metadata={_METADATA: json.dumps(about)})
    write_atomically(
        path, lambda file: file.write_bytes(content)
    )  # save_file() would make it readable by its owner only


def save_upstream_checkpoint(
    model: nn.Module,
    optimizer: Any,
    lr_scheduler: Any,
    best_value: float,
    path: Path,
    *,
    image_input: ImageInput | None = None,
    epochs: tuple[int, int] | None = None,
    classes: list[str] | None = None,
) -> None:
    """Writes a checkpoint in torchdistill's own format (``dst_ckpt``); its ``args`` say how the model was trained."""
    about = {"image_input": image_input.as_dict() if image_input else None, "epochs": epochs, "classes": classes}
    args = argparse.Namespace(**{key: value for key, value in about.items() if value is not None})
    write_atomically(path, lambda file: save_ckpt(model, optimizer, lr_scheduler, best_value, args, str(file)))


# --- into a model ----------------------------------------------------------------------------------------------------


def load_weights(model: nn.Module, path: str | Path, where: str) -> WeightFile:
    """Loads every weight of the model, and nothing else, from a file; a common prefix of its keys is removed.

    Raises:
        ConfigError: as :func:`read_weights`; or keys or shapes do not fit the model (says which), which stays as it is.
    """
    found, match = _read_for(model, path, where)
    match.refuse()
    model.load_state_dict(match.state, strict=False)
    return found


def load_teacher_weights(model: nn.Module, path: str | Path, where: str) -> None:
    """Loads a teacher's weights: its backbone in full, and its classifier if it has one.

    Other parts of the file (a classifier that the model lacks, a projection head, a decoder) are left out, and a log
    line says so. Where the file says what images and classes the weights were trained with, the model's
    ``image_input`` and ``trained_classes`` say so afterwards.

    Raises:
        ConfigError: as :func:`load_weights`; a backbone of another architecture, or a classifier that the file lacks or
            has for other classes.
    """
    found, match = _read_for(model, path, where)
    heads = _timm_classifier_paths(model)
    in_head = {key for key in (*match.missing, *match.misshapen) if key.startswith(heads)}
    match.refuse(but=in_head | match.heads(heads))
    if in_head and getattr(model, "num_classes", None) != 0:
        raise ConfigError(
            f"{where}: {path} fits the backbone of {type(model).__name__}, but not its classifier: "
            f"{'; '.join(match.problems(but=match.heads(heads)))}; give its kwargs.num_classes, or num_classes: 0 for "
            "a teacher without classifier"
        )
    model.load_state_dict(match.state, strict=False)
    if found.image_input is not None:
        model.image_input = found.image_input  # type: ignore[assignment]
    else:
        model.has_weights_of_unknown_input = True  # type: ignore[assignment]
    if found.classes is not None and len(found.classes) == getattr(model, "num_classes", len(found.classes)):
        model.trained_classes = found.classes  # type: ignore[assignment]
    prefix = f", prefix {match.prefix!r} removed" if match.prefix else ""
    left = f"; left out: {'; '.join(match.problems())}" if match.problems() else ""
    logger.info("%s: %d tensors loaded from %s%s%s", where, len(match.state), path, prefix, left)


def load_backbone_weights(model: nn.Module, path: str | Path, where: str, *, extends_classifier: bool = False) -> None:
    """Loads a backbone in full under a classifier for other classes, as for fine-tuning.

    Args:
        model: a timm model, or one whose last module with weights is its classifier, a Linear.
        path: the file.
        where: key path that names it.
        extends_classifier: whether the file's classes are the model's first ones. Then their rows are loaded too, and
            the other rows stay as they were initialised.

    Raises:
        ConfigError: as :func:`load_weights`, of the backbone; the model does not say which of its modules is the
            classifier; or the file's classifier has no such rows.
    """
    found, match = _read_for(model, path, where)
    heads = classifier_paths(model)
    if not heads:
        raise ConfigError(
            f"{where}: {type(model).__name__} does not say which module is its classifier, as timm's models do, and "
            "its last module with weights is no Linear"
        )
    own = model.state_dict()
    in_head = {key for key in own if key.startswith(heads)}
    match.refuse(but=in_head | match.heads(heads))
    loaded = {key: value for key, value in match.state.items() if key not in in_head}
    if extends_classifier:
        for key in in_head:
            loaded[key] = _extended(own[key], found.state.get(match.prefix + key), f"{where}: {path}: {key}")
    model.load_state_dict(loaded, strict=False)
    kind = "extended" if extends_classifier else "new"
    logger.info("%s: %d tensors loaded from %s, the classifier is %s", where, len(loaded), path, kind)


def _extended(rows: Tensor, first: Tensor | None, where: str) -> Tensor:
    """The rows with the first ones replaced."""
    if first is None or first.shape[1:] != rows.shape[1:] or len(first) > len(rows):
        given = None if first is None else list(first.shape)
        raise ConfigError(f"{where} {given} cannot be the first rows of {list(rows.shape)}")
    return torch.cat([first.to(rows), rows[len(first) :]])


def classifier_paths(model: nn.Module) -> tuple[str, ...]:
    """Prefixes (``'fc.'``) of the keys of a model's classifiers: those that a timm model names, or the last Linear."""
    named = _timm_classifier_paths(model)
    with_weights = [(name, module) for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    if named or not with_weights:
        return named
    name, last = with_weights[-1]
    return (f"{name}.",) if name and isinstance(last, nn.Linear) else ()


def _timm_classifier_paths(model: nn.Module) -> tuple[str, ...]:
    cfg: Any = getattr(model, "pretrained_cfg", None)
    paths = (cfg.get("classifier") if isinstance(cfg, dict) else None) or ()
    return tuple(f"{path}." for path in ((paths,) if isinstance(paths, str) else paths))


# --- a file against a model ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Match:
    """A file's tensors against a model's, by name."""

    title: str  # the file and the model, for messages
    own: set[str]  # top-level names of the model's modules
    prefix: str  # removed from the file's keys
    state: dict[str, Tensor]  # what fits
    missing: set[str]  # of the model's
    unexpected: set[str]  # of the file's
    misshapen: dict[str, str]  # name → text

    def problems(self, but: Collection[str] = ()) -> list[str]:
        """One phrase for each kind."""
        misshapen = {text for key, text in self.misshapen.items() if key not in but}
        kinds = {
            "missing": self.missing - {*but},
            "unexpected": self.unexpected - {*but},
            "of another shape": misshapen,
        }
        return [
            f"{len(names)} {kind}: {', '.join(sorted(names)[:4])}{', …' if len(names) > 4 else ''}"
            for kind, names in kinds.items()
            if names
        ]

    def refuse(self, but: Collection[str] = ()) -> None:
        """Raises ConfigError where there are problems."""
        problems = self.problems(but)
        if problems:
            raise ConfigError(f"{self.title}: {'; '.join(problems)}")

    def heads(self, classifiers: tuple[str, ...]) -> set[str]:
        """The file's further tensors that belong to a classifier, or to a head that pretraining leaves."""
        tops = {key: key.partition(".")[0] for key in self.unexpected}
        is_head = {key for key, top in tops.items() if top not in self.own and _HEAD.fullmatch(top)}
        return is_head | {key for key in tops if key.startswith(classifiers)}


def _read_for(model: nn.Module, path: str | Path, where: str) -> tuple[WeightFile, _Match]:
    """The file and how it fits the model, with a warning where the run that wrote it did not finish."""
    found = read_weights(path, where)
    if found.epochs is not None and found.epochs[0] < found.epochs[1]:
        logger.warning("%s: %s is of epoch %d of %d: the run that wrote it did not finish", where, path, *found.epochs)
    own = model.state_dict()
    with told_at(f"{where}: {path} "):
        prefix = _prefix(found.state, own)
    inside = {key.removeprefix(prefix): value for key, value in found.state.items() if key.startswith(prefix)}
    beside = {key: value for key, value in found.state.items() if not key.startswith(prefix)}
    given = beside | inside
    misshapen = {
        key: f"{key} {list(given[key].shape)} (model: {list(own[key].shape)})"
        for key in own.keys() & given.keys()
        if own[key].shape != given[key].shape
    }
    return found, _Match(
        title=f"{where}: {path} does not fit {type(model).__name__}",
        own={name.partition(".")[0] for name in own},
        prefix=prefix,
        state={key: value for key, value in given.items() if key in own and key not in misshapen},
        missing={key for key in own.keys() - given.keys() if not key.endswith(".num_batches_tracked")},  # old files
        unexpected=given.keys() - own.keys(),
        misshapen=misshapen,
    )


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
