"""Data loaders: dataset, sampler, batch sampler, collate function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gkd_plugin.config import schema
from gkd_plugin.config.tagged import Tagged
from gkd_plugin.config.validation.registries import check_registered, registered_key
from gkd_plugin.config.validation.report import Report, at, shown
from gkd_plugin.config.validation.sections import check_flag, optional_section, required_section
from gkd_plugin.config.validation.signatures import check_arguments
from gkd_plugin.config.validation.tags import tag_target
from gkd_plugin.errors import nearest

__all__ = ["check_loader"]


def check_loader(report: Report, path: str, loader: Mapping[Any, Any], plain: Mapping[str, Any]) -> None:
    """One data loader; its ``dataset_id`` must be in ``datasets``."""
    from torch.utils.data import DataLoader, Sampler
    from torchdistill.datasets.registry import BATCH_SAMPLER_DICT, COLLATE_FUNC_DICT, DATASET_WRAPPER_DICT

    datasets, dataset_id = plain.get("datasets"), loader.get("dataset_id")
    if isinstance(datasets, Mapping) and dataset_id not in datasets:
        given = "missing" if dataset_id is None else f"{shown(dataset_id)} is not in datasets"
        report.add(at(path, "dataset_id"), f"{given}; {nearest(dataset_id, datasets)}")
    _sampler(report, path, loader)
    check_flag(report, path, loader, "requires_supp")
    kwargs = required_section(report, path, loader, "kwargs")
    if kwargs is not None:
        check_arguments(report, at(path, "kwargs"), DataLoader, (), kwargs, supplied=1, names=("sampler", "collate_fn"))
        if kwargs.get("shuffle"):
            report.add(at(path, "kwargs.shuffle"), "excludes a sampler, and torchdistill always gives one; remove it")
    if loader.get("batch_sampler") is not None:
        _batch_sampler(report, path, loader, BATCH_SAMPLER_DICT, Sampler)
    if loader.get("collate_fn") is not None:
        registered_key(report, at(path, "collate_fn"), loader["collate_fn"], COLLATE_FUNC_DICT)
    if loader.get("dataset_wrapper"):
        wrapper = optional_section(report, path, loader, "dataset_wrapper", schema.KEY_ARGS_KWARGS)
        if wrapper is not None:
            check_registered(report, at(path, "dataset_wrapper"), wrapper, DATASET_WRAPPER_DICT, supplied=1)


def _batch_sampler(
    report: Report, path: str, loader: Mapping[Any, Any], registry: Mapping[str, Any], base: type
) -> None:
    section = optional_section(report, path, loader, "batch_sampler", schema.KEY_KWARGS)
    if section is None:
        return
    where = at(path, "batch_sampler")
    required_section(report, where, section, "kwargs")
    check_registered(report, where, section, registry, base=base, supplied=1)
    kwargs = loader.get("kwargs")
    given = kwargs.keys() if isinstance(kwargs, Mapping) else set()
    for key in sorted(schema.DATALOADER_KEYS & given):
        report.add(at(path, f"kwargs.{key}"), "cannot be given beside a batch_sampler; remove it")


def _sampler(report: Report, path: str, loader: Mapping[Any, Any]) -> None:
    example = "write class_or_func: !import_get {key: 'torch.utils.data.RandomSampler'}"
    where = at(path, "sampler")
    if "sampler" not in loader:
        report.add(f"{where}.class_or_func", f"missing; {example}")
        return
    sampler = optional_section(report, path, loader, "sampler", schema.SAMPLER)
    if sampler is None:
        return
    target = sampler.get("class_or_func")
    if not isinstance(target, Tagged):
        report.add(f"{where}.class_or_func", f"{shown(target)} given; {example}")
        return
    if target.tag == "!import_get" and (function := tag_target(target)) is not None:
        kwargs = sampler.get("kwargs")
        check_arguments(report, f"{where}.kwargs", function, (), {} if kwargs is None else kwargs, supplied=1)
