"""Files that grow too large, and those who read them meanwhile."""

from __future__ import annotations

import gzip
import json
import logging
import tempfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.monitoring.json_lines import JsonLinesFile, JsonLinesReader
from launch.monitoring.metrics_writer import MetricsWriter
from launch.monitoring.record_tail import newest_records
from launch.monitoring.rotation import Rotation, part_numbers, put_aside, tidy


def numbers(reader: JsonLinesReader) -> list[int]:
    return [record["n"] for record in reader.read_new()]


def rotated(path: Path, n_records: int, *, keep: int, max_bytes: int = 50) -> None:
    file = JsonLinesFile(path, Rotation(max_bytes, keep))
    for n in range(n_records):
        file.append({"n": n})
        if file._tidying is not None:
            file._tidying.join()
    file.close()


def test_parts_are_compressed_and_the_oldest_go(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rotated(path, 100, keep=3)
    assert len(part_numbers(path)) == 3
    assert {file.suffix for file in tmp_path.iterdir()} == {".gz", ".jsonl"} or not path.exists()
    oldest = tmp_path / f"metrics.jsonl.{part_numbers(path)[0]:06d}.gz"
    first = json.loads(gzip.decompress(oldest.read_bytes()).splitlines()[0])["n"]
    assert numbers(JsonLinesReader(path)) == list(range(first, 100))
    assert path.stat().st_size < 60 if path.exists() else True


@settings(max_examples=40)
@given(
    moves=st.lists(st.sampled_from(["write", "put aside", "compress", "read"]), max_size=40),
    torn=st.booleans(),
)
def test_a_reader_gets_every_record_once_and_in_order(moves: list[str], torn: bool) -> None:
    """However writing, putting aside, compressing and reading follow on each other."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"
        file, reader, seen, n_written = JsonLinesFile(path), JsonLinesReader(path), [], 0
        for move in moves:
            if move == "write":
                file.append({"n": n_written})
                n_written += 1
            elif move == "put aside" and path.exists():
                file.close()
                put_aside(path)
            elif move == "compress":
                tidy(path, keep=100)
            elif move == "read":
                seen += numbers(reader)
        file.close()
        if torn:
            with path.open("a") as stream:
                stream.write('{"n": 99')
        seen += numbers(reader)
        assert seen == list(range(n_written))
        assert numbers(JsonLinesReader(path)) == seen, "a new reader reads all parts"


def test_a_reader_that_is_far_behind_goes_on_with_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    reader = JsonLinesReader(path)
    rotated(path, 3, keep=2, max_bytes=10_000)
    assert numbers(reader) == [0, 1, 2]
    rotated(path, 100, keep=2)
    left = numbers(reader)
    assert left == list(range(left[0], 100)) and left[0] > 50


def test_a_damaged_part_costs_its_records_only(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rotated(path, 30, keep=9)
    second = tmp_path / f"metrics.jsonl.{part_numbers(path)[1]:06d}.gz"
    n_lost = gzip.decompress(second.read_bytes()).count(b"\n")
    second.write_bytes(second.read_bytes()[:20])
    assert len(numbers(JsonLinesReader(path))) == 30 - n_lost


def test_a_flipped_byte_costs_records_of_its_part_only(tmp_path: Path) -> None:
    """Whichever byte it is: of the header, of the deflated data, of the sum at the end."""
    path = tmp_path / "metrics.jsonl"
    rotated(path, 30, keep=9)
    second = tmp_path / f"metrics.jsonl.{part_numbers(path)[1]:06d}.gz"
    whole = second.read_bytes()
    its_own = {json.loads(line)["n"] for line in gzip.decompress(whole).splitlines()}
    seen = set()
    for at in range(len(whole)):
        second.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            gzip.decompress(second.read_bytes())
        except (OSError, EOFError, zlib.error) as error:
            seen.add(type(error))
        found = {record.get("n") for record in JsonLinesReader(path).read_new()}
        assert found >= set(range(30)) - its_own, at
        assert newest_records(path, 10_000).records
    assert zlib.error in seen


def test_a_part_left_by_a_crash_is_read_and_compressed_with_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rotated(path, 3, keep=9, max_bytes=10_000)
    put_aside(path)
    assert numbers(JsonLinesReader(path)) == [0, 1, 2]
    rotated(path, 10, keep=9)
    assert [file for file in tmp_path.iterdir() if file.suffix not in (".gz", ".jsonl")] == []
    assert numbers(JsonLinesReader(path)) == [0, 1, 2, *range(10)]


def test_a_folder_that_takes_no_part_lets_the_file_grow(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise PermissionError("not here")

    monkeypatch.setattr("launch.monitoring.json_lines.put_aside", fail)
    path = tmp_path / "metrics.jsonl"
    with caplog.at_level(logging.WARNING):
        rotated(path, 20, keep=2)
    assert numbers(JsonLinesReader(path)) == list(range(20))
    assert caplog.text.count("goes on growing") == 1


def test_metrics_and_events_are_put_aside_alike(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, tensorboard=False, rotation=Rotation(200, 2)) as writer:
        for step in range(20):
            writer.write({"a": 1.0}, update=step, global_step=step)
            writer.event("checkpoint", step=step)
    for name in ("metrics.jsonl", "events.jsonl"):
        assert part_numbers(tmp_path / name)


def test_a_reader_that_stops_in_the_middle_goes_on_there(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rotated(path, 30, keep=9)
    reader = JsonLinesReader(path)
    taken = [record["n"] for _, record in zip(range(8), reader.iter_new(), strict=False)]
    assert taken + numbers(reader) == list(range(30))
