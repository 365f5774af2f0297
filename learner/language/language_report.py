"""What a train call of the language learner reports."""

from __future__ import annotations

from dataclasses import dataclass

from learner.bad_numbers import BadStep
from learner.language.adapter import Adapter


@dataclass(frozen=True, slots=True)
class LanguageReport:
    """One train call. `adapter` is what was published in it, if anything.

    metrics: means over the updates; the loss, KL to the visit shares (nats), entropy of the
             model's label distribution, its probability on labels, supervised states per update;
             of updates that were not finite only where there was no other
    seconds: sample_wait, compute, publish
    """

    n_updates: int
    updates: int  # since the start of the run
    metrics: dict[str, float]
    seconds: dict[str, float]
    adapter: Adapter | None
    bad_steps: tuple[BadStep, ...] = ()
    n_bad_in_a_row: int = 0  # at the end of the call, across calls

    @property
    def last_update(self) -> int:
        return self.updates
