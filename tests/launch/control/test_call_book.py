"""The book of calls against a plain list of them, over random histories."""

from itertools import chain, combinations

from hypothesis import given
from hypothesis import strategies as st

from launch.control.call_book import CallBook
from launch.control.runtime import Call, Child

METHODS = ("collect", "add", "ping")
DEADLINES_S = (None, 4.0, 30.0)
DEFAULT_S = 10.0
CHILDREN = [Child(f"env-actor-{i}", "env_actor", None) for i in range(3)]


class Answering:
    """A runtime in which the chosen calls are answered, and time passes when told."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.answered: list[Call] = []

    def now(self) -> float:
        return self.seconds

    def call(self, child, method, *args, deadline_s, with_payload):
        return Call(child, method, self.seconds, deadline_s, answer=None, args=args)

    def wait(self, calls, timeout_s):
        return [call for call in self.answered if call in calls]


def issue(children=CHILDREN):
    return st.tuples(
        st.just("issue"),
        st.sampled_from(children),
        st.sampled_from(METHODS),
        st.sampled_from(DEADLINES_S),
    )


STEPS = st.lists(
    st.one_of(
        issue(),
        st.tuples(st.just("answer"), st.lists(st.integers(0, 20), max_size=5)),
        st.tuples(st.just("drop"), st.sampled_from(CHILDREN), st.sampled_from(("", *METHODS))),
        st.tuples(st.just("wait"), st.sampled_from((0.5, 2.0, 6.0))),
    ),
    max_size=60,
)


@given(STEPS)
def test_every_question_is_answered_as_by_looking_at_all_calls(steps):
    runtime = Answering()
    book = CallBook(runtime, DEFAULT_S)
    held: list[Call] = []
    for kind, *given_values in steps:
        if kind == "issue":
            child, method, deadline_s = given_values
            held.append(book.issue(child, method, deadline_s=deadline_s))
            assert held[-1].deadline_s == (deadline_s or DEFAULT_S)
        elif kind == "answer":
            positions = {i for i in given_values[0] if i < len(held)}
            runtime.answered = [held[i] for i in sorted(positions)]
            assert list(book.ready()) == runtime.answered
            held = [call for call in held if call not in runtime.answered]
        elif kind == "drop":
            child, keep = given_values
            dropped = [call for call in held if call.child is child and call.method != keep]
            assert book.drop(child, keep=keep) == dropped
            held = [call for call in held if call not in dropped]
        else:
            runtime.seconds += given_values[0]
        check(book, held, runtime.now())


def check(book: CallBook, held: list[Call], now: float) -> None:
    late = {call for call in held if now - call.issued_at > call.deadline_s / 2}
    answer = book.late()
    assert set(answer) == late and len(answer) == len(late)
    some = chain.from_iterable(combinations(METHODS, n) for n in range(len(METHODS) + 1))
    for methods in some:
        for child in (None, *CHILDREN):
            expected = sum(
                (not methods or call.method in methods) and child in (None, call.child)
                for call in held
            )
            assert book.n_in_flight(*methods, child=child) == expected, (methods, child)


def test_calls_dropped_while_an_earlier_one_is_handled_are_skipped():
    runtime = Answering()
    book = CallBook(runtime, DEFAULT_S)
    runtime.answered = [book.issue(child, "ping") for child in (*CHILDREN, CHILDREN[0])]
    handled = []
    for call in book.ready():
        handled.append(call.child)
        book.drop(CHILDREN[0])
    assert handled == CHILDREN and book.n_in_flight() == 0


def test_nothing_is_remembered_of_a_child_without_calls():
    """Replaced env actors would otherwise stay in memory, and with them what they were given."""
    runtime = Answering()
    book = CallBook(runtime, DEFAULT_S)
    runtime.answered = [book.issue(Child("env-actor-0", "env_actor", None), "ping")]
    list(book.ready())
    assert not book._by_child and not book._calls
