"""Mario's tests run on the real emulator; they skip themselves where the ROM isn't installed."""

from collections.abc import Iterator

import pytest

from actors.envs.emulator import nes_py_folder
from actors.envs.mario_env import MarioEnv
from actors.envs.rom import Rom, find_rom


@pytest.fixture(scope="session")
def rom() -> Rom:
    try:
        nes_py_folder()
        return find_rom()
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def _env(rom: Rom) -> Iterator[MarioEnv]:
    env = MarioEnv(noop_max=0, stall_steps=12, render_mode="rgb_array")
    yield env
    env.close()


@pytest.fixture
def env(_env: MarioEnv) -> MarioEnv:
    """One Mario without idle frames for all tests (a start costs 0.4 s), freshly reset."""
    _env.reset(seed=0)
    return _env
