"""What a run goes on from: the order, what a search of other runs takes, what is refused."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest

from launch.config import Config, ConfigError
from launch.control.checkpoint import METADATA
from launch.control.inspection import describe
from launch.control.progress import Progress
from launch.control.resume import CONFIG_FILE, would_continue
from launch.control.run_directory import open_run
from launch.control.run_search import RunSearch


@pytest.fixture(autouse=True)
def _runs_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make_run(path, env_steps=(50,), **changes) -> Path:
    """A run directory with checkpoints at these env steps; returns the newest checkpoint."""
    config = dataclasses.replace(Config(), run_dir=Path(path), **changes)
    run = open_run("demo", config)
    for steps in env_steps:
        progress = Progress(n_actors=1)
        progress.env_steps = steps
        limiter = {"inserted": steps, "sampled": 0, "samples_per_insert": 1.0}
        counters = {"progress": progress.state(), "limiter": limiter, "incarnations": {}}
        folder = run.checkpoints.begin(updates=1, env_steps=steps)
        newest = run.checkpoints.commit(folder, counters, reason="test")
    run.close()
    return newest


def opened(path, resume="auto", **changes):
    config = dataclasses.replace(Config(), run_dir=Path(path), resume=resume, **changes)
    run = open_run("demo", config)
    run.close()
    return run


def refusal(path, resume="auto", **changes) -> str:
    with pytest.raises(ConfigError) as caught:
        opened(path, resume, **changes)
    return str(caught.value)


def other_model(**sizes):
    return dataclasses.replace(Config().model, **sizes)


def test_the_order_is_path_then_the_runs_own_then_other_runs():
    elsewhere = make_run("elsewhere/a", [10])
    other = make_run("runs/other", [20])
    assert opened("runs/new", "must").resume_from == other
    own = make_run("runs/new", [30])
    assert opened("runs/new", "must").resume_from == own
    assert opened("runs/new", str(elsewhere)).resume_from == elsewhere
    assert opened("runs/new").resume.found == "the run directory"
    assert opened("runs/new").resumed_at_step == 30


def test_a_run_may_be_named_in_place_of_its_newest_checkpoint():
    newest = make_run("runs/old", [10, 20])
    assert opened("runs/new", "runs/old").resume_from == newest


def test_auto_never_looks_at_other_runs():
    make_run("runs/other")
    assert opened("runs/new").resume is None


def test_the_newest_of_the_runs_own_is_used_and_a_damaged_one_passed_over():
    newest = make_run("runs/a", [10, 20])
    assert opened("runs/a").resume_from == newest
    (newest / "counters.json").write_text("{}")
    assert opened("runs/a").resumed_at_step == 10


def test_a_run_with_damaged_checkpoints_only_is_not_begun_anew():
    newest = make_run("runs/a")
    (newest / "counters.json").write_text("{}")
    assert "none of the 1 checkpoints" in refusal("runs/a")


def test_a_search_takes_a_run_of_the_same_task_only():
    make_run("runs/other-model", model=other_model(embed_dim=32))
    make_run("runs/other-game", env=dataclasses.replace(Config().env, id="CartPole-v1"))
    make_run("runs/other-actions", env=dataclasses.replace(Config().env, action_set="complex"))
    text = refusal("runs/new", "must")
    assert "environment, action set and model" in text and "nearest" not in text
    fits = make_run("runs/group/deep/fits")
    assert opened("runs/new", "must").resume_from == fits


def test_a_search_prefers_a_run_without_differences_and_names_those_of_the_nearest():
    make_run("runs/other-seed", seed=5)
    text = refusal("runs/new", "must")
    assert "nearest" in text and "seed: 5 in the run, 0 now" in text
    fits = make_run("runs/fits")
    os.utime("runs/fits", (1, 1))  # older than the one that does not fit
    assert opened("runs/new", "must").resume_from == fits


def test_a_search_takes_the_newest_run_and_none_that_is_going_on():
    older, newer = make_run("runs/a"), make_run("runs/b")
    os.utime("runs/a", (1, 1))
    assert opened("runs/new", "must").resume_from == newer
    with open("runs/b/.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert opened("runs/new", "must").resume_from == older


def test_a_run_directory_outside_runs_is_searched_beside_it():
    make_run("runs/a")
    beside = make_run("data/a")
    assert opened("data/new", "must").resume_from == beside


def test_a_search_is_bounded(tmp_path):
    for name in range(30):
        (tmp_path / "many" / f"{name:02d}" / "x").mkdir(parents=True)
    (tmp_path / "many" / "00" / "x" / "checkpoints").mkdir()
    whole = RunSearch(tmp_path / "many")
    assert [p.name for p in whole.runs()] == ["x"] and whole.is_complete
    cut = RunSearch(tmp_path / "many", most_entries=35)
    assert list(cut.runs()) == [] and not cut.is_complete


def test_a_search_follows_no_links(tmp_path):
    make_run("runs/a")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "runs")
    (tmp_path / "root" / "loop").symlink_to(tmp_path / "root")
    search = RunSearch(tmp_path / "root")
    assert list(search.runs()) == [] and search.is_complete


def test_a_checkpoint_named_by_path_is_compared_too():
    checkpoint = make_run("runs/a")
    text = refusal("runs/new", str(checkpoint), seed=3)
    assert "seed: 0 in the run, 3 now" in text and "--resume-relaxed" in text
    assert not Path("runs/new").exists()


@pytest.mark.parametrize("name", ["prior.model", "prior.adapter", "language.lora_rank"])
def test_what_a_tuned_adapter_belongs_to_may_not_change(name):
    section, _, field = name.partition(".")
    config = Config()
    tuned = {"language": dataclasses.replace(config.language, enabled=True)}
    value = {"model": "some/model", "adapter": "warm", "lora_rank": 4}[field]
    base = tuned.get(section, getattr(config, section))
    make_run("runs/a", **tuned)
    make_run("runs/b")
    assert name in refusal(
        "runs/a", **{**tuned, section: dataclasses.replace(base, **{field: value})}
    )
    untuned = dataclasses.replace(getattr(config, section), **{field: value})
    assert opened("runs/b", **{section: untuned}).resume is not None


def test_a_lost_config_is_read_from_the_checkpoint():
    checkpoint = make_run("runs/a")
    for damage in (b"", b"seed: [", b"{}", b"seed: many"):
        Path("runs/a", CONFIG_FILE).write_bytes(damage)
        assert opened("runs/a").resume_from == checkpoint
    Path("runs/a", CONFIG_FILE).unlink()
    assert "seed: 0 in the run, 3 now" in refusal("runs/a", seed=3)
    assert opened("runs/a").resume_from == checkpoint
    assert Path("runs/a", CONFIG_FILE).is_file()


def make_old(checkpoint: Path) -> None:
    """As checkpoints were before they held metadata."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    del manifest["files"][METADATA]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    (checkpoint / METADATA).unlink()


