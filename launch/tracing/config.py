"""Settings of what is written down about slow steps, and of the profile."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TraceConfig:
    # seconds that a step (one collect, train, add or refresh call) may take before it counts as
    # slow; 0 watches nothing
    slow_step_s: float = 0.0
    slow_steps: int = 3  # slow steps within the window before stacks are written; more waits longer
    window_s: float = 60.0  # seconds that slow steps are counted over; stacks come once in it
    profile: bool = False  # write profile.json, a Chrome trace of one window over all processes
    profile_s: float = 10.0  # seconds that the profile covers, from the first updates on

    def __post_init__(self) -> None:
        if not 0 <= self.slow_step_s <= 86_400:
            raise ValueError(
                f"trace.slow_step_s must lie in [0, 86400] seconds, got {self.slow_step_s}; "
                "0 watches nothing"
            )
        if self.slow_steps < 1:
            raise ValueError(f"trace.slow_steps must be at least 1, got {self.slow_steps}")
        for name in ("window_s", "profile_s"):
            if not 0 < getattr(self, name) <= 86_400:
                raise ValueError(
                    f"trace.{name} must lie in (0, 86400] seconds, got {getattr(self, name)}"
                )
