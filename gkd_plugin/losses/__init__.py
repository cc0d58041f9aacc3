"""ReFilled's losses for torchdistill's registries."""

from gkd_plugin.losses.refilled import ClassifierStage, EmbeddingStage, JointStage, RefilledStage, refilled

__all__ = ["ClassifierStage", "EmbeddingStage", "JointStage", "RefilledStage", "refilled"]
