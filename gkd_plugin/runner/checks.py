"""Checks of the built models and data against every stage, before the first one trains.

torchdistill meets a stage when it begins, so that a misspelling in stage 2 would cost the whole of stage 1.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from torchdistill.datasets.util import build_data_loader
from torchdistill.losses.mid_level import SimpleLossWrapper
from torchdistill.losses.registry import get_high_level_loss

from gkd_plugin.box.hooks import check_module_path
from gkd_plugin.box.upstream import torchdistill_errors
from gkd_plugin.cache.fingerprint import image_keys
from gkd_plugin.config.stages import Role, Stage
from gkd_plugin.config.tree import summary
from gkd_plugin.data import Stream, class_names_of, first_batch, labelled_part, labels_of, normalisation_of
from gkd_plugin.data.labels import length_of
from gkd_plugin.errors import ConfigError, first_line, nearest, told_at
from gkd_plugin.losses import RefilledStage
from gkd_plugin.models import ProjectedStudent
from gkd_plugin.teacher import RefilledTeacher

logger = logging.getLogger(__name__)

_WRAPPERS = {"refilled_teacher": RefilledTeacher, "projected_student": ProjectedStudent}
_MOVES = {"teacher_device", "teacher_dtype"}  # of the wrapper: a check changes nothing
_UPSTREAM_ONLY = re.compile(r"instance\(|\+|(.*\.)?-\d+(\..*)?$")
"""Paths beyond module names: 'instance(BatchNorm2d)', '+name' of a redesigned model, '-1' from a list's end."""
_MANY = 0.02  # share of a test set's images that may be training images, too, before that is told


def check_hooks(stages: Sequence[Stage], teacher: nn.Module | None, student: nn.Module) -> None:
    """Checks every stage's ``forward_hook`` and ``frozen_modules`` against the models, and its losses against hooks."""
    for stage in stages:
        _check_paths(stage.student, student)
        roles = {"student": stage.student}
        if teacher is not None and stage.teacher is not None:
            _check_paths(stage.teacher, teacher)
            roles["teacher"] = stage.teacher
        _check_losses(stage, roles)


def _check_paths(role: Role, model: nn.Module) -> None:
    if role.wrapper is not None:
        if role.wrapper not in _WRAPPERS or role.section["auxiliary_model_wrapper"].get("sequential"):
            return  # what it makes of a model is not known ahead
        kwargs = {key: value for key, value in role.wrapper_kwargs.items() if key not in _MOVES}
        with told_at(f"{role.path}."), torch.random.fork_rng(devices=[]):
            model = _WRAPPERS[role.wrapper](model, **kwargs)
    paths = {f"forward_hook.{io}": role.hooks(io) for io in ("input", "output")}
    if not role.section.get("sequential"):
        paths["frozen_modules"] = role.section.get("frozen_modules") or []
    for key, names in paths.items():
        for name in names:
            if not _UPSTREAM_ONLY.match(name):
                check_module_path(model, name, f"{role.path}.{key}")


def _check_losses(stage: Stage, roles: Mapping[str, Role]) -> None:
    """torchdistill's losses end in a bare KeyError in the first batch where what they read is not recorded."""
    with torchdistill_errors(stage.path), torch.random.fork_rng(devices=[]):
        criterion = get_high_level_loss(stage.criterion)
    losses = {name: term[0] for name, term in getattr(criterion, "term_dict", {}).items()}
    if isinstance(criterion, RefilledStage):
        losses = {f"stage {criterion.stage!r}": criterion, **losses}
    for name, loss in losses.items():
        for model, path, io in _reads(loss):
            if model not in roles:
                raise ConfigError(f"{stage.path}.criterion: {name} reads the teacher; models.teacher_model is missing")
            place, recorded = f"{roles[model].path}.forward_hook.{io}", roles[model].hooks(io)
            if path not in recorded and (path, io) != (".", "output"):
                raise ConfigError(f"{place}: {name} reads {path!r}, which is not listed; {nearest(path, recorded)}")


def _reads(loss: Any) -> Iterator[tuple[str, str, str]]:
    """(model, module path, 'input' or 'output') of what a loss reads, as far as it shows that."""
    if isinstance(loss, SimpleLossWrapper):
        yield "teacher" if loss.is_input_from_teacher else "student", loss.input_module_path, loss.input_key
        if loss.target_module_path is not None:
            yield "teacher" if loss.is_target_from_teacher else "student", loss.target_module_path, loss.target_key
    elif hasattr(loss, "hooks"):
        yield from loss.hooks
    else:
        for model in ("student", "teacher"):
            path, io = (getattr(loss, f"{model}_module_{kind}", None) for kind in ("path", "io"))
            if isinstance(path, str) and isinstance(io, str):
                yield model, path, io


