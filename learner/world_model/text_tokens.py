"""Texts to token ids of a fixed length, for replay to store and the world model to read.

Id 0 fills up the end and stands for no token. A text that is too long loses its end; environments
put what matters first, and the oldest history last.
"""

from __future__ import annotations

import re
import zlib
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

HASHED = "hashed"  # the setting for words by hash, read by an encoder trained from scratch
N_HASHED = 8_192  # ids; of 300 words about 11 share theirs with another word
_WORD = re.compile(r"[a-z0-9]+|[^\sa-z0-9]")


class TextTokenizer(Protocol):
    """n_tokens: ids lie in 0 .. n_tokens - 1."""

    n_tokens: int

    def ids(self, text: str, length: int) -> NDArray[np.int32]:
        """[length] int32."""


class HashTokenizer:
    """Lower-case words and punctuation marks by their CRC-32: needs no training and no file."""

    n_tokens = N_HASHED

    def ids(self, text: str, length: int) -> NDArray[np.int32]:
        words = _WORD.findall(text.lower())[:length]
        out = np.zeros(length, np.int32)
        out[: len(words)] = [1 + zlib.crc32(word.encode()) % (N_HASHED - 1) for word in words]
        return out


class PretrainedTokenizer:
    """The tokenizer of a Hugging Face encoder; its ids are shifted by one to make room for 0."""

    def __init__(self, name: str) -> None:
        """Raises ValueError naming env.text.encoder if there is no such tokenizer."""
        from transformers import AutoTokenizer  # seconds to import: only where it is asked for

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise unusable_encoder(name, error) from error
        self.n_tokens = len(self._tokenizer) + 1

    def ids(self, text: str, length: int) -> NDArray[np.int32]:
        found = self._tokenizer(text, truncation=True, max_length=length)["input_ids"]
        out = np.zeros(length, np.int32)
        out[: len(found)] = np.asarray(found, np.int32) + 1
        return out


@cache
def make_tokenizer(encoder: str) -> TextTokenizer:
    """For the setting env.text.encoder; one a process. Raises ValueError naming it."""
    return HashTokenizer() if encoder == HASHED else PretrainedTokenizer(encoder)


def unusable_encoder(name: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:300]
    return ValueError(
        f"env.text.encoder {name!r} can't be loaded: {reason}; use {HASHED!r} (trained from "
        "scratch), a folder that save_pretrained wrote, or the name of a Hugging Face encoder "
        "that is in the local cache or can be downloaded"
    )