def test_an_old_checkpoint_needs_the_config_of_its_run():
    checkpoint = make_run("runs/a")
    make_old(checkpoint)
    assert opened("runs/a").resume_from == checkpoint
    assert "seed: 0 in the run, 3 now" in refusal("runs/a", seed=3)
    Path("runs/a", CONFIG_FILE).unlink()
    for resume in ("auto", str(checkpoint)):
        text = refusal("runs/a", resume)
        assert METADATA in text and CONFIG_FILE in text and "lost" in text


def test_a_setting_that_did_not_exist_then_had_todays_default_and_a_removed_one_is_named():
    checkpoint = make_run("runs/a")
    make_old(checkpoint)
    path = Path("runs/a", CONFIG_FILE)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if "n_step" not in line))
    assert opened("runs/a").resume_from == checkpoint
    path.write_text(path.read_text() + "\nflavour: sweet\n")
    assert "flavour: 'sweet' in the run, absent now" in refusal("runs/a")


def test_relaxed_takes_it_with_the_differences():
    make_run("runs/a")
    relaxed = opened("runs/a", resume_relaxed=True, seed=3, model=other_model(embed_dim=32)).resume
    assert relaxed.relaxed and relaxed.keeps_replay
    assert relaxed.differences == (
        "model.embed_dim: 64 in the run, 32 now",
        "seed: 0 in the run, 3 now",
    )
    targets = dataclasses.replace(Config().targets, n_step=7)
    assert not opened("runs/a", resume_relaxed=True, targets=targets).resume.keeps_replay


def test_without_run_dir_a_path_begins_a_folder_of_its_own():
    checkpoint = make_run("runs/demo")
    run = open_run("demo", dataclasses.replace(Config(), resume=str(checkpoint)))
    run.close()
    assert str(run.path) == "runs/demo-2" and run.resume_from == checkpoint


def test_never_refuses_a_directory_whose_config_is_lost():
    make_run("runs/a")
    Path("runs/a", CONFIG_FILE).unlink()
    assert "already holds a run" in refusal("runs/a", "never")


def test_a_summary_of_any_content_is_no_end(tmp_path):
    make_run("runs/demo")
    for content in ("[]", "3", "{", '{"finished": "no"}', "[" * 5000):
        Path("runs/demo/summary.json").write_text(content)
        run = open_run("demo", Config())
        run.close()
        assert str(run.path) == "runs/demo"
    assert would_continue(Path("runs/demo"), Config())


def test_inspect_shows_what_a_checkpoint_is():
    checkpoint = make_run("runs/a")
    text = describe(checkpoint)
    for word in ("WarpZone/Mario-v0", "50 env steps", "torch", "reason: test"):
        assert word in text
    make_old(checkpoint)
    assert f"no {METADATA}" in describe(checkpoint)
    Path("runs/a", CONFIG_FILE).write_text("a: &x [*x]")
    assert "NOT USABLE" in describe(Path("runs/a"))
    shutil.rmtree(checkpoint)
