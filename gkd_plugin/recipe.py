"""``refilled init`` and ``refilled distill``: from a folder of photos and two models to a configuration.

What it chooses, and where that was measured: docs/distill.md.
"""

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from string import Template
from typing import Any

import timm
import torch
import yaml
from huggingface_hub import HfApi, try_to_load_from_cache
from timm.layers.helpers import to_2tuple
from timm.models import PretrainedCfg, parse_model_name

from gkd_plugin.data import ImageFiles, image_folder
from gkd_plugin.data.files import existing_folder, first_difference, images_below, write_atomically
from gkd_plugin.deploy.student import DistilledStudent
from gkd_plugin.errors import ConfigError, told_at
from gkd_plugin.models.timm_model import check_model_name
from gkd_plugin.runner.devices import cores
from gkd_plugin.runner.run import RUNS, run_all
from gkd_plugin.runner.run_folder import RunFolder
from gkd_plugin.runner.stopping import stoppable
from gkd_plugin.runner.weights import read_weights

_TEMPLATE = Template((Path(__file__).parent / "recipe.yaml").read_text(encoding="utf-8"))
_FOLDERS = {"train": ("train", "training"), "validation": ("validation", "val", "valid"), "test": ("test", "testing")}
_UPDATES = 300  # of a pretrained student at least, while that takes no more than so many epochs
_PRETRAINED_EPOCHS, _SCRATCH_EPOCHS = (15, 60), 100
_VIEWS, _PASSES = (4, 20), 3000  # the teacher answers for about so many images, in so many views of each
_SMALLEST = 16  # pixels of an image's side
_MANY = 2000  # images, above which the teacher's answers are not kept


@dataclass(frozen=True)
class Wanted:
    """What the command line says; ``None`` is chosen."""

    data: Path
    teacher: str  # timm's name, name=file, a file that this package wrote, or a run folder
    student: str
    epochs: int | None = None
    size: int | None = None  # the student's images, in pixels
    teacher_size: int | None = None
    lr: float | None = None
    unlabelled: Path | None = None
    is_pretrained: bool = True  # the student, where there are weights


def distill(
    data: str | Path,
    teacher: str,
    student: str,
    *,
    output: str | Path | None = None,
    seed: int = 0,
    device: str | None = None,
    **choices: Any,
) -> DistilledStudent:
    """As ``refilled distill``: trains a student of the photos in ``data``, and gives it.

    Args:
        data: folder of photos, see docs/distill.md.
        teacher: timm's name, ``NAME=FILE`` of weights, or a run folder.
        student: likewise.
        output: run folder; the configuration is ``<output>.yaml``. By default ``runs/<data>``, and ``<data>.yaml``.
        seed: of every random number.
        device: ``'auto'``, ``'cpu'``, ``'cuda'``, ``'cuda:N'`` or ``'mps'``.
        choices: the fields of :class:`Wanted`: ``epochs``, ``size``, ``teacher_size``, ``lr``, ``unlabelled``,
            ``is_pretrained``.

    Raises:
        ConfigError: as the command, whose message it is.
    """
    path, folder = places(data, output)
    write_recipe(Wanted(Path(data), teacher, student, **choices), path)
    with stoppable(), _informed():  # Ctrl-C leaves a checkpoint, from which refilled run --resume goes on
        (summary,) = run_all([path], output=folder, seed=seed, device=device)
    return DistilledStudent.load(summary["folder"])


@contextmanager
def _informed() -> Iterator[None]:
    """Every line goes to ``log.txt``, as from the command."""
    ours = logging.getLogger("gkd_plugin")
    before = ours.level
    ours.setLevel(min(ours.getEffectiveLevel(), logging.INFO))
    try:
        yield
    finally:
        ours.setLevel(before)


def places(data: str | Path, output: str | Path | None) -> tuple[Path, Path]:
    """Where the configuration goes (beside the run folder, or into the working directory), and the run folder."""
    name = Path(data).resolve().name
    return (Path(f"{name}.yaml"), RUNS / name) if output is None else (Path(f"{output}.yaml"), Path(output))


