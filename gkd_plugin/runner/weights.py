"""Files of weights: reads them without running code, fits them to a model, writes them in one step."""

import argparse
import json
import logging
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping
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
    """What a file of weights holds. Our own files also say how the weights were trained; others leave that ``None``."""

    state: dict[str, Tensor]
    image_input: ImageInput | None = None
    epochs: tuple[int, int] | None = None  # trained and planned, when the file was written
    classes: list[str] | None = None  # names, in the order of their labels


def read_weights(path: str | Path, where: str) -> WeightFile:
    """The weights in a ``.safetensors`` or ``state_dict`` file, or in a checkpoint of torchdistill or timm's train.py.

    Pickled files, which may be ``http(s)://`` addresses, are read with torch's safe loader: tensors and
    ``argparse.Namespace`` (which both store). ``where`` is the key path or option that names the file.
    """
    is_address = str(path).startswith(("http://", "https://"))
    if not is_address and not Path(path).is_file():
        raise ConfigError(f"{where}: no such file: {path}")
    try:
        found = _read(str(path), is_address)
    except Exception as error:  # broken files raise whatever the parser meets first
        reason = first_line(error)
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds more than tensors; other objects are not unpickled, because that may run any code"
        raise ConfigError(f"{where}: {path} cannot be read as weights: {reason}") from error
    if not found.state:
        raise ConfigError(f"{where}: {path} holds no state_dict")
    return found


def _read(path: str, is_address: bool) -> WeightFile:
    if path.endswith(".safetensors") and not is_address:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
        content: Any = load_file(path)
    else:
        load: Callable[..., Any] = torch.hub.load_state_dict_from_url if is_address else torch.load
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on files that it accepts
            content = load(path, map_location="cpu", weights_only=True)
        args = content.get("args") if isinstance(content, Mapping) else None
        about = vars(args) if isinstance(args, argparse.Namespace) else {}
    nested = [content[key] for key in _NESTED if key in content] if isinstance(content, Mapping) else []
    image_input, epochs, classes = (about.get(key) for key in ("image_input", "epochs", "classes"))
    return WeightFile(
        dict(next((value for value in (*nested, content) if _is_state_dict(value)), {})),
        trained_with(image_input) if isinstance(image_input, Mapping) else None,
        (int(epochs[0]), int(epochs[1])) if isinstance(epochs, list | tuple) and len(epochs) == 2 else None,
        [str(name) for name in classes] if isinstance(classes, list | tuple) else None,
    )


