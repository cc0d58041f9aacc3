"""Static validation of a config: everything that can be known before anything is built, all of it in one error."""

from gkd_plugin.runner.validation.whole_config import problems, validate

__all__ = ["problems", "validate"]