def write_recipe(wanted: Wanted, path: Path, *, overwrites: bool = False) -> str:
    """Writes the configuration, with comments; says in a line what it is of. Another one that is there is refused."""
    folders = find_folders(wanted.data)
    with told_at("DATA: "):
        images = image_folder(folders["train"])
        about = _about(folders, images)
        _check_apart(folders)
    teacher, cfg = _model("--teacher", wanted.teacher)
    teacher_size = _sized("--teacher-size", teacher, cfg, wanted.teacher_size)
    student, cfg = _model("--student", wanted.student, is_pretrained=wanted.is_pretrained)
    size = _sized("--size", student, cfg, wanted.size)
    _check_reachable({"--teacher": teacher, "--student": student})
    is_pretrained = bool(student["kwargs"].get("pretrained") or student.get("src_ckpt"))
    student["kwargs"]["num_classes"] = len(images.classes)
    if is_pretrained:
        student["src_ckpt_classifier"] = "centres"
    count = len(images) if "test" in folders else round(0.8 * len(images))  # of those that train
    text = _TEMPLATE.substitute(
        about=about,
        command=_inline(_command(wanted)),
        train=_inline(str(folders["train"])),
        **_data_sets(folders, wanted.unlabelled),
        teacher=_inline(teacher),
        student=_inline(student),
        image_size=max(size, teacher_size),
        resize=int(max(size, teacher_size) / cfg.crop_pct),
        own_size=size,
        own_resize=int(size / cfg.crop_pct),
        interpolation=cfg.interpolation,
        mean=list(cfg.mean),
        std=list(cfg.std),
        workers=min(4, cores()),
        **_schedule(count, wanted, is_pretrained=is_pretrained),
    )
    if path.exists() and not overwrites and (differs := first_difference(path, text)):
        raise ConfigError(f"{path} is there and differs: {differs}; name another, or give --overwrite")
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))
    return f"{path}: {about}"


def _command(wanted: Wanted) -> str:
    """What was asked for, as a command line."""
    words = ["refilled distill", quote(str(wanted.data))]
    for name, value in vars(wanted).items():
        if name not in ("data", "is_pretrained") and value is not None:
            words += [f"--{name.replace('_', '-')}", quote(str(value))]
    return " ".join(words + ["--from-scratch"] * (not wanted.is_pretrained))


def find_folders(data: Path) -> dict[str, Path]:
    """The folders of ``train``, and of ``validation`` and ``test`` where they are; the folder itself as ``train``."""
    below = {path.name.lower(): path for path in existing_folder(data, "DATA").iterdir() if path.is_dir()}
    found = {part: below[name] for part, names in _FOLDERS.items() for name in names if name in below}
    if not found:
        return {"train": data}
    if "train" not in found:
        raise ConfigError(f"DATA: {data} holds {sorted(path.name for path in found.values())}, but no folder 'train'")
    return found


def _check_apart(folders: Mapping[str, Path]) -> None:
    """Refuses images of the training folder in another one, under other names too."""
    images = {part: [Path(path) for path in images_below(folder)] for part, folder in folders.items()}
    trained = images.pop("train")
    for part, others in images.items():
        sizes = {path.stat().st_size for path in trained} & {path.stat().st_size for path in others}
        known = {_digest(path) for path in trained if path.stat().st_size in sizes}
        shared = [path for path in others if path.stat().st_size in sizes and _digest(path) in known]
        if shared:
            found = f"{len(shared)} of {len(others)} images in {folders[part]} are training images too: {shared[0]}"
            raise ConfigError(f"{found}{', …' * (len(shared) > 1)}; remove them from one of the two")


def _digest(path: Path) -> bytes:
    return hashlib.blake2b(path.read_bytes()).digest()


