"""Learning rate and exploration that follow the recent return: a rule without clocks or files.

Finished episodes are looked at in blocks. A block whose mean return is above the reference by more
than some share of a standard deviation is an improvement; several blocks without one are a stall.
A stall makes exploration stronger and the step size smaller, an improvement goes the other way,
both by a factor, within bounds, and not again before a cool-down of env steps is over.
The same episodes in the same order give the same changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

LARGEST = 1e100  # return that is taken in; the square of a larger one may overflow
TINY = 1e-12  # relative: returns that differ by less are equal up to rounding


@dataclass(frozen=True, slots=True)
class AdaptiveConfig:
    learning_rate: bool = False  # scale the learner's step size
    exploration: bool = False  # scale temperature, root noise and the policy's entropy bonus

    episodes_per_look: int = 50  # episodes compared as one mean; more is surer and later
    stall_looks: int = 4  # looks without improvement that are a stall; more waits longer
    min_gain: float = 0.25  # improvement, in standard deviations of the reference's returns
    cooldown_env_steps: int = 20_000  # env steps between two changes at least; more is calmer

    learning_rate_factor: float = 0.5  # times the step size at a stall; above 1 raises it instead
    learning_rate_min: float = 0.1  # smallest scale of the step size
    learning_rate_max: float = 1.0  # largest scale of the step size
    exploration_factor: float = 1.25  # times exploration at a stall; higher moves faster
    exploration_min: float = 0.5  # smallest scale of exploration, where returns keep improving
    exploration_max: float = 2.0  # largest scale of exploration, where they do not

    def __post_init__(self) -> None:
        for name in ("episodes_per_look", "stall_looks"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "be at least 1")
        for name in ("min_gain", "cooldown_env_steps"):
            value = getattr(self, name)
            _require(0 <= value < math.inf, name, value, "not be negative, and be finite")
        factors = (("learning_rate_factor", 0.0), ("exploration_factor", 1.0))
        for name, least in factors:
            value = getattr(self, name)
            rule = f"lie above {least:g} and be at most 10"
            _require(least < value <= 10.0, name, value, rule)
        for name in ("learning_rate", "exploration"):
            low, high = getattr(self, f"{name}_min"), getattr(self, f"{name}_max")
            _require(0.01 <= low <= 1.0, f"{name}_min", low, "lie in [0.01, 1]")
            _require(1.0 <= high <= 100.0, f"{name}_max", high, "lie in [1, 100]")

    @property
    def is_on(self) -> bool:
        return self.learning_rate or self.exploration


@dataclass(frozen=True, slots=True)
class AdaptiveState:
    """All that the rule remembers; JSON keeps it exactly.

    block:          returns of the block that fills now
    reference_mean: of the best block since the last change; None before the first
    reference_std:  of the same block
    n_stalled:      blocks since then without improvement
    changed_at:     env steps at the last change; None before the first
    """

    learning_rate: float = 1.0
    exploration: float = 1.0
    block: tuple[float, ...] = ()
    reference_mean: float | None = None
    reference_std: float = 0.0
    n_stalled: int = 0
    changed_at: int | None = None

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "block": list(self.block)}

    @classmethod
    def from_json(cls, content: object) -> AdaptiveState:
        """What `to_json` made. Raises ValueError naming the field that can't be one."""
        if not isinstance(content, Mapping):
            raise ValueError(f"adaptive must hold counters, got {str(content)[:100]}")
        is_new = content.get("reference_mean") is None
        is_unchanged = content.get("changed_at") is None
        return cls(
            learning_rate=_number(content, "learning_rate", least=0.0),
            exploration=_number(content, "exploration", least=0.0),
            block=_block(content),
            reference_mean=None if is_new else _number(content, "reference_mean"),
            reference_std=_number(content, "reference_std", least=0.0),
            n_stalled=_count(content, "n_stalled"),
            changed_at=None if is_unchanged else _count(content, "changed_at"),
        )


@dataclass(frozen=True, slots=True)
class Scales:
    """What settings are multiplied by; 1 changes nothing."""

    learning_rate: float = 1.0
    exploration: float = 1.0


