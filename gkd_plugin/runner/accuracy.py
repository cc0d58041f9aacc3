"""Accuracy of classifiers, and nearest-class-mean (NCM) accuracy of embeddings: of the student and of the teacher."""

import logging
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import Subset
from tqdm import tqdm

from gkd_plugin.box.hooks import Capture
from gkd_plugin.cache.fingerprint import model_key
from gkd_plugin.data import UNLABELLED, Stream, class_groups_of, evaluation_view, first_batch, labels_of, unwrapped
from gkd_plugin.errors import ConfigError
from gkd_plugin.functional import class_centres, nearest_class_mean
from gkd_plugin.runner.parts import Parts
from gkd_plugin.runner.weights import classifier_paths
from gkd_plugin.teacher import RefilledTeacher, clean_loader, fit_class_centres
from gkd_plugin.teacher.fitting import MAX_ROWS, asked, first_of_each, in_order

logger = logging.getLogger(__name__)

LAST_EPOCHS = 3  # always validated; ``final.val_top1_last3`` is their mean
GAIN_FROM = 10.0  # points of NCM accuracy that the teacher must be ahead, see docs/when-it-pays.md
_CURES = (
    "photos without labels (--unlabelled DIR of refilled distill, in YAML gkd_plugin.data.with_unlabelled), "
    "larger images (--size PX, in YAML input_size of timm_model), another teacher"
)
Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Accuracy:
    """Accuracy over ``samples`` samples with ``classes`` scores each, in per cent."""

    top1: float
    top5: float | None  # None where there are at most 5 classes
    samples: int
    classes: int
    groups: Mapping[str, float] = field(default_factory=dict)  # top-1 of each group, in the scores of all classes

    def as_dict(self, prefix: str = "") -> dict[str, float]:
        """For a metrics row; of several groups also the harmonic mean, which is 0 where one of them is 0."""
        row = {f"{prefix}top1": self.top1}
        if self.top5 is not None:
            row[f"{prefix}top5"] = self.top5
        row |= {f"{prefix}{name}_top1": top1 for name, top1 in self.groups.items()}
        if len(self.groups) > 1:
            row[f"{prefix}harmonic_mean"] = statistics.harmonic_mean(self.groups.values())
        return row


def measured(top1: float, samples: int, digits: int = 1, images: str = "images") -> str:
    """An accuracy in per cent with its binomial standard error.

    >>> measured(80.0, 400)
    '80.0 ± 2.0 % of 400 images'
    """
    error = (top1 * (100 - top1) / max(samples, 1)) ** 0.5
    return f"{top1:.{digits}f} ± {error:.{digits}f} % of {samples} {images}"


def is_accuracy(key: str) -> bool:
    """Whether a metrics row's key is one of :meth:`Accuracy.as_dict`."""
    return key in ("top1", "top5", "harmonic_mean") or key.endswith("_top1")


@torch.no_grad()
def evaluate(score: Score, loader: Iterable[Any], accelerator: Accelerator, title: str = "evaluation") -> Accuracy:
    """Accuracy of ``score`` (images → ``[B, C]``) over (images, labels, …) batches of all processes, also by group.

    Samples without a label do not count.
    """
    dataset = getattr(loader, "dataset", None)
    groups = (class_groups_of(dataset) if dataset is not None else None) or {}
    members = [torch.tensor(labels, device=accelerator.device) for labels in groups.values()]
    # on the device until the end: labelled samples and hits, those among the first five, of each group samples and hits
    counts = torch.zeros(3 + 2 * len(groups), dtype=torch.int64, device=accelerator.device)
    classes, is_stream = 0, isinstance(dataset, Stream)  # of which processes may have different numbers of batches
    for batch in tqdm(loader, desc=title, leave=False, disable=not accelerator.is_main_process or None):
        images, labels = batch[0].to(accelerator.device), batch[1].to(accelerator.device)
        scored = score(images).float().to(labels.device), labels
        scores, labels = scored if is_stream else accelerator.gather_for_metrics(scored)
        classes = scores.shape[1]
        ranked = scores.topk(min(5, classes), dim=1).indices == labels.unsqueeze(1)
        inside = [torch.isin(labels, label) for label in members]
        told = [labels != UNLABELLED, ranked[:, 0], ranked.any(1), *inside, *(ranked[:, 0] & part for part in inside)]
        counts += torch.stack([part.sum() for part in told])
    if is_stream and accelerator.num_processes > 1:
        counts, classes = accelerator.reduce(counts), max(gather_object([classes]))
    samples, hits1, hits5, *rest = counts.tolist()
    of_groups = zip(groups, rest[: len(groups)], rest[len(groups) :], strict=True)
    by_group = {name: 100 * hits / count for name, count, hits in of_groups if count}
    total = max(samples, 1)
    top5 = 100 * hits5 / total if classes > 5 else None
    return Accuracy(100 * hits1 / total, top5, samples, classes, by_group)


