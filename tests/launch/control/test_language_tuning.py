"""Adapters on their way to an engine that answers when it likes."""

from dataclasses import dataclass, field
from time import monotonic

from hypothesis import given
from hypothesis import strategies as st

from launch.config import Config
from launch.control.call_book import CallBook
from launch.control.language_tuning import LanguagePatient
from launch.control.runtime import Call, Child
from learner.language.adapter import Adapter


@dataclass
class Engine:
    """A runtime with one child, whose calls are answered one by one, when told."""

    sent: list[int] = field(default_factory=list)
    n_answered: int = 0

    def call(self, child, method, *args, deadline_s, with_payload):
        assert method == "publish"
        self.sent.append(args[0])
        return Call(child, method, monotonic(), deadline_s, answer=None, args=args)

    def wait(self, calls, timeout_s):
        self.n_answered += len(calls[:1])
        return calls[:1]


@dataclass
class Fleet:
    prior_engine: Child


@given(st.lists(st.booleans(), max_size=30))
def test_one_adapter_is_on_its_way_at_most_and_the_newest_gets_there(is_new):
    """True: the learner has another one; False: the engine answers."""
    engine = Engine()
    calls = CallBook(engine, deadline_s=300.0)
    patient = LanguagePatient(Config(), calls, Fleet(Child("prior-engine", "prior_engine", None)))

    def answer() -> None:
        for _ in calls.ready():
            patient.published()

    version = 0
    for new in is_new:
        if new:
            version += 1
            patient.publish(Adapter(version, f"adapters/{version}"))
        else:
            answer()
        assert len(engine.sent) - engine.n_answered <= 1
    for _ in range(2):
        answer()
    assert not calls.n_in_flight("publish")
    assert engine.sent == sorted(set(engine.sent))
    assert engine.sent[-1:] == ([version] if version else [])


def test_an_adapter_that_waited_for_a_call_that_failed_is_not_sent_after_a_newer_one():
    engine, child = Engine(), Child("prior-engine", "prior_engine", None)
    calls = CallBook(engine, deadline_s=300.0)
    patient = LanguagePatient(Config(), calls, Fleet(child))
    for version in (1, 2):
        patient.publish(Adapter(version, f"adapters/{version}"))
    calls.drop(child)
    patient.publish(Adapter(3, "adapters/3"))
    for _ in calls.ready():
        patient.published()
    assert engine.sent == [1, 3]
