"""Requests to stop, at once or at the end of what belongs together."""

import os
import runpy
import signal
import threading

import pytest

from gkd_plugin.errors import ConfigError
from gkd_plugin.runner import stopping
from gkd_plugin.runner.stopping import SIGNALS, Stopped, heeded, stoppable, undivided


def asked(*numbers, then=None):
    """A part that does not divide, in which requests come."""
    with undivided():
        for number in numbers:
            signal.raise_signal(number)
        if then is not None:
            then.append("all of the step")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_request_stops_at_once_or_after_what_is_undivided(number):
    with stoppable(), pytest.raises(Stopped, match=f"^{number.name}$"):
        signal.raise_signal(number)
    done = []
    with stoppable(), pytest.raises(Stopped, match=number.name):
        asked(number, then=done)
    assert done == ["all of the step"]


def test_a_second_request_does_not_wait():
    with stoppable(), pytest.raises(KeyboardInterrupt, match=r"^SIGINT$") as caught:
        asked(signal.SIGTERM, signal.SIGINT)
    assert not isinstance(caught.value, Stopped)
    asked()  # both are forgotten


def test_a_request_that_python_drops_is_heeded_later():
    def dropped():
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)

    def fail(error):
        with heeded():
            raise error

    with stoppable():
        dropped()
        with pytest.raises(Stopped, match="SIGTERM"):
            asked()
        with pytest.raises(Stopped, match="SIGTERM"):
            fail(RuntimeError("worker exited"))
        with pytest.raises(ConfigError, match="mine"):
            fail(ConfigError("mine"))
    with stoppable(), pytest.raises(RuntimeError, match="worker exited"):
        fail(RuntimeError("worker exited"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 7), (signal.SIGUSR1, 7), (signal.SIGTERM, 143)])
def test_workers_end_with_their_process(number, code):
    with stoppable():
        child = os.fork()
        if child == 0:
            signal.raise_signal(number)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code


def test_the_handlers_before_come_back_and_other_threads_change_none():
    before = [signal.getsignal(number) for number in SIGNALS]
    found = []

    def look():
        with stoppable():
            found.append([signal.getsignal(number) for number in SIGNALS])

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [before]
    look()
    assert found[1] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_windows_lacks_a_signal(monkeypatch):
    monkeypatch.delattr(signal, "SIGUSR1")
    assert runpy.run_path(stopping.__file__)["SIGNALS"] == [signal.SIGINT, signal.SIGTERM]
