"""Whether a run fits on given nodes, what is missing, and how many env actors would fit.

Plain arithmetic without Ray: the nodes may be those of a file or of a living cluster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from launch.config import Config
from launch.control.resources import PACKED_ROLES, counts_of, resources_of
from launch.control.runtime import Resources

ROUNDING = 1e-9  # ten shares of 0.1 are one core

# GiB resident, of `mario-quick` (docs/benchmarks.md, where time and memory go); a replay shard has
# its ring beside that, and the driver's node the driver and Ray's daemons.
MEMORY_GIB = {
    "env actor": 0.47,
    "learner": 0.65,
    "replay shard": 0.45,
    "language learner": 0.71,
    "prior engine": 1.54,
    "search": 0.65,
    "reanalyser": 0.47,
    "evaluator": 0.45,
    "weight server": 0.29,
    "monitor": 0.11,
    "driver": 1.25,
}
GIB_PER_MB = 1e6 / 2**30
# For people, by the role of a child.
ROLES = {"replay": "replay shard"} | {
    role: role.replace("_", " ")
    for role in (
        *("env_actor", "learner", "language_learner", "prior_engine", "search", "reanalyser"),
        *("evaluator", "weight_server", "monitor"),
    )
}


@dataclass(frozen=True, slots=True)
class Amounts:
    """Of what nodes have and processes need."""

    cpus: float = 0.0
    gpus: float = 0.0
    memory_gib: float = 0.0

    def minus(self, other: Amounts, times: float = 1.0) -> Amounts:
        return Amounts(
            self.cpus - times * other.cpus,
            self.gpus - times * other.gpus,
            self.memory_gib - times * other.memory_gib,
        )

    def holds(self, other: Amounts) -> bool:
        left = self.minus(other)
        return min(left.cpus, left.gpus, left.memory_gib) >= -ROUNDING

    def n_times(self, other: Amounts) -> int:
        """How often `other` fits in; `other` must need something."""
        pairs = (
            (self.cpus, other.cpus),
            (self.gpus, other.gpus),
            (self.memory_gib, other.memory_gib),
        )
        most = min((have + ROUNDING) / need for have, need in pairs if need > 0.0)
        return max(0, math.floor(most))


@dataclass(frozen=True, slots=True)
class Need:
    """One process of a run."""

    role: str
    amounts: Amounts


@dataclass(frozen=True, slots=True)
class Room:
    """One node; the first of several holds the driver."""

    name: str
    amounts: Amounts


@dataclass(frozen=True, slots=True)
class Fit:
    """What came of placing a run.

    n_actors:       env actors that have room beside the other processes; 0 if those have none
    actors_by_node: how many of them each node holds, in the nodes' order
    homes:          the node of each other process that has room, in the order of `in_order`
    missing:        for people, one line a shortage; empty if everything has room
    """

    n_wanted: int
    n_actors: int
    actors_by_node: tuple[int, ...]
    homes: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        return not self.missing


def actor_need(config: Config, device: str) -> Need:
    """One env actor, as large as one of four environments was measured to be."""
    return _need("env_actor", resources_of(config, device)["env_actor"])


def other_needs(config: Config, device: str) -> list[Need]:
    """All processes but the env actors, in the order in which they start.

    device: cpu or cuda, of the learner and of whoever shares GPUs with it
    """
    of_one = resources_of(config, device)
    ring_gib = config.replay.capacity_mb * GIB_PER_MB / config.replay.num_shards
    needs = [Need("driver", Amounts(memory_gib=MEMORY_GIB["driver"]))]
    for role, n in counts_of(config).items():
        if role != "env_actor":
            more_gib = ring_gib if role == "replay" else 0.0
            needs += [_need(role, of_one[role], more_gib)] * n
    return needs


def packed_need(config: Config, device: str) -> Need:
    """Learner, replay and weight server together."""
    names = [ROLES[role] for role in PACKED_ROLES]
    members = [need for need in other_needs(config, device) if need.role in names]
    total = Amounts()
    for member in members:
        total = total.minus(member.amounts, times=-1.0)
    return Need("learner, replay and weight server", total)


def packed(needs: Sequence[Need], together: Need) -> list[Need]:
    """`needs` with those that `packed_need` adds up in one."""
    names = [ROLES[role] for role in PACKED_ROLES]
    return [together, *(need for need in needs if need.role not in names)]


def in_order(needs: Sequence[Need]) -> list[Need]:
    """Those with a GPU first, since the others may go anywhere."""
    return sorted(needs, key=lambda need: -need.amounts.gpus)


def fit(nodes: Sequence[Room], needs: Sequence[Need], actor: Need, n_actors: int) -> Fit:
    """Places `needs` and then as many env actors as there is room for, up to `n_actors`.

    Whoever needs a GPU goes to the first node that has enough of one left, everybody else to the
    first node with room. Env actors are all alike, so beside the others no more would fit.
    """
    left = [node.amounts for node in nodes]
    homes, missing = [], []
    for need in in_order(needs):
        place = next((i for i, room in enumerate(left) if room.holds(need.amounts)), None)
        if place is None:
            missing.append(_shortage(need, left))
            continue
        left[place] = left[place].minus(need.amounts)
        homes.append(nodes[place].name)
    by_node = _spread([room.n_times(actor.amounts) for room in left], n_actors)
    if missing:
        by_node = [0] * len(nodes)
    n_placed = sum(by_node)
    if n_placed < n_actors and not missing:
        missing.append(_too_many(actor, n_actors, n_placed, left))
    return Fit(n_actors, n_placed, tuple(by_node), tuple(homes), tuple(missing))


def _need(role: str, asked: Resources, more_gib: float = 0.0) -> Need:
    name = ROLES[role]
    return Need(name, Amounts(asked.num_cpus, asked.num_gpus, MEMORY_GIB[name] + more_gib))


def _spread(most: Sequence[int], n: int) -> list[int]:
    """`n` or fewer over nodes that take at most so many each, as evenly as that allows."""
    by_node = [0] * len(most)
    left = min(n, sum(most))
    while left:
        open_nodes = [i for i, taken in enumerate(by_node) if taken < most[i]]
        share = max(1, left // len(open_nodes))
        for i in open_nodes:
            taken = min(share, most[i] - by_node[i], left)
            by_node[i] += taken
            left -= taken
    return by_node


def _shortage(need: Need, left: Sequence[Amounts]) -> str:
    wanted = need.amounts
    largest = {
        "CPUs": (wanted.cpus, max((room.cpus for room in left), default=0.0)),
        "of a GPU": (wanted.gpus, max((room.gpus for room in left), default=0.0)),
        "GiB of memory": (wanted.memory_gib, max((room.memory_gib for room in left), default=0.0)),
    }
    short = [
        f"{have:.2f} {what} of the {need_:.2f} that it needs"
        for what, (need_, have) in largest.items()
        if need_ > have + ROUNDING
    ]
    if not short:
        return f"{need.role}: no one node has enough left of all that it needs"
    return f"{need.role}: no node has more left than {' and '.join(short)}"


def _too_many(actor: Need, n_actors: int, n_placed: int, left: Sequence[Amounts]) -> str:
    """left: before env actors were placed"""
    wanted, n_more = actor.amounts, n_actors - n_placed
    one_kind = {
        "CPUs": Amounts(cpus=wanted.cpus),
        "GPUs": Amounts(gpus=wanted.gpus),
        "memory": Amounts(memory_gib=wanted.memory_gib),
    }
    bounds = {
        kind: sum(room.n_times(amounts) for room in left)
        for kind, amounts in one_kind.items()
        if amounts != Amounts()
    }
    scarce = min(bounds, key=bounds.__getitem__)
    return (
        f"env actors: {n_actors} were asked for, {n_placed} have room beside the other processes; "
        f"short of {scarce}: {n_more} more need {n_more * wanted.cpus:g} CPUs"
        + (f", {n_more * wanted.gpus:g} GPUs" if wanted.gpus else "")
        + f" and {n_more * wanted.memory_gib:.1f} GiB"
    )
