"""Paces learning against acting by samples per insert, with Reverb's semantics, without blocking.

The controller asks before it issues a call; nobody ever waits inside an actor. With
`error = inserted * samples_per_insert - sampled`, inserting is allowed while the error stays at or
below `error_max`, sampling while it stays at or above `error_min` (Cassirer et al. 2021,
"Reverb: a framework for experience replay", rate limiters).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class RateLimiterConfig:
    samples_per_insert: float = 16.0  # sampled positions per inserted position; higher learns more
    tolerance: float = 0.0  # share of replay.min_positions by which a side may lead; 0 = least

    def __post_init__(self) -> None:
        if not self.samples_per_insert > 0:
            raise ValueError(
                f"limiter.samples_per_insert must be above 0, got {self.samples_per_insert}"
            )
        if not self.tolerance >= 0:
            raise ValueError(
                f"limiter.tolerance must not be negative, got {self.tolerance}; 0 is the least "
                "with which no two sides can wait for each other"
            )


ROUNDING = 1e-12  # a tolerance computed by the same formula in another order is not refused


class RateLimiter:
    """Owned by the controller, one thread. Positions are trainable start positions."""

    def __init__(
        self,
        config: RateLimiterConfig,
        *,
        min_positions: int,
        sample_chunk: int,
        insert_chunk: int,
    ) -> None:
        """`min_positions`: positions in replay before learning starts. `sample_chunk`: positions
        that the train calls in flight may draw; `insert_chunk`: positions that all collect calls
        in flight may still insert. Both chunks set how wide the band must be so that no state has
        both sides waiting. ValueError where the configured tolerance makes it narrower.
        """
        self.config = config
        self.min_positions = min_positions
        ratio = config.samples_per_insert
        least = insert_chunk * ratio + sample_chunk
        half = config.tolerance * min_positions * ratio if config.tolerance else least
        if half < least * (1.0 - ROUNDING):
            enough = math.ceil(1e3 * least / (min_positions * ratio)) / 1e3
            raise ValueError(
                f"limiter.tolerance={config.tolerance} could leave acting and learning waiting for "
                "each other: tolerance * replay.min_positions * samples_per_insert = "
                f"{config.tolerance:g} * {min_positions} * {ratio:g} = {half:g} samples must be at "
                "least what calls in flight insert and sample, "
                f"{insert_chunk} * {ratio:g} + {sample_chunk} = {least:g}; raise it to "
                f"{enough:.12g}, or set it to 0 for the least that works"
            )
        half = max(half, least)
        offset = min_positions * ratio
        self.error_min = offset - half
        self.error_max = offset + half
        self.inserted = 0
        self.sampled = 0

    @property
    def error(self) -> float:
        return self.inserted * self.config.samples_per_insert - self.sampled

    @property
    def ratio(self) -> float:
        """Measured samples per insert beyond the warm-up."""
        warm = self.inserted - self.min_positions
        return self.sampled / warm if warm > 0 else 0.0

    def may_insert(self) -> bool:
        return self.inserted < self.min_positions or self.error <= self.error_max

    def may_sample(self, n_positions: int) -> bool:
        if self.inserted < self.min_positions:
            return False
        return self.error - n_positions >= self.error_min

    def insert(self, n_positions: int) -> None:
        if n_positions < 0:
            raise ValueError(f"inserted positions must not be negative, got {n_positions}")
        self.inserted += n_positions

    def sample(self, n_positions: int) -> None:
        if n_positions < 0:
            raise ValueError(f"sampled positions must not be negative, got {n_positions}")
        self.sampled += n_positions

    def state(self) -> dict[str, float]:
        return {"inserted": self.inserted, "sampled": self.sampled, **asdict(self.config)}

    def restore(self, state: dict[str, float]) -> None:
        """Takes the counters back; a changed ratio rebases them, so that no side storms ahead."""
        self.inserted = int(state["inserted"])
        self.sampled = int(state["sampled"])
        if state["samples_per_insert"] != self.config.samples_per_insert:
            past_warm_up = max(0, self.inserted - self.min_positions)
            self.sampled = round(past_warm_up * self.config.samples_per_insert)
