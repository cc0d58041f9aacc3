"""CRD's numbers against its data: torchdistill meets a wrong one as a shape or an index in the first batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gkd_plugin.errors import ConfigError

__all__ = ["check_crd"]


def check_crd(stages: Mapping[str, Mapping[str, Any]], datasets: Mapping[str, Any]) -> None:
    """Checks every stage that has a ``CRDLoss``.

    Args:
        stages: key path → section.
        datasets: built.

    Raises:
        ConfigError: nothing gives the loss its negatives, or not as many as it expects, or its memory has fewer rows
            than there are training samples.
    """
    for where, stage in stages.items():
        loader = stage["train_data_loader"]
        for term, kwargs in _losses(stage.get("criterion") or {}):
            path = f"{where}.criterion.kwargs.sub_terms.{term}.criterion.kwargs"
            wrapper = loader.get("dataset_wrapper") or {}
            if not wrapper:
                raise ConfigError(
                    f"{where}.train_data_loader.dataset_wrapper: missing; CRDLoss needs 'CRDDatasetWrapper', which "
                    "names the negatives of each sample"
                )
            drawn = (wrapper.get("kwargs") or {}).get("num_negative_samples", kwargs["num_negative_samples"])
            if kwargs["num_negative_samples"] != drawn:
                raise ConfigError(
                    f"{path}.num_negative_samples: {kwargs['num_negative_samples']} given, but the loader's "
                    f"dataset_wrapper draws {drawn}"
                )
            samples = len(datasets[loader["dataset_id"]])
            if kwargs["output_size"] < samples:
                raise ConfigError(
                    f"{path}.output_size: {kwargs['output_size']} given, but there are {samples} training samples"
                )


def _losses(criterion: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and keywords of each."""
    terms = (criterion.get("kwargs") or {}).get("sub_terms") or {}
    for name, term in terms.items():
        if term["criterion"]["key"] == "CRDLoss":
            yield name, term["criterion"]["kwargs"]
