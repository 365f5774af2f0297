"""Seconds by process and stage, and what remains."""

import io
import time
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from launch.tracing.time_book import TimeBook
from launch.tracing.timing_tree import MOST_OF_A_ROLE, timing_tree
from replay_service.stage_times import add_seconds, stage_listener


@dataclass
class Report:
    seconds: dict[str, float] = field(default_factory=dict)


def test_stages_of_an_answer_add_up_to_its_time_and_the_rest_is_waiting():
    book = TimeBook(0.0)
    collect = Report({"env": 1.0, "search": 2.0, "prior_wait": 0.5, "pull": 0.25, "total": 4.0})
    book.answered("env-actor-0", "env_actor", "collect", 4.0, 4.0, collect)
    book.answered("env-actor-0", "env_actor", "collect", 9.0, 4.0, collect)
    stages = book.stages("env-actor-0", 10.0)
    assert stages == {
        "search": (4.0, 2),
        "env": (2.0, 2),
        "insert-wait": (2.0, 0),
        "prior-wait": (1.0, 2),
        "transfer": (0.5, 2),
        "other": (0.5, 2),
    }
    assert list(stages.values()) == sorted(stages.values(), key=lambda row: -row[0])
    assert sum(seconds for seconds, _ in stages.values()) == pytest.approx(10.0)


def test_calls_without_stages_are_named_by_what_they_are():
    book = TimeBook(0.0)
    for name in ("learner", "evaluator"):
        book.answered(name, name, "ping", 1.0, 1.0, 1234)
    book.answered("learner", "learner", "save", 3.0, 2.0, None)
    book.answered("learner", "learner", "ping", 3.5, 0.5, 1234)
    book.answered("evaluator", "evaluator", "evaluate", 6.0, 5.0, object())
    assert book.stages("learner", 5.0) == {
        "checkpoint": (2.0, 1),
        "limiter-wait": (2.0, 0),
        "start": (1.0, 1),
    }
    assert book.metrics(10.0) == {
        "time_percent/learner/checkpoint": pytest.approx(20.0),
        "time_percent/evaluator/evaluate": pytest.approx(50.0),
        "time_percent/evaluator/start": pytest.approx(10.0),
    }
    assert all(share == 0.0 for share in book.metrics(20.0).values())  # since the last look


def test_records_have_only_what_reports_of_children_do_not_say():
    book = TimeBook(0.0)
    train = Report({"sample_wait": 1.0, "compute": 2.0})
    for role in ("learner", "language_learner"):
        book.answered(role, role, "train", 5.0, 5.0, train)
    assert book.metrics(10.0) == {
        "wait_percent/language_learner/sample": pytest.approx(10.0),
        "time_percent/language_learner/train": pytest.approx(20.0),
    }


@given(st.lists(st.tuples(st.integers(0, 20), st.floats(0.0, 5.0)), min_size=1, max_size=60))
def test_shares_of_a_role_are_means_over_its_processes(answers):
    book, now = TimeBook(0.0), 0.0
    for number in {number for number, _ in answers}:
        book.answered(f"replay-{number}", "replay", "ping", now, 0.0, 1234)
    for number, seconds in answers:
        now += 5.0
        book.answered(f"replay-{number}", "replay", "add", now, seconds, None)
    n_processes = len({number for number, _ in answers})
    total = sum(seconds for _, seconds in answers)
    share = book.metrics(now)["time_percent/replay/add"]
    assert share == pytest.approx(100.0 * total / now / n_processes, abs=1e-9)


def text_of(book: TimeBook, now: float) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(timing_tree(book, now))
    return console.export_text()


def test_the_tree_has_every_process_or_one_branch_for_many():
    book = TimeBook(0.0)
    book.driver("work", 1.0)
    book.answered("learner", "learner", "train", 5.0, 5.0, Report({"compute": 4.0}))
    for index in range(MOST_OF_A_ROLE + 1):
        report = Report({"env": 2.0})
        book.answered(f"env-actor-{index}", "env_actor", "collect", 5.0, 5.0, report)
    text = text_of(book, 10.0)
    assert f"env_actor, mean of {MOST_OF_A_ROLE + 1}" in text and "env-actor-0" not in text
    (train,) = [line for line in text.splitlines() if "train" in line]
    assert "40.0 %" in train and "1 x 4,000.0 ms" in train


def test_a_listener_hears_of_each_stage():
    heard, seconds = [], {}
    began = time.perf_counter()
    token = stage_listener.set(lambda *span: heard.append(span))
    mark = add_seconds(seconds, "env", began)
    stage_listener.reset(token)
    add_seconds(seconds, "env", mark)
    assert heard == [("env", began, mark)]
    assert seconds["env"] >= mark - began