def scales_of(state: AdaptiveState, config: AdaptiveConfig) -> Scales:
    """Those in force: within the bounds, which may be newer than the state, and 1 where off."""
    return Scales(
        _clip(state.learning_rate, config, "learning_rate") if config.learning_rate else 1.0,
        _clip(state.exploration, config, "exploration") if config.exploration else 1.0,
    )


@dataclass(frozen=True, slots=True)
class Change:
    """cause: stall or improvement"""

    cause: str
    mean_return: float
    reference: float
    learning_rate: float
    exploration: float


def observe(
    state: AdaptiveState, config: AdaptiveConfig, episode_return: float, env_steps: int
) -> tuple[AdaptiveState, Change | None]:
    """What follows from one more finished episode, at `env_steps` of the run.

    A return that is not finite, or beyond LARGEST, is passed over.
    """
    if not abs(episode_return) <= LARGEST:
        return state, None
    block = (*state.block, episode_return)
    if len(block) < config.episodes_per_look:
        return replace(state, block=block), None
    mean, std = float(np.mean(block)), float(np.std(block))
    state = replace(state, block=())
    if state.reference_mean is None:
        return replace(state, reference_mean=mean, reference_std=std, n_stalled=0), None
    reference = state.reference_mean
    least_gain = max(config.min_gain * state.reference_std, TINY * max(1.0, abs(reference)))
    is_better = mean > reference + least_gain
    n_stalled = 0 if is_better else state.n_stalled + 1
    is_stalled = n_stalled >= config.stall_looks
    cause = "improvement" if is_better else "stall" if is_stalled else ""
    if is_better:
        state = replace(state, reference_mean=mean, reference_std=std)
    state = replace(state, n_stalled=n_stalled)
    if not cause or not _may_change(state, config, env_steps):
        return state, None
    return _changed(state, config, cause, mean, reference, env_steps)


def _may_change(state: AdaptiveState, config: AdaptiveConfig, env_steps: int) -> bool:
    since = state.changed_at
    return since is None or env_steps - since >= config.cooldown_env_steps


def _changed(
    state: AdaptiveState,
    config: AdaptiveConfig,
    cause: str,
    mean: float,
    reference: float,
    env_steps: int,
) -> tuple[AdaptiveState, Change | None]:
    """One step of every scale that is on; none, and no event, where all are at their bounds."""
    power = 1.0 if cause == "stall" else -1.0
    rate, exploration = state.learning_rate, state.exploration
    if config.learning_rate:
        rate = _clip(rate * config.learning_rate_factor**power, config, "learning_rate")
    if config.exploration:
        exploration = _clip(exploration * config.exploration_factor**power, config, "exploration")
    if (rate, exploration) == (state.learning_rate, state.exploration):
        return state, None
    # The next reference is a block that was played under the new scales.
    state = AdaptiveState(rate, exploration, changed_at=env_steps)
    return state, Change(cause, mean, reference, rate, exploration)


def _clip(value: float, config: AdaptiveConfig, name: str) -> float:
    low, high = getattr(config, f"{name}_min"), getattr(config, f"{name}_max")
    return min(high, max(low, value))


def _block(content: Mapping[str, object]) -> tuple[float, ...]:
    block = content.get("block")
    if not isinstance(block, Sequence) or isinstance(block, str) or len(block) > 1_000_000:
        raise ValueError(f"adaptive.block must be a list of returns, got {str(block)[:100]}")
    return tuple(_number({"block": value}, "block") for value in block)


def _number(content: Mapping[str, object], name: str, *, least: float = -math.inf) -> float:
    value = content.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not max(least, -LARGEST) <= value <= LARGEST:
        raise ValueError(f"adaptive.{name} must be a finite number, got {str(value)[:100]}")
    return float(value)


def _count(content: Mapping[str, object], name: str) -> int:
    value = content.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"adaptive.{name} must be a whole number, got {str(value)[:100]}")
    return value


def _require(holds: bool, name: str, value: float, rule: str) -> None:
    if not holds:
        raise ValueError(f"adaptive.{name} must {rule}, got {value}")
