"""The monitor hears of all processes with their machines, and follows the learner to its node."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field

from launch.control.call_book import CallBook
from launch.control.monitor_link import MonitorLink
from launch.control.roster import Roster
from launch.control.runtime import Call, Child

HERE = socket.gethostname()


class Reporter:
    def child_state(self, *fields: object) -> None: ...


@dataclass
class World:
    """A fleet on two nodes, `head` and `gpu`, whose children answer when told."""

    issued: list[tuple[Child, str, tuple[object, ...]]] = field(default_factory=list)
    stopped: list[Child] = field(default_factory=list)
    monitor_node: str = ""

    def __post_init__(self) -> None:
        self.learner = Child("learner", "learner", None)
        self.env_actor = Child("env-actor-0", "env_actor", None)
        self.monitor = Child("monitor", "monitor", None)
        self.roster = Roster(self, Reporter(), 3, self.now)
        self.roster.begin()
        self.link = MonitorLink(self, self, CallBook(self, 300.0), self.roster, 60.0)

    def children(self) -> list[Child]:
        return [self.learner, self.env_actor, self.monitor]

    def replace(self, child: Child) -> Child:
        assert child is self.monitor
        self.monitor = Child("monitor", "monitor", None)
        return self.monitor

    def now(self) -> float:
        return 0.0

    def call(self, child: Child, method: str, *args: object, deadline_s: float, **_: object):
        self.issued.append((child, method, args))
        return Call(child, method, 0.0, deadline_s, answer=None, args=args)

    def stop(self, child: Child) -> None:
        self.stopped.append(child)

    def answers(self, child: Child, node_id: str, *, pid: int) -> None:
        child.pid, child.node_id, child.host = pid, node_id, f"host-of-{node_id}"
        self.roster.answered(child)
        self.link.answered(child)

    def watched(self) -> list[tuple[object, ...]]:
        """What the monitor of now was told."""
        return [
            a for child, method, a in self.issued if child is self.monitor and method == "watch"
        ]


def test_the_monitor_is_told_on_which_machine_a_process_is() -> None:
    world = World()
    world.answers(world.learner, "head", pid=1)
    assert world.watched() == [], "it has not answered yet"
    world.answers(world.monitor, "head", pid=2)
    world.answers(world.env_actor, "gpu", pid=3)
    assert world.watched() == [
        ("driver", os.getpid(), HERE),
        ("learner", 1, "host-of-head"),
        ("monitor", 2, "host-of-head"),
        ("env-actor-0", 3, "host-of-gpu"),
    ]
    assert not world.stopped


def test_the_monitor_goes_to_the_learner_whoever_answers_first() -> None:
    for learner_is_first in (True, False):
        world = World()
        first = world.monitor
        for child in (world.learner, first) if learner_is_first else (first, world.learner):
            world.answers(child, "gpu" if child is world.learner else "head", pid=1)
        assert world.stopped == [first] and world.monitor_node == "gpu"
        assert world.issued[-1][:2] == (world.monitor, "ping")
        world.answers(world.monitor, "gpu", pid=4)
        assert world.stopped == [first] and len(world.watched()) == 3


def test_the_monitor_stays_where_it_is_if_there_is_no_room_beside_the_learner() -> None:
    world = World()
    first = world.monitor
    world.answers(first, "head", pid=1)
    world.answers(world.learner, "gpu", pid=2)
    world.answers(world.monitor, "head", pid=3)
    assert world.stopped == [first], "it is moved once"
    second = world.monitor
    world.answers(world.learner, "third", pid=4)
    assert world.stopped == [first, second] and world.monitor_node == "third"


def test_a_monitor_that_has_to_go_anyway_is_left_alone() -> None:
    world = World()
    world.answers(world.monitor, "head", pid=1)
    world.roster.drain(world.monitor)
    world.answers(world.learner, "gpu", pid=2)
    assert world.stopped == []
