"""The newest records of files of any size, also while they are put aside."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.monitoring.json_lines import JsonLinesFile, JsonLinesReader
from launch.monitoring.record_tail import Tail, last_record, newest_records
from launch.monitoring.rotation import put_aside, tidy


def line(**fields: object) -> str:
    return json.dumps(fields) + "\n"


def test_the_last_record_is_the_last_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_record(path) == ({}, 0)
    path.write_text(line(n=1) + line(n=2) * 20_000 + line(n=3) + 'not json\n{"n"')
    assert last_record(path) == ({"n": 3}, 1)


@pytest.mark.parametrize("n_bytes", [65_535, 65_536, 3_000_000])
def test_a_record_of_any_length_is_found(tmp_path: Path, n_bytes: int) -> None:
    path = tmp_path / "heartbeat.jsonl"
    path.write_text(line(n=1) + line(n=2, text="x" * n_bytes))
    assert last_record(path)[0]["n"] == 2


@pytest.mark.parametrize("is_compressed", [False, True])
def test_right_after_the_file_was_put_aside_its_part_has_the_last_record(
    tmp_path: Path, is_compressed: bool
) -> None:
    path = tmp_path / "metrics.jsonl"
    for n in range(2):
        path.write_text(line(n=-1) * 20_000 + line(n=n))
        put_aside(path)
    if is_compressed:
        tidy(path, keep=9)
    assert last_record(path)[0] == {"n": 1}
    path.write_text('{"half')
    assert last_record(path)[0] == {"n": 1}
    path.write_text(line(n=2))
    assert last_record(path)[0] == {"n": 2}


def test_older_parts_are_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for number in (1, 2):
        Path(f"{path}.{number:06d}.gz").write_bytes(b"no gzip")
    path.write_text(line(n=1) + line(n=2))
    assert last_record(path) == ({"n": 2}, 0)
    assert newest_records(path, 15) == Tail([{"n": 2}], 0, False)
    assert newest_records(path, 1000) == Tail([{"n": 1}, {"n": 2}], 2, True), "damaged and told"


@settings(max_examples=60)
@given(
    moves=st.lists(st.sampled_from(["write", "put aside", "compress"]), max_size=30),
    most_bytes=st.integers(1, 200),
    torn=st.booleans(),
)
def test_the_tail_is_the_end_of_what_a_reader_reads(
    moves: list[str], most_bytes: int, torn: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, n_written = Path(folder) / "events.jsonl", 0
        file = JsonLinesFile(path)
        for move in moves:
            if move == "write":
                file.append({"n": n_written})
                n_written += 1
            elif move == "put aside" and path.exists():
                file.close()
                put_aside(path)
            elif move == "compress":
                tidy(path, keep=100)
        file.close()
        if torn:
            with path.open("a") as stream:
                stream.write('{"n": 99')
        everything = JsonLinesReader(path).read_new()
        assert last_record(path)[0] == (everything[-1] if everything else {})
        tail = newest_records(path, most_bytes)
        n_found = len(tail.records)
        assert tail.n_skipped == 0 and tail.records == everything[len(everything) - n_found :]
        assert not tail.is_whole or n_found == len(everything)
        size = sum(len(line(**record)) for record in tail.records)
        assert size <= most_bytes
        rest = everything[: len(everything) - n_found]
        assert torn or not rest or size + len(line(**rest[-1])) >= most_bytes, "no more would fit"
