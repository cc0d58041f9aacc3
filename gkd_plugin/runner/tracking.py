"""Experiment trackers: the section ``tracker``, through torchdistill's TrainingTracker or Accelerate's TensorBoard."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from accelerate.tracking import TensorBoardTracker
from torchdistill.misc.log import setup_tracker

from gkd_plugin.config.tree import Tagged
from gkd_plugin.errors import ConfigError, first_line, require_extra
from gkd_plugin.runner.run_folder import TENSORBOARD, RunFolder

logger = logging.getLogger(__name__)

Track: TypeAlias = Callable[[Mapping[str, Any], int], None]
"""Takes figures by name, and the number of the update."""


def check_tracker(section: Mapping[str, Any] | None) -> None:
    """Raises ConfigError where the package of the engine is not installed."""
    if engine := (section or {}).get("engine"):
        require_extra(engine, f"tracker.engine: {engine!r}")


@contextmanager
def tracked(tree: Mapping[str, Any], folder: RunFolder) -> Iterator[Track]:
    """What takes the figures of a run, of the main process; it does nothing where the configuration names no engine."""
    section = tree.get("tracker") or {}
    engine, kwargs = section.get("engine"), section.get("kwargs") or {}
    if engine is None or not folder.is_main:
        yield lambda *_: None
        return
    try:
        if engine == "tensorboard":
            tracker: Any = TensorBoardTracker(TENSORBOARD, folder.path, **kwargs)
            tracker.start()
        else:
            plain = json.loads(json.dumps(tree, default=_plain))
            tracker = setup_tracker({"engine": engine, "kwargs": {"name": folder.path.name, **kwargs}}, plain)
    except Exception as error:  # of anybody's package, or of its network
        raise ConfigError(f"tracker: {engine} does not start: {first_line(error)}") from error

    def track(figures: Mapping[str, Any], step: int) -> None:
        with _survived(engine):
            tracker.log(figures, step=step)

    try:
        yield track
    finally:
        with _survived(engine):
            tracker.finish()


@contextmanager
def _survived(engine: str) -> Iterator[None]:
    """A run does not end because a tracker has lost its network; the log says so."""
    try:
        yield
    except Exception as error:
        logger.warning("tracker: %s: %s", engine, first_line(error))


def _plain(value: Any) -> Any:
    """For JSON: what stands under a tag, with it."""
    return {value.tag: value.value} if isinstance(value, Tagged) else str(value)
