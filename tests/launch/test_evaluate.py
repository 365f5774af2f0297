"""`launch/evaluate.py` on a real run: what it writes, and what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from actors.envs.game import make_game
from actors.episodes import EpisodePlayer
from actors.evaluation_rows import starts_of
from actors.player import Player
from launch import evaluate
from launch.config import load_preset
from launch.reports.evaluation_file import file_stem

QUICK = ["--episodes", "3", "--max-steps", "15", "--simulations", "4"]


def copy(run: Path, to: Path) -> Path:
    return Path(shutil.copytree(run, to / "run"))


def test_four_ways_with_intervals_as_json_and_picture(finished_run: Path, tmp_path, capsys) -> None:
    run = copy(finished_run, tmp_path)
    assert evaluate.main([str(run), *QUICK]) == 0
    (path,) = (run / "evaluations").glob("*.json")
    found = json.loads(path.read_text())
    assert path.stem == found["checkpoint"] + "+episodes-3+simulations-4+max-steps-15"
    assert path.with_suffix(".png").stat().st_size > 5_000
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


def test_other_options_are_another_file(finished_run: Path, tmp_path) -> None:
    run = copy(finished_run, tmp_path)
    quick = ["--episodes", "1", "--max-steps", "3", "--simulations", "2"]
    for more in ([], ["--without-prior"], ["--temperature", "0.5"], []):
        assert evaluate.main([str(run), *quick, *more]) == 0
    names = [
        path.stem.partition("+max-steps-3")[2] for path in (run / "evaluations").glob("*.json")
    ]
    assert sorted(names) == ["", "+temperature-0.5", "+without-prior"]


def test_a_name_fits_a_file_system_and_tells_stages_apart() -> None:
    levels = [f"level/{i}" for i in range(100)]
    stems = {file_stem("step-1", {"stages": levels[:n]}) for n in (1, 98, 99, 100)}
    assert len(stems) == 4 and "step-1+stages-level_0" in stems
    assert all(len(stem) < 240 and "/" not in stem for stem in stems)


def test_a_checkpoint_that_lies_alone_stays_as_it_is(finished_run: Path, tmp_path) -> None:
    checkpoint = max((finished_run / "checkpoints").glob("step-*"))
    alone = Path(shutil.copytree(checkpoint, tmp_path / checkpoint.name))
    before = sorted(alone.rglob("*"))
    words = [str(alone), "--episodes", "1", "--max-steps", "3", "--simulations", "2"]
    assert evaluate.main(words) == 0
    assert sorted(alone.rglob("*")) == before
    assert len(list((tmp_path / "evaluations").iterdir())) == 2


@pytest.fixture
def own_ctrl_c() -> Iterator[None]:
    """As in a process of its own: the run before this has another handler."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt(monkeypatch: pytest.MonkeyPatch, in_call: int) -> None:
    """Ctrl-C while a way plays, the `in_call`-th time that one does."""

    class Interrupted(EpisodePlayer):
        n_calls = 0

        def play(self, *given, **named):
            Interrupted.n_calls += 1
            if Interrupted.n_calls == in_call:
                signal.raise_signal(signal.SIGINT)
            return super().play(*given, **named)

    monkeypatch.setattr(evaluate, "EpisodePlayer", Interrupted)


@pytest.mark.usefixtures("own_ctrl_c")
def test_ctrl_c_keeps_what_every_way_has_played(finished_run, tmp_path, monkeypatch, capsys):
    run = copy(finished_run, tmp_path)
    words = [str(run), "--episodes", "12", "--max-steps", "3", "--simulations", "2"]
    interrupt(monkeypatch, 6)  # in the second way's second turn
    assert evaluate.main(words) == 130
    (path,) = (run / "evaluations").glob("*.json")
    found = json.loads(path.read_text())
    assert found["is_interrupted"] and found["n_episodes"] == 12
    assert [row["n_episodes"] for row in found["rows"]] == [10] * 4
    assert len(found["episodes"]) == 40
    assert "10 episodes in each way, interrupted" in capsys.readouterr().out


@pytest.mark.usefixtures("own_ctrl_c")
def test_ctrl_c_before_every_way_has_played_writes_nothing(
    finished_run, tmp_path, monkeypatch, capsys
):
    run = copy(finished_run, tmp_path)
    interrupt(monkeypatch, 4)
    assert evaluate.main([str(run), *QUICK]) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not (run / "evaluations").exists()


@pytest.mark.parametrize("suffix", ["json", "png"])
def test_a_full_disk_is_told_and_the_table_is_printed(suffix, finished_run, tmp_path, capsys):
    run = copy(finished_run, tmp_path)
    words = [str(run), "--episodes", "1", "--max-steps", "3", "--simulations", "2"]
    checkpoint = max((run / "checkpoints").glob("step-*")).name
    stem = f"{checkpoint}+episodes-1+simulations-2+max-steps-3"
    (run / "evaluations").mkdir()
    (run / "evaluations" / f".{stem}.{suffix}").symlink_to("/dev/full")
    assert evaluate.main(words) == 1
    told = capsys.readouterr()
    assert f"{stem}.{suffix} can't be written: No space left on device" in told.err
    assert "greedy" in told.out
    left = {path.name for path in (run / "evaluations").iterdir()}
    assert left == (set() if suffix == "json" else {f"{stem}.json"})


def test_a_cut_evaluation_has_played_every_stage() -> None:
    starts = evaluate.in_turn(starts_of(("1-1", "1-2", "1-3"), 4, seed=0), 3)
    assert [start.level for start in starts[:6]] == ["1-1", "1-2", "1-3"] * 2
    assert len({start.seed for start in starts}) == 12


def test_chance_comes_from_idle_frames_or_from_moves_that_stick_not_from_both() -> None:
    config = load_preset("mario-quick")
    games = [make_game(config.env, seed) for seed in range(2)]
    player = Player(games, None, None, None)
    still = evaluate.without_noops(player, config.env)
    assert len(still.games) == 2
    for seed in range(3):
        moved = [game.reset("1-1", seed=seed) for game in (*games, *still.games)]
        np.testing.assert_array_equal(moved[2], moved[3])
    firsts = {still.games[0].reset("1-1", seed=seed).tobytes() for seed in range(6)}
    idled = {games[0].reset("1-1", seed=seed).tobytes() for seed in range(6)}
    assert len(firsts) == 1 < len(idled)
    for game in (*games, *still.games):
        game.close()
    assert evaluate.without_noops(player, load_preset("cartpole").env) is player


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
