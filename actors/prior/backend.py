"""What a language-model backend is: score, publish, withdraw and health, and their messages."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from learner.language.prompt import ScoreRequest

BASE_VERSION = 0  # the model as it was loaded, or with its warm start; adapters count from 1


@dataclass(frozen=True, slots=True)
class ScoreBatch:
    """Answers in the order of the requests, all from one adapter version.

    log_probs: per request [K] float32, full-vocabulary joint log-probabilities of its answers.
    """

    log_probs: tuple[NDArray[np.float32], ...]
    version: int


@dataclass(frozen=True, slots=True)
class PublishReport:
    """What became of a published adapter; a refused one leaves the version before it serving."""

    version: int
    accepted: bool
    max_gap: float  # largest |log-prob - trainer's log-prob| over the check prompts; nan = no check
    reason: str = ""  # why it was refused


@dataclass(frozen=True, slots=True)
class Health:
    """One engine's state; `version` is the adapter now serving.

    Prompt tokens less cached ones were computed; both stay 0 where the backend does not know.
    """

    backend: str
    version: int
    n_scored: int
    n_published: int
    n_refused: int
    n_prompt_tokens: int = 0
    n_cached_tokens: int = 0


class PriorUnavailable(RuntimeError):
    """No answer will come: the engine is starting, failed or gone."""


class PriorBackend(Protocol):
    """A language model in this process, called by one thread at a time."""

    def score(self, requests: Sequence[ScoreRequest]) -> ScoreBatch: ...

    def publish(self, version: int, path: str) -> PublishReport: ...

    def withdraw(self, version: int) -> None:
        """Serves an older version, or the model as loaded, in its place."""

    def health(self) -> Health: ...

    def close(self) -> None: ...


class AsyncPriorBackend(Protocol):
    """The same verbs for an event loop; concurrent score calls share batches."""

    async def score(self, requests: Sequence[ScoreRequest]) -> ScoreBatch: ...

    async def publish(self, version: int, path: str) -> PublishReport: ...

    async def withdraw(self, version: int) -> None: ...

    async def health(self) -> Health: ...

    async def close(self) -> None: ...


class PriorTransport(Protocol):
    """How a client reaches an engine. One client, one thread; nothing blocks except `wait`."""

    def submit(self, requests: tuple[ScoreRequest, ...]) -> Hashable:
        """Sends questions; the handle stands for their answers."""

    def wait(self, handles: Sequence[Hashable], timeout_s: float) -> list[Hashable]:
        """Handles that are answered or failed: at least one, unless `timeout_s` passes first."""

    def result(self, handle: Hashable) -> ScoreBatch:
        """The answers of a handle that `wait` returned. Raises PriorUnavailable."""

    def forget(self, handle: Hashable) -> None:
        """Gives up on a handle."""


class LocalPriorTransport:
    """Asks a backend in this process, at once: the serial runtime's transport, deterministic."""

    def __init__(self, backend: PriorBackend) -> None:
        self._backend = backend
        self._answers: dict[int, ScoreBatch] = {}
        self._n_submitted = 0

    def submit(self, requests: tuple[ScoreRequest, ...]) -> int:
        self._n_submitted += 1
        self._answers[self._n_submitted] = self._backend.score(requests)
        return self._n_submitted

    def wait(self, handles: Sequence[Hashable], timeout_s: float) -> list[Hashable]:
        return list(handles)

    def result(self, handle: Hashable) -> ScoreBatch:
        return self._answers.pop(handle)

    def forget(self, handle: Hashable) -> None:
        self._answers.pop(handle, None)


def refuse_no_warm_start(refusal: PublishReport) -> None:
    """Raises RuntimeError if what was refused is what the run begins with: nothing older is left,
    and the bare model would answer something else than the run was asked for.
    """
    if refusal.version == BASE_VERSION:
        raise RuntimeError(f"the engine refuses the adapter of prior.adapter: {refusal.reason}")


def invalid_reason(log_probs: NDArray[np.float32], n_answers: int) -> str:
    """Why an answer can't be used, "" if it can."""
    values = log_probs
    if type(values) is not np.ndarray or values.dtype.kind != "f":
        return f"{type(values).__name__}, not an array of floats"
    if values.shape != (n_answers,):
        return f"shape {values.shape} for {n_answers} answers"
    if not np.isfinite(values).all():
        return "not finite"
    return "log-probability above 0" if (values > 1e-3).any() else ""
