"""Interned prompts and option texts: every distinct text is held once while a row refers to it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

NO_TEXT = -1

Text = TypeVar("Text", bound=Hashable)


class TextPool(Generic[Text]):
    """Maps values (a prompt, or a tuple of option texts) to small ids, counting references."""

    def __init__(self) -> None:
        self._ids: dict[Text, int] = {}
        self._values: list[Text | None] = []
        self._n_references: list[int] = []
        self._free: list[int] = []
        self.n_characters = 0

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, text_id: int) -> Text:
        value = self._values[text_id]
        assert value is not None, f"text {text_id} was released"
        return value

    def acquire(self, value: Text) -> int:
        """The id of `value`, with one reference more."""
        text_id = self._ids.get(value)
        if text_id is None:
            text_id = self._free.pop() if self._free else len(self._values)
            if text_id == len(self._values):
                self._values.append(None)
                self._n_references.append(0)
            self._ids[value] = text_id
            self._values[text_id] = value
            self.n_characters += _n_characters(value)
        self._n_references[text_id] += 1
        return text_id

    def release(self, text_ids: Iterable[int]) -> None:
        """Drop one reference per id; a text without references is forgotten."""
        for text_id in text_ids:
            self._n_references[text_id] -= 1
            assert self._n_references[text_id] >= 0, text_id
            if self._n_references[text_id] == 0:
                value = self[text_id]
                del self._ids[value]
                self._values[text_id] = None
                self._free.append(text_id)
                self.n_characters -= _n_characters(value)


def _n_characters(value: Hashable) -> int:
    if isinstance(value, str):
        return len(value)
    assert isinstance(value, tuple), type(value)
    return sum(len(text) for text in value)
