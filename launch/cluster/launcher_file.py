"""Reads a file for `ray up` and says what is wrong with it, before any machine is touched.

Ray's own schema and rules come first; what they let pass, and Ray finds out late or never, is added
here: keys of `provider`, values that were never filled in, files that are not there, no token.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

# No public call checks such a file.
from ray import autoscaler
from ray.autoscaler._private import _azure
from ray.autoscaler._private.util import prepare_config, validate_config

from launch.access import SecretError, read_secret_file
from launch.config import ConfigError

FILL_IN = "FILL-IN"  # what our own files have where only the user knows the value
TOKEN_MODE = "RAY_AUTH_MODE=token"
TOKEN_FILE = ".ray/auth_token"
OTHERS = 0o077  # permissions of whoever is not the owner
LARGEST_FILE_BYTES = 1_000_000
HOW_TO_MAKE_A_TOKEN = "docs/security.md says how to make one"

# What Ray 2.60 reads of `provider`, by its type; its schema takes any key.
EVERY_PROVIDER = {"type", "use_internal_ips", "disable_node_updaters"}
EVERY_CLOUD = {"availability_zone", "cache_stopped_nodes"}
PROVIDER_KEYS: dict[str, set[str]] = {
    "aws": EVERY_CLOUD | {"region", "aws_credentials", "cloudwatch", "key_pair", "security_group"},
    "gcp": EVERY_CLOUD | {"region", "project_id", "gcp_credentials"},
    "azure": EVERY_CLOUD
    | {"location", "resource_group", "subscription_id", "subnet_mask", "tags", "unique_id"}
    | {"msi_name", "msi_resource_group", "use_external_head_ip"},
    "local": {"head_ip", "worker_ips", "external_head_ip"},
}
REQUIRED_KEYS = {
    "aws": ("region",),
    "gcp": ("region", "availability_zone", "project_id"),
    "azure": ("location", "resource_group"),
    "local": ("head_ip", "worker_ips"),
}

LauncherFile = dict[str, Any]  # what YAML holds, once it fits Ray's schema


def read_launcher_file(path: Path) -> LauncherFile:
    """The file as Ray completes it. Raises ConfigError, naming key, value and remedy."""
    written = _load(path)
    wrong = [*_against_schema(written)]
    if not wrong:
        wrong = [*_of_provider(written), *_left_open(written), *_of_token(written)]
    if wrong:
        raise ConfigError("; ".join(wrong))
    try:
        complete = prepare_config(written)
        validate_config(complete)
    except (ValueError, RuntimeError, jsonschema.ValidationError) as error:
        raise ConfigError(f"{path}: {str(error).partition(chr(10))[0]}") from error
    _check_files(complete)
    return complete


def _load(path: Path) -> LauncherFile:
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise ConfigError(f"{path} has more than {LARGEST_FILE_BYTES:,} bytes: not such a file")
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path} can't be read: {error.strerror}; copy one of launch/cluster/*.yaml there"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(written, dict):
        raise ConfigError(f"{path} must hold keys and values, as launch/cluster/*.yaml do")
    return written


def _against_schema(written: LauncherFile) -> Iterator[str]:
    schema = json.loads((Path(autoscaler.__file__).parent / "ray-schema.json").read_text())
    errors = jsonschema.Draft7Validator(schema).iter_errors(written)
    for error in sorted(errors, key=lambda error: list(map(str, error.absolute_path))):
        place = ".".join(map(str, error.absolute_path))
        if error.validator == "additionalProperties":
            known = error.schema.get("properties", {})
            yield from _unknown(place, error.instance, known)
        else:
            yield f"{place or 'the file'}: {error.message[:200]}"


def _unknown(place: str, found: Iterable[str], known: Iterable[str]) -> Iterator[str]:
    for key in sorted(set(map(str, found)) - set(known)):
        near = difflib.get_close_matches(key, known, n=1)
        rest = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(known))}"
        yield f"unknown key {key!r}{f' in {place}' if place else ''}; {rest}"


def _of_provider(written: LauncherFile) -> Iterator[str]:
    provider = written["provider"]
    kind = provider["type"]
    if kind not in PROVIDER_KEYS:
        yield f"provider.type={kind!r}: this check knows {', '.join(PROVIDER_KEYS)}"
        return
    yield from _unknown("provider", provider, EVERY_PROVIDER | PROVIDER_KEYS[kind])
    for key in REQUIRED_KEYS[kind]:
        if not provider.get(key):
            yield f"provider.{key} must be given for {kind}"
    if kind == "local":
        for key in ("available_node_types", "head_node_type"):
            if key in written:
                yield f"{key} is not for provider local, where Ray knows one group of machines"
        for key in ("ssh_user", "ssh_private_key"):
            if key not in written.get("auth", {}):
                yield f"auth.{key} must be given: with it the first machine reaches the others"
    elif "available_node_types" not in written:
        yield f"available_node_types must be given for {kind}"
    if kind == "azure":
        yield from _of_azure(written)


def _of_azure(written: LauncherFile) -> Iterator[str]:
    """Ray fills a template in with what a node type gives; other keys fail with the first node."""
    template = json.loads((Path(_azure.__file__).parent / "azure-vm-template.json").read_text())
    known = {*template["parameters"], "availability_zone"}
    for name, node_type in written.get("available_node_types", {}).items():
        place = f"available_node_types.{name}.node_config"
        yield from _unknown(place, node_type["node_config"], ["azure_arm_parameters"])
        given = node_type["node_config"].get("azure_arm_parameters", {})
        yield from _unknown(f"{place}.azure_arm_parameters", given, known)


def _left_open(written: LauncherFile) -> Iterator[str]:
    for place, text in _texts(written, ""):
        for word in re.findall(rf"{FILL_IN}[\w-]*", text):
            yield f"{place} still has {word}: put your own value there"


def _texts(value: object, place: str) -> Iterator[tuple[str, str]]:
    """Every text in nested values, with the keys that lead there."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping | list):
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, below in pairs:
            yield from _texts(below, f"{place}.{key}" if place else str(key))


