"""What each child asks of the machines, in shares of a core and of a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from launch.config import Config
from launch.control.runtime import Resources

# Shares of a core: children that mostly wait ask for little. A local Ray is told it has enough.
# Only children whose handle others hold come back by themselves; the controller replaces the rest.
ACTOR_RESOURCES = Resources(num_cpus=1.0)
LEARNER_CPUS = 1.0
# Shares of the first GPU; they bound nothing but what Ray places there.
LEARNER_GPU_SHARE = 0.4
PRIOR_ENGINE_GPU_SHARE = 0.3
SEARCH_GPU_SHARE = 0.2
REANALYSIS_GPU_SHARE = 0.1
LIGHT = Resources(num_cpus=0.1)
LIGHT_RESTARTABLE = Resources(num_cpus=0.1, restartable=True)


@dataclass(frozen=True, slots=True)
class Placement:
    """Logical resources the whole fleet asks for."""

    num_cpus: float
    num_gpus: float


def placement(config: Config, device: str) -> Placement:
    """What `config` needs; whoever runs on a GPU shares the first one."""
    gpus = 1.0 if device == "cuda" else 0.0
    light = (3 + config.replay.num_shards) * LIGHT.num_cpus
    engines = 1.0 * config.prior.num_engines * config.prior.enabled + 1.0 * (
        config.search.mode == "served"
    )
    reanalyser = ACTOR_RESOURCES.num_cpus * (config.reanalysis.share > 0.0)
    return Placement(
        num_cpus=config.acting.num_actors * ACTOR_RESOURCES.num_cpus
        + LEARNER_CPUS
        + engines
        + reanalyser
        + light,
        num_gpus=gpus,
    )
