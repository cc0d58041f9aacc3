"""Results of a small made-up grid."""

from pathlib import Path

from gkd_plugin.compare.grid import Cell, Result
from gkd_plugin.compare.method import load_method
from gkd_plugin.compare.setting import Setting

CE, REFILLED, KD = (load_method(name) for name in ("ce", "refilled", "kd"))
HALF, FULL = Setting(50.0), Setting(100.0)


def finished(method, space, seed, top1, **more):
    summary = {"final": {"top1": top1, **more}, "wall_seconds": 1.234, "teacher": {"ncm_top1": 100 / 3}}
    return Result(Cell(method, space, seed, Path("c.yaml"), Path("f")), "finished", summary)


def unfinished(method, space, seed, status, reason):
    return Result(Cell(method, space, seed, Path("c.yaml"), Path("f")), status, reason=reason)


RESULTS = [
    *(finished(CE, HALF, seed, top1, ncm_top1=top1 / 2) for seed, top1 in enumerate([60.0, 62.0, 64.0])),
    *(finished(CE, FULL, seed, top1) for seed, top1 in enumerate([50.0, 50.0, 50.0])),
    *(finished(REFILLED, HALF, seed, top1) for seed, top1 in enumerate([61.0, 64.0, 67.0])),
    finished(REFILLED, FULL, 0, 57.0),
    *(unfinished(REFILLED, FULL, seed, "failed", 'too small, "x"') for seed in (1, 2)),
    *(unfinished(KD, HALF, seed, "not served", "needs the same classes") for seed in range(3)),
    *(unfinished(KD, FULL, seed, "failed", "no weights") for seed in range(3)),
]
