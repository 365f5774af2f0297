"""Any Gymnasium game with discrete actions behind one face."""

from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from actors.envs import EnvConfig, game_spec, make_game
from actors.envs.rom import Rom
from replay_service.segment import GameSpec


class _Toy(gymnasium.Env):
    """Shows what its space samples; actions count from 3; action 4 is illegal."""

    def __init__(self, space: spaces.Space, action_space: spaces.Space | None = None) -> None:
        self.observation_space = space
        self.action_space = action_space or spaces.Discrete(3, start=3)
        self.actions: list[int] = []

    def reset(self, *, seed=None, options=None):  # type: ignore[no-untyped-def]
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(1_000)))
        return self.observation_space.sample(), {"action_mask": np.array([1, 0, 1], dtype=np.int8)}

    def step(self, action):  # type: ignore[no-untyped-def]
        self.actions.append(action)
        return self.observation_space.sample(), 2.5, False, True, {}


TOYS = {
    "Image": lambda: _Toy(spaces.Box(0, 255, (100, 80, 3), np.uint8)),
    "SmallImage": lambda: _Toy(spaces.Box(0, 255, (20, 30, 3), np.uint8)),
    "GrayImage": lambda: _Toy(spaces.Box(0, 255, (100, 80), np.uint8)),
    "Vector": lambda: _Toy(spaces.Box(-1, 1, (5,), np.float64)),
    "Grid": lambda: _Toy(spaces.Box(0, 9, (4, 3), np.int32)),
    "Number": lambda: _Toy(spaces.Discrete(6)),
    "Parts": lambda: _Toy(spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(0, 1, (3,)))),
    "Graph": lambda: _Toy(spaces.Graph(spaces.Discrete(2), None)),
    "Continuous": lambda: _Toy(spaces.Discrete(2), spaces.Box(-1, 1, (2,))),
}


@pytest.fixture(autouse=True)
def _toys() -> Iterator[None]:
    for name, make in TOYS.items():
        gymnasium.register(f"Toy{name}-v0", entry_point=make)
    yield
    for name in TOYS:
        del gymnasium.registry[f"Toy{name}-v0"]


@pytest.mark.parametrize(
    ("name", "color", "shape", "dtype"),
    [
        ("Image", "gray", (1, 64, 64), "uint8"),
        ("Image", "rgb", (3, 64, 64), "uint8"),
        ("SmallImage", "rgb", (3, 20, 30), "uint8"),
        ("GrayImage", "rgb", (1, 64, 64), "uint8"),
        ("Vector", "gray", (5,), "float32"),
        ("Grid", "gray", (12,), "float32"),
        ("Number", "gray", (6,), "float32"),
        ("Parts", "gray", (5,), "float32"),
    ],
)
def test_every_observation_becomes_an_image_or_a_vector(
    name: str, color: str, shape: tuple[int, ...], dtype: str
) -> None:
    config = EnvConfig(id=f"Toy{name}-v0", color=color)
    assert game_spec(config) == GameSpec(shape, dtype, 3)
    game = make_game(config, seed=0)
    for frame in (game.reset(), game.step(0)[0]):
        assert frame.shape == shape and frame.dtype == dtype
        assert frame.flags.c_contiguous and frame.flags.owndata
    game.close()


def test_images_keep_their_axes_apart() -> None:
    game = make_game(EnvConfig(id="ToySmallImage-v0", color="rgb"), seed=0)
    image = game._env.observation_space.sample()
    np.testing.assert_array_equal(game._framing.frame(image), image.transpose(2, 0, 1))


def test_actions_are_renumbered_and_masks_are_kept() -> None:
    game = make_game(EnvConfig(id="ToyVector-v0"), seed=0)
    game.reset()
    np.testing.assert_array_equal(game.legal(), [True, False, True])
    _, reward, terminated, truncated, _ = game.step(2)
    assert game._env.unwrapped.actions == [5]
    assert (reward, terminated, truncated) == (2.5, False, True)
    assert game.legal() is None
    with pytest.raises(ValueError, match=r"action 3 is not one of 0 \.\. 2"):
        game.step(3)


def test_the_first_reset_seeds_and_later_ones_go_on() -> None:
    def starts(seed: int) -> list[list[float]]:
        game = make_game(EnvConfig(id="CartPole-v1"), seed)
        return [game.reset().tolist() for _ in range(3)]

    assert starts(1) == starts(1) != starts(2)
    assert starts(1)[0] != starts(1)[1]


