"""Configurations that are built and rehearsed, one after the other; nothing is trained, and no run folder written."""

import copy
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torchdistill.common.main_util import set_seed

from gkd_plugin.cache.teacher_cache import TeacherCache
from gkd_plugin.config.config import RunConfig
from gkd_plugin.config.schema import absolute
from gkd_plugin.config.stages import student_entry
from gkd_plugin.config.tree import places
from gkd_plugin.data.labels import length_of
from gkd_plugin.errors import ConfigError, first_line
from gkd_plugin.runner.devices import make_accelerator, read_placement
from gkd_plugin.runner.parts import Parts


@contextmanager
def dry_runs(device: str | None = None) -> Iterator[Callable[[RunConfig, Path], str]]:
    """Gives a function that tries a configuration, and the folder it would run in: it says what was found fine.

    One that loads what an earlier one writes gets the untrained weights of that student instead. They show everything
    but how good the trained ones are. The function raises ConfigError as the run itself would.
    """
    written: dict[str, str] = {}  # folder or file of an earlier configuration → what stands in for it
    writers: dict[str, Path] = {}  # what stands in → that configuration
    with TemporaryDirectory() as temporary:

        def dry_run(config: RunConfig, folder: Path) -> str:
            tree, sources = _with_stand_ins(config.tree, written)
            own = f"{temporary}/{len(writers)}.pt"
            destination = student_entry(tree)[1].get("dst_ckpt") or folder
            written.update(dict.fromkeys([absolute(str(place)) for place in (folder, destination)], own))
            writers[own] = config.path
            for file, source in sources.items():
                if not Path(file).exists():
                    needs = f"it loads {source}, which {writers[file]} writes; correct that one first"
                    raise ConfigError(f"{config.path}: not checked: {needs}")
            try:
                sizes = _trial(replace(config, tree=tree), device, own)
            except (ConfigError, torch.OutOfMemoryError) as error:
                text = str(error) if isinstance(error, ConfigError) else first_line(error)
                for file, source in sources.items():
                    text = text.replace(file, source)
                raise ConfigError(f"{config.path}: {text}") from error
            missing = [f"{source} is yet to be written by {writers[file]}" for file, source in sources.items()]
            return "; ".join([f"{config.path}: fine: {sizes}", *missing])

        yield dry_run


def _trial(config: RunConfig, device: str | None, stand_in: str) -> str:
    """Builds the parts of a run, writes the student's weights, and says how large stages and test set are."""
    placement = read_placement(config.tree, device)
    accelerator = make_accelerator(placement)
    set_seed(0)
    built, cache = config.build(), TeacherCache.from_section(config.tree.get("teacher_cache"))
    parts = Parts(built, placement, accelerator, cache, is_trial=True)
    about = Namespace(image_input=vars(parts.image_input), classes=parts.class_names)
    torch.save({"model": parts.student.state_dict(), "args": about}, stand_in)
    counts = [(stage, length_of(built["datasets"][stage.loader["dataset_id"]])) for stage in parts.stages]
    sizes = [
        f"{stage.name} {stage.epochs} {'epoch' if stage.epochs == 1 else 'epochs'} of {count} images"
        for stage, count in counts
    ]
    if parts.test_loader is not None:
        sizes.append(f"test {length_of(parts.test_loader.dataset)} images")
    return ", ".join(sizes)


def _with_stand_ins(tree: dict[str, Any], written: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The tree with what stands in for ``src_ckpt``, and these (what stands in → its ``src_ckpt``).

    A classifier does not start at class centres, because these take a pass over the training set.
    """
    tree, sources = copy.deepcopy(tree), dict[str, str]()
    for _, section in places(tree):
        source = section.get("src_ckpt") if isinstance(section, dict) else None
        for place, file in written.items():
            if source and Path(absolute(source)).is_relative_to(place):
                section["src_ckpt"], sources[file] = file, source
        if isinstance(section, dict) and section.get("src_ckpt_classifier") == "centres":
            section["src_ckpt_classifier"] = "new" if source else None
    return tree, sources
