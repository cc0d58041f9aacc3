"""ReFilled's losses for torchdistill's registries."""

from gkd_plugin.losses.local_classifier import LocalClassifierLoss, OldClassDistillation
from gkd_plugin.losses.refilled import ClassifierStage, EmbeddingStage, JointStage, RefilledStage, refilled
from gkd_plugin.losses.relationship import RelationshipLoss
from gkd_plugin.losses.term import Term

__all__ = [
    "ClassifierStage",
    "EmbeddingStage",
    "JointStage",
    "LocalClassifierLoss",
    "OldClassDistillation",
    "RefilledStage",
    "RelationshipLoss",
    "Term",
    "refilled",
]
