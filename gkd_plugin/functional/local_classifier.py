r"""Local classifier distillation: the loss of stage ``classifier`` (TPAMI 2023, section 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from gkd_plugin.functional._common import check_temperature, exact_dtype, no_autocast

__all__ = ["local_classifier_distillation", "local_logits", "present_classes"]


def local_logits(embedding: Tensor, centres: Tensor) -> Tensor:
    r"""The embedding-induced local classifier, z_ik = φ_T(x_i)·c_k; φ_T is *not* normalised.

    Args:
        embedding: ``[B, D_t]``, the teacher's.
        centres: ``[C, D_t]``, rows of length 1.

    Returns:
        ``[B, C]`` float32 (float64 for float64 embeddings).
    """
    with no_autocast(embedding):
        dtype = torch.promote_types(embedding.dtype, torch.float32)
        return embedding.to(dtype) @ centres.to(dtype).T


def present_classes(labels: Tensor, num_classes: int) -> Tensor:
    """K_b as a mask: ``[C]`` bool, True for the classes that occur in ``labels`` ``[B]``."""
    mask = torch.zeros(num_classes, dtype=torch.bool, device=labels.device)
    return mask.scatter(0, labels.long(), True)


def local_classifier_distillation(
    student_logits: Tensor,
    teacher_local_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    student_temperature: float = 1.0,
    weights: Tensor | None = None,
    all_classes: bool = False,
) -> Tensor:
    r"""mean_i ω_i · KL(p_i ‖ s_i) over the classes present in the batch, TPAMI section 4.2.

    p_i = softmax((z_ik)_{k∈K_b} / τ₂) and s_i = softmax((f_ik)_{k∈K_b} / student_temperature), f the student's logits.
    The mean is over the batch (``batchmean``), with no factor τ₂²; the published λ is the caller's. TPAMI: τ₂ = 1,
    student logits undivided, λ = 1. CVPR 2020: τ₂ = 2, student logits divided by 2 too, λ = 100.

    Args:
        student_logits: ``[B, C]``.
        teacher_local_logits: ``[B, C]`` from :func:`local_logits`; treated as constant.
        labels: ``[B]`` integers in [0, C).
        temperature: τ₂ > 0.
        student_temperature: divisor of the student's logits, > 0.
        weights: ω, ``[B]``, or ``None`` for 1; treated as constant.
        all_classes: over all C classes, instead of those present in the batch.

    Returns:
        Scalar in nats, float32 (float64 for float64 input); 0 for an empty batch.

    Raises:
        ValueError: shapes do not fit, or a temperature is no finite number above 0.
    """
    if student_logits.shape != teacher_local_logits.shape or labels.shape != student_logits.shape[:1]:
        raise ValueError(
            "local classifier distillation takes logits [B, C] of both models over the same classes and labels [B], "
            f"got student {list(student_logits.shape)}, teacher {list(teacher_local_logits.shape)}, "
            f"labels {list(labels.shape)}"
        )
    if weights is not None and weights.shape != labels.shape:
        raise ValueError(f"weights must be one for each sample, {list(labels.shape)}, got {list(weights.shape)}")
    check_temperature("temperature", temperature)
    check_temperature("student_temperature", student_temperature)
    with no_autocast(student_logits):
        dtype = exact_dtype(student_logits)
        absent = ~present_classes(labels, student_logits.shape[1])
        if all_classes:
            absent = torch.zeros_like(absent)
        student = _log_softmax_without(student_logits.to(dtype) / student_temperature, absent)
        teacher = _log_softmax_without(teacher_local_logits.detach().to(dtype) / temperature, absent)
        divergence = (teacher.exp() * (teacher - student)).masked_fill(absent, 0).sum(dim=1)
        if weights is not None:
            divergence = divergence * weights.detach().to(dtype)
        return (divergence.sum() / max(len(divergence), 1)).to(torch.promote_types(student_logits.dtype, torch.float32))


def _log_softmax_without(logits: Tensor, absent: Tensor) -> Tensor:
    """Log-softmax of each row over the columns that are not ``absent``; 0 in those."""
    return logits.masked_fill(absent, -torch.inf).log_softmax(dim=1).masked_fill(absent, 0)
