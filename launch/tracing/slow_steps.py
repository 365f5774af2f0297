"""When slow steps are worth a look: several of them within a window, and one look a window."""

from __future__ import annotations

from collections import deque
from math import inf


class SlowSteps:
    """Counts slow steps; no clock, threads or files of its own."""

    def __init__(self, n_slow: int, window_s: float) -> None:
        self._n_slow = n_slow
        self._window_s = window_s
        self._times: deque[float] = deque(maxlen=n_slow)
        self._traced_at = -inf

    def slow(self, now: float) -> bool:
        """Notes a slow step; True if it is at least the n-th within the last `window_s` seconds,
        and the last True is at least as far back.

        now: seconds of any clock that never goes back
        """
        self._times.append(now)
        is_often = len(self._times) == self._n_slow and now - self._times[0] <= self._window_s
        if not is_often or now - self._traced_at < self._window_s:
            return False
        self._traced_at = now
        return True
