"""Looks into checkpoints and brings old ones up to date: python launch/migrate.py inspect PATH"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from launch.control.inspection import describe, describe_uri
from launch.control.legacy_steps import legacy_files, rebuild_steps
from launch.control.remote_store import is_uri
from launch.control.upgrade import checkpoints_in, upgrade

EXIT_SOME_FAILED = 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit code 1 if a file could not be used, 2 for arguments that make no sense."""
    parser = argparse.ArgumentParser(prog="migrate.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", help="print what a checkpoint or a run holds")
    backfill = commands.add_parser(
        "backfill-steps",
        help="rebuild global_step of legacy .pt + .json pairs from their updates",
        description="Puts global_update * num_envs * rollout_steps where global_step is 0. "
        "The old file stays as .json.bak; what was rebuilt before is left alone.",
    )
    bring = commands.add_parser(
        "upgrade",
        help="bring checkpoints of older formats up to date",
        description="A checkpoint, or all of a run. The old folder stays as .bak; one that is up "
        "to date is left alone.",
    )
    bring.add_argument("path", help="a checkpoint, or the folder of a run")
    bring.add_argument("--dry-run", action="store_true", help="say what would be done")
    inspect.add_argument("path", help="a file, a folder, or the URI of a run or a checkpoint")
    backfill.add_argument("path", help="a file, or a folder to search")
    backfill.add_argument(
        "--assume-rollout-steps",
        type=int,
        default=64,
        metavar="N",
        help="env steps per environment and update, which those files do not say "
        "(default %(default)s)",
    )
    backfill.add_argument("--dry-run", action="store_true", help="say what would be written")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    if options.command == "inspect" and is_uri(options.path):
        _inspect(options.path)
        return
    options.path = Path(options.path)
    if not options.path.exists():
        parser.error(f"{options.path} does not exist; name a checkpoint, a run or a folder of them")
    if options.command == "inspect":
        _inspect(options.path)
    elif options.command == "upgrade":
        _upgrade(options.path, options.dry_run)
    else:
        if options.assume_rollout_steps < 1:
            parser.error(
                f"--assume-rollout-steps must be at least 1, got {options.assume_rollout_steps}"
            )
        _backfill(options.path, options.assume_rollout_steps, options.dry_run)


def _inspect(path: Path | str) -> None:
    try:
        sys.stdout.write(describe_uri(path) if isinstance(path, str) else describe(path))
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(EXIT_SOME_FAILED) from error


def _backfill(path: Path, assumed_rollout_steps: int, dry_run: bool) -> None:
    outcomes: Counter[str] = Counter()
    for file in legacy_files(path):
        report = rebuild_steps(file, assumed_rollout_steps=assumed_rollout_steps, dry_run=dry_run)
        outcomes[report.outcome] += 1
        sys.stdout.write(f"[migrate] {report.outcome:7} {report.path}: {report.text}\n")
    _conclude(outcomes, ("rebuilt", "kept", "failed"), dry_run)


def _upgrade(path: Path, dry_run: bool) -> None:
    outcomes: Counter[str] = Counter()
    for folder in checkpoints_in(path):
        report = upgrade(folder, dry_run=dry_run)
        outcomes[report.outcome] += 1
        sys.stdout.write(f"[migrate] {report.outcome:8} {report.path}: {report.text}\n")
    _conclude(outcomes, ("upgraded", "current", "failed"), dry_run)


def _conclude(outcomes: Counter[str], names: Sequence[str], dry_run: bool) -> None:
    shown = ", ".join(f"{outcomes[name]} {name}" for name in names)
    tail = "; dry run: nothing was written" if dry_run else ""
    sys.stdout.write(f"[migrate] {shown}{tail}\n")
    if outcomes["failed"]:
        raise SystemExit(EXIT_SOME_FAILED)


if __name__ == "__main__":
    main()
