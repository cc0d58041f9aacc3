"""The local classifier that is calibrated to the labels."""

import logging
import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from gkd_plugin.functional import fit_probe, fit_shared_classes
from gkd_plugin.functional.probe import smoothed_targets
from gkd_plugin.functional.shared_classes import own_log_probabilities, shared_log_probabilities
from gkd_plugin.teacher.readouts import READOUTS, Answers, Readout, Seen

logger = logging.getLogger(__name__)

_UNEVEN = 2  # times as many images of a class as of another is told


class CalibratedProbe(Readout):
    """z = φ_T(x) · weightᵀ + bias of a linear probe, and for shared classes the teacher's own logits too.

    See :mod:`gkd_plugin.functional.probe`, and :mod:`gkd_plugin.functional.shared_classes` for classes that the teacher
    has itself. With features of earlier layers it reads φ_T(x) and these side by side, each direction divided by its
    standard deviation over the training samples. Where a class has a single sample, which cannot be held out, it falls
    back to class centres. The log-frequencies of the classes among the samples are taken from the logits, so that all
    count as equally frequent; where they shall be as frequent as in the training set, its log-frequencies are added.
    Not in the paper.

    What it keeps: ``weight`` ``[C, D_t + F]``, ``bias`` ``[C]``, and with shared classes ``teacher_labels`` ``[C]`` (−1
    for a class that the teacher does not have) and ``shared_factors`` ``[6]``; and
    ``information``, what :class:`LocalClassifier` calls its knowledge.
    """

    name = "probe"
    wants_views = True

    def fit(self, centres: Tensor, seen: Seen | None) -> dict[str, Tensor]:
        """The classifier with the best held-out likelihood; the log says how good it is."""
        assert seen is not None
        distinct = torch.unique(torch.stack([seen.labels, seen.samples]), dim=1)[0]
        fitted_to = torch.bincount(distinct, minlength=len(centres))
        if fitted_to.min() < 2:
            logger.warning("local classifier: a class has a single sample, so the logits are those of class centres")
            return READOUTS["centres"].fit(centres, None)
        has_features = seen.rows.shape[1] > centres.shape[1]
        deviation = seen.rows.std(dim=0, correction=0)
        spread = torch.where(deviation > 0, deviation, 1) if has_features else torch.ones(1)
        bar = partial(tqdm, desc="fit of the local classifier", leave=False, disable=None, delay=1)
        fit = fit_probe(seen.rows / spread, seen.labels, len(centres), samples=seen.samples, progress=bar)
        wanted, counted = ((counts / counts.sum()).log() for counts in (seen.counts, fitted_to))
        prior = wanted * (seen.class_prior == "training") - counted
        fitted, held_out = {"weight": fit.weight / spread, "bias": fit.bias + prior}, fit.held_out_logits + prior
        if seen.counts.max() > _UNEVEN * seen.counts.min():
            text = "local classifier: classes have %d to %d images; class_prior: %r"
            logger.info(text, int(seen.counts.min()), int(seen.counts.max()), seen.class_prior)
        source = "the embedding" + (" and local features" if has_features else "")
        if seen.logits is not None and seen.teacher_labels is not None:
            shared, held_out = _fit_shared(held_out, seen, seen.logits)
            fitted |= shared
            source += f", with the teacher's own logits of {int((shared['teacher_labels'] >= 0).sum())} shared classes"
        right, chance = 100 * (held_out.argmax(dim=1) == seen.labels).double().mean(), 100 / len(centres)
        targets = smoothed_targets(seen.labels, len(centres), len(torch.unique(seen.samples))).float()
        cost, most = functional.cross_entropy(held_out, targets), math.log(len(centres))
        fitted["information"] = (1 - cost / most).clamp(0, 1)
        text = (
            "local classifier: held-out accuracy %.1f %% (chance: %.1f %%), %.0f %% of the labels' information, from %s"
        )
        logger.info(text, right, chance, 100 * fitted["information"], source)
        factors = fitted["shared_factors"].tolist() if "shared_factors" in fitted else "none"
        text = "local classifier: labels cost %.2f of %.2f nats, regularisation %g, scale %.3g, factors %s"
        logger.debug(text, cost, most, fit.strength, fit.scale, factors)
        return fitted

    def logits(self, fitted: Mapping[str, Tensor], answers: Answers) -> Tensor:
        """``[B, C]``; log-probabilities where the teacher's own logits take part."""
        local = super().logits(fitted, answers)
        teacher_labels, factors = fitted["teacher_labels"], fitted["shared_factors"]
        if answers.logits is None or factors.numel() == 0:
            return local
        own = own_log_probabilities(answers.logits, teacher_labels)
        return shared_log_probabilities(local, own, teacher_labels, factors)


def _fit_shared(local: Tensor, seen: Seen, logits: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What it keeps for shared classes, and log-probabilities ``[N, C]`` from held-out logits ``local`` ``[N, C]``."""
    teacher_labels = torch.tensor([-1 if label is None else label for label in seen.teacher_labels or ()])
    last, count = int(teacher_labels.max()), logits.shape[1]
    if len(teacher_labels) != local.shape[1]:
        raise ValueError(f"class_map is of {len(teacher_labels)} classes, the student has {local.shape[1]}")
    if last >= count:
        raise ValueError(f"class_map: there is no class {last} in a teacher with {count} classes (0 … {count - 1})")
    own = own_log_probabilities(logits, teacher_labels)
    factors = torch.tensor(fit_shared_classes(local, own, teacher_labels, seen.labels, seen.samples))
    kept = {"teacher_labels": teacher_labels, "shared_factors": factors}
    return kept, shared_log_probabilities(local, own, teacher_labels, factors)
