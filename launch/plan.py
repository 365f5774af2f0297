"""What a run would need and do on a cluster of yours, before you rent one; nothing is started.

    python launch/plan.py --num-actors 1000 --cluster cluster.yaml
    python launch/plan.py --preset mario --cluster cluster.yaml --search.mode served

All settings of `launch/train.py` may be given. The cluster file lists groups of nodes (cpus, gpus,
memory_gib, price_per_hour, count), and speeds that you measured; docs/scaling.md shows one and says
where each figure comes from. Exit codes: 0 it fits, 2 it does not, or bad input.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from actors.envs.game import game_spec
from launch.config import DEFAULT_PRESET, Config, fail, parse
from launch.control.capacity import Fit, actor_need, fit, other_needs
from launch.control.cluster_file import Cluster, read_cluster
from launch.control.rates import Line, advice_of, lines_of, rates_of
from launch.control.shutdown import EXIT_BAD_INPUT, EXIT_FINISHED
from learner.world_model import WorldModel
from replay_service import GameSpec

USAGE = "usage: python launch/plan.py --cluster FILE [settings of launch/train.py]"


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in (["--help"], ["-h"]):
        sys.stdout.write(f"{USAGE}\n\n{__doc__}")
        return EXIT_FINISHED
    path = _take_cluster(words)
    preset, config = parse(words)
    try:
        cluster = read_cluster(path)
        spec = game_spec(config.env)
    except ValueError as error:
        fail(str(error))
    console = Console()
    return show_plan(preset, config, spec, cluster, console)


def show_plan(
    preset: str, config: Config, spec: GameSpec, cluster: Cluster, console: Console
) -> int:
    """Prints placement and rates; returns the exit code."""
    device = _device(config, cluster)
    placed = fit(
        cluster.nodes,
        other_needs(config, device),
        actor_need(config, device),
        config.acting.num_actors,
    )
    n_actor_nodes = sum(n > 0 for n in placed.actors_by_node)
    rates = rates_of(
        config,
        spec,
        cluster.measured,
        n_parameters=sum(p.numel() for p in WorldModel(config.model, spec).parameters()),
        n_actor_nodes=n_actor_nodes,
        price_per_hour=cluster.price_per_hour,
    )
    title = f"{config.acting.num_actors:,} env actors, preset {preset}, {len(cluster.nodes)} nodes"
    lines = [*_placement_lines(placed, cluster), *lines_of(rates, config, cluster.measured)]
    _print_table(console, title, lines)
    if preset != DEFAULT_PRESET:
        _say(
            console,
            f"speeds that {DEFAULT_PRESET} was measured with stand for those you did not give "
            "under measured in the cluster file",
        )
    for line in advice_of(rates, config):
        _say(console, line)
    for line in placed.missing:
        _say(console, f"does not fit: {line}")
    return EXIT_FINISHED if placed.is_whole else EXIT_BAD_INPUT


def _device(config: Config, cluster: Cluster) -> str:
    """The learner's there: auto takes a GPU where any node has one."""
    if config.device != "auto":
        return config.device
    return "cuda" if any(group.gpus for group in cluster.groups) else "cpu"


def _placement_lines(placed: Fit, cluster: Cluster) -> list[Line]:
    n_nodes = sum(n > 0 for n in placed.actors_by_node)
    where = f"on {n_nodes} nodes, at most {max(placed.actors_by_node)} each"
    homes = ", ".join(sorted(set(placed.homes)))
    lines = [
        (
            "env actors with room",
            f"{placed.n_actors:,}",
            where,
        ),
        ("other processes with room", str(len(placed.homes)), f"on {homes or 'no node'}"),
    ]
    if cluster.price_per_hour:
        lines.append(("price an hour", f"{cluster.price_per_hour:,.2f}", "all nodes"))
    return lines


def _print_table(console: Console, title: str, lines: Sequence[Line]) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for line in lines:
        table.add_row(*line)
    console.print(table)


def _say(console: Console, text: str) -> None:
    console.print(f"[plan] {text}", markup=False, highlight=False, soft_wrap=True)


def _take_cluster(words: list[str]) -> Path:
    """Removes `--cluster FILE` from `words` and returns FILE."""
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == "--cluster" and (equals or index + 1 < len(words)):
            del words[index]
            return Path(value if equals else words.pop(index))
    fail(f"--cluster needs a file with the nodes; docs/scaling.md shows one\n{USAGE}")


if __name__ == "__main__":
    sys.exit(main())
