"""The finished run of the diagnostics, and a copy of it to work in."""

from tests.diagnose.conftest import finished, here  # noqa: F401
