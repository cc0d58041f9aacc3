"""A part that is left out is no error of the user's."""

from gkd_plugin.diagnose.left_out import LeftOut
from gkd_plugin.errors import ConfigError


def test_it_is_not_taken_for_bad_input():
    assert not issubclass(LeftOut, ConfigError | OSError)
    assert str(LeftOut("no rows")) == "no rows"
