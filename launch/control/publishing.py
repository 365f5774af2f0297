"""Versions of the language model on their way to the engines, and what became of each."""

from __future__ import annotations

from collections import deque
from math import isfinite, isnan
from pathlib import Path

from actors.prior.backend import BASE_VERSION, PublishReport
from launch.control.call_book import CallBook
from launch.control.fleet import Fleet
from launch.control.reporter import Reporter
from launch.control.runtime import Call, Child
from learner.language.adapter import KEPT_VERSIONS, Adapter, mark_withdrawn


class Publishing:
    """Owned by the language model's tuning. Every engine has one version on its way at most, and
    then gets the newest: one that is stuck would otherwise load all that it missed, one by one.

    An engine that starts takes the newest version that it finds on disk; what is published while
    it looks is sent to it once it is ready.

    A version whose answers are not the trainer's on one engine is withdrawn from all.
    """

    def __init__(self, calls: CallBook, fleet: Fleet, reporter: Reporter) -> None:
        self._calls = calls
        self._fleet = fleet
        self._reporter = reporter
        self._newest: Adapter | None = None
        self._sent: dict[str, int] = {}  # by engine that serves, the last version sent to it
        self._withdrawn: deque[int] = deque(maxlen=KEPT_VERSIONS)  # what may still be on disk
        self._n_accepted = self._n_refused = self._n_withdrawn = 0

    @property
    def is_any_ready(self) -> bool:
        """Whether some engine serves."""
        return bool(self._sent)

    def engine_ready(self, engine: Child) -> None:
        """A new process serves there."""
        self._sent[engine.name] = BASE_VERSION
        for version in self._withdrawn:  # it may have looked before the mark was there
            self._calls.issue(engine, "withdraw", version)
        self._offer(engine)
        self._tell()

    def engine_lost(self, engine: Child) -> None:
        self._sent.pop(engine.name, None)
        self._tell()

    def publish(self, adapter: Adapter) -> None:
        """Sends a version to every engine that serves."""
        self._newest = adapter
        for engine in self._fleet.prior_engines:
            self._offer(engine)

    def answered(self, call: Call, report: PublishReport) -> None:
        """An engine took a version, or says why not; call it when the call is out of the book."""
        self._n_accepted += report.accepted
        self._n_refused += not report.accepted
        self._reporter.event(
            "adapter_published",
            engine=call.child.name,
            version=report.version,
            accepted=report.accepted,
            max_gap=report.max_gap if isfinite(report.max_gap) else None,
            reason=report.reason,
        )
        if not report.accepted and not isnan(report.max_gap):
            self._withdraw(call)
        self._offer(call.child)
        self._tell()

    def _withdraw(self, call: Call) -> None:
        """What `call` published is wrong on its engine."""
        version, path = call.args
        if version in self._withdrawn:
            return
        mark_withdrawn(Path(path))
        self._withdrawn.append(version)
        self._n_withdrawn += 1
        if self._newest is not None and self._newest.version == version:
            self._newest = None
        for engine in self._fleet.prior_engines:
            if engine is not call.child and engine.name in self._sent:
                self._calls.issue(engine, "withdraw", version)
        self._reporter.event("adapter_withdrawn", engine=call.child.name, version=version)

    def _offer(self, engine: Child) -> None:
        """Sends the newest version, unless it was sent or another is on its way."""
        newest, sent = self._newest, self._sent.get(engine.name)
        if newest is None or sent is None or newest.version <= sent:
            return
        if not self._calls.n_in_flight("publish", child=engine):
            self._sent[engine.name] = newest.version
            self._calls.issue(engine, "publish", newest.version, newest.path)

    def _tell(self) -> None:
        self._reporter.publishing(
            {
                "prior_engines_ready": float(len(self._sent)),
                "prior_publications_total": float(self._n_accepted),
                "prior_publications_refused_total": float(self._n_refused),
                "prior_publications_withdrawn_total": float(self._n_withdrawn),
            }
        )
