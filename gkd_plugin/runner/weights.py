"""Files of weights: reads them without running code, fits them to a model, writes them in one step."""

import argparse
import contextlib
import json
import logging
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from timm.models import adapt_input_conv
from torch import Tensor, nn
from torchdistill.common.main_util import save_ckpt

from gkd_plugin.data import ImageInput
from gkd_plugin.data.files import write_atomically
from gkd_plugin.data.transforms import trained_with
from gkd_plugin.errors import ConfigError, first_line, nearest, told_at

logger = logging.getLogger(__name__)

# where checkpoints hold the weights: of timm's train.py (averaged ones first, as timm reads them), torchdistill, DINO
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher", "encoder", "backbone")
_METADATA = "gkd_plugin"
OPTIONAL = ".num_batches_tracked"  # old files lack them
_HEAD = re.compile(
    r"((\w+_)?heads?|fc|classifier|aux\w*|(\w+_)?proj(ect\w*)?|pred\w*|decoder\w*|mask_token|queue\w*|prototypes\w*|logit\w*|"
    r"text\w*|student|teacher|momentum\w*)"
)
"""Names of modules that pretraining leaves beside a backbone."""
_COUNTERS = re.compile(r"(.*\.)?total_(ops|params)|\w*(criterion|loss|metric|acc)\w*\..*")
"""Keys of no model's weights: thop's counters, losses and metrics."""
_BEGINNINGS = {
    rb"\Z": "it is empty",
    rb"version https://git-lfs": "it is a pointer of git-lfs, not the file itself: git lfs pull fetches that",
    rb"\s*<": "it is a page (HTML or XML), perhaps one for logging in: download the file itself",
    rb"PK\x03\x04|\x80": "it is a pickled file: rename it to .pt",
    rb'.{8}\{"': "it is a safetensors file: rename it to .safetensors",
}
"""How files begin that are no weights, or have the name of another kind."""


@dataclass(frozen=True)
class WeightFile:
    """What a file of weights holds. Our own files also say how the weights were trained; others leave that ``None``."""

    state: dict[str, Tensor]
    image_input: ImageInput | None = None
    epochs: tuple[int, int] | None = None  # trained and planned, when the file was written
    classes: list[str] | None = None  # names, in the order of their labels
    model: str | None = None  # timm's name
    preprocessing: dict[str, Any] | None = None  # of the images that the weights are measured on, in timm's words


def read_weights(path: str | Path, where: str, *, as_torch_does: bool = False) -> WeightFile:
    """The weights in a ``.safetensors`` or ``state_dict`` file, or in a checkpoint of torchdistill or timm's train.py.

    Pickled files, which may be ``http(s)://`` addresses, are read with torch's safe loader: tensors and
    ``argparse.Namespace`` (which both store). ``where`` is the key path or option that names the file.
    ``as_torch_does`` leaves ``.safetensors`` to torch, for what it unpickles afterwards: torch 2.12 does not know them.
    """
    is_address = str(path).startswith(("http://", "https://"))
    here = Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(str(path)).path).name) if is_address else Path(path)
    if not is_address and not here.is_file():
        raise ConfigError(f"{where}: no such file: {path}")
    try:
        found = _read(str(path), is_address, as_torch_does)
    except Exception as error:  # broken files raise whatever the parser meets first
        kept = f" (kept as {here})" if is_address and here.is_file() else ""
        raise ConfigError(f"{where}: {path}{kept} cannot be read as weights: {_why_not(here, error)}") from error
    if not found.state:
        raise ConfigError(f"{where}: {path} holds no state_dict")
    return found


def _why_not(path: Path, error: Exception) -> str:
    """What a file is that cannot be read as weights, from how it begins and from what the parser met."""
    if not path.is_file():
        return first_line(error)
    with path.open("rb") as file:
        start = file.read(1 << 20)
    is_right = "to .safetensors" if path.suffix == ".safetensors" else "to .pt"
    for begins, what in _BEGINNINGS.items():
        if re.match(begins, start, re.DOTALL) and not what.endswith(is_right):
            return what
    if "TorchScript" in str(error):
        return "it is a TorchScript program: save the state_dict() of its model"
    if not isinstance(error, pickle.UnpicklingError):
        return first_line(error)
    found = re.search(r"GLOBAL (\S+)", str(error))
    if found is None:
        return "it is no file of torch.save, or a broken one"
    what = f"a whole pickled model ({found[1]})" if b"torch.nn.modules" in start else f"an object {found[1]}"
    cure = "where you trust it, load it with torch and save its state_dict() alone"
    return f"it holds {what}, which is not unpickled, because that may run any code; {cure}"


