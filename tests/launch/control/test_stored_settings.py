"""Settings, metadata and counters from disk: any content is a valid value or a clear error."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launch.config import Config, ConfigError, load_preset, preset_names, to_dict
from launch.control.checkpoint import METADATA, CheckpointError
from launch.control.counters import checked_counters
from launch.control.metadata import describe, read_metadata
from launch.control.progress import Progress
from launch.control.shards import Account
from launch.control.stored_settings import (
    LARGEST_FILE_BYTES,
    binding_hash,
    differences,
    is_same_task,
    parse_settings,
    read_settings_file,
)

MANY = settings(max_examples=400)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["auto", "cpu", "1-1", "lru", "../..", "\0", "x" * 5_000])
)
NODES = st.recursive(
    LEAVES, lambda node: st.lists(node, max_size=3) | st.dictionaries(st.text(max_size=5), node)
)


def dotted(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


NAMES = sorted(dotted(to_dict(Config())))


def changed(content: dict, name: str, value: object) -> dict:
    """A copy of nested `content` with one entry replaced."""
    head, _, rest = name.partition(".")
    return content | {head: changed(content[head], rest, value) if rest else value}


def is_short_and_clear(error: Exception, where: str) -> bool:
    text = str(error)
    return where in text and len(text) < 10_000 and "Traceback" not in text


@pytest.mark.parametrize("name", preset_names())
def test_what_a_run_writes_reads_back_without_differences(tmp_path, name):
    config = dataclasses.replace(load_preset(name), run_dir=Path("runs/x"), seed=7)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    stored = read_settings_file(path)
    assert stored.config == config and not stored.unknown
    assert differences(stored, config) == [] and is_same_task(stored, config)


@MANY
@given(content=NODES)
def test_any_structure_is_settings_or_refused(content):
    try:
        stored = parse_settings(content, where="the file")
    except ConfigError as error:
        assert is_short_and_clear(error, "the file")
    else:
        assert isinstance(stored.config, Config)


@settings(max_examples=1_500)
@given(name=st.sampled_from(NAMES), value=NODES)
@example("seed", True)
@example("learner.learning_rate", float("nan"))
@example("model.embed_dim", 10**30)
@example("model.n_heads", 0)
def test_any_value_of_any_setting_is_valid_or_refused_by_name(name, value):
    try:
        stored = parse_settings(changed(to_dict(Config()), name, value), where="the file")
    except ConfigError as error:
        assert is_short_and_clear(error, "the file")
        assert name.rpartition(".")[2] in str(error)
        return
    back = to_dict(stored.config)  # and what was taken is of the kind that the setting has
    for part in name.split("."):
        back = back[part]
    assert back == value or (isinstance(value, dict) and stored.unknown)


@MANY
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@example(b"a: &a [*a]")
@example(b"a: &a {}\nb: {<<: [*a, *a]}")
@example(b"!!python/object/apply:os.system [true]")
@example(b"seed: !!int ''")
@example(b"seed: 0x_")
@example(b"seed: 2001-99-99")
@example(b"seed: " + b"9" * 5_000)
@example(b"seed: " + b"1:" * 400 + b"1.5")
@example(b"[" * 5_000)
@example(b"{" * 5_000)
@example(b"? [a]\n: b")
@example(b"")
@example(b"\xff\xfe")
def test_any_file_is_settings_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "config.yaml"
    path.write_bytes(content)
    try:
        stored = read_settings_file(path)
    except ConfigError as error:
        assert is_short_and_clear(error, str(path))
    else:
        assert isinstance(stored.config, Config)


def test_a_file_of_any_size_is_not_read(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"#" * (LARGEST_FILE_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than"):
        read_settings_file(path)


def metadata_of(folder: Path) -> dict:
    counters = {"progress": {"env_steps": 7, "updates": 3}}
    content = json.loads(json.dumps(describe(Config(seed=4), counters, "periodic")))
    folder.mkdir(exist_ok=True)
    (folder / METADATA).write_text(json.dumps(content))
    return content


def test_metadata_says_what_a_checkpoint_is(tmp_path):
    content = metadata_of(tmp_path)
    known = read_metadata(tmp_path)
    assert (known.env_steps, known.updates, known.reason) == (7, 3, "periodic")
    assert known.env_id == Config().env.id and known.settings.config == Config(seed=4)
    assert known.config_hash == binding_hash(Config(seed=4)) != binding_hash(Config(seed=5))
    assert {"python", "torch", "numpy"} <= content["versions"].keys()


@MANY
@given(data=st.data())
def test_any_metadata_is_valid_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    content = metadata_of(folder)
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from(sorted(content)))
        content[name] = data.draw(NODES)
        text = json.dumps(content)
    else:
        text = json.dumps(data.draw(NODES))
    (folder / METADATA).write_text(text)
    try:
        known = read_metadata(folder)
    except CheckpointError as error:
        assert is_short_and_clear(error, METADATA)
    else:
        assert known.env_steps >= 0 and isinstance(known.settings.config, Config)


COUNTERS = {
    "format": 1,
    "reason": "test",
    "progress": {
        "env_steps": 5, "episodes": 1, "updates": 2, "evaluations": 0,
        "end_reasons": {"terminated": 1}, "best_return": None,
    },
    "limiter": {"inserted": 5, "sampled": 3, "samples_per_insert": 4.0, "tolerance": 0.0},
    "replay": {
        "accounts": [{"pushed": 5, "in_flight": 0, "held": 5, "is_serving": True}],
        "carried": {"replay_push_total": 5.0},
    },
    "incarnations": {"0": 0, "1": -1},
}  # fmt: skip


def test_counters_of_a_run_pass():
    assert checked_counters(COUNTERS, Path("counters.json")) == COUNTERS


@MANY
@given(name=st.sampled_from(sorted({*dotted(COUNTERS), *COUNTERS})), value=NODES)
def test_any_counter_is_a_count_or_refused(name, value):
    try:
        counters = checked_counters(changed(COUNTERS, name, value), Path("counters.json"))
    except CheckpointError as error:
        assert is_short_and_clear(error, "counters.json")
    else:
        progress = Progress(n_actors=1)
        progress.restore(counters["progress"])
        assert progress.env_steps >= 0
        state = counters["replay"] or {"accounts": []}
        assert all(Account(**account).pushed >= 0 for account in state["accounts"])
        assert all(int(index) >= 0 for index in counters["incarnations"])
