"""Settings of the controller, and of where processes go."""

from __future__ import annotations

import math
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class ControlConfig:
    updates_per_call: int = 8  # learner updates per train call; more means fewer, longer calls
    log_period_s: float = 5.0  # seconds between metric lines; longer writes less
    checkpoint_every_env_steps: int = 2_000  # env steps between checkpoints; lower loses less
    checkpoint_every_min: float = 10.0  # minutes between checkpoints at most; lower loses less
    keep_checkpoints: int = 2  # newest checkpoints kept on disk, beside the best evaluation's
    # fsspec URI (file://, s3://, gs://, ...) or shared folder that each checkpoint is copied to
    # beside training, and gone on from where the run directory has none; empty copies nothing
    checkpoint_uri: str = ""
    collect_deadline_s: float = 120.0  # an env actor silent for longer is replaced
    call_deadline_s: float = 300.0  # any other child silent for longer has failed
    bad_updates_before_rollback: int = 8  # updates in a row with NaN or infinity; lower acts sooner
    max_rollbacks: int = 3  # roll-backs of the learner that lead no further before the run stops
    auto_memory: bool = False  # out of memory early on: go on with smaller settings, and say which
    max_restarts: int = 20  # failures of one child an hour that are made good; then it is out
    min_actors: int = 1  # env actors left, below which the run stops; more stops it sooner
    max_hours: float = 0.0  # hours after which the run stops with a checkpoint; 0 sets no limit
    stop_budget_s: float = 120.0  # seconds that a run which was told to stop has for its checkpoint
    # join a cluster that runs without a token and that other machines may reach; they then can
    # run code on it, so only inside a network where nobody else is
    allow_open_cluster: bool = False

    def __post_init__(self) -> None:
        for name in (
            "updates_per_call",
            "checkpoint_every_env_steps",
            "keep_checkpoints",
            "min_actors",
            "bad_updates_before_rollback",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"control.{name} must be at least 1, got {getattr(self, name)}")
        for name in (
            "log_period_s",
            "checkpoint_every_min",
            "collect_deadline_s",
            "call_deadline_s",
            "stop_budget_s",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"control.{name} must be above 0, got {getattr(self, name)}")
        check_no_password("control.checkpoint_uri", self.checkpoint_uri)
        for name in ("max_rollbacks", "max_restarts", "max_hours"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"control.{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class PlacementConfig:
    """Where the processes of a run go, and which share of a GPU each asks Ray for.

    Shares bound nothing but what is placed on a GPU; they matter with a learner on a GPU only.
    """

    # learner, replay and weight server on one node where one has room for them, which is kept for
    # them if one of them dies; false leaves each to Ray, and lets it leave a node that is to go
    pack: bool = True
    learner_gpus: float = 0.4  # of the learner; with several learner.n_devices a whole one each
    prior_engine_gpus: float = 0.3  # of all prior engines together, in equal shares
    search_gpus: float = 0.2  # of the search service, with search.mode served
    reanalyser_gpus: float = 0.1  # of the reanalyser
    env_actor_gpus: float = 0.0  # of each env actor that searches itself; 0 searches on its CPU

    def __post_init__(self) -> None:
        for name in ("learner_gpus", "search_gpus", "reanalyser_gpus"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"placement.{name} must lie in (0, 1], got {getattr(self, name)}")
        if not 0.0 < self.prior_engine_gpus < math.inf:
            raise ValueError(
                f"placement.prior_engine_gpus must be above 0, got {self.prior_engine_gpus}"
            )
        if not 0.0 <= self.env_actor_gpus <= 1.0:
            raise ValueError(
                f"placement.env_actor_gpus must lie in [0, 1], got {self.env_actor_gpus}"
            )


def check_no_password(name: str, uri: str) -> None:
    """Raises ValueError, without the value, if setting `name` is a scheme://user:password@place."""
    if "://" in uri and urlsplit(uri).password is not None:
        raise ValueError(
            f"{name} holds a password, which would be kept in settings and logs; leave it out, and "
            "let the driver of such URIs find it in its files or environment variables"
        )
