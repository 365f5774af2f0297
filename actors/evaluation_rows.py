"""Ways of playing an evaluation, its starts, and the table made of its episodes.

launch/evaluate.py plays every stage in four ways, moves greedy or sampled, starts with seeded
no-ops or moves that stick, always from the same seeds, so that differences are of the ways and not
of the starts. The evaluator of a run plays the first of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product

import numpy as np

from actors.episodes import Episode, PlayStyle, Start
from actors.intervals import Estimate, mean_of, rate_of
from actors.search.choice import GREEDY

SEED_STREAM = 1_000_081  # neither acting nor a run's own evaluator plays these starts
MOVES = ("greedy", "sampled")
CHANCES = ("no-ops", "sticky")
ALL_STAGES = "all"


@dataclass(frozen=True, slots=True)
class Way:
    """moves: greedy or sampled; chance: no-ops or sticky."""

    moves: str
    chance: str

    def style(self, *, temperature: float, sticky: float, is_gumbel: bool) -> PlayStyle:
        is_sampled = self.moves == "sampled"
        return PlayStyle(
            temperature=temperature if is_sampled else GREEDY,
            noise=is_sampled and is_gumbel,
            sticky=sticky if self.chance == "sticky" else 0.0,
        )

    @property
    def label(self) -> str:
        return f"{self.moves}, {self.chance}"


OWN_WAY = Way("greedy", "no-ops")  # of a run's own evaluator
WAYS = tuple(Way(moves, chance) for moves, chance in product(MOVES, CHANCES))


@dataclass(frozen=True, slots=True)
class Row:
    """What the episodes of one stage, played in one way, came to.

    clear_rate: None in a game that can't be won; max_x: pixels, None outside Mario
    returns, lengths: means, in reward and env steps; ends: episodes by why they ended
    """

    moves: str
    chance: str
    stage: str
    n_episodes: int
    clear_rate: Estimate | None
    max_x: Estimate | None
    returns: Estimate
    lengths: Estimate
    ends: dict[str, int]


def starts_of(stages: Sequence[str], n_episodes: int, seed: int) -> list[Start]:
    """`n_episodes` for each stage; with no stages to choose, `n_episodes` in all."""
    starts = []
    for index, stage in enumerate(stages or (None,)):
        rng = np.random.default_rng([seed, SEED_STREAM, index])
        seeds = rng.integers(2**31 - 1, size=n_episodes).tolist()
        starts += [Start(each, stage) for each in seeds]
    return starts


def rows_of(way: Way, episodes: Sequence[Episode]) -> list[Row]:
    """One for each stage, in order of appearance, and one for all if there are several."""
    by_stage: dict[str, list[Episode]] = {}
    for episode in episodes:
        by_stage.setdefault(episode.level, []).append(episode)
    rows = [_row(way, stage, played) for stage, played in by_stage.items()]
    return rows if len(rows) == 1 else [*rows, _row(way, ALL_STAGES, episodes)]


def _row(way: Way, stage: str, episodes: Sequence[Episode]) -> Row:
    clears = [e.is_clear for e in episodes if e.is_clear is not None]
    max_x = [float(e.max_x) for e in episodes if e.max_x is not None]
    return Row(
        moves=way.moves,
        chance=way.chance,
        stage=stage,
        n_episodes=len(episodes),
        clear_rate=rate_of(sum(clears), len(clears)) if clears else None,
        max_x=mean_of(max_x) if max_x else None,
        returns=mean_of([e.total_reward for e in episodes]),
        lengths=mean_of([float(e.length) for e in episodes]),
        ends=dict(sorted(Counter(e.end for e in episodes).items())),
    )


def episode_record(way: Way, start: Start, episode: Episode) -> dict[str, object]:
    """One episode as plain data."""
    return {
        "moves": way.moves,
        "chance": way.chance,
        "stage": episode.level,
        "seed": start.seed,
        "return": episode.total_reward,
        "length": episode.length,
        "max_x": episode.max_x,
        "is_clear": episode.is_clear,
        "end": episode.end,
    }


def row_record(row: Row) -> dict[str, object]:
    return asdict(row)
