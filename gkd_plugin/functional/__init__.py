"""The mathematics of ReFilled as pure tensor functions; imports torch and nothing else.

Notation: B batch size, D embedding width, C number of the student's classes, K_b the classes present in a batch.
"""

from gkd_plugin.functional._common import check_temperature
from gkd_plugin.functional.centres import ClassCentreAccumulator, class_centres, nearest_class_mean
from gkd_plugin.functional.discriminant import Discriminant, fit_discriminant
from gkd_plugin.functional.emphasis import confidence_cost, emphasis_weights
from gkd_plugin.functional.local_classifier import (
    local_classifier_distillation,
    local_logits,
    present_classes,
)
from gkd_plugin.functional.mining import MINING
from gkd_plugin.functional.queue import EmbeddingQueue
from gkd_plugin.functional.relationship import RelationshipMatch, check_matching, relationship_matching
from gkd_plugin.functional.shared_classes import (
    SharedClasses,
    fit_shared_classes,
    own_log_probabilities,
    shared_log_probabilities,
)

__all__ = [
    "MINING",
    "ClassCentreAccumulator",
    "Discriminant",
    "EmbeddingQueue",
    "RelationshipMatch",
    "SharedClasses",
    "check_matching",
    "check_temperature",
    "class_centres",
    "confidence_cost",
    "emphasis_weights",
    "fit_discriminant",
    "fit_shared_classes",
    "local_classifier_distillation",
    "local_logits",
    "nearest_class_mean",
    "own_log_probabilities",
    "present_classes",
    "relationship_matching",
    "shared_log_probabilities",
]
