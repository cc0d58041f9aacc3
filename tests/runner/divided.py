"""Two processes that hold a teacher together: ``python -m tests.runner.divided FOLDER``.

Each writes what the wrapper says of a batch, with the teacher whole and divided, as FOLDER/NAME-RANK.
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from gkd_plugin.cache.fingerprint import model_key
from gkd_plugin.config.stages import stages_of
from gkd_plugin.models import timm_model
from gkd_plugin.runner.devices import read_placement
from gkd_plugin.runner.division import divide
from gkd_plugin.teacher import RefilledTeacher
from tests.fakes import stage

TEACHERS = {  # name: its local features
    "test_resnet": ["layer1.0", "layer3"],
    "test_vit": ["blocks.1"],
    "test_convnext": ["stages.1"],
    "test_vit, bf16": [],
}


def make_teacher(name):
    """In channels_last, with batch norm as after training, and a weight that is a single number."""
    torch.manual_seed(0)
    size = {"img_size": 32} if "vit" in name else {}
    model = timm_model(name.partition(",")[0], num_classes=7, **size).to(memory_format=torch.channels_last)
    model.scale = torch.nn.Parameter(torch.tensor(1.0))
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(part.running_var, 0.5, 2)
    return model


def section(name, how):
    return {"device": {"default": "cpu", "teacher": how, "teacher_dtype": "bf16" if "bf16" in name else None}}


def say(name, model):
    """What a wrapper says twice, and one for another stage."""
    dtype = "bf16" if "bf16" in name else None
    wrappers = [
        RefilledTeacher(model, local_features=TEACHERS[name], data_mean=0.5, data_std=0.5, teacher_dtype=dtype).to(
            "cpu"
        )
        for _ in range(2)
    ]
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return [{**wrapper.fields(images), ".": wrapper(images)} for wrapper in (wrappers[0], *wrappers)]


def held(model):
    """Numbers of this process's weights."""
    return sum(getattr(weight, "_local_tensor", weight).numel() for weight in model.parameters())


def main(folder, rank):
    os.environ["WORLD_SIZE"] = "2"
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/met", rank=rank, world_size=2)
    accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=2)
    stages = stages_of({"train": stage("embedding")})
    for name in TEACHERS:
        model, found = make_teacher(name), {}
        for how in ("whole", "divided"):
            if how == "divided":
                placement = read_placement(section(name, "sharded"))
                divide(model, stages, {"train": None, "val": None}, placement, accelerator)
            found[how] = {"says": say(name, model), "key": model_key(model), "held": held(model)}
        torch.save(found, folder / f"{name}-{rank}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            main(Path(sys.argv[1]).resolve(), rank)
            os._exit(0)
        children.append(child)
    sys.exit(any(os.waitpid(child, 0)[1] for child in children))