def test_cartpole() -> None:
    config = EnvConfig(id="CartPole-v1", frame_stack=2)
    assert game_spec(config) == GameSpec((4,), "float32", 2, frame_stack=2)
    game = make_game(config, seed=0)
    game.reset()
    frame, reward, terminated, truncated, _ = game.step(1)
    assert frame.shape == (4,) and (reward, terminated, truncated) == (1.0, False, False)
    assert (game.prompt(), game.legal(), game.level(), game.rom_hash) == (None, None, "", "")
    assert game.option_texts() == ("action 0", "action 1")
    with pytest.raises(ValueError, match="has no levels"):
        game.reset(level="1-1")
    with pytest.raises(RuntimeError, match="can't save"):
        game.save_state()
    game.close()


def test_mario(rom: Rom) -> None:
    config = EnvConfig(size=84, action_set="right_only", stages=("1-1", "1-2"), noop_max=0)
    assert game_spec(config) == GameSpec((1, 84, 84), "uint8", 5)
    game = make_game(config, seed=0)
    first = game.reset(level="1-1")
    assert first.shape == (1, 84, 84) and first.dtype == np.uint8
    saved = game.save_state()
    after, reward, *_ = game.step(3)
    assert isinstance(reward, float)
    np.testing.assert_array_equal(game.load_state(saved), first)
    np.testing.assert_array_equal(game.step(3)[0], after)
    prompt = game.prompt()
    assert prompt is not None and prompt.startswith("world 1-1 time 400; Mario small tile 2")
    assert game.option_texts()[4] == "run right and jump"
    assert game.level() == "1-1"
    assert game.rom_hash == rom.body_sha256 and game.reward_version >= 1
    picture = game.render()
    assert picture is not None and picture.shape == (240, 256, 3)
    game.close()


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("CartPole-v7", r"env\.id 'CartPole-v7'.*CartPole"),
        ("CartPol-v1", r"env\.id 'CartPol-v1' .* did you mean CartPole-v1"),
        ("Mario", r"env\.id 'Mario' is not a registered .* Use WarpZone/Mario-v0"),
        ("no_such_module:Game-v0", r"env\.id 'no_such_module:Game-v0'"),
        ("ToyContinuous-v0", r"env\.id .* search needs discrete actions"),
        ("ToyGraph-v0", r"env\.id .* neither an image nor something that flattens"),
        ("two words", r"env\.id 'two words'"),
    ],
)
def test_unusable_environments_are_named(env_id: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        game_spec(EnvConfig(id=env_id))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id": ""}, r"env\.id is empty"),
        ({"stages": ("1-5",)}, r"env\.stages: unknown stage '1-5'"),
        ({"stages": ()}, r"env\.stages is empty"),
        ({"action_set": "nes"}, r"env\.action_set must be one of right_only, simple, complex"),
        ({"size": 80}, r"env\.size must be one of 64, 84, 96; got 80"),
        ({"color": "sepia"}, r"env\.color must be one of gray, rgb"),
        ({"frame_stack": 0}, r"env\.frame_stack must be a whole number from 1 to 16, got 0"),
        ({"frame_skip": 99}, r"env\.frame_skip"),
        ({"noop_max": -1}, r"env\.noop_max"),
        ({"stall_steps": 0}, r"env\.stall_steps"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EnvConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:env.rom")
def test_a_rom_that_never_starts_is_refused_before_any_actor_runs(
    rom: Rom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "blank.nes"
    path.write_bytes(rom.path.read_bytes()[:16] + bytes(40_960))
    monkeypatch.setattr("actors.envs.mario_console._MAX_START_FRAMES", 100)
    with pytest.raises(ValueError, match=r"env\.rom .*blank\.nes.*did not start within 100 frames"):
        game_spec(EnvConfig(rom=str(path)))


def test_a_mask_of_the_wrong_shape_is_refused() -> None:
    game = make_game(EnvConfig(id="ToyVector-v0"), seed=0)
    with pytest.raises(RuntimeError, match=r"action_mask of shape \(2,\)"):
        game._keep_legal({"action_mask": np.ones(2)})


def test_importing_the_module_before_the_colon_registers_the_environment(tmp_path, monkeypatch):
    (tmp_path / "my_games.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('MyGame-v0', 'gymnasium.envs.classic_control.cartpole:CartPoleEnv')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert game_spec(EnvConfig(id="my_games:MyGame-v0")).n_actions == 2
