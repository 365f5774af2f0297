"""Going on from another run's checkpoint, and from one that does not fit, in the serial runtime."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from launch import train
from launch.control.shutdown import EXIT_FINISHED

SMALL = shlex.split(
    """--preset cartpole --runtime serial --device cpu --envs-per-actor 2 --acting.num-actors 2
    --acting.segment-length 10 --acting.collect-steps 8 --simulations 4
    --replay.min-positions 40 --learner.batch-size 16 --limiter.samples-per-insert 6
    --control.updates-per-call 2 --learner.publish-every 4 --evaluation.every-env-steps 1000
    --evaluation.n-episodes 1 --evaluation.final-episodes 1 --evaluation.max-steps 20"""
)


def run(folder: Path, n_steps: int, *extra: str) -> int:
    return train.main([*SMALL, "--run-dir", str(folder), "--total-env-steps", str(n_steps), *extra])


def events(folder: Path, kind: str) -> list[dict]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, lines) if e["event"] == kind]


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "old"
    assert run(folder, 120) == EXIT_FINISHED
    return folder


def test_must_goes_on_from_the_run_beside_and_says_so(old, capsys):
    new = old.parent / "new"
    before = {p: p.read_bytes() for p in old.rglob("*") if p.is_file()}
    assert run(new, 200, "--resume", "must") == EXIT_FINISHED
    (resumed,) = events(new, "resumed")
    checkpoint = next((old / "checkpoints").glob("step-*"))
    assert Path(resumed["source"]) == checkpoint
    assert resumed["found_by"] == f"a search of {old.parent}" and not resumed["relaxed"]
    assert events(new, "checkpoint")[0]["reason"] == "resumed"
    assert f"going on from {checkpoint}" in capsys.readouterr().out
    assert summary(new)["env_steps"] >= 200
    assert summary(new)["updates"] > summary(old)["updates"]
    assert {p: p.read_bytes() for p in old.rglob("*") if p.is_file()} == before


def test_a_lost_config_is_no_loss(old, tmp_path):
    folder = tmp_path / "copy"
    checkpoint = next((old / "checkpoints").glob("step-*"))
    target = folder / "checkpoints" / checkpoint.name
    target.parent.mkdir(parents=True)
    for file in (p for p in checkpoint.rglob("*") if p.is_file()):
        copied = target / file.relative_to(checkpoint)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(file.read_bytes())
    with pytest.raises(SystemExit):
        run(folder, 200, "--seed", "9")
    assert run(folder, 160) == EXIT_FINISHED
    assert events(folder, "resumed")[0]["env_steps"] == summary(old)["env_steps"]


@pytest.mark.parametrize(
    ("changed", "replay_is_kept"),
    [
        (["--model.n-layers", "3"], True),
        (["--targets.n-step", "4", "--model.mlp-hidden", "96"], False),
    ],
)
def test_a_relaxed_resume_takes_over_what_fits(old, tmp_path, capsys, changed, replay_is_kept):
    new = tmp_path / "new"
    with pytest.raises(SystemExit) as caught:
        run(new, 240, "--resume", str(old), *changed)
    assert caught.value.code == 2
    assert changed[0].removeprefix("--").replace("-", "_") in capsys.readouterr().err
    assert run(new, 240, "--resume", str(old), "--resume-relaxed", *changed) == EXIT_FINISHED
    report = json.loads((new / "resume-report.json").read_text())
    text = capsys.readouterr().out
    assert "resume-report.json" in text and "resumed relaxed" in text
    assert (report["replay"] == "loaded") is replay_is_kept
    assert len(report["settings_that_differ"]) == len(changed) // 2
    model = report["learner"]["model.safetensors"]
    assert model["n_loaded"] > 10 and not model["unexpected"]
    assert bool(model["missing"]) is replay_is_kept
    assert bool(model["other_shape"]) is not replay_is_kept
    assert summary(new)["env_steps"] >= 240
    assert summary(new)["updates"] > summary(old)["updates"]
    # From its own checkpoint it goes on like any run, exactly.
    assert run(new, 280, *changed) == EXIT_FINISHED
    assert not events(new, "resumed")[-1]["relaxed"]


def test_a_lost_run_directory_is_fetched_from_its_uri(tmp_path, capsys):
    uri = f"file://{tmp_path}/elsewhere"
    more = ("--control.checkpoint-uri", uri)
    assert run(tmp_path / "run", 120, *more) == EXIT_FINISHED
    assert events(tmp_path / "run", "checkpoint_uploaded")
    steps = summary(tmp_path / "run")["env_steps"]
    shutil.rmtree(tmp_path / "run")
    assert run(tmp_path / "run", 200, *more) == EXIT_FINISHED
    (resumed,) = events(tmp_path / "run", "resumed")
    assert resumed["source"].startswith(f"{uri}/checkpoints/step-")
    assert resumed["env_steps"] == steps and resumed["found_by"] == "control.checkpoint_uri"
    assert f"going on from {uri}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(tmp_path / "other", 200, "--resume", uri, "--seed", "9")
    assert "seed" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert run(tmp_path / "other", 240, "--resume", uri) == EXIT_FINISHED
    assert events(tmp_path / "other", "checkpoint")[0]["reason"] == "resumed"
    assert not (tmp_path / "other" / ".fetched").exists()
    # Its own checkpoints and another's don't lie in one store.
    with pytest.raises(SystemExit):
        run(tmp_path / "other", 280, *more)
    told = capsys.readouterr().err
    assert f"checkpoints of another run ({tmp_path}/run on" in told and "does not go on" in told


def test_a_fetched_checkpoint_never_takes_the_settings_of_where_it_was_fetched_to(tmp_path, capsys):
    uri = f"file://{tmp_path}/elsewhere"
    assert run(tmp_path / "run", 120, "--control.checkpoint-uri", uri) == EXIT_FINISHED
    for manifest in (tmp_path / "elsewhere" / "checkpoints").glob("*/manifest.json"):
        content = json.loads(manifest.read_text())
        del content["files"]["metadata.json"]
        manifest.write_text(json.dumps(content))
    shutil.copytree(tmp_path / "run", tmp_path / "new", ignore=shutil.ignore_patterns("check*"))
    with pytest.raises(SystemExit):
        run(tmp_path / "new", 200, "--control.checkpoint-uri", uri)
    assert "no metadata.json" in capsys.readouterr().err
