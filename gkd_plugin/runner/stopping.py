"""Requests to stop: Ctrl-C, and the signals by which schedulers announce that a machine will be taken away."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from gkd_plugin.errors import ConfigError

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Stopped(KeyboardInterrupt):
    """One of :data:`SIGNALS` has come; ``str()`` gives its name."""


class _Requests:
    """What has come to this process, and whether it has to wait."""

    process = 0
    name: str | None = None
    waits = False


@contextmanager
def handled_by(handler: Any, numbers: Iterable[int]) -> Iterator[None]:
    """Handles signals otherwise, in the main thread; Python lets no other thread say so."""
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers if is_main}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def stoppable() -> Iterator[None]:
    """Lets each of :data:`SIGNALS` raise :class:`Stopped`, at once or at the end of what is :func:`undivided`."""
    _Requests.process = os.getpid()
    try:
        with handled_by(_stop, SIGNALS), heeded():
            yield
    finally:
        _Requests.name = None


def _stop(number: int, _frame: Any) -> None:
    if os.getpid() != _Requests.process:  # a worker, which ends with the process that it works for
        if number == signal.SIGTERM:
            os._exit(128 + number)
        return
    name = signal.Signals(number).name
    if _Requests.name is not None:  # the second one does not wait, and nothing is kept of what it divides
        raise KeyboardInterrupt(name)
    _Requests.name = name
    if hasattr(signal, "SIGCHLD"):  # workers were asked, too: torch raises an error wherever it hears of their end
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if not _Requests.waits:
        raise Stopped(name)


@contextmanager
def heeded() -> Iterator[None]:
    """An error after a request to stop is the request: workers that were asked, too, have ended.

    The request itself may have been raised where Python drops errors: in a destructor, or as a worker began.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        if _Requests.name is None:
            raise
        raise Stopped(_Requests.name) from error


@contextmanager
def undivided() -> Iterator[None]:
    """What belongs together, such as an update and the count of it: a request to stop waits for the end."""
    _Requests.waits = True
    try:
        yield
    finally:
        _Requests.waits = False
    if _Requests.name is not None:
        raise Stopped(_Requests.name)
