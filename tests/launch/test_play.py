"""`launch/play.py` on a real run."""

from __future__ import annotations

from pathlib import Path

import imageio.v2 as imageio
import pytest

from launch import play


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_an_episode_becomes_a_file(suffix, finished_run: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / f"episode.{suffix}"
    words = [str(finished_run), "--out", str(out), "--max-steps", "8", "--simulations", "4"]
    assert play.main(words) == 0
    frames = imageio.mimread(out, memtest=False)
    assert len(frames) >= 5 and frames[0].shape[:2] == (480, frames[0].shape[1])
    assert frames[0].shape[1] > 800, "the opinions stand beside the game"
    assert [p.name for p in tmp_path.iterdir()] == [out.name], "nothing temporary stays"
    printed = capsys.readouterr().out
    assert "[play] agent: return 8.00 in 8 steps, ended by timeout" in printed


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--out", "film.avi"], "--out film.avi must end in .mp4 or .gif"),
        (["--out", "nowhere/film.gif"], "there is no folder"),
        ([], "there is no terminal to show it in: give --out"),
        (["--out", "film.gif", "--person"], "--person needs a terminal"),
        (["--fps", "1000"], "--fps must lie in [0.0, 240.0], got 1000.0"),
        (["--out", "film.gif", "--stage", "1-1"], "has no levels, so level '1-1' can't be chosen"),
    ],
)
def test_bad_options(words, expected, finished_run, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        play.main([str(finished_run), *words])
    assert caught.value.code == 2
    assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_run_is_refused(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        play.main([str(tmp_path), "--out", str(tmp_path / "film.gif")])
    assert caught.value.code == 2
    assert "neither a run with a usable checkpoint" in capsys.readouterr().err
