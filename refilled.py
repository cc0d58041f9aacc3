"""The console script ``refilled``, also ``python -m refilled``.

Importing ``gkd_plugin`` takes seconds, because it registers every part (torch, timm). So this runs the file
``gkd_plugin/cli.py`` without importing the package: ``--help``, ``--version`` and usage errors come at once.
"""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """As ``gkd_plugin.cli.main``."""
    spec = importlib.util.spec_from_file_location("refilled_cli", Path(__file__).parent / "gkd_plugin" / "cli.py")
    assert spec is not None
    assert spec.loader is not None
    cli = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cli)
    try:
        code: int = cli.main(argv)
    except KeyboardInterrupt:  # while torch is imported
        sys.stderr.write("refilled: stopped by SIGINT\n")
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