def _of_token(written: LauncherFile) -> Iterator[str]:
    """A node that starts without token mode runs what anybody sends who reaches it."""
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        starting = [command for command in written.get(key, []) if "ray start" in command]
        if not starting:
            yield f"{key} must be given, with a `ray start`: Ray's own would start without a token"
        elif not all(TOKEN_MODE in command for command in starting):
            yield f"{key} must set {TOKEN_MODE} before `ray start` (docs/security.md)"
    if not any(str(remote).endswith(TOKEN_FILE) for remote in written.get("file_mounts", {})):
        yield f"file_mounts must bring the token to every node: ~/{TOKEN_FILE}: ~/{TOKEN_FILE}"


def _check_files(complete: LauncherFile) -> None:
    """Those that Ray will copy. Raises ConfigError for one that is missing or open to others."""
    for remote, local in complete["file_mounts"].items():
        path = Path(local).expanduser()
        if str(remote).endswith(TOKEN_FILE):
            _check_token(path)
        if not path.exists():
            raise ConfigError(f"file_mounts.{remote}: {path} is not there; make it first")
    key = complete["auth"].get("ssh_private_key")
    if key is not None and not Path(key).expanduser().is_file():
        raise ConfigError(
            f"auth.ssh_private_key: {key} is not there; ssh-keygen makes one, and ssh-copy-id "
            "brings its public half to the machines"
        )


def _check_token(path: Path) -> None:
    try:
        read_secret_file(path)
    except SecretError as error:
        raise ConfigError(f"{error}; {HOW_TO_MAKE_A_TOKEN}") from error
    if path.stat().st_mode & OTHERS:
        raise ConfigError(f"others can read the token in {path}: chmod 600 {path}")
