"""What a run of many env actors does per second, from the measured speeds of its parts.

Every line is a product or a quotient of settings and measurements; docs/scaling.md walks through
them. Nothing here was measured at the size that is asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from launch.config import Config
from launch.control.cluster_file import Measured
from replay_service import GameSpec

BYTES_BESIDE_FRAME = 64  # of a position: scalars, policy, legal actions (docs/benchmarks.md)
FLOAT32_BYTES = 4
SECONDS_PER_HOUR = 3_600.0
MILLION = 1e6
DRIVER_GOAL_PERCENT = 30.0


@dataclass(frozen=True, slots=True)
class Rates:
    """Per second, where nothing else is said."""

    environments: int
    play_env_steps: float  # that the actors could take
    learn_env_steps: float  # that the learner can make its samples per insert of
    env_steps: float  # the smaller of the two
    segments: float
    segment_bytes: int
    replay_bytes: float
    n_shards: int  # that take so many bytes
    updates: float
    calls: float  # of the driver
    driver_percent: float  # of one core
    weight_bytes: int  # of one version
    versions: float
    fan_out_bytes: float  # from the weight server's node to all others, at most
    n_engines: int  # without any answer from a cache; 0 without a prior
    price_per_million: float  # env steps

    @property
    def is_learner_the_limit(self) -> bool:
        return self.learn_env_steps < self.play_env_steps


def rates_of(
    config: Config,
    spec: GameSpec,
    measured: Measured,
    *,
    n_parameters: int,
    n_actor_nodes: int,
    price_per_hour: float,
) -> Rates:
    """n_parameters: of the world model; n_actor_nodes: nodes that hold env actors"""
    acting, learner = config.acting, config.learner
    play = acting.num_actors * 1e3 / measured.env_step_ms
    most_updates = 1e3 / measured.update_ms
    learn = most_updates * learner.batch_size / config.limiter.samples_per_insert
    steps = min(play, learn)
    segment_bytes = _segment_bytes(config, spec)
    segments = steps / acting.segment_length
    updates = steps * config.limiter.samples_per_insert / learner.batch_size
    collects = steps / acting.collect_steps
    calls = 2.0 * collects + updates / config.control.updates_per_call  # collect and add, train
    weight_bytes = n_parameters * FLOAT32_BYTES
    versions = updates / learner.publish_every
    questions = steps / config.prior.query_every if config.prior.enabled else 0.0
    return Rates(
        environments=acting.num_actors * acting.envs_per_actor,
        play_env_steps=play,
        learn_env_steps=learn,
        env_steps=steps,
        segments=segments,
        segment_bytes=segment_bytes,
        replay_bytes=segments * segment_bytes,
        n_shards=max(1, math.ceil(segments * segment_bytes / (measured.shard_mb_per_s * MILLION))),
        updates=updates,
        calls=calls,
        driver_percent=calls * measured.driver_us_per_call * 100.0 / MILLION,
        weight_bytes=weight_bytes,
        versions=versions,
        fan_out_bytes=versions * weight_bytes * n_actor_nodes,
        n_engines=math.ceil(questions / measured.engine_states_per_s),
        price_per_million=price_per_hour / SECONDS_PER_HOUR / steps * MILLION,
    )


def _segment_bytes(config: Config, spec: GameSpec) -> int:
    """Of one on its way to replay: its own positions, and those that it shares with the next."""
    frame_bytes = int(np.prod(spec.obs_shape)) * np.dtype(spec.obs_dtype).itemsize
    n_positions = config.acting.segment_length + config.targets.context_steps
    return n_positions * (frame_bytes + BYTES_BESIDE_FRAME)


Line = tuple[str, str, str]  # name, figure, how it comes about


def lines_of(rates: Rates, config: Config, measured: Measured) -> list[Line]:
    """For people."""
    acting = config.acting
    limit = "the learner is" if rates.is_learner_the_limit else "the env actors are"
    ratio = f"{config.limiter.samples_per_insert:g} samples per insert"
    driver = f"{measured.driver_us_per_call:g} us each; goal below {DRIVER_GOAL_PERCENT:g} %"
    lines = [
        (
            "environments",
            f"{rates.environments:,}",
            f"{acting.num_actors:,} env actors x {acting.envs_per_actor}",
        ),
        (
            "env steps, play alone",
            _per_second(rates.play_env_steps),
            f"{measured.env_step_ms:g} ms of an actor each",
        ),
        (
            "env steps, learner alone",
            _per_second(rates.learn_env_steps),
            f"{measured.update_ms:g} ms an update of {config.learner.batch_size}, {ratio}",
        ),
        ("env steps", _per_second(rates.env_steps), f"{limit} the limit"),
        ("segments", _per_second(rates.segments), f"{acting.segment_length} steps each"),
        (
            "bytes into replay",
            _bytes(rates.replay_bytes) + "/s",
            f"{_bytes(rates.segment_bytes)} a segment, its overlap included",
        ),
        (
            "replay shards",
            str(rates.n_shards),
            f"at {measured.shard_mb_per_s:g} MB/s each; settings have {config.replay.num_shards}",
        ),
        ("updates", _per_second(rates.updates), f"batch {config.learner.batch_size}, {ratio}"),
        (
            "calls of the driver",
            _per_second(rates.calls),
            f"collect and add a {acting.collect_steps} steps, train a "
            f"{config.control.updates_per_call} updates",
        ),
        ("driver", f"{rates.driver_percent:.1f} % of a core", driver),
        (
            "weights",
            _bytes(rates.weight_bytes),
            f"a version, every {config.learner.publish_every} updates: "
            f"{_per_second(rates.versions)}",
        ),
        ("weight fan-out", _bytes(rates.fan_out_bytes) + "/s at most", "once to each node"),
    ]
    if config.prior.enabled:
        why = f"at {measured.engine_states_per_s:g} states/s each, no answer from a cache"
        lines.append(("prior engines", str(rates.n_engines), why))
    if rates.price_per_million:
        lines.append(("a million env steps", f"{rates.price_per_million:,.2f}", "in your currency"))
    return lines


def advice_of(rates: Rates, config: Config) -> list[str]:
    """What the settings would have to be for that, one line each."""
    found = []
    if rates.is_learner_the_limit:
        idle = 1.0 - rates.learn_env_steps / rates.play_env_steps
        found.append(
            f"env actors would wait {idle:.1%} of their time for the learner: lower "
            "limiter.samples_per_insert, use a faster learner, or fewer actors"
        )
    wanted: list[tuple[str, int, int]] = [
        ("replay.num_shards", config.replay.num_shards, rates.n_shards)
    ]
    if config.prior.enabled:
        wanted.append(("prior.num_engines", config.prior.num_engines, rates.n_engines))
    found += [
        f"{name} is {has}, but {needs} are needed" for name, has, needs in wanted if has < needs
    ]
    if rates.driver_percent > DRIVER_GOAL_PERCENT:
        found.append(
            f"the driver would need {rates.driver_percent:.0f} % of a core: raise "
            f"acting.collect_steps (now {config.acting.collect_steps}), or put more environments "
            "in fewer actors"
        )
    return found


def _per_second(value: float) -> str:
    digits = 0 if value >= 100 else 1 if value >= 1 else 3
    return f"{value:,.{digits}f}/s"


def _bytes(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} B"
