"""A user's own cluster on one page of YAML: nodes with their prices, and speeds measured on them.

nodes:
  - {name: head, cpus: 16, gpus: 1, memory_gib: 64, price_per_hour: 1.8}
  - {name: env, count: 32, cpus: 32, memory_gib: 128, price_per_hour: 1.1}
measured:
  env_step_ms: 41.0
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from launch.config import ConfigError, overlay
from launch.control.capacity import Amounts, Room
from launch.setting_types import shown

MOST_NODES = 100_000
LARGEST_FILE_BYTES = 1_000_000
REQUIRED = ("cpus", "memory_gib")


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """Nodes that are all alike."""

    name: str = "node"
    count: int = 1
    cpus: float = 0.0  # that Ray may give away
    gpus: float = 0.0
    memory_gib: float = 0.0
    price_per_hour: float = 0.0  # of one node, in any currency

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST_NODES:
            raise ValueError(f"count must lie in [1, {MOST_NODES}], got {self.count}")
        for name in ("cpus", "gpus", "memory_gib", "price_per_hour"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Measured:
    """Speeds of the parts of a run; the defaults are this project's own (docs/scaling.md).

    Each was measured with `mario-quick` or its shapes on two cores without a GPU, so that another
    game, preset or machine has others. What prints them: benchmarks/run_profile.py (env_step_ms),
    learner_speed.py (update_ms), replay_throughput.py (shard_mb_per_s), simulated_scale.py --ray
    (driver_us_per_call), prior_engine.py (engine_states_per_s).
    """

    env_step_ms: float = 37.8  # an env actor's own time for one env step
    update_ms: float = 64.1
    shard_mb_per_s: float = 632.0
    driver_us_per_call: float = 1_000.0
    engine_states_per_s: float = 311.6

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a cluster file says."""

    groups: tuple[NodeGroup, ...]
    measured: Measured

    @property
    def nodes(self) -> list[Room]:
        """Every node; the first one holds the driver."""
        return [
            Room(
                group.name if group.count == 1 else f"{group.name}-{i}",
                Amounts(group.cpus, group.gpus, group.memory_gib),
            )
            for group in self.groups
            for i in range(group.count)
        ]

    @property
    def price_per_hour(self) -> float:
        return sum(group.count * group.price_per_hour for group in self.groups)


def read_cluster(path: Path) -> Cluster:
    """Raises ConfigError naming file, key, value and what is allowed."""
    content = _content(path)
    unknown = content.keys() - {"nodes", "measured"}
    if unknown:
        first = min(map(str, unknown))
        raise ConfigError(f"{path}: there is no key {first[:80]!r}; allowed are nodes and measured")
    groups = content.get("nodes")
    if not isinstance(groups, list) or not groups:
        raise ConfigError(
            f"{path}: nodes must be a list of at least one group with cpus and memory_gib, got "
            f"{shown(groups)}"
        )
    measured = content.get("measured") or {}
    if not isinstance(measured, Mapping):
        raise ConfigError(f"{path}: measured must hold settings, got {shown(measured)}")
    return Cluster(
        tuple(_group(group, f"{path}: nodes[{i}]") for i, group in enumerate(groups)),
        overlay(Measured(), measured, where=f"{path}: measured"),
    )


def _content(path: Path) -> Mapping[str, object]:
    try:
        n_bytes = path.stat().st_size
        if n_bytes > LARGEST_FILE_BYTES:
            raise ConfigError(f"{path} has {n_bytes:,} bytes, allowed are {LARGEST_FILE_BYTES:,}")
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"cluster file {path} can't be read: {error.strerror}; docs/scaling.md shows one"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"cluster file {path} is no YAML: {reason}") from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path} must hold nodes, got {shown(content)}; docs/scaling.md has one")
    return content


def _group(content: object, where: str) -> NodeGroup:
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where} must hold settings such as cpus: 32, got {shown(content)}")
    group = overlay(NodeGroup(), content, where=where)
    for name in REQUIRED:
        if not getattr(group, name) > 0.0:
            raise ConfigError(f"{where}: {name} is missing or 0; say how much one node has")
    return group
