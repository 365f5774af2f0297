"""How well does a checkpoint play? Greedy and sampled episodes, stage by stage, with intervals.

    python launch/evaluate.py runs/mario-quick                        # 20 episodes of each kind
    python launch/evaluate.py runs/mario-quick --episodes 50 --stages 1-1 1-2
    python launch/evaluate.py runs/cartpole --simulations 50 --temperature 0.5

Every stage is played in four ways from the same seeds: moves greedy or sampled from the search's
visit shares; starts with seeded no-ops (Mario's idle frames; other games draw their own start), or
without them and with moves that stick. Rates have Wilson's interval, means that of a bootstrap,
both 95 %. Writes evaluations/<checkpoint>.json and .png in the run directory; options that are not
the defaults become part of the name. A run with a language model is played with it, by transformers
in this process, unless --without-prior. Ctrl-C writes what has been played by then.

Exit codes: 0 done, 1 the files can't be written, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from actors.envs.config import EnvConfig, check_stages
from actors.envs.game import Game, make_game
from actors.episodes import Episode, EpisodePlayer, Start
from actors.evaluation_rows import (
    SEED_STREAM,
    WAYS,
    Row,
    Way,
    episode_record,
    row_record,
    rows_of,
    starts_of,
)
from actors.intervals import Estimate
from actors.player import Player
from launch.config import ConfigError, fail
from launch.control.metadata import library_versions
from launch.control.shutdown import EXIT_FAILED, EXIT_FINISHED, EXIT_INTERRUPTED
from launch.monitoring.work_progress import work_progress
from launch.reports.evaluation_file import check_folder, file_stem, folder_of, write
from launch.saved_agent import SavedAgent, load_agent, make_saved_player

FORMAT = 1
MAX_GAMES = 10  # played side by side
MOST_EPISODES = 10_000
TABLE_WIDTH = 116


@dataclass(frozen=True, slots=True)
class Round:
    """A few starts, and what came of them in every way."""

    starts: Sequence[Start]
    episodes: Mapping[Way, Sequence[Episode]]


@dataclass(frozen=True, slots=True)
class Played:
    """All starts, and what came of them in one way."""

    way: Way
    starts: Sequence[Start]
    episodes: Sequence[Episode]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    torch.set_num_threads(1)
    console = Console()
    rounds: list[Round] = []
    started = time.perf_counter()
    is_interrupted = False
    try:
        agent = load_agent(options.run)
        folder = folder_of(agent)
        check_folder(folder)
        play_all(agent, options, console, rounds)
    except (ConfigError, ValueError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        if not rounds:
            sys.stderr.write("interrupted before every way had episodes; nothing was written\n")
            return EXIT_INTERRUPTED
        is_interrupted = True
    played = joined(rounds)
    rows = [row for each in played for row in rows_of(each.way, each.episodes)]
    title = f"{agent.config.env.id}, {agent.env_steps:,} env steps"
    ending = ", interrupted" if is_interrupted else ""
    print_table(rows, f"{title}, {len(played[0].starts)} episodes in each way{ending}", console)
    content = describe(agent, options, played, rows, time.perf_counter() - started)
    content["is_interrupted"] = is_interrupted
    path = folder / f"{file_stem(agent.checkpoint.name, unusual(options))}.json"
    try:
        write(path, content, rows, title)
    except OSError as error:
        sys.stderr.write(f"error: {error}; the table above is what is left\n")
        return EXIT_FAILED
    console.print(f"[evaluate] {path} and .png beside it", markup=False, soft_wrap=True)
    return EXIT_INTERRUPTED if is_interrupted else EXIT_FINISHED


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    options = _parser().parse_args(arguments)
    _check(options)
    return options


def unusual(options: argparse.Namespace) -> dict[str, object]:
    """The options, by name, that are not the defaults."""
    parser = _parser()
    given = {name: value for name, value in vars(options).items() if name != "run"}
    return {name: value for name, value in given.items() if value != parser.get_default(name)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run, or one of its checkpoints")
    parser.add_argument(
        "--episodes", type=int, default=20, help="per stage and way (default %(default)s)"
    )
    parser.add_argument("--stages", nargs="+", help="stages or levels; default: those of the run")
    parser.add_argument("--simulations", type=int, help="per move; default: the run's own")
    parser.add_argument("--max-steps", type=int, help="cut of an episode; default: the run's own")
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="of sampled moves: visit shares ** (1 / temperature) (default %(default)s)",
    )
    parser.add_argument(
        "--sticky",
        type=float,
        default=0.25,
        help="probability that a move repeats the last one (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the starts (default %(default)s)")
    parser.add_argument("--without-prior", action="store_true", help="search alone")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Exits with code 2 naming what is out of range."""
    for name, low, high in (
        ("episodes", 1, MOST_EPISODES),
        ("simulations", 1, 100_000),
        ("max_steps", 1, 10_000_000),
        ("temperature", 0.01, 10.0),
        ("sticky", 0.0, 1.0),
        ("seed", 0, 2**31 - 1),
    ):
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            fail(f"--{name.replace('_', '-')} must lie in [{low}, {high}], got {value}")


