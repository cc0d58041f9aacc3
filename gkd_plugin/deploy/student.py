"""A trained student, taken out of its run folder."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms

from gkd_plugin.config.config import RunConfig, load_config
from gkd_plugin.config.stages import student_entry
from gkd_plugin.data.files import existing_folder, images_below, read_image, upright_rgb
from gkd_plugin.data.images import images_of_classes
from gkd_plugin.data.transforms import checked_size, crop_pct
from gkd_plugin.errors import ConfigError, user_can_mend
from gkd_plugin.models.timm_model import check_model_name
from gkd_plugin.runner.accuracy import classes_without_sample, evaluate
from gkd_plugin.runner.devices import find_device, make_accelerator, read_placement
from gkd_plugin.runner.models import build_model, without_weights
from gkd_plugin.runner.run_folder import RunFolder
from gkd_plugin.runner.weights import load_weights

logger = logging.getLogger(__name__)

_BATCH = 32


@dataclass(frozen=True, eq=False)
class DistilledStudent:
    """The student of a run, without teacher and wrapper, in eval mode.

    ``model`` is timm's own (or what else the run trained), ``classes`` are the names in the order of its logits,
    ``transform`` turns a PIL image in RGB into what the model takes.
    """

    model: nn.Module = field(repr=False)
    classes: list[str]
    transform: Callable[[Image.Image], Tensor] = field(repr=False)
    preprocessing: dict[str, Any]  # what ``model`` takes, in timm's words
    run: Path
    config: RunConfig = field(repr=False)

    @classmethod
    def load(cls, run: str | Path, device: str = "auto", overrides: Sequence[str] = ()) -> "DistilledStudent":
        """That of a run folder. Raises ConfigError where there is none; what the run does not show is logged."""
        config, weights = student_of(run, overrides)
        where, entry = student_entry(config.tree)
        kwargs, own_size = without_weights(entry)["kwargs"], None
        if entry["key"] == "timm_model":  # without what timm_model adds
            own_size = checked_size(kwargs.pop("input_size", None))
            with user_can_mend(f"{config.path}: {where}"):
                check_model_name(kwargs["model_name"])
                model = timm.create_model(**kwargs)
        else:
            model = build_model(where, without_weights(entry))
        file = load_weights(model.eval(), weights, "RUN")
        known = _completed(file.preprocessing, weights)
        transform = create_transform(**known)
        if known["input_size"][0] == 1:
            transform.transforms.insert(0, transforms.Grayscale())
        if own_size is not None and own_size != tuple(known["input_size"][1:]):  # after all else, as in the run
            transform.transforms.append(transforms.Resize(own_size, transforms.InterpolationMode.BICUBIC))
            share = crop_pct(own_size[0], round(own_size[0] / known["crop_pct"]))
            own = {"input_size": (known["input_size"][0], *own_size), "crop_pct": share, "interpolation": "bicubic"}
            known = {**known, **own}
        names = file.classes
        if names is None:
            names = [str(label) for label in range(_scores(model, torch.zeros(1, *known["input_size"])).shape[1])]
            logger.warning("RUN: %s names no classes: they are called 0 to %s", weights, names[-1])
        return cls(model.to(find_device("--device", device)), names, transform, known, Path(run), config)

    def predict(
        self, images: str | Path | Image.Image | Sequence[str | Path | Image.Image], topk: int | None = None
    ) -> list[list[tuple[str, float]]]:
        """For each image, a path or a PIL image, the ``topk`` (all) classes with their probabilities, highest first.

        Of one image that is not in a list, too.
        """
        answers: list[list[tuple[str, float]]] = []
        if isinstance(images, str | Path | Image.Image):
            images = [images]
        for start in range(0, len(images), _BATCH):
            batch = torch.stack([self.transform(_opened(image)) for image in images[start : start + _BATCH]])
            found = _scores(self.model, batch).softmax(1).topk(min(topk or len(self.classes), len(self.classes)))
            for values, labels in zip(found.values.tolist(), found.indices.tolist(), strict=True):
                answers.append([(self.classes[label], value) for label, value in zip(labels, values, strict=True)])
        return answers

    def predict_files(
        self, paths: Sequence[str | Path], topk: int | None = None
    ) -> Iterator[tuple[str, list[tuple[str, float]]]]:
        """(path, answer) of each image among the paths and in the folders among them.

        The log names an image that cannot be read. Raises ConfigError where there is no other.
        """
        missing = [str(path) for path in paths if not Path(path).exists()]
        if missing:
            text = f"no such file or folder: {', '.join(missing)}"
            if len(missing) == len(paths):
                raise ConfigError(text)
            logger.warning("%s", text)
        paths = [path for path in paths if str(path) not in missing]
        files = [file for path in paths for file in (images_below(Path(path)) if Path(path).is_dir() else [str(path)])]
        count = 0
        for start in range(0, len(files), _BATCH):
            images: dict[str, Image.Image] = {}
            for file in files[start : start + _BATCH]:
                try:
                    images[file] = read_image(file)
                except ConfigError as error:  # noqa: PERF203
                    logger.warning("%s", error)
            yield from zip(images, self.predict(list(images.values()), topk), strict=True)
            count += len(images)
        if not count:
            raise ConfigError(f"no image could be read ({len(files)} found in {', '.join(map(str, paths[:3]))})")

    def evaluate(self, folder: Path, device: str | None = None) -> dict[str, Any]:
        """Accuracy on a folder that holds a folder of images for each class, in the precision of the run."""
        dataset = images_of_classes(folder, self.classes, self.transform, key="--data")
        if missing := [self.classes[label] for label in classes_without_sample(dataset, len(self.classes))]:
            logger.warning("--data: no image of %s: the accuracy is that of the other classes", ", ".join(missing[:10]))
        accelerator = make_accelerator(read_placement(self.config.tree, device, one_device=True))
        loader = accelerator.prepare(DataLoader(dataset, _BATCH))
        self.model.to(accelerator.device)
        with accelerator.autocast():
            accuracy = evaluate(self.model, loader, accelerator)
        return {**accuracy.as_dict(), "samples": accuracy.samples}


def student_of(run: str | Path, overrides: Sequence[str] = ()) -> tuple[RunConfig, Path]:
    """Configuration and weights of a run folder; raises ConfigError where it has none."""
    if Path(run).is_file():
        raise ConfigError(f"RUN: {run} is a file; give a run folder, or: refilled evaluate CONFIG --checkpoint FILE")
    folder = RunFolder(existing_folder(run, "RUN"))
    if not (folder.path / "config.yaml").is_file():
        raise ConfigError(f"RUN: {folder.path} is not a run folder: it has no config.yaml")
    if not folder.student.is_file():
        cure = "no epoch of that run has ended; refilled run CONFIG --resume continues it"
        raise ConfigError(f"RUN: {folder.path} holds no {folder.student.name}: {cure}")
    return load_config(folder.path / "config.yaml", overrides, produced=None), folder.student


def _completed(shown: dict[str, Any] | None, path: Path) -> dict[str, Any]:
    """The record of how test images were prepared; the log says what is assumed because it does not show it."""
    if not shown or "input_size" not in shown:
        raise ConfigError(f"RUN: {path} does not say what images it takes: refilled run writes that into it")
    usual, assumed = {"crop_pct": 1.0, "crop_mode": "center", "interpolation": "bilinear"}, []
    if "crop_pct" not in shown:
        shown = {**shown, **usual}
        assumed.append("the shorter side is scaled to the size (bilinear) and the centre cut out")
    if "mean" not in shown:
        half = (0.5,) * shown["input_size"][0]
        mean, std = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD) if len(half) == 3 else (half, half)
        shown = {**shown, "mean": mean, "std": std}
        assumed.append(f"mean {mean} and std {std}")
    if assumed:
        logger.warning("RUN: %s does not show how test images were prepared; assumed: %s", path, " and ".join(assumed))
    return shown


def _opened(image: str | Path | Image.Image) -> Image.Image:
    return upright_rgb(image.copy()) if isinstance(image, Image.Image) else read_image(str(image))


@torch.inference_mode()
def _scores(model: nn.Module, images: Tensor) -> Tensor:
    scores: Tensor = model(images.to(next(model.parameters()).device)).float()
    return scores