def first_images(where: str, dataset: Any) -> Tensor:
    """The first two images of a data set at a key path as a batch; random states stay as they were.

    Raises ConfigError where they cannot be read, or have other channels than what normalises them.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            images: Tensor = first_batch(dataset, range(min(2, len(dataset))))[0]
            channels = images.shape[1]
    except ConfigError:
        raise
    except Exception as error:  # a transform may raise anything
        raise ConfigError(f"{where}: its first images cannot be made a batch: {summary(error)}") from error
    known = normalisation_of(dataset)
    is_plain = (known.mean, known.std) in ((None, None), ((0.0,), (1.0,)))  # of ToTensor alone
    if not is_plain and {len(known.mean or ()), len(known.std or ())} != {channels}:
        given = f"mean {known.mean} and std {known.std} normalise images of {channels} channels"
        raise ConfigError(f"{where}: {given}; give one number for each")
    return images


@torch.no_grad()
def check_forward(where: str, model: Callable[[Tensor], Any], images: Tensor, accelerator: Accelerator) -> None:
    """Runs images through a model in eval mode; ``where`` is its key path. Random states stay as they were."""
    try:
        with told_at(f"{where}: "), torch.random.fork_rng(devices=[]), accelerator.autocast():
            model(images.to(accelerator.device))
    except ConfigError:
        raise
    except Exception as error:  # so may a model
        reason, size = first_line(error), list(images.shape[2:])
        cfg = getattr(getattr(model, "teacher", model), "pretrained_cfg", None) or {}  # of timm
        if cfg.get("fixed_input_size") and list(cfg.get("input_size", ())[1:]) != size:
            reason += f" (its kwargs.img_size: {size[0] if len(set(size)) == 1 else size} builds it for this size)"
        if hasattr(getattr(model, "teacher", None), "home"):
            reason += " (device.teacher has divided it; not every network can be)"
        raise ConfigError(f"{where}: cannot take images of shape {list(images.shape)}: {reason}") from error


def check_data(config: Mapping[str, Any], where: str, num_classes: int | None, stages: Sequence[Stage]) -> None:
    """Checks the datasets that loaders of the config name against the student at key path ``where`` and the stages."""
    datasets = config["datasets"]
    training = dict.fromkeys(stage.loader["dataset_id"] for stage in stages)
    measured = {stage.val_loader["dataset_id"]: stage.loader["dataset_id"] for stage in stages if stage.val_loader}
    if test := (config.get("test") or {}).get("test_data_loader"):
        measured[test["dataset_id"]] = stages[-1].loader["dataset_id"]
        if test["dataset_id"] in training:
            place = f"test.test_data_loader.dataset_id: {test['dataset_id']!r}"
            raise ConfigError(f"{place} is trained on: its accuracy would say nothing of other images")
    loaders = [(f"{stage.path}.train_data_loader", stage.loader, True) for stage in stages]
    loaders += [(f"{stage.path}.val_data_loader", stage.val_loader, False) for stage in stages if stage.val_loader]
    for path, loader, is_training in [*loaders, *([("test.test_data_loader", test, False)] if test else [])]:
        if isinstance(datasets[loader["dataset_id"]], IterableDataset):
            _check_stream(path, loader, datasets[loader["dataset_id"]], is_training)
    for name in training:
        own = [stage for stage in stages if stage.loader["dataset_id"] == name]
        check_labels(name, datasets[name], where, num_classes, own)
        for stage in own:
            _check_crd(stage, datasets[name])
    for name in measured.keys() & training.keys():
        logger.warning("datasets.%s: validation on images that are trained on says little of others", name)
    measured = {name: trained for name, trained in measured.items() if name not in training}
    for name, trained in measured.items():
        names = class_names_of(datasets[trained])
        check_trained_classes(names, name, datasets[name], f"the training set, datasets.{trained}")
        check_labels(name, datasets[name], where, num_classes, [])
    for stage in stages:
        check_dropped(f"{stage.path}.train_data_loader", stage.loader, datasets, is_training=True)
        check_dropped(f"{stage.path}.val_data_loader", stage.val_loader or {}, datasets)
    keys = {name: image_keys(datasets[name]) or [] for name in {*measured, *measured.values()}}
    for name, trained in measured.items():
        shared = len(set(keys[name]) & set(keys[trained]))
        if shared > _MANY * len(keys[name]):  # an accuracy on these says little
            text = f"{shared} of its {len(keys[name])} images are training images too (datasets.{trained})"
            logger.warning("datasets.%s: %s", name, text)
    _check_choice(config, stages[-1], keys)


def _check_stream(path: str, loader: Mapping[str, Any], stream: Any, is_training: bool) -> None:
    """Refuses what needs samples with an index, and streams that are not read as their loader has it."""
    where = f"datasets.{loader['dataset_id']}"
    if not isinstance(stream, Stream):
        raise ConfigError(f"{where}: {type(stream).__name__} has no index; only the streams of timm_dataset are read")
    cures = {"dataset_wrapper": "remove it", "batch_sampler": "queue_size of 'refilled' compares with earlier batches"}
    for key, cure in cures.items():
        if loader.get(key):
            raise ConfigError(f"{path}.{key}: a stream has no index for it to choose samples by; {cure}")
    if stream.is_training != is_training:
        given = f"is_training is {stream.is_training}, but {path} {'trains' if is_training else 'measures'} on it"
        raise ConfigError(f"{where}: {given}; must be {is_training}")
    if not is_training and (loader.get("kwargs") or {}).get("drop_last"):
        raise ConfigError(f"{path}.kwargs.drop_last: True leaves out samples of a stream; must be False")
    with told_at(f"{path}."):
        build_data_loader(stream, loader, False)


def _check_choice(config: Mapping[str, Any], last: Stage, keys: Mapping[str, Sequence[Any]]) -> None:
    """Refuses to choose an epoch on the images of the test set."""
    chooses = [key for key in ("keep", "patience") if config["train"].get(key) not in (None, "last")]
    test = (config.get("test") or {}).get("test_data_loader")
    if not (chooses and last.val_loader and test):
        return
    name, test_name = last.val_loader["dataset_id"], test["dataset_id"]
    shared = len(set(keys.get(name, ())) & set(keys.get(test_name, ())))
    if name == test_name or shared > _MANY * len(keys.get(name, ())):
        found = f"the validation set, datasets.{name}, has images of the test set"
        cure = "hold out a part of the training set (gkd_plugin.data.train_test_subset)"
        raise ConfigError(f"train.{chooses[0]}: {found}, on which nothing may be chosen; {cure}")


def check_dropped(path: str, loader: Mapping[str, Any], datasets: Mapping[str, Any], is_training: bool = False) -> None:
    """Refuses ``drop_last`` where it leaves an epoch without a step, or an accuracy without some of the samples."""
    kwargs = loader.get("kwargs") or {}
    is_stream = loader and isinstance(datasets[loader["dataset_id"]], IterableDataset)  # fills the last batch
    if kwargs.get("drop_last") and not is_stream:
        count, size = length_of(datasets[loader["dataset_id"]]), kwargs.get("batch_size", 1)
        dropped = count % size
        if dropped and (not is_training or dropped == count):
            left = f"True leaves out {dropped} of the {count} samples (batch_size {size})"
            raise ConfigError(f"{path}.kwargs.drop_last: {left}; must be False, or the batches smaller")


def check_labels(dataset_id: str, dataset: Any, where: str, num_classes: int | None, stages: Sequence[Stage]) -> None:
    """Checks the labels of a dataset, where they can be read, against the student and the stages that train on it."""
    try:
        counts = Counter(labels_of(labelled_part(dataset)))
    except ConfigError:
        known = class_names_of(dataset)
        if num_classes is not None and known is not None and len(known) != num_classes:
            text = f"datasets.{dataset_id}: {len(known)} classes, but {where} has {num_classes}"
            raise ConfigError(f"{text} ({where}.kwargs.num_classes)") from None
        if not isinstance(dataset, IterableDataset):  # of which the log tells when it has been read
            logger.info("datasets.%s: its labels are not checked, because it has no `targets`", dataset_id)
        return
    name = f"datasets.{dataset_id}"
    if not counts:
        raise ConfigError(f"{name}: holds no sample")
    names = dict(enumerate(class_names_of(dataset) or ())) or {label: str(label) for label in sorted(counts)}
    fewest = min(names, key=lambda label: counts[label])
    sizes = f"{counts.total()} samples of {len(names)} classes, {counts[fewest]} of the smallest ({names[fewest]})"
    more = length_of(dataset) - counts.total()
    logger.info("%s: %s%s", name, sizes, f"; {more} without a label" if more else "")
    if min(counts) < 0:
        raise ConfigError(f"{name}: class index out of range: label {min(counts)}; labels count from 0")
    if num_classes is not None and max(counts) >= num_classes:
        allowed = f"{where} has {num_classes} classes (0 … {num_classes - 1})"
        raise ConfigError(f"{name}: class index out of range: label {max(counts)}, but {allowed}")
    empty = [str(label) for label in range(num_classes or 0) if label not in counts]
    if empty and stages and all(stage.kind is None for stage in stages):
        lacks = f"no sample of class {', '.join(empty[:10])}"
        logger.warning("%s: %s: are there %d classes (%s.kwargs.num_classes)?", name, lacks, num_classes, where)
    for stage in stages:
        if stage.kind in ("embedding", "joint"):
            _check_pairs(name, counts, stage)
        if stage.kind is not None:  # stage 'embedding' needs the centres for its figure, the NCM accuracy
            classes = num_classes if stage.kind != "embedding" and num_classes else max(counts) + 1
            missing = [str(label) for label in range(classes) if label not in counts]
            if missing:
                needs = f"stage {stage.kind!r} needs a class centre for each of {classes} classes"
                lacks = f"no sample of class {', '.join(missing[:10])}"
                raise ConfigError(f"{name}: {lacks}: {needs}; are there so many ({where}.kwargs.num_classes)?")


def _check_pairs(name: str, counts: Counter[int], stage: Stage) -> None:
    if len(counts) == 1:
        raise ConfigError(f"{name}: holds one class only: stage {stage.kind!r} compares classes and needs at least two")
    if stage.batch_sampler.get("samples_per_class", 1) > 1:
        return  # balanced batches repeat a sample where its class has no other
    single = sorted(label for label, count in counts.items() if count == 1)
    if len(single) == len(counts):
        raise ConfigError(f"{name}: every class has one sample: stage {stage.kind!r} needs pairs of the same class")
    if single:
        logger.warning("%s: classes %s have one sample: they form no positive pair", name, single[:10])


def check_trained_classes(trained: Sequence[str] | None, dataset_id: str, dataset: Any, where: str) -> None:
    """Compares a model's classes, ``trained`` (names by label, as ``where`` says), with those of a set, if known."""
    place, names = f"datasets.{dataset_id}", class_names_of(dataset) or []
    ours, theirs = _by_name(trained or []), _by_name(names)
    if not ours.keys() & theirs.keys():  # they may only be spelt differently
        if ours and theirs:
            text = f"its classes {list(theirs)[:5]} are none of the classes {list(ours)[:5]} of {where}"
            logger.warning("%s: %s", place, text)
        return
    known = set(trained or ())
    is_known = not isinstance(dataset, IterableDataset)
    held = {names[label] for label in labels_of(labelled_part(dataset))} if is_known else {*names}
    for name in sorted(held - known):
        raise ConfigError(f"{place}: class {name!r} is unknown in {where}; {nearest(name, known)}")
    lacking = [repr(name) for name in sorted(known - held)]
    for name in sorted(ours.keys() & theirs.keys()):
        if ours[name] != theirs[name]:
            missing = f" ({', '.join(lacking[:3])} missing there: image_folder's classes_of keeps the order)"
            both = f"class {name!r} has label {theirs[name]}, and label {ours[name]} in {where}"
            wanted = f"both must have the same classes in the same order{missing if lacking else ''}"
            raise ConfigError(f"{place}: {both}; {wanted}")
    if lacking:
        text = f"no sample of class {', '.join(lacking[:10])} of {where}"
        logger.warning("%s: %s: its accuracy is that of the other classes", place, text)


