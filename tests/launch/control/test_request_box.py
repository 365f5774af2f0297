"""Requests of live pages through the run directory: whole, once, in order, and never trusted."""

import json
import os
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launch.control.request_box import (
    ANSWER_STAYS_S,
    LARGEST_BYTES,
    MOST_AT_ONCE,
    VIEWER_STAYS_S,
    Answer,
    RequestBox,
    RequestDesk,
)


class Clock:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def box(tmp_path, clock):
    box = RequestBox(tmp_path, clock)
    box.begin()
    return box


@pytest.fixture
def desk(tmp_path):
    return RequestDesk(tmp_path)


def test_requests_come_in_their_order_and_are_answered_once(box, desk):
    names = [desk.put({"number": number}) for number in range(MOST_AT_ONCE + 3)]
    taken = box.take()
    assert [r.content["number"] for r in taken] == list(range(MOST_AT_ONCE))
    assert [r.name for r in taken] == names[:MOST_AT_ONCE]
    assert [r.content["number"] for r in box.take()] == [16, 17, 18]
    assert box.take() == []
    box.answer(taken[0], Answer(False, "no"))
    assert desk.answer(names[1]) is None
    assert desk.answer(names[0]) == Answer(False, "no")
    assert desk.answer(names[0]) is None
    assert not desk.withdraw(names[2]), "it was taken"
    late = desk.put({})
    assert desk.withdraw(late) and box.take() == []


def test_what_was_asked_of_an_earlier_process_is_gone(box, desk, tmp_path, clock):
    name = desk.put({"ask": "checkpoint"})
    desk.look(1, 2)
    again = RequestBox(tmp_path, clock)
    again.begin()
    assert again.take() == [] and again.viewer() is None and desk.answer(name) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_request_without_sense(box, tmp_path, content):
    (tmp_path / "requests" / "x.request").write_bytes(content)
    (request,) = box.take()
    try:
        expected = json.loads(content)
    except (ValueError, RecursionError):
        expected = None
    assert request.content == expected or isinstance(expected, float | dict | list)
    assert box.take() == []


def test_an_answer_that_nobody_reads_does_not_stay(box, desk, tmp_path, clock):
    read, unread = desk.put({}), desk.put({})
    for request in box.take():
        box.answer(request, Answer(True, "done"))
    assert desk.answer(read) == Answer(True, "done")
    clock.seconds += ANSWER_STAYS_S
    box.take()
    assert [p.name for p in (tmp_path / "requests").iterdir()] == [f"{unread}.answer"]
    clock.seconds += 0.1
    box.take()
    assert list((tmp_path / "requests").iterdir()) == []


def test_strange_files_are_taken_for_nothing(box, desk, tmp_path):
    folder = tmp_path / "requests"
    (folder / "a.request").write_bytes(b'"' + b"x" * LARGEST_BYTES + b'"')
    (folder / "b.request").mkdir()
    os.symlink("/nowhere", folder / "c.request")
    (folder / ".d.request.12").write_text("{}")  # being written
    taken = [(request.name, request.content) for request in box.take()]
    assert taken == [("a", None), ("c", None)], "a folder is no request, and stays"
    assert box.take() == []
    name = desk.put({})
    (folder / f"{name}.answer").write_text("[1, 2")
    assert desk.answer(name) == Answer(False, "")


def test_a_viewer_counts_while_it_gives_signs(box, desk, clock, tmp_path):
    assert box.viewer() is None
    desk.look(1, 2)
    assert box.viewer() == (1, 2)
    clock.seconds += VIEWER_STAYS_S
    assert box.viewer() == (1, 2)
    clock.seconds += 0.1
    assert box.viewer() is None, "it went without a word"
    desk.look(0, 3)
    assert box.viewer() == (0, 3)
    desk.leave()
    assert box.viewer() is None
    rng = random.Random(0)
    for text in ("[]", '{"actor": -1, "env": true}', "{", "null", '{"actor": "a", "env": 1e400}'):
        path = tmp_path / "requests" / "viewer.json"
        path.write_text(text)
        os.utime(path, ns=(rng.randrange(10**18), rng.randrange(10**18)))
        assert box.viewer() == (0, 0), "somebody looks, wherever at"


def test_a_folder_that_cannot_be_made_means_that_nobody_asks(tmp_path, clock):
    (tmp_path / "requests").write_text("")
    box = RequestBox(tmp_path, clock)
    box.begin()
    assert box.take() == [] and box.viewer() is None
    with pytest.raises(OSError):
        RequestDesk(tmp_path).put({})
