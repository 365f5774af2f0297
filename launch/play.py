"""Shows how a checkpoint plays, with the opinions of search, world model and language model.

    python launch/play.py runs/mario-quick                            # in this terminal
    python launch/play.py runs/mario-quick --out mario.mp4            # or .gif
    python launch/play.py runs/cartpole --person                      # you, then it, from one start

`--person` lets you play first, with keys, and then shows the agent from the same start. Mario runs
at --fps actions a second and an action stays until another key; other games wait for your key.

Exit codes: 0 done, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import torch

from actors.envs.game import Game
from actors.episodes import Episode, EpisodePlayer, Moment, PlayStyle, Start, Watch
from launch.config import ConfigError, fail
from launch.control.shutdown import EXIT_FINISHED, EXIT_INTERRUPTED
from launch.playing.overlay import draw_moment
from launch.playing.person import help_line, keys_of, play_person
from launch.playing.terminal import Keys, Screen
from launch.saved_agent import SavedAgent, load_agent, make_saved_player

SEED_STREAM = 1_000_099
DEFAULT_FPS = 15.0
SUFFIXES = (".mp4", ".gif")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    torch.set_num_threads(1)
    try:
        return play(load_agent(options.run), options)
    except (ConfigError, ValueError, OSError) as error:
        fail(str(error))
    except EOFError:
        fail("the terminal that keys came from is gone")
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def play(agent: SavedAgent, options: argparse.Namespace) -> int:
    """A person's episode if asked for, then the agent's. Raises ValueError for a bad setting."""
    player = make_saved_player(
        agent,
        n_games=1,
        seed=[options.seed, SEED_STREAM],
        with_prior=agent.has_prior and not options.without_prior,
        n_simulations=options.simulations,
    )
    start = Start(options.seed, options.stage)
    max_steps = options.max_steps or agent.config.evaluation.max_steps
    is_gumbel = agent.config.search.variant == "gumbel"
    style = PlayStyle(temperature=float(options.sampled), noise=options.sampled and is_gumbel)
    rng = np.random.default_rng([options.seed, SEED_STREAM])
    episodes = EpisodePlayer(player, max_steps=max_steps, rng=rng)
    with contextlib.closing(player.games[0]) as game:
        game.reset(start.level, seed=start.seed)  # an unknown stage is told before a screen is made
        if options.person:
            yours = play_yourself(game, start, agent, options.fps, max_steps)
        with watching(options) as watch:
            (episode,) = episodes.play([start], style, watch=watch)
    if options.person:
        say(f"you: {told(yours)}")
    say(f"agent: {told(episode)}")
    if options.out is not None:
        say(f"written to {options.out}")
    return EXIT_FINISHED


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="play.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run, or one of its checkpoints")
    parser.add_argument("--out", type=Path, help="a file to write, .mp4 or .gif")
    parser.add_argument("--person", action="store_true", help="you play first")
    parser.add_argument("--sampled", action="store_true", help="draw moves from the visit shares")
    parser.add_argument("--stage", help="a stage or level; default: drawn by --seed")
    parser.add_argument("--seed", type=int, default=0, help="of the start (default %(default)s)")
    parser.add_argument("--simulations", type=int, help="per move; default: the run's own")
    parser.add_argument("--max-steps", type=int, help="cut of the episode; default: the run's own")
    parser.add_argument(
        "--fps",
        type=float,
        default=DEFAULT_FPS,
        help="moves a second; 0: as fast as it thinks (default %(default)s)",
    )
    parser.add_argument("--without-prior", action="store_true", help="search alone")
    options = parser.parse_args(arguments)
    for name, low, high in (
        ("seed", 0, 2**31 - 1),
        ("simulations", 1, 100_000),
        ("max_steps", 1, 10_000_000),
        ("fps", 0.0, 240.0),
    ):
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            fail(f"--{name.replace('_', '-')} must lie in [{low}, {high}], got {value}")
    _check_places(options)
    return options


def _check_places(options: argparse.Namespace) -> None:
    """Exits with code 2 if there is nowhere to show it, or no keys."""
    out = options.out
    if out is not None and out.suffix not in SUFFIXES:
        fail(f"--out {out} must end in {' or '.join(SUFFIXES)}")
    if out is not None and not out.absolute().parent.is_dir():
        fail(f"--out {out}: there is no folder {out.absolute().parent}")
    if out is None and not sys.stdout.isatty():
        fail("there is no terminal to show it in: give --out FILE.mp4 or FILE.gif")
    if options.person and not (sys.stdin.isatty() and sys.stdout.isatty()):
        fail("--person needs a terminal with keys")


@contextlib.contextmanager
def watching(options: argparse.Namespace) -> Iterator[Watch]:
    """Who is told of each move: a file's writer, or the terminal."""
    if options.out is None:
        yield Screen(options.fps).show
        return
    # Its suffix stays: imageio chooses the format by it.
    temporary = options.out.with_name(f".{options.out.name}")
    fps = options.fps or DEFAULT_FPS
    how = (
        {"duration": 1000.0 / fps, "loop": 0}
        if options.out.suffix == ".gif"
        else {"fps": fps, "codec": "libx264", "macro_block_size": 2}
    )
    try:
        with imageio.get_writer(temporary, **how) as writer:
            yield lambda moment: writer.append_data(draw_moment(moment))
        os.replace(temporary, options.out)
    finally:
        temporary.unlink(missing_ok=True)


def play_yourself(
    game: Game, start: Start, agent: SavedAgent, fps: float, max_steps: int
) -> Episode:
    """Raises ValueError where there are more actions than keys."""
    env = agent.config.env
    keys = keys_of(env, game.spec.n_actions)
    screen = Screen(0.0)

    def show(moment: Moment) -> None:
        screen.show(moment, help_line(keys, moment))

    with Keys(sys.stdin.fileno()) as source:
        pace = fps if env.is_mario else 0.0
        return play_person(game, start, source, keys, show, fps=pace, max_steps=max_steps)


def told(episode: Episode) -> str:
    """An episode in one line."""
    reached = "" if episode.max_x is None else f", x {episode.max_x:,}"
    return (
        f"return {episode.total_reward:.2f} in {episode.length} steps{reached}, "
        f"ended by {episode.end}"
    )


def say(text: str) -> None:
    sys.stdout.write(f"[play] {text}\n")


if __name__ == "__main__":
    sys.exit(main())
