"""Env actors whose segments replay refuses: a few times is reported, in a row it is their failure.

Replay itself goes on: it has stored nothing of what it refused.
"""

from __future__ import annotations

from collections.abc import Callable

from launch.control.reporter import Reporter
from launch.control.runtime import Call, CallFailed, Child
from replay_service import AddReport

REFUSED_IN_A_ROW = 3  # payloads with a refused segment, after which their sender is replaced
MOST_EVENTS = 4  # per payload: a sender that is broken breaks every segment alike


class Refusals:
    """Owned by the controller; counts what replay says of each sender's payloads."""

    def __init__(self, reporter: Reporter, on_failure: Callable[[CallFailed], None]) -> None:
        """on_failure: sees to a successor of the actor that failed, and may raise RunFailed"""
        self._reporter = reporter
        self._on_failure = on_failure
        self._in_a_row: dict[str, int] = {}

    def answered(self, call: Call, sender: Child, report: AddReport, *, is_current: bool) -> None:
        """What replay said in answer to `call` of a payload of `sender`.

        is_current: no successor has taken the place of `sender` yet
        """
        for reason in report.reasons[:MOST_EVENTS]:
            self._reporter.event("segment_rejected", child=sender.name, reason=reason)
        if not is_current:
            return
        if not report.n_rejected:
            if report.n_positions:  # a payload may hold no segment, which says nothing
                self._in_a_row[sender.name] = 0
            return
        n_refused = self._in_a_row[sender.name] = self._in_a_row.get(sender.name, 0) + 1
        if n_refused >= REFUSED_IN_A_ROW:
            self._in_a_row[sender.name] = 0
            cause = (
                f"replay refused segments of {n_refused} payloads in a row, last: "
                f"{report.reasons[-1]}"
            )
            handed_over = Call(sender, "add", call.issued_at, call.deadline_s, answer=None)
            self._on_failure(CallFailed(handed_over, cause, raised=True))
