"""What an env actor shows of its games: real games of Mario, a tiny language model, both modes."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from actors.acting import ActingConfig, ActingLoop, ActorIdentity
from actors.live_view import MOST_POINTS, EnvView, ViewWish
from actors.play_settings import PlaySettings
from actors.player import PlayerConfig, make_player
from actors.prior.backend import LocalPriorTransport
from actors.prior.config import PriorConfig
from actors.prior.local_engine import LocalPriorEngine
from actors.search import SearchSeat
from actors.search.service import LocalSearchTransport, make_service
from launch.config import load_preset
from learner.language.tiny_llm import TinyRecipe, ensure_tiny_llm
from learner.weights import WeightStore, snapshot_weights
from learner.world_model import WorldModel
from replay_service import TargetConfig

N_ENVS = 4


@pytest.fixture(scope="module", params=["local", "served"])
def loop(request, tmp_path_factory) -> ActingLoop:
    recipe = TinyRecipe(weight_scale=4.0, n_corpus_lines=300)
    folder = ensure_tiny_llm(tmp_path_factory.mktemp("llm") / "tiny", recipe)
    preset = load_preset("mario-quick")
    prior = PriorConfig(model=str(folder), backend="transformers")
    search = replace(preset.search, n_simulations=8)
    config = PlayerConfig(
        env=preset.env,
        search=search,
        prior=prior,
        model=preset.model,
        discount=0.99,
        device="cpu",
    )
    store = WeightStore()
    player = make_player(
        config,
        n_games=N_ENVS,
        rng=np.random.default_rng(0),
        prior_transport=LocalPriorTransport(LocalPriorEngine(prior)),
    )
    spec = player.games[0].spec
    store.push(snapshot_weights(WorldModel(preset.model, spec), 1))
    if request.param == "served":
        service = make_service(
            search=search,
            injection=prior.injection,
            model=preset.model,
            spec=spec,
            discount=0.99,
            device="cpu",
            seed=0,
            weights=store,
            n_envs=[N_ENVS],
        )
        seat = SearchSeat(LocalSearchTransport(service), client=0, incarnation=0)
        served = make_player(
            config, n_games=1, rng=np.random.default_rng(0), prior_transport=None, seat=seat
        ).planner
        served = type(served)(seat, search, preset.model, spec, n_envs=N_ENVS)
        player = replace(player, planner=served, model=None)
    return ActingLoop(
        player=player,
        weight_source=store,
        config=ActingConfig(envs_per_actor=N_ENVS),
        targets=TargetConfig(),
        identity=ActorIdentity("test", 0, 0, 0),
    )


def shown(loop: ActingLoop, wish: ViewWish | None, n_steps: int = 2 * N_ENVS) -> list[EnvView]:
    return loop.collect(n_steps, 0, wish)[0].views


def test_nothing_is_shown_to_nobody(loop: ActingLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> None:
        raise AssertionError("drawn although nobody looks")

    shown(loop, None)  # a served search that was wished for earlier comes to its end
    monkeypatch.setattr("actors.live_view._picture", never)
    monkeypatch.setattr("actors.search.planner.draw_tree", never)
    assert shown(loop, None) == []


def test_what_is_wished_for_is_shown_once(loop: ActingLoop) -> None:
    views = shown(loop, ViewWish(2, closely=3), n_steps=4 * N_ENVS)
    assert sorted(view.env_id for view in views) == [0, 1, 3]
    assert shown(loop, None) == []
    by_env = {view.env_id: view for view in views}
    for view in views:
        assert view.level == "1-1" and view.prompt.startswith("world 1-1")
        assert view.actions == tuple(loop._games[0].option_texts())
        for policy in (view.search_policy, view.model_policy, view.llm_prior):
            assert policy.sum() == pytest.approx(1.0, abs=1e-3)
        assert view.path.every == 1 and len(view.path.value) == view.length + 1
        assert view.path.value[-1] == pytest.approx(view.root_value)
        assert view.path.total_reward[-1] == pytest.approx(view.total_reward)
        picture = cv2.imdecode(np.frombuffer(view.frame_png, np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape == ((240, 256, 3) if view.env_id == 3 else (120, 128, 3))
    assert by_env[0].tree is None and by_env[0].llm_text == ""
    close = by_env[3]
    assert "Each message gives the current state" in close.llm_text
    assert close.prompt.split(".")[0] in close.llm_text
    assert close.tree.visits[0] == 9, "the tree of the search that this move came from"
    for node in np.flatnonzero(close.tree.parent == 0):
        share = close.search_policy[close.tree.action[node]]
        assert close.tree.visits[node] == round(share * 8)
        assert close.tree_actions[node] == close.actions[close.tree.action[node]]


def test_a_tree_is_shown_of_its_own_environment_only(loop: ActingLoop) -> None:
    """Searches that a service has begun bring the tree that was wanted before."""
    for closely in (0, 1, 0, 1):
        views = shown(loop, ViewWish(N_ENVS, closely=closely), n_steps=N_ENVS // 2)
        views += shown(loop, None, n_steps=4 * N_ENVS)
        assert [view.env_id for view in views if view.tree is not None] == [closely]
        (close,) = [view for view in views if view.env_id == closely]
        for node in np.flatnonzero(close.tree.parent == 0):
            share = close.search_policy[close.tree.action[node]]
            assert close.tree.visits[node] == round(share * 8)


def test_an_environment_that_is_not_there_is_not_shown(loop: ActingLoop) -> None:
    assert len(shown(loop, ViewWish(100, closely=100), n_steps=4 * N_ENVS)) == N_ENVS


def test_settings_that_come_with_a_call_hold_for_it(loop: ActingLoop) -> None:
    """Searches of a service that were begun before still have those of the call before."""
    for n_simulations, expected in ((2, 2), (None, 8)):
        play = PlaySettings(temperature=0.01, n_simulations=n_simulations)
        loop.collect(2 * N_ENVS, 0, None, play)
        report, _ = loop.collect(4 * N_ENVS, 0, None, play)
        assert report.simulations == expected * report.env_steps


def test_a_long_episode_is_thinned_out(loop: ActingLoop) -> None:
    views = loop._views
    for value in range(1000):
        views.moved(0, float(value), 1.0)
    (view,) = [v for v in shown(loop, ViewWish(1), n_steps=4 * N_ENVS) if v.env_id == 0]
    assert len(view.path.value) == len(view.path.total_reward) <= MOST_POINTS
    assert view.path.every >= 5 and view.total_reward >= 990
