"""What a comparison may rank by."""

__all__ = ["SCORES"]

SCORES = ("top1", "val_top1_last3", "top5", "ncm_top1", "old_top1", "new_top1", "harmonic_mean")
"""Figures of ``final`` in a run's ``summary.json``."""
