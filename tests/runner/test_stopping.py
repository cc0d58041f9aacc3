"""Requests to stop, at once or at the end of what belongs together."""

import signal

import pytest

from gkd_plugin.runner.stopping import SIGNALS, Stopped, stoppable, undivided


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_request_stops_at_once_or_after_what_is_undivided(number, code):
    done = []
    with stoppable():
        with pytest.raises(Stopped, match=f"^{number.name}$") as caught:
            signal.raise_signal(number)
        assert caught.value.exit_code == code

        def step():
            with undivided():
                signal.raise_signal(number)
                done.append("all of the step")

        with pytest.raises(Stopped, match=number.name):
            step()
    assert done == ["all of the step"]


def test_a_second_request_does_not_wait():
    def step():
        with undivided():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)

    with stoppable():
        with pytest.raises(KeyboardInterrupt, match=r"^SIGINT$") as caught:
            step()
        assert not isinstance(caught.value, Stopped)
        with undivided():  # the first one is forgotten
            pass


def test_the_handlers_before_come_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with stoppable():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
