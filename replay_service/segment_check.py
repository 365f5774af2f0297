"""What a segment that came in must be, before anything of it is used or stored.

Whoever sent it may be broken, so nothing is taken for granted: types first, then shapes, then
values. Checks of the header and of shapes cost nothing; those of values one pass over each column.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

import numpy as np

from replay_service.segment import (
    OPTIONAL_COLUMNS,
    SCHEMA_VERSION,
    GameSpec,
    Segment,
    SegmentHeader,
)

LONGEST_NAME = 256  # characters of run id, level and ROM hash
LONGEST_PROMPT = 65_536  # characters
LONGEST_OPTION = 4_096
POLICY_SUM_ERROR = 0.01  # rounding of a row to float16 stays below 1e-3
_LARGEST_INT32, _LARGEST_INT64 = 2**31 - 1, 2**63 - 1

_INT16, _INT32 = (np.dtype("int16"),), (np.dtype("int32"),)
_FLOAT32, _BOOL = (np.dtype("float32"),), (np.dtype("bool"),)
_SCALARS = (np.dtype("float16"), *_FLOAT32)

# Versions are stored as int32; -1 means none.
_RANGES = {
    "actor": (0, _LARGEST_INT32),
    "incarnation": (0, _LARGEST_INT32),
    "sequence": (0, _LARGEST_INT64),
    "env_id": (0, _LARGEST_INT32),
    "seed": (-_LARGEST_INT64, _LARGEST_INT64),
    "weight_version_min": (-1, _LARGEST_INT32),
    "weight_version_max": (-1, _LARGEST_INT32),
    "prior_version": (-1, _LARGEST_INT32),
    "reward_version": (0, _LARGEST_INT32),
    "schema_version": (SCHEMA_VERSION, SCHEMA_VERSION),
}


def check_header(header: object) -> None:
    """ValueError naming the first field of a SegmentHeader that can't be one."""
    if type(header) is not SegmentHeader:
        raise ValueError(f"header is {type(header).__name__}, expected SegmentHeader")
    _check_complete(header, "header.")
    for field in fields(SegmentHeader):
        name, value = f"header.{field.name}", getattr(header, field.name)
        if field.name in _RANGES:
            _check_int(name, value, *_RANGES[field.name])
        else:
            _check_text(name, value, LONGEST_NAME)
    if header.weight_version_min > header.weight_version_max:
        raise ValueError(
            f"header.weight_version_min is {header.weight_version_min}, expected at most "
            f"weight_version_max, {header.weight_version_max}"
        )


def check_segment(segment: object, spec: GameSpec) -> None:
    """ValueError naming the first field that breaks `spec` or the layout of Segment.

    The checksum is compared last. `priority` is not looked into: replay counts and replaces bad
    priorities one by one.
    """
    if type(segment) is not Segment:
        raise ValueError(f"segment is {type(segment).__name__}, expected Segment")
    _check_complete(segment, "")
    check_header(segment.header)
    _check_int("checksum", segment.checksum, 0, 2**32 - 1)
    _check_layout(segment, spec)
    _check_texts(segment, spec)
    _check_values(segment)
    if spec.is_text and not 0 <= segment.obs.min() <= segment.obs.max() < spec.n_tokens:
        raise ValueError(
            f"obs holds token ids from {segment.obs.min()} to {segment.obs.max()}, "
            f"expected 0..{spec.n_tokens - 1}"
        )
    _check_prior_versions(segment)
    _check_choices(segment, spec)
    if not segment.verify():
        raise ValueError("checksum does not match the content")


def _check_complete(sent: Segment | SegmentHeader, prefix: str) -> None:
    """What was pickled by another version of a class may come without some of its fields."""
    for field in fields(sent):
        if not hasattr(sent, field.name):
            raise ValueError(f"{prefix}{field.name} is missing")


def _check_int(name: str, value: object, lowest: int, highest: int) -> None:
    if type(value) is not int:
        raise ValueError(f"{name} is {type(value).__name__}, expected a whole number")
    if not lowest <= value <= highest:
        shown = value if abs(value) <= _LARGEST_INT64 else "a larger number"
        raise ValueError(f"{name} is {shown}, expected {_range(lowest, highest)}")


def _range(lowest: int, highest: int) -> str:
    return str(lowest) if lowest == highest else f"{lowest}..{highest}"


def _check_text(name: str, value: object, longest: int) -> None:
    if type(value) is not str:
        raise ValueError(f"{name} is {type(value).__name__}, expected text")
    if len(value) > longest:
        raise ValueError(f"{name} has {len(value)} characters, expected at most {longest}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name} is not valid Unicode text: {error.reason}") from error


