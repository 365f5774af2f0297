"""What machines have, what a run wants of them, and what is said or refused before it starts."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from launch.config import Config, ConfigError
from launch.control.capacity import (
    ROLES,
    Amounts,
    Fit,
    Need,
    Room,
    actor_need,
    fit,
    other_needs,
    packed,
    packed_need,
)
from launch.control.resources import placement
from launch.control.room import EXPENDABLE

UNBOUNDED_GIB = 1e9  # Ray bounds cores and GPUs only


@dataclass(frozen=True, slots=True)
class Ground:
    """The nodes that a run is to live on.

    where:     for people
    nodes:     with all that they have, whether others use it now or not; the head first
    can_grow:  an autoscaler may bring more
    is_local:  this machine, on which more processes run than there are cores
    """

    where: str
    nodes: tuple[Room, ...]
    free_cpus: float
    free_gpus: float
    can_grow: bool = False
    is_local: bool = False

    @property
    def num_cpus(self) -> float:
        return sum(node.amounts.cpus for node in self.nodes)

    @property
    def num_gpus(self) -> float:
        return sum(node.amounts.gpus for node in self.nodes)

    def __str__(self) -> str:
        n = len(self.nodes)
        return f"{n} node{'s' * (n != 1)}, {self.num_cpus:g} CPUs, {self.num_gpus:g} GPUs"


def this_machine() -> Ground:
    """Of a run that starts Ray here."""
    n_cpus, n_gpus = float(os.cpu_count() or 1), float(torch.cuda.device_count())
    room = Room(socket.gethostname(), Amounts(n_cpus, n_gpus, UNBOUNDED_GIB))
    return Ground("this machine", (room,), n_cpus, n_gpus, is_local=True)


def device_on(ground: Ground, wanted: str, say: Callable[[str], None]) -> str:
    """cpu or cuda, for the learner on a cluster. Raises ConfigError if no node can have a GPU."""
    if wanted == "cuda" and not ground.num_gpus and not ground.can_grow:
        raise ConfigError(
            f"device 'cuda' was asked for, but no node of {ground.where} has a GPU that Ray knows "
            f"of ({ground}); use --device cpu, or start nodes that have one with --num-gpus"
        )
    if wanted != "auto":
        return wanted
    # Nodes have the same requirements as this process, or the versions would differ.
    device = "cuda" if ground.num_gpus and torch.version.cuda else "cpu"
    say(f"device auto: {device}, the nodes have {ground.num_gpus:g} GPUs")
    return device


def check_ground(config: Config, device: str, ground: Ground, say: Callable[[str], None]) -> None:
    """Says what there is, what the run asks for, where it goes and what has no room.

    Raises ConfigError if it can't begin with control.min_actors env actors: not now, and not with
    what an autoscaler may bring.
    """
    asked = placement(config, device)
    in_use = (ground.num_cpus - ground.free_cpus, ground.num_gpus - ground.free_gpus)
    others = f"; {in_use[0]:g} CPUs and {in_use[1]:g} GPUs are in use now" if any(in_use) else ""
    say(f"{ground.where}: {ground}{others}")
    nodes = _told_enough(ground, asked.num_cpus) if ground.is_local else ground.nodes
    needs = _together(other_needs(config, device), config, device, nodes)
    actor, n_wanted = actor_need(config, device), config.acting.num_actors
    expendable = {ROLES[role] for role in EXPENDABLE}
    vital = [need for need in needs if need.role not in expendable]
    whole, most = fit(nodes, needs, actor, n_wanted), fit(nodes, vital, actor, n_wanted)
    turns = _turns(ground, asked.num_cpus)
    say(f"the run asks for {asked.num_cpus:g} CPUs and {asked.num_gpus:g} GPUs{turns}")
    say(f"placement: {_core_place(config, needs)}; {_actor_place(most, n_wanted)}")
    for line in whole.missing:
        say(f"no room for {line}")
    if whole.is_whole:
        return
    is_enough = most.n_actors >= config.control.min_actors
    if ground.can_grow:
        limit_s = config.control.call_deadline_s
        say(f"waits up to {limit_s:g} s for the cluster's autoscaler to bring what is missing")
    elif is_enough:
        say("begins with what has room; the rest starts when there is more")
    else:
        raise ConfigError(_refusal(config, ground, whole, most))


def _told_enough(ground: Ground, n_cpus: float) -> tuple[Room, ...]:
    """A local Ray is told that it has the cores that the run asks for."""
    (here,) = ground.nodes
    cpus = max(here.amounts.cpus, n_cpus)
    return (Room(here.name, Amounts(cpus, here.amounts.gpus, here.amounts.memory_gib)),)


def _together(needs: list[Need], config: Config, device: str, nodes: Sequence[Room]) -> list[Need]:
    joint = packed_need(config, device)
    has_room = any(node.amounts.holds(joint.amounts) for node in nodes)
    return packed(needs, joint) if config.placement.pack and has_room else needs


def _turns(ground: Ground, n_cpus: float) -> str:
    is_more = ground.is_local and n_cpus > ground.num_cpus
    return ", more cores than there are: processes take turns" if is_more else ""


def _core_place(config: Config, needs: Sequence[Need]) -> str:
    if any(need.role == ROLES["learner"] for need in needs):
        why = "" if not config.placement.pack else ", since no node has room for them together"
        return f"learner, replay and weight server where Ray finds room{why}"
    return "learner, replay and weight server together"


def _actor_place(most: Fit, n_wanted: int) -> str:
    n_nodes = sum(n > 0 for n in most.actors_by_node)
    spread = f", on {n_nodes} node{'s' * (n_nodes != 1)}, at most {max(most.actors_by_node)} each"
    return f"{most.n_actors} of {n_wanted} env actors have room{spread if n_nodes else ''}"


def _refusal(config: Config, ground: Ground, whole: Fit, most: Fit) -> str:
    return (
        f"{ground.where} has {ground}, and can't hold the run:\n"
        + "".join(f"  no room for {line}\n" for line in whole.missing)
        + f"{most.n_actors} env actors would fit, control.min_actors is "
        f"{config.control.min_actors}; add nodes, or ask for less: --num-actors, "
        "--learner.n-devices, --prior.num-engines, --device cpu; nothing was started"
    )