def play_all(
    agent: SavedAgent, options: argparse.Namespace, console: Console, rounds: list[Round]
) -> None:
    """All episodes of all ways, which take turns: each adds to `rounds` what all have played of a
    few starts. Raises ValueError where a setting can't be used.
    """
    config = agent.config
    env = _with_stages(config.env, options.stages)
    player = make_saved_player(
        agent,
        n_games=min(MAX_GAMES, options.episodes),
        seed=[options.seed, SEED_STREAM],
        with_prior=agent.has_prior and not options.without_prior,
        n_simulations=options.simulations,
        env=env,
    )
    stages = _stages(player.games[0], env, options.stages)
    starts = in_turn(starts_of(stages, options.episodes, options.seed), max(1, len(stages)))
    players = {"no-ops": player, "sticky": without_noops(player, env)}
    max_steps = options.max_steps or config.evaluation.max_steps
    styles = {
        way: way.style(
            temperature=options.temperature,
            sticky=options.sticky,
            is_gumbel=config.search.variant == "gumbel",
        )
        for way in WAYS
    }
    rng = np.random.default_rng([options.seed, SEED_STREAM, 2])
    who = {
        chance: EpisodePlayer(each, max_steps=max_steps, rng=rng)
        for chance, each in players.items()
    }
    n_games, ended = len(player.games), itertools.count(1)
    try:
        with work_progress("[evaluate] episodes", len(starts) * len(WAYS), console) as progress:
            for first in range(0, len(starts), n_games):
                part = starts[first : first + n_games]
                episodes = {
                    way: who[way.chance].play(
                        part, style, done=lambda label=way.label: progress.done(next(ended), label)
                    )
                    for way, style in styles.items()
                }
                rounds.append(Round(part, episodes))
    finally:
        for game in {id(g): g for p in players.values() for g in p.games}.values():
            game.close()


def joined(rounds: Sequence[Round]) -> list[Played]:
    """What each way has played in all of them."""
    starts = [start for each in rounds for start in each.starts]
    return [
        Played(way, starts, [episode for each in rounds for episode in each.episodes[way]])
        for way in WAYS
    ]


def in_turn(starts: Sequence[Start], n_stages: int) -> list[Start]:
    """The first of every stage, then the second of every: a part of all is a part of each."""
    n_each = len(starts) // n_stages
    return [starts[stage * n_each + i] for i in range(n_each) for stage in range(n_stages)]


def _with_stages(env: EnvConfig, stages: Sequence[str] | None) -> EnvConfig:
    if not stages or not env.is_mario:
        return env
    check_stages(tuple(stages), "--stages")
    return replace(env, stages=tuple(dict.fromkeys(stages)))


def _stages(game: Game, env: EnvConfig, asked: Sequence[str] | None) -> tuple[str, ...]:
    """Raises ConfigError for a level that the game does not have."""
    levels = game.levels()
    if not asked or env.is_mario:
        return levels
    for level in asked:
        if level not in levels:
            there = f"there are {', '.join(levels)}" if levels else "the game has none"
            raise ConfigError(f"--stages: unknown level {level!r}; {there}")
    return tuple(dict.fromkeys(asked))


def without_noops(player: Player, env: EnvConfig) -> Player:
    """Chance comes from moves that stick alone there, as Machado et al. (2018) ask for."""
    if not env.is_mario or env.noop_max == 0:
        return player
    still = replace(env, noop_max=0)
    return replace(player, games=[make_game(still, seed) for seed in range(len(player.games))])


def print_table(rows: Sequence[Row], title: str, console: Console) -> None:
    table = Table(title=title, title_justify="left", caption="mean [95 % interval]")
    has_goal, has_x = (rows[0].clear_rate is not None, rows[0].max_x is not None)
    names = ["stage", "moves, chance", *["cleared"] * has_goal, *["max x"] * has_x]
    for index, name in enumerate([*names, "return", "length"]):
        table.add_column(name, justify="left" if index < 2 else "right", no_wrap=True)
    table.add_column("ends")
    for row in rows:
        cells = [row.stage or "-", f"{row.moves}, {row.chance}"]
        if row.clear_rate is not None:
            cells.append(shown(row.clear_rate, "{:.0%}"))
        if row.max_x is not None:
            cells.append(shown(row.max_x, "{:,.0f}"))
        cells += [shown(row.returns, "{:,.1f}"), shown(row.lengths, "{:,.0f}")]
        cells.append(", ".join(f"{end} {count}" for end, count in row.ends.items()))
        table.add_row(*cells)
    # Intervals are for reading across, so lines are rather long than broken.
    Console(width=max(TABLE_WIDTH, console.width)).print(table)


def shown(estimate: Estimate, form: str) -> str:
    """`mean [low, high]`."""
    value = form.format(estimate.value)
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} \\[{form.format(estimate.low)}, {form.format(estimate.high)}]"


def describe(
    agent: SavedAgent,
    options: argparse.Namespace,
    played: Sequence[Played],
    rows: Sequence[Row],
    seconds: float,
) -> dict[str, object]:
    """The content of the JSON file; docs/reports.md says what each key means."""
    return {
        "format": FORMAT,
        "created_at": time.time(),
        "checkpoint": agent.checkpoint.name,
        "env_id": agent.config.env.id,
        "env_steps": agent.env_steps,
        "weight_version": agent.weights.version,
        "n_episodes": options.episodes,
        "stages": options.stages,
        "seed": options.seed,
        "simulations": options.simulations or agent.config.search.n_simulations,
        "temperature": options.temperature,
        "sticky": options.sticky,
        "max_steps": options.max_steps or agent.config.evaluation.max_steps,
        "prior": agent.has_prior and not options.without_prior,
        "seconds": seconds,
        "versions": library_versions(),
        "rows": [row_record(row) for row in rows],
        "episodes": [
            episode_record(each.way, start, episode)
            for each in played
            for start, episode in zip(each.starts, each.episodes, strict=True)
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
