"""The thread that looks for slow steps while they are under way, and has stacks taken of them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from launch.tracing.config import TraceConfig
from launch.tracing.in_flight import Ask, InFlight
from launch.tracing.slow_steps import SlowSteps

STEPS = ("collect", "train", "add", "refresh")
LONGEST_NAP_S = 0.5
LONGEST_END_S = 5.0  # for stacks that are being taken when a run ends

# The step, its seconds so far, and whether it is over.
Look = Callable[[Ask, float, bool], None]


class SlowWatch:
    """Sleeps most of the time; `look` is called in its thread, so that nobody waits for stacks."""

    def __init__(
        self, config: TraceConfig, in_flight: InFlight, look: Look, now: Callable[[], float]
    ) -> None:
        self._threshold_s = config.slow_step_s
        self._steps = SlowSteps(config.slow_steps, config.window_s)
        self._in_flight = in_flight
        self._look = look
        self._now = now
        self._over: queue.SimpleQueue[tuple[Ask, float]] = queue.SimpleQueue()
        self._is_ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Nothing without a threshold."""
        if self._threshold_s:
            self._thread = threading.Thread(target=self._run, name="slow-steps", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._is_ended.set()
        if self._thread is not None:
            self._thread.join(LONGEST_END_S)
            self._thread = None

    def ended(self, ask: Ask, seconds: float) -> None:
        """A call was answered; called by the driver's thread."""
        if self._thread is not None and self._is_slow(ask, seconds):
            self._over.put((ask, seconds))

    def _run(self) -> None:
        nap_s = min(LONGEST_NAP_S, self._threshold_s / 4)
        while not self._is_ended.wait(nap_s):
            now = self._now()
            for work in self._in_flight.work():
                seconds = now - work.since
                if self._is_slow(work.ask, seconds):
                    self._count(work.ask, seconds, is_over=False)
            while not self._over.empty():
                ask, seconds = self._over.get()
                if not ask.is_counted:
                    self._count(ask, seconds, is_over=True)

    def _is_slow(self, ask: Ask, seconds: float) -> bool:
        is_step = ask.method in STEPS and not ask.is_first
        return is_step and not ask.is_counted and seconds > self._threshold_s

    def _count(self, ask: Ask, seconds: float, *, is_over: bool) -> None:
        ask.is_counted = True
        if self._steps.slow(self._now()):
            self._look(ask, seconds, is_over)
