"""The mathematics of ReFilled as pure tensor functions; needs torch and NumPy, neither torchdistill nor timm.

Notation: B batch size, D embedding width, C number of the student's classes, K_b the classes present in a batch.
"""

from gkd_plugin.functional.local_classifier import *
from gkd_plugin.functional.probe import *
from gkd_plugin.functional.relationship import *
from gkd_plugin.functional.shared_classes import *
