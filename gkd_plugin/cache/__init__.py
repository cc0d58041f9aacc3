"""A frozen teacher's outputs for every fixed view, in one memory-mapped float16 array on disk."""

from gkd_plugin.cache.reader import FeatureBank
from gkd_plugin.cache.writer import BankWriter

__all__ = ["BankWriter", "FeatureBank"]
