"""How well does a checkpoint play? Greedy and sampled episodes, stage by stage, with intervals.

    python launch/evaluate.py runs/mario-quick                        # 20 episodes of each kind
    python launch/evaluate.py runs/mario-quick --episodes 50 --stages 1-1 1-2
    python launch/evaluate.py runs/cartpole --simulations 50 --temperature 0.5

Every stage is played in four ways from the same seeds: moves greedy or sampled from the search's
visit shares; starts with seeded no-ops (Mario's idle frames; other games draw their own start), or
without them and with moves that stick. Rates have Wilson's interval, means that of a bootstrap,
both 95 %. Writes evaluations/<checkpoint>.json and .png in the run directory. A run with a language
model is played with it, by transformers in this process, unless --without-prior.

Exit codes: 0 done, 2 bad input.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from actors.envs.config import EnvConfig, check_stages
from actors.envs.game import Game, make_game
from actors.episodes import Episode, EpisodePlayer, Start
from actors.player import Player
from launch.config import ConfigError, fail
from launch.control.metadata import library_versions
from launch.monitoring.json_lines import to_json_value
from launch.monitoring.work_progress import work_progress
from launch.reports.evaluation import (
    SEED_STREAM,
    WAYS,
    Row,
    Way,
    episode_record,
    row_record,
    rows_of,
    starts_of,
)
from launch.reports.evaluation_picture import draw_evaluation
from launch.reports.intervals import Estimate
from launch.saved_agent import SavedAgent, load_agent, make_saved_player

EVALUATIONS_FOLDER = "evaluations"
FORMAT = 1
MAX_GAMES = 10  # played side by side
MOST_EPISODES = 10_000
TABLE_WIDTH = 116


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    torch.set_num_threads(1)
    console = Console()
    try:
        agent = load_agent(options.run)
        folder = agent.run_dir / EVALUATIONS_FOLDER
        check_folder(folder)
        started = time.perf_counter()
        played = play_all(agent, options, console)
    except (ConfigError, ValueError) as error:
        fail(str(error))
    rows = [row for way, _, episodes in played for row in rows_of(way, episodes)]
    title = f"{agent.config.env.id}, {agent.env_steps:,} env steps"
    print_table(rows, f"{title}, {options.episodes} episodes each", console)
    content = describe(agent, options, played, rows, time.perf_counter() - started)
    path = write(folder, agent, content, rows, title)
    console.print(f"[evaluate] {path} and .png beside it", markup=False, soft_wrap=True)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
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
    options = parser.parse_args(arguments)
    _check(options)
    return options


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


def check_folder(folder: Path) -> None:
    """Raises ConfigError if nothing can be written there, before anything is played."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file where evaluations would be written; move it away")
    if not os.access(folder if folder.exists() else folder.parent, os.W_OK):
        raise ConfigError(f"{folder} can't be written; copy the run to where you may write")


def play_all(
    agent: SavedAgent, options: argparse.Namespace, console: Console
) -> list[tuple[Way, list[Start], list[Episode]]]:
    """All episodes of all ways. Raises ValueError where a setting can't be used."""
    config = agent.config
    env = _with_stages(config.env, options.stages)
    with_prior = agent.has_prior and not options.without_prior
    player = make_saved_player(
        agent,
        n_games=min(MAX_GAMES, options.episodes),
        seed=[options.seed, SEED_STREAM],
        with_prior=with_prior,
        n_simulations=options.simulations,
        env=env,
    )
    stages = _stages(player.games[0], env, options.stages)
    starts = starts_of(stages, options.episodes, options.seed)
    players = {"no-ops": player, "sticky": _without_noops(player, env)}
    max_steps = options.max_steps or config.evaluation.max_steps
    played = []
    ended = itertools.count(1)
    with work_progress("[evaluate] episodes", len(starts) * len(WAYS), console) as progress:
        for way in WAYS:
            style = way.style(
                temperature=options.temperature,
                sticky=options.sticky,
                is_gumbel=config.search.variant == "gumbel",
            )
            rng = np.random.default_rng([options.seed, SEED_STREAM, 2])
            who = EpisodePlayer(players[way.chance], max_steps=max_steps, rng=rng)
            episodes = who.play(
                starts, style, done=lambda label=way.label: progress.done(next(ended), label)
            )
            played.append((way, starts, episodes))
    for game in {id(g): g for p in players.values() for g in p.games}.values():
        game.close()
    return played


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


def _without_noops(player: Player, env: EnvConfig) -> Player:
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
    played: Sequence[tuple[Way, list[Start], list[Episode]]],
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
            episode_record(way, start, episode)
            for way, starts, episodes in played
            for start, episode in zip(starts, episodes, strict=True)
        ],
    }


def write(
    folder: Path,
    agent: SavedAgent,
    content: dict[str, object],
    rows: Sequence[Row],
    title: str,
) -> Path:
    """JSON and picture; readers see the old files or the new ones, never half of one."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{agent.checkpoint.name}.json"
    text = json.dumps(to_json_value(content), indent=1, allow_nan=False)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text + "\n")
    os.replace(temporary, path)
    picture = folder / f".{agent.checkpoint.name}.png"
    draw_evaluation(rows, title, picture)
    os.replace(picture, folder / f"{agent.checkpoint.name}.png")
    return path


if __name__ == "__main__":
    sys.exit(main())
