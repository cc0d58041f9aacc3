"""What a comparison may rank by."""

__all__ = ["OF_GROUPS", "SCORES"]

OF_GROUPS = ("old_top1", "new_top1", "harmonic_mean")
"""Figures of test sets that tell old and new classes apart."""
SCORES = ("top1", "val_top1_last3", "top5", "ncm_top1", *OF_GROUPS)
"""Figures of ``final`` in a run's ``summary.json``."""
