"""Datasets, class splits and batch samplers for torchdistill YAML files (``!import_call``, ``!import_get``).

Everything takes any torchvision-style map dataset: ``dataset[i]`` is ``(image, label)``, and
``dataset.targets`` holds the labels. Only :class:`Stream` has no index.
What a module names in its ``__all__`` is also a name of this package.
"""

from gkd_plugin.data.images import *
from gkd_plugin.data.labels import *
from gkd_plugin.data.samplers import *
from gkd_plugin.data.splits import *
from gkd_plugin.data.streams import *
from gkd_plugin.data.transforms import *
from gkd_plugin.data.unlabelled import *
from gkd_plugin.data.views import *
