"""From a state and its options to token ids: the one prompt builder of serving and training.

Uses the `tokenizers` library only, so that env actors load neither transformers nor vLLM.
The instructions come first and never change, so that engines can reuse their cached prefix.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product, takewhile
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase, digits

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from learner.language.chat_template import ChatTemplate
from learner.language.prompt_config import PromptConfig, read_examples
from replay_service.segment_check import LONGEST_OPTION, LONGEST_PROMPT

_TASK = "You are playing a game. Each message gives the current state and the possible actions, "
_THINK = "Think about what lies just ahead, then answer with "
INSTRUCTIONS = (
    f"{_TASK}one per line after its label. {_THINK}the label of the best action and nothing else."
)
TEXT_INSTRUCTIONS = (
    f"{_TASK}one per line. {_THINK}the best action, word for word, and nothing else."
)
_ALOUD = "Think about what lies just ahead in one short line, and answer in the next line with "
ANSWER_LINE = "\nAnswer:\n"  # between a thought and the answer
_CONTROL = dict.fromkeys([*range(32), *range(127, 160)], " ")
_KEPT_ANSWERS = 10_000  # options whose tokens are remembered
MAX_LABELS = 128  # vLLM reads at most this many token ids at one position


@dataclass(frozen=True, slots=True)
class Thought:
    """What the model may say before it answers.

    max_tokens: it is cut there; stop_ids: tokens that end it; close_ids: come after it
    """

    max_tokens: int
    stop_ids: tuple[int, ...]
    close_ids: tuple[int, ...]

    def complete(self, said: Sequence[int]) -> tuple[int, ...]:
        """What stands between prompt and answer: the words up to a stop, and `close_ids`."""
        words = list(takewhile(lambda token: token not in self.stop_ids, said))
        return (*words, *self.close_ids)


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A prompt, and the answers whose log-probabilities are wanted: the joint ones of all tokens.

    token_ids: the prompt up to and including the header of the model's answer
    answers:   K sequences of tokens, none of which begins another one
    thought:   said first, or None
    """

    token_ids: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    thought: Thought | None = None


@dataclass(frozen=True, slots=True)
class ScoringPrompt:
    """One question about a state.

    actions: for each answer an action index into the A options given, ascending
    """

    request: ScoreRequest
    actions: tuple[int, ...]


def mask_options(options: Sequence[str], legal: NDArray[np.bool_] | None) -> tuple[str, ...]:
    """The option texts with "" in place of those that are not legal; "" is never listed."""
    if legal is None:
        return tuple(options)
    if len(legal) != len(options):
        raise ValueError(f"{len(options)} option texts, but a legal mask of {len(legal)}")
    return tuple(text if ok else "" for text, ok in zip(options, legal, strict=True))


def check_texts(state: str, options: Sequence[str]) -> None:
    """ValueError if these texts of a game can't be asked about, nor stored in replay."""
    named = [("state", state, LONGEST_PROMPT)]
    named += [(f"option {index}", text, LONGEST_OPTION) for index, text in enumerate(options)]
    for name, text, longest in named:
        if len(text) > longest:
            raise ValueError(f"{name} has {len(text)} characters, at most {longest} can be asked")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name} is not valid Unicode text: {error.reason}") from error


def question_text(state: str, labelled: Sequence[tuple[str, str]]) -> str:
    """The user message: the state, then one line per (label, option); a label "" is a dash."""
    lines = "\n".join(
        f"{label}: {option}" if label else f"- {option}" for label, option in labelled
    )
    return f"State: {state}\nActions:\n{lines}"


