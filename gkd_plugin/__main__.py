"""``python -m gkd_plugin`` is ``refilled``."""

import sys

from gkd_plugin.cli import main

if __name__ == "__main__":
    sys.exit(main())