def near_chance(accuracy: Accuracy) -> bool:
    """Whether the top-1 is within three standard errors of guessing among the classes."""
    chance = 1 / max(accuracy.classes, 1)
    error: float = (chance * (1 - chance) / max(accuracy.samples, 1)) ** 0.5
    return accuracy.top1 / 100 <= chance + 3 * error


def classes_without_sample(dataset: Any, num_classes: int | None) -> list[int]:
    """The labels, of so many classes or up to the largest one, that no sample has; all labels must be readable."""
    present = set(labels_of(dataset))
    return [label for label in range(num_classes or max(present, default=-1) + 1) if label not in present]


def embedding_of(model: nn.Module, path: str) -> Score:
    """A function images → the output ``[B, D]`` of the module at ``path``."""

    def embed(images: Tensor) -> Tensor:
        with Capture.during(model, path) as capture:
            model(images)
        return capture.take("student", path)

    return embed


@torch.no_grad()
def student_ncm(
    student: nn.Module, path: str, train_loader: Any, val_loader: Iterable[Any], accelerator: Accelerator
) -> Accuracy:
    """NCM accuracy of the student: centres from the training set (clean view), predictions on the validation set."""
    embed = embedding_of(student, path)
    means = class_centres(asked(embed, clean_loader(train_loader), accelerator, "NCM centres"))
    return evaluate(lambda images: nearest_class_mean(embed(images), means), val_loader, accelerator, "NCM")


@torch.no_grad()
def left_out_ncm(embed: Score, train_loader: Any, accelerator: Accelerator) -> Accuracy:
    """NCM accuracy on the training set (clean view), each sample left out of its own class's mean.

    Where there is no validation set; of large sets, about as many samples of each class.
    """
    loader = clean_loader(train_loader)
    if len(loader.dataset) > MAX_ROWS:  # type: ignore[arg-type]
        chosen = first_of_each(torch.tensor(labels_of(loader.dataset)), MAX_ROWS)
        loader = in_order(Subset(loader.dataset, chosen.tolist()), train_loader)
    found = list(asked(embed, loader, accelerator, "NCM"))
    rows, labels = (torch.cat(part).cpu() for part in zip(*found, strict=True))
    rows = rows.float()
    sums = rows.new_zeros(int(labels.max()) + 1, rows.shape[1]).index_add_(0, labels, rows)
    scores = nearest_class_mean(rows, normalize(sums))
    scores[torch.arange(len(rows)), labels] = torch.linalg.vecdot(normalize(rows), normalize(sums[labels] - rows))
    right = 100 * float((scores.argmax(1) == labels).double().mean())
    return Accuracy(right, None, len(rows), len(sums))


