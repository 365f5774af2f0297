"""Asks the language model on behalf of an env actor, in the background, and always gets by.

One client per env actor, used from its thread. Questions that are cached or already open are not
sent again; what is not answered in time is left out, counted, and cached when it comes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from actors.prior.backend import BASE_VERSION, PriorTransport
from actors.prior.config import PriorConfig
from actors.prior.counters import Fallback, PriorCounters
from actors.prior.last_answers import LastAnswers
from actors.prior.question import OpenQuestions, Question
from actors.search.root_prior import RootPrior
from cache.prior_cache import PriorCache
from learner.language.model_folder import resolve_model
from learner.language.prompt import PromptBuilder, check_texts, mask_options

__all__ = ["PendingPrior", "PriorClient", "PriorTransport"]

PATIENCE = 3  # asks in a row without an answer in time, after which the client stops waiting


class PriorClient:
    """Turns states and options into prior probabilities."""

    def __init__(
        self,
        config: PriorConfig,
        transport: PriorTransport,
        *,
        seed: int,
        builder: PromptBuilder | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`builder` defaults to one for `config.model`; `seed` deals the options' order."""
        self._config = config
        self._builder = builder or PromptBuilder(
            resolve_model(config.model), config.prompt, seed=seed
        )
        self._clock = clock
        self._cache = PriorCache(config.cache_size)
        self._counters = PriorCounters()
        self._open = OpenQuestions(config, transport, self._cache, self._counters, clock)
        self._last_answers = LastAnswers(config.query_every)
        self._failures = 0
        self._last_try = -float("inf")

    @property
    def version(self) -> int:
        """The adapter version that answered the newest question; 0 is the model as loaded."""
        return self._open.version

    def ask(
        self,
        prompts: Sequence[str],
        options: Sequence[Sequence[str]],
        legal: Sequence[NDArray[np.bool_] | None] | NDArray[np.bool_] | None = None,
        *,
        env_ids: Sequence[int] | None = None,
        keys: Sequence[str] | None = None,
    ) -> PendingPrior:
        """Sends the questions of B states with A options each, and returns at once.

        A prompt "" asks nothing; an option "" or one that is not legal is not offered.
        env_ids: whose states these are, next in their episodes; with `prior.query_every` above 1
                 most take over their environment's last answer. Without it every state is asked
        keys: the coarse states, a change of which asks at once
        """
        self._open.poll()
        now = self._clock()
        n_actions = max((len(texts) for texts in options), default=0)
        resting = self._failures >= PATIENCE
        may_send = not resting or now - self._last_try >= self._config.retry_s
        rows: list[Question | Fallback] = []
        fresh: list[Question] = []
        for row, prompt in enumerate(prompts):
            texts = mask_options(options[row], None if legal is None else legal[row])
            env_id = None if env_ids is None else int(env_ids[row])
            key = "" if keys is None else keys[row]
            rows.append(self._row_of_env(env_id, key, prompt, texts, may_send, fresh))
        if fresh:
            self._last_try = now
            self._open.send(fresh)
        waits_until = now if resting else now + self._config.deadline_s
        return PendingPrior(self, rows, n_actions, waits_until)

    def start_episode(self, env_id: int) -> None:
        """The next state of `env_id` follows on none before, so that it is asked."""
        self._last_answers.forget(env_id)

    def stats(self) -> dict[str, float]:
        """Counters since the start (`*_total`), rates and latencies; flat, for the metrics file."""
        return {
            **self._counters.as_dict(self._cache.stats()),
            "prior_in_flight": float(len(self._open)),
            "prior_version": float(self.version),
            "prior_resting": float(self._failures >= PATIENCE),
        }

    def text_read(self, question: Question) -> str:
        """What the model reads of a question, special tokens included; "" if it can't be asked."""
        try:
            scoring = self._builder.build(question.prompt, question.options)
        except ValueError:
            return ""
        return self._builder.text(scoring.request.token_ids)

    def _row_of_env(
        self,
        env_id: int | None,
        key: str,
        prompt: str,
        options: tuple[str, ...],
        may_send: bool,
        fresh: list[Question],
    ) -> Question | Fallback:
        """The environment's last answer where it will do, else a row of its own."""
        if env_id is None or not prompt:
            return self._row(prompt, options, may_send, fresh)
        last = self._last_answers.reuse(env_id, key, options)
        if last is not None:
            self._counters.n_rows += 1
            self._counters.n_reused += 1
            return last
        row = self._row(prompt, options, may_send, fresh)
        if isinstance(row, Question):
            self._last_answers.keep(env_id, key, row)
        return row

    def _row(
        self, prompt: str, options: tuple[str, ...], may_send: bool, fresh: list[Question]
    ) -> Question | Fallback:
        """One row: an answered or open question, or the reason why it can't be asked."""
        self._counters.n_rows += 1
        if not prompt:
            return Fallback.NO_TEXT
        n_options = sum(1 for text in options if text.strip())
        if n_options == 0:
            return Fallback.NO_OPTIONS
        try:
            check_texts(prompt, options)
        except ValueError:
            return Fallback.UNASKABLE
        if n_options == 1:
            only = tuple(index for index, text in enumerate(options) if text.strip())
            return Question.answered(prompt, options, only, np.zeros(1, np.float32), self.version)
        known = self._cache.get(prompt, options, self.version)
        if known is not None:
            listed = tuple(index for index, text in enumerate(options) if text.strip())
            return Question.answered(prompt, options, listed, known, self.version)
        same = self._open.find(prompt, options)
        if same is not None:
            self._counters.n_shared += 1
            return same
        if not may_send:
            return Fallback.RESTING
        if len(self._open) >= self._config.max_in_flight:
            return Fallback.OVERLOAD
        try:
            scoring = self._builder.build(prompt, options)
        except ValueError:  # options that do not fit or can't all be labelled
            return Fallback.UNASKABLE
        question = Question(prompt, options, scoring)
        self._open.add(question)
        fresh.append(question)
        return question

    def _collect(self, pending: PendingPrior, deadline_s: float | None) -> RootPrior:
        """Waits for what is open until the deadline, then answers with what there is."""
        until = pending.waits_until if deadline_s is None else self._clock() + deadline_s
        questions = [row for row in pending.rows if isinstance(row, Question)]
        waited_for = {id(q): q for q in questions if not q.done}
        mark = self._clock()
        self._open.wait(list(waited_for.values()), until)
        self._counters.wait_s += self._clock() - mark
        probabilities = np.zeros((len(pending.rows), pending.n_actions), np.float32)
        available = np.zeros(len(pending.rows), np.bool_)
        for index, row in enumerate(pending.rows):
            reason = row if isinstance(row, Fallback) else row.failure
            if isinstance(row, Question) and row.log_probs is not None:
                probabilities[index, list(row.actions)] = self._probabilities(row.log_probs)
                available[index] = True
                pending.versions[index] = row.version
            else:
                self._counters.fall_back(reason or Fallback.DEADLINE)
        self._judge(list(waited_for.values()))
        return RootPrior(probabilities, available)

    def _judge(self, waited_for: list[Question]) -> None:
        """Rests after `PATIENCE` asks in a row that brought nothing; any answer ends the rest."""
        if self._open.take_answered():
            self._failures = 0
        elif waited_for:
            self._failures += 1
        for question in waited_for:
            question.abandoned = not question.done

    def _probabilities(self, log_probs: NDArray[np.float32]) -> NDArray[np.float64]:
        """Softmax over the offered options at the temperature, mixed with a uniform prior. [K]"""
        scaled = log_probs.astype(np.float64) / self._config.temperature
        weights = np.exp(scaled - scaled.max())
        epsilon = self._config.epsilon_uniform
        return (1.0 - epsilon) * weights / weights.sum() + epsilon / len(weights)


class PendingPrior:
    """The questions of one `ask`; collect them once the other work is done."""

    def __init__(
        self,
        client: PriorClient,
        rows: list[Question | Fallback],
        n_actions: int,
        waits_until: float,
    ) -> None:
        self.rows = rows
        self.n_actions = n_actions
        self.waits_until = waits_until
        # Per row the adapter that answered, [B] int64; -1 without an answer and until collected.
        self.versions = np.full(len(rows), BASE_VERSION - 1)
        self._client = client
        self._prior: RootPrior | None = None

    @property
    def version(self) -> int:
        """Newest adapter among the answers; -1 without any."""
        return int(self.versions.max(initial=BASE_VERSION - 1))

    def text_read(self, row: int) -> str:
        """What the model read of a row, as `PriorClient.text_read`; "" if nothing was asked."""
        question = self.rows[row]
        return self._client.text_read(question) if isinstance(question, Question) else ""

    def collect(self, deadline_s: float | None = None) -> RootPrior:
        """Probabilities [B, A] and which rows have them; later calls return the same object.

        Waits until `prior.deadline_s` after the ask, or at most `deadline_s` from now.
        """
        if self._prior is None:
            self._prior = self._client._collect(self, deadline_s)
        return self._prior
