"""A run's config: a torchdistill YAML, overridden and validated, not yet built."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torchdistill.common.main_util import import_dependencies

from gkd_plugin.config.kinds import LARGEST, Report, is_absurd
from gkd_plugin.config.overrides import apply_overrides
from gkd_plugin.config.schema import TAGS, absolute, configuration
from gkd_plugin.config.stages import Stage, has_teacher, stage_names, stages_of
from gkd_plugin.config.tree import TEXT_NUMBER, Tagged, build, compose_file, dump, places, plain_tree, resolve_target
from gkd_plugin.errors import ConfigError


@dataclass(frozen=True)
class RunConfig:
    """A valid config of a file. Its plain tree is for reading: aliased sections are one dict."""

    path: Path
    tree: dict[str, Any]
    notices: tuple[str, ...] = ()  # what the user should know about the overrides, one line each

    @cached_property
    def stages(self) -> list[Stage]:
        """Its stages in order."""
        return stages_of(self.tree)

    @cached_property
    def text(self) -> str:
        """The config as YAML that torchdistill loads."""
        return dump(self.tree)

    def build(self) -> dict[str, Any]:
        """Constructs datasets and whatever else the tags name. Each call builds anew: call it once."""
        return dict(build(self.tree))


def load_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    produced: Collection[str] | None = (),
    imports: bool = True,
) -> RunConfig:
    """Reads a torchdistill YAML, overrides (:func:`~gkd_plugin.config.overrides.apply_overrides`) and validates it.

    A ``src_ckpt`` must exist, or be ``produced`` by the configs before this one; with ``None`` it does not matter.
    Without ``imports`` nothing is imported that the file names, and so less is known.

    Raises:
        ConfigError: the file cannot be read, an override does not apply, or there are problems (one line each).
    """
    root = compose_file(path)
    notices = apply_overrides(root, overrides)
    return checked_config(Path(path), plain_tree(root, str(path)), notices, produced, imports)


def checked_config(
    path: Path,
    tree: Any,
    notices: Sequence[str] = (),
    produced: Collection[str] | None = (),
    imports: bool = True,
) -> RunConfig:
    """The config of a tree, validated; arguments and errors as :func:`load_config`."""
    found = problems(tree, produced, imports)
    if found:
        listing = "\n  ".join([f"{len(found)} problems", *found])
        raise ConfigError(f"{path}: {found[0] if len(found) == 1 else listing}")
    return RunConfig(path, tree, tuple(notices))


def problems(tree: Mapping[str, Any], produced: Collection[str] | None = (), imports: bool = True) -> list[str]:
    """One line for each problem that can be known before anything is built: key path, what was given and is allowed."""
    import gkd_plugin  # noqa: F401  # registers its parts

    report = Report(tree, None if produced is None else {absolute(path) for path in produced}, imports=imports)
    listed, train = tree.get("dependencies") or [], tree.get("train")
    for index, dependency in enumerate(listed if isinstance(listed, list) else [listed]) if imports else ():
        with report.trial(f"dependencies.{index}"):
            import_dependencies([dependency])
    for path, value in places(train, "train"):  # first: the table would only say that it is no number
        if isinstance(value, str) and TEXT_NUMBER.fullmatch(value):
            report.add(path, f"{value!r} is text to YAML, not a number; write {float(value)!r} as e.g. 1.0e-3")
    configuration(stage_names(train), has_teacher=has_teacher(tree))(report, "", tree)
    seen: set[int] = set()
    for path, value in places(tree):
        if isinstance(value, Tagged) and value.tag in TAGS and id(value) not in seen:
            seen.add(id(value))
            _check_call(report, path, value)
    for path, value in [*places(train, "train"), *places(tree.get("test"), "test")]:
        if is_absurd(value) and report.is_clean(path):
            report.add(path, f"{value!r} given; must be a finite number, at most {LARGEST:.0e}")
    return report.lines


def _check_call(report: Report, path: str, tagged: Tagged) -> None:
    """What a tag imports must exist, and take what it is called with."""
    target = None
    if report.imports:
        with report.trial(path):
            target = resolve_target(tagged)
    if not isinstance(tagged.value, Mapping):
        return
    TAGS[tagged.tag](report, path, tagged.value)
    init = tagged.value.get("init") or {}
    if callable(target) and tagged.tag != "!import_get" and isinstance(init, Mapping):
        report.bind(f"{path}.init", target, init)
