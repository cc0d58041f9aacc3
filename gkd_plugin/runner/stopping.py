"""Requests to stop: Ctrl-C, and the signals by which schedulers announce that a machine will be taken away."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(KeyboardInterrupt):
    """One of :data:`SIGNALS` has come; ``str()`` gives its name."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class _Requests:
    """What has come while it had to wait."""

    waits = False
    number: int | None = None


@contextmanager
def stoppable() -> Iterator[None]:
    """Lets each of :data:`SIGNALS` raise :class:`Stopped`, at once or at the end of what is :func:`undivided`."""
    before = {number: signal.signal(number, _stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, _frame: Any) -> None:
    if not _Requests.waits:
        raise Stopped(number)
    if _Requests.number is not None:  # the second one does not wait, and nothing is kept of what it divides
        raise KeyboardInterrupt(signal.Signals(number).name)
    _Requests.number = number


@contextmanager
def undivided() -> Iterator[None]:
    """What belongs together, such as an update and the count of it: a request to stop waits for the end."""
    _Requests.waits, _Requests.number = True, None
    try:
        yield
    finally:
        _Requests.waits = False
    if _Requests.number is not None:
        raise Stopped(_Requests.number)
