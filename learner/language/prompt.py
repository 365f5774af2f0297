"""From a state and its options to token ids: the one prompt builder of serving and training.

Uses the `tokenizers` library only, so that env actors load neither transformers nor vLLM.
The instructions come first and never change, so that engines can reuse their cached prefix.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase, digits

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from learner.language.chat_template import ChatTemplate
from replay_service.segment_check import LONGEST_OPTION, LONGEST_PROMPT

INSTRUCTIONS = (
    "You are playing a game. Each message gives the current state and the possible actions, "
    "one per line after its label. Think about what lies just ahead, then answer with the label "
    "of the best action and nothing else."
)
_CONTROL = dict.fromkeys([*range(32), *range(127, 160)], " ")
MAX_LABELS = 128  # vLLM reads at most this many token ids at one position


@dataclass(frozen=True, slots=True)
class ScoringPrompt:
    """One question whose answer is read from a single next-token distribution.

    token_ids: the prompt up to and including the header of the model's answer.
    label_ids: K token ids, one for each listed option, in the order of `actions`.
    actions:   K action indices into the A options given, ascending.
    """

    token_ids: tuple[int, ...]
    label_ids: tuple[int, ...]
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
    """The user message: the state, then one line per (label, option)."""
    lines = "\n".join(f"{label}: {option}" for label, option in labelled)
    return f"State: {state}\nActions:\n{lines}"


class PromptBuilder:
    """Builds prompts for one model; used by env actors and by the language learner."""

    def __init__(
        self, model_folder: Path, *, max_tokens: int, seed: int, shuffle: bool = True
    ) -> None:
        """`seed` decides which option gets which label in each state; without `shuffle` the first
        option always gets the first label.

        Raises ValueError when the folder has no tokenizer that this can use.
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
        self._chat = ChatTemplate.load(model_folder, INSTRUCTIONS)
        self._max_tokens = max_tokens
        self._seed = seed
        self._shuffle = shuffle
        added = self._tokenizer.get_added_tokens_decoder().values()
        special = [re.escape(token.content) for token in added if token.special]
        self._special = re.compile("|".join(special)) if special else None
        self._spare_labels = self._single_token_labels()
        self._labels: list[tuple[str, int]] = []

    def build(self, state: str, options: Sequence[str], *, variant: int = 0) -> ScoringPrompt:
        """The question "which of `options` in `state`"; options that are "" are not listed.

        The labels are dealt by (seed, state, options, variant): acting uses variant 0, training
        others too, so that no label comes to mean an action. Only the oldest text of `state` is
        cut. Raises ValueError if no option is left, the options alone do not fit, or `check_texts`
        refuses a text.
        """
        check_texts(state, options)
        actions = [index for index, text in enumerate(options) if text.strip()]
        if not actions:
            raise ValueError(f"a question needs at least one option, got {options!r}")
        labels = self._first_labels(len(actions))
        dealt = np.arange(len(actions))
        if self._shuffle:
            dealt = self._generator(state, options, variant).permutation(len(actions))
        label_ids = tuple(labels[position][1] for position in dealt)
        by_label = np.argsort(dealt)
        listed = [
            (labels[i][0], self._clean(options[actions[by_label[i]]])) for i in range(len(dealt))
        ]
        token_ids = self._fit(self._clean(state), listed)
        return ScoringPrompt(tuple(token_ids), label_ids, tuple(actions))

    def text(self, token_ids: Sequence[int]) -> str:
        """The prompt as a reader sees it, special tokens included."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=False)

    def _fit(self, state: str, listed: Sequence[tuple[str, str]]) -> list[int]:
        ids = self._encode(self._whole(state, listed))
        while len(ids) > self._max_tokens:
            surplus = len(ids) - self._max_tokens
            offsets = self._tokenizer.encode(state, add_special_tokens=False).offsets
            if not offsets:
                raise ValueError(
                    f"instructions and {len(listed)} options take {len(ids)} tokens, "
                    f"prior.max_prompt_tokens is {self._max_tokens}; raise it"
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
        ending = self._whole("a state", [("A", "an option")])
        ids = self._encode(ending)
        seen: set[int] = set()
        pairs = ("".join(pair) for pair in product(ascii_uppercase + digits, repeat=2))
        for label in [*ascii_uppercase, *ascii_lowercase, *digits, *pairs]:
            longer = self._encode(ending + label)
            if len(longer) == len(ids) + 1 and longer[:-1] == ids and longer[-1] not in seen:
                seen.add(longer[-1])
                yield label, longer[-1]
