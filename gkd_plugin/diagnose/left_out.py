"""A part of the diagnostics that a run has nothing for."""

from __future__ import annotations

__all__ = ["LeftOut"]


NO_CENTRES = "a class has no training sample, so there are no class centres (incremental learning without a memory)"


class LeftOut(Exception):  # noqa: N818  # not an error: the other parts go on
    """The part is left out; the message says why, and what would bring it in."""
