"""Whole episodes from given starts: repeatable, sticky, sampled; with a real game and search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from actors.collect_report import is_clear
from actors.episodes import Episode, EpisodePlayer, Moment, PlayStyle, Start
from actors.evaluation import EvaluationConfig, EvaluationLoop
from actors.player import Player, PlayerConfig, make_player
from launch.config import load_preset
from learner.weights import WeightStore, snapshot_weights


def make(n_games: int, **search: object) -> Player:
    config = load_preset("cartpole")
    player = make_player(
        PlayerConfig(
            env=config.env,
            search=replace(config.search, n_simulations=8, **search),
            prior=config.prior,
            model=config.model,
            discount=config.targets.discount,
            device="cpu",
        ),
        n_games=n_games,
        rng=np.random.default_rng(5),
        prior_transport=None,
    )
    store = WeightStore()
    store.push(snapshot_weights(player.model, 3))
    player.pull_weights(store, -1)
    return player


@pytest.fixture(scope="module")
def player() -> Iterator[Player]:
    player = make(2)
    yield player
    for game in player.games:
        game.close()


def play(player: Player, seeds: list[int], style: PlayStyle, max_steps: int = 40) -> list[Episode]:
    episodes = EpisodePlayer(player, max_steps=max_steps, rng=np.random.default_rng(0))
    return episodes.play([Start(seed) for seed in seeds], style)


def outcomes(episodes: list[Episode]) -> list[tuple[float, int, str]]:
    return [(e.total_reward, e.length, e.end) for e in episodes]


def test_a_start_plays_alike_whoever_plays_beside_it(player: Player) -> None:
    """Which moves stick is drawn from the start's seed, not from a stream of the batch."""
    style = PlayStyle(sticky=0.5)
    together = play(player, [11, 12, 13], style)
    alone = [play(player, [seed], style)[0] for seed in (11, 12, 13)]
    assert outcomes(together) == outcomes(alone)
    assert len({e.length for e in play(player, list(range(8)), style)}) > 1


def test_moves_that_always_stick_are_the_first_one_for_ever(player: Player) -> None:
    moments: list[Moment] = []
    episodes = EpisodePlayer(player, max_steps=40, rng=np.random.default_rng(0))
    (episode,) = episodes.play([Start(1)], PlayStyle(sticky=1.0), watch=moments.append)
    assert len({moment.action for moment in moments}) == 1
    assert episode.length < 15 and episode.end == "terminated", "one push topples the pole"


def test_sampled_moves_differ_from_greedy_ones() -> None:
    for search, style in (
        ({}, PlayStyle(temperature=5.0)),
        ({"variant": "gumbel"}, PlayStyle(noise=True)),
    ):
        player = make(1, **search)
        greedy = {outcomes(play(player, [1], PlayStyle()))[0] for _ in range(3)}
        drawn = {outcomes(play(player, [1], style))[0] for _ in range(6)}
        assert len(greedy) == 1
        assert len(drawn) > 1, search


def test_an_episode_is_cut_and_counted(player: Player) -> None:
    ends: list[None] = []
    episodes = EpisodePlayer(player, max_steps=3, rng=np.random.default_rng(0))
    starts = [Start(seed) for seed in range(5)]
    played = episodes.play(starts, PlayStyle(), done=lambda: ends.append(None))
    assert [(e.end, e.length, e.level, e.is_clear) for e in played] == [
        ("timeout", 3, "", None)
    ] * 5
    assert len(ends) == 5
    assert episodes.weight_version == 3


def test_an_evaluator_without_a_prior_plays_seeded_starts_too(player: Player) -> None:
    """Games that went on from their last episode would not play the same again."""
    store = WeightStore()
    store.push(snapshot_weights(player.model, 4))
    config = EvaluationConfig(max_steps=60, video=False)
    lengths = []
    for seed in (1, 2, 1):
        rng = np.random.default_rng(seed)
        loop = EvaluationLoop(player=player, weight_source=store, config=config, rng=rng)
        lengths.append([loop.evaluate(4, video=False).lengths for _ in range(2)])
    assert lengths[0] == lengths[2] != lengths[1]
    assert lengths[0][0] != lengths[0][1], "each evaluation has starts of its own"


@pytest.mark.parametrize(
    ("info", "terminated", "expected"),
    [
        ({}, True, None),
        ({"flag": True, "death": False}, True, True),
        ({"flag": False, "death": False}, True, True),  # a warp
        ({"flag": False, "death": True}, True, False),
        ({"flag": False, "death": False}, False, False),
        ({"won": True}, True, True),
        ({"won": False, "lost": True}, True, False),
    ],
)
def test_what_counts_as_cleared(info, terminated, expected) -> None:
    assert is_clear(info, terminated) is expected
