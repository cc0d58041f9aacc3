"""The ``dependencies`` and ``datasets`` sections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gkd_plugin.config import schema
from gkd_plugin.config.tagged import summary
from gkd_plugin.config.validation.report import Report, at
from gkd_plugin.config.validation.sections import required_section

__all__ = ["check_datasets", "check_dependencies"]


def check_dependencies(report: Report, dependencies: object) -> None:
    """Imports what ``dependencies`` lists: it registers the parts that the config names."""
    from torchdistill.common.main_util import import_dependencies

    listed = dependencies if isinstance(dependencies, list) else [dependencies]
    for index, dependency in enumerate(listed if dependencies is not None else []):
        try:
            import_dependencies([dependency])
        except Exception as error:  # noqa: PERF203  # an imported module may raise anything
            name = dependency.get("name") if isinstance(dependency, Mapping) else dependency
            report.add(at("dependencies", index), f"{name!r} cannot be imported: {summary(error)}")


def check_datasets(report: Report, plain: Mapping[str, Any]) -> None:
    """The ``datasets`` section; what its tags build is checked where all tags are."""
    datasets = required_section(report, "", plain, "datasets")
    if datasets is not None and not any(not schema.is_private(key) for key in datasets):
        report.add("datasets", "is empty; name at least one dataset")
    for key in (key for key, value in (datasets or {}).items() if value is None and not schema.is_private(key)):
        report.add(at("datasets", key), "nothing given; must be a dataset, e.g. !import_call {key: …}")
