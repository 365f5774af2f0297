"""How a run did stage by stage: in its last training episodes, in evaluations of its own, and in
those of launch/evaluate.py. Cleared is what `actors.collect_report.is_clear` calls so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actors.episodes import Episode
from actors.evaluation_rows import OWN_WAY, row_record, rows_of
from actors.intervals import Estimate, mean_of, rate_of
from launch.monitoring.json_lines import JsonValue, to_json_value
from launch.reports.run_record import Record, RunRecord, number

RECENT = 100  # episodes of a stage
# Training episodes of older runs say why they ended, and not whether they were won.
CLEARED = ("flag", "won")
GOAL_GAMES = ("WarpZone/Mario-v0", "WarpZone/TextWorld-v0", "WarpZone/Jericho-v0")


@dataclass(frozen=True, slots=True)
class StageRow:
    """what: training or a way of evaluating; None where a game has no such figure."""

    what: str
    stage: str
    n_episodes: int
    cleared: Estimate | None
    max_x: Estimate | None
    returns: Estimate
    lengths: Estimate


def training_rows(run: RunRecord) -> list[StageRow]:
    """The last RECENT training episodes of each stage, which explore."""
    is_goal_game = run.settings.get("env.id") in GOAL_GAMES
    by_stage: dict[str, list[Record]] = {}
    for event in run.events_of("episode_end"):
        has_figures = None not in (number(event.get("episode_return")), number(event.get("length")))
        if has_figures:
            by_stage.setdefault(str(event.get("level") or ""), []).append(event)
    return [
        _training_row(stage, events[-RECENT:], is_goal_game)
        for stage, events in sorted(by_stage.items())
    ]


def _training_row(stage: str, events: Sequence[Record], is_goal_game: bool) -> StageRow:
    max_x = [x for event in events if (x := number(event.get("max_x"))) is not None]
    told = [_is_clear(event, is_goal_game) for event in events]
    clears = [is_clear for is_clear in told if is_clear is not None]
    return StageRow(
        what="training",
        stage=stage,
        n_episodes=len(events),
        cleared=rate_of(sum(clears), len(clears)) if clears else None,
        max_x=mean_of(max_x) if max_x else None,
        returns=mean_of([number(event["episode_return"]) or 0.0 for event in events]),
        lengths=mean_of([number(event["length"]) or 0.0 for event in events]),
    )


def _is_clear(event: Record, is_goal_game: bool) -> bool | None:
    """None in a game that can't be won."""
    if "is_clear" not in event:
        return event.get("reason") in CLEARED if is_goal_game else None
    is_clear = event["is_clear"]
    return is_clear if isinstance(is_clear, bool) else None


def own_rows(event: Record) -> list[StageRow]:
    """Of an `evaluation` event; in older runs it has episodes, of which rows can be made."""
    return evaluation_rows(event if "rows" in event else {"rows": _rows_of_lists(event)})


def _rows_of_lists(event: Record) -> list[JsonValue]:
    levels, returns, lengths = (event.get(name) for name in ("levels", "returns", "lengths"))
    if not isinstance(levels, list) or not levels:
        return []
    columns = [returns, lengths, event.get("max_x"), event.get("clears")]
    # Games without a goal, or without an x, have empty lists.
    nothing: list[JsonValue] = [None] * len(levels)
    full = [c if isinstance(c, list) and len(c) == len(levels) else nothing for c in columns]
    episodes = []
    for level, gained, length, max_x, is_clear in zip(levels, *full, strict=True):
        figures = number(gained), number(length), number(max_x)
        if figures[0] is None or figures[1] is None:
            return []
        episodes.append(
            Episode(
                [],
                level=str(level),
                total_reward=figures[0],
                length=int(figures[1]),
                max_x=None if figures[2] is None else int(figures[2]),
                is_clear=is_clear if isinstance(is_clear, bool) else None,
            )
        )
    return [to_json_value(row_record(row)) for row in rows_of(OWN_WAY, episodes)]


def evaluation_rows(evaluation: Record) -> list[StageRow]:
    """Of what launch/evaluate.py wrote; rows that lack a figure are left out."""
    rows = []
    found = evaluation.get("rows")
    for row in found if isinstance(found, list) else ():
        if not isinstance(row, dict):
            continue
        returns, lengths = _estimate(row.get("returns")), _estimate(row.get("lengths"))
        n_episodes = number(row.get("n_episodes"))
        if returns is None or lengths is None or n_episodes is None:
            continue
        rows.append(
            StageRow(
                what=f"{row.get('moves')}, {row.get('chance')}",
                stage=str(row.get("stage") or ""),
                n_episodes=int(n_episodes),
                cleared=_estimate(row.get("clear_rate")),
                max_x=_estimate(row.get("max_x")),
                returns=returns,
                lengths=lengths,
            )
        )
    return rows


def _estimate(value: object) -> Estimate | None:
    if not isinstance(value, dict):
        return None
    middle = number(value.get("value"))
    if middle is None:
        return None
    return Estimate(middle, number(value.get("low")), number(value.get("high")))