def _about(folders: Mapping[str, Path], images: ImageFiles) -> str:
    """The training photos in a line; refuses too few."""
    counts = Counter(images.classes[label] for label in images.targets)
    smallest, fewest = min(counts.items(), key=lambda pair: pair[1])
    if len(counts) < 2:
        raise ConfigError(f"{folders['train']} has one class, {smallest!r}; it takes at least two")
    each = f"{fewest} of each" if fewest == max(counts.values()) else f"{fewest} of the smallest, {smallest}"
    sizes = f"{len(images)} images of {len(counts)} classes, {each}"
    if "test" in folders:
        return sizes
    if single := [str(folders["train"] / name) for name, count in counts.items() if count == 1]:
        cures = "add photos, remove the folder, or make folders 'train' and 'test' yourself"
        raise ConfigError(f"one photo in {', '.join(single[:10])}, which cannot both train and test; {cures}")
    return f"{sizes}; a fifth of each class, drawn with seed 0, is the test set, because there is no folder 'test'"


def _data_sets(folders: Mapping[str, Path], unlabelled: Path | None) -> dict[str, str]:
    """The texts of the data sets and of the loaders that name them."""

    def made(name: str, by: str, kwargs: str, anchor: str = "") -> str:
        return f"  own/{name}: {anchor}!import_call {{key: 'gkd_plugin.data.{by}', init: {{kwargs: {{{kwargs}}}}}}}"

    augmented = "root: *train, transform: *augmented, eval_transform: *plain"
    held_out = {part: f"root: {_inline(str(folder))}, classes_of: *train" for part, folder in folders.items()}
    labelled = "&labelled " if unlabelled else ""
    if "test" in folders:
        lines = [made("train", "image_folder", augmented, labelled)]
        lines += [made("test", "image_folder", f"{held_out['test']}, transform: *tested")]
    else:
        drawn = "test_fraction: 0.2, seed: 0"
        lines = [made("all", "image_folder", augmented, "&all ")]
        lines += [made("plain", "image_folder", "root: *train, transform: *tested", "&unchanged ")]
        lines += [made("train", "train_test_subset", f"dataset: *all, split: 'train', {drawn}", labelled)]
        lines += [made("test", "train_test_subset", f"dataset: *unchanged, split: 'test', {drawn}")]
    if "validation" in folders:
        lines += [made("validation", "image_folder", f"{held_out['validation']}, transform: *plain")]
    if unlabelled is not None:
        folder = _inline(str(existing_folder(unlabelled, "--unlabelled")))
        lines += [made("mixed", "with_unlabelled", f"labelled: *labelled, unlabelled: {folder}")]
    return {
        "datasets": "\n".join(lines),
        "train_id": "own/mixed" if unlabelled else "own/train",
        "batches": _MIXED if unlabelled else "    kwargs: {batch_size: *batch, num_workers: *workers}",
        "validation": _VALIDATION if "validation" in folders else "",
    }


_MIXED = """\
    batch_sampler: {key: 'MixedBatchSampler', kwargs: {labelled: *batch, unlabelled: *batch}}
    kwargs: {num_workers: *workers}"""
_VALIDATION = """
  val_data_loader:
    dataset_id: 'own/validation'
    sampler: {class_or_func: !import_get {key: 'torch.utils.data.SequentialSampler'}}
    kwargs: {batch_size: 100, num_workers: *workers}"""