def _read(path: str, is_address: bool, as_torch_does: bool) -> WeightFile:
    if path.endswith(".safetensors") and not is_address and not as_torch_does:
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
    sections = content if isinstance(content, Mapping) else {}
    nested = [sections[key] for key in _NESTED if key in sections]
    others = [(key, value) for key, value in sections.items() if _is_state_dict(value)]
    flat = {f"{key}.{name}": tensor for key, value in others for name, tensor in value.items()}
    keys = ("image_input", "epochs", "classes", "preprocessing")
    image_input, epochs, classes, preprocessing = (about.get(key) for key in keys)
    return WeightFile(
        dict(next((value for value in (*nested, content) if _is_state_dict(value)), flat)),
        trained_with(image_input) if isinstance(image_input, Mapping) else None,
        (int(epochs[0]), int(epochs[1])) if isinstance(epochs, list | tuple) and len(epochs) == 2 else None,
        [str(name) for name in classes] if isinstance(classes, list | tuple) else None,
        str(about["model"]) if "model" in about else None,
        preprocessing if isinstance(preprocessing, dict) else None,
    )


def _is_state_dict(value: object) -> bool:
    items = value.items() if isinstance(value, Mapping) else ()
    return bool(items) and all(isinstance(name, str) and isinstance(item, Tensor) for name, item in items)


def save_student(model: nn.Module, path: Path, about: Mapping[str, Any]) -> None:
    """Writes the student's ``state_dict`` alone and ``about`` it (see :class:`WeightFile`), as safetensors."""
    state = {key: value.detach().cpu().clone().contiguous() for key, value in model.state_dict().items()}
    # save_file() would make it readable by its owner only; several entries of metadata would be in random order
    write_atomically(path, lambda file: file.write_bytes(save(state, metadata={_METADATA: json.dumps(about)})))


def save_upstream_checkpoint(model: nn.Module, box: Any, best: float, path: Path, about: Mapping[str, Any]) -> None:
    """Writes a checkpoint in torchdistill's own format (``dst_ckpt``); its ``args`` are ``about``."""
    state = (box.optimizer, box.lr_scheduler, best, argparse.Namespace(**about))
    write_atomically(path, lambda file: save_ckpt(model, *state, str(file)))


def load_weights(
    model: nn.Module, path: str | Path, where: str, prefix: str | None = None, *, adapts: bool = False
) -> WeightFile:
    """Loads every weight of the model, and nothing else, less a common prefix of the keys; a misfit changes nothing.

    What lies beside the weights is left out, and a log line tells it. ``prefix`` chooses among several sets of weights.
    With ``adapts`` a first convolution for other channels, e.g. RGB, is adapted as timm adapts pretrained ones.
    """
    fit = _Fit(model, path, where, prefix, adapts=adapts)
    fit.refuse()
    fit.load(model, fit.state)
    return fit.file


def load_teacher_weights(model: nn.Module, path: str | Path, where: str, prefix: str | None = None) -> None:
    """Loads a teacher's weights: its backbone in full, and its classifier if it has one.

    A log line tells what is left out: a classifier that the model lacks, a projection head, a decoder. What the file
    says of its training is then the model's ``image_input`` and ``trained_classes``.
    """
    fit, heads = _Fit(model, path, where, prefix), _timm_paths(model, "classifier")
    in_head = {key for key in (*fit.missing, *fit.misshapen) if key.startswith(heads)}
    other_heads = fit.heads(heads)
    fit.refuse(but=in_head | other_heads)
    if in_head and getattr(model, "num_classes", None) != 0:
        misfit = f"fits the backbone of {type(model).__name__}, but not its classifier"
        cure = "give its kwargs.num_classes, or num_classes: 0 for a teacher without classifier"
        raise ConfigError(f"{where}: {path} {misfit}: {'; '.join(fit.problems(but=other_heads))}; {cure}")
    fit.load(model, fit.state)
    image_input, classes = fit.file.image_input, fit.file.classes
    if image_input is not None:  # of adapted channels only the size
        model.image_input = ImageInput(size=image_input.size) if fit.adapted else image_input  # type: ignore[assignment]
    else:
        model.has_weights_of_unknown_input = True  # type: ignore[assignment]
    if classes is not None and len(classes) == getattr(model, "num_classes", len(classes)):
        model.trained_classes = classes  # type: ignore[assignment]


