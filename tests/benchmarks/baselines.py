"""What the relationship loss is measured against: the same work by other ways, and torchdistill's losses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pytorch_metric_learning.miners import TripletMarginMiner
from torch import Tensor
from torch.nn import functional
from torchdistill.losses.mid_level import KDLoss, RKDLoss, SPKDLoss

__all__ = ["BASELINES", "kd", "padded", "rkd", "spkd", "truncated"]

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

_MINER = TripletMarginMiner(margin=0.2, type_of_triplets="semihard")


def truncated(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 4.0) -> Tensor:
    """pytorch-metric-learning's miner, then every tuple cut to the smallest number of negatives, as published.

    The grouping of triplets to tuples is vectorised, which the published code is not.
    """
    student, teacher = functional.normalize(student), functional.normalize(teacher)
    anchor, positive, negative = _MINER(student.detach(), labels)
    if anchor.numel() == 0:
        return student.sum() * 0
    pair, count = (anchor * len(labels) + positive).unique_consecutive(return_counts=True)
    start = count.cumsum(0) - count
    kept = negative[start.unsqueeze(1) + torch.arange(int(count.min()))]
    members = torch.cat([(pair % len(labels)).unsqueeze(1), kept], dim=1)
    anchors = pair // len(labels)
    student_log = _log_probability(student, anchors, members, temperature)
    teacher_log = _log_probability(teacher, anchors, members, temperature)
    return functional.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True)


def padded(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 4.0) -> Tensor:
    """All negatives of every tuple, the tuples put together one by one and padded to the longest."""
    student, teacher = functional.normalize(student), functional.normalize(teacher)
    anchor, positive, negative = _MINER(student.detach(), labels)
    pairs: list[tuple[Tensor, Tensor]] = []
    for a, p in zip(anchor, positive, strict=True):
        if not pairs or a != pairs[-1][0] or p != pairs[-1][1]:
            pairs.append((a, p))
    if not pairs:
        return student.sum() * 0
    tuples = [torch.cat([p.view(1), negative[(anchor == a) & (positive == p)]]) for a, p in pairs]
    longest = max(len(members) for members in tuples)
    members = torch.stack([functional.pad(own, (0, longest - len(own))) for own in tuples])
    absent = torch.stack([torch.arange(longest) >= len(own) for own in tuples])
    anchors = torch.stack([a for a, _ in pairs])
    student_log = _log_probability(student, anchors, members, temperature, absent)
    teacher_log = _log_probability(teacher, anchors, members, temperature, absent)
    return (teacher_log.exp() * (teacher_log - student_log)).masked_fill(absent, 0).sum() / len(pairs)


def _log_probability(
    rows: Tensor, anchors: Tensor, members: Tensor, temperature: float, absent: Tensor | None = None
) -> Tensor:
    distances = (rows[anchors].unsqueeze(1) - rows[members]).norm(dim=2)
    logits = -distances / temperature
    if absent is None:
        return logits.log_softmax(dim=1)
    return logits.masked_fill(absent, -torch.inf).log_softmax(dim=1).masked_fill(absent, -1e4)


def rkd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """torchdistill's RKD, distances only."""
    return RKDLoss("", "", dist_factor=1.0, angle_factor=0.0, reduction="mean").compute_rkd_distance_loss(
        teacher, student
    )


def spkd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """torchdistill's SPKD."""
    loss = SPKDLoss("x", "x", reduction="batchmean")
    return loss({"x": {"output": student}}, {"x": {"output": teacher}})


def kd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """torchdistill's logit distillation, with the embeddings as logits of as many classes."""
    width = min(student.shape[1], teacher.shape[1])
    loss = KDLoss(student_module_path=".", student_module_io="output", teacher_module_path=".",
                  teacher_module_io="output", temperature=4.0, alpha=0.5)  # fmt: skip
    return loss({".": {"output": student[:, :width]}}, {".": {"output": teacher[:, :width]}}, labels.remainder(width))


BASELINES: dict[str, Loss] = {"truncated": truncated, "RKD": rkd, "SPKD": spkd, "KD": kd, "padded": padded}
