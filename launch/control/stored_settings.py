"""Settings that a run or a checkpoint was made with: read from disk, trusted in nothing, compared.

Files may be damaged, edited by hand or made by somebody else, so their size, structure, types and
ranges are checked before use, and nothing in them is ever executed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from launch.config import Config, ConfigError, overlay, to_dict
from launch.setting_types import shown

LARGEST_FILE_BYTES = 1_000_000
MOST_UNKNOWN = 100

# Settings that may change between a run and its continuation: they alter pace, length or
# observation of a run, never what its data and weights mean.
SAFE_TO_CHANGE = (
    "total_env_steps",
    "run_dir",
    "resume",
    "resume_relaxed",
    "address",
    "runtime",
    "device",
    "acting.",
    "adaptive.",
    "control.",
    "dashboard.",
    "evaluation.",
    "language.",
    "learner.",
    "limiter.",
    "placement.",
    "monitoring.",
    "prior.",
    "reanalysis.",
    "schedule.",
    "replay.device",
    "replay.engine",
    "search.",
    "trace.",
)
# Not safe although listed above, where a language model is tuned: its adapter belongs to these.
# That of a warm start is what the tuned one is measured against, for as long as the run lasts.
BOUND_TO_ADAPTER = ("prior.model", "prior.adapter", "language.lora_rank", "language.lora_alpha")
# What a checkpoint of another run must agree in to be found by a search.
SAME_TASK = ("env.id", "env.action_set", "model.")


@dataclass(frozen=True, slots=True)
class StoredSettings:
    """config: valid, with today's defaults for settings that did not exist then.

    unknown: settings that no longer exist, by dotted name.
    """

    config: Config
    unknown: Mapping[str, object]


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases and tags: these are how a small file becomes a huge object."""

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise yaml.YAMLError(f"anchors and aliases are not allowed{event.start_mark}")
        if getattr(event, "tag", None) is not None:
            raise yaml.YAMLError(f"tags are not allowed{event.start_mark}")
        return super().compose_node(parent, index)


def read_settings_file(path: Path) -> StoredSettings:
    """The settings in a YAML file. Raises ConfigError if it can't be read or holds none."""
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise ConfigError(f"{path} is larger than {LARGEST_FILE_BYTES:,} bytes")
        content = yaml.load(path.read_text(encoding="utf-8"), _PlainLoader)
    # PyYAML lets through what int() and float() raise, such as for 5,000 digits.
    except (OSError, yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        cause = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path} can't be read as settings: {cause}") from error
    return parse_settings(content, where=str(path))


def parse_settings(content: object, *, where: str) -> StoredSettings:
    """Checks nested settings. Raises ConfigError naming `where`, setting and what is allowed."""
    if not isinstance(content, Mapping) or not content:
        raise ConfigError(f"{where} holds no settings but {shown(content)}")
    unknown: dict[str, object] = {}
    known = _known_part(Config(), content, "", unknown)
    if len(unknown) > MOST_UNKNOWN:
        raise ConfigError(f"{where}: {len(unknown)} settings are unknown, such as {min(unknown)!r}")
    return StoredSettings(overlay(Config(), known, where=where), unknown)


def differences(stored: StoredSettings, config: Config) -> list[str]:
    """One line for each setting that differs and is not safe to change."""
    old, new = _flatten(to_dict(stored.config)), _flatten(to_dict(config))
    is_tuned = all(c.prior.enabled and c.language.enabled for c in (stored.config, config))
    changed = {key: (_brief(old[key]), _brief(new[key])) for key in new if old[key] != new[key]}
    removed = {key: (shown(value), "absent") for key, value in stored.unknown.items()}
    return [
        f"{key}: {before} in the run, {now} now"
        for key, (before, now) in sorted((changed | removed).items())
        if not _is_safe(key, is_tuned)
    ]


def is_same_task(stored: StoredSettings, config: Config) -> bool:
    """Environment, action set and model are alike."""
    old, new = _flatten(to_dict(stored.config)), _flatten(to_dict(config))
    return all(old[key] == new[key] for key in new if key.startswith(SAME_TASK))


def binding_hash(config: Config) -> str:
    """SHA-256 over all settings that a continuation must share; equal for runs that may follow."""
    bound = {k: v for k, v in _flatten(to_dict(config)).items() if not _is_safe(k, False)}
    return hashlib.sha256(json.dumps(bound, sort_keys=True).encode()).hexdigest()


def _is_safe(key: str, is_tuned: bool) -> bool:
    return key.startswith(SAFE_TO_CHANGE) and not (is_tuned and key in BOUND_TO_ADAPTER)


def _brief(value: object) -> str:
    return textwrap.shorten(repr(value), 200, placeholder=" ...")


def _known_part(
    node, content: Mapping[object, object], prefix: str, unknown: dict[str, object]
) -> dict[str, object]:
    """`content` without what is no setting; that goes to `unknown`."""
    known: dict[str, object] = {}
    names = {field.name for field in dataclasses.fields(node)}
    for key, value in content.items():
        if key not in names:
            unknown[f"{prefix}{key}"[:200]] = value
            continue
        inner = getattr(node, key)
        if dataclasses.is_dataclass(inner) and isinstance(value, Mapping):
            value = _known_part(inner, value, f"{prefix}{key}.", unknown)
        known[key] = value
    return known


def _flatten(node: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
