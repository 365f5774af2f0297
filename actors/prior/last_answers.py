"""The last answer of each environment, for the steps that ask the language model nothing."""

from __future__ import annotations

from dataclasses import dataclass

from actors.prior.question import Question


@dataclass(slots=True)
class _Last:
    question: Question
    key: str
    age: int  # steps since it was asked


class LastAnswers:
    """Owned by one prior client. An environment that is not known here is asked for."""

    def __init__(self, query_every: int) -> None:
        """query_every: steps of one environment from one question to the next; 1 asks always."""
        self._query_every = query_every
        self._last: dict[int, _Last] = {}

    def reuse(self, env_id: int, key: str, options: tuple[str, ...]) -> Question | None:
        """What was answered last, if it is young enough and neither the coarse state nor the
        offered options have changed since; call it once a step.
        """
        last = self._last.get(env_id)
        if last is None:
            return None
        last.age += 1
        is_same = last.key == key and last.question.options == options
        if not is_same or last.age >= self._query_every or last.question.log_probs is None:
            return None
        return last.question

    def keep(self, env_id: int, key: str, question: Question) -> None:
        """`question` has been asked, or found in the cache, for this step."""
        self._last[env_id] = _Last(question, key, age=0)

    def forget(self, env_id: int) -> None:
        """An episode begins: what was said of another one is not reused."""
        self._last.pop(env_id, None)
