"""Batches over several shards: how many rows each draws, and what every row then weighs.

A batch of B rows is planned by the shards' masses as they were last known: shard s has the share
q_s of the total and draws n_s rows, a systematic sample with E[n_s] = B q_s and |n_s - B q_s| < 1.
It draws position i with its true w_i / W_s, so one draw takes i with probability q_s w_i / W_s:
importance made from that is exact for the shares used, however old the masses are.

Knows nothing of processes: the sources of batches differ in how they ask the shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from replay_service.config import ReplayConfig
from replay_service.placement import upload
from replay_service.targets import Batch, BatchHandles, Handles, TextBatch

_OFFSET_STREAM = 3_000_017  # keeps these random numbers apart from others of the run's seed


@dataclass(frozen=True, slots=True)
class ShareRequest:
    """What a shard is asked for."""

    n_rows: int  # of the batch, 0 to hear of its mass only
    n_batches: int  # drawn so far over all shards, this one included
    newest_version: int  # of the weights, as far as any shard has told


@dataclass(frozen=True, slots=True)
class ShareReply:
    """What a shard gives.

    batch:       n windows whose importance is not set; None if none were asked for or it is empty
    probability: [n] float64, that one draw in this shard takes the position
    mass:        sum of its weights when it drew; 0 if it holds no position
    n_batches, newest_version: the largest that the shard has heard of
    """

    batch: Batch | None
    probability: NDArray[np.float64]
    mass: float
    n_batches: int
    newest_version: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Who draws how much of one batch; one entry per shard."""

    counts: tuple[int, ...]  # n_s
    shares: tuple[float, ...]  # q_s
    n_batches: int
    newest_version: int

    def request(self, shard: int) -> ShareRequest:
        return ShareRequest(self.counts[shard], self.n_batches, self.newest_version)

    def can_be_served(self, replies: Sequence[ShareReply | None]) -> bool:
        """Whether all shards with a share, asked for rows or not, still hold positions.

        Were only those looked at that drew rows, keeping a batch would depend on the draw of
        counts, and bias it.
        """
        return all(
            share == 0.0 or (reply is not None and reply.mass > 0.0)
            for share, reply in zip(self.shares, replies, strict=True)
        )


def allocate(masses: ArrayLike, n_rows: int, offset: float) -> NDArray[np.int64]:
    """Rows per shard, [S] int64 summing to `n_rows`; `offset` is uniform in [0, 1).

    Systematic sampling: with C_s the cumulated masses in rows, shard s gets the integers in
    [C_{s-1} + offset, C_s + offset), counted as floor differences. ValueError unless the masses
    are finite, not negative, and not all 0.
    """
    mass = np.asarray(masses, dtype=np.float64)
    if not (np.isfinite(mass).all() and (mass >= 0.0).all() and mass.sum() > 0.0):
        raise ValueError(f"masses must be finite, not negative and not all 0, got {mass.tolist()}")
    cumulated = np.cumsum(mass)
    # Divided by its own last entry, so that shards without mass at the end get exactly nothing.
    edges = np.floor(n_rows * (cumulated / cumulated[-1]) + offset).astype(np.int64)
    return np.diff(np.minimum(edges, n_rows), prepend=0)


class JointPlanner:
    """What is known of the shards, and the plans that follow; owned by one source of batches.

    Keeps nothing that a checkpoint would need: the count of batches is kept by the shards, and
    the offset of a batch follows from its number.
    """

    def __init__(self, config: ReplayConfig, batch_size: int, n_shards: int, seed: int) -> None:
        if batch_size < 1 or n_shards < 1:
            raise ValueError(
                f"batch_size and n_shards must be at least 1, got {batch_size} and {n_shards}"
            )
        self._config = config
        self._batch_size = batch_size
        self._seed = seed
        self._masses = [0.0] * n_shards  # no array: one that travelled by Ray is read-only
        self._n_batches = 0
        self._newest_version = -1

    @property
    def knows_mass(self) -> bool:
        """Whether some shard is known to hold positions."""
        return any(self._masses)

    def probe(self) -> ShareRequest:
        """Asks a shard for its mass only."""
        return ShareRequest(0, self._n_batches, self._newest_version)

    def plan(self) -> Plan:
        """The next batch; some mass must be known."""
        self._n_batches += 1
        number = self._n_batches
        offset = np.random.default_rng([self._seed, _OFFSET_STREAM, number]).random()
        counts = allocate(self._masses, self._batch_size, offset)
        total = sum(self._masses)
        shares = tuple(mass / total for mass in self._masses)
        return Plan(tuple(counts.tolist()), shares, number, self._newest_version)

    def learn(self, shard: int, reply: ShareReply) -> None:
        self._masses[shard] = reply.mass
        self._n_batches = max(self._n_batches, reply.n_batches)
        self._newest_version = max(self._newest_version, reply.newest_version)

    def lose(self, shard: int) -> None:
        """Plan without it, until something is learnt of it again."""
        self._masses[shard] = 0.0

    def join(self, plan: Plan, replies: Sequence[ShareReply | None]) -> Batch | None:
        """The whole batch, or None if a shard could not serve: then it must be drawn again."""
        if not plan.can_be_served(replies):
            return None
        drawn = [reply.batch for reply in replies if reply is not None and reply.batch is not None]
        beta = self._config.beta(plan.n_batches - 1)
        return _concatenate(drawn, importance(draw_probability(plan, replies), beta))


