"""The calls in flight: issued, waited for, counted, dropped with a dead child."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Sequence

from launch.control.runtime import Call, CallFailed, Child, Runtime

WAIT_TURN_S = 0.5
URGENT_DEADLINE_S = 300.0
GO_ON = "the same command goes on from the last checkpoint"


class RunFailed(RuntimeError):
    """The run can't go on; the message says which child, why, and what to do.

    is_state_sound: False where what was learned is in doubt, so that no checkpoint is made of it.
    """

    def __init__(self, message: str, *, is_state_sound: bool = True) -> None:
        super().__init__(message)
        self.is_state_sound = is_state_sound


class CallBook:
    """Owned by the controller; keeps every call until it is answered.

    It is asked many times a turn, so no answer takes longer with more calls in flight to others.
    """

    def __init__(self, runtime: Runtime, deadline_s: float) -> None:
        self._runtime = runtime
        self._deadline_s = deadline_s
        self._calls: dict[Call, None] = {}  # by time of issue
        self._by_child: dict[Child, dict[Call, None]] = {}
        # Of one deadline, the oldest are late first. A plain dict would search for its first entry.
        self._by_deadline: defaultdict[float, OrderedDict[Call, None]] = defaultdict(OrderedDict)
        self._by_method: Counter[str] = Counter()
        self._until = math.inf

    def now(self) -> float:
        """The runtime's clock, by which everything here is counted."""
        return self._runtime.now()

    def hurry(self, budget_s: float) -> None:
        """From the first call on, all that is asked for must be answered within `budget_s`."""
        self._until = min(self._until, self.now() + budget_s)

    @property
    def seconds_left(self) -> float:
        """Of the budget that `hurry` set; infinite without one."""
        return max(0.0, self._until - self.now())

    def issue(
        self,
        child: Child,
        method: str,
        *args: object,
        deadline_s: float | None = None,
        with_payload: bool = False,
    ) -> Call:
        limit = self._deadline_s if deadline_s is None else deadline_s
        call = self._runtime.call(child, method, *args, deadline_s=limit, with_payload=with_payload)
        self._calls[call] = None
        self._by_child.setdefault(child, {})[call] = None
        self._by_deadline[call.deadline_s][call] = None
        self._by_method[method] += 1
        return call

    def ready(self) -> Iterable[Call]:
        """Answered or overdue calls, each taken out of the book as it is yielded.

        Calls dropped while an earlier one is handled are skipped.
        """
        for call in self._runtime.wait(self._calls, WAIT_TURN_S):
            if call in self._calls:
                self._take_out(call)
                yield call

    def ask(self, child: Child, method: str, *args: object) -> object:
        """One call whose answer is needed before anything else may happen. Raises RunFailed."""
        answer = self._answer(self._urgent(child, method, *args))
        if isinstance(answer, CallFailed):
            raise RunFailed(f"{answer}\n{GO_ON}") from answer
        return answer

    def ask_each(
        self, children: Sequence[Child], method: str, arguments: Sequence[tuple[object, ...]]
    ) -> list[object]:
        """Like `ask`, several children at once, each with its own arguments.

        Returns their answers, for one that failed the CallFailed.
        """
        calls = [
            self._urgent(child, method, *args)
            for child, args in zip(children, arguments, strict=True)
        ]
        return [self._answer(call) for call in calls]

    def _urgent(self, child: Child, method: str, *args: object) -> Call:
        limit_s = min(URGENT_DEADLINE_S, self.seconds_left)
        return self._runtime.call(child, method, *args, deadline_s=limit_s)

    def _answer(self, call: Call) -> object:
        while not self._runtime.wait([call], WAIT_TURN_S):
            pass
        try:
            return self._runtime.value(call)
        except CallFailed as failure:
            return failure

    def late(self) -> list[Call]:
        """Calls in flight that have taken more than half the time that they may take."""
        now, late = self.now(), []
        for deadline_s, calls in self._by_deadline.items():
            for call in calls:
                if now - call.issued_at <= deadline_s / 2:
                    break
                late.append(call)
        return late

    def n_in_flight(self, *methods: str, child: Child | None = None) -> int:
        """Calls in flight of any of `methods`, or of all, to `child` or to anybody."""
        if child is not None:
            own = self._by_child.get(child, {})
            return sum(call.method in methods for call in own) if methods else len(own)
        return sum(self._by_method[m] for m in methods) if methods else len(self._calls)

    def drop(self, child: Child, *, keep: str = "") -> list[Call]:
        """Forgets the calls to `child`, but those of the method `keep`, and returns them."""
        dropped = [call for call in self._by_child.get(child, {}) if call.method != keep]
        for call in dropped:
            self._take_out(call)
        return dropped

    def _take_out(self, call: Call) -> None:
        del self._calls[call]
        own = self._by_child[call.child]
        del own[call]
        if not own:
            del self._by_child[call.child]  # it may have been replaced
        del self._by_deadline[call.deadline_s][call]
        self._by_method[call.method] -= 1