def _check_layout(segment: Segment, spec: GameSpec) -> None:
    """Kinds and sizes of all columns, so that no later check can meet anything else."""
    if type(segment.action) is not np.ndarray or segment.action.ndim != 1:
        raise ValueError(f"action is {_outline(segment.action)}, expected an array [T]")
    n_steps = len(segment.action)
    if n_steps == 0:
        raise ValueError("action has length 0, expected at least one step")
    step_shape: tuple[int, ...] = (n_steps,)
    row_shape = (n_steps, spec.n_actions)
    obs_dtype = (np.dtype(spec.obs_dtype),)
    expected: dict[str, tuple[tuple[np.dtype[np.generic], ...], tuple[int, ...]]] = {
        "action": (_INT16, step_shape),
        "obs": (obs_dtype, (n_steps + spec.frame_stack, *spec.obs_shape)),
        "reward": (_FLOAT32, step_shape),
        "terminated": (_BOOL, step_shape),
        "truncated": (_BOOL, step_shape),
        "policy": (_SCALARS, row_shape),
        "root_value": (_SCALARS, step_shape),
        "priority": (_FLOAT32, step_shape),
        "legal": (_BOOL, row_shape),
        "advantage": (_SCALARS, row_shape),
        "prior_version": (_INT32, step_shape),
    }
    for name, (dtypes, shape) in expected.items():
        column = getattr(segment, name)
        if name in OPTIONAL_COLUMNS and column is None:
            continue
        # Subclasses of arrays may answer the checks below with what they like.
        fits = type(column) is np.ndarray and column.dtype in dtypes and column.shape == shape
        if not fits:
            raise ValueError(
                f"{name} is {_outline(column)}, expected {' or '.join(map(str, dtypes))} {shape}"
            )
    _check_int("n_trainable", segment.n_trainable, 1, n_steps)


def _outline(column: object) -> str:
    if isinstance(column, np.ndarray):
        return f"{str(column.dtype)[:100]} {column.shape}"
    return type(column).__name__


def _check_texts(segment: Segment, spec: GameSpec) -> None:
    n_steps = len(segment)
    for name, rows in (("prompt", segment.prompt), ("options", segment.options)):
        if rows is not None and type(rows) is not tuple:
            raise ValueError(f"{name} is {type(rows).__name__}, expected a tuple")
        if rows is not None and len(rows) != n_steps:
            raise ValueError(f"{name} has {len(rows)} entries, expected {n_steps}")
    if segment.prompt is not None:
        _check_each("prompt", segment.prompt, LONGEST_PROMPT)
    for row in segment.options or ():
        if type(row) is not tuple:
            raise ValueError(f"options has a row of type {type(row).__name__}, expected a tuple")
        if len(row) not in (0, spec.n_actions):
            raise ValueError(
                f"options has rows of {len(row)} texts, expected {spec.n_actions} or 0"
            )
    # Most steps of a game share their options: by identity first, since hashing reads them all.
    for row in {id(row): row for row in segment.options or ()}.values():
        _check_each("options", row, LONGEST_OPTION)


def _check_each(name: str, texts: Iterable[object], longest: int) -> None:
    for text in texts:
        _check_text(name, text, longest)


def _check_values(segment: Segment) -> None:
    for name in ("obs", "reward", "policy", "root_value", "advantage"):
        column = getattr(segment, name)
        if column is not None and column.dtype.kind == "f" and not np.isfinite(column).all():
            raise ValueError(f"{name} holds NaN or infinity, expected finite numbers")
    for name in ("terminated", "truncated"):
        n_early = int(getattr(segment, name)[:-1].sum())
        if n_early:
            raise ValueError(
                f"{name} is set on {n_early} steps before the last, expected the last one only"
            )
    if segment.is_terminated and segment.is_truncated:
        raise ValueError("truncated and terminated are both set, expected at most one")


def _check_prior_versions(segment: Segment) -> None:
    versions = segment.prior_version
    if versions is not None and int(versions.min()) < -1:
        raise ValueError(f"prior_version holds {versions.min()}, expected -1 or a version")


def _check_choices(segment: Segment, spec: GameSpec) -> None:
    """Actions and policies, against each other and against what was legal."""
    action, policy, legal = segment.action, segment.policy, segment.legal
    lowest, highest = int(action.min()), int(action.max())
    if lowest < 0 or highest >= spec.n_actions:
        raise ValueError(f"action lies in {lowest}..{highest}, expected 0..{spec.n_actions - 1}")
    if (policy < 0).any():
        raise ValueError(f"policy holds {policy.min()}, expected shares of at least 0")
    sums = policy.sum(1, dtype=np.float64)
    farthest = float(sums[np.abs(sums - 1.0).argmax()])
    if abs(farthest - 1.0) > POLICY_SUM_ERROR:
        raise ValueError(f"policy has a row that sums to {farthest:g}, expected shares of 1")
    if legal is None:
        return
    if not legal[np.arange(len(action)), action].all():
        raise ValueError("action is one that legal rules out in the same step")
    if (policy[~legal] > 0).any():
        raise ValueError("policy has a share of an action that legal rules out in the same step")
