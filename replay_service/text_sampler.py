"""Draws prompts with the search's answers for training the language model; lives on the host."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from replay_service.placement import upload
from replay_service.storage import SegmentRing, StoredSegment
from replay_service.sum_tree import SumTree
from replay_service.targets import TextBatch
from replay_service.text_pool import NO_TEXT


class TextSampler:
    """Uniform over the trainable steps with a prompt; owned by one Replay."""

    def __init__(self, ring: SegmentRing, rng: np.random.Generator) -> None:
        self.tree = SumTree(ring.n_rows)  # weight 1 where a trainable step has a prompt
        self.rng = rng
        self._ring = ring

    def insert(self, stored: StoredSegment) -> None:
        if stored.has_text:
            has_prompt = self._ring.arrays["prompt"][stored.trainable] != NO_TEXT
            rows = stored.trainable
            self.tree.set_span(rows.start, rows.stop, has_prompt.astype(np.float64))

    def remove(self, stored: StoredSegment) -> None:
        if stored.has_text:
            self.tree.set_span(stored.trainable.start, stored.trainable.stop, 0.0)

    def sample(self, batch_size: int) -> TextBatch | None:
        """None while there is no prompt."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if self.tree.total == 0.0:
            return None
        return self._batch(self.tree.draw(batch_size, self.rng))

    def everything(self) -> TextBatch | None:
        """Every trainable step with a prompt, once; None while there is none."""
        slots = np.flatnonzero(self.tree.leaves[: self._ring.high_row])
        return self._batch(slots) if len(slots) else None

    def _batch(self, slots: NDArray[np.int64]) -> TextBatch:
        ring = self._ring
        prompt_ids = ring.arrays["prompt"][slots].tolist()
        option_ids = ring.arrays["options"][slots].tolist()
        rows = upload(slots, ring.device)
        advantage = ring.tensors.get("advantage")
        return TextBatch(
            prompt=tuple(ring.prompts[text_id] for text_id in prompt_ids),
            options=tuple(
                () if text_id == NO_TEXT else ring.options[text_id] for text_id in option_ids
            ),
            policy=ring.columns.policy.index_select(0, rows).float().cpu(),
            action=ring.columns.action.index_select(0, rows).long().cpu(),
            advantage=None if advantage is None else advantage.index_select(0, rows).float().cpu(),
        )
