"""The emulator backends: determinism, snapshots, and that the old packages stay out."""

import subprocess
import sys

import numpy as np
import pytest

from actors.envs.emulator import nes_py_folder, open_emulator
from actors.envs.rom import Rom


def test_importing_and_playing_leaves_the_old_packages_alone(rom: Rom) -> None:
    script = (
        "import sys, actors.envs; game = actors.envs.make_game(actors.envs.EnvConfig(), 0); "
        "game.reset(); print([name for name in ('gym', 'nes_py', 'gym_super_mario_bros', 'pyglet') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_two_power_ons_run_alike(rom: Rom) -> None:
    buttons = np.random.default_rng(0).integers(0, 256, size=60)
    first, second = open_emulator(rom.path), open_emulator(rom.path)
    for emulator in (first, second):
        for pressed in buttons:
            emulator.step(int(pressed))
    np.testing.assert_array_equal(first.ram, second.ram)
    np.testing.assert_array_equal(first.screen, second.screen)
    assert first.screen.any()
    first.close()
    second.close()


def test_a_snapshot_brings_everything_back(rom: Rom) -> None:
    emulator = open_emulator(rom.path)
    for _ in range(40):
        emulator.step(0)
    ends = []
    snapshot = emulator.save()
    for _ in range(2):
        emulator.load(snapshot)
        for pressed in (8, 0, 129, 130) * 5:
            emulator.step(pressed)
        ends.append((emulator.ram.copy(), emulator.screen.copy()))
    np.testing.assert_array_equal(ends[0][0], ends[1][0])
    np.testing.assert_array_equal(ends[0][1], ends[1][1])
    emulator.close()


def test_the_library_keeps_one_snapshot_and_says_so(rom: Rom) -> None:
    if any(nes_py_folder().glob("_native*.so")):
        pytest.skip("nes-py 9 keeps many")
    emulator = open_emulator(rom.path)
    old, new = emulator.save(), emulator.save()
    assert emulator.holds(new) and not emulator.holds(old)
    with pytest.raises(ValueError, match="is gone"):
        emulator.load(old)
    emulator.close()


def test_a_missing_emulator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"env\.id .*pip install"):
        nes_py_folder()
