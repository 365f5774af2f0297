"""`launch/play.py` on a real run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imageio.v2 as imageio
import pytest

from launch import play

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_an_episode_becomes_a_file(suffix, finished_run: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / f"episode.{suffix}"
    words = [str(finished_run), "--out", str(out), "--max-steps", "7", "--simulations", "4"]
    assert play.main(words) == 0
    frames = imageio.mimread(out, memtest=False)
    assert len(frames) >= 5 and frames[0].shape[:2] == (480, frames[0].shape[1])
    assert frames[0].shape[1] > 800, "the opinions stand beside the game"
    assert [p.name for p in tmp_path.iterdir()] == [out.name], "nothing temporary stays"
    printed = capsys.readouterr().out
    assert "[play] agent: return 7.00 in 7 steps, ended by timeout" in printed


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


class Terminal:
    """A pseudo-terminal: what is shown there, and keys."""

    def __init__(self) -> None:
        self._ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 110, 0, 0))
        self.before = self.settings()
        self.shown = ""

    def settings(self) -> list[object]:
        return termios.tcgetattr(self.theirs)

    def read_until(self, words: str, limit_s: float = 120.0) -> None:
        deadline = time.monotonic() + limit_s
        while words not in self.shown:
            assert time.monotonic() < deadline, f"no {words!r} in:\n{self.shown[-3000:]}"
            if select.select([self._ours], [], [], 0.2)[0]:
                self.shown += os.read(self._ours, 1 << 16).decode(errors="replace")

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def close(self) -> None:
        os.close(self._ours)
        os.close(self.theirs)


def test_a_person_plays_and_then_watches_in_a_terminal(finished_run: Path, monkeypatch) -> None:
    """In this process, which has compiled the search already."""
    last_words = "[play] agent: return 4.00 in 4 steps, ended by timeout"

    def play_it() -> None:
        terminal.read_until("q gives up")
        terminal.press(b"1x2q")
        terminal.read_until(last_words)

    words = [str(finished_run), "--person", "--max-steps", "4", "--simulations", "4", "--fps", "0"]
    with (
        contextlib.closing(Terminal()) as terminal,
        open(os.dup(terminal.theirs)) as keys,
        open(os.dup(terminal.theirs), "w") as screen,
        monkeypatch.context() as patch,
        ThreadPoolExecutor(1) as person,
    ):
        patch.setattr(sys, "stdin", keys)
        patch.setattr(sys, "stdout", screen)
        played = person.submit(play_it)
        code = play.main(words)
        screen.flush()
        played.result()
    shown = terminal.shown
    assert code == 0
    assert "1/left action 0, 2/right action 1" in shown
    assert "step 0, return 0.0" in shown and "\u2580" in shown, "a picture"
    assert "[play] you: return 2.00 in 2 steps, ended by given up" in shown
    agent = shown[shown.rindex("q gives up") :]
    assert "search" in agent and "policy" in agent and "value" in agent


def test_ctrl_c_gives_the_terminal_back(finished_run: Path) -> None:
    with contextlib.closing(Terminal()) as terminal:
        process = subprocess.Popen(
            [sys.executable, "launch/play.py", str(finished_run), "--person"],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=terminal.theirs,
            stdout=terminal.theirs,
            stderr=terminal.theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        try:
            terminal.read_until("q gives up")
            assert terminal.settings() != terminal.before
            terminal.press(b"\x03")
            assert process.wait(timeout=30) == 130
        finally:
            process.kill()
            process.wait()
        assert terminal.settings() == terminal.before
        assert "Traceback" not in terminal.shown