def draw_probability(plan: Plan, replies: Sequence[ShareReply | None]) -> NDArray[np.float64]:
    """[B] float64: q_s w_i / W_s of every row, by the shares of the plan."""
    return np.concatenate(
        [
            share * reply.probability
            for share, reply in zip(plan.shares, replies, strict=True)
            if reply is not None
        ]
    )


def importance(probability: NDArray[np.float64], beta: float) -> NDArray[np.float32]:
    """(N p)^-beta / max over the batch, [B] float32; N, the positions of all shards, cancels."""
    weights: NDArray[np.float32] = ((probability.min() / probability) ** beta).astype(np.float32)
    return weights


def parts(
    handles: BatchHandles, priorities: NDArray[np.floating] | Tensor
) -> Iterator[tuple[Handles, NDArray[np.floating] | Tensor]]:
    """Each shard's handles with their priorities, as they lie in the batch."""
    held = (handles,) if isinstance(handles, Handles) else handles
    n_handles = sum(map(len, held))
    if tuple(priorities.shape) != (n_handles,):
        raise ValueError(
            f"priorities has shape {tuple(priorities.shape)}, but there are {n_handles} handles; "
            "expected one each"
        )
    start = 0
    for part in held:
        yield part, priorities[start : start + len(part)]
        start += len(part)


def _concatenate(batches: Sequence[Batch], weights: NDArray[np.float32]) -> Batch:
    """One batch; nothing that the shards may still look at is changed."""
    joined: dict[str, Tensor] = {}
    for field in fields(Batch):
        columns = [getattr(batch, field.name) for batch in batches]
        if field.name == "legal" and any(column is not None for column in columns):
            columns = [
                torch.ones_like(batch.policy, dtype=torch.bool) if column is None else column
                for batch, column in zip(batches, columns, strict=True)
            ]
        if isinstance(columns[0], Tensor):
            joined[field.name] = torch.cat(columns)
    joined["importance"] = upload(weights, joined["obs"].device)
    handles: list[Handles] = []
    for batch in batches:
        handles.extend((batch.handles,) if isinstance(batch.handles, Handles) else batch.handles)
    return Batch(handles=tuple(handles), **joined)


class TextShard(Protocol):
    """A shard as the language learner's source sees it."""

    def text_positions(self) -> int: ...

    def sample_text(self, batch_size: int) -> TextBatch | None: ...


class JointTextSource:
    """Examples for the language learner, uniform over the prompts of several shards.

    Shards are asked how many they hold right before they draw. One that lost its prompts between
    the two questions makes the batch shorter.
    """

    def __init__(self, shards: Sequence[TextShard], batch_size: int, seed: int) -> None:
        self._shards = shards
        self._batch_size = batch_size
        self._rng = np.random.default_rng([seed, _OFFSET_STREAM])

    def next(self) -> TextBatch | None:
        """None while there is no prompt."""
        held = [shard.text_positions() for shard in self._shards]
        if not any(held):
            return None
        counts = allocate(held, self._batch_size, self._rng.random()).tolist()
        drawn = [
            shard.sample_text(count)
            for shard, count in zip(self._shards, counts, strict=True)
            if count
        ]
        batches = [batch for batch in drawn if batch is not None]
        if not batches:
            return None
        return TextBatch(
            prompt=tuple(prompt for batch in batches for prompt in batch.prompt),
            options=tuple(options for batch in batches for options in batch.options),
            policy=torch.cat([batch.policy for batch in batches]),
            action=torch.cat([batch.action for batch in batches]),
            advantage=_joined([batch.advantage for batch in batches]),
        )


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Shards of one replay all keep a column, or none does."""
    held = [part for part in parts if part is not None]
    return torch.cat(held) if held else None
