"""The losses for torchdistill's registries: ReFilled's, and one that is compared with."""

from gkd_plugin.losses import rivals  # noqa: F401  # registered
from gkd_plugin.losses.local_classifier import LocalClassifierLoss
from gkd_plugin.losses.refilled import ClassifierStage, EmbeddingStage, JointStage, RefilledStage, refilled
from gkd_plugin.losses.relationship import RelationshipLoss

__all__ = ["ClassifierStage", "EmbeddingStage", "JointStage", "LocalClassifierLoss", "RefilledStage"]
__all__ += ["RelationshipLoss", "refilled"]
