"""What a report reads of the files of a long run, and that it is bounded."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.monitoring.rotation import part_numbers, put_aside, tidy
from launch.reports import history
from launch.reports.history import History
from launch.reports.page import write_report


def append(path: Path, *records: object) -> None:
    with path.open("a") as stream:
        stream.writelines(json.dumps(record) + "\n" for record in records)


def written(path: Path, n_parts: int, n_lines: int, *, n_raw: int = 0) -> None:
    """Parts of `n_lines` each, the newest `n_raw` not yet compressed, and a file that follows."""
    for part in range(n_parts + 1):
        append(path, *({"global_step": part * n_lines + i} for i in range(n_lines)))
        if part < n_parts:
            put_aside(path)
            if part < n_parts - n_raw:
                tidy(path, keep=1_000)


def steps(read: History) -> list[int]:
    return [record["global_step"] for record in read.thinned()]


def test_all_parts_are_read_from_the_first_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    written(path, 4, 5, n_raw=1)
    assert [p.suffix for p in sorted(tmp_path.iterdir())].count(".gz") == 3
    read = History(path)
    assert steps(read) == list(range(25))
    assert read.is_whole and read.n_skipped == 0


@settings(max_examples=40)
@given(n_lines=st.integers(0, 400), most=st.integers(1, 60))
def test_thinning_keeps_an_even_choice_and_the_newest(tmp_path_factory, n_lines, most):
    path = tmp_path_factory.mktemp("thin") / "metrics.jsonl"
    append(path, *({"global_step": i} for i in range(n_lines)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "MOST_LINES", most)
        found = steps(History(path))
    assert len(found) <= most + 1
    assert found[:1] == [0][:n_lines] and found[-1:] == [n_lines - 1][:n_lines]
    gaps = [b - a for a, b in pairwise(found)]
    assert len(set(gaps[:-1])) <= 1, "evenly, but for the newest"
    assert len(found) == n_lines or len(found) > most / 2


def test_of_more_than_fits_parts_are_left_out_evenly(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    written(path, 10, 50)
    whole = sum(len(gzip.decompress(part.read_bytes())) for part in tmp_path.glob("*.gz"))
    monkeypatch.setattr(history, "MOST_BYTES", whole // 3 + 50)
    read = History(path)
    found = steps(read)
    assert not read.is_whole
    assert sorted({step // 50 for step in found}) == [0, 3, 6, 9, 10], "the first and the newest"


def test_only_the_end_of_a_large_file_that_was_never_put_aside_is_read(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    written(path, 0, 200)
    monkeypatch.setattr(history, "MOST_OF_ONE_FILE", 500)
    read = History(path)
    found = steps(read)
    assert found[-1] == 199 and 5 < len(found) < 50
    assert not read.is_whole and read.n_skipped == 0, "half a line is no damage"
    write_report([tmp_path], tmp_path / "report.html")
    assert "of its long files only a part was read" in (tmp_path / "report.html").read_text()


def test_damaged_parts_cost_themselves_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    written(path, 8, 50)
    first, second, third, *_ = sorted(tmp_path.glob("*.gz"))
    first.write_bytes(b"no gzip")
    data = bytearray(second.read_bytes())
    for place in range(20, len(data), 7):
        data[place] ^= 0xFF
    second.write_bytes(data)
    third.write_bytes(third.read_bytes()[:-30])
    read = History(path)
    found = steps(read)
    assert read.n_skipped >= 3 and set(range(150, 450)) <= set(found)


def test_the_newest_events_of_each_kind_are_kept_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "MOST_OF_A_KIND", 3)
    path = tmp_path / "events.jsonl"
    lines = [
        {"timestamp": float(i), "event": "failed" if i in (2, 50) else "episode_end", "i": i}
        for i in range(100)
    ]
    append(path, *lines[:60])
    put_aside(path)
    tidy(path, keep=10)
    append(path, *lines[60:], {"event": "odd", "timestamp": 1}, {"no": "event"}, [1], "x")
    read = History(path)
    events, counts = read.events()
    assert [event.get("i") for event in events] == [2, 50, 97, 98, 99, None, None]
    assert counts == Counter(episode_end=98, failed=2, odd=1, **{"None": 1})
    assert read.n_skipped == 2


def test_kinds_without_end_do_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "MOST_KINDS", 2)
    monkeypatch.setattr(history, "MOST_OF_A_KIND", 3)
    path = tmp_path / "events.jsonl"
    append(path, *({"timestamp": 1.0, "event": f"kind_{i}"} for i in range(50)))
    events, counts = History(path).events()
    assert len(events) <= 9 and events[-1]["event"] == "kind_49" and counts.total() == 50


def test_a_file_that_is_not_there_is_empty(tmp_path):
    read = History(tmp_path / "none" / "metrics.jsonl")
    assert read.thinned() == [] and read.events()[0] == [] and read.is_whole
    assert part_numbers(tmp_path / "none" / "metrics.jsonl") == []
