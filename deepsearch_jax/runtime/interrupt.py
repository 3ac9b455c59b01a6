"""Stopping a run from outside: SIGTERM or Ctrl-C asks, a second Ctrl-C insists."""

import signal
import threading
from types import FrameType


class Interrupted(Exception):
    """Raised at the next safe place after a stop was asked for; the state of the last finished step is intact."""


class StopRequest:
    """Turns SIGTERM and SIGINT into a question that the run asks itself at safe places.

    Attributes:
      signals: those that are taken over.
    """

    signals: tuple[int, ...] = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self._asked: str | None = None
        self._previous: dict[int, object] = {}

    def install(self) -> None:
        """Takes over the signals; only the main thread may do that, elsewhere this does nothing."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in self.signals:
            self._previous[number] = signal.signal(number, self._ask)

    def restore(self) -> None:
        """Gives the signals back to whoever had them."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = signal.Signals(number).name

    def check(self) -> None:
        """Raises Interrupted if a stop was asked for."""
        if self._asked is not None:
            raise Interrupted(self._asked)
