"""What a user can get wrong: one screen naming field, value and remedy; exit code 2."""

import importlib.util
import os
import socket
from pathlib import Path

import pytest
import torch

from launch import train


def refused(capsys, run_dir: Path, *arguments: str) -> str:
    """The message of a refused run; asserts exit code 2, one screen, and no run directory."""
    with pytest.raises(SystemExit) as caught:
        train.main([*arguments, "--run-dir", str(run_dir)])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert not run_dir.exists()
    assert "Traceback" not in captured.err
    assert 0 < len(captured.err.splitlines()) <= 24
    return " ".join(captured.err.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--env", "CartPoll-v1"], ["env.id", "CartPoll-v1", "CartPole-v1"]),
        (["--env", "Pendulum-v1"], ["env.id", "Pendulum-v1", "discrete"]),
        (["--env.rom", "/nowhere/mario.nes"], ["env.rom", "/nowhere/mario.nes"]),
        (["--prior.model", "./no/such/model"], ["prior.model", "./no/such/model"]),
        (
            ["--replay.capacity-mb", "0.5", "--learner.batch-size", "4096"],
            ["capacity_mb", "0.5", "batch_size=4096", "raise replay.capacity_mb"],
        ),
        (
            ["--total-env-steps", "100", "--replay.min-positions", "5000"],
            ["replay.min_positions=5000", "total_env_steps=100"],
        ),
        (
            ["--search.recurrent-pages", "60", "--simulations", "25"],
            ["search.recurrent_pages=60", "n_simulations=25", "4 * 25 = 100 pages"],
        ),
        (
            ["--search.init-pages", "20", "--model.window-steps", "12"],
            ["search.init_pages=20", "window_steps=12", "4 * 12 = 48 pages"],
        ),
        (
            ["--search.mode", "served", "--search.max-roots", "1"],
            ["search.max_roots=1", "acting.envs_per_actor=4", "4 evaluation games", "4 roots"],
        ),
        (
            ["--limiter.tolerance", "0.01"],
            ["limiter.tolerance=0.01", "0.01 * 500 * 8 = 40", "128 * 8 + 512 = 1536", "0.384"],
        ),
        (["--reanalysis.share", "1.0"], ["reanalysis.share", "1.0", "[0, 1)", "0 is off"]),
        (["--resume", "./no-checkpoint"], ["resume", "./no-checkpoint", "auto, must, never"]),
        (["--resume", "must"], ["resume", "must", "--run-dir"]),
        (["--prior.prompt.examples", "none.json"], ["prior.prompt.examples none.json", "can't be"]),
        (["--dashboard", "--dashboard.port", "70000"], ["dashboard.port", "[0, 65535], got 70000"]),
        (
            ["--dashboard", "--dashboard.port", "0", "--dashboard.host", "0.0.0.0"],
            ["needs a token", "WARPZONE_WATCH_TOKEN", "dashboard.host=0.0.0.0"],
        ),
        (
            ["--dashboard", "--dashboard.token-file", "/nowhere/token"],
            ["/nowhere/token can't be read", "dashboard.token_file=/nowhere/token"],
        ),
        (["--prior.prompt.max-tokens", "10"], ["max_tokens must be at least 128, got 10"]),
    ],
)
def test_a_bad_setting_is_refused_before_anything_is_made(tmp_path, capsys, arguments, words):
    text = refused(capsys, tmp_path / "run", "--device", "cpu", *arguments)
    for word in words:
        assert word in text, text


def test_a_port_in_use_is_named(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        page = ["--dashboard", "--dashboard.port", port]
        text = refused(capsys, tmp_path / "run", "--env", "CartPole-v1", "--device", "cpu", *page)
    assert f"port {port}: Address already in use" in text
    assert "0 for any free one" in text and f"dashboard.port={port}" in text


@pytest.mark.parametrize("name", ["control.checkpoint-uri", "resume"])
def test_a_password_in_an_address_is_refused_and_not_repeated(tmp_path, capsys, name):
    text = refused(capsys, tmp_path / "run", f"--{name}", "sftp://me:hunter22@store/runs")
    assert f"{name.replace('-', '_')} holds a password" in text
    assert "hunter22" not in text


def test_a_rom_that_is_none_is_named(tmp_path, capsys):
    path = tmp_path / "picture.nes"
    path.write_bytes(b"not a ROM at all" * 100)
    text = refused(capsys, tmp_path / "run", "--device", "cpu", "--env.rom", str(path))
    assert "env.rom" in text
    assert str(path) in text


def test_a_missing_rom_package_is_named(tmp_path, capsys, monkeypatch):
    """As where gym-super-mario-bros is not installed: only the search for it is replaced."""
    find = importlib.util.find_spec
    hidden = "gym_super_mario_bros"
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == hidden else find(name, *rest),
    )
    text = refused(capsys, tmp_path / "run", "--device", "cpu")
    assert "env.rom" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_never_falls_back(tmp_path, capsys):
    text = refused(capsys, tmp_path / "run", "--device", "cuda")
    for word in ("device", "cuda", "--device cpu"):
        assert word in text


def test_a_run_directory_under_a_file_is_refused(tmp_path, capsys):
    blocker = tmp_path / "file"
    blocker.write_text("")
    text = refused(capsys, blocker / "run", "--device", "cpu")
    for word in ("run_dir", str(blocker), "--run-dir"):
        assert word in text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_run_directory_is_refused(tmp_path, capsys):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    text = refused(capsys, folder / "run", "--device", "cpu")
    for word in ("run_dir", "can't be written", "--run-dir"):
        assert word in text


def test_a_run_directory_in_proc_is_refused(capsys):
    """A place where not even root may make files."""
    text = refused(capsys, Path("/proc/run"), "--device", "cpu")
    for word in ("run_dir", "/proc/run", "--run-dir"):
        assert word in text