def load_backbone_weights(
    model: nn.Module, path: str | Path, where: str, prefix: str | None = None, *, extends_classifier: bool = False
) -> None:
    """Loads a backbone in full; the classifier stays as it is, or starts with the file's (``extends_classifier``)."""
    fit, heads = _Fit(model, path, where, prefix), classifier_paths(model)
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
    fit.load(model, loaded, f", the classifier is {'extended' if extends_classifier else 'new'}")


def refuse_broken(state: Mapping[str, Tensor], place: str, buffers: Collection[str] = ()) -> None:
    """Raises ConfigError where a tensor holds NaN or, unless it is among the ``buffers``, infinity."""
    floats = ((key, value.float()) for key, value in state.items() if value.is_floating_point())
    broken = [key for key, x in floats if bool((x.isnan() if key in buffers else ~x.isfinite()).any())]
    if broken:
        raise ConfigError(f"{place} holds NaN or infinity: {shown(broken)}")


def classifier_paths(model: nn.Module) -> tuple[str, ...]:
    """Prefixes (``'fc.'``) of the keys of a model's classifiers: those that a timm model names, or the last Linear."""
    with_weights = [(name, module) for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    name, last = with_weights[-1] if with_weights else ("", model)
    return _timm_paths(model, "classifier") or ((f"{name}.",) if name and isinstance(last, nn.Linear) else ())


def _timm_paths(model: nn.Module, what: str) -> tuple[str, ...]:
    cfg: Any = getattr(model, "pretrained_cfg", None)
    paths = (cfg.get(what) if isinstance(cfg, dict) else None) or ()
    return tuple(f"{path}." for path in ((paths,) if isinstance(paths, str) else paths))


def shown(names: Collection[str]) -> str:
    """The first four."""
    return ", ".join(sorted(names)[:4]) + ", …" * (len(names) > 4)


class _Fit:
    """A file's tensors against a model's, by name; warns where the run that wrote the file did not finish."""

    def __init__(self, model: nn.Module, path: str | Path, where: str, prefix: str | None, adapts: bool = True) -> None:
        self.file = read_weights(path, where)
        if (epochs := self.file.epochs) is not None and epochs[0] < epochs[1]:
            logger.warning("%s: %s is of epoch %d of %d: the run that wrote it did not finish", where, path, *epochs)
        found, own = self.file.state, model.state_dict()
        self._place, self._title = f"{where}: {path}", f"{where}: {path} does not fit {type(model).__name__}"
        with told_at(f"{where}: {path} "):
            self.prefix, sets = _prefix(found, own, classifier_paths(model), prefix)
        ordered = sorted(found, key=lambda key: key.startswith(self.prefix))  # of two alike the one inside is taken
        read = [key for key in ordered if prefix is None or key.startswith(self.prefix) or key not in own]
        given = {key.removeprefix(self.prefix): found[key] for key in read}
        self.adapted = _adapt_channels(model, own, given) if adapts else ""
        self._own_tops = {name.partition(".")[0] for name in own}
        self.missing = {key for key in own.keys() - given.keys() if not key.endswith(OPTIONAL)}
        self.unexpected = given.keys() - own.keys()
        inside = {key.removeprefix(self.prefix) for key in found if key.startswith(self.prefix)}
        others = tuple(p.removeprefix(self.prefix) for p in sets if p.startswith(self.prefix) and p != self.prefix)
        self._beside = {k for k in self.unexpected if k not in inside or k.startswith(others) or _COUNTERS.fullmatch(k)}
        misshapen = [key for key in own.keys() & given.keys() if own[key].shape != given[key].shape]
        self.misshapen = {key: f"{key} {list(given[key].shape)} (model: {list(own[key].shape)})" for key in misshapen}
        self.state = {key: value for key, value in given.items() if key in own and key not in self.misshapen}

    def problems(self, but: Collection[str] = ()) -> list[str]:
        """One phrase for each kind."""
        shapes = {text for key, text in self.misshapen.items() if key not in but}
        kinds = {"missing": self.missing - {*but}, "unexpected": self.unexpected - {*but}, "of another shape": shapes}
        return [f"{len(names)} {kind}: {shown(names)}" for kind, names in kinds.items() if names]

    def refuse(self, but: Collection[str] = ()) -> None:
        """Raises ConfigError unless the model is complete; what lies beside it is no problem then."""
        if self.problems({*but, *self._beside}):
            raise ConfigError(f"{self._title}: {'; '.join(self.problems(but))}")

    def load(self, model: nn.Module, state: Mapping[str, Tensor], note: str = "") -> None:
        """Puts the tensors into the model; a log line tells it, and what is left out."""
        refuse_broken(state, self._place, {name for name, _ in model.named_buffers()})
        model.load_state_dict(state, strict=False)
        prefix = f", prefix {self.prefix!r} removed" if self.prefix else ""
        left = f"; left out: {'; '.join(self.problems())}" if self.problems() else ""
        logger.info("%s: %d tensors loaded%s%s%s%s", self._place, len(state), prefix, self.adapted, note, left)

    def heads(self, classifiers: tuple[str, ...]) -> set[str]:
        """The file's further tensors that belong to a classifier, or to a head that pretraining leaves."""
        tops = {key: key.partition(".")[0] for key in self.unexpected}
        is_head = {key for key, top in tops.items() if top not in self._own_tops and _HEAD.fullmatch(top)}
        return is_head | {key for key in tops if key.startswith(classifiers)}


def _prefix(
    given: Mapping[str, Tensor], own: Mapping[str, Tensor], heads: tuple[str, ...] = (), wanted: str | None = None
) -> tuple[str, list[str]]:
    """What stands before the model's keys, e.g. 'module.' or 'backbone.', and all that stands before a whole backbone.

    The first is ``wanted``, or by default what stands before most of the keys that end like one of the model's.
    """
    counts: Counter[str] = Counter()
    for key in given:
        parts = key.split(".")
        for depth in range(len(parts)):
            if ".".join(parts[depth:]) in own:
                counts["".join(f"{part}." for part in parts[:depth])] += 1
    needed = sum(not key.endswith(OPTIONAL) and not key.startswith(heads) for key in own)
    sets = sorted(prefix for prefix, count in counts.items() if count >= needed)
    if wanted is not None:
        prefix = f"{wanted.rstrip('.')}." if wanted else ""
        if not any(key.startswith(prefix) for key in given):
            raise ConfigError(f"has no key that begins with src_ckpt_prefix {wanted!r}; {nearest(wanted, sets)}")
        return prefix, sets
    best = max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default="")
    alike = [repr(prefix) for prefix in sets if counts[prefix] == counts[best]]
    if len(alike) > 1:
        raise ConfigError(f"holds several sets of such weights; src_ckpt_prefix chooses among {', '.join(alike)}")
    return best, sets


def _adapt_channels(model: nn.Module, own: Mapping[str, Tensor], given: dict[str, Tensor]) -> str:
    """Makes RGB weights grey, or the like, in place, as timm does for ``pretrained: True``; says so."""
    done, cfg = "", cast("Any", getattr(model, "pretrained_cfg", None))
    for key in (f"{path}weight" for path in _timm_paths(model, "first_conv")):
        if key not in own or key not in given or own[key].shape[1:2] == given[key].shape[1:2]:
            continue
        channels = (cfg.get("input_size") or (3,))[0]
        with contextlib.suppress(NotImplementedError, AssertionError, ValueError, IndexError):
            before = given[key].shape[1] * channels // own[key].shape[1]  # some stems fold pixels into channels
            given[key] = adapt_input_conv(channels, given[key], before)
            done = f", adapted from {before} to {channels} channels"
    return done
