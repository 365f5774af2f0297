"""Recorded games replay exactly: start procedure, frame skip and memory map are as they were."""

import hashlib
import json
from pathlib import Path

import pytest

from actors.envs.mario_console import MarioConsole
from actors.envs.mario_env import MarioEnv
from actors.envs.mario_ram import read_state
from actors.envs.rom import Rom

OPENING = Path(__file__).parent / "data" / "mario_1-1_opening.json"
FULL_GAME = Path(__file__).parents[3] / ".." / "shared" / "data" / "mario_1-1_trace.json"


def test_a_recorded_opening_runs_through_the_same_places(rom: Rom) -> None:
    recorded = json.loads(OPENING.read_text())
    if recorded["rom_body_sha256"] != rom.body_sha256:
        pytest.skip("recorded with another ROM")
    env = MarioEnv(noop_max=0)
    env.reset()
    steps = [env.step(action) for action in recorded["actions"]]
    assert [info["x_pos"] for *_, info in steps] == recorded["x_pos"]
    memory = env._running().ram.tobytes()
    assert hashlib.sha256(memory).hexdigest() == recorded["ram_sha256_at_end"]
    paid = sum(reward for _, reward, *_ in steps)
    assert paid == pytest.approx((max(recorded["x_pos"]) - 40) / 16)  # Mario starts at x 40
    env.close()


def test_a_recorded_clear_reaches_the_flag(rom: Rom) -> None:
    if not FULL_GAME.is_file():
        pytest.skip("the recorded clear of 1-1 is not on this machine")
    recorded = json.loads(FULL_GAME.read_text())
    console = MarioConsole(rom, recorded["level"])
    for buttons in recorded["button_bytes"]:
        console.run(buttons, recorded["frames_per_action"])
        state = read_state(console.ram)
        assert not state.is_dead
        if state.is_flag:
            break
    assert state.is_flag and state.x == 3161
    console.close()
