"""Which folder a command uses, when it goes on, and what it refuses."""

import dataclasses
import json

import pytest

from launch.config import Config, ConfigError
from launch.control.progress import Progress
from launch.control.run_directory import open_run


@pytest.fixture(autouse=True)
def _runs_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def open_and_close(config=None, preset="demo"):
    run = open_run(preset, config or Config())
    run.close()
    return run


def counters(env_steps):
    progress = Progress(n_actors=1)
    progress.env_steps = env_steps
    limiter = {"inserted": env_steps, "sampled": 0, "samples_per_insert": 1.0}
    return {"progress": progress.state(), "limiter": limiter, "incarnations": {"0": 2}}


def add_checkpoint(run, env_steps=50):
    folder = run.checkpoints.begin(updates=1, env_steps=env_steps)
    return run.checkpoints.commit(folder, counters(env_steps), reason="test")


def finish(run):
    run.write_summary({"finished": True})


def test_the_same_command_goes_on_and_after_the_end_starts_anew():
    first = open_and_close()
    assert str(first.path) == "runs/demo"
    assert first.resume_from is None
    path = add_checkpoint(first)
    again = open_and_close()
    assert (again.path, again.resume_from, again.resumed_at_step) == (first.path, path, 50)
    finish(again)
    assert str(open_and_close().path) == "runs/demo-2"


def test_other_settings_take_another_default_directory():
    add_checkpoint(open_and_close())
    assert str(open_and_close(Config(seed=5)).path) == "runs/demo-2"


def test_an_explicit_directory_is_never_renamed(tmp_path):
    config = Config(run_dir=tmp_path / "mine")
    add_checkpoint(open_and_close(config))
    changed = dataclasses.replace(config, seed=5)
    with pytest.raises(ConfigError, match="seed: 0 in the run, 5 now"):
        open_and_close(changed)


def test_settings_that_only_change_pace_or_length_may_differ(tmp_path):
    config = Config(run_dir=tmp_path / "mine")
    path = add_checkpoint(open_and_close(config))
    longer = dataclasses.replace(
        config,
        total_env_steps=99_999,
        acting=dataclasses.replace(config.acting, num_actors=7),
        search=dataclasses.replace(config.search, n_simulations=3),
    )
    assert open_and_close(longer).resume_from == path


def test_resume_must_and_never(tmp_path):
    config = Config(run_dir=tmp_path / "mine")
    with pytest.raises(ConfigError, match="resume is 'must'"):
        open_and_close(dataclasses.replace(config, resume="must"))
    assert not (tmp_path / "mine").exists()
    add_checkpoint(open_and_close(config))
    with pytest.raises(ConfigError, match="resume is 'never'"):
        open_and_close(dataclasses.replace(config, resume="never"))


def test_resume_from_a_named_checkpoint(tmp_path):
    path = add_checkpoint(open_and_close(Config(run_dir=tmp_path / "old")))
    config = Config(run_dir=tmp_path / "new", resume=str(path))
    assert open_and_close(config).resume_from == path
    (path / "manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"manifest\.json"):
        open_and_close(dataclasses.replace(config, run_dir=tmp_path / "newer"))


def test_a_second_run_in_the_same_directory_is_refused(tmp_path):
    config = Config(run_dir=tmp_path / "mine")
    run = open_run("demo", config)
    try:
        with pytest.raises(ConfigError, match="in use by another run"):
            open_run("demo", config)
    finally:
        run.close()


def test_the_resolved_config_lies_in_the_directory():
    run = open_and_close(Config(seed=3))
    text = (run.path / "config.yaml").read_text()
    assert "seed: 3" in text
    assert "n_simulations" in text
    run.write_summary({"finished": False, "env_steps": 1})
    assert json.loads((run.path / "summary.json").read_text())["env_steps"] == 1
