"""The state machine of one child, alone and against a model that keeps the whole history."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from launch.control.child_health import (
    COMING,
    HEALTHY_SPELL_S,
    LONGEST_BACKOFF_S,
    UP,
    WINDOW_S,
    ChildHealth,
    State,
    backoff_s,
)


def healthy(max_failures: int = 20, now: float = 0.0) -> ChildHealth:
    health = ChildHealth(max_failures)
    assert health.state is State.STARTING
    assert health.answered(now)
    return health


def fail_and_return(health: ChildHealth, now: float) -> float:
    """Fails, waits, restarts and answers; returns the time of the answer."""
    assert health.failed(now)
    assert health.state is State.RESTARTING
    assert health.restarted(health.restart_at)
    assert health.answered(health.restart_at)
    return health.restart_at


def test_a_late_child_is_suspect_until_it_answers():
    health = healthy()
    assert health.overdue() and health.state is State.SUSPECT
    assert not health.overdue()
    assert health.answered(1.0) and health.state is State.HEALTHY
    assert not health.answered(2.0)


def test_the_first_restart_is_at_once_and_further_ones_wait_twice_as_long_each_time():
    health, now, waits = healthy(), 0.0, []
    for _ in range(9):
        before = now
        now = fail_and_return(health, now)
        waits.append(now - before)
    assert waits == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert waits == [backoff_s(n) for n in range(1, 10)]
    assert backoff_s(10**6) == LONGEST_BACKOFF_S


def test_no_restart_before_its_time():
    health = healthy()
    now = fail_and_return(health, 0.0)
    health.failed(now)
    assert not health.restarted(health.restart_at - 0.001)
    assert health.state is State.RESTARTING
    assert health.restarted(health.restart_at)


def test_a_healthy_spell_begins_the_back_off_anew():
    health = healthy()
    now = fail_and_return(health, fail_and_return(health, 0.0))
    health.failed(now + HEALTHY_SPELL_S)
    assert health.restart_at == now + HEALTHY_SPELL_S


def test_being_late_does_not_interrupt_a_healthy_spell_but_a_failure_does():
    health = healthy()
    now = fail_and_return(health, 0.0)
    health.overdue()
    health.answered(now + HEALTHY_SPELL_S / 2)
    health.failed(now + HEALTHY_SPELL_S)
    assert health.restart_at == now + HEALTHY_SPELL_S
    health.restarted(health.restart_at)
    health.failed(health.restart_at)  # it never answered
    assert health.restart_at == now + HEALTHY_SPELL_S + 1.0


def test_one_failure_too_many_within_the_window_is_the_last():
    health, now = healthy(max_failures=3), 0.0
    for _ in range(3):
        now = fail_and_return(health, now)
    assert health.failed(now) and health.state is State.QUARANTINED
    for event in (health.overdue, health.drain):
        assert not event()
    for event in (health.answered, health.failed, health.restarted, health.vacated):
        assert not event(now + 10.0 * WINDOW_S)
    assert health.state is State.QUARANTINED


def test_failures_further_back_than_the_window_are_forgiven():
    health, now = healthy(max_failures=3), 0.0
    for _ in range(3):
        now = fail_and_return(health, now)
    now = fail_and_return(health, now + WINDOW_S + 1.0)
    assert health.n_failures(now) == 1


def test_no_failure_is_made_good_where_none_is_allowed():
    health = healthy(max_failures=0)
    health.failed(0.0)
    assert health.state is State.QUARANTINED


@pytest.mark.parametrize("leave", ["vacated", "failed"])
def test_leaving_a_node_that_goes_is_no_failure_and_does_not_wait(leave):
    health = healthy(max_failures=0)
    assert health.drain() and health.state is State.DRAINING
    assert not health.answered(1.0)  # an answer does not bring it back
    assert getattr(health, leave)(5.0)
    assert health.state is State.RESTARTING
    assert health.restart_at == 5.0 and health.n_failures(5.0) == 0


def test_what_has_not_answered_can_not_be_drained():
    assert not ChildHealth(1).drain()


class Lives(RuleBasedStateMachine):
    """Any events at any times: the states that follow are those that the history allows."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.max_failures = 3
        self.health = ChildHealth(self.max_failures)
        self.failures: list[float] = []  # that counted
        self.in_a_row = 0
        self.answered_at: float | None = None  # first answer of the process that is there

    @rule(seconds=st.sampled_from([0.0, 0.5, 5.0, HEALTHY_SPELL_S, WINDOW_S / 2, WINDOW_S + 1.0]))
    def time_goes_by(self, seconds):
        self.now += seconds

    @rule()
    def answered(self):
        before = self.health.state
        changed = self.health.answered(self.now)
        assert changed == (before in (State.STARTING, State.SUSPECT))
        if changed:
            assert self.health.state is State.HEALTHY
            self.answered_at = self.now if self.answered_at is None else self.answered_at

    @rule()
    def overdue(self):
        before = self.health.state
        assert self.health.overdue() == (before is State.HEALTHY)

    @rule()
    def failed(self):
        before = self.health.state
        changed = self.health.failed(self.now)
        assert changed == (before in (State.STARTING, *UP))
        if not changed:
            return
        spell = 0.0 if self.answered_at is None else self.now - self.answered_at
        self.answered_at = None
        if before is State.DRAINING:
            assert self.health.restart_at == self.now
            assert self.health.state is State.RESTARTING
            return
        self.failures.append(self.now)
        self.in_a_row = 1 if spell >= HEALTHY_SPELL_S else self.in_a_row + 1
        recent = [at for at in self.failures if self.now - at <= WINDOW_S]
        if len(recent) > self.max_failures:
            assert self.health.state is State.QUARANTINED
        else:
            assert self.health.state is State.RESTARTING
            assert self.health.restart_at == self.now + backoff_s(self.in_a_row)

    @rule()
    def restarted(self):
        before, due = self.health.state, self.now >= self.health.restart_at
        assert self.health.restarted(self.now) == (before is State.RESTARTING and due)

    @rule()
    def drained(self):
        before = self.health.state
        assert self.health.drain() == (before in (State.HEALTHY, State.SUSPECT))

    @rule()
    def vacated(self):
        before = self.health.state
        if self.health.vacated(self.now):
            assert before is State.DRAINING and self.health.restart_at == self.now
            self.answered_at = None
        else:
            assert before is not State.DRAINING and self.health.state is before

    @precondition(lambda self: self.health.state is State.QUARANTINED)
    @rule()
    def stopped(self):
        assert self.health.stop() and not self.health.stop()

    @invariant()
    def failures_are_bounded(self):
        n_recent = len([at for at in self.failures if self.now - at <= WINDOW_S])
        assert self.health.n_failures(self.now) == n_recent <= self.max_failures + 1

    @invariant()
    def a_wait_has_an_end(self):
        if self.health.state is State.RESTARTING:
            assert self.health.restart_at <= self.now + LONGEST_BACKOFF_S
        assert not set(UP) & set(COMING)


TestLives = Lives.TestCase
