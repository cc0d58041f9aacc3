"""Models for torchdistill's registry: any timm backbone, and what a loss trains on top of one."""

from gkd_plugin.models.embedding_tap import Embedding, EmbeddingTap, is_encoder, tap_embedding
from gkd_plugin.models.projection import ProjectedStudent
from gkd_plugin.models.timm_model import timm_model

__all__ = ["Embedding", "EmbeddingTap", "ProjectedStudent", "is_encoder", "tap_embedding", "timm_model"]
