"""Wall time by stage of what a process does, and who wants to hear of each stage as it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar

Listener = Callable[[str, float, float], None]  # stage, begin and end by time.perf_counter

# Set while a call is profiled; a context variable, since a process may serve calls side by side.
stage_listener: ContextVar[Listener | None] = ContextVar("stage_listener", default=None)


def add_seconds(seconds: dict[str, float], stage: str, since: float) -> float:
    """Adds the time since `since` to a stage of `seconds`; returns the present time.

    since: by time.perf_counter
    """
    now = time.perf_counter()
    seconds[stage] = seconds.get(stage, 0.0) + now - since
    listener = stage_listener.get()
    if listener is not None:
        listener(stage, since, now)
    return now
