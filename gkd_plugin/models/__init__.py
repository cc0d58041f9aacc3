"""Models for torchdistill's registry: any timm backbone."""

from gkd_plugin.models.embedding_tap import Embedding, EmbeddingTap, is_encoder, tap_embedding
from gkd_plugin.models.timm_model import timm_model

__all__ = ["Embedding", "EmbeddingTap", "is_encoder", "tap_embedding", "timm_model"]
