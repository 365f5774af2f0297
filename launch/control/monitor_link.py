"""What the monitor is told of other processes, and on which node it is."""

from __future__ import annotations

import os
import socket

from launch.control.call_book import CallBook
from launch.control.fleet import Fleet
from launch.control.roster import Roster
from launch.control.runtime import Child, Runtime
from launch.tracing.time_book import DRIVER


class MonitorLink:
    """Owned by the supervisor.

    The monitor lives beside the learner, if there is room: the GPUs and the memory that matter are
    those of the learner's machine. Where that is turns out only when the learner has started.
    """

    def __init__(
        self, runtime: Runtime, fleet: Fleet, calls: CallBook, roster: Roster, start_budget_s: float
    ) -> None:
        """start_budget_s: of a monitor that is started elsewhere"""
        self._runtime = runtime
        self._fleet = fleet
        self._calls = calls
        self._roster = roster
        self._start_budget_s = start_budget_s

    def answered(self, child: Child) -> None:
        """`child` is another process than before, whose pid and place are known by now."""
        if child.role == "monitor":
            self._watch(DRIVER, os.getpid(), socket.gethostname())
            for each in self._fleet.children():
                if each.pid:
                    self._watch(each.name, each.pid, each.host)
        elif self._roster.is_up(self._fleet.monitor):
            self._watch(child.name, child.pid, child.host)
        if child.role in ("monitor", "learner"):
            self._follow_the_learner()

    def _watch(self, name: str, pid: int, host: str) -> None:
        self._calls.issue(self._fleet.monitor, "watch", name, pid, host)

    def _follow_the_learner(self) -> None:
        """Once for each place of the learner: where that is full, the monitor stays elsewhere."""
        monitor, node_id = self._fleet.monitor, self._fleet.learner.node_id
        is_known = self._roster.takes_work(monitor) and node_id and monitor.node_id
        if not is_known or node_id in (monitor.node_id, self._fleet.monitor_node):
            return
        self._fleet.monitor_node = node_id
        self._calls.drop(monitor)
        self._runtime.stop(monitor)
        successor = self._fleet.replace(monitor)
        self._calls.issue(successor, "ping", deadline_s=self._start_budget_s)
