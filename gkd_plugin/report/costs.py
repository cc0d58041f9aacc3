"""What a network costs: parameters, multiplications for one image, time on a CPU."""

import copy
import statistics
import timeit
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gkd_plugin.diagnose.restore import RestoredRun


@dataclass(frozen=True)
class Costs:
    """Of one image; ``macs`` are those of convolutions, linear layers and attention."""

    parameters: int
    macs: int
    milliseconds: float  # median, batch of one, one thread of this CPU


@torch.no_grad()
def costs_of(model: nn.Module, images: Tensor) -> Costs:
    """Of a copy on the CPU in float32, for the first of the ``[B, …]`` images."""
    model, image = copy.deepcopy(model).cpu().float().eval(), images[:1].cpu().float()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # fused ones are not counted on a CPU
        model(image)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = statistics.median(timeit.repeat(lambda: model(image), number=1, repeat=25))
    finally:
        torch.set_num_threads(threads)
    return Costs(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2, 1000 * seconds)


def costs_of_run(run: RestoredRun) -> dict[str, Costs]:
    """Of ``student`` and, where there is one, ``teacher``, each for an image as large as it sees them."""
    images = next(iter((run.test or run.train).loader))[0]
    found = {"student": costs_of(run.student, images)}
    if run.teacher is not None:
        found["teacher"] = costs_of(run.teacher.teacher, run.teacher.input(images[:1].to(run.teacher.device)))
    return found
