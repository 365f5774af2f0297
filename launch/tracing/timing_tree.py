"""Where the time of a run went, as a tree for the terminal: processes, their stages, percent."""

from __future__ import annotations

from collections import defaultdict

from rich.markup import escape
from rich.tree import Tree

from launch.tracing.time_book import TimeBook

MOST_OF_A_ROLE = 8  # with more processes of one role they share a branch


def timing_tree(book: TimeBook, now: float) -> Tree:
    """Each stage with its percent of the process's time, seconds, and calls with their mean."""
    tree = Tree(f"[bold]time[/bold], {now - book.started:,.1f} s")
    by_role: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(book.processes):
        by_role[book.processes[name].role].append(name)
    for role, names in by_role.items():
        if len(names) > MOST_OF_A_ROLE:
            _add_branch(tree, f"{role}, mean of {len(names)}", book, names, now)
        else:
            for name in names:
                _add_branch(tree, name, book, [name], now)
    return tree


def _add_branch(tree: Tree, title: str, book: TimeBook, names: list[str], now: float) -> None:
    wall_s = sum(now - book.processes[name].since for name in names)
    branch = tree.add(f"[bold]{escape(title)}[/bold], {wall_s / len(names):,.1f} s")
    sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name in names:
        for stage, (seconds, n_calls) in book.stages(name, now).items():
            sums[stage][0] += seconds
            sums[stage][1] += n_calls
    for stage, (seconds, n_calls) in sorted(sums.items(), key=lambda row: -row[1][0]):
        share = 100.0 * seconds / max(wall_s, 1e-9)
        calls = f"  {n_calls:,.0f} x {1e3 * seconds / n_calls:,.1f} ms" if n_calls else ""
        branch.add(f"{escape(stage):<14}{share:6.1f} %  {seconds / len(names):10,.1f} s{calls}")
