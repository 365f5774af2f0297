"""The thread that looks for calls that outlive their deadline while the driver is in them."""

from __future__ import annotations

import threading
from collections.abc import Callable

from launch.tracing.in_flight import Ask, InFlight

NAP_S = 0.5
LONGEST_END_S = 5.0  # for stacks that are being taken when a run ends


class DeadlineWatch:
    """Of a serial run, whose calls run in the driver's one thread: nobody can end them, but stacks
    of what they are at can be taken, unless they keep Python's lock.
    """

    def __init__(
        self, in_flight: InFlight, tell: Callable[[Ask], None], now: Callable[[], float]
    ) -> None:
        """`tell` is called in the thread that watches, once a call."""
        self._in_flight = in_flight
        self._tell = tell
        self._now = now
        self._told: Ask | None = None
        self._is_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="deadlines", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_ended.set()
        if self._thread.is_alive():
            self._thread.join(LONGEST_END_S)

    def _run(self) -> None:
        while not self._is_ended.wait(NAP_S):
            for work in self._in_flight.work():
                is_late = self._now() - work.ask.issued_at > work.ask.deadline_s
                if is_late and work.ask is not self._told:
                    self._told = work.ask
                    self._tell(work.ask)