def _by_name(names: Sequence[str]) -> dict[str, int]:
    """The label of each class with a name of its own."""
    counts = Counter(names)
    return {name: label for label, name in enumerate(names) if counts[name] == 1}


def _check_crd(stage: Stage, dataset: Any) -> None:
    """torchdistill meets a wrong number of CRD's as a shape or an index in the first batch."""
    for name, term in ((stage.criterion.get("kwargs") or {}).get("sub_terms") or {}).items():
        if term["criterion"]["key"] != "CRDLoss":
            continue
        kwargs, path = term["criterion"]["kwargs"], f"{stage.path}.criterion.kwargs.sub_terms.{name}.criterion.kwargs"
        wrapper = stage.loader.get("dataset_wrapper")
        if not wrapper:
            place = f"{stage.path}.train_data_loader.dataset_wrapper"
            raise ConfigError(f"{place}: missing; CRDLoss needs 'CRDDatasetWrapper', which names its negatives")
        if wrapper.get("key") == "CRDDatasetWrapper" and labelled_part(dataset) is not dataset:
            lacks = "has images without labels, which CRDDatasetWrapper takes to be of the last class"
            raise ConfigError(f"datasets.{stage.loader['dataset_id']}: {lacks}")
        wanted = kwargs["num_negative_samples"]
        drawn = (wrapper.get("kwargs") or {}).get("num_negative_samples", wanted)
        if wanted != drawn:
            raise ConfigError(f"{path}.num_negative_samples: {wanted} given, but the dataset_wrapper draws {drawn}")
        if (size := kwargs["output_size"]) < len(dataset):
            raise ConfigError(f"{path}.output_size: {size} given, but there are {len(dataset)} training samples")
