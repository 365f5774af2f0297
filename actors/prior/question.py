"""Questions to the language model that are on their way, shared by all who ask the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from actors.prior.backend import (
    BASE_VERSION,
    PriorTransport,
    PriorUnavailable,
    ScoreBatch,
    invalid_reason,
)
from actors.prior.config import PriorConfig
from actors.prior.counters import Fallback, PriorCounters
from cache.prior_cache import PriorCache
from learner.language.prompt import ScoreRequest, ScoringPrompt

GIVE_UP_S = 60.0  # an answer older than this is not expected any more


class Question:
    """One state with its options; answered once, with log-probabilities or a failure.

    actions:   [K] indices of the listed options
    log_probs: [K] float32 in the order of `actions`, None until answered; with prior.per_token
               means over the tokens of each
    """

    __slots__ = (
        "abandoned", "actions", "asked_at", "failure", "log_probs", "options", "prompt", "request",
        "version",
    )  # fmt: skip

    def __init__(self, prompt: str, options: tuple[str, ...], scoring: ScoringPrompt) -> None:
        self.prompt = prompt
        self.options = options
        self.actions = scoring.actions
        self.request = scoring.request
        self.log_probs: NDArray[np.float32] | None = None
        self.version = BASE_VERSION
        self.failure: Fallback | None = None
        self.abandoned = False  # a search has gone on without it
        self.asked_at = 0.0

    @classmethod
    def answered(
        cls,
        prompt: str,
        options: tuple[str, ...],
        actions: tuple[int, ...],
        log_probs: NDArray[np.float32],
        version: int,
    ) -> Question:
        """A question whose answer is known."""
        question = cls(prompt, options, ScoringPrompt(ScoreRequest((), ()), actions))
        question.log_probs = log_probs
        question.version = version
        return question

    @property
    def done(self) -> bool:
        return self.log_probs is not None or self.failure is not None


class OpenQuestions:
    """The questions in flight of one client; fills the cache as answers come."""

    def __init__(
        self,
        config: PriorConfig,
        transport: PriorTransport,
        cache: PriorCache,
        counters: PriorCounters,
        clock: Callable[[], float],
    ) -> None:
        self.version = BASE_VERSION
        self._version_asked_at = -float("inf")
        self._per_token = config.per_token
        self._transport = transport
        self._cache = cache
        self._counters = counters
        self._clock = clock
        self._by_text: dict[tuple[str, tuple[str, ...]], Question] = {}
        self._by_handle: dict[Hashable, list[Question]] = {}
        self._any_answered = False

    def __len__(self) -> int:
        return len(self._by_text)

    def find(self, prompt: str, options: tuple[str, ...]) -> Question | None:
        """The open question with this text."""
        return self._by_text.get((prompt, options))

    def add(self, question: Question) -> None:
        self._by_text[(question.prompt, question.options)] = question

    def send(self, questions: list[Question]) -> None:
        """Sends questions that were added, as one call."""
        now = self._clock()
        for question in questions:
            question.asked_at = now
        self._counters.n_sent += len(questions)
        try:
            handle = self._transport.submit(tuple(q.request for q in questions))
        except PriorUnavailable:
            self._end(questions, Fallback.DEAD)
        else:
            self._by_handle[handle] = questions

    def poll(self) -> None:
        """Takes in what has come, without waiting, and gives up on what is too old."""
        self._take(0.0)
        now = self._clock()
        for handle, questions in list(self._by_handle.items()):
            if now - questions[0].asked_at > GIVE_UP_S:
                self._transport.forget(handle)
                self._end(self._by_handle.pop(handle), Fallback.DEADLINE)

    def wait(self, questions: Sequence[Question], until: float) -> None:
        """Returns when all `questions` are done, or at `until` on the clock."""
        self._take(0.0)
        while not all(question.done for question in questions):
            left_s = until - self._clock()
            if left_s <= 0:
                return
            self._take(left_s)

    def take_answered(self) -> bool:
        """Whether a usable answer has come since the last call."""
        answered, self._any_answered = self._any_answered, False
        return answered

    def _take(self, timeout_s: float) -> None:
        if not self._by_handle:
            return
        for handle in self._transport.wait(list(self._by_handle), timeout_s):
            try:
                batch = self._transport.result(handle)
            except PriorUnavailable:
                self._end(self._by_handle.pop(handle), Fallback.DEAD)
            else:
                self._answer(self._by_handle.pop(handle), batch)

    def _answer(self, questions: list[Question], batch: ScoreBatch) -> None:
        now = self._clock()
        is_known = type(batch) is ScoreBatch and type(batch.log_probs) is tuple
        if not is_known or type(batch.version) is not int or not 0 <= batch.version < 2**31:
            self._end(questions, Fallback.INVALID)
            return
        # Not the highest, which may have been withdrawn since, nor that of an answer that is late.
        if questions[0].asked_at >= self._version_asked_at:
            self.version, self._version_asked_at = batch.version, questions[0].asked_at
        # A batch that is too short leaves its last questions without an answer.
        for question, log_probs in zip(questions, batch.log_probs, strict=False):
            if invalid_reason(log_probs, len(question.actions)):
                continue
            if self._per_token:
                n_tokens = np.array([len(answer) for answer in question.request.answers])
                log_probs = (log_probs / n_tokens).astype(np.float32)
            question.log_probs = log_probs
            question.version = batch.version
            self._any_answered = True
            self._cache.put(question.prompt, question.options, batch.version, log_probs)
            self._counters.answered(now - question.asked_at, late=question.abandoned)
        self._end(questions, Fallback.INVALID)

    def _end(self, questions: list[Question], failure: Fallback) -> None:
        """Closes questions; those without an answer failed for this reason."""
        for question in questions:
            del self._by_text[(question.prompt, question.options)]
            if question.log_probs is None:
                question.failure = failure
