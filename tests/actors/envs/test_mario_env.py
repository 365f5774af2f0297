"""`WarpZone/Mario-v0` on the real emulator."""

import pickle
from collections.abc import Callable

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import actors.envs
from actors.collect_report import end_reason
from actors.envs.mario_env import MarioEnv
from actors.envs.mario_ram import Enemy
from actors.envs.rom import Rom

NOOP, RUN, RUN_JUMP, LEFT = 0, 3, 4, 6


def test_it_is_a_gymnasium_environment(rom: Rom) -> None:
    env = gymnasium.make(actors.envs.MARIO_ID, render_mode="rgb_array")
    check_env(env.unwrapped)
    env.close()


@pytest.mark.parametrize(
    ("action_set", "n_actions"), [("right_only", 5), ("simple", 7), ("complex", 12)]
)
def test_action_sets(rom: Rom, action_set: str, n_actions: int) -> None:
    env = MarioEnv(action_set=action_set)
    assert env.action_space == gymnasium.spaces.Discrete(n_actions)
    assert len(set(env.option_texts())) == n_actions


def test_one_seed_gives_one_stream_of_observations(rom: Rom) -> None:
    def play(seed: int) -> list[bytes]:
        env = MarioEnv(size=84, color="rgb", noop_max=30)
        frames = [env.reset(seed=seed)[0].tobytes()]
        frames += [env.step(action)[0].tobytes() for action in (RUN, RUN, RUN_JUMP, LEFT) * 5]
        frames.append(env.reset()[0].tobytes())
        env.close()
        return frames

    assert play(3) == play(3)
    assert play(3) != play(4)


def test_idle_frames_at_the_start_vary_within_their_bound(rom: Rom) -> None:
    env = MarioEnv(noop_max=3)
    env.reset(seed=0)
    lengths = set()
    for _ in range(30):
        env.reset()
        lengths.add(len(env._running()._frames))
    env.close()
    assert lengths == {0, 1, 2, 3}


def test_info_holds_plain_values(env: MarioEnv) -> None:
    for _ in range(24):
        info = env.step(RUN)[4]
    assert {name: type(value) for name, value in info.items()} == {
        **dict.fromkeys(("x_pos", "y_pos", "max_x", "speed", "time", "score", "coins"), int),
        **dict.fromkeys(("power", "stage"), str),
        **dict.fromkeys(("flag", "death", "stall"), bool),
        "enemies": tuple,
        "tiles": np.ndarray,
    }
    assert info["stage"] == "1-1" and info["power"] == "small"
    assert 150 < info["x_pos"] == info["max_x"] < 320
    assert info["speed"] == 48  # 3 pixels a frame: this release's running speed
    assert all(isinstance(enemy, Enemy) for enemy in info["enemies"])
    assert info["enemies"][0].kind == "goomba"


def test_standing_still_is_truncated(env: MarioEnv) -> None:
    steps = [env.step(NOOP) for _ in range(env.stall_steps)]
    ends = [step[2:4] for step in steps]
    assert ends == [(False, False)] * (env.stall_steps - 1) + [(False, True)]
    assert [step[4]["stall"] for step in steps] == [truncated for _, truncated in ends]
    assert end_reason(steps[-1][4], terminated=False) == "stall"


def test_a_death_by_the_games_own_clock_is_a_timeout(env: MarioEnv) -> None:
    env._running().ram[0x7F8:0x7FB] = (0, 0, 2)  # two units left
    for _ in range(60):
        _, _, terminated, _, info = env.step(NOOP)
        if terminated:
            break
    assert info["death"] and info["time"] == 0
    assert end_reason(info, terminated) == "timeout"


def test_running_into_the_first_enemy_terminates_with_a_penalty(env: MarioEnv) -> None:
    for _ in range(60):
        _, reward, terminated, truncated, info = env.step(RUN)
        if terminated or truncated:
            break
    assert terminated and not truncated
    assert info["death"] and not info["flag"]
    assert end_reason(info, terminated) == "death"
    assert reward < -1


