"""Static validation of a config: everything that can be known before anything is built, all of it together."""

from gkd_plugin.config.validation.whole_config import problems

__all__ = ["problems"]
