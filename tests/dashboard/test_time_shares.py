"""Shares of wall time by process, from what `timings.json` says now and said a minute ago."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.dashboard.time_shares import LEAST_WINDOW_S, NOTHING_ASKED, WINDOW_S, TimeShares


def process(role: str, wall_s: float, work: tuple[str, float] | None = None, **stages: float):
    content = {
        "role": role,
        "wall_s": wall_s,
        "stages": {name.replace("_", "-"): [seconds, 1] for name, seconds in stages.items()},
    }
    return content | ({} if work is None else {"work": {"method": work[0], "age_s": work[1]}})


def times(at: float, **processes: dict) -> dict:
    named = {name.replace("_", "-"): content for name, content in processes.items()}
    return {"timestamp": at, "processes": named}


def shares(book: TimeShares, *, has_ended: bool = False) -> dict[str, dict[str, float]]:
    rows = book.section({}, has_ended=has_ended)["rows"]
    return {row["name"]: {p["what"]: p["share"] for p in row["parts"]} for row in rows}


def test_a_running_run_shows_its_last_minute_and_an_ended_one_all_its_time():
    book = TimeShares()
    for at, train in ((0.0, 10.0), (WINDOW_S, 70.0), (2 * WINDOW_S, 100.0)):
        wall_s = 100.0 + at
        book.add(times(at, learner=process("learner", wall_s, train=train, limiter_wait=1.0)))
    assert shares(book) == {"learner": pytest.approx({"train": 0.5, NOTHING_ASKED: 0.5})}
    assert book.section({}, has_ended=False)["over"] == "in the last 60 s"
    whole = 100.0 / 220.0
    assert shares(book, has_ended=True) == {
        "learner": pytest.approx({"train": whole, NOTHING_ASKED: 1 - whole})
    }
    assert book.section({}, has_ended=True)["over"] == "since the last start"


def test_of_a_page_just_opened_all_time_is_shown():
    book = TimeShares()
    book.add(times(0.0, learner=process("learner", 100.0, train=20.0)))
    book.add(times(LEAST_WINDOW_S - 1, learner=process("learner", 114.0, train=34.0)))
    assert book.section({}, has_ended=False)["over"] == "since the last start"


def test_a_call_longer_than_the_window_is_work_and_never_more_than_all_time():
    """40 s under way at first; its 100 s are booked when it is answered."""
    book = TimeShares()
    book.add(times(0.0, actor=process("env_actor", 50.0, ("collect", 40.0), search=5.0)))
    book.add(times(WINDOW_S, actor=process("env_actor", 110.0, ("collect", 100.0), search=5.0)))
    assert shares(book)["actor"]["collect (under way)"] == pytest.approx(1.0)
    later = process("env_actor", 150.0, search=85.0, env=20.0)
    book.add(times(WINDOW_S + 40.0, actor=later))  # since WINDOW_S it has ended and nothing began
    found = shares(book)["actor"]
    assert sum(found.values()) == pytest.approx(1.0)
    assert found["search"] == pytest.approx(4 * found["env"])


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 90)), min_size=1, max_size=30),
    st.integers(1, 20),
)
def test_shares_of_the_window_are_those_of_a_process_watched_second_by_second(spans, period):
    """It works (one call a span) or waits; the truth is what it did in the window's seconds."""
    book, truth, booked = TimeShares(), [], 0
    for is_call, length in spans:
        for second in range(length):
            truth.append(is_call)
            if is_call and second == length - 1:
                booked += length
            if len(truth) % period:
                continue
            age = second + 1 if is_call and second < length - 1 else 0
            work = ("collect", float(age)) if age else None
            book.add(
                times(
                    float(len(truth)),
                    actor=process("env_actor", float(len(truth)), work, search=float(booked)),
                )
            )
    (_, found) = next(iter(shares(book).items()), ("", None))
    if found is None:
        return
    section = book.section({}, has_ended=False)
    n_taken = len(truth) - len(truth) % period
    began = (
        0
        if section["over"] == "since the last start"
        else n_taken - int(section["over"].split()[3])
    )
    window = truth[began:n_taken]
    waits = found.pop(NOTHING_ASKED)
    assert sum(found.values()) == pytest.approx(sum(window) / len(window), abs=1e-6)
    assert waits == pytest.approx(1 - sum(window) / len(window), abs=1e-6)


def test_many_of_a_role_share_a_row_and_the_driver_may_wait_elsewhere():
    book = TimeShares()
    many = {f"env_actor_{i}": process("env_actor", 10.0, env=float(i)) for i in range(10)}
    stages = {"work": [2.0, 1], "idle": [3.0, 1]}
    driver = {"role": "driver", "wall_s": 10.0, "stages": stages}
    book.add(times(0.0, driver=driver, **many))
    found = shares(book)
    assert found["env actor, mean of 10"] == pytest.approx({"env": 0.45, NOTHING_ASKED: 0.55})
    assert found["driver"] == pytest.approx({"work": 0.2, "idle": 0.3})


def test_another_process_of_the_run_begins_anew():
    book = TimeShares()
    for at in (0.0, 30.0, 60.0):
        book.add(times(at, learner=process("learner", 100.0 + at, train=100.0 + at)))
    book.add(times(90.0, learner=process("learner", 10.0, train=1.0)))
    assert shares(book) == {"learner": pytest.approx({"train": 0.1, NOTHING_ASKED: 0.9})}


def test_runs_without_the_file_show_their_newest_record():
    record = {
        "time_percent/env_actor/search": 30.0,
        "wait_percent/env_actor/prior": 50.0,
        "wait_percent/env_actor/limiter": 20.0,
        "time_percent/x": "much",
    }
    section = TimeShares().section(record, has_ended=False)
    (row,) = section["rows"]
    assert (row["name"], section["over"]) == ("env actor", "in the newest record")
    found = {p["what"]: (p["share"], p["is_wait"]) for p in row["parts"]}
    assert found == {
        "search": (0.3, False),
        "waits for prior": (0.5, True),
        NOTHING_ASKED: (0.2, True),
    }
