"""How far does a trained run get, beside a uniform random policy?

    python benchmarks/mario_progress.py runs/mario-quick                 # 20 episodes each
    python benchmarks/mario_progress.py runs/mario-quick --prior         # with the language model
    python benchmarks/mario_progress.py runs/cartpole --episodes 50      # returns instead of x

Loads the newest checkpoint of the run and plays greedy episodes with search, as the run's own
evaluator does; then uniform random ones in the same game with the same settings (stages, no-ops,
stall, cut). Prints mean with a bootstrap 95% interval, median, smallest and largest of the maximum
x (of the return outside Mario). `--prior` answers with transformers in this process. Takes a
minute or two on one core.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from actors.collect_report import end_reason
from actors.envs.game import Game, make_game
from actors.evaluation import EvaluationLoop
from actors.player import PlayerConfig, make_player
from actors.prior.backend import LocalPriorTransport
from actors.prior.local_engine import LocalPriorEngine
from benchmarks.training_run import machine_line
from launch.config import Config, overlay
from launch.control.checkpoint import CheckpointStore
from learner.checkpoint import checkpoint_weights
from learner.weights import WeightStore

MAX_GAMES = 10  # played side by side
SEARCH_STREAM, RANDOM_STREAM, BOOTSTRAP_STREAM = 2_000_003, 2_000_029, 2_000_039
N_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the episodes of one policy came to."""

    policy: str
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    end_reasons: tuple[str, ...]
    max_x: tuple[int, ...]  # empty outside Mario
    seconds: float

    @property
    def scores(self) -> NDArray[np.float64]:
        return np.array(self.max_x or self.returns, np.float64)


def play_with_search(
    config: Config, checkpoint: Path, run_dir: Path, n_episodes: int, *, prior: bool
) -> Outcome:
    """Greedy episodes with the checkpoint's weights."""
    store = WeightStore()
    weights = checkpoint_weights(checkpoint / "learner")
    store.push(weights)
    transport = None
    if prior:
        transport = LocalPriorTransport(
            LocalPriorEngine(config.prior, adapters_dir=run_dir / "adapters")
        )
    player = make_player(
        PlayerConfig(
            env=config.env,
            search=config.search,
            prior=config.prior,
            model=config.model,
            discount=config.targets.discount,
            device="cpu",
        ),
        n_games=min(MAX_GAMES, n_episodes),
        rng=np.random.default_rng([config.seed, SEARCH_STREAM]),
        prior_transport=transport,
    )
    loop = EvaluationLoop(player=player, weight_source=store, config=config.evaluation)
    report = loop.evaluate(n_episodes, video=False)
    name = f"search, weights {weights.version}{', with LLM prior' if prior else ''}"
    return Outcome(
        policy=name,
        returns=report.returns,
        lengths=report.lengths,
        end_reasons=report.end_reasons,
        max_x=report.max_x,
        seconds=report.seconds,
    )


def play_at_random(config: Config, n_episodes: int) -> Outcome:
    """Uniform over the legal actions; same game, same cut."""
    started = time.perf_counter()
    rng = np.random.default_rng([config.seed, RANDOM_STREAM])
    game = make_game(config.env, int(rng.integers(2**31 - 1)))
    played = [_random_episode(game, rng, config.evaluation.max_steps) for _ in range(n_episodes)]
    game.close()
    returns, lengths, reasons, max_x = zip(*played, strict=True)
    return Outcome(
        policy="uniform random",
        returns=returns,
        lengths=lengths,
        end_reasons=reasons,
        max_x=tuple(x for x in max_x if x is not None),
        seconds=time.perf_counter() - started,
    )


def _random_episode(
    game: Game, rng: np.random.Generator, max_steps: int
) -> tuple[float, int, str, int | None]:
    """Return, length, reason of the end, maximum x."""
    game.reset()
    total_reward, max_x = 0.0, None
    for length in range(1, max_steps + 1):
        legal = game.legal()
        allowed = game.spec.n_actions if legal is None else np.flatnonzero(legal)
        _, reward, terminated, truncated, info = game.step(int(rng.choice(allowed)))
        total_reward += reward
        max_x = int(info["max_x"]) if "max_x" in info else max_x
        if terminated or truncated:
            return total_reward, length, end_reason(info, terminated), max_x
    return total_reward, max_steps, "timeout", max_x


def bootstrap_means(scores: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Means of resamples with replacement, [N_RESAMPLES]."""
    rng = np.random.default_rng([seed, BOOTSTRAP_STREAM])
    return rng.choice(scores, (N_RESAMPLES, len(scores))).mean(axis=1)


def interval(means: NDArray[np.float64]) -> str:
    low, high = np.percentile(means, (2.5, 97.5))
    return f"{low:,.0f} .. {high:,.0f}"


def print_report(title: str, outcomes: Sequence[Outcome], n_episodes: int) -> None:
    what = "maximum x" if outcomes[0].max_x else "return"
    table = Table(title=title, caption=f"{what} over {n_episodes} episodes each")
    columns = "policy,mean,95% of the mean,median,min..max,flags,steps,ends,s"
    for column in columns.split(","):
        table.add_column(column, justify="left" if column in ("policy", "ends") else "right")
    means = [bootstrap_means(outcome.scores, seed) for seed, outcome in enumerate(outcomes)]
    for outcome, resampled in zip(outcomes, means, strict=True):
        scores, reasons = outcome.scores, outcome.end_reasons
        table.add_row(
            outcome.policy,
            f"{scores.mean():,.0f}",
            interval(resampled),
            f"{np.median(scores):,.0f}",
            f"{scores.min():,.0f}..{scores.max():,.0f}",
            str(reasons.count("flag")) if outcome.max_x else "-",
            f"{np.mean(outcome.lengths):,.0f}",
            ", ".join(f"{reason} {reasons.count(reason)}" for reason in sorted(set(reasons))),
            f"{outcome.seconds:.0f}",
        )
    console = Console(width=max(120, Console().width))
    console.print(table)
    gap = outcomes[0].scores.mean() - outcomes[1].scores.mean()
    console.print(f"search beyond random: {gap:+,.0f} ({interval(means[0] - means[1])})")


def parse_options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--max-steps", type=int, help="cut of an episode; default: the run's own")
    parser.add_argument("--prior", action="store_true", help="ask the run's language model")
    options = parser.parse_args(words)
    if options.episodes < 1:
        parser.error(f"--episodes must be at least 1, got {options.episodes}")
    if not (options.run_dir / "config.yaml").is_file():
        parser.error(f"{options.run_dir} holds no run: config.yaml is missing")
    return options


def main() -> None:
    options = parse_options(sys.argv[1:])
    torch.set_num_threads(1)
    settings = yaml.safe_load((options.run_dir / "config.yaml").read_text())
    config = overlay(Config(), settings, where=str(options.run_dir / "config.yaml"))
    if options.max_steps is not None:
        cut = dataclasses.replace(config.evaluation, max_steps=options.max_steps)
        config = dataclasses.replace(config, evaluation=cut)
    checkpoint = CheckpointStore(options.run_dir / "checkpoints", keep=1).latest()
    if checkpoint is None:
        sys.exit(f"error: {options.run_dir} has no usable checkpoint; train it first")
    outcomes = (
        play_with_search(
            config, checkpoint, options.run_dir, options.episodes, prior=options.prior
        ),
        play_at_random(config, options.episodes),
    )
    title = f"progress, {config.env.id}, {checkpoint.name}, {machine_line()}"
    print_report(title, outcomes, options.episodes)


if __name__ == "__main__":
    main()
