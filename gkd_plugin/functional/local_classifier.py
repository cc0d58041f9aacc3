r"""Class centres, the local classifier, its distillation and adaptive emphasis (TPAMI 2023, sections 4.2 and 4.3)."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from gkd_plugin.functional._common import check_temperature, exact_dtype, log_softmax_without, result_dtype

__all__ = [
    "ClassCentreAccumulator",
    "check_temperature",
    "class_centres",
    "confidence_cost",
    "emphasis_weights",
    "local_classifier_distillation",
    "local_logits",
    "nearest_class_mean",
    "present_classes",
]


class ClassCentreAccumulator:
    r"""Class centres c_k = normalise(mean_{i: y_i = k} φ(x_i)) over batches, summed in float64 (float32 on MPS).

    Args:
        num_classes: C; labels must lie in [0, C). ``None`` grows with the largest label seen.
    """

    def __init__(self, num_classes: int | None = None) -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes or 0, dtype=torch.int64)  # [C], samples seen of each class
        self._sums: Tensor | None = None

    def update(self, embedding: Tensor, labels: Tensor) -> None:
        """Adds a batch: ``embedding`` ``[B, D]`` (not normalised), ``labels`` ``[B]`` integers.

        Raises:
            ValueError: a label outside [0, C), or shapes that do not fit.
        """
        if embedding.ndim != 2 or labels.shape != embedding.shape[:1]:
            shapes = f"{list(embedding.shape)} and {list(labels.shape)}"
            raise ValueError(f"class centres take embeddings [B, D] and labels [B], got {shapes}")
        if labels.numel() == 0:
            return
        low, high = int(labels.min()), int(labels.max())
        size = high + 1 if self.num_classes is None else self.num_classes
        if low < 0 or high >= size:
            raise ValueError(f"class index out of range: label {low if low < 0 else high}, allowed 0 … {size - 1}")
        rows = embedding.detach().to(exact_dtype(embedding))
        if self._sums is None:
            self._sums, self.counts = rows.new_zeros(len(self.counts), rows.shape[1]), self.counts.to(rows.device)
        missing = max(size - len(self.counts), 0)
        self._sums = functional.pad(self._sums, (0, 0, 0, missing))
        self.counts = functional.pad(self.counts, (0, missing))
        index = labels.to(device=self._sums.device, dtype=torch.int64)
        self._sums.index_add_(0, index, rows.to(self._sums))
        self.counts.index_add_(0, index, torch.ones_like(index))

    def result(self) -> Tensor:
        """The centres, ``[C, D]`` float32, rows of length 1.

        Raises:
            ValueError: a class has no sample (names them), or nothing was added.
        """
        empty = (self.counts == 0).nonzero().flatten().tolist()
        if self._sums is None or empty:
            shown = ", ".join(str(k) for k in empty[:10]) + (", …" if len(empty) > 10 else "")
            raise ValueError(f"no sample of class {shown}: its centre cannot be computed" if empty else "no samples")
        return functional.normalize(self._sums / self.counts.unsqueeze(1), dim=1).float()


def class_centres(batches: Iterable[tuple[Tensor, Tensor]], num_classes: int | None = None) -> Tensor:
    r"""``[C, D]`` float32: c_k = normalise(mean_{i: y_i = k} φ(x_i)) of (embedding ``[B, D]``, labels ``[B]``) batches.

    Raises:
        ValueError: as :class:`ClassCentreAccumulator`.
    """
    accumulator = ClassCentreAccumulator(num_classes)
    for embedding, labels in batches:
        accumulator.update(embedding, labels)
    return accumulator.result()


def nearest_class_mean(embedding: Tensor, centres: Tensor) -> Tensor:
    r"""``[B, C]`` float32: the cosine of each embedding ``[B, D]`` with each class centre ``[C, D]`` of length 1."""
    return functional.normalize(embedding.float(), dim=1) @ centres.float().T


def local_logits(embedding: Tensor, centres: Tensor) -> Tensor:
    r"""``[B, C]``, the local classifier z_ik = φ_T(x_i)·c_k; float32, or float64 for float64 embeddings.

    From the teacher's embedding ``[B, D_t]``, *not* normalised, and centres ``[C, D_t]``, rows of length 1.
    """
    with torch.autocast(embedding.device.type, enabled=False):
        dtype = result_dtype(embedding)
        return embedding.to(dtype) @ centres.to(dtype).T


def present_classes(labels: Tensor, num_classes: int) -> Tensor:
    """K_b as a mask: ``[C]`` bool, True for the classes that occur in ``labels`` ``[B]``; −1 is of no class."""
    found = torch.zeros(num_classes + 1, dtype=torch.bool, device=labels.device)
    return found.scatter(0, labels.long() + 1, True)[1:]


def local_classifier_distillation(
    student_logits: Tensor,
    teacher_local_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    student_temperature: float = 1.0,
    weights: Tensor | None = None,
    all_classes: bool = False,
    present: Tensor | None = None,
) -> Tensor:
    r"""mean_i ω_i · KL(p_i ‖ s_i) over the classes present in the batch, TPAMI section 4.2.

    p_i = softmax((z_ik)_{k∈K_b} / τ₂) and s_i = softmax((f_ik)_{k∈K_b} / student_temperature), f the student's logits.
    The mean is over the batch (``batchmean``), with no factor τ₂²; the published λ is the caller's. TPAMI: τ₂ = 1,
    student logits undivided, λ = 1. CVPR 2020: τ₂ = 2, student logits divided by 2 too, λ = 100.

    Args:
        student_logits: ``[B, C]``.
        teacher_local_logits: ``[B, C]`` from :func:`local_logits`; treated as constant.
        labels: ``[B]`` integers in [0, C), or −1 for a sample without a label.
        temperature: τ₂ > 0.
        student_temperature: divisor of the student's logits, > 0.
        weights: ω, ``[B]``, or ``None`` for 1; treated as constant.
        all_classes: over all C classes, instead of those present in the batch; then the labels do not matter.
        present: K_b as :func:`present_classes` gives it, where the labels are only a part of those of the batch.

    Returns:
        Scalar in nats, float32 (float64 for float64 input); 0 for an empty batch.

    Raises:
        ValueError: shapes do not fit, or a temperature is no finite number above 0.
    """
    if student_logits.shape != teacher_local_logits.shape or labels.shape != student_logits.shape[:1]:
        wanted = "logits [B, C] of both models over the same classes and labels [B]"
        of_models = f"student {list(student_logits.shape)}, teacher {list(teacher_local_logits.shape)}"
        got = f"{of_models}, labels {list(labels.shape)}"
        raise ValueError(f"local classifier distillation takes {wanted}, got {got}")
    if weights is not None and weights.shape != labels.shape:
        raise ValueError(f"weights must be one for each sample, {list(labels.shape)}, got {list(weights.shape)}")
    check_temperature("temperature", temperature)
    check_temperature("student_temperature", student_temperature)
    with torch.autocast(student_logits.device.type, enabled=False):
        dtype, classes = exact_dtype(student_logits), student_logits.shape[1]
        absent = labels.new_zeros(classes, dtype=torch.bool)
        if not all_classes:
            absent = ~(present_classes(labels, classes) if present is None else present)
        student = log_softmax_without(student_logits.to(dtype) / student_temperature, absent)
        teacher = log_softmax_without(teacher_local_logits.detach().to(dtype) / temperature, absent)
        divergence = (teacher.exp() * (teacher - student)).masked_fill(absent, 0).sum(dim=1)
        if weights is not None:
            divergence = divergence * weights.detach().to(dtype)
        return (divergence.sum() / max(len(divergence), 1)).to(result_dtype(student_logits))


def confidence_cost(logits: Tensor) -> Tensor:
    r"""``[B]`` float64 (float32 on MPS): u_i = −log max_c softmax(logits_i)_c ≥ 0, in nats; logits ``[B, C_t]``."""
    with torch.autocast(logits.device.type, enabled=False):
        exact = logits.to(exact_dtype(logits))
        top, index = exact.max(dim=1, keepdim=True)
        others = (exact - top).exp().scatter(1, index, 0)  # log1p keeps the digits of a certain classifier
        return others.sum(dim=1).log1p()


def emphasis_weights(logits: Tensor) -> Tensor:
    r"""ω_i = 2·sigmoid(−û_i) ∈ (0.53, 1], û the min–max normalised :func:`confidence_cost` of the batch.

    ``[B]`` float32 (float64 for float64 input) from the logits ``[B, C_t]`` of the teacher's own classifier. What it
    knows weighs more. When all u_i are equal, ω_i = 1. No gradient is taken.

    Example:
        >>> import torch
        >>> emphasis_weights(torch.tensor([[5.0, 0.0], [0.0, 0.0]]))
        tensor([1.0000, 0.5379])
    """
    cost = confidence_cost(logits.detach())
    if len(cost):
        low, high = torch.aminmax(cost)
        cost = torch.where(high > low, (cost - low) / (high - low), 0)
    return (2 * torch.sigmoid(-cost)).to(result_dtype(logits))
