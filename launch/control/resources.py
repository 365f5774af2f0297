"""What each child asks of the machines, in cores and in shares of a GPU."""

from __future__ import annotations

import math
from dataclasses import dataclass

from launch.config import Config
from launch.control.runtime import Resources

LIGHT_CPUS = 0.1  # of children that mostly wait; a local Ray is told that it has enough
PACKED_ROLES = ("learner", "replay", "weight_server")


@dataclass(frozen=True, slots=True)
class Placement:
    """Logical resources the whole fleet asks for."""

    num_cpus: float
    num_gpus: float


def resources_of(config: Config, device: str) -> dict[str, Resources]:
    """Of one child, by its role.

    device: cpu or cuda, of the learner and of whoever shares GPUs with it
    """
    shares, n_devices = config.placement, config.learner.n_devices
    gpus = dict.fromkeys(("learner", "prior_engine", "search", "reanalyser", "env_actor"), 0.0)
    if device == "cuda":
        gpus = {
            "learner": float(n_devices) if n_devices > 1 else shares.learner_gpus,
            "prior_engine": shares.prior_engine_gpus / config.prior.num_engines,
            "search": shares.search_gpus,
            "reanalyser": shares.reanalyser_gpus,
            "env_actor": shares.env_actor_gpus if config.search.mode == "local" else 0.0,
        }
    # Only children whose handle others hold come back by themselves; the controller replaces the
    # rest. A shard among others may come back empty; alone it would take the run's data with it.
    return {
        "learner": Resources(num_cpus=float(n_devices), num_gpus=gpus["learner"]),
        "replay": Resources(num_cpus=LIGHT_CPUS, restartable=config.replay.num_shards > 1),
        "weight_server": Resources(num_cpus=LIGHT_CPUS, restartable=True),
        "prior_engine": Resources(num_gpus=gpus["prior_engine"], restartable=True),
        "search": Resources(num_gpus=gpus["search"], restartable=True),
        "reanalyser": Resources(num_gpus=gpus["reanalyser"]),
        "env_actor": Resources(num_gpus=gpus["env_actor"], spreads=True),
        "language_learner": Resources(num_cpus=LIGHT_CPUS),
        "monitor": Resources(num_cpus=LIGHT_CPUS),
        "evaluator": Resources(num_cpus=LIGHT_CPUS),
    }


def counts_of(config: Config) -> dict[str, int]:
    """How many children of each role the run has, in the order in which they start."""
    has_prior = config.prior.enabled
    return {
        "replay": config.replay.num_shards,
        "weight_server": 1,
        "learner": 1,
        "prior_engine": config.prior.num_engines * has_prior,
        "language_learner": int(has_prior and config.language.enabled),
        "search": int(config.search.mode == "served"),
        "monitor": 1,
        "env_actor": config.acting.num_actors,
        "evaluator": 1,
        "reanalyser": int(config.reanalysis.share > 0.0),
    }


def placement(config: Config, device: str) -> Placement:
    """What all children of `config` need; GPUs are counted whole."""
    of_one = resources_of(config, device)
    counts = counts_of(config).items()
    gpus = sum(n * of_one[role].num_gpus for role, n in counts)
    return Placement(
        num_cpus=sum(n * of_one[role].num_cpus for role, n in counts),
        num_gpus=float(math.ceil(gpus - 1e-6)),
    )