def _is_state_dict(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


def save_student(model: nn.Module, path: Path, about: Mapping[str, Any]) -> None:
    """Writes the student's ``state_dict`` alone and ``about`` it (see :class:`WeightFile`), as safetensors."""
    state = {key: value.detach().cpu().clone().contiguous() for key, value in model.state_dict().items()}
    # save_file() would make it readable by its owner only; several entries of metadata would be in random order
    write_atomically(path, lambda file: file.write_bytes(save(state, metadata={_METADATA: json.dumps(about)})))


def save_upstream_checkpoint(model: nn.Module, box: Any, best: float, path: Path, about: Mapping[str, Any]) -> None:
    """Writes a checkpoint in torchdistill's own format (``dst_ckpt``); its ``args`` are ``about``."""
    state = (box.optimizer, box.lr_scheduler, best, argparse.Namespace(**about))
    write_atomically(path, lambda file: save_ckpt(model, *state, str(file)))


def load_weights(model: nn.Module, path: str | Path, where: str) -> WeightFile:
    """Loads every weight of the model, and nothing else, less a common prefix of the keys; a misfit changes nothing."""
    fit = _Fit(model, path, where)
    fit.refuse()
    model.load_state_dict(fit.state, strict=False)
    return fit.file


def load_teacher_weights(model: nn.Module, path: str | Path, where: str) -> None:
    """Loads a teacher's weights: its backbone in full, and its classifier if it has one.

    A log line tells what is left out: a classifier that the model lacks, a projection head, a decoder. What the file
    says of its training is then the model's ``image_input`` and ``trained_classes``.
    """
    fit, heads = _Fit(model, path, where), _timm_classifier_paths(model)
    in_head = {key for key in (*fit.missing, *fit.misshapen) if key.startswith(heads)}
    other_heads = fit.heads(heads)
    fit.refuse(but=in_head | other_heads)
    if in_head and getattr(model, "num_classes", None) != 0:
        misfit = f"fits the backbone of {type(model).__name__}, but not its classifier"
        cure = "give its kwargs.num_classes, or num_classes: 0 for a teacher without classifier"
        raise ConfigError(f"{where}: {path} {misfit}: {'; '.join(fit.problems(but=other_heads))}; {cure}")
    model.load_state_dict(fit.state, strict=False)
    image_input, classes = fit.file.image_input, fit.file.classes
    if image_input is not None:
        model.image_input = image_input  # type: ignore[assignment]
    else:
        model.has_weights_of_unknown_input = True  # type: ignore[assignment]
    if classes is not None and len(classes) == getattr(model, "num_classes", len(classes)):
        model.trained_classes = classes  # type: ignore[assignment]
    prefix = f", prefix {fit.prefix!r} removed" if fit.prefix else ""
    left = f"; left out: {'; '.join(fit.problems())}" if fit.problems() else ""
    logger.info("%s: %d tensors loaded from %s%s%s", where, len(fit.state), path, prefix, left)


def load_backbone_weights(model: nn.Module, path: str | Path, where: str, *, extends_classifier: bool = False) -> None:
    """Loads a backbone in full; the classifier stays as it is, or starts with the file's (``extends_classifier``)."""
    fit, heads = _Fit(model, path, where), classifier_paths(model)
    if not heads:
        lacks = "does not say which module is its classifier, as timm's models do, and its last module with weights"
        raise ConfigError(f"{where}: {type(model).__name__} {lacks} is no Linear")
    own = model.state_dict()
    in_head = {key for key in own if key.startswith(heads)}
    fit.refuse(but=in_head | fit.heads(heads))
    loaded = {key: value for key, value in fit.state.items() if key not in in_head}
    if extends_classifier:
        for key in in_head:
            rows, first = own[key], fit.file.state.get(fit.prefix + key)
            if first is None or first.shape[1:] != rows.shape[1:] or len(first) > len(rows):
                given = None if first is None else list(first.shape)
                raise ConfigError(f"{where}: {path}: {key} {given} cannot be the first rows of {list(rows.shape)}")
            loaded[key] = torch.cat([first.to(rows), rows[len(first) :]])
    model.load_state_dict(loaded, strict=False)
    kind = "extended" if extends_classifier else "new"
    logger.info("%s: %d tensors loaded from %s, the classifier is %s", where, len(loaded), path, kind)


def classifier_paths(model: nn.Module) -> tuple[str, ...]:
    """Prefixes (``'fc.'``) of the keys of a model's classifiers: those that a timm model names, or the last Linear."""
    with_weights = [(name, module) for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    name, last = with_weights[-1] if with_weights else ("", model)
    return _timm_classifier_paths(model) or ((f"{name}.",) if name and isinstance(last, nn.Linear) else ())


def _timm_classifier_paths(model: nn.Module) -> tuple[str, ...]:
    cfg: Any = getattr(model, "pretrained_cfg", None)
    paths = (cfg.get("classifier") if isinstance(cfg, dict) else None) or ()
    return tuple(f"{path}." for path in ((paths,) if isinstance(paths, str) else paths))


class _Fit:
    """A file's tensors against a model's, by name; warns where the run that wrote the file did not finish."""

    def __init__(self, model: nn.Module, path: str | Path, where: str) -> None:
        self.file = read_weights(path, where)
        if (epochs := self.file.epochs) is not None and epochs[0] < epochs[1]:
            logger.warning("%s: %s is of epoch %d of %d: the run that wrote it did not finish", where, path, *epochs)
        found, own = self.file.state, model.state_dict()
        with told_at(f"{where}: {path} "):
            self.prefix = _prefix(found, own)
        ordered = sorted(found, key=lambda key: key.startswith(self.prefix))  # of two alike the one inside is taken
        given = {key.removeprefix(self.prefix): found[key] for key in ordered}
        self._title = f"{where}: {path} does not fit {type(model).__name__}"
        self._own_tops = {name.partition(".")[0] for name in own}
        missing = own.keys() - given.keys()
        self.missing = {key for key in missing if not key.endswith(".num_batches_tracked")}  # old files lack them
        self.unexpected = given.keys() - own.keys()
        misshapen = [key for key in own.keys() & given.keys() if own[key].shape != given[key].shape]
        self.misshapen = {key: f"{key} {list(given[key].shape)} (model: {list(own[key].shape)})" for key in misshapen}
        self.state = {key: value for key, value in given.items() if key in own and key not in self.misshapen}

    def problems(self, but: Collection[str] = ()) -> list[str]:
        """One phrase for each kind."""
        shapes = {text for key, text in self.misshapen.items() if key not in but}
        kinds = {"missing": self.missing - {*but}, "unexpected": self.unexpected - {*but}, "of another shape": shapes}
        shown = {kind: ", ".join(sorted(names)[:4]) + ", …" * (len(names) > 4) for kind, names in kinds.items()}
        return [f"{len(names)} {kind}: {shown[kind]}" for kind, names in kinds.items() if names]

    def refuse(self, but: Collection[str] = ()) -> None:
        if problems := self.problems(but):
            raise ConfigError(f"{self._title}: {'; '.join(problems)}")

    def heads(self, classifiers: tuple[str, ...]) -> set[str]:
        """The file's further tensors that belong to a classifier, or to a head that pretraining leaves."""
        tops = {key: key.partition(".")[0] for key in self.unexpected}
        is_head = {key for key, top in tops.items() if top not in self._own_tops and _HEAD.fullmatch(top)}
        return is_head | {key for key in tops if key.startswith(classifiers)}


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
