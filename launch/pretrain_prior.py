"""Fine-tunes the language model on demonstrations, before a run:

    python launch/pretrain_prior.py --source textworld --output warm/coins --preset textworld
    python launch/train.py --preset textworld --prior.enabled true --prior.adapter warm/coins

All words that are not listed here are settings of launch/train.py: which game, prior.model,
prior.prompt, language. Give the same ones to the run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from actors.demonstrations import Planned, plan_episodes, solve_games
from actors.envs.config import MARIO_ID, TEXTWORLD_ID
from launch.config import Config, ConfigError, fail, parse
from launch.monitoring.work_progress import LINES, work_progress
from launch.recorded_play import recorded_play
from learner.language.measurement import Measurement
from learner.language.model_folder import resolve_model
from learner.language.pretraining import PretrainReport, pretrain
from replay_service.targets import TextBatch

GAME_OF = {"textworld": TEXTWORLD_ID, "mario": MARIO_ID}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 2 and one message for bad input, 1 if the numbers stop being finite."""
    options, words = _parser().parse_known_args(arguments)
    _, config = parse(words)
    try:
        _check(options, config)
        model = resolve_model(config.prior.model)
        demonstrations = _demonstrations(options, config)
        torch.set_num_threads(1)
        _say(f"{len(demonstrations.prompt):,} states; they are answered before and after ...")
        with work_progress("[prior] optimiser steps", options.optimizer_steps) as progress:
            report = pretrain(
                demonstrations,
                model,
                options.output,
                config=config.language,
                prompt=config.prior.prompt,
                n_steps=options.optimizer_steps,
                held_out_share=options.held_out,
                seed=config.seed,
                source=_describe(options, config),
                progress=lambda step, loss: progress.done(step, f"loss {loss:.3f}"),
            )
    except ValueError as error:
        fail(str(error))
    except RuntimeError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    _print(report, options.output)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pretrain_prior.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--source",
        required=True,
        choices=("run", "textworld", "mario"),
        help="recorded play of a run; generated text games with their solutions; planning with "
        "the emulator's save states",
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="new folder for the adapter"
    )
    parser.add_argument(
        "--from",
        dest="recorded",
        type=Path,
        metavar="PATH",
        help="run: its folder, or a checkpoint of it",
    )
    parser.add_argument(
        "--answers",
        choices=("visits", "actions"),
        default="visits",
        help="run: imitate the visit shares of search, or what was played (default %(default)s)",
    )
    parser.add_argument(
        "--episodes", type=int, default=4, help="mario: episodes to plan (default %(default)s)"
    )
    parser.add_argument(
        "--max-steps", type=int, default=400, help="mario: of an episode (default %(default)s)"
    )
    parser.add_argument(
        "--optimizer-steps", type=int, default=200, metavar="N", help="default %(default)s"
    )
    parser.add_argument(
        "--held-out",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="of the different states, to measure on (default %(default)s)",
    )
    return parser


def _check(options: argparse.Namespace, config: Config) -> None:
    """Raises ConfigError naming the option, its value and what is allowed."""
    for name in ("episodes", "max_steps", "optimizer_steps"):
        if getattr(options, name) < 1:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} must be at least 1, got {getattr(options, name)}")
    if not 0.0 < options.held_out < 1.0:
        raise ConfigError(f"--held-out must lie in (0, 1), got {options.held_out}; 0.1 is usual")
    if options.output.exists():
        raise ConfigError(f"--output {options.output} exists; name a new folder")
    if (options.source == "run") != (options.recorded is not None):
        raise ConfigError("--from names the run to learn from: --source run needs it, others don't")
    wanted = GAME_OF.get(options.source)
    if wanted is not None and config.env.id != wanted:
        raise ConfigError(
            f"--source {options.source} plays {wanted}, but env.id is {config.env.id!r}; choose "
            f"it with --env {wanted} or a preset"
        )


def _demonstrations(options: argparse.Namespace, config: Config) -> TextBatch:
    if options.source == "run":
        _say(f"reading the replay of {options.recorded} ...")
        return recorded_play(options.recorded, options.answers, _teller("shards read"))
    if options.source == "textworld":
        return solve_games(config.env.text, _teller("games solved"))
    planned: list[Planned] = []
    with work_progress("[prior] planned episodes", options.episodes) as progress:

        def tell(episode: Planned) -> None:
            planned.append(episode)
            progress.say(f"[prior] {_describe_episode(episode)}")
            progress.done(len(planned))

        return plan_episodes(
            config.env,
            options.episodes,
            max_steps=options.max_steps,
            seed=config.seed,
            told=tell,
        )


def _teller(what: str) -> Callable[[int, int], None]:
    """Says now and then how many are done, of work whose amount is not known before it begins."""

    def tell(n_done: int, n: int) -> None:
        if n_done * LINES // n > (n_done - 1) * LINES // n:
            _say(f"{what}: {n_done} of {n}")

    return tell


def _describe_episode(episode: Planned) -> str:
    ending = "ended" if episode.is_over else "cut"
    return (
        f"planned {episode.level}: {episode.n_steps} steps, {ending} at x {episode.max_x}, "
        f"return {episode.total_reward:.1f}"
    )


def _describe(options: argparse.Namespace, config: Config) -> str:
    if options.source == "run":
        return f"{options.answers} recorded in {options.recorded}"
    if options.source == "textworld":
        text = config.env.text
        games = " ".join([text.kind, *text.options])
        return f"solutions of {games}, seeds {' '.join(map(str, text.seeds))}"
    stages = " ".join(config.env.stages)
    return f"{options.episodes} planned episodes of {stages}, seed {config.seed}"


def _print(report: PretrainReport, output: Path) -> None:
    _say(
        f"{report.before.tokens:,} supervised tokens in {report.before.n:,} states, "
        f"{report.n_steps:,} optimiser steps"
    )
    _say(f"trained on: {_change(report.before, report.after)}")
    _say(
        f"held out ({report.held_out_after.n:,} states): "
        f"{_change(report.held_out_before, report.held_out_after)}"
    )
    if report.held_out_after.loss > report.held_out_before.loss:
        _say(
            "WARNING: the states held out are answered worse than before: the model learnt its "
            "examples by heart; give more of them, or fewer --optimizer-steps"
        )
    _say(f"begin a run with it: --prior.adapter {output}")


def _change(before: Measurement, after: Measurement) -> str:
    return (
        f"loss {before.loss:.3f} -> {after.loss:.3f}, log-probability of the answer "
        f"{before.log_prob:.3f} -> {after.log_prob:.3f}, agreement {before.agreement:.1%} -> "
        f"{after.agreement:.1%} (guessing {after.chance:.1%})"
    )


def _say(text: str) -> None:
    sys.stdout.write(f"[prior] {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