def test_the_stage_can_be_chosen(env: MarioEnv) -> None:
    assert env.reset(options={"stage": "1-2"})[1]["stage"] == "1-2"
    assert env.level() == "1-2"
    assert env.reset()[1]["stage"] == "1-1"


def test_stages_are_drawn_from_the_list(rom: Rom) -> None:
    env = MarioEnv(stages=["1-1", "1-2"], noop_max=0)
    env.reset(seed=0)
    assert {env.reset()[1]["stage"] for _ in range(12)} == {"1-1", "1-2"}
    env.close()


def _play(env: MarioEnv, actions: list[int]) -> list[tuple[bytes, float, int]]:
    rows = []
    for action in actions:
        observation, reward, _, _, info = env.step(action)
        rows.append((observation.tobytes(), reward, int(info["x_pos"])))
    return rows


def test_a_saved_state_continues_alike_however_it_is_loaded(env: MarioEnv, rom: Rom) -> None:
    _play(env, [RUN] * 6)
    older = env.save_state()
    _play(env, [RUN] * 2)
    saved = env.save_state()
    expected = _play(env, [RUN_JUMP, RUN, LEFT] * 3)

    observation, info = env.load_state(saved)  # from the emulator's slot
    assert observation.tobytes() == saved.observation.tobytes()
    assert info["x_pos"] < expected[-1][2]
    assert _play(env, [RUN_JUMP, RUN, LEFT] * 3) == expected

    other = MarioEnv(noop_max=5)  # another emulator: its buttons are pressed again
    other.load_state(pickle.loads(pickle.dumps(saved)))
    assert _play(other, [RUN_JUMP, RUN, LEFT] * 3) == expected
    other.close()

    env.load_state(older)  # its slot was taken by `saved`
    _play(env, [RUN] * 2)
    assert _play(env, [RUN_JUMP, RUN, LEFT] * 3) == expected


def test_saving_does_not_change_later_episodes(env: MarioEnv) -> None:
    first = _play(env, [RUN] * 4)
    env.save_state()
    env.reset()
    assert _play(env, [RUN] * 4) == first


def test_without_idle_frames_every_episode_starts_with_the_same_picture(env: MarioEnv) -> None:
    first, picture = env.reset()[0], env.render()
    _play(env, [RUN_JUMP] * 10)
    np.testing.assert_array_equal(env.reset()[0], first)
    np.testing.assert_array_equal(env.render(), picture)


def test_render_is_the_full_picture(env: MarioEnv) -> None:
    picture = env.render()
    assert picture is not None
    assert picture.shape == (240, 256, 3) and picture.dtype == np.uint8 and picture.std() > 10


BAD_ARGUMENTS: list[tuple[dict[str, object], str]] = [
    ({"stages": ["9-1"]}, "unknown stage '9-1'"),
    ({"stages": []}, "stages is empty"),
    ({"stages": "1-1"}, r"must be a list"),
    ({"action_set": "all"}, "right_only, simple, complex; got 'all'"),
    ({"size": 65}, "64, 84, 96; got 65"),
    ({"color": "blue"}, "gray, rgb; got 'blue'"),
    ({"frame_skip": 0}, "from 1 to 60, got 0"),
    ({"noop_max": -1}, "from 0 to 200, got -1"),
    ({"stall_steps": 0}, "got 0"),
    ({"render_mode": "human"}, "got 'human'"),
    ({"rom": "/nowhere.nes"}, r"env\.rom: no file"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MarioEnv(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda env: env.reset(options={"stage": "1-9"}), ValueError, "unknown stage '1-9'"),
        (lambda env: env.reset(options={"level": "1-1"}), ValueError, "unknown reset option"),
        (lambda env: env.step(7), ValueError, r"action 7 is not one of 0 \.\. 6"),
        (lambda env: MarioEnv().step(0), RuntimeError, "call reset"),
    ],
)
def test_bad_calls_are_named(
    env: MarioEnv, call: Callable[[MarioEnv], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(env)
