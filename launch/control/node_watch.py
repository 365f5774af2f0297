"""Nodes that are about to go away, and the children that live on them."""

from __future__ import annotations

from math import inf

from launch.control.child_health import UP
from launch.control.fleet import Fleet
from launch.control.reporter import Reporter
from launch.control.roster import Roster
from launch.control.runtime import Node, Runtime

POLL_S = 2.0  # a preempted node has 30 s or more as a rule; one poll costs about a millisecond


class NodeWatch:
    """Owned by the supervisor. Where all nodes go, children stay at work to the end."""

    def __init__(self, runtime: Runtime, fleet: Fleet, roster: Roster, reporter: Reporter) -> None:
        self._runtime = runtime
        self._fleet = fleet
        self._roster = roster
        self._reporter = reporter
        self._polled_at = -inf
        self._noticed: set[str] = set()
        self.wants_checkpoint = False  # somebody has something to lose that was not saved since

    def poll(self) -> None:
        """Marks children on nodes that Ray reports as draining; they get no new work from now."""
        now = self._runtime.now()
        if now - self._polled_at < POLL_S:
            return
        self._polled_at = now
        nodes = self._runtime.nodes()
        has_refuge = not all(node.is_draining for node in nodes)
        for node in nodes:
            if node.is_draining:
                self._notice(node, has_refuge)

    def _notice(self, node: Node, has_refuge: bool) -> None:
        on_it = [
            child
            for child in self._fleet.children()
            if child.node_id == node.node_id and self._roster.state(child) in UP
        ]
        if node.node_id not in self._noticed and (on_it or node.holds_driver):
            self._noticed.add(node.node_id)
            self.wants_checkpoint = True
            self._reporter.event(
                "node_draining",
                node=node.node_id,
                host=node.host,
                children=[child.name for child in on_it],
                goes_elsewhere=has_refuge,
            )
        for child in on_it:
            # Room elsewhere is kept for packed ones once the node is gone, and not before.
            is_packed = child.name in self._fleet.packed
            if has_refuge and not is_packed and self._roster.drain(child):
                self.wants_checkpoint = True
