"""The ``criterion`` section of a stage, and a trial build of the loss."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from gkd_plugin.config import schema
from gkd_plugin.config.tagged import Tagged, summary
from gkd_plugin.config.validation.registries import check_registered, registered_key
from gkd_plugin.config.validation.report import Report, at, shown
from gkd_plugin.config.validation.sections import optional_section, required_section
from gkd_plugin.config.validation.tags import holds_tag
from gkd_plugin.errors import nearest

__all__ = ["check_criterion"]


def check_criterion(report: Report, parent: str, stage: Mapping[Any, Any]) -> None:
    """The criterion of a stage; where its form is right and it holds no objects, it is built once."""
    from torchdistill.losses.registry import FUNC2EXTRACT_MODEL_OUTPUT_DICT, HIGH_LEVEL_LOSS_DICT

    mark, path = len(report.lines), at(parent, "criterion")
    criterion = required_section(report, parent, stage, "criterion", schema.CRITERION)
    if criterion is None:
        return
    registered_key(report, at(path, "key"), criterion.get("key"), HIGH_LEVEL_LOSS_DICT)
    if criterion.get("func2extract_model_loss") is not None:
        function = criterion["func2extract_model_loss"]
        registered_key(report, at(path, "func2extract_model_loss"), function, FUNC2EXTRACT_MODEL_OUTPUT_DICT)
    kwargs = criterion.get("kwargs")
    sub_terms = kwargs.get("sub_terms") if isinstance(kwargs, Mapping) else None
    for name in sub_terms if isinstance(sub_terms, Mapping) else []:
        term = optional_section(report, f"{path}.kwargs.sub_terms", sub_terms or {}, name, schema.SUB_TERM)
        if term is not None:
            _sub_term(report, f"{path}.kwargs.sub_terms.{name}", term)
    if report.ok_since(mark) and not holds_tag(criterion):
        _try_criterion(report, path, criterion)


def _sub_term(report: Report, path: str, term: Mapping[Any, Any]) -> None:
    from torch import nn
    from torchdistill.losses import registry

    low = {**registry.LOW_LEVEL_LOSS_DICT, **registry.LOSS_DICT}
    middle = registry.MIDDLE_LEVEL_LOSS_DICT
    criterion = required_section(report, path, term, "criterion", schema.KEY_KWARGS)
    if criterion is not None:
        required_section(report, at(path, "criterion"), criterion, "kwargs")
        check_registered(report, at(path, "criterion"), criterion, {**low, **middle}, base=nn.Module)
    if isinstance(term.get("weight"), bool) or not isinstance(term.get("weight"), (int, float, Tagged)):
        report.add(at(path, "weight"), f"{shown(term.get('weight'))} given; must be a number")
    where = at(path, "criterion_wrapper")
    if term.get("criterion_wrapper"):
        wrapper = optional_section(report, path, term, "criterion_wrapper", schema.KEY_ARGS_KWARGS)
        if wrapper is not None:
            check_registered(report, where, wrapper, registry.LOSS_WRAPPER_DICT, supplied=1)
    elif criterion is not None and criterion.get("key") in low.keys() - middle.keys():
        wrappers = nearest("", registry.LOSS_WRAPPER_DICT)
        report.add(where, f"missing; {criterion['key']!r} needs one to pick its inputs ({wrappers})")


def _try_criterion(report: Report, path: str, criterion: Mapping[Any, Any]) -> None:
    """A loss checks its own arguments: build one and see."""
    import torch
    from torchdistill.losses.registry import get_high_level_loss

    try:
        with torch.random.fork_rng(devices=[]):
            get_high_level_loss(copy.deepcopy(criterion))
    except Exception as error:  # whatever a loss raises here it would raise again in training
        for line in summary(error).splitlines():
            report.add(path, line)
