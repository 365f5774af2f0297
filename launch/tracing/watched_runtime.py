"""A runtime that is timed: what every process does with its time, and stacks of what is slow.

Stands between the controller and the runtime that it calls, sees every call and every answer, and
changes neither. It costs some ten microseconds a call.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from launch.control.runtime import Call, CallFailed, Child, Node, Resources, Runtime
from launch.tracing.busy_line import busy_line
from launch.tracing.config import TraceConfig
from launch.tracing.deadline_watch import DeadlineWatch
from launch.tracing.in_flight import Ask, InFlight
from launch.tracing.profile import Profile
from launch.tracing.slow_watch import SlowWatch
from launch.tracing.spans import profiled
from launch.tracing.time_book import DRIVER, TimeBook
from launch.tracing.times_file import write_times
from launch.tracing.trace_file import DEADLINE, SLOW_STEP, Trace, TraceFiles

Tell = Callable[..., None]  # the kind of an event, and its fields
BUSY_PERIOD_S = 1.0
DEADLINE_TRACES_APART_S = 30.0  # a node that is lost takes many calls along
NEVER_TRAINED = "a profile begins with the first updates, and there were none"
SERIAL = "serial"

_log = logging.getLogger(__name__)


class WatchedRuntime:
    """Used by the driver's main thread, like the runtime inside; a context manager around a run."""

    def __init__(
        self, runtime: Runtime, config: TraceConfig, run_dir: Path, period_s: float
    ) -> None:
        """period_s: between two writes of the times to the run directory"""
        self.name = runtime.name
        self.now = runtime.now
        self._runtime = runtime
        self._run_dir = run_dir
        self._config = config
        self._period_s = period_s
        self._children: dict[str, Child] = {}
        self._asks: dict[Call, Ask] = {}
        self._in_flight = InFlight()
        self.book = TimeBook(self.now())
        self._files = TraceFiles(run_dir)
        self._alerts: queue.SimpleQueue[tuple[str, dict[str, object]]] = queue.SimpleQueue()
        self._slow = SlowWatch(config, self._in_flight, self._look, self.now)
        self._deadlines = DeadlineWatch(self._in_flight, self._trace_overdue, self.now)
        self._profile = Profile(run_dir, config.profile_s) if config.profile else None
        self._tell: Tell | None = None
        self._busy: Callable[[str], None] | None = None
        self._busy_at = float("-inf")
        self._written_at = self._deadline_traced_at = float("-inf")
        self._turn_began = time.perf_counter()

    # ------------------------------------------------------------------ around a run

    def watching(self, tell: Tell, busy: Callable[[str], None]) -> WatchedRuntime:
        """In the main thread events go to `tell`, and lines on long work to `busy`."""
        self._tell, self._busy = tell, busy
        return self

    def __enter__(self) -> WatchedRuntime:
        self._slow.start()
        if self.name == SERIAL:  # else the driver waits, and notices by itself
            self._deadlines.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._slow.stop()
        self._deadlines.stop()
        self._pass_on_alerts()
        self._write_times(is_over=True)
        self._finish_profile(at_once=True)
        self._tell = self._busy = None

    def shares(self) -> dict[str, float]:
        """See TimeBook.metrics."""
        return self.book.metrics(self.now())

    # ------------------------------------------------------------------ the runtime

    def pack(self, members: Mapping[str, Resources]) -> None:
        self._runtime.pack(members)

    def start(
        self, name: str, role: str, factory: type, kwargs: dict[str, object], resources: Resources
    ) -> Child:
        if self._profile is not None:
            factory = profiled(factory, name, self._profile.folder.resolve())
        child = self._runtime.start(name, role, factory, kwargs, resources)
        self._children[name] = child
        return child

    def call(
        self,
        child: Child,
        method: str,
        *args: object,
        deadline_s: float,
        with_payload: bool = False,
    ) -> Call:
        ask = self._in_flight.begin(child, method, self.now(), args, deadline_s)
        began = time.perf_counter()
        try:
            call = self._runtime.call(
                child, method, *args, deadline_s=deadline_s, with_payload=with_payload
            )
        except Exception:  # a serial child's own: it is at that call no more
            self._in_flight.end(ask, self.now())
            raise
        if self.name == SERIAL:  # it has run, in the driver's time
            self._turn_began += time.perf_counter() - began
            self._answered(ask, call.answer)
        else:
            self._asks[call] = ask
        return call

    def wait(self, calls: Collection[Call], timeout_s: float) -> list[Call]:
        began = time.perf_counter()
        self._pass_on_alerts()
        self._write_times()
        self._finish_profile()
        self._say_busy()
        ready = self._runtime.wait(calls, timeout_s)
        ended = time.perf_counter()
        self.book.driver("work", began - self._turn_began)
        self.book.driver("idle", ended - began)
        if self._profile is not None and self.name != SERIAL:
            self._profile.driver("turn", self._turn_began, began)
            self._profile.driver("wait", began, ended)
        self._turn_began = ended
        return ready

    def value(self, call: Call) -> object:
        try:
            answer = self._runtime.value(call)
        except CallFailed as failure:
            self._failed(failure)
            raise
        ask = self._asks.pop(call, None)
        if ask is not None:
            self._answered(ask, answer)
        return answer

    def restart(self, child: Child) -> None:
        self._forget(child)
        self._runtime.restart(child)

    def place_of(self, child: Child) -> Node | None:
        return self._runtime.place_of(child)

    def pid_of(self, child: Child) -> int:
        return self._runtime.pid_of(child)

    def nodes(self) -> list[Node]:
        return self._runtime.nodes()

    def stop(self, child: Child) -> None:
        self._forget(child)
        if self._children.get(child.name) is child:
            del self._children[child.name]
        self._runtime.stop(child)

    def shutdown(self) -> None:
        self._runtime.shutdown()

    # ------------------------------------------------------------------ books

    def _answered(self, ask: Ask, answer: object) -> None:
        now = self.now()
        seconds = self._in_flight.end(ask, now)
        self.book.answered(ask.child.name, ask.child.role, ask.method, now, seconds, answer)
        self._slow.ended(ask, seconds)
        if self._profile is not None and ask.method == "train":
            self._profile.begin()

    def _failed(self, failure: CallFailed) -> None:
        call = failure.call
        ask = self._asks.pop(call, None)
        if ask is not None:
            is_silent = not failure.died and not failure.raised
            if is_silent:
                self._trace_overdue(ask)
            self._in_flight.end(ask, self.now())
        if failure.died:
            self._forget(call.child)

    def _forget(self, child: Child) -> None:
        """Its calls will not be answered."""
        self._in_flight.forget(child)
        for call in [call for call in self._asks if call.child is child]:
            del self._asks[call]

    # ------------------------------------------------------------------ what is written

    def _trace_overdue(self, ask: Ask) -> None:
        """In the main thread, since the process is ended next; takes some tenths of a second. Of a
        serial run in the thread that watches, since the main one may never come back.
        """
        if self.now() - self._deadline_traced_at < DEADLINE_TRACES_APART_S:
            return
        self._deadline_traced_at = self.now()
        name, waited = ask.child.name, self.now() - ask.issued_at
        headline = (
            f"the driver has waited {waited:.1f} s for {name} to answer {ask.method}, which may "
            f"take {ask.deadline_s:g} s"
        )
        trace = self._write_trace(DEADLINE, headline, self._with_process(ask.child))
        if self.name == SERIAL:
            _log.warning("[monitor] %s; stacks are in %s", headline, self._run_dir / trace.file)
        self._alerts.put(
            (
                DEADLINE,
                {
                    "file": trace.file,
                    "who": DRIVER,
                    "waits_for": name,
                    "method": ask.method,
                    "seconds": round(waited, 3),
                    "which_waits_for": trace.waits_for,
                },
            )
        )

    def _with_process(self, child: Child) -> Child:
        """`child` with its process, if it has one: what hangs while it starts has not told it."""
        if child.pid:
            return child
        place = self._runtime.place_of(child)
        host = "" if place is None else place.host
        return replace(child, pid=self._runtime.pid_of(child), host=host)

    def _look(self, ask: Ask, seconds: float, is_over: bool) -> None:
        """In the thread that watches."""
        name = ask.child.name
        took = "took" if is_over else "has taken"
        limit = f"{self._config.slow_steps} of over {self._config.slow_step_s:g} s"
        headline = (
            f"{name} {took} {seconds:.2f} s for {ask.method}; steps like it, {limit}, came within "
            f"{self._config.window_s:g} s"
        )
        trace = self._write_trace(SLOW_STEP, headline, ask.child)
        fields = {"child": name, "method": ask.method, "seconds": round(seconds, 3)}
        self._alerts.put((SLOW_STEP, {"file": trace.file, **fields, "waits_for": trace.waits_for}))

    def _write_trace(self, kind: str, headline: str, child: Child) -> Trace:
        children = list(self._children.values())
        return self._files.write(
            kind, headline, child, children, self._in_flight.work(), self.now()
        )

    def _pass_on_alerts(self) -> None:
        while self._tell is not None and not self._alerts.empty():
            kind, fields = self._alerts.get()
            self._tell(kind, **fields)

    def _write_times(self, *, is_over: bool = False) -> None:
        now = self.now()
        if self._tell is None or (now - self._written_at < self._period_s and not is_over):
            return
        self._written_at = now
        children, work = list(self._children.values()), self._in_flight.work()
        write_times(self._run_dir, self.book, children, work, now)

    def _say_busy(self) -> None:
        now = self.now()
        if self._busy is not None and now - self._busy_at >= BUSY_PERIOD_S:
            self._busy_at = now
            self._busy(busy_line(self._in_flight.work(), now))

    def _finish_profile(self, *, at_once: bool = False) -> None:
        if self._profile is None or self._tell is None:
            return
        now = self.now()
        oldest_s = max((now - work.since for work in self._in_flight.work()), default=0.0)
        path = self._profile.finish(oldest_s, at_once=at_once)
        if path is not None:
            self._tell("profile_written", file=path.name)
        elif at_once and not self._profile.has_begun:
            self._tell("profile_not_written", cause=NEVER_TRAINED)