def _schedule(count: int, wanted: Wanted, *, is_pretrained: bool) -> dict[str, Any]:
    batch = 24 if count < 500 else 32 if count < _MANY else 64
    fewest, most = _PRETRAINED_EPOCHS
    epochs = min(max(math.ceil(_UPDATES * batch / count), fewest), most) if is_pretrained else _SCRATCH_EPOCHS
    epochs = wanted.epochs or epochs
    views = min(epochs, max(_VIEWS[0], min(_VIEWS[1], _PASSES // count)))
    keeps = is_pretrained and count < _MANY and wanted.unlabelled is None
    cache = f"{{views: {views}}}  # the teacher answers once for so many views of each image" if keeps else "null"
    lr = wanted.lr or (0.001 if is_pretrained else 0.005)
    return {"epochs": epochs, "batch": batch, "lr": lr, "cache": cache, "val_freq": max(epochs // 8, 1)}


def _sized(option: str, entry: dict[str, Any], cfg: PretrainedCfg, wanted: int | None) -> int:
    """The size of a model's images, which its entry is given; one that leaves out pixels of each image is refused."""
    size = wanted or max((cfg.test_input_size or cfg.input_size)[1:])
    if size < _SMALLEST:
        raise ConfigError(f"{option}: {size} pixels are too few for a photo; {_SMALLEST} or more")
    entry["kwargs"]["input_size"] = size
    if cfg.fixed_input_size and size != cfg.input_size[1]:  # the model is built for one size
        entry["kwargs"]["img_size"] = size
        name = entry["kwargs"]["model_name"]
        with torch.device("meta"):
            embed = getattr(timm.create_model(name), "patch_embed", None)
        patch = to_2tuple(getattr(embed, "patch_size", 1))[0]
        if size % patch:
            below = size // patch * patch
            raise ConfigError(
                f"{option}: {name} takes patches of {patch} pixels, so {below} or {below + patch}, not {size}"
            )
    return size


def _model(option: str, text: str, *, is_pretrained: bool = True) -> tuple[dict[str, Any], PretrainedCfg]:
    """The entry of a model, and what timm knows of its weights."""
    name, _, file = text.partition("=")
    written = Path(text) / RunFolder(Path(text)).student.name if Path(text).is_dir() else Path(text)
    classes = None
    if not file and written.is_file():
        read = read_weights(written, option)
        if read.model is None:
            raise ConfigError(f"{option}: {written} does not say which model it is of; give NAME={written}")
        name, file, classes = read.model, str(written), read.classes
    if not file and Path(name).exists() and not timm.is_model(name):
        lacks = "a run folder with a student" if Path(name).is_dir() else "a student of this package"
        raise ConfigError(f"{option}: {name} is not {lacks}; of other weights give NAME={name}")
    with told_at(f"{option}: "):
        check_model_name(name)
        if parse_model_name(name)[0]:
            raise ConfigError(f"{name!r} is not one of timm's own names; download its weights and give NAME=FILE")
    cfg = timm.get_pretrained_cfg(name) or PretrainedCfg()
    entry: dict[str, Any] = {"key": "timm_model", "kwargs": {"model_name": name}}
    if file:
        entry["src_ckpt"] = file
        count = len(classes) if classes else _classes_in(file, option, str(cfg.classifier))
        if option == "--teacher" and count is not None:
            entry["kwargs"]["num_classes"] = count
    elif cfg.has_weights and is_pretrained:
        entry["kwargs"]["pretrained"] = True
    elif option == "--teacher":
        raise ConfigError(f"--teacher: timm has no weights of {name!r}; give a name with weights, or {name}=FILE")
    return entry, cfg


def _classes_in(file: str, option: str, classifier: str) -> int | None:
    """How many classes the classifier in a file has, where it has one."""
    state = read_weights(file, option).state
    rows = [len(value) for key, value in state.items() if key.endswith(f"{classifier}.weight")]
    return rows[0] if rows else 0


def _check_reachable(entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Says of all pretrained models at once which are neither in the cache nor can be fetched."""
    missing = []
    for option, entry in entries.items():
        name = entry["kwargs"]["model_name"]
        cfg = timm.get_pretrained_cfg(name)
        if not entry["kwargs"].get("pretrained") or not (cfg and cfg.hf_hub_id):
            continue
        files = ("model.safetensors", "pytorch_model.bin")
        if any(isinstance(try_to_load_from_cache(cfg.hf_hub_id, file), str) for file in files):
            continue
        try:
            HfApi().model_info(cfg.hf_hub_id, timeout=10)
        except Exception:  # of any layer of the network
            missing.append(f"{option} {name}")
    if missing:
        where = "not in the local cache, and the Hugging Face hub cannot be reached"
        cures = "download them elsewhere and give NAME=FILE, or train the student from scratch (--from-scratch)"
        raise ConfigError(f"the weights of {' and '.join(missing)} are {where}; {cures}")


def _inline(value: Any) -> str:
    """YAML in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, sort_keys=False)
    return text.removesuffix("\n...\n").strip()
