"""Old import path, kept while other folders are being rewritten."""

from gkd_plugin.data.labels import inner_datasets, layers_of, length_of, unwrapped
from gkd_plugin.errors import whole_number

__all__ = ["inner_datasets", "layers_of", "length_of", "unwrapped", "whole_number"]