def final_figures(parts: Parts, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy of the kept student on the test set, of its embedding too; the mean of the last validation figures."""
    last = list(summary["stages"].values())[-1]["epochs"]
    kept = last[summary["kept"]["epoch"] - 1 if "kept" in summary else -1] if last else {}
    final: dict[str, Any] = {}
    if parts.test_loader is not None:
        parts.student.eval()
        with parts.accelerator.autocast():  # the student was unwrapped at the end of its last stage
            accuracy = evaluate(parts.student, parts.test_loader, parts.accelerator, "test")
            ncm = _own_ncm(parts, parts.test_loader)
            if isinstance(ncm, str):
                logger.info("final NCM accuracy: not measured, %s", ncm)
            final |= {**accuracy.as_dict(), **({} if isinstance(ncm, str) else ncm.as_dict("ncm_"))}
            final |= {"on": "test", "samples": accuracy.samples}
    elif "top1" in kept:
        final |= {**{key: value for key, value in kept.items() if is_accuracy(key)}, "on": "validation"}
    tail = [row["top1"] for row in last[-LAST_EPOCHS:] if "top1" in row]
    if tail:
        final["val_top1_last3"] = sum(tail) / len(tail)
    return final


def _own_ncm(parts: Parts, loader: Any) -> Accuracy | str:
    """What the student's embedding knows without its classifier, or why that cannot be measured.

    Of the training images, each left out in turn, where there is no ``loader``.
    """
    path, train = parts.embedding_path, parts.box.train_data_loader
    if path is None:
        return "the configuration does not show which module gives the student's embedding"
    try:
        missing, is_clean = classes_without_sample(train.dataset, parts.num_classes), evaluation_view(train.dataset)[1]
    except ConfigError as error:
        return str(error)
    if missing or not is_clean:
        lacks = f"no training sample of class {', '.join(map(str, missing[:10]))}"
        return lacks if missing else "the training set offers no evaluation view"
    parts.student.eval()
    with parts.accelerator.autocast():
        if loader is None:
            return left_out_ncm(embedding_of(parts.student, path), train, parts.accelerator)
        return student_ncm(parts.student, path, train, loader, parts.accelerator)


def advise(parts: Parts, teacher: Mapping[str, float]) -> dict[str, float]:
    """Says what to expect of a teacher with these figures; measures the student's own NCM accuracy, ``ncm_top1``.

    Where the student's own embedding tells the classes apart about as well, the teacher has little to give: the
    difference of the two NCM accuracies is what the log compares with :data:`GAIN_FROM`.
    """
    if "ncm_top1" not in teacher:
        return {}
    box = parts.box

    def measure() -> list[Accuracy | None]:
        found = _own_ncm(parts, box.val_data_loader)
        return [None if isinstance(found, str) else found]

    def decides() -> tuple[Any, ...]:
        return parts.embedding_path, model_key(parts.student, classifier_paths(parts.student))

    (own,) = _once(box, "the student's own accuracy", measure, decides)
    if own is None:
        return {}
    text = "student: NCM accuracy of its own embedding, before training, %s"
    logger.info(text, measured(own.top1, own.samples))
    ahead = teacher["ncm_top1"] - own.top1
    if ahead >= GAIN_FROM:
        logger.info("expect a gain: the teacher's embedding is %.1f points above the student's own", ahead)
    elif ahead >= 0:
        text = "expect little: the teacher's embedding is only %.1f points above the student's own; what helps: %s"
        logger.warning(text, ahead, _CURES)
    else:
        text = "this teacher may do harm: its embedding is %.1f points below the student's own; what helps: %s"
        logger.warning(text, -ahead, _CURES)
    return {"ncm_top1": own.top1}


def check_teacher(box: Any, num_classes: int | None, accelerator: Accelerator) -> dict[str, Any]:
    """Measures the teacher on the validation set before training: ``ncm_top1`` and ``top1``, as far as they apply.

    Without one, ``ncm_top1`` is :func:`left_out_ncm`.

    Both near chance is a warning. Its own top-1 is a figure where the student's classes are its own: where nothing
    shows that, if they are as many and it is right more often than by chance and at least half as often as NCM.
    """
    teacher, loader = box.teacher_model, box.val_data_loader
    teacher.eval()
    row: dict[str, Any] = {}
    relation = teacher.class_map.relation if isinstance(teacher, RefilledTeacher) else None
    missing = classes_without_centre(teacher, box.train_data_loader.dataset)
    measure = partial(_teacher_accuracies, box, num_classes, accelerator, measures_ncm=not missing)
    own, ncm = _once(box, "the teacher's accuracy", measure, lambda: (num_classes,))
    if relation not in ("same", None):
        own = None
    best = own
    if missing:
        logger.info("teacher: no training sample of class %s: no NCM accuracy", ", ".join(map(str, missing[:10])))
    elif ncm is not None:
        row |= ncm.as_dict("ncm_")
        is_poor = own is not None and (near_chance(own) or own.top1 < ncm.top1 / 2)
        own = None if is_poor and relation is None else own
        best = ncm if own is None or own.top1 <= ncm.top1 else own
        on = " (training images, each left out in turn)" if loader is None else ""
        text = "teacher: NCM accuracy over the student's %d classes %s%s"
        logger.info(text, ncm.classes, measured(ncm.top1, ncm.samples), on)
    elif loader is None:
        logger.warning("there is no validation set (val_data_loader): the teacher's accuracy is not measured")
    if own is not None:
        row |= own.as_dict()
        text = "teacher: top-1 of its own classifier %s (the classes are shared)"
        logger.info(text, measured(own.top1, own.samples))
    if best is not None and near_chance(best):
        figures = f"{best.top1:.1f} %, is near chance ({100 / best.classes:.1f} %)"
        hint = "are its weights loaded (models.teacher_model.src_ckpt, or kwargs.pretrained)?"
        logger.warning("the teacher's accuracy, %s: %s", figures, hint)
    return row


def _teacher_accuracies(
    box: Any, num_classes: int | None, accelerator: Accelerator, *, measures_ncm: bool
) -> list[Accuracy | None]:
    """Of the teacher's own classifier, and of its embedding by NCM; ``None`` where it cannot be measured."""
    teacher, loader, train = box.teacher_model, box.val_data_loader, box.train_data_loader
    own = None if loader is None else _own_accuracy(teacher, loader, num_classes, accelerator)
    is_unmeasured = loader is None and isinstance(train.dataset, Stream)  # left_out_ncm needs an index
    if not measures_ncm or not isinstance(teacher, RefilledTeacher) or is_unmeasured:
        return [own, None]
    if loader is None:
        return [own, left_out_ncm(teacher.embed, train, accelerator)]
    return [own, evaluate(_nearest_class_mean(teacher, train, accelerator), loader, accelerator, "teacher NCM")]


def _once(
    box: Any, name: str, measure: Callable[[], list[Accuracy | None]], decides: Callable[[], tuple[Any, ...]]
) -> list[Accuracy | None]:
    """What ``measure`` gives; a teacher cache keeps it for the same images and what else ``decides``."""
    kept, loader = getattr(box.teacher_model, "kept", None), box.val_data_loader
    with torch.random.fork_rng(devices=[]):  # loaders draw seeds; training is the same whatever is measured
        if kept is None:
            return measure()
        trained = evaluation_view(box.train_data_loader.dataset)[0]
        images = trained if loader is None else unwrapped(loader.dataset)
        parts = *decides(), class_groups_of(images)
        rows = kept.once(name, lambda: [row and asdict(row) for row in measure()], *parts, images=images, view=trained)
    return [row and Accuracy(**row) for row in rows]


def classes_without_centre(teacher: Any, dataset: Any) -> list[int]:
    """The classes that the wrapper could compute no centre of; none where the labels cannot be read ahead."""
    try:
        return classes_without_sample(dataset, teacher.num_classes) if isinstance(teacher, RefilledTeacher) else []
    except ConfigError:
        return []


def _own_accuracy(teacher: Any, loader: Any, num_classes: int | None, accelerator: Accelerator) -> Accuracy | None:
    """Top-1 of the teacher's own classifier, where it has as many classes as the student."""
    if isinstance(teacher, RefilledTeacher) and not teacher.has_classifier:
        return None
    few = first_batch(loader.dataset, range(min(2, len(loader.dataset))), loader.collate_fn)
    logits = None if num_classes is None else teacher(few[0].to(accelerator.device))
    if not isinstance(logits, Tensor) or logits.shape[-1] != num_classes:
        return None
    return evaluate(teacher, loader, accelerator, "teacher")


def _nearest_class_mean(teacher: RefilledTeacher, train_loader: Any, accelerator: Accelerator, *_: Any) -> Score:
    """Cosine similarity to the class centres."""
    fit_class_centres(teacher, train_loader, accelerator)
    centres = teacher.local_classifier.centres
    return lambda images: nearest_class_mean(teacher.embed(images), centres)


def _logistic_regression(
    teacher: RefilledTeacher, train_loader: Any, accelerator: Accelerator, num_classes: int | None
) -> Score:
    """Multinomial, C = 1, on embeddings of length 1: Tian et al. 2020 ("Rethinking Few-Shot Image Classification")."""
    from sklearn.linear_model import LogisticRegression

    batches = asked(teacher.embed, clean_loader(train_loader), accelerator, "logistic regression")
    embeddings, labels = (torch.cat(part).cpu() for part in zip(*batches, strict=True))
    embeddings = normalize(embeddings)
    # balanced, or old classes with few exemplars would never be predicted
    model = LogisticRegression(C=1.0, max_iter=1000, class_weight="balanced")
    model.fit(embeddings.double().numpy(), labels.numpy())

    def score(images: Tensor) -> Tensor:
        rows = normalize(teacher.embed(images)).cpu().double().numpy()
        probabilities = torch.zeros(len(rows), num_classes or int(model.classes_.max()) + 1)
        probabilities[:, torch.from_numpy(model.classes_).long()] = torch.from_numpy(model.predict_proba(rows)).float()
        return probabilities

    return score


PROBES: dict[str, Callable[..., Score]] = {"ncm": _nearest_class_mean, "logistic_regression": _logistic_regression}
"""What can be fitted to the teacher's embeddings."""
