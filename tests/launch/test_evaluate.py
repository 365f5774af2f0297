"""`launch/evaluate.py` on a real run: what it writes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from launch import evaluate

QUICK = ["--episodes", "3", "--max-steps", "15", "--simulations", "4"]


def copy(run: Path, to: Path) -> Path:
    return Path(shutil.copytree(run, to / "run"))


def test_four_ways_with_intervals_as_json_and_picture(finished_run: Path, tmp_path, capsys) -> None:
    run = copy(finished_run, tmp_path)
    assert evaluate.main([str(run), *QUICK]) == 0
    (path,) = (run / "evaluations").glob("*.json")
    found = json.loads(path.read_text())
    assert path.stem == found["checkpoint"] and path.with_suffix(".png").stat().st_size > 5_000
    assert [(r["moves"], r["chance"]) for r in found["rows"]] == [
        ("greedy", "no-ops"),
        ("greedy", "sticky"),
        ("sampled", "no-ops"),
        ("sampled", "sticky"),
    ]
    for row in found["rows"]:
        assert row["n_episodes"] == 3 and row["stage"] == ""
        assert row["clear_rate"] is None and row["max_x"] is None, "CartPole has neither"
        assert row["returns"]["low"] <= row["returns"]["value"] <= row["returns"]["high"]
        assert sum(row["ends"].values()) == 3
    assert len(found["episodes"]) == 12
    by_way = [[e["seed"] for e in found["episodes"][i : i + 3]] for i in range(0, 12, 3)]
    assert by_way[0] == by_way[1] == by_way[2] == by_way[3], "all ways play the same starts"
    assert found["env_steps"] >= 160 and found["simulations"] == 4
    out = capsys.readouterr().out
    assert "[evaluate] episodes: 3 of 12, greedy, no-ops\n" in out
    assert "[evaluate] episodes: 12 of 12, sampled, sticky\n" in out
    page = (Path(__file__).resolve().parents[2] / "docs" / "reports.md").read_text()
    for key in {*found, *found["rows"][0], *found["episodes"][0]}:
        assert f"`{key}`" in page, f"docs/reports.md does not say what {key} is"

    checkpoint = run / "checkpoints" / found["checkpoint"]
    assert evaluate.main([str(checkpoint), *QUICK]) == 0
    again = json.loads(path.read_text())
    assert again["episodes"] == found["episodes"], "the same seeds play the same episodes"


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        evaluate.main(words)
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--episodes", "0"], "--episodes must lie in [1, 10000], got 0"),
        (["--temperature", "0"], "--temperature must lie in [0.01, 10.0], got 0.0"),
        (["--sticky", "1.5"], "--sticky must lie in [0.0, 1.0], got 1.5"),
        (["--stages", "1-1"], "--stages: unknown level '1-1'; the game has none"),
        (["--simulations", "0"], "--simulations must lie in [1, 100000], got 0"),
    ],
)
def test_bad_options(words, expected, finished_run, tmp_path, capsys) -> None:
    assert expected in refused([str(copy(finished_run, tmp_path)), *words], capsys)


def test_what_is_no_run_is_refused(tmp_path, capsys) -> None:
    assert "does not exist" in refused([str(tmp_path / "nothing")], capsys)
    (tmp_path / "empty").mkdir()
    assert "neither a run with a usable checkpoint" in refused([str(tmp_path / "empty")], capsys)
    file = tmp_path / "file"
    file.write_text("x")
    assert "neither a run" in refused([str(file)], capsys)


def test_a_damaged_checkpoint_is_named_and_nothing_is_written(
    finished_run, tmp_path, capsys
) -> None:
    run = copy(finished_run, tmp_path)
    for checkpoint in (run / "checkpoints").glob("step-*"):
        (checkpoint / "learner" / "average.safetensors").write_bytes(b"half")
    assert "usable checkpoint" in refused([str(run)], capsys)
    assert not (run / "evaluations").exists()
    assert "average.safetensors" in refused([str(checkpoint)], capsys)
