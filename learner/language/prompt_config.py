"""How a state and its options become a prompt: one set of settings for serving and training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Literal

LARGEST_FILE_BYTES = 1_000_000
MOST_EXAMPLES = 32
_CLOSE_TOKENS = 16  # no less than what stands between a thought and the answer


@dataclass(frozen=True, slots=True)
class PromptConfig:
    """The words around a question, and how its answer is read."""

    # label: a token stands for each option, one read a state; text: the option is the answer, read
    # token by token, which is slower and nearer to what a model knows that was not tuned
    scoring: Literal["label", "text"] = "label"
    max_tokens: int = 512  # of prompt and answer; longer states lose their oldest text
    shuffle: bool = True  # false: options keep order and label, which small models learn faster
    examples: str | None = None  # JSON file of solved states, shown in the instructions
    reasoning_tokens: int = 0  # the model may think aloud for so many before it answers; 0: no

    def __post_init__(self) -> None:
        if self.scoring not in ("label", "text"):
            raise ValueError(f"scoring must be label or text, got {self.scoring!r}")
        if self.max_tokens < 128:
            raise ValueError(
                f"max_tokens must be at least 128, got {self.max_tokens}; instructions and options "
                "alone take about 100"
            )
        if not 0 <= self.reasoning_tokens <= 1024:
            raise ValueError(
                f"reasoning_tokens must lie in 0..1024, got {self.reasoning_tokens}; 0 answers "
                "at once"
            )

    @property
    def most_tokens(self) -> int:
        """The longest sequence a model must take: prompt, thought, answer."""
        return self.max_tokens + (self.reasoning_tokens + _CLOSE_TOKENS) * (
            self.reasoning_tokens > 0
        )


@dataclass(frozen=True, slots=True)
class SolvedState:
    """A state, its options, and which of them is right."""

    state: str
    options: tuple[str, ...]
    answer: int


def read_examples(path: Path) -> list[SolvedState]:
    """What `prior.prompt.examples` names: a list of {"state", "options", "answer"}.

    Raises ValueError naming the file, the entry and what is wrong with it.
    """
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise ValueError(f"it is larger than {LARGEST_FILE_BYTES:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"prior.prompt.examples {path} can't be read: {error}") from error
    if not isinstance(content, list) or not 1 <= len(content) <= MOST_EXAMPLES:
        raise ValueError(
            f"prior.prompt.examples {path} must hold a list of 1 to {MOST_EXAMPLES} examples"
        )
    return [_example(entry, f"{path}, example {i}") for i, entry in enumerate(content, start=1)]


def _example(entry: object, where: str) -> SolvedState:
    wanted = 'expected {"state": text, "options": [at most 26 texts], "answer": one of them}'
    match entry:
        case {"state": str(state), "options": [*options], "answer": str(answer)}:
            is_text = all(isinstance(text, str) for text in options)
            if is_text and len(options) <= len(ascii_uppercase) and answer in options:
                return SolvedState(state, tuple(options), options.index(answer))
    raise ValueError(f"prior.prompt.examples {where}: {wanted}")
