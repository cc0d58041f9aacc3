"""The formulae of the paper written once more, mostly as loops over Python floats: slow, independent, float64."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def log_softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    rest = top + math.log(sum(math.exp(value - top) for value in logits))
    return [value - rest for value in logits]


def smoothed_nll(
    rows: list[list[float]], labels: list[int], classes: int, samples: int | None = None, unknown: int = 1
) -> float:
    """Mean cross-entropy of log-probabilities; u / (N + u) of each label is spread over all, N the samples."""
    epsilon, total = unknown / ((samples or len(labels)) + unknown), 0.0
    for row, label in zip(rows, labels, strict=True):
        total -= (1 - epsilon) * row[label] + epsilon * sum(row) / classes
    return total / len(labels)


def distances(embedding: Tensor) -> Tensor:
    """Between the normalised rows, from their differences."""
    rows = functional.normalize(embedding.double())
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")


WINDOWS = {
    "semihard": lambda gap, margin: 0 < gap <= margin,
    "hard": lambda gap, margin: gap <= 0,
    "all": lambda gap, margin: True,
}


def relationship(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 4.0, margin: float = 0.2, **choices: Any
) -> tuple[float, int, float, Tensor]:
    """(loss, number of tuples, mean negatives per tuple, gradient of the loss with respect to the student)."""
    loss, tuples, negatives, pull = matched_distances(
        distances(student).tolist(), distances(teacher).tolist(), labels.tolist(), temperature, margin, **choices
    )
    return loss, tuples, negatives, _embedding_gradient(student, pull)


def matched_distances(
    s: list[list[float]],
    t: list[list[float]],
    y: list[int],
    temperature: float,
    margin: float,
    max_negatives: int | str | None = None,
    mining: str = "semihard",
    anchors: int | None = None,
) -> tuple[float, int, float, list[list[float]]]:
    """(loss, number of tuples, mean negatives per tuple, gradient of the loss with respect to s)."""
    batch = range(len(y))
    tuples = []
    for a in batch[:anchors]:
        for p in batch:
            if a == p or y[a] != y[p]:
                continue
            chosen = [n for n in batch if y[n] != y[a] and WINDOWS[mining](s[a][n] - s[a][p], margin)]
            if chosen:
                tuples.append((a, p, chosen))
    gradient = [[0.0 for _ in batch] for _ in batch]
    if not tuples:
        return 0.0, 0, 0.0, gradient
    keep = min(len(chosen) for _, _, chosen in tuples) if max_negatives == "smallest" else max_negatives
    total, count = 0.0, 0
    for a, p, chosen in tuples:
        kept = chosen[:keep] if keep is not None else chosen
        count += len(kept)
        members = [p, *kept]
        log_student = log_softmax([-s[a][m] / temperature for m in members])
        log_teacher = log_softmax([-t[a][m] / temperature for m in members])
        for m, of_student, of_teacher in zip(members, log_student, log_teacher, strict=True):
            total += math.exp(of_teacher) * (of_teacher - of_student)
            gradient[a][m] += (math.exp(of_teacher) - math.exp(of_student)) / temperature / len(tuples)
    return total / len(tuples), len(tuples), count / len(tuples), gradient


def _embedding_gradient(embedding: Tensor, gradient: list[list[float]]) -> Tensor:
    """From ∂L/∂D to ∂L/∂embedding, before normalisation; a distance of 0 has none."""
    leaf = embedding.detach().double().requires_grad_()
    rows = functional.normalize(leaf)
    squares = (rows.unsqueeze(1) - rows).square().sum(dim=2)
    apart = squares > 0
    (squares.where(apart, 1).sqrt() * apart * torch.tensor(gradient, dtype=torch.float64)).sum().backward()
    return leaf.grad


def centres(embedding: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    rows = embedding.double()
    return functional.normalize(torch.stack([rows[labels == k].mean(dim=0) for k in range(num_classes)]))


def emphasis(logits: Tensor) -> list[float]:
    costs = []
    for row in logits.double().tolist():
        top = row.index(max(row))
        costs.append(math.log1p(sum(math.exp(x - row[top]) for c, x in enumerate(row) if c != top)))
    low, high = min(costs), max(costs)
    scaled = [(cost - low) / (high - low) if high > low else 0.0 for cost in costs]
    return [2 / (1 + math.exp(value)) for value in scaled]


def local_classifier(
    student: Tensor, local: Tensor, labels: Tensor, tau: float, student_tau: float, weights: Tensor | None = None
) -> float:
    present = labels.unique()
    pairs = ((local, tau), (student, student_tau))
    p, s = ((logits.double()[:, present] / divisor).log_softmax(1) for logits, divisor in pairs)
    divergence = (p.exp() * (p - s)).sum(1)
    return (divergence if weights is None else weights * divergence).mean().item()
