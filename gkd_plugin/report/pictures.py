"""Images of a data set, as they lie in the page."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from gkd_plugin.data import ImageInput, labels_of, normalisation_of
from gkd_plugin.diagnose.figures import most_confused
from gkd_plugin.diagnose.restore import LeftOut, RestoredRun

CLASSES, IMAGES, PAIRS = 20, 4, 6  # the most that are shown, of each class and pair as many images
_SIDE = 112  # pixels of the longer side


def data_uri(content: bytes | Path) -> str:
    """A picture for ``<img src>``, PNG or JPEG by its first bytes."""
    content = content.read_bytes() if isinstance(content, Path) else content
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def thumbnail(image: Tensor, known: ImageInput) -> str:
    """A normalised tensor ``[C, H, W]`` as small picture; LeftOut where it is none in grey or colour."""
    if image.ndim != 3 or len(image) not in (1, 3):
        raise LeftOut(f"a sample of shape {tuple(image.shape)} is no picture in grey or colour")
    pixels = image.float()
    if known.mean is not None and known.std is not None:
        pixels = pixels * torch.tensor(known.std)[:, None, None] + torch.tensor(known.mean)[:, None, None]
    elif pixels.min() < 0 or pixels.max() > 1:  # not known how they were normalised
        pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min()).clamp_min(1e-9)
    picture: Image.Image = to_pil_image(pixels.clamp(0, 1))
    picture.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG" if max(picture.size) <= 48 else "JPEG", quality=80)
    return data_uri(file.getvalue())


def examples(run: RestoredRun) -> list[dict[str, Any]]:
    """Classes of the training set with ``name``, number ``n`` of labelled images, and some ``images``."""
    dataset: Any = run.train.loader.dataset
    labels, known = np.asarray(labels_of(dataset)), normalisation_of(dataset)
    found = []
    for label, name in list(enumerate(run.class_names))[:CLASSES]:
        places = np.flatnonzero(labels == label)
        images = [thumbnail(dataset[int(place)][0], known) for place in places[:IMAGES]]
        found.append({"name": name, "n": len(places), "images": images})
    return found


def confused_pairs(run: RestoredRun, confusion: dict[str, Any]) -> list[dict[str, Any]]:
    """The pairs of classes that the student confuses most (``report_confusion``), each with ``images``."""
    assert run.test is not None  # there are answers
    logits, labels = run.answers
    dataset, predicted, names = run.test.loader.dataset, logits.argmax(dim=1), confusion["classes"]
    known, pairs = normalisation_of(dataset), most_confused(np.asarray(confusion["counts"]), names)[:PAIRS]
    for pair in pairs:
        wrong = (labels == names.index(pair["true"])) & (predicted == names.index(pair["predicted"]))
        places = wrong.nonzero().flatten().tolist()[:IMAGES]
        pair["images"] = [thumbnail(dataset[place][0], known) for place in places]
    return pairs