class PromptBuilder:
    """Builds prompts for one model; used by env actors and by the language learner."""

    def __init__(self, model_folder: Path, config: PromptConfig, *, seed: int) -> None:
        """`seed` decides in which order the options of a state are listed.

        Raises ValueError when the folder has no tokenizer that this can use, or the examples can't
        be read.
        """
        file = model_folder / "tokenizer.json"
        if not file.is_file():
            raise ValueError(
                f"prior.model {model_folder} has no tokenizer.json; write one with "
                "AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
            )
        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._config = config
        self._seed = seed
        added = self._tokenizer.get_added_tokens_decoder().values()
        special = [re.escape(token.content) for token in added if token.special]
        self._special = re.compile("|".join(special)) if special else None
        self._chat = ChatTemplate.load(model_folder, self._instructions())
        self._end_id = self._token_id(self._chat.end)
        # Some prompt, as it stands before an answer.
        thought = f"a thought{ANSWER_LINE}" if config.reasoning_tokens else ""
        self._ending = self._whole("a state", [("A", "an option")]) + thought
        self._ending_ids = self._encode(self._ending)
        # Games offer the same few texts again and again.
        self._text_answer = lru_cache(maxsize=_KEPT_ANSWERS)(self._tokenise_answer)
        self._spare_labels = self._single_token_labels()
        self._labels: list[tuple[str, int]] = []

    def build(self, state: str, options: Sequence[str], *, variant: int = 0) -> ScoringPrompt:
        """The question "which of `options` in `state`"; options that are "" are not listed.

        Their order, and so their labels, are dealt by (seed, state, options, variant): acting uses
        variant 0, training others too, so that no label comes to mean an action. Only the oldest
        text of `state` is cut. Raises ValueError if no option is left, the options alone do not
        fit, `check_texts` refuses a text, or the tokenizer has no separate tokens for the answers.
        """
        check_texts(state, options)
        actions = [index for index, text in enumerate(options) if text.strip()]
        if not actions:
            raise ValueError(f"a question needs at least one option, got {options!r}")
        texts = [self._clean(options[action]) for action in actions]
        dealt = np.arange(len(actions))
        if self._config.shuffle:
            dealt = self._generator(state, options, variant).permutation(len(actions))
        order = np.argsort(dealt)  # which option stands in each line
        answers: tuple[tuple[int, ...], ...]
        if self._config.scoring == "label":
            labels = self._first_labels(len(actions))
            listed = [(labels[line][0], texts[option]) for line, option in enumerate(order)]
            answers = tuple((labels[line][1],) for line in dealt)
        else:
            listed = [("", texts[option]) for option in order]
            answers = tuple(self._text_answer(text) for text in texts)
        room = self._config.max_tokens - max(map(len, answers)) + 1
        token_ids = self._fit(self._clean(state), listed, room)
        return ScoringPrompt(
            ScoreRequest(tuple(token_ids), answers, self._thought()), tuple(actions)
        )

    def text(self, token_ids: Sequence[int]) -> str:
        """The prompt as a reader sees it, special tokens included."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=False)

    def _instructions(self) -> str:
        """What never changes in a run: the task, and the solved examples."""
        by_label = self._config.scoring == "label"
        text = INSTRUCTIONS if by_label else TEXT_INSTRUCTIONS
        if self._config.reasoning_tokens:
            text = text.replace(_THINK, _ALOUD)
        if self._config.examples is None:
            return text
        parts = [text]
        for example in read_examples(Path(self._config.examples)):
            options = [self._clean(option) for option in example.options]
            labels = [ascii_uppercase[i % 26] if by_label else "" for i in range(len(options))]
            question = question_text(
                self._clean(example.state), list(zip(labels, options, strict=True))
            )
            answer = labels[example.answer] or options[example.answer]
            parts.append(f"Example:\n{question}\nBest action: {answer}")
        return "\n\n".join(parts)

    def _thought(self) -> Thought | None:
        if not self._config.reasoning_tokens:
            return None
        stops = {self._end_id, *self._encode("\n"), *self._encode(".\n")[-1:]}
        return Thought(
            self._config.reasoning_tokens, tuple(sorted(stops)), tuple(self._encode(ANSWER_LINE))
        )

    def _tokenise_answer(self, text: str) -> tuple[int, ...]:
        """The tokens that say `text` and end the answer."""
        ids, longer = self._ending_ids, self._encode(self._ending + text)
        if longer[: len(ids)] != ids:
            raise ValueError(
                f"the model's tokenizer joins the prompt's end with {text!r}; use "
                "prior.prompt.scoring label, or another prior.model"
            )
        return (*longer[len(ids) :], self._end_id)

    def _token_id(self, token: str) -> int:
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise ValueError(
                f"prior.model's tokenizer has no token {token!r}, which should end an answer; its "
                "tokenizer_config.json must name an eos_token"
            )
        return token_id

    def _fit(self, state: str, listed: Sequence[tuple[str, str]], room: int) -> list[int]:
        ids = self._encode(self._whole(state, listed))
        while len(ids) > room:
            surplus = len(ids) - room
            offsets = self._tokenizer.encode(state, add_special_tokens=False).offsets
            if not offsets:
                raise ValueError(
                    f"instructions and {len(listed)} options take {len(ids)} tokens, "
                    f"prior.prompt.max_tokens is {self._config.max_tokens}; raise it"
                )
            keep_from = offsets[min(surplus, len(offsets)) - 1][1]
            state = state[max(keep_from, 1) :]
            ids = self._encode(self._whole(state, listed))
        return ids

    def _whole(self, state: str, listed: Sequence[tuple[str, str]]) -> str:
        return self._chat.head + question_text(state, listed) + self._chat.tail

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _clean(self, text: str) -> str:
        """No line breaks or control characters, and nothing may pose as a control token."""
        text = " ".join(text.translate(_CONTROL).split())
        # Again, since what is left on both sides of one may make another.
        while self._special is not None and self._special.search(text):
            text = " ".join(self._special.sub(" ", text).split())
        return text

    def _generator(self, state: str, options: Sequence[str], variant: int) -> np.random.Generator:
        # Python's own hash differs between processes.
        text = "\0".join([str(self._seed), str(variant), state, *options])
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return np.random.default_rng(int.from_bytes(digest, "little"))

    def _first_labels(self, n_labels: int) -> list[tuple[str, int]]:
        """The first labels of the model, found as they are needed."""
        if n_labels > MAX_LABELS:
            raise ValueError(
                f"{n_labels} options in one state, at most {MAX_LABELS} can be labelled"
            )
        while len(self._labels) < n_labels:
            label = next(self._spare_labels, None)
            if label is None:
                raise ValueError(
                    f"the model's tokenizer has {len(self._labels)} labels that are one token, "
                    f"{n_labels} are needed; use another prior.model"
                )
            self._labels.append(label)
        return self._labels

    def _single_token_labels(self) -> Iterator[tuple[str, int]]:
        """Labels that add exactly one token, each its own, after the exact end of a prompt."""
        ending, ids = self._ending, self._ending_ids
        seen: set[int] = set()
        pairs = ("".join(pair) for pair in product(ascii_uppercase + digits, repeat=2))
        for label in [*ascii_uppercase, *ascii_lowercase, *digits, *pairs]:
            longer = self._encode(ending + label)
            if len(longer) == len(ids) + 1 and longer[:-1] == ids and longer[-1] not in seen:
                seen.add(longer[-1])
                yield label, longer[-1]
