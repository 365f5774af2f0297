"""Versions on their way to engines that answer when they like, fail and come back."""

from dataclasses import dataclass, field
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.prior.backend import PublishReport
from launch.control.call_book import CallBook
from launch.control.publishing import Publishing
from launch.control.runtime import Call, Child
from learner.language.adapter import Adapter

N_ENGINES = 3


@dataclass
class Engines:
    """A runtime whose children answer one call at a time, when told."""

    sent: dict[str, list[int]] = field(default_factory=dict)
    withdrawn: dict[str, list[int]] = field(default_factory=dict)
    answers: Child | None = None  # who may answer now

    def call(self, child, method, *args, deadline_s, with_payload):
        sent = {"publish": self.sent, "withdraw": self.withdrawn}[method]
        sent.setdefault(child.name, []).append(args[0])
        return Call(child, method, monotonic(), deadline_s, answer=None, args=args)

    def wait(self, calls, timeout_s):
        return [call for call in calls if call.child is self.answers][:1]


class Figures:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[dict[str, object]] = []
        self.publications: dict[str, float] = {}

    def event(self, kind: str, **fields: object) -> None:
        self.events.append({"event": kind, **fields})

    def publishing(self, figures: dict[str, float]) -> None:
        self.publications = figures


@dataclass
class Fleet:
    prior_engines: list[Child]


class Bench:
    """Publishing to engines that have just begun."""

    def __init__(self, n_engines: int = N_ENGINES) -> None:
        self.engines = Engines()
        self.calls = CallBook(self.engines, deadline_s=300.0)
        self.children = [Child(f"prior-engine-{i}", "prior_engine", None) for i in range(n_engines)]
        self.reporter = Figures()
        self.publishing = Publishing(self.calls, Fleet(self.children), self.reporter)
        self.version = 0

    def publish(self, path: str = "adapters") -> None:
        self.version += 1
        self.publishing.publish(Adapter(self.version, path))

    def answer(self, index: int, *, accepted: bool = True, max_gap: float = 0.0) -> None:
        self.engines.answers = self.children[index]
        for call in self.calls.ready():
            assert call.method == "publish"
            self.publishing.answered(call, PublishReport(call.args[0], accepted, max_gap))

    def fail(self, index: int) -> None:
        self.calls.drop(self.children[index])
        self.publishing.engine_lost(self.children[index])

    def sent(self, index: int) -> list[int]:
        return self.engines.sent.get(self.children[index].name, [])


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["publish", "answer", "ready", "fail"]), st.integers(0, N_ENGINES - 1)
        ),
        max_size=60,
    )
)
def test_one_version_is_on_its_way_to_an_engine_and_the_newest_gets_to_all(steps):
    bench = Bench()
    began = [0] * N_ENGINES  # how many were sent when the process of now began
    is_ready = [False] * N_ENGINES
    for step, index in steps:
        if step == "publish":
            bench.publish()
        elif step == "answer":
            bench.answer(index)
        elif step == "ready" and not is_ready[index]:
            is_ready[index], began[index] = True, len(bench.sent(index))
            bench.publishing.engine_ready(bench.children[index])
        elif step == "fail":
            is_ready[index] = False
            bench.fail(index)
        assert all(bench.calls.n_in_flight(child=child) <= 1 for child in bench.children)
        assert bench.publishing.is_any_ready == any(is_ready)
    for index in range(N_ENGINES):
        for _ in range(2):
            bench.answer(index)
        to_this_process = bench.sent(index)[began[index] :]
        assert to_this_process == sorted(set(to_this_process))
        if is_ready[index]:
            assert to_this_process[-1:] == ([bench.version] if bench.version else [])
    assert not bench.calls.n_in_flight()
    n_answered = bench.reporter.publications.get("prior_publications_total", 0)
    assert n_answered == len(bench.reporter.events)


def test_an_engine_that_is_stuck_gets_the_newest_and_the_others_get_all():
    bench = Bench(2)
    for child in bench.children:
        bench.publishing.engine_ready(child)
    for _ in range(4):
        bench.publish()
        bench.answer(1)
    bench.answer(0)
    assert (bench.sent(0), bench.sent(1)) == ([1, 4], [1, 2, 3, 4])


def test_nothing_is_sent_to_an_engine_that_has_not_begun():
    """It finds the newest on disk, and is told of it all the same once it is ready."""
    bench = Bench(2)
    bench.publishing.engine_ready(bench.children[0])
    bench.publish()
    assert (bench.sent(0), bench.sent(1)) == ([1], [])
    assert bench.reporter.publications["prior_engines_ready"] == 1
    bench.publishing.engine_ready(bench.children[1])
    assert bench.sent(1) == [1]


def test_a_version_that_is_wrong_on_one_engine_is_withdrawn_from_all(tmp_path):
    bench = Bench()
    for child in bench.children[:2]:
        bench.publishing.engine_ready(child)
    bench.publish(str(tmp_path))
    bench.answer(1)
    bench.answer(0, accepted=False, max_gap=0.5)
    withdrawn = bench.engines.withdrawn
    assert withdrawn == {"prior-engine-1": [1]} and list(tmp_path.iterdir())
    assert [e["event"] for e in bench.reporter.events].count("adapter_withdrawn") == 1
    assert bench.reporter.publications["prior_publications_withdrawn_total"] == 1
    assert bench.reporter.publications["prior_publications_refused_total"] == 1
    # Whoever looked on disk before the mark was there is told as well, and is not sent it.
    bench.publishing.engine_ready(bench.children[2])
    assert withdrawn == {"prior-engine-1": [1], "prior-engine-2": [1]} and not bench.sent(2)


def test_the_newest_waits_for_no_withdrawal_and_two_refusals_are_one(tmp_path):
    bench = Bench(2)
    for child in bench.children:
        bench.publishing.engine_ready(child)
    bench.publish(str(tmp_path))
    bench.publish(str(tmp_path))
    bench.answer(0, accepted=False, max_gap=float("inf"))
    assert bench.sent(0) == [1, 2]
    bench.publishing.answered(
        bench.calls.issue(bench.children[1], "publish", 1, str(tmp_path)),
        PublishReport(1, False, 0.5),
    )
    assert bench.engines.withdrawn == {"prior-engine-1": [1]}
    assert bench.reporter.publications["prior_publications_withdrawn_total"] == 1


@pytest.mark.parametrize(
    ("accepted", "max_gap"), [(True, float("nan")), (False, float("nan"))], ids=["known", "unread"]
)
def test_what_was_not_compared_is_not_withdrawn(tmp_path, accepted, max_gap):
    """Another engine may well be able to read the folder."""
    bench = Bench(2)
    for child in bench.children:
        bench.publishing.engine_ready(child)
    bench.publish(str(tmp_path))
    bench.answer(0, accepted=accepted, max_gap=max_gap)
    assert not bench.engines.withdrawn and not list(tmp_path.iterdir())
    assert bench.reporter.events[0]["max_gap"] is None
