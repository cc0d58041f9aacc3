"""A teacher that answers once: its outputs for fixed views of the training set, kept on disk."""

from gkd_plugin.cache.teacher_cache import TeacherCache

__all__ = ["TeacherCache"]
