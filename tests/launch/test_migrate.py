"""migrate.py on legacy checkpoint pairs and on checkpoints of ours, as a user calls it."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.control.checkpoint import CheckpointStore
from launch.control.legacy_steps import rebuild_steps
from launch.control.remote_store import RemoteStore
from launch.migrate import main

LEGACY = {
    "version": 1,
    "world": 1,
    "stage": 2,
    "vector_env": {"num_envs": 8, "asynchronous": False},
    "save_state": {"global_step": 0, "global_update": 2000, "type": "checkpoint"},
    "note": "Größe bleibt",
}


def write_pair(folder: Path, name: str = "a3c_world1_stage2_0002000", weights=None, **changes):
    """A legacy pair; `changes` replace parts of LEGACY."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"global_update": 0} if weights is None else weights, folder / f"{name}.pt")
    path = folder / f"{name}.json"
    path.write_text(json.dumps(copy.deepcopy(LEGACY) | changes))
    return path


def files_below(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_steps_are_rebuilt_once_and_the_old_file_stays(tmp_path, capsys):
    path = write_pair(tmp_path / "run01")
    old = path.read_text()
    main(["backfill-steps", str(tmp_path)])
    content = json.loads(path.read_text())
    assert content["save_state"]["global_step"] == 2000 * 8 * 64
    assert content["reconstructed_step_source"] == "rebuild"
    assert content["reconstructed_step_details"]["assumed_rollout_steps"] == 64
    kept = {name: content[name] for name in LEGACY if name != "save_state"}
    assert kept == {name: LEGACY[name] for name in LEGACY if name != "save_state"}
    assert path.with_name(f"{path.name}.bak").read_text() == old
    assert "1 rebuilt, 0 kept, 0 failed" in capsys.readouterr().out
    before = files_below(tmp_path)
    main(["backfill-steps", str(tmp_path), "--assume-rollout-steps", "128"])
    assert files_below(tmp_path) == before
    assert "0 rebuilt, 1 kept, 0 failed" in capsys.readouterr().out


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    write_pair(tmp_path)
    before = files_below(tmp_path)
    main(["backfill-steps", str(tmp_path), "--dry-run", "--assume-rollout-steps", "128"])
    assert files_below(tmp_path) == before
    assert f"{2000 * 8 * 128:,}" in capsys.readouterr().out


def test_an_older_backup_is_not_overwritten(tmp_path):
    path = write_pair(tmp_path)
    backup = path.with_name(f"{path.name}.bak")
    backup.write_text("the first")
    main(["backfill-steps", str(path)])
    assert backup.read_text() == "the first"


def test_updates_come_from_the_weights_where_the_json_lost_them(tmp_path):
    lost = {"global_step": 0, "global_update": 0}
    path = write_pair(tmp_path, weights={"global_update": 250}, save_state=lost)
    main(["backfill-steps", str(tmp_path)])
    assert json.loads(path.read_text())["save_state"]["global_step"] == 250 * 8 * 64


class RunsCode:
    """Unpickling it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_nothing_in_a_weight_file_is_run(tmp_path, capsys):
    trap = tmp_path / "trap"
    lost = {"global_step": 0, "global_update": 0}
    write_pair(tmp_path, weights=RunsCode(trap), save_state=lost)
    with pytest.raises(SystemExit, match="1"):
        main(["backfill-steps", str(tmp_path)])
    assert not trap.exists()
    assert "without running code" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"save_state": {"global_step": -1}}, "save_state.global_step"),
        ({"save_state": {"global_step": 0, "global_update": 1.5}}, "save_state.global_update"),
        ({"save_state": 3}, "save_state must be an object"),
        ({"vector_env": {"num_envs": 0}}, "vector_env.num_envs is 0"),
        ({"vector_env": {}}, "vector_env.num_envs is 0"),
        ({"vector_env": {"num_envs": True}}, "vector_env.num_envs"),
    ],
)
def test_what_cannot_be_rebuilt_is_named_and_left_alone(tmp_path, capsys, changes, words):
    write_pair(tmp_path / "bad", **changes)
    good = write_pair(tmp_path / "good")
    before = files_below(tmp_path / "bad")
    with pytest.raises(SystemExit, match="1"):
        main(["backfill-steps", str(tmp_path)])
    assert files_below(tmp_path / "bad") == before
    assert words in capsys.readouterr().out
    assert json.loads(good.read_text())["save_state"]["global_step"] > 0


def test_other_json_files_are_passed_over(tmp_path, capsys):
    (tmp_path / "summary.json").write_text("{}")
    main(["backfill-steps", str(tmp_path)])
    assert "0 rebuilt, 0 kept, 0 failed" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


@settings(max_examples=60)
@given(
    content=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=4),
        lambda node: st.dictionaries(
            st.sampled_from(
                ["save_state", "vector_env", "global_step", "global_update", "num_envs"]
            ),
            node,
        ),
        max_leaves=8,
    )
)
def test_any_json_is_rebuilt_kept_or_refused(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("any")
    path = write_pair(folder)
    path.write_text(json.dumps(content))
    report = rebuild_steps(path, assumed_rollout_steps=64, dry_run=False)
    after = json.loads(path.read_text())
    if report.outcome == "rebuilt":
        assert after["save_state"]["global_step"] > 0
    else:
        assert after == content


@pytest.mark.parametrize(
    "arguments",
    [["backfill-steps", "missing"], ["backfill-steps", ".", "--assume-rollout-steps", "0"]],
)
def test_arguments_that_make_no_sense_end_with_2(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert arguments[-1] in capsys.readouterr().err


def test_inspect_shows_checkpoints_runs_and_what_is_broken(tmp_path, capsys):
    store = CheckpointStore(tmp_path / "checkpoints", keep=3)
    for step in (100, 200):
        folder = store.begin(step, step)
        (folder / "learner").mkdir()
        (folder / "learner" / "model.safetensors").write_bytes(b"x" * 2_000_000)
        newest = store.commit(folder, {"progress": {"env_steps": step}}, reason="periodic")
    main(["inspect", str(newest)])
    shown = capsys.readouterr().out
    assert "env_steps: 200" in shown and "learner: 2.00 MB" in shown and "periodic" in shown
    (newest / "learner" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(SystemExit, match="1"):
        main(["inspect", str(newest)])
    assert "model.safetensors differs" in capsys.readouterr().err
    main(["inspect", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "2 checkpoints" in shown and "(latest): NOT USABLE" in shown
    main(["inspect", str(write_pair(tmp_path / "legacy"))])
    assert "global_update: 2000" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="1"):
        main(["inspect", str(tmp_path / "legacy")])
    assert "neither a checkpoint" in capsys.readouterr().err


def test_inspect_shows_what_a_uri_holds(tmp_path, capsys):
    store = CheckpointStore(tmp_path / "checkpoints", keep=3)
    remote = RemoteStore(f"file://{tmp_path}/elsewhere")
    for step in (100, 200):
        folder = store.begin(step, step)
        (folder / "model.bin").write_bytes(b"x" * step)
        remote.upload(store.commit(folder, {"progress": {"env_steps": step}}, reason="test"))
    broken = remote.inventory(remote.names()[0])["model.bin"].sha256
    (tmp_path / "elsewhere" / "objects" / broken).write_bytes(b"y" * 200)
    main(["inspect", remote.uri])
    shown = capsys.readouterr().out
    assert "2 checkpoints" in shown and "env_steps: 100" in shown and "NOT USABLE" in shown
    main(["inspect", remote.uri_of(remote.names()[1])])
    assert "1 checkpoints" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="1"):
        main(["inspect", f"file://{tmp_path}/nothing"])
    assert "holds no checkpoint" in capsys.readouterr().err
