"""Processes that share a batch: ``python -m tests.losses.shared_batch FOLDER``.

Each of W processes has W-th parts of two batches and averages its gradients with the others, as DDP does. Writes what
they find, and what one process with whole batches finds, as FOLDER/CASE-DTYPE-W.
"""

import os
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torchdistill.losses.registry import get_high_level_loss, get_mid_level_loss

import gkd_plugin  # noqa: F401  # registers the losses

BATCH, CLASSES, WIDTH = 24, 5, 6
PATHS = {"student_module_path": "embedding", "teacher_module_path": "embedding"}
QUEUE = {"key": "queue_distillation", "kwargs": {**PATHS, "queue_size": 40}}
CASES = {
    "embedding": {"stage": "embedding"},
    "first-two": {"stage": "embedding", "max_negatives": 2, "queue_size": 10},
    "smallest": {"stage": "embedding", "max_negatives": "smallest"},
    "classifier": {"stage": "classifier"},
    "joint": {"stage": "joint", "queue_size": 30, "adaptive": True, "classes": "batch"},
    "unlabelled": {"stage": "joint", "queue_size": 30},
    "queue": None,
    "apart": {"stage": "joint", "gather": False},
}


def student(dtype):
    torch.manual_seed(0)
    return nn.ModuleDict({"embedding": nn.Linear(4, WIDTH), "head": nn.Linear(WIDTH, CLASSES)}).to(dtype)


def batches(case, dtype):
    """Images, labels, the teacher's embeddings, logits and local classifier; a part may lack a class, or all labels."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        tensors = [torch.randn(BATCH, width, generator=generator, dtype=dtype) for width in (4, WIDTH, 9, CLASSES)]
        labels = torch.randint(CLASSES, (BATCH,), generator=generator).sort().values
        if case == "unlabelled":
            labels[torch.randperm(BATCH, generator=generator)[:9]] = -1
            labels[:6] = -1
        yield tensors[0], labels, *tensors[1:]


def results(case, dtype, rank=0, count=1):
    """The losses, the terms of the last and the gradients, the mean over the processes."""
    settings = CASES[case]
    if settings is None:
        criterion = get_mid_level_loss(QUEUE)
    else:
        criterion = get_high_level_loss({"key": "refilled", "kwargs": settings})
    model, size = student(dtype), BATCH // count
    losses = []
    for tensors in batches(case, dtype):
        images, labels, teacher, own, local = (part[rank * size : (rank + 1) * size] for part in tensors)
        embedding = model["embedding"](images)
        of_student = {"embedding": embedding, ".": model["head"](embedding)}
        of_teacher = {"embedding": teacher, ".": own, "local_classifier": local}
        io = [{path: {"output": rows} for path, rows in of.items()} for of in (of_student, of_teacher)]
        if settings is None:
            loss = criterion(*io, labels)
        else:
            loss = criterion({"student": io[0], "teacher": io[1]}, {}, labels)
        loss.backward()
        losses.append(loss.detach())
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    found = [torch.stack(losses), *gradients, *(value.to(dtype) for value in criterion.terms.values())]
    if count > 1:
        for value in found:
            distributed.all_reduce(value)
            value.div_(count)
    return dict(zip(["losses", *dict(model.named_parameters()), *criterion.terms], found, strict=True))


def write(folder, rank, count):
    if count > 1:
        rendezvous = f"file://{folder}/rendezvous{count}"
        distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=count)
    for case in CASES:
        for dtype in (torch.float64, torch.float32):
            found = results(case, dtype, rank, count)
            if rank == 0:
                torch.save(found, folder / f"{case}-{dtype}-{count}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1]).resolve()
    for count in (1, 2, 4):
        children = []
        for rank in range(count):
            child = os.fork()
            if child == 0:
                write(folder, rank, count)
                os._exit(0)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if any(codes):
            sys.exit(f"{count} processes: exit codes {codes}")
