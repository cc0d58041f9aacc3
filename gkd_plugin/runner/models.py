"""The models that a YAML names, with their weights."""

import logging
import math
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from accelerate import Accelerator
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import Tensor, nn
from torchdistill.models.official import get_image_classification_model
from torchdistill.models.registry import get_model
from torchvision.models import get_model_weights

from gkd_plugin.box.hooks import Capture
from gkd_plugin.cache.fingerprint import model_key
from gkd_plugin.cache.teacher_cache import TeacherCache
from gkd_plugin.data import ImageInput
from gkd_plugin.errors import ConfigError, first_line, user_can_mend
from gkd_plugin.functional import ClassCentreAccumulator
from gkd_plugin.runner.weights import classifier_paths, load_backbone_weights, load_teacher_weights, load_weights
from gkd_plugin.teacher import clean_loader
from gkd_plugin.teacher.fitting import asked

logger = logging.getLogger(__name__)

TEACHER = "models.teacher_model"
SCALE = 10.0  # logits per cosine at the start; classifiers on normalised embeddings usually learn about this factor


def build_model(where: str, entry: Mapping[str, Any]) -> nn.Module:
    """The model that ``entry`` names, with ``src_ckpt`` loaded into it; ``where`` is the key path of the entry.

    ``src_ckpt_prefix`` chooses among several sets of weights in the file. ``src_ckpt_classifier`` 'new' and 'centres'
    take its backbone alone, 'extended' its classes as the first.
    """
    kwargs, source, prefix = entry.get("kwargs") or {}, entry.get("src_ckpt"), entry.get("src_ckpt_prefix")
    hub_log = logging.getLogger("huggingface_hub")
    level = hub_log.level
    hub_log.setLevel(logging.ERROR)  # its retries offline are quiet
    try:
        model: nn.Module | None = get_image_classification_model(entry)
        if model is None:
            model = get_model(entry["key"], entry.get("repo_or_dir"), **kwargs)
        elif isinstance(kwargs.get("weights"), str):  # torchvision's, which say what images they were trained with
            preset = get_model_weights(entry["key"])[kwargs["weights"].rpartition(".")[2]].transforms()
            side, mean, std = int(preset.crop_size[0]), tuple(preset.mean), tuple(preset.std)
            model.image_input = ImageInput(mean, std, (side, side))  # type: ignore[assignment]
    except LocalEntryNotFoundError as error:
        name = kwargs.get("model_name", entry.get("key"))
        lacks = f"what {name!r} needs of the Hugging Face hub is not in the local cache, and there is no connection"
        cure = "download the file elsewhere and give it as src_ckpt, with pretrained: False"
        raise ConfigError(f"{where}: {lacks}; {cure}") from error
    except FileNotFoundError as error:
        raise ConfigError(f"{where}: {str(error) or 'a file that its kwargs name does not exist'}") from error
    except (TypeError, ValueError, RuntimeError, OSError, AssertionError) as error:
        raise ConfigError(f"{where}: {first_line(error)}") from error
    finally:
        hub_log.setLevel(level)
    if source and entry.get("src_ckpt_classifier"):
        is_extended = entry["src_ckpt_classifier"] == "extended"
        load_backbone_weights(model, source, f"{where}.src_ckpt", prefix, extends_classifier=is_extended)
    elif source and where == TEACHER:
        load_teacher_weights(model, source, f"{where}.src_ckpt", prefix)
    elif source:
        load_weights(model, source, f"{where}.src_ckpt", prefix, adapts=True)
    return model


def without_weights(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a model that gets its weights later: none are read or downloaded for it."""
    never = {"pretrained": False} if entry["key"] == "timm_model" else {}
    return {**entry, "src_ckpt": None, "kwargs": {**(entry.get("kwargs") or {}), **never}}


@torch.no_grad()
def start_at_centres(
    where: str, student: nn.Module, train_loader: Any, accelerator: Accelerator, cache: TeacherCache | None = None
) -> None:
    r"""Sets every classifier of the student to z_k = 10 · φᵀc_k / m, with no bias.

    φ is the classifier's input, c_k the normalised mean of φ over the training samples of class k (evaluation view), m
    the mean length of φ. So no untrained classifier spoils the embedding (Qi, Brown and Lowe, "Low-Shot Learning with
    Imprinted Weights", CVPR 2018). Not in the ReFilled paper. Random states stay; the student ends in eval mode.
    """
    place = f"{where}.src_ckpt_classifier: 'centres'"
    student.eval()
    modules = {key[:-1]: student.get_submodule(key[:-1]) for key in classifier_paths(student)}
    linears = {path: module for path, module in modules.items() if isinstance(module, nn.Linear)}
    others = [f"{path!r} is a {type(module).__name__}" for path, module in modules.items() if path not in linears]
    if others or not modules:
        found = others[0] if others else "none is found"
        raise ConfigError(f"{place}: needs classifiers that are Linear, {found} in {type(student).__name__}")
    clean = clean_loader(train_loader)

    def compute() -> dict[str, Tensor]:
        centres = {path: ClassCentreAccumulator(linear.out_features) for path, linear in linears.items()}
        lengths, samples = dict.fromkeys(linears, 0.0), 0
        with ExitStack() as hooks:
            captures = {path: hooks.enter_context(Capture.during(student, path, "input")) for path in linears}

            def ask(images: Tensor) -> dict[str, Tensor]:
                student(images)
                return {path: capture.value.float() for path, capture in captures.items()}

            for found, labels in asked(ask, clean, accelerator, "class centres"):
                for path, rows in found.items():
                    centres[path].update(rows, labels)
                    lengths[path] += float(rows.norm(dim=1).sum())
                samples += len(labels)
        for path, length in lengths.items():
            if not 0 < length < math.inf:
                raise ConfigError(
                    f"{place}: what the classifier {path!r} is given has no length; are its images too small?"
                )
        return {path: centres[path].result() * (SCALE * samples / lengths[path]) for path in linears}

    with torch.random.fork_rng(devices=[]), user_can_mend(place), accelerator.autocast():
        if cache is None:
            weights = compute()
        else:
            decides = model_key(student, but=classifier_paths(student))  # that is drawn anew with each seed
            weights = cache.once(place, compute, decides, images=clean.dataset, accelerator=accelerator)
    for path, linear in linears.items():
        linear.weight.copy_(weights[path])
        if linear.bias is not None:
            linear.bias.zero_()
        logger.info("%s: the classifier %r starts at %d class centres", where, path, linear.out_features)
