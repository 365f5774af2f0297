"""Evaluation with a prior: the same starts, played by the language model, by search, by both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from actors.envs.game import make_game
from actors.episodes import EpisodePlayer, Moment, PlayStyle, Start
from actors.evaluation import EvaluationConfig, EvaluationLoop
from actors.player import Player, PlayerConfig, make_player
from actors.prior.backend import LocalPriorTransport
from actors.prior.config import PriorConfig
from actors.prior.local_engine import LocalPriorEngine
from actors.search.root_prior import RootPrior
from launch.config import load_preset
from learner.language.tiny_llm import TinyRecipe, ensure_tiny_llm
from learner.weights import WeightStore, snapshot_weights

MAX_STEPS = 12


@pytest.fixture(scope="module")
def player(tmp_path_factory: pytest.TempPathFactory) -> Player:
    """Two real games of Mario, a random world model, and a tiny language model."""
    recipe = TinyRecipe(weight_scale=4.0, n_corpus_lines=300)
    folder = ensure_tiny_llm(tmp_path_factory.mktemp("llm") / "tiny", recipe)
    config = load_preset("mario-quick")
    prior = PriorConfig(model=str(folder), backend="transformers")
    return make_player(
        PlayerConfig(
            env=config.env,
            search=replace(config.search, n_simulations=4),
            prior=prior,
            model=config.model,
            discount=config.targets.discount,
            device="cpu",
        ),
        n_games=2,
        rng=np.random.default_rng(0),
        prior_transport=LocalPriorTransport(LocalPriorEngine(prior)),
    )


def make_loop(player: Player, **settings: int) -> EvaluationLoop:
    store = WeightStore()
    store.push(snapshot_weights(player.model, 1))
    config = EvaluationConfig(max_steps=MAX_STEPS, video=False, **settings)
    return EvaluationLoop(player=player, weight_source=store, config=config)


def test_all_three_are_reported_for_the_same_starts(player: Player) -> None:
    report = make_loop(player, prior_episodes=3).evaluate(4, video=False)
    assert set(report.modes) == {"both", "llm", "search"}
    assert report.modes["both"].returns == report.returns[:3]
    assert report.modes["both"].max_x == report.max_x[:3]
    for played in report.modes.values():
        assert len(played.returns) == len(played.max_x) == 3
        assert played.unadvised_share == 0.0
    assert len(report.returns) == 4


def test_modes_are_repeatable(player: Player) -> None:
    """The starts are the loop's own, and nothing of one mode leaks into the next."""
    config = {"prior_episodes": 2}
    first, second = (make_loop(player, **config).evaluate(2, video=False) for _ in range(2))
    assert first.modes["llm"] == second.modes["llm"]


def test_nothing_is_played_again_where_nobody_asks_for_it(player: Player) -> None:
    assert make_loop(player, prior_episodes=0).evaluate(1, video=False).modes == {}
    alone = replace(player, prior=None)
    assert make_loop(alone, prior_episodes=2).evaluate(1, video=False).modes == {}


def test_the_language_model_alone_plays_its_likeliest_move(player: Player) -> None:
    episodes = EpisodePlayer(player, max_steps=MAX_STEPS, rng=np.random.default_rng(0))
    games = player.games
    probabilities = np.zeros((2, games[0].spec.n_actions), np.float32)
    probabilities[0, 3] = 1.0
    prior = RootPrior(probabilities, np.array([True, False]))
    drawn = {int(episodes._follow(prior, games)[1]) for _ in range(60)}
    assert episodes._follow(prior, games)[0] == 3
    assert len(drawn) > 2, "without advice the move is drawn"
    assert episodes.n_unadvised == 61 and episodes.n_moves == 122


def test_stages_and_clears_are_reported_with_every_episode(player: Player) -> None:
    report = make_loop(player, prior_episodes=0).evaluate(2, video=False)
    assert report.levels == ("1-1", "1-1")
    assert report.clears == (False, False)


def test_the_rows_are_those_of_the_command(player: Player) -> None:
    report = make_loop(replace(player, prior=None)).evaluate(2, video=False)
    (row,) = report.rows
    assert (row.moves, row.chance, row.stage, row.n_episodes) == ("greedy", "no-ops", "1-1", 2)
    assert row.returns.value == report.mean_return
    assert (row.clear_rate.value, row.max_x.value) == (0.0, np.mean(report.max_x))
    assert row.ends == {"timeout": 2}


def test_a_moment_says_what_search_model_and_prior_think(player: Player) -> None:
    moments: list[Moment] = []
    episodes = EpisodePlayer(player, max_steps=5, rng=np.random.default_rng(0))
    (episode,) = episodes.play([Start(7, "1-2")], PlayStyle(), watch=moments.append)
    assert episode.level == "1-2"
    assert [m.length for m in moments] == list(range(episode.length))
    for moment in moments:
        assert moment.picture is not None and moment.picture.shape == (240, 256, 3)
        for shares in (moment.search_policy, moment.model_policy, moment.llm_prior):
            assert shares is not None and np.isclose(shares.sum(), 1.0, atol=1e-3)
        assert moment.action == np.argmax(moment.search_policy)
        assert moment.prompt and len(moment.options) == len(moment.search_policy)


def test_a_seed_repeats_a_start() -> None:
    config = replace(load_preset("mario-quick").env, stages=("1-1", "1-2"))
    first, second = make_game(config, 0), make_game(config, 1)
    second.reset()
    for seed in range(4):
        np.testing.assert_array_equal(first.reset(seed=seed), second.reset(seed=seed))
        assert first.level() == second.level() and first.coarse_key() == second.coarse_key() != ""
    first.close()
    second.close()


def test_bad_setting() -> None:
    with pytest.raises(ValueError, match="prior_episodes must not be negative, got -1"):
        EvaluationConfig(prior_episodes=-1)


@pytest.fixture(scope="module", autouse=True)
def close(player: Player):
    yield
    for game in player.games:
        game.close()
