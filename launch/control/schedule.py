"""Who learns when: world model and language model at the same time, or one after the other.

Plain bookkeeping without calls: the controller asks how many updates it may issue, and tells what
was issued and what came of it. Names and meanings of the schedules follow PriorZero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Phase = Literal["wm", "llm"]


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """Turns of world model (wm) and language model (llm), and of playing and learning."""

    # parallel: both at once; sequential: round by round; alternating: in long phases
    name: Literal["parallel", "sequential", "alternating"] = "parallel"
    wm_train_freq: int = 64  # world-model updates of a round; alternating has wm_update_iters
    llm_train_freq: int = 8  # language-model updates of a round, in one call
    wm_update_iters: int = 2_000  # world-model updates of an alternating phase
    llm_update_iters: int = 200  # language-model updates of an alternating phase
    start_phase: Phase = "wm"  # who begins, with alternating
    # batches that playing may be ahead of learning; 0: play and learning take turns, -1: as far as
    # the limiter lets it
    off_policy_degree: int = -1

    def __post_init__(self) -> None:
        if self.name not in ("parallel", "sequential", "alternating"):
            raise ValueError(f"name must be parallel, sequential or alternating, got {self.name!r}")
        if self.start_phase not in ("wm", "llm"):
            raise ValueError(f"start_phase must be wm or llm, got {self.start_phase!r}")
        for name in ("wm_train_freq", "llm_train_freq", "wm_update_iters", "llm_update_iters"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.off_policy_degree < -1:
            raise ValueError(
                f"off_policy_degree must be at least -1, got {self.off_policy_degree}; 0 takes "
                "turns, -1 leaves it to the limiter"
            )


class Schedule:
    """Owned by the controller. Without a language model the world model always may learn."""

    def __init__(self, config: ScheduleConfig, *, has_language: bool) -> None:
        self._config = config
        self._is_strict = has_language and config.name != "parallel"
        is_long = config.name == "alternating"
        self._sizes: dict[Phase, int] = {
            "wm": config.wm_update_iters if is_long else config.wm_train_freq,
            "llm": config.llm_update_iters if is_long else config.llm_train_freq,
        }
        self.phase: Phase = config.start_phase if self._is_strict and is_long else "wm"
        self._issued = 0  # updates of this phase, or of the world model since the last llm call
        self._done = 0

    def wm_updates(self, most: int) -> int:
        """How many of up to `most` world-model updates may be issued now."""
        if not self._is_strict:
            return most
        return min(most, self._left) if self.phase == "wm" else 0

    def llm_updates(self, most: int) -> int:
        """How many language-model updates are due; `most` bounds a call of a long phase."""
        if self._is_strict:
            return min(most, self._left) if self.phase == "llm" else 0
        return self._sizes["llm"] if self._done >= self._sizes["wm"] else 0

    def issued(self, who: Phase, n_updates: int) -> None:
        if self._is_strict:
            assert who == self.phase, (who, self.phase)
            self._issued += n_updates
        elif who == "llm":
            self._done = 0

    def done(self, who: Phase, n_updates: int, n_asked: int) -> bool:
        """What a call of `n_asked` updates came to; whether the phase is over with that.

        A call that could do nothing ends a phase of the language model: there is nothing to learn
        from yet, and the world model must not wait for it.
        """
        if not self._is_strict:
            self._done += n_updates if who == "wm" else 0
            return False
        if who != self.phase:
            return False  # of a phase that was given up
        self._done += n_updates
        self._issued -= n_asked - n_updates
        is_over = self._done >= self._sizes[who] or (who == "llm" and n_updates < n_asked)
        if is_over:
            self.turn()
        return is_over

    def lost(self, who: Phase, n_asked: int) -> None:
        """A call will not be answered."""
        if self._is_strict and who == self.phase:
            self._issued = max(self._issued - n_asked, self._done)

    def turn(self) -> None:
        """The other one's turn."""
        self.phase = "llm" if self.phase == "wm" else "wm"
        self._issued = self._done = 0

    @property
    def _left(self) -> int:
        return max(self._sizes[self.phase] - self._issued, 0)
