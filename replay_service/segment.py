"""The unit of data that acting hands to replay: consecutive steps of one episode, as numpy columns.

A segment never crosses an episode boundary. Successive segments of one episode overlap by
`TargetConfig.context_steps`, so that every position of the episode is trainable exactly once.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCHEMA_VERSION = 1
OPTIONAL_COLUMNS = {"legal", "advantage", "prior_version"}  # of a segment; None if absent


def pack_json(value: object) -> NDArray[np.uint8]:
    """JSON text as bytes in an array, so that an npz file holds it without pickle."""
    return np.frombuffer(json.dumps(value, ensure_ascii=False).encode(), dtype=np.uint8)


def unpack_json(packed: NDArray[np.generic]) -> Any:
    """Inverse of `pack_json`; ValueError when the bytes are not JSON."""
    try:
        return json.loads(packed.tobytes().decode())
    except RecursionError as error:
        raise ValueError("JSON is nested too deep") from error


@dataclass(frozen=True, slots=True)
class GameSpec:
    """What replay and the world model must know of an environment."""

    obs_shape: tuple[int, ...]  # one frame: (C, H, W) for images, (D,) for vectors, (L,) for texts
    obs_dtype: str  # "uint8" for images, "float32" for vectors, "int32" for token ids of texts
    n_actions: int
    frame_stack: int = 1  # frames joined along the first axis to make one observation
    n_tokens: int = 0  # of texts: ids lie in 0 .. n_tokens - 1, 0 fills up to L; else 0
    text_encoder: str = ""  # of texts: what made the ids, and so what reads them; else ""

    def __post_init__(self) -> None:
        if len(self.obs_shape) not in (1, 3):
            raise ValueError(f"obs_shape must be (D,) or (C, H, W), got {self.obs_shape}")
        if self.obs_dtype not in ("uint8", "float32", "int32"):
            raise ValueError(f"obs_dtype must be uint8, float32 or int32, got {self.obs_dtype!r}")
        if self.is_text != (self.n_tokens > 1) or (self.is_text and len(self.obs_shape) != 1):
            raise ValueError(
                "obs_dtype int32 is for texts of shape (L,) with n_tokens of at least 2, other "
                f"observations have n_tokens 0; got {self.obs_dtype}, {self.obs_shape}, "
                f"{self.n_tokens}"
            )
        if self.n_actions < 1 or self.frame_stack < 1:
            raise ValueError(
                f"n_actions and frame_stack must be positive, got {self.n_actions}, "
                f"{self.frame_stack}"
            )

    @property
    def is_image(self) -> bool:
        return len(self.obs_shape) == 3

    @property
    def is_text(self) -> bool:
        return self.obs_dtype == "int32"

    @property
    def stacked_shape(self) -> tuple[int, ...]:
        """Shape of one observation as the world model sees it."""
        return (self.obs_shape[0] * self.frame_stack, *self.obs_shape[1:])


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """Where a segment came from; replay de-duplicates by `segment_id`."""

    run_id: str
    actor: int
    incarnation: int  # how often this actor was restarted
    sequence: int  # counts the segments of one incarnation
    env_id: int
    level: str  # stage or game, "" if the environment has one level
    seed: int
    rom_hash: str  # "" where there is no ROM
    weight_version_min: int
    weight_version_max: int
    prior_version: int  # newest of its steps, -1 if no LLM prior was used
    reward_version: int
    schema_version: int = SCHEMA_VERSION

    @property
    def segment_id(self) -> tuple[int, int, int]:
        return (self.actor, self.incarnation, self.sequence)


@dataclass(frozen=True, slots=True)
class Segment:
    """T steps of one episode; A actions; F = frame_stack.

    obs:         [F - 1 + T + 1, *obs_shape] single frames. Step t's observation is the frames
                 t .. t + F - 1 joined along the first axis; at an episode's start the first frame
                 is repeated. The last frame follows the last action (the final observation of an
                 ended episode).
    action:      [T] int16
    reward:      [T] float32, already scaled by the environment
    terminated, truncated: [T] bool; only the last step may be set, at most one of them
    policy:      [T, A] float16 or float32, visit shares; zero for illegal actions
    root_value:  [T] float16 or float32, search values
    legal:       [T, A] bool, or None when every action is always legal
    advantage:   [T, A] float16 or float32, what the search found an action to be worth above the
                 root's value, 0 where it did not look; or None where nobody learns from it
    prior_version: [T] int32, adapter of the language model whose prior the search began from, -1
                 where it began without; or None where none did
    prompt:      per step the text shown to the LLM, "" where none was asked; or None
    options:     per step the option text of each action, or None
    priority:    [T] float32, |search value - n-step bootstrap| as the actor saw it
    n_trainable: positions 0 .. n_trainable - 1 may start a sample; the rest is context that the
                 episode's next segment repeats
    """

    header: SegmentHeader
    obs: NDArray[np.generic]
    action: NDArray[np.int16]
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    policy: NDArray[np.floating]
    root_value: NDArray[np.floating]
    priority: NDArray[np.float32]
    n_trainable: int
    legal: NDArray[np.bool_] | None = None
    advantage: NDArray[np.floating] | None = None
    prior_version: NDArray[np.int32] | None = None
    prompt: tuple[str, ...] | None = None
    options: tuple[tuple[str, ...], ...] | None = None
    checksum: int = field(default=0)  # CRC-32 of the content, 0 if none was taken

    def __len__(self) -> int:
        return len(self.action)

    @property
    def is_terminated(self) -> bool:
        return bool(self.terminated[-1])

    @property
    def is_truncated(self) -> bool:
        return bool(self.truncated[-1])

    @property
    def n_frames(self) -> int:
        return len(self.obs)

    @property
    def n_characters(self) -> int:
        """Distinct text the segment brings; an upper bound of what interning it adds."""
        n_prompt = sum(map(len, set(self.prompt or ())))
        return n_prompt + sum(len(text) for row in set(self.options or ()) for text in row)

    @property
    def n_bytes(self) -> int:
        """Of the arrays and texts, as they travel."""
        columns: list[NDArray[np.generic] | None] = [getattr(self, name) for name in _COLUMNS]
        return self.n_characters + sum(column.nbytes for column in columns if column is not None)

    def with_checksum(self) -> Segment:
        """The same segment carrying the checksum of its content (never 0)."""
        return replace(self, checksum=self._content_checksum())

    def verify(self) -> bool:
        """Whether the content matches the checksum; True when none was set (0)."""
        return self.checksum == 0 or self.checksum == self._content_checksum()

    def _content_checksum(self) -> int:
        total = 0
        for name, column in sorted(self.to_arrays().items()):
            if name != "checksum":
                total = zlib.crc32(np.ascontiguousarray(column).view(np.uint8).data, total)
        return total or 1

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Plain arrays for `np.savez`; nothing in them needs pickle."""
        arrays: dict[str, NDArray[np.generic]] = {
            name: getattr(self, name) for name in _COLUMNS if getattr(self, name) is not None
        }
        arrays["header"] = pack_json(asdict(self.header))
        arrays["n_trainable"] = np.asarray([self.n_trainable], dtype=np.int64)
        arrays["checksum"] = np.asarray([self.checksum], dtype=np.int64)
        if self.prompt is not None:
            arrays["prompt"] = pack_json(list(self.prompt))
        if self.options is not None:
            arrays["options"] = pack_json([list(row) for row in self.options])
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Segment:
        """Inverse of `to_arrays`; ValueError names what is missing or malformed.

        Whether it is a segment of a game is for `check_segment` to say.
        """
        wanted = {*_COLUMNS, "header", "n_trainable", "checksum"} - OPTIONAL_COLUMNS
        missing = sorted(wanted - set(arrays))
        if missing:
            raise ValueError(f"segment arrays lack {', '.join(missing)}")
        columns: dict[str, Any] = {name: arrays[name] for name in _COLUMNS if name in arrays}
        try:
            header = SegmentHeader(**unpack_json(arrays["header"]))
        except (TypeError, AttributeError) as error:
            raise ValueError(f"header does not describe a segment: {error}") from error
        try:
            columns |= {name: int(arrays[name][0]) for name in ("n_trainable", "checksum")}
            prompt = options = None
            if "prompt" in arrays:
                prompt = tuple(unpack_json(arrays["prompt"]))
            if "options" in arrays:
                options = tuple(tuple(row) for row in unpack_json(arrays["options"]))
        except (TypeError, IndexError, OverflowError) as error:
            raise ValueError(f"segment arrays are malformed: {error}") from error
        return cls(
            header=header,
            prompt=prompt,
            options=options,
            **columns,
        )


_COLUMNS = (
    "obs",
    "action",
    "reward",
    "terminated",
    "truncated",
    "policy",
    "root_value",
    "legal",
    "advantage",
    "prior_version",
    "priority",
)
